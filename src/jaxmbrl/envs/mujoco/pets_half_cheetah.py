"""HalfCheetah as in PETS: Gymnasium's HalfCheetah-v5 with the speed over the last step in the observation, so that the
reward is a known function (Chua et al., arXiv 1805.12114; code: kchua/handful-of-trials, dmbrl/env and dmbrl/config).

Model, frame skip, reward, solver iterations and accuracy are those of HalfCheetah-v5. What differs is the observation, and
the start state, which is normally distributed with a standard deviation of 0.001.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxmbrl.core.types import Features, Key, Task
from jaxmbrl.envs.base import State, make_task, never
from jaxmbrl.envs.mujoco.half_cheetah import CONTROL_COST, HalfCheetah
from jaxmbrl.envs.mujoco.mjx_env import Data

START_DEVIATION = 1e-3  # m, rad, m/s, rad/s


class PetsHalfCheetah(HalfCheetah):
    """Observation [mean velocity along x over the last step (m/s), 0 at the start, then the observation of HalfCheetah-v5];
    action as in HalfCheetah-v5."""

    gymnasium_id = ""

    def observe(self, data: Data) -> Float[Array, "18"]:
        """The observation with speed 0, as at the start; `step` fills in the speed."""
        return jnp.concatenate([jnp.zeros(1), data.qpos[1:], data.qvel])

    def initial(self, rng: Key) -> tuple[Float[Array, "9"], Float[Array, "9"]]:
        """The model's initial positions and zero velocities, with normal noise on each."""
        position_key, velocity_key = jax.random.split(rng)
        qpos = self._data.qpos + START_DEVIATION * jax.random.normal(position_key, (self.mj_model.nq,))
        return qpos, START_DEVIATION * jax.random.normal(velocity_key, (self.mj_model.nv,))

    def step(self, state: State, action: Float[Array, "6"]) -> State:
        """One control step of 0.05 s."""
        after = super().step(state, action)
        speed = (after.pipeline_state.qpos[0] - state.pipeline_state.qpos[0]) / self.dt
        return after.replace(obs=after.obs.at[0].set(speed))


def reward(
    observation: Float[Array, "*n 18"], action: Float[Array, "*n 6"], next_observation: Float[Array, "*n 18"]
) -> Float[Array, "*n"]:
    """Mean speed over the step in m/s, minus 0.1 times the squared action."""
    return next_observation[..., 0] - CONTROL_COST * jnp.sum(action**2, axis=-1)


def encode(observation: Float[Array, "*n 18"]) -> Float[Array, "*n 18"]:
    """Height, sine and cosine of the torso angle, then the other angles and the velocities, without the mean speed."""
    height, angle, rest = observation[..., 1:2], observation[..., 2:3], observation[..., 3:]
    return jnp.concatenate([height, jnp.sin(angle), jnp.cos(angle), rest], axis=-1)


def pets_half_cheetah() -> Task:
    """`pets/HalfCheetah`: 1,000 steps. The input of a dynamics model is `encode`; it predicts the speed itself and not its
    change."""
    return make_task("pets/HalfCheetah", PetsHalfCheetah(), 1000, reward, never, features=Features(encode, absolute=(0,)))
