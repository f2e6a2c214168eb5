"""A pendulum is raised from hanging to horizontal and held there, by a motor that is strong enough to do so directly.

The pendulum is that of PILCO's toolbox, version 0.9 (folder scenarios/pendulum): a uniform rod of 1 kg and 1 m with
friction, gravity 9.82 m/s^2, control at 10 Hz with zero-order hold. What differs: the toolbox limits the torque to 2.5 N m,
so that the rod must swing; here the limit is 20 N m, twice what optimal control uses. The toolbox's cost saturates; here
it is quadratic:

    cost = (angle - pi / 2)^2 + 0.05 speed^2 + 0.01 torque^2    in rad, rad / s and N m, of the state before the step

The angle is not wrapped, so the task is smooth, and its episodes all have 40 steps from the same start: a task for
trajectory optimisation. The cost of an episode is 98.7 without torques, and 17.34 under optimal control.

Accuracy: one step from each of 200 states with speeds up to 15 rad/s differs from the exact solution by at most 4e-8 in
any coordinate (float64).
"""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from jaxmbrl.core.types import Key, Task
from jaxmbrl.envs.base import State, initial_state, make_task, never
from jaxmbrl.envs.classic.integration import runge_kutta
from jaxmbrl.envs.classic.rod import DT, LENGTH, acceleration, picture, scene
from jaxmbrl.envs.drawing.scene import Scene

TORQUE = 20.0  # N m at action 1
SUBSTEPS = 20
GOAL_ANGLE = math.pi / 2  # rad


def _derivative(coordinates: Float[Array, "2"], torque: Float[Array, ""]) -> Float[Array, "2"]:
    angle, speed = coordinates
    return jnp.stack([speed, acceleration(angle, speed, torque)])


class PendulumReach:
    """State and observation [angle (rad, 0 hanging down, positive counterclockwise), speed (rad/s)]; action [torque
    / 20 N m]."""

    actuator_range = (-TORQUE, TORQUE)  # N m
    observation_size = 2
    observation_names = ("angle", "angular velocity")
    action_size = 1
    dt = DT

    def state_at(self, coordinates: Float[Array, "2"]) -> State:
        """The state with the given angle and speed."""
        return initial_state(coordinates, coordinates)

    def reset(self, rng: Key) -> State:
        """Hanging at rest."""
        return self.state_at(jnp.zeros(2))

    def step(self, state: State, action: Float[Array, "1"]) -> State:
        """One step of 0.1 s under a constant torque. The cost is that of the state before the step."""
        torque = TORQUE * jnp.clip(action[0], -1.0, 1.0)
        coordinates = runge_kutta(lambda y: _derivative(y, torque), state.pipeline_state, DT, SUBSTEPS)
        return state.replace(pipeline_state=coordinates, obs=coordinates, reward=reward(state.obs, action, coordinates))

    def draw(self, state: State, action: Float[np.ndarray, "1"] | None) -> UInt8[np.ndarray, "H W 3"]:
        """The rod, a ring around the goal of its tip, and the torque as an arrow."""
        return picture(float(state.pipeline_state[0]), (LENGTH, 0.0), action)

    def scene(self, state: State) -> Scene:
        """The rod, and the goal of its tip."""
        return scene(state.pipeline_state[0], (LENGTH, 0.0))


def reward(
    observation: Float[Array, "*n 2"], action: Float[Array, "*n 1"], next_observation: Float[Array, "*n 2"]
) -> Float[Array, "*n"]:
    """Minus the cost of the state before the step."""
    angle, speed = observation[..., 0], observation[..., 1]
    torque = TORQUE * jnp.clip(action[..., 0], -1.0, 1.0)
    return -((angle - GOAL_ANGLE) ** 2 + 0.05 * speed**2 + 0.01 * torque**2)


def pendulum_reach() -> Task:
    """`pendulum-reach`: 40 steps."""
    return make_task("pendulum-reach", PendulumReach(), 40, reward, never)
