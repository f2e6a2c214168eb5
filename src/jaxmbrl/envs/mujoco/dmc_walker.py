"""DeepMind Control's walker (code: google-deepmind/dm_control, suite/walker.py and walker.xml): a planar robot with two
legs and six motors stands, walks or runs.

Accuracy: one step from each of 1,000 states that dm_control reaches differs from C MuJoCo's solution by 1e-12 in
float64, and in float32 by 8e-6 in half of the states and up to 6e-3. With 6 solver iterations and 12 line-search steps,
12 of 3,000 states are wrong, by up to 2. The task uses 8 and 16.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxmbrl.core.types import Task
from jaxmbrl.envs.base import make_task, never
from jaxmbrl.envs.dmc.rewards import tolerance
from jaxmbrl.envs.mujoco.dmc_env import DmcEnv
from jaxmbrl.envs.mujoco.mjx_env import Data
from jaxmbrl.envs.mujoco.planar import Planar, planar
from jaxmbrl.envs.mujoco.scenes import Camera

HEIGHT = 1.2  # m
START_HEIGHT = 1.3  # m, of the torso where its coordinate is 0
WALK, RUN = 1.0, 8.0  # m/s


class Walker(DmcEnv):
    """Observation [cos and sin of the directions of the torso, right thigh, leg and foot, left thigh, leg and foot, each in
    turn; height of the torso (m); velocities of height, x, torso, right hip, knee and ankle, left hip, knee and ankle (m/s,
    rad/s)]; action [torque / (100, 50, 20, 100, 50, 20 N m) of hip, knee and ankle, right and left]."""

    xml = "dmc/walker.xml"
    frame_skip = 10
    iterations = 8
    line_search_iterations = 16
    camera = Camera(width=2.6, centre=(0.0, 0.0, 0.8), follows=(1,))

    def __init__(self, speed: float) -> None:
        """`speed` in m/s along x is what the reward asks for; with 0 it is only to stand."""
        super().__init__()
        self.reward = _reward(self._body, speed)

    def adjust(self, model: Any) -> None:
        """Keep the geometry of the compiled model."""
        super().adjust(model)
        self._body = planar(model)

    def observe(self, data: Data) -> Float[Array, "24"]:
        """Directions, height and velocities."""
        direction = self._body.directions(data.qpos)
        turned = jnp.stack([jnp.cos(direction), jnp.sin(direction)], axis=-1)
        return jnp.concatenate([turned.ravel(), START_HEIGHT + data.qpos[:1], data.qvel])


def _reward(body: Planar, speed: float) -> Callable[..., Float[Array, "*n"]]:
    def reward(
        observation: Float[Array, "*n 24"], action: Float[Array, "*n 6"], next_observation: Float[Array, "*n 24"]
    ) -> Float[Array, "*n"]:
        """A term for a torso that is high and upright, times one for the speed of the centre of mass; in [0, 1]."""
        cos, sin = next_observation[..., :14:2], next_observation[..., 1:14:2]
        height, velocity = next_observation[..., 14], next_observation[..., 15:]
        standing = tolerance(height, (HEIGHT, jnp.inf), margin=HEIGHT / 2)
        standing = (3 * standing + (1 + cos[..., 0]) / 2) / 4
        if not speed:
            return standing
        moved = body.speed(velocity[..., 1], cos, sin, body.directions(velocity))
        moving = tolerance(moved, (speed, jnp.inf), margin=speed / 2, shape="linear", at_margin=0.5)
        return standing * (5 * moving + 1) / 6

    return reward


def _task(name: str, speed: float) -> Task:
    env = Walker(speed)
    return make_task(name, env, 1000, env.reward, never)


def stand() -> Task:
    """`dmc/walker-stand`: 1,000 steps."""
    return _task("dmc/walker-stand", 0.0)


def walk() -> Task:
    """`dmc/walker-walk`: 1,000 steps, 1 m/s."""
    return _task("dmc/walker-walk", WALK)


def run() -> Task:
    """`dmc/walker-run`: 1,000 steps, 8 m/s."""
    return _task("dmc/walker-run", RUN)
