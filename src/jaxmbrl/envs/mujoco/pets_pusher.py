"""Pusher as in PETS: an arm with seven joints, without gravity, pushes a cylinder over a table to a fixed goal (Chua et
al., arXiv 1805.12114; code: kchua/handful-of-trials, dmbrl/env and dmbrl/config).

The model is that of Gymnasium's older Pusher (pusher.xml), with a wider range of the first joint.

What differs: reward and observation are those of the state after the step. In PETS's code, the reward is that of the
positions before the step, unlike the cost that its planner minimises, and the observed positions are one simulator step
(0.01 s) old. The tip is the midpoint of the two prongs, as in PETS's code, where the position of a body was its centre of
mass; in current versions of Gymnasium the same code gives the wrist.

Accuracy: one step from each of 1,000 states of random policies, in half of them with the cylinder between the prongs,
differs from C MuJoCo's solution by less than 1e-9 in float64. The exceptions are 10 of the 66 states in which the hand
touches the cylinder. There the hand lies on the cylinder, or overlaps it by more than 2 cm (`contacts`), and the step
differs by up to 1.7e-5.

Solver iterations: 4 with 8 line-search steps and 6 with 12 are equally exact on 3,000 such states, and equally fast. The
task uses 4 and 8.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxmbrl.core.types import Key, Task
from jaxmbrl.envs.base import make_task, never
from jaxmbrl.envs.mujoco.mjx_env import Data, MujocoEnv, Simulation
from jaxmbrl.envs.mujoco.pets_arm import hand
from jaxmbrl.envs.mujoco.scenes import oblique

BASE = (0.0, -0.6, 0.0)  # m
REACH = 0.1  # m from the wrist to the middle between the prongs' tips
CYLINDER = (0.45, -0.05, -0.275)  # m, where its slides are at 0
GOAL = (0.45, -0.05, -0.323)  # m
START = (-0.25, 0.15)  # m, of the cylinder's slides along y and x
START_DEVIATION = 0.025  # m
SPEED_NOISE = 5e-3  # rad/s
MAX_TORQUE = 2.0  # N m
NEAR_COST, DISTANCE_COST, CONTROL_COST = 0.5, 1.25, 0.1


class PetsPusher(MujocoEnv):
    """Observation [the seven joints (rad), their velocities (rad/s), then the positions of tip and cylinder, each x, y, z
    (m)]; action [torque / 2 N m of the seven joints]."""

    xml = "pets_pusher.xml"
    camera = oblique(1.8, (0.3, -0.2, -0.1), 90.0, 45.0)
    frame_skip = 4
    iterations = 4
    line_search_iterations = 8
    reward_terms = ("reward_near", "reward_dist", "reward_ctrl")

    def observe(self, data: Data) -> Float[Array, "20"]:
        """The joints and their velocities, and the positions of tip and cylinder."""
        along_y, along_x = data.qpos[7], data.qpos[8]
        cylinder = jnp.asarray(CYLINDER) + jnp.stack([along_x, along_y, jnp.zeros_like(along_x)])
        return jnp.concatenate([data.qpos[:7], data.qvel[:7], hand(data.qpos[:7], BASE, REACH), cylinder])

    def initial(self, rng: Key) -> tuple[Float[Array, "11"], Float[Array, "11"]]:
        """The stretched arm, with up to 0.005 rad/s at each joint. The cylinder is at rest; its position is normally
        distributed around (0.6, -0.3) m with a standard deviation of 0.025 m."""
        place_key, speed_key = jax.random.split(rng)
        place = jnp.asarray(START) + START_DEVIATION * jax.random.normal(place_key, (2,))
        speed = jax.random.uniform(speed_key, (7,), minval=-SPEED_NOISE, maxval=SPEED_NOISE)
        return self._data.qpos.at[7:9].set(place), jnp.concatenate([speed, jnp.zeros(4)])

    def outcome(
        self, before: Simulation, control: Float[Array, "7"], after: Data
    ) -> tuple[dict[str, Float[Array, ""]], Bool[Array, ""]]:
        """Minus 0.5 times the distance of tip and cylinder, minus 1.25 times the distance of cylinder and goal, minus 0.1
        times the squared torques. Distances are L1 norms in m. Never terminated."""
        return _terms(control, self.observe(after)), jnp.zeros((), bool)


def _terms(control: Float[Array, "*n 7"], next_observation: Float[Array, "*n 20"]) -> dict[str, Float[Array, "*n"]]:
    tip, cylinder = next_observation[..., 14:17], next_observation[..., 17:20]
    return {
        "reward_near": -NEAR_COST * jnp.sum(jnp.abs(cylinder - tip), axis=-1),
        "reward_dist": -DISTANCE_COST * jnp.sum(jnp.abs(cylinder - jnp.asarray(GOAL)), axis=-1),
        "reward_ctrl": -CONTROL_COST * jnp.sum(control**2, axis=-1),
    }


def reward(
    observation: Float[Array, "*n 20"], action: Float[Array, "*n 7"], next_observation: Float[Array, "*n 20"]
) -> Float[Array, "*n"]:
    """Minus 0.5 times the distance of tip and cylinder, minus 1.25 times the distance of cylinder and goal, minus 0.1 times
    the squared torques. Distances are L1 norms in m."""
    terms = _terms(MAX_TORQUE * action, next_observation)
    return terms["reward_near"] + terms["reward_dist"] + terms["reward_ctrl"]


def pets_pusher() -> Task:
    """`pets/Pusher`: 150 steps."""
    return make_task("pets/Pusher", PetsPusher(), 150, reward, never)
