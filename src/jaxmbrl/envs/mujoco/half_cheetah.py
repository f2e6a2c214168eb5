"""Gymnasium's HalfCheetah-v5: a two-legged runner in the plane, with six motors, runs forward.

The reward is not a function of the observation: it pays for the distance moved over the step, and x is not observed.
Nothing terminates the task.

One step from 3,000 states that random policies reach, in float64, differs from the solution of C MuJoCo by 2e-12, and from
Gymnasium by as much in all but 2 of them: there, by up to 1.1e-6, C's solver stopped early at its tolerance of 1e-8.
In float32 it differs by up to 5.9e-3.

Solver iterations: with 4 and 8 line-search steps 2 of those states are wrong, by up to 0.33, and of states drawn at random
over the joints' ranges, many of them inside the floor, 12%; with 6 and 12 none and 2%. In float32 a step in a batch of
1,024 takes 0.30 ms of CPU time with 4 and 8, 0.46 with 6 and 12. The task takes 6 and 12.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxmbrl.core.types import Task
from jaxmbrl.envs.base import make_task, never
from jaxmbrl.envs.mujoco.mjx_env import Data, MujocoEnv, Simulation

CONTROL_COST = 0.1


class HalfCheetah(MujocoEnv):
    """Observation [height (m), torso angle, back thigh, shin and foot joint, front thigh, shin and foot joint (rad), then
    the velocities of x, height and the seven angles (m/s, rad/s)]; action [torque / (120, 90, 60, 120, 60, 30 N m) of the
    back thigh, shin and foot, front thigh, shin and foot]."""

    gymnasium_id = "HalfCheetah-v5"
    xml = "half_cheetah.xml"
    frame_skip = 5
    reset_noise = 0.1
    normal_velocities = True
    iterations = 6
    line_search_iterations = 12
    reward_terms = ("reward_forward", "reward_ctrl")

    def observe(self, data: Data) -> Float[Array, "17"]:
        """All coordinates but x."""
        return jnp.concatenate([data.qpos[1:], data.qvel])

    def outcome(
        self, before: Simulation, control: Float[Array, "6"], after: Data
    ) -> tuple[dict[str, Float[Array, ""]], Bool[Array, ""]]:
        """Speed over the step in m/s, less 0.1 times the squared action; never terminated."""
        terms = {
            "reward_forward": (after.qpos[0] - before.qpos[0]) / self.dt,
            "reward_ctrl": -CONTROL_COST * jnp.sum(control**2),
        }
        return terms, jnp.zeros((), bool)


def half_cheetah() -> Task:
    """`HalfCheetah-v5`: 1,000 steps."""
    return make_task("HalfCheetah-v5", HalfCheetah(), 1000, terminated=never)
