"""DeepMind Control's pendulum (Tassa et al., arXiv 1801.00690; code: google-deepmind/dm_control, suite/pendulum.py and
pendulum.xml): swing up a ball on a rod and balance it, by a motor that is a fifth as strong as its weight requires.

A step of 0.02 s is MuJoCo's semi-implicit Euler step with implicit damping.

Accuracy: in float64 a step differs from dm_control's by less than 1e-12.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from jaxmbrl.core.types import Key, Task
from jaxmbrl.envs.base import State, initial_state, make_task, never
from jaxmbrl.envs.dmc.rewards import tolerance
from jaxmbrl.envs.drawing.canvas import BODY, GOAL, INK, ROD, Canvas
from jaxmbrl.envs.drawing.scene import Scene, disc, rod

TORQUE = 1.0  # N m at action 1
MASS, LENGTH, RADIUS = 1.0, 0.5, 0.05  # kg, m, m: of the ball
FRICTION = 0.1  # N m s / rad
GRAVITY = 9.81  # m / s^2
DT = 0.02  # s
INERTIA = MASS * (LENGTH**2 + 2 / 5 * RADIUS**2)  # kg m^2
UPRIGHT_COSINE = math.cos(math.radians(8.0))


class Pendulum:
    """State [angle (rad, 0 upright, growing as the ball moves to the right), angular velocity (rad/s)]; observation [cos,
    sin, angular velocity]; action [torque / 1 N m]."""

    actuator_range = (-TORQUE, TORQUE)  # N m
    observation_size = 3
    observation_names = ("cos", "sin", "angular velocity")
    action_size = 1
    dt = DT

    def state_at(self, coordinates: Float[Array, "2"]) -> State:
        """The state with the given angle and angular velocity."""
        return initial_state(coordinates, self._observe(coordinates))

    def reset(self, rng: Key) -> State:
        """At rest, angle uniform over the circle."""
        angle = jax.random.uniform(rng, minval=-jnp.pi, maxval=jnp.pi)
        return self.state_at(jnp.stack([angle, jnp.zeros(())]))

    def step(self, state: State, action: Float[Array, "1"]) -> State:
        """One step of 0.02 s under a constant torque. The reward is that of the state after it."""
        angle, rate = state.pipeline_state
        torque = TORQUE * jnp.clip(action[0], -1.0, 1.0)
        moment = torque - FRICTION * rate + MASS * GRAVITY * LENGTH * jnp.sin(angle)
        rate = rate + DT * moment / (INERTIA + DT * FRICTION)
        coordinates = jnp.stack([angle + DT * rate, rate])
        observation = self._observe(coordinates)
        return state.replace(pipeline_state=coordinates, obs=observation, reward=reward(state.obs, action, observation))

    def _observe(self, coordinates: Float[Array, "2"]) -> Float[Array, "3"]:
        angle, rate = coordinates
        return jnp.stack([jnp.cos(angle), jnp.sin(angle), rate])

    def draw(self, state: State, action: Float[np.ndarray, "1"] | None) -> UInt8[np.ndarray, "H W 3"]:
        """The rod with its ball, a ring around the upright position, and the torque as an arrow."""
        angle = float(state.pipeline_state[0])
        canvas = Canvas(width=1.4, size=(360, 360))
        canvas.ring((0.0, LENGTH), 0.09, GOAL, 3.0)
        tip = (LENGTH * math.sin(angle), LENGTH * math.cos(angle))
        canvas.rod((0.0, 0.0), tip, 0.04, ROD)
        canvas.disc(tip, RADIUS, BODY)
        canvas.disc((0.0, 0.0), 0.02, INK)
        if action is not None:
            canvas.turn((0.0, 0.0), 0.2, math.pi / 2 - angle, -1.6 * float(np.clip(action[0], -1, 1)))
        return canvas.picture()

    def scene(self, state: State) -> Scene:
        """The rod with its ball, and the upright position."""
        angle = state.pipeline_state[0]
        tip = (LENGTH * jnp.sin(angle), LENGTH * jnp.cos(angle))
        shapes = (disc((0.0, LENGTH), 0.12, GOAL), rod((0.0, 0.0), tip, 0.08, ROD), disc(tip, 0.09, BODY))
        return Scene(shapes, width=1.3)


def reward(
    observation: Float[Array, "*n 3"], action: Float[Array, "*n 1"], next_observation: Float[Array, "*n 3"]
) -> Float[Array, "*n"]:
    """1 within 8 degrees of upright, otherwise 0."""
    # Without an upper bound, because a predicted cosine may be beyond 1.
    return tolerance(next_observation[..., 0], (UPRIGHT_COSINE, math.inf))


def swingup() -> Task:
    """`dmc/pendulum-swingup`: 1,000 steps."""
    return make_task("dmc/pendulum-swingup", Pendulum(), 1000, reward, never)
