"""Gymnasium's CartPole: balance a pole on a cart, by a force of 10 N to the left or to the right (`CartPole-v1`), or by a
continuous force (`cartpole-continuous`, on which PETS implementations report results)."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped, UInt8

from jaxmbrl.core.spaces import Discrete
from jaxmbrl.core.types import Key, Task
from jaxmbrl.envs.base import State, initial_state, make_task
from jaxmbrl.envs.classic.pictures import cart_scene, cart_with_pole
from jaxmbrl.envs.drawing.canvas import GOAL, TRACK, Canvas
from jaxmbrl.envs.drawing.scene import Scene, rod

FORCE = 10.0  # N at action 1
GRAVITY = 9.8  # m / s^2
CART_MASS = 1.0  # kg
POLE_MASS = 0.1  # kg
HALF_LENGTH = 0.5  # m
DT = 0.02  # s
MAX_POSITION = 2.4  # m
MAX_ANGLE = 12 * 2 * jnp.pi / 360  # rad


class CartPole:
    """State and observation [position (m), velocity (m/s), angle (rad, 0 upright), angular velocity (rad/s)]."""

    observation_size = 4
    observation_names = ("position", "velocity", "angle", "angular velocity")
    dt = DT

    def state_at(self, coordinates: Float[Array, "4"]) -> State:
        """The state with the given coordinates."""
        return initial_state(coordinates, coordinates)

    def reset(self, rng: Key) -> State:
        """Each coordinate uniform in [-0.05, 0.05]."""
        return self.state_at(jax.random.uniform(rng, (4,), minval=-0.05, maxval=0.05))

    def _pushed(self, state: State, share: Float[Array, ""]) -> State:
        """The state after one explicit Euler step of 0.02 s, with the force `share` * 10 N. The reward is 1, also in the
        step in which the pole falls."""
        _, velocity, angle, spin = state.pipeline_state
        cos, sin = jnp.cos(angle), jnp.sin(angle)
        total_mass = CART_MASS + POLE_MASS
        push = (FORCE * share + POLE_MASS * HALF_LENGTH * spin**2 * sin) / total_mass
        angular = (GRAVITY * sin - cos * push) / (HALF_LENGTH * (4 / 3 - POLE_MASS * cos**2 / total_mass))
        linear = push - POLE_MASS * HALF_LENGTH * angular * cos / total_mass
        coordinates = state.pipeline_state + DT * jnp.stack([velocity, linear, spin, angular])
        return state.replace(
            pipeline_state=coordinates,
            obs=coordinates,
            reward=jnp.ones_like(state.reward),
            done=terminated(coordinates).astype(state.done.dtype),
        )

    def _picture(self, state: State, share: float) -> UInt8[np.ndarray, "H W 3"]:
        """The cart between the ends of the track, the largest angles of the pole as lines, and the force as an arrow."""
        position, _, angle, _ = map(float, state.pipeline_state)
        canvas = Canvas(width=6.0, centre=(0.0, 0.6), size=(480, 180))
        for limit in (-1.0, 1.0):
            canvas.line([(limit * MAX_POSITION, -0.21), (limit * MAX_POSITION, 0.1)], TRACK, 4.0)
            leaning = limit * float(MAX_ANGLE)
            canvas.line([(position, 0.0), (position + 1.3 * math.sin(leaning), 1.3 * math.cos(leaning))], GOAL, 1.0)
        tip = (position + 2 * HALF_LENGTH * math.sin(angle), 2 * HALF_LENGTH * math.cos(angle))
        cart_with_pole(canvas, position, tip, 0.5, 0.6 * share)
        return canvas.picture()

    def scene(self, state: State) -> Scene:
        """The cart and its pole between the ends of the track. The picture is as wide as the track."""
        position, _, angle, _ = state.pipeline_state
        ends = [rod((end, -0.4), (end, 0.3), 0.1, GOAL) for end in (-MAX_POSITION, MAX_POSITION)]
        tip = (position + 2 * HALF_LENGTH * jnp.sin(angle), 2 * HALF_LENGTH * jnp.cos(angle))
        return Scene((*ends, *cart_scene(position, tip, 0.6)), width=5.2, centre=(0.0, 0.4))


class ContinuousCartPole(CartPole):
    """`CartPole` with the action [force / 10 N]."""

    actuator_range = (-FORCE, FORCE)  # N
    action_size = 1

    def step(self, state: State, action: Float[Array, "1"]) -> State:
        """One step of 0.02 s. The reward is 1, also in the step in which the pole falls."""
        return self._pushed(state, jnp.clip(action[0], -1.0, 1.0))

    def draw(self, state: State, action: Float[np.ndarray, "1"] | None) -> UInt8[np.ndarray, "H W 3"]:
        """The cart between the ends of the track, the largest angles of the pole as lines, and the force as an arrow."""
        return self._picture(state, 0.0 if action is None else float(np.clip(action[0], -1, 1)))


class DiscreteCartPole(CartPole):
    """`CartPole` with the actions 0 (10 N to the left) and 1 (10 N to the right)."""

    def step(self, state: State, action: Int[Array, ""]) -> State:
        """One step of 0.02 s. The reward is 1, also in the step in which the pole falls."""
        return self._pushed(state, 2.0 * action - 1.0)

    def draw(self, state: State, action: Int[np.ndarray, ""] | None) -> UInt8[np.ndarray, "H W 3"]:
        """The cart between the ends of the track, the largest angles of the pole as lines, and the force as an arrow."""
        return self._picture(state, 0.0 if action is None else 2.0 * int(action) - 1.0)


def reward(
    observation: Float[Array, "*n 4"], action: Shaped[Array, "..."], next_observation: Float[Array, "*n 4"]
) -> Float[Array, "*n"]:
    """1 for each step."""
    return jnp.ones(next_observation.shape[:-1], next_observation.dtype)


def terminated(next_observation: Float[Array, "*n 4"]) -> Bool[Array, "*n"]:
    """Whether the cart has left the track, or the pole leans by more than 12 degrees."""
    return (jnp.abs(next_observation[..., 0]) > MAX_POSITION) | (jnp.abs(next_observation[..., 2]) > MAX_ANGLE)


def cartpole_continuous() -> Task:
    """`cartpole-continuous`: 200 steps; the return is at most 200."""
    return make_task("cartpole-continuous", ContinuousCartPole(), 200, reward, terminated)


def cartpole_v1() -> Task:
    """`CartPole-v1`: 500 steps, as in Gymnasium; the return is at most 500."""
    return make_task("CartPole-v1", DiscreteCartPole(), 500, reward, terminated, Discrete(2))
