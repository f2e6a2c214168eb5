"""DeepMind Control's cheetah-run (code: google-deepmind/dm_control, suite/cheetah.py and cheetah.xml): a planar robot with
two legs and six motors runs forward.

What differs: dm_control samples the joints of a start and lets the robot fall for 200 simulator steps. Here the starts are
sampled from 500 states that C MuJoCo computed in this way when the task was made.

Accuracy: one step from each of 1,000 states that dm_control reaches differs from C MuJoCo's solution by 2e-13 in
float64, and in float32 by 2e-6 in half of the states and up to 3e-4. With 4 solver iterations and 8 line-search steps,
13 of 3,000 states are wrong, by up to 1.5. The task uses 6 and 12.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxmbrl.core.types import Key, Task
from jaxmbrl.envs.base import make_task, never
from jaxmbrl.envs.dmc.rewards import tolerance
from jaxmbrl.envs.mujoco.dmc_env import DmcEnv
from jaxmbrl.envs.mujoco.mjx_env import Data, import_mujoco
from jaxmbrl.envs.mujoco.planar import Planar, planar

SPEED = 10.0  # m/s
STARTS = 500
FALL = 200
"""Simulator steps before a start."""


class Cheetah(DmcEnv):
    """Observation [height of the torso from its start (m), its angle, back thigh, shin and foot joint, front thigh, shin
    and foot joint (rad), then the velocities of x, height and the seven angles (m/s, rad/s)]; action [torque / (120, 90,
    60, 90, 60, 30 N m) of the back thigh, shin and foot, front thigh, shin and foot]."""

    xml = "dmc/cheetah.xml"
    frame_skip = 1
    iterations = 6
    line_search_iterations = 12

    def __init__(self) -> None:
        super().__init__()
        self.reward = _reward(planar(self.mj_model))
        low, high = self.mj_model.jnt_range[self.mj_model.jnt_limited == 1].T
        joints = np.random.default_rng(0).uniform(low, high, (STARTS, len(low)))
        self._starts = fallen(self.mj_model, joints)

    def initial(self, rng: Key) -> tuple[Float[Array, "9"], Float[Array, "9"]]:
        """One of `STARTS` states after a fall."""
        start = jnp.asarray(self._starts, float)[jax.random.randint(rng, (), 0, STARTS)]
        return start[:9], start[9:]

    def observe(self, data: Data) -> Float[Array, "17"]:
        """All coordinates except x."""
        return jnp.concatenate([data.qpos[1:], data.qvel])


def fallen(model: Any, joints: Float[np.ndarray, "n 6"]) -> Float[np.ndarray, "n 18"]:
    """Positions and velocities after the robot fell from the model's position, with these angles of joints with limits."""
    mujoco = import_mujoco()
    data, rows = mujoco.MjData(model), []
    limited = model.jnt_limited == 1
    for angles in joints:
        mujoco.mj_resetData(model, data)
        mujoco.mj_forward(model, data)
        data.qpos[limited] = angles
        # As in dm_control, the first step has the forces of the position before.
        mujoco.mj_step2(model, data)
        mujoco.mj_step(model, data, nstep=FALL - 1)
        rows.append(np.concatenate([data.qpos, data.qvel]))
    return np.array(rows)


def _reward(body: Planar) -> Callable[..., Float[Array, "*n"]]:
    def reward(
        observation: Float[Array, "*n 17"], action: Float[Array, "*n 6"], next_observation: Float[Array, "*n 17"]
    ) -> Float[Array, "*n"]:
        """The speed of the centre of mass, up to 10 m/s, over 10 m/s."""
        # The position along x, which is not observed, does not matter.
        position = jnp.concatenate([jnp.zeros_like(next_observation[..., :1]), next_observation[..., :8]], axis=-1)
        velocity = next_observation[..., 8:]
        direction, spin = body.directions(position), body.directions(velocity)
        speed = body.speed(velocity[..., 0], jnp.cos(direction), jnp.sin(direction), spin)
        return tolerance(speed, (SPEED, jnp.inf), margin=SPEED, shape="linear", at_margin=0.0)

    return reward


def run() -> Task:
    """`dmc/cheetah-run`: 1,000 steps."""
    env = Cheetah()
    return make_task("dmc/cheetah-run", env, 1000, env.reward, never)
