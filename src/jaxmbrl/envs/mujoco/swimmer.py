"""Gymnasium's Swimmer-v5: a chain of three links in a viscous fluid swims forward.

The reward is not a function of the observation: it depends on the distance moved along x, and x is not observed. The task
never terminates.

Accuracy: only joint limits constrain this model, so 4 solver iterations with 8 line-search steps are enough. One step from
each of 1,000 states that random and scripted policies reach differs from Gymnasium's by 7e-11 in float64, and by up to
4.3e-5 in float32.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxmbrl.core.types import Task
from jaxmbrl.envs.base import make_task, never
from jaxmbrl.envs.mujoco.mjx_env import Data, MujocoEnv, Simulation
from jaxmbrl.envs.mujoco.scenes import ABOVE, Camera

CONTROL_COST = 1e-4


class Swimmer(MujocoEnv):
    """Observation [heading of the first link, first and second joint (rad), then the velocities of x, y and the three
    angles (m/s, rad/s)]; action [torque / 150 N m of the two joints]."""

    gymnasium_id = "Swimmer-v5"
    xml = "swimmer.xml"
    camera = Camera(width=4.0, centre=(0.0, 0.0, 0.0), up=ABOVE, follows=(0, 1))
    frame_skip = 4
    reset_noise = 0.1
    iterations = 4
    line_search_iterations = 8
    reward_terms = ("reward_forward", "reward_ctrl")

    def observe(self, data: Data) -> Float[Array, "8"]:
        """All coordinates except x and y."""
        return jnp.concatenate([data.qpos[2:], data.qvel])

    def outcome(
        self, before: Simulation, control: Float[Array, "2"], after: Data
    ) -> tuple[dict[str, Float[Array, ""]], Bool[Array, ""]]:
        """Mean speed along x over the step in m/s, minus 0.0001 times the squared action; never terminated."""
        terms = {
            "reward_forward": (after.qpos[0] - before.qpos[0]) / self.dt,
            "reward_ctrl": -CONTROL_COST * jnp.sum(control**2),
        }
        return terms, jnp.zeros((), bool)


def swimmer() -> Task:
    """`Swimmer-v5`: 1,000 steps."""
    return make_task("Swimmer-v5", Swimmer(), 1000, terminated=never)
