"""PILCO's pendulum: swing up a pendulum with a motor that is too weak to lift it in one move, from hanging at rest.

The numbers are those of PILCO's toolbox, version 0.9 (folder scenarios/pendulum): a uniform rod of 1 kg and 1 m, a torque
of 2.5 N m, friction of 0.01 N m s, control at 10 Hz with zero-order hold for 4 s, a start distribution around hanging at
rest, and the saturating cost of the pendulum's tip with a width of 0.5 m:

    acceleration = 3 (torque - 0.01 speed - 4.91 sin(angle)),      cost = 1 - exp(-2 ||(sin(angle), cos(angle) + 1)||^2)

What differs: the reward is 1 - cost, in [0, 1], of the state after the step, so a return is 40 minus the sum of costs. The
observation is exact; the toolbox adds noise. The torque is clipped to 2.5 N m; the toolbox's policies squash it.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from jaxmbrl.core.types import Key, SaturatingReward, Task
from jaxmbrl.envs.base import State, angle_features, initial_state, make_task, never, saturating_reward
from jaxmbrl.envs.classic.integration import runge_kutta
from jaxmbrl.envs.classic.rod import DT, LENGTH, acceleration, picture, scene
from jaxmbrl.envs.drawing.scene import Scene

TORQUE = 2.5  # N m at action 1
SUBSTEPS = 10
START_DEVIATION = 0.1  # rad/s, rad
COST_WIDTH = 0.5  # m

FEATURES = angle_features(2, (1,))
"""[angular velocity, sin, cos]."""
REWARD = SaturatingReward(
    matrix=np.array([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]) * LENGTH / COST_WIDTH, target=np.array([0.0, 0.0, -1.0])
)


def _derivative(coordinates: Float[Array, "2"], torque: Float[Array, ""]) -> Float[Array, "2"]:
    speed, angle = coordinates
    return jnp.stack([acceleration(angle, speed, torque), speed])


class PilcoPendulum:
    """State and observation [angular velocity (rad/s), angle (rad, 0 hanging down, not wrapped)]; action [torque / 2.5
    N m]."""

    actuator_range = (-TORQUE, TORQUE)  # N m
    observation_size = 2
    observation_names = ("angular velocity", "angle")
    action_size = 1
    dt = DT

    def state_at(self, coordinates: Float[Array, "2"]) -> State:
        """The state with the given speed and angle."""
        return initial_state(coordinates, coordinates)

    def reset(self, rng: Key) -> State:
        """Normal around hanging at rest, with standard deviation 0.1."""
        return self.state_at(START_DEVIATION * jax.random.normal(rng, (2,)))

    def step(self, state: State, action: Float[Array, "1"]) -> State:
        """One step of 0.1 s under a constant torque; the reward is that of the state after it."""
        torque = TORQUE * jnp.clip(action[0], -1.0, 1.0)
        coordinates = runge_kutta(lambda y: _derivative(y, torque), state.pipeline_state, DT, SUBSTEPS)
        return state.replace(pipeline_state=coordinates, obs=coordinates, reward=reward(state.obs, action, coordinates))

    def draw(self, state: State, action: Float[np.ndarray, "1"] | None) -> UInt8[np.ndarray, "H W 3"]:
        """The rod, a ring around the upright position, and the torque as an arrow."""
        return picture(float(state.pipeline_state[1]), (0.0, LENGTH), action)

    def scene(self, state: State) -> Scene:
        """The rod, and the goal of its tip."""
        return scene(state.pipeline_state[1], (0.0, LENGTH))


def reward(
    observation: Float[Array, "*n 2"], action: Float[Array, "*n 1"], next_observation: Float[Array, "*n 2"]
) -> Float[Array, "*n"]:
    """exp(-distance^2 / (2 * 0.5^2)) of the pendulum's tip from the upright position, in [0, 1]."""
    return saturating_reward(REWARD, FEATURES.encode(next_observation))


def pilco_pendulum() -> Task:
    """`pilco-pendulum`: 40 steps; the return is at most 40."""
    return make_task("pilco-pendulum", PilcoPendulum(), 40, reward, never, features=FEATURES, saturating=REWARD)
