"""Gymnasium's Walker2d-v5: two legs with three joints each walk forward in the plane.

The reward is not a function of the observation: it depends on the distance moved along x, and x is not observed.

Solver iterations: of 1,000 states that random and scripted policies reach, 3 are wrong with 4 iterations and 8 line-search
steps, by up to 3.8e-3; with 6 and 12, none. A step in a batch of 1,000 takes 0.97 and 1.27 ms of CPU time in float64. The
task uses 6 and 12. One step then differs from Gymnasium's by 2e-13 in float64, and by up to 3.2e-4 in float32.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxmbrl.core.types import Task
from jaxmbrl.envs.base import make_task
from jaxmbrl.envs.mujoco.mjx_env import Data, MujocoEnv, Simulation

MIN_HEIGHT, MAX_HEIGHT = 0.8, 2.0  # m
MAX_ANGLE = 1.0  # rad
MAX_OBSERVED_SPEED = 10.0  # m/s, rad/s
CONTROL_COST = 1e-3


class Walker2d(MujocoEnv):
    """Observation [height (m), torso angle, right thigh, leg and foot joint, left thigh, leg and foot joint (rad), then the
    velocities of x, height and the seven angles (m/s, rad/s), clipped to +-10]; action [torque / 100 N m of the right
    thigh, leg and foot, left thigh, leg and foot]."""

    gymnasium_id = "Walker2d-v5"
    xml = "walker2d_v5.xml"
    frame_skip = 4
    reset_noise = 5e-3
    iterations = 6
    line_search_iterations = 12
    reward_terms = ("reward_forward", "reward_ctrl", "reward_survive")

    def observe(self, data: Data) -> Float[Array, "17"]:
        """All coordinates except x."""
        return jnp.concatenate([data.qpos[1:], jnp.clip(data.qvel, -MAX_OBSERVED_SPEED, MAX_OBSERVED_SPEED)])

    def outcome(
        self, before: Simulation, control: Float[Array, "6"], after: Data
    ) -> tuple[dict[str, Float[Array, ""]], Bool[Array, ""]]:
        """Mean speed over the step in m/s, plus 1 if healthy after it, minus 0.001 times the squared action."""
        ended = terminated(self.observe(after))
        terms = {
            "reward_forward": (after.qpos[0] - before.qpos[0]) / self.dt,
            "reward_ctrl": -CONTROL_COST * jnp.sum(control**2),
            "reward_survive": (~ended).astype(float),
        }
        return terms, ended


def terminated(next_observation: Float[Array, "*n 17"]) -> Bool[Array, "*n"]:
    """Whether the height of the torso is not between 0.8 and 2 m, or the torso leans by 1 rad or more."""
    height, angle = next_observation[..., 0], next_observation[..., 1]
    return ~((height > MIN_HEIGHT) & (height < MAX_HEIGHT) & (jnp.abs(angle) < MAX_ANGLE))


def walker2d() -> Task:
    """`Walker2d-v5`: 1,000 steps."""
    return make_task("Walker2d-v5", Walker2d(), 1000, terminated=terminated)
