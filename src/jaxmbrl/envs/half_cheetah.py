"""Gymnasium's HalfCheetah-v5: a two-legged runner in the plane, with six motors, runs forward.

The reward is not a function of the observation: it pays for the distance moved over the step, and x is not observed.
Nothing terminates the task.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxmbrl.envs.base import make_task
from jaxmbrl.envs.mujoco import Data, MujocoEnv, Simulation
from jaxmbrl.types import Task

CONTROL_COST = 0.1


class HalfCheetah(MujocoEnv):
    """Observation [height (m), torso angle, back thigh, shin and foot joint, front thigh, shin and foot joint (rad), then the
    velocities of x, height and the seven angles (m/s, rad/s)]; action [back thigh, shin, foot, front thigh, shin, foot torque
    / (120, 90, 60, 120, 60, 30 N m)]."""

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


def terminated(next_observation: Float[Array, "*n 17"]) -> Bool[Array, "*n"]:
    """Never."""
    return jnp.zeros(next_observation.shape[:-1], bool)


def half_cheetah() -> Task:
    """`HalfCheetah-v5`: 1,000 steps."""
    return make_task("HalfCheetah-v5", HalfCheetah(), 1000, terminated=terminated)
