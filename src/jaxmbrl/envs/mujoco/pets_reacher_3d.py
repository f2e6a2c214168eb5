"""Reacher3D as in PETS: an arm with seven joints, without gravity, reaches for a goal in space, which is random in each
episode (Chua et al., arXiv 1805.12114; code: kchua/handful-of-trials, dmbrl/env and dmbrl/config).

The model file is our own, with the geometry, masses, damping and limits of that task. Links without a joint are part of the
body that they are fixed to. The arm collides with nothing.

What differs: the position of the hand is always the true one. In PETS's code it is correct only within the joint limits.
The limits are soft, so elbow and wrist can pass 0. Beyond 0 that code mirrors the links after the joint, and at 0 it loses
the roll before it.

Accuracy: one step from each of 1,000 states that random policies reach differs from C MuJoCo by 5e-13 in float64, both with
4 solver iterations and 8 line-search steps and with 6 and 12. The task uses 4 and 8.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxmbrl.core.types import Features, Key, Task
from jaxmbrl.envs.base import make_task, never
from jaxmbrl.envs.mujoco.mjx_env import Data, MujocoEnv, Simulation
from jaxmbrl.envs.mujoco.pets_arm import hand
from jaxmbrl.envs.mujoco.scenes import oblique

BASE = (0.0, -0.188, 0.0)  # m
REACH = 0.16828  # m from the wrist to the middle between the fingers' last joints
MAX_TORQUE = 20.0  # N m
CONTROL_COST = 0.01
GOAL_DEVIATION = 0.1  # m


class PetsReacher3D(MujocoEnv):
    """Observation [the seven joints (rad), the goal's x, y and z (m), the joints' velocities (rad/s)]; action [torque /
    20 N m of pan, lift, upper arm's roll, elbow, forearm's roll, wrist and wrist's roll]."""

    xml = "pets_reacher_3d.xml"
    camera = oblique(2.2, (0.0, 0.0, 0.0), 110.0, 30.0)
    frame_skip = 2
    iterations = 4
    line_search_iterations = 8
    reward_terms = ("reward_dist", "reward_ctrl")

    def observe(self, data: Data) -> Float[Array, "17"]:
        """All coordinates, and all velocities except those of the goal, which never moves."""
        return jnp.concatenate([data.qpos, data.qvel[:7]])

    def initial(self, rng: Key) -> tuple[Float[Array, "10"], Float[Array, "10"]]:
        """The stretched arm at rest, and a goal that is normally distributed around (0, 0.25, 0) m with a standard
        deviation of 0.1 m."""
        goal = self._data.qpos[7:] + GOAL_DEVIATION * jax.random.normal(rng, (3,))
        return self._data.qpos.at[7:].set(goal), jnp.zeros(self.mj_model.nv)

    def outcome(
        self, before: Simulation, control: Float[Array, "7"], after: Data
    ) -> tuple[dict[str, Float[Array, ""]], Bool[Array, ""]]:
        """Minus the squared distance of hand and goal in m^2, minus 0.01 times the squared torques; never terminated."""
        return _terms(control, self.observe(after)), jnp.zeros((), bool)


def _terms(control: Float[Array, "*n 7"], next_observation: Float[Array, "*n 17"]) -> dict[str, Float[Array, "*n"]]:
    gap = hand(next_observation[..., :7], BASE, REACH) - next_observation[..., 7:10]
    return {
        "reward_dist": -jnp.sum(gap**2, axis=-1),
        "reward_ctrl": -CONTROL_COST * jnp.sum(control**2, axis=-1),
    }


def reward(
    observation: Float[Array, "*n 17"], action: Float[Array, "*n 7"], next_observation: Float[Array, "*n 17"]
) -> Float[Array, "*n"]:
    """Minus the squared distance of hand and goal in m^2, minus 0.01 times the squared torques."""
    terms = _terms(MAX_TORQUE * action, next_observation)
    return terms["reward_dist"] + terms["reward_ctrl"]


def pets_reacher_3d() -> Task:
    """`pets/Reacher3D`: 150 steps. A dynamics model predicts that the goal does not move, because PETS's planner knows the
    goal."""
    return make_task("pets/Reacher3D", PetsReacher3D(), 150, reward, never, features=Features(constant=(7, 8, 9)))
