"""Gymnasium's Acrobot-v1: swing the tip of a double pendulum above a line, by a motor at the joint between its links.

The equations of motion are those of Sutton and Barto's book, as in Gymnasium; the paper before it (Sutton, Generalization
in Reinforcement Learning, NeurIPS 1995) lacks a term. One classical Runge-Kutta step of order 4 integrates a step of 0.2 s.

What differs: Gymnasium's first state of an episode is rounded to float32, later ones are not; here all keep JAX's default
float.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped, UInt8

from jaxmbrl.core.spaces import Discrete
from jaxmbrl.core.types import Key, Task
from jaxmbrl.envs.base import State, initial_state, make_task
from jaxmbrl.envs.classic.integration import runge_kutta
from jaxmbrl.envs.drawing.canvas import BODY, GOAL, INK, ROD, Canvas
from jaxmbrl.envs.drawing.scene import Scene, rod

LENGTH = 1.0  # m, of the first link; the second is drawn with the same
MASS = 1.0  # kg, of each link
CENTRE = 0.5  # m, from a link's joint to its centre of mass
INERTIA = 1.0  # kg m^2, of each link
GRAVITY = 9.8  # m / s^2
TORQUE = 1.0  # N m
DT = 0.2  # s
MAX_SPEEDS = (4 * math.pi, 9 * math.pi)  # rad / s
HEIGHT = 1.0  # m above the first joint, which the tip must exceed


def _derivative(coordinates: Float[Array, "4"], torque: Float[Array, ""]) -> Float[Array, "4"]:
    angle, bend, spin, bend_spin = coordinates
    cos, sin = jnp.cos(bend), jnp.sin(bend)
    d1 = MASS * CENTRE**2 + MASS * (LENGTH**2 + CENTRE**2 + 2 * LENGTH * CENTRE * cos) + 2 * INERTIA
    d2 = MASS * (CENTRE**2 + LENGTH * CENTRE * cos) + INERTIA
    phi2 = MASS * CENTRE * GRAVITY * jnp.sin(angle + bend)
    centrifugal = MASS * LENGTH * CENTRE * sin
    phi1 = (
        -centrifugal * (bend_spin**2 + 2 * bend_spin * spin)
        + (MASS * CENTRE + MASS * LENGTH) * GRAVITY * jnp.sin(angle)
        + phi2
    )
    bend_acceleration = (torque + d2 / d1 * phi1 - centrifugal * spin**2 - phi2) / (MASS * CENTRE**2 + INERTIA - d2**2 / d1)
    acceleration = -(d2 * bend_acceleration + phi1) / d1
    return jnp.stack([spin, bend_spin, acceleration, bend_acceleration])


class Acrobot:
    """State [angle of the first link (rad, 0 hanging down), angle of the second relative to the first (rad), their
    velocities (rad/s)]; observation [cos, sin of the first angle, cos, sin of the second, velocities]. Actions 0, 1, 2 are
    torques of -1, 0, 1 N m at the joint between the links."""

    observation_size = 6
    observation_names = ("cos 1", "sin 1", "cos 2", "sin 2", "angular velocity 1", "angular velocity 2")
    dt = DT

    def state_at(self, coordinates: Float[Array, "4"]) -> State:
        """The state with the given coordinates."""
        return initial_state(coordinates, self._observe(coordinates))

    def reset(self, rng: Key) -> State:
        """Each coordinate uniform in [-0.1, 0.1]."""
        return self.state_at(jax.random.uniform(rng, (4,), minval=-0.1, maxval=0.1))

    def step(self, state: State, action: Int[Array, ""]) -> State:
        """One step of 0.2 s under a constant torque. Angles are wrapped to [-pi, pi], velocities clipped to 4 pi and
        9 pi."""
        torque = TORQUE * (action - 1)
        moved = runge_kutta(lambda y: _derivative(y, torque), state.pipeline_state, DT, 1)
        high = jnp.array(MAX_SPEEDS)
        angles = (moved[:2] + jnp.pi) % (2 * jnp.pi) - jnp.pi
        coordinates = jnp.concatenate([angles, jnp.clip(moved[2:], -high, high)])
        observation = self._observe(coordinates)
        return state.replace(
            pipeline_state=coordinates,
            obs=observation,
            reward=reward(state.obs, action, observation),
            done=terminated(observation).astype(state.done.dtype),
        )

    def _observe(self, coordinates: Float[Array, "4"]) -> Float[Array, "6"]:
        angle, bend, spin, bend_spin = coordinates
        return jnp.stack([jnp.cos(angle), jnp.sin(angle), jnp.cos(bend), jnp.sin(bend), spin, bend_spin])

    def draw(self, state: State, action: Int[np.ndarray, ""] | None) -> UInt8[np.ndarray, "H W 3"]:
        """The links, the line that the tip must exceed, and the torque as an arrow around the joint between the links."""
        angle, bend, _, _ = map(float, state.pipeline_state)
        canvas = Canvas(width=4.6, size=(360, 360))
        canvas.line([(-2.3, HEIGHT), (2.3, HEIGHT)], GOAL)
        joint = (LENGTH * math.sin(angle), -LENGTH * math.cos(angle))
        tip = (joint[0] + LENGTH * math.sin(angle + bend), joint[1] - LENGTH * math.cos(angle + bend))
        canvas.rod((0.0, 0.0), joint, 0.18, BODY)
        canvas.rod(joint, tip, 0.14, ROD)
        for at, radius in (((0.0, 0.0), 0.06), (joint, 0.05), (tip, 0.04)):
            canvas.disc(at, radius, INK)
        if action is not None:
            canvas.turn(joint, 0.35, angle + bend - math.pi / 2, 1.6 * (float(action) - 1.0))
        return canvas.picture()

    def scene(self, state: State) -> Scene:
        """The links, and the line that the tip must exceed."""
        angle, bend, _, _ = state.pipeline_state
        joint = (LENGTH * jnp.sin(angle), -LENGTH * jnp.cos(angle))
        tip = (joint[0] + LENGTH * jnp.sin(angle + bend), joint[1] - LENGTH * jnp.cos(angle + bend))
        line = rod((-2.3, HEIGHT), (2.3, HEIGHT), 0.08, GOAL)
        return Scene((line, rod((0.0, 0.0), joint, 0.25, BODY), rod(joint, tip, 0.2, ROD)), width=4.4)


def reward(
    observation: Float[Array, "*n 6"], action: Shaped[Array, "..."], next_observation: Float[Array, "*n 6"]
) -> Float[Array, "*n"]:
    """-1 for each step, except 0 for the last."""
    return jnp.where(terminated(next_observation), 0.0, -1.0).astype(next_observation.dtype)


def terminated(next_observation: Float[Array, "*n 6"]) -> Bool[Array, "*n"]:
    """Whether the tip is more than 1 m above the first joint; [cos, sin] need not lie on the circle."""
    cos, sin, bend_cos, bend_sin = (next_observation[..., i] for i in range(4))
    return -cos - (cos * bend_cos - sin * bend_sin) > HEIGHT


def acrobot() -> Task:
    """`Acrobot-v1`: 500 steps, as in Gymnasium."""
    return make_task("Acrobot-v1", Acrobot(), 500, reward, terminated, Discrete(3))
