"""Gymnasium's InvertedPendulum-v5: balance a pole on a cart that a motor pushes along a rail.

Accuracy: one step from each of 3,000 states that random policies reach differs from Gymnasium's by 2e-15 in float64, and by
up to 8e-7 in float32. Only joint limits constrain this model: 4 solver iterations with 8 line-search steps give the same
numbers as the 100 and 50 that the model file allows.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxmbrl.core.types import Task
from jaxmbrl.envs.base import make_task
from jaxmbrl.envs.mujoco.mjx_env import Data, MujocoEnv, Simulation
from jaxmbrl.envs.mujoco.scenes import Camera

MAX_ANGLE = 0.2  # rad


class InvertedPendulum(MujocoEnv):
    """Observation [position (m), angle (rad, 0 upright), velocity (m/s), angular velocity (rad/s)];
    action [force / 300 N]."""

    gymnasium_id = "InvertedPendulum-v5"
    xml = "inverted_pendulum.xml"
    camera = Camera(width=2.2, centre=(0.0, 0.0, 0.3))
    frame_skip = 2
    reset_noise = 0.01
    iterations = 4
    line_search_iterations = 8
    reward_terms = ("reward_survive",)

    def observe(self, data: Data) -> Float[Array, "4"]:
        """All coordinates."""
        return jnp.concatenate([data.qpos, data.qvel])

    def outcome(
        self, before: Simulation, control: Float[Array, "1"], after: Data
    ) -> tuple[dict[str, Float[Array, ""]], Bool[Array, ""]]:
        """1 unless the pole has fallen."""
        ended = terminated(self.observe(after))
        return {"reward_survive": (~ended).astype(float)}, ended


def reward(
    observation: Float[Array, "*n 4"], action: Float[Array, "*n 1"], next_observation: Float[Array, "*n 4"]
) -> Float[Array, "*n"]:
    """1 for each step, 0 for the step in which the pole falls."""
    return (~terminated(next_observation)).astype(float)


def terminated(next_observation: Float[Array, "*n 4"]) -> Bool[Array, "*n"]:
    """Whether the pole leans by more than 0.2 rad, or a number is not finite."""
    return (jnp.abs(next_observation[..., 1]) > MAX_ANGLE) | ~jnp.all(jnp.isfinite(next_observation), axis=-1)


def inverted_pendulum() -> Task:
    """`InvertedPendulum-v5`: 1,000 steps; the return is at most 1,000."""
    return make_task("InvertedPendulum-v5", InvertedPendulum(), 1000, reward, terminated)
