"""DeepMind Control's ball_in_cup-catch (code: google-deepmind/dm_control, suite/ball_in_cup.py and ball_in_cup.xml): a cup
with two motors catches a ball that hangs on a string.

Accuracy: one step from each of 1,000 states that dm_control reaches differs from C MuJoCo's solution by 2e-15 in
float64, and in float32 by 2e-7 in half of the states and up to 1e-5. The task uses 4 solver iterations with 8
line-search steps.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxmbrl.core.types import Key, Task
from jaxmbrl.envs.base import make_task, never
from jaxmbrl.envs.mujoco.dmc_env import DmcEnv
from jaxmbrl.envs.mujoco.mjx_env import Data
from jaxmbrl.envs.mujoco.scenes import Camera

LOW, HIGH = (-0.2, 0.2), (0.2, 0.5)  # m: bounds of the ball's coordinates at a start, x and z
BALL = 0.2  # m, height of the ball where its coordinate is 0
TARGET = (0.0, 0.55)  # m: x and height of the target's centre where the cup's coordinates are 0
FREE = 0.05 - 0.025
"""m: half of the target's size minus the ball's radius."""


class BallInCup(DmcEnv):
    """Observation [x, z of the cup, x, z of the ball (m, each from its own start), then their velocities (m/s)]; action
    [force / 5 N on the cup along x and z]."""

    xml = "dmc/ball_in_cup.xml"
    frame_skip = 10
    iterations = 4
    line_search_iterations = 8
    camera = Camera(width=1.2, centre=(0.0, 0.0, 0.5))

    def __init__(self) -> None:
        super().__init__()
        self.reward = reward

    def observe(self, data: Data) -> Float[Array, "8"]:
        """All coordinates."""
        return jnp.concatenate([data.qpos, data.qvel])

    def initial(self, rng: Key) -> tuple[Float[Array, "4"], Float[Array, "4"]]:
        """At rest, the cup at its start, the ball uniform over a rectangle where it does not touch the cup."""
        low, high = jnp.array([0.0, 0.0, *LOW]), jnp.array([0.0, 0.0, *HIGH])
        qpos = self.apart(lambda key: jax.random.uniform(key, (4,), minval=low, maxval=high), rng)
        return qpos, jnp.zeros(4)


def reward(
    observation: Float[Array, "*n 8"], action: Float[Array, "*n 2"], next_observation: Float[Array, "*n 8"]
) -> Float[Array, "*n"]:
    """1 while the ball is in the cup, otherwise 0."""
    cup, ball = next_observation[..., :2], next_observation[..., 2:4]
    away = jnp.abs(cup + jnp.array(TARGET) - ball - jnp.array([0.0, BALL]))
    return jnp.all(away < FREE, axis=-1).astype(next_observation.dtype)


def catch() -> Task:
    """`dmc/ball_in_cup-catch`: 1,000 steps."""
    return make_task("dmc/ball_in_cup-catch", BallInCup(), 1000, reward, never)
