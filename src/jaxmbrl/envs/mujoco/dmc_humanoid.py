"""DeepMind Control's humanoid (code: google-deepmind/dm_control, suite/humanoid.py and humanoid.xml): a robot with 21
motors stands, walks or runs, in any horizontal direction.

What differs: dm_control samples joints and orientation of a start until no geoms touch. Here the starts are sampled from
500 such states, which are sampled when the task is made.

Accuracy: one step from each of 1,000 states that dm_control reaches differs from C MuJoCo's solution by 1e-11 in
float64, and in float32 by 2e-5 in half of the states and up to 4e-2. With 8 solver iterations and 16 line-search steps,
14 of 3,000 states are wrong, by up to 31. The task uses 12 and 24.
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
from jaxmbrl.envs.mujoco.scenes import oblique

HEIGHT = 1.4  # m, of the head
UPRIGHT = 0.9  # cosine of the torso's angle
WALK, RUN = 1.0, 10.0  # m/s
STARTS = 500
LIMBS = ("left_hand", "left_foot", "right_hand", "right_foot")


class Humanoid(DmcEnv):
    """Observation [the 21 joints (rad), height of the head (m), hands and feet from the torso in its frame, left before
    right (m), vertical components of the torso's axes, velocity of the centre of mass (m/s), the torso's velocity (m/s) and
    rotation (rad/s, own frame), velocities of the joints (rad/s)]; action [torque of each joint over its largest]."""

    xml = "dmc/humanoid.xml"
    frame_skip = 5
    iterations = 12
    line_search_iterations = 24
    camera = oblique(2.4, (0.0, 0.0, 1.0), 110.0, 15.0, follows=(0, 1))

    def __init__(self, speed: float) -> None:
        """`speed` in m/s is what the reward asks for; with 0 it is to stand still."""
        super().__init__()
        self.reward = _reward(speed)
        self._starts = apart(self.mj_model, STARTS, np.random.default_rng(0))

    def initial(self, rng: Key) -> tuple[Float[Array, "28"], Float[Array, "27"]]:
        """At rest, in one of `STARTS` positions in which no geoms touch."""
        return jnp.asarray(self._starts, float)[jax.random.randint(rng, (), 0, STARTS)], jnp.zeros(27)

    def finish(self, data: Data) -> Data:
        """Add positions and velocities of the bodies after the step."""
        for part in (self._mjx.kinematics, self._mjx.com_pos, self._mjx.com_vel):
            data = part(self._model, data)
        return data

    def settle(self, data: Data) -> Data:
        """Add positions and velocities of the bodies."""
        return self.finish(data)

    def observe(self, data: Data) -> Float[Array, "67"]:
        """Joints, height, limbs, orientation and velocities."""
        torso, head, *limbs = (self.mj_model.body(name).id for name in ("torso", "head", *LIMBS))
        frame = data.xmat[torso]
        away = (data.xpos[np.array(limbs)] - data.xpos[torso]) @ frame
        parts = data.qpos[7:], data.xpos[head, 2:], away.ravel(), frame[2], self._velocity(data), data.qvel
        return jnp.concatenate(parts)

    def _velocity(self, data: Data) -> Float[Array, "3"]:
        """Of the centre of mass, in m/s."""
        # MuJoCo's velocities of bodies are those at the centre of mass of the tree.
        root = data.subtree_com[self.mj_model.body_rootid]
        velocities = data.cvel[:, 3:] + jnp.cross(data.cvel[:, :3], data.xipos - root)
        mass = jnp.asarray(self.mj_model.body_mass, velocities.dtype)
        return mass @ velocities / jnp.sum(mass)


def apart(model: Any, number: int, rng: np.random.Generator) -> Float[np.ndarray, "number 28"]:
    """Positions in which no geoms touch: joints uniform within their limits, an orientation of uniform entries that is then
    normalised, and the torso where the model has it."""
    mujoco = import_mujoco()
    data, rows = mujoco.MjData(model), list[Float[np.ndarray, "28"]]()
    low, high = model.jnt_range[1:].T
    while len(rows) < number:
        orientation = rng.uniform(size=4)
        data.qpos[:3], data.qpos[3:7] = model.qpos0[:3], orientation / np.linalg.norm(orientation)
        data.qpos[7:] = rng.uniform(low, high)
        mujoco.mj_fwdPosition(model, data)
        if not data.ncon:
            rows.append(data.qpos.copy())
    return np.array(rows)


def _reward(speed: float) -> Callable[..., Float[Array, "*n"]]:
    def reward(
        observation: Float[Array, "*n 67"], action: Float[Array, "*n 21"], next_observation: Float[Array, "*n 67"]
    ) -> Float[Array, "*n"]:
        """The product of terms for a high head, an upright torso, small controls, and the horizontal speed of the centre of
        mass; in [0, 1]."""
        height, upright, across = next_observation[..., 21], next_observation[..., 36], next_observation[..., 37:39]
        standing = tolerance(height, (HEIGHT, jnp.inf), margin=HEIGHT / 4)
        standing *= tolerance(upright, (UPRIGHT, jnp.inf), margin=1.9, shape="linear", at_margin=0.0)
        small = (4 + jnp.mean(tolerance(action, margin=1.0, shape="quadratic", at_margin=0.0), axis=-1)) / 5
        if not speed:
            return small * standing * jnp.mean(tolerance(across, margin=2.0), axis=-1)
        moved = jnp.linalg.norm(across, axis=-1)
        moving = tolerance(moved, (speed, jnp.inf), margin=speed, shape="linear", at_margin=0.0)
        return small * standing * (5 * moving + 1) / 6

    return reward


def _task(name: str, speed: float) -> Task:
    env = Humanoid(speed)
    return make_task(name, env, 1000, env.reward, never)


def stand() -> Task:
    """`dmc/humanoid-stand`: 1,000 steps."""
    return _task("dmc/humanoid-stand", 0.0)


def walk() -> Task:
    """`dmc/humanoid-walk`: 1,000 steps, 1 m/s."""
    return _task("dmc/humanoid-walk", WALK)


def run() -> Task:
    """`dmc/humanoid-run`: 1,000 steps, 10 m/s."""
    return _task("dmc/humanoid-run", RUN)
