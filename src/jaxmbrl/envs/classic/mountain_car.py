"""Gymnasium's mountain cars: a car too weak for the hill swings back and forth to gain speed. `MountainCar-v0` has three
actions and a reward of -1 for each step, `mountain-car-continuous` (Gymnasium's MountainCarContinuous-v0) a continuous
force and a reward for reaching the goal.

What differs in the continuous task: Gymnasium rounds positions and velocities to float32 after each step; here they keep
JAX's default float.
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
from jaxmbrl.envs.drawing.canvas import BODY, FORCE, INK, TRACK, Canvas
from jaxmbrl.envs.drawing.canvas import GOAL as GOAL_COLOR
from jaxmbrl.envs.drawing.scene import Ground, Scene, disc, rod

POWER = 0.0015  # change of velocity in a step at full power, of the continuous task
DISCRETE_POWER = 0.001  # the same of MountainCar-v0
GRAVITY = 0.0025  # change of velocity in a step on the steepest slope
MIN_POSITION, MAX_POSITION = -1.2, 0.6
MAX_SPEED = 0.07
GOAL = 0.45  # of the continuous task
DISCRETE_GOAL = 0.5  # of MountainCar-v0
GOAL_REWARD = 100.0
CONTROL_COST = 0.1
FRAME_SECONDS = 1 / 30  # of a step in a video; the task has no unit of time


class MountainCar:
    """State and observation [position, velocity (positions per step)]."""

    observation_size = 2
    observation_names = ("position", "velocity")
    dt = FRAME_SECONDS

    def state_at(self, coordinates: Float[Array, "2"]) -> State:
        """The state with the given position and velocity."""
        return initial_state(coordinates, coordinates)

    def reset(self, rng: Key) -> State:
        """At rest, position uniform in [-0.6, -0.4]."""
        return self.state_at(jnp.stack([jax.random.uniform(rng, minval=-0.6, maxval=-0.4), jnp.zeros(())]))

    def _moved(self, coordinates: Float[Array, "2"], push: Float[Array, ""]) -> Float[Array, "2"]:
        """The coordinates after a step in which the engine changes the velocity by `push`. The walls at -1.2 and 0.6 bound
        the position, but only the left wall sets the velocity to 0."""
        position, velocity = coordinates
        velocity = velocity + push - GRAVITY * jnp.cos(3 * position)
        velocity = jnp.clip(velocity, -MAX_SPEED, MAX_SPEED)
        position = jnp.clip(position + velocity, MIN_POSITION, MAX_POSITION)
        velocity = jnp.where(position <= MIN_POSITION, jnp.maximum(velocity, 0.0), velocity)
        return jnp.stack([position, velocity])

    def _picture(self, state: State, power: float, goal: float) -> UInt8[np.ndarray, "H W 3"]:
        """The car on the hill, a flag at the goal, and the share of the engine's power as an arrow."""
        position = float(state.pipeline_state[0])
        canvas = Canvas(width=2.0, centre=(-0.3, 0.58), size=(480, 300))
        ground = [(x, _height(x)) for x in np.linspace(-1.3, 0.7, 101)]
        canvas.polygon([(-1.3, -1.0), *ground, (0.7, -1.0)], TRACK)
        canvas.line(ground, INK)
        top = _height(goal) + 0.16
        canvas.line([(goal, _height(goal)), (goal, top)], INK)
        canvas.polygon([(goal, top), (goal, top - 0.07), (goal + 0.09, top - 0.035)], GOAL_COLOR)
        slope = math.atan(1.35 * math.cos(3 * position))
        along, up = np.array([math.cos(slope), math.sin(slope)]), np.array([-math.sin(slope), math.cos(slope)])
        foot = np.array([position, _height(position)])
        for side in (-0.035, 0.035):
            canvas.disc(foot + side * along + 0.022 * up, 0.022, INK)
        canvas.box(foot + 0.05 * up, (0.12, 0.05), BODY, slope)
        start = foot + 0.05 * up + math.copysign(0.07, power) * along
        canvas.arrow(start, start + 0.2 * power * along, FORCE)
        return canvas.picture()

    def _scene(self, state: State, goal: float) -> Scene:
        """The car as a disc on the hill, and a post at the goal."""
        position = state.pipeline_state[0]
        height = _height(goal)
        flag = rod((goal, height), (goal, height + 0.2), 0.05, GOAL_COLOR)
        car = disc((position, 0.45 * jnp.sin(3 * position) + 0.59), 0.08, BODY)
        return Scene((Ground(lambda x: 0.45 * jnp.sin(3 * x) + 0.55, TRACK), flag, car), width=2.0, centre=(-0.3, 0.58))


