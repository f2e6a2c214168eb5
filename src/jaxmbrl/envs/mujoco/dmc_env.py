"""Base class of DeepMind Control's tasks on MJX (Tassa et al., arXiv 1801.00690; code: google-deepmind/dm_control, folder
suite). A task is a subclass with a model file, an observation and a reward, which is a function of the observation after
the step and the action.

After a step dm_control computes positions and velocities anew, so that an observation is that of the state after the step.
Here most observations are functions of positions and velocities. Touch sensors have, in both, the forces of the last
simulator step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jaxmbrl.core.types import Key
from jaxmbrl.envs.mujoco.mjx_env import Data, MujocoEnv, Simulation, as_ours, import_mujoco
from jaxmbrl.envs.mujoco.planar import HINGE


class DmcEnv(MujocoEnv):
    """A task of DeepMind Control, in the Brax interface. Actions are the actuators' controls, which are in [-1, 1]; beyond,
    they are clipped."""

    included = ("common/materials.xml", "common/skybox.xml", "common/visual.xml")
    reward_terms = ("reward_task",)
    reward: Callable[..., Float[Array, ""]]
    """The reward of (observation, action, next observation), of which it does not need the first."""
    rendered_by = 0
    """The model's camera of MuJoCo's pictures, as of dm_control's."""
    sensors: bool = False
    """Whether the observation has the model's touch sensors. Otherwise its sensors are not computed."""

    def adjust(self, model: Any) -> None:
        """Disable the sensors that are not observed."""
        if not self.sensors:
            model.opt.disableflags |= import_mujoco().mjtDisableBit.mjDSBL_SENSOR

    def outcome(
        self, before: Simulation, control: Float[Array, "A"], after: Data
    ) -> tuple[dict[str, Float[Array, ""]], Bool[Array, ""]]:
        """The task's reward; never terminated."""
        observation = self.observe(after)
        return {"reward_task": self.reward(observation, control, observation)}, jnp.zeros((), bool)

    def initial(self, rng: Key) -> tuple[Float[Array, "nq"], Float[Array, "nv"]]:
        """At rest. Joints with limits are uniform within them, other hinges uniform over the circle, and other slides are
        where the model has them."""
        model = self.mj_model
        bounded, turns = model.jnt_limited == 1, model.jnt_type == HINGE
        low, high = np.where(bounded, model.jnt_range.T, np.where(turns, [[-np.pi], [np.pi]], model.qpos0))
        qpos = jax.random.uniform(rng, (model.nq,), minval=jnp.asarray(low, float), maxval=jnp.asarray(high, float))
        return jnp.where(jnp.asarray(low == high), jnp.asarray(model.qpos0, float), qpos), jnp.zeros(model.nv)

    def apart(self, sample: Callable[[Key], Float[Array, "nq"]], rng: Key) -> Float[Array, "nq"]:
        """The first of the positions that `sample` returns for keys from `rng` in which no geoms touch."""

        def again(state: tuple[Key, Any]) -> tuple[Key, Any]:
            key, next_key = jax.random.split(state[0])
            return next_key, sample(key)

        def touch(state: tuple[Key, Float[Array, "nq"]]) -> Bool[Array, ""]:
            with jax.default_matmul_precision("highest"), as_ours():
                data = self._mjx.kinematics(self._model, self._data.replace(qpos=state[1]))
                return jnp.any(self._mjx.collision(self._model, data)._impl.contact.dist < 0)

        return jax.lax.while_loop(touch, again, again((rng, ())))[1]
