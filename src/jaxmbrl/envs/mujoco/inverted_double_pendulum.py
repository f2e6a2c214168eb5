"""Gymnasium's InvertedDoublePendulum-v5: balance two poles, one on the other, on a cart that a motor pushes along a rail.

Neither the reward nor the termination is a function of the observation. Both use the position of the tip at the simulator's
last evaluation of the dynamics, shortly before the end of the step. The reward also uses velocities that the observation
clips.

Accuracy: only the ends of the rail constrain this model, so 4 solver iterations with 8 line-search steps are enough. One
step from each of 1,000 states that random and scripted policies reach differs from Gymnasium's by 6e-15 in float64, and by
up to 3.1e-6 in float32.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxmbrl.core.types import Task
from jaxmbrl.envs.base import make_task
from jaxmbrl.envs.mujoco.mjx_env import Data, MujocoEnv, Simulation
from jaxmbrl.envs.mujoco.scenes import Camera

MIN_HEIGHT = 1.0  # m, of the tip, which stands at 1.2 m
MAX_OBSERVED = 10.0  # m/s, rad/s, N
ALIVE = 10.0


class InvertedDoublePendulum(MujocoEnv):
    """Observation [position (m), sine of both joints, cosine of both, velocity of the cart (m/s) and of both joints
    (rad/s), and the rail's force on the cart (N); velocities and force clipped to +-10]; action [force / 500 N]."""

    gymnasium_id = "InvertedDoublePendulum-v5"
    xml = "inverted_double_pendulum.xml"
    camera = Camera(width=3.0, centre=(0.0, 0.0, 0.4))
    frame_skip = 5
    reset_noise = 0.1
    normal_velocities = True
    iterations = 4
    line_search_iterations = 8
    reward_terms = ("reward_survive", "distance_penalty", "velocity_penalty")

    def settle(self, data: Data) -> Data:
        """Add the force of the rail, because a reset may start beyond the end of the rail."""
        return self._mjx.forward(self._model, data)

    def observe(self, data: Data) -> Float[Array, "9"]:
        """The cart's position, the joints, all velocities, and the rail's force."""
        cart, joints = data.qpos[:1], data.qpos[1:]
        seen = jnp.clip(jnp.concatenate([data.qvel, data.qfrc_constraint[:1]]), -MAX_OBSERVED, MAX_OBSERVED)
        return jnp.concatenate([cart, jnp.sin(joints), jnp.cos(joints), seen])

    def outcome(
        self, before: Simulation, control: Float[Array, "1"], after: Data
    ) -> tuple[dict[str, Float[Array, ""]], Bool[Array, ""]]:
        """10 unless the tip is at 1 m or below, minus costs of the tip's distance from (0, 2) m and of joint velocities."""
        x, _, height = after.site_xpos[0]
        first, second = after.qvel[1], after.qvel[2]
        ended = height <= MIN_HEIGHT
        terms = {
            "reward_survive": ALIVE * (~ended).astype(float),
            "distance_penalty": -(0.01 * x**2 + (height - 2) ** 2),
            "velocity_penalty": -(1e-3 * first**2 + 5e-3 * second**2),
        }
        return terms, ended


def inverted_double_pendulum() -> Task:
    """`InvertedDoublePendulum-v5`: 1,000 steps."""
    return make_task("InvertedDoublePendulum-v5", InvertedDoublePendulum(), 1000)