class ContinuousMountainCar(MountainCar):
    """`MountainCar` with the action [engine power, 1 is full power forward]."""

    actuator_range = (-1.0, 1.0)  # share of the engine's power
    action_size = 1

    def step(self, state: State, action: Float[Array, "1"]) -> State:
        """One step."""
        coordinates = self._moved(state.pipeline_state, POWER * jnp.clip(action[0], -1.0, 1.0))
        return state.replace(
            pipeline_state=coordinates,
            obs=coordinates,
            reward=reward(state.obs, action, coordinates),
            done=terminated(coordinates).astype(state.done.dtype),
        )

    def draw(self, state: State, action: Float[np.ndarray, "1"] | None) -> UInt8[np.ndarray, "H W 3"]:
        """The car on the hill, a flag at the goal, and the power of the engine as an arrow."""
        return self._picture(state, 0.0 if action is None else float(np.clip(action[0], -1, 1)), GOAL)

    def scene(self, state: State) -> Scene:
        """The car as a disc on the hill, and a post at the goal."""
        return self._scene(state, GOAL)


class DiscreteMountainCar(MountainCar):
    """`MountainCar` with the actions 0, 1, 2: full power backward, none, full power forward."""

    def step(self, state: State, action: Int[Array, ""]) -> State:
        """One step."""
        coordinates = self._moved(state.pipeline_state, DISCRETE_POWER * (action - 1))
        return state.replace(
            pipeline_state=coordinates,
            obs=coordinates,
            reward=discrete_reward(state.obs, action, coordinates),
            done=discrete_terminated(coordinates).astype(state.done.dtype),
        )

    def draw(self, state: State, action: Int[np.ndarray, ""] | None) -> UInt8[np.ndarray, "H W 3"]:
        """The car on the hill, a flag at the goal, and the power of the engine as an arrow."""
        return self._picture(state, 0.0 if action is None else float(action) - 1.0, DISCRETE_GOAL)

    def scene(self, state: State) -> Scene:
        """The car as a disc on the hill, and a post at the goal."""
        return self._scene(state, DISCRETE_GOAL)


def _height(position: float) -> float:
    """Height of the hill in the picture, in units of position, as in Gymnasium."""
    return 0.45 * math.sin(3 * position) + 0.55


def reward(
    observation: Float[Array, "*n 2"], action: Float[Array, "*n 1"], next_observation: Float[Array, "*n 2"]
) -> Float[Array, "*n"]:
    """100 on reaching the goal, minus 0.1 times the squared action before clipping."""
    return GOAL_REWARD * terminated(next_observation) - CONTROL_COST * action[..., 0] ** 2


def terminated(next_observation: Float[Array, "*n 2"]) -> Bool[Array, "*n"]:
    """Whether the car is at 0.45 or beyond, with a velocity of at least 0."""
    return (next_observation[..., 0] >= GOAL) & (next_observation[..., 1] >= 0.0)


def discrete_reward(
    observation: Float[Array, "*n 2"], action: Shaped[Array, "..."], next_observation: Float[Array, "*n 2"]
) -> Float[Array, "*n"]:
    """-1 for each step."""
    return -jnp.ones(next_observation.shape[:-1], next_observation.dtype)


def discrete_terminated(next_observation: Float[Array, "*n 2"]) -> Bool[Array, "*n"]:
    """Whether the car is at 0.5 or beyond, with a velocity of at least 0."""
    return (next_observation[..., 0] >= DISCRETE_GOAL) & (next_observation[..., 1] >= 0.0)


def mountain_car_continuous() -> Task:
    """`mountain-car-continuous`: 999 steps, as in Gymnasium."""
    return make_task("mountain-car-continuous", ContinuousMountainCar(), 999, reward, terminated)


def mountain_car_v0() -> Task:
    """`MountainCar-v0`: 200 steps, as in Gymnasium."""
    return make_task("MountainCar-v0", DiscreteMountainCar(), 200, discrete_reward, discrete_terminated, Discrete(3))
