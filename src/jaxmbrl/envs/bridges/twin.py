"""The Gymnasium counterpart ("twin") of a MuJoCo task: the same task in C MuJoCo, on the host, started from the same
positions and velocities."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxmbrl.core.config import UserError
from jaxmbrl.core.types import Carry, HostStep, Task
from jaxmbrl.envs.action_repeat import RepeatedEnv, unrepeated
from jaxmbrl.envs.bridges.gymnasium_spaces import rescale
from jaxmbrl.envs.bridges.gymnasium_task import float_dtype, make_registered


class Seen(NamedTuple):
    """The observation of a twin, and the simulator state for policies that plan in the true simulator."""

    observation: Float[Array, "*n O"] | Float[np.ndarray, "O"]
    qpos: Float[Array, "*n nq"] | Float[np.ndarray, "nq"]
    qvel: Float[Array, "*n nv"] | Float[np.ndarray, "nv"]
    qacc_warmstart: Float[Array, "*n nv"] | Float[np.ndarray, "nv"]
    elapsed: Int[Array, "*n"] | Int[np.ndarray, ""]
    """Steps since the start."""


class Twin:
    """The Gymnasium environment of a task. Raises UserError if the task has none, or Gymnasium is not installed."""

    def __init__(self, task: Task) -> None:
        env: Any = make_registered(check_twin(task), **unrepeated(task.env).gymnasium_options)
        self._env, self._inner = env, env.unwrapped
        self._low, self._high = np.asarray(env.unwrapped.model.actuator_ctrlrange, np.float64).T
        self._dtype = float_dtype()
        self._elapsed, self._length, self._times = 0, task.episode_length, task.action_repeat

    def start(self, qpos: Float[np.ndarray, "nq"], qvel: Float[np.ndarray, "nv"]) -> Seen:
        """Start an episode with the given positions (m, rad) and velocities (m/s, rad/s). The solver's warm start is zero,
        as after a reset."""
        self._env.reset(seed=0)
        self._inner.set_state(np.asarray(qpos, np.float64), np.asarray(qvel, np.float64))
        self._elapsed = 0
        return self._seen(self._inner._get_obs())

    def step(self, action: Float[np.ndarray, "A"]) -> HostStep:
        """Apply an action in [-1, 1] as many times as the task repeats actions, or until the episode ends."""
        total, control = 0.0, rescale(action, self._low, self._high)
        for _ in range(self._times):
            observation, reward, terminated, truncated, _ = self._env.step(control)
            total += float(reward)
            if terminated or truncated:
                break
        self._elapsed += 1
        out_of_time = (truncated or self._elapsed >= self._length) and not terminated
        return HostStep(self._seen(observation), total, bool(terminated), bool(out_of_time))

    def close(self) -> None:
        """Close the environment."""
        self._env.close()

    def _seen(self, observation: Any) -> Seen:
        data = self._inner.data
        numbers = [np.array(x, self._dtype) for x in (observation, data.qpos, data.qvel, data.qacc_warmstart)]
        return Seen(numbers[0], numbers[1], numbers[2], numbers[3], np.array(self._elapsed, np.int32))


def check_twin(task: Task) -> str:
    """The name of the task's environment in Gymnasium. Raises UserError if it has none."""
    name = getattr(unrepeated(task.env), "gymnasium_id", "")
    if not name:
        raise UserError(f"task '{task.name}' has no twin in Gymnasium: only MuJoCo tasks such as Hopper-v5 have one")
    return str(name)


def carry_of(task: Task) -> Callable[[Seen], Carry]:
    """A function that maps the state of the task's twin to the carry of the task's own World.

    In some tasks (Ant, Humanoid) the reward is for the distance that a body moved since the simulator last computed its
    position. The first planned step measures it from the current position instead; the difference is the same for all
    plans.
    """

    def carry(seen: Seen) -> Carry:
        observation, qpos, qvel, warmstart, elapsed = map(jnp.asarray, seen)
        state = unrepeated(task.env).state_at(qpos, qvel)
        simulation = state.pipeline_state.replace(qacc_warmstart=warmstart)
        state = state.replace(pipeline_state=simulation, obs=observation)
        return _counted(task.env, state, elapsed)

    return carry


def _counted(env: Any, state: Any, elapsed: Int[Array, ""]) -> Carry:
    """The carry of a World whose environment `env` may repeat actions several times over, after `elapsed` of its steps:
    each `RepeatedEnv` counts its own steps."""
    return (_counted(env.env, state, elapsed * env.times) if isinstance(env, RepeatedEnv) else state, elapsed)


def versions(physics: bool = True) -> str:
    """Names and versions of the packages that a twin uses; without `physics`, only Gymnasium."""
    gymnasium, mujoco = (importlib.metadata.version(package) for package in ("gymnasium", "mujoco"))
    return f"Gymnasium {gymnasium}" + (f" (C MuJoCo {mujoco})" if physics else "")
