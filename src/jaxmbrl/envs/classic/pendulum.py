"""Gymnasium's Pendulum-v1 in JAX: swing a pendulum up and balance it. The motor is too weak to lift it in one move."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from jaxmbrl.core.types import Key, Task
from jaxmbrl.envs.base import State, initial_state, make_task, never
from jaxmbrl.envs.drawing.canvas import BODY, GOAL, INK, ROD, Canvas
from jaxmbrl.envs.drawing.scene import Scene, disc, rod

MAX_TORQUE = 2.0  # N m
MAX_SPEED = 8.0  # rad / s
DT = 0.05  # s
GRAVITY = 10.0  # m / s^2
MASS = 1.0  # kg
LENGTH = 1.0  # m


def _cost(angle: Float[Array, "*n"], speed: Float[Array, "*n"], torque: Float[Array, "*n"]) -> Float[Array, "*n"]:
    wrapped = (angle + jnp.pi) % (2 * jnp.pi) - jnp.pi
    return wrapped**2 + 0.1 * speed**2 + 0.001 * torque**2


def _torque(action: Float[Array, "*n 1"]) -> Float[Array, "*n"]:
    return MAX_TORQUE * jnp.clip(action[..., 0], -1.0, 1.0)


class Pendulum:
    """State [angle (rad, 0 upright), speed (rad/s)]; observation [cos, sin, speed]; action [torque / 2 N m]."""

    actuator_range = (-MAX_TORQUE, MAX_TORQUE)  # N m
    observation_size = 3
    observation_names = ("cos", "sin", "angular velocity")
    action_size = 1
    dt = DT

    def state_at(self, coordinates: Float[Array, "2"]) -> State:
        """The state with the given angle and speed."""
        return initial_state(coordinates, self._observe(coordinates))

    def reset(self, rng: Key) -> State:
        """Angle uniform over the circle, speed uniform in [-1, 1] rad/s."""
        high = jnp.array([jnp.pi, 1.0])
        return self.state_at(jax.random.uniform(rng, (2,), minval=-high, maxval=high))

    def step(self, state: State, action: Float[Array, "1"]) -> State:
        """One step of 0.05 s. The cost is that of the state before the step."""
        angle, speed = state.pipeline_state
        torque = _torque(action)
        acceleration = 3 * GRAVITY / (2 * LENGTH) * jnp.sin(angle) + 3 / (MASS * LENGTH**2) * torque
        new_speed = jnp.clip(speed + acceleration * DT, -MAX_SPEED, MAX_SPEED)
        coordinates = jnp.stack([angle + new_speed * DT, new_speed])
        return state.replace(
            pipeline_state=coordinates, obs=self._observe(coordinates), reward=-_cost(angle, speed, torque)
        )

    def _observe(self, coordinates: Float[Array, "2"]) -> Float[Array, "3"]:
        angle, speed = coordinates
        return jnp.stack([jnp.cos(angle), jnp.sin(angle), speed])

    def draw(self, state: State, action: Float[np.ndarray, "1"] | None) -> UInt8[np.ndarray, "H W 3"]:
        """The rod, a ring around the upright position, and the torque as an arrow. Positive angles are to the left, as in
        Gymnasium."""
        angle = float(state.pipeline_state[0])
        canvas = Canvas(width=2.8, size=(360, 360))
        canvas.ring((0.0, LENGTH), 0.16, GOAL, 3.0)
        canvas.rod((0.0, 0.0), (-LENGTH * math.sin(angle), LENGTH * math.cos(angle)), 0.14, ROD)
        canvas.disc((0.0, 0.0), 0.05, INK)
        if action is not None:
            canvas.turn((0.0, 0.0), 0.4, angle + math.pi / 2, 1.6 * float(np.clip(action[0], -1, 1)))
        return canvas.picture()

    def scene(self, state: State) -> Scene:
        """The rod."""
        angle = state.pipeline_state[0]
        tip = (-LENGTH * jnp.sin(angle), LENGTH * jnp.cos(angle))
        return Scene((rod((0.0, 0.0), tip, 0.2, BODY), disc((0.0, 0.0), 0.07, INK)), width=2.4)


def reward(
    observation: Float[Array, "*n 3"], action: Float[Array, "*n 1"], next_observation: Float[Array, "*n 3"]
) -> Float[Array, "*n"]:
    """The reward, computed from the observation; [cos, sin] need not lie on the unit circle."""
    angle = jnp.arctan2(observation[..., 1], observation[..., 0])
    return -_cost(angle, observation[..., 2], _torque(action))


def pendulum() -> Task:
    """`pendulum`: 200 steps, as in Gymnasium."""
    return make_task("pendulum", Pendulum(), 200, reward, never)
