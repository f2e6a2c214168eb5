"""Stepping tasks that run on the host: several environments, with one compiled policy step for all of them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped, UInt32

from jaxmbrl.core.config import UserError
from jaxmbrl.core.spaces import Box
from jaxmbrl.core.types import Action, Algorithm, Clock, HostEnv, HostStep, Key, Memory, Policy, PyTree, Task, Transition
from jaxmbrl.core.warning import warn_user
from jaxmbrl.data import examining
from jaxmbrl.data.dataset import DataWarning
from jaxmbrl.envs.bridges.gymnasium_task import float_dtype
from jaxmbrl.envs.bridges.twin import Twin
from jaxmbrl.envs.signatures import calling
from jaxmbrl.rollout import auto_reset, reset_keys, step_keys

SIDE_BY_SIDE = 64
"""Largest number of environments that an evaluation steps at a time, over all seeds."""


WATCHED = 100
"""Steps after which an environment's observations are examined for a loss of digits."""
X64 = ", or set JAX_ENABLE_X64=1"


def host_seed(key: Key) -> UInt32[Array, ""]:
    """The seed, below 2**31, for a host environment's reset in place of a `World`'s reset with `key`."""
    return jax.random.bits(key, (), jnp.uint32) >> 1


def act(
    policy: Policy,
    memory: Memory,
    observation: PyTree,
    is_first: Bool[Array, ""],
    key: Key,
    i: Int[Array, ""],
) -> tuple[Action, PyTree, Memory, UInt32[Array, ""]]:
    """Step `i` of a `rollout` with `key` in an auto-resetting world: (action, extras, memory, host seed for a reset after
    the step). `policy` is not wrapped by `auto_reset`; its memory is reset if `is_first`."""
    act_key, step_key = step_keys(key, i)
    action, extras, memory = policy.act(memory, (observation, is_first), act_key)
    return action, extras, memory, host_seed(reset_keys(step_key)[1])


class Environments:
    """n environments of a task on the host. When an episode ends, the environment is reset."""

    def __init__(self, task: Task, count: int) -> None:
        assert task.host is not None
        self._task, self._float = task, float_dtype()
        self._envs: list[HostEnv] = []
        with contextlib.ExitStack() as closing:
            for _ in range(count):
                with calling(task.name, "making the environment"):
                    env = task.host()
                closing.callback(close, task, env)
                self._envs.append(env)
            self._closing = closing.pop_all()
        element = task.observation.zeros()
        self.observation: Shaped[np.ndarray, "n ..."] = np.zeros((count, *element.shape), element.dtype)
        self.is_first: Bool[np.ndarray, "n"] = np.ones(count, bool)
        self._precise: list[Any] = []
        """First observations of the first environment, before their conversion to the dtype of the task's space."""

    def begin(self, seeds: UInt32[np.ndarray, "n"]) -> None:
        """Begin an episode in each."""
        for n, seed in enumerate(seeds):
            self._reset(n, int(seed))

    def step(
        self, action: Shaped[np.ndarray, "n ..."], seeds: UInt32[np.ndarray, "n"], active: Bool[np.ndarray, "n"]
    ) -> Transition:
        """Transitions [n, ...] of one step in each `active` environment, without extras; others are not stepped. After an
        episode's end, the environment is reset with its entry of `seeds`."""
        count = len(self._envs)
        before, after = self.observation.copy(), self.observation.copy()
        reward = np.zeros(count, self._float)
        terminated, truncated = np.zeros(count, bool), np.zeros(count, bool)
        for n in map(int, np.flatnonzero(active)):
            result = step(self._task, self._envs[n], np.asarray(action[n]))
            after[n], reward[n] = self._element(result.observation), result.reward
            terminated[n], truncated[n] = result.terminated, result.truncated
            self.observation[n], self.is_first[n] = after[n], False
            if n == 0 and len(self._precise) < WATCHED:
                self._watch(result)
            if result.terminated or result.truncated:
                self._reset(n, int(seeds[n]))
        rows: tuple[Any, ...] = (before, action, reward, after, terminated, truncated)
        return Transition(*rows)

    def _watch(self, result: HostStep) -> None:
        """Give a `DataWarning` if the changes of the first `WATCHED` steps are lost, by the conversion to the space's dtype
        or in the environment."""
        # An environment may change its array in place.
        self._precise.append(np.array(result.observation))
        if len(self._precise) != WATCHED or not (
            isinstance(self._task.observation, Box) and self._task.observation.is_vector
        ):
            return
        values = np.stack([np.asarray(x, np.float64) for x in self._precise])
        for lost, kind, otherwise in (
            (examining.lost_digits(values[:-1], values[1:], self.observation.dtype), self.observation.dtype, X64),
            (examining.coarse(values[:-1], values[1:]), "float32, which the environment returns,", ""),
        ):
            for d in np.flatnonzero(lost):
                warn_user(
                    f"task '{self._task.name}': observation {d} is about {values[-1, d]:.6g}, where {kind} loses its "
                    f"changes by rounding: subtract an offset in the environment{otherwise}",
                    DataWarning,
                )

    def _reset(self, n: int, seed: int) -> None:
        with calling(self._task.name, "reset"):
            observation = self._envs[n].reset(seed)
        self.observation[n], self.is_first[n] = self._element(observation), True

    def _element(self, observation: Any) -> Shaped[np.ndarray, "..."]:
        """An observation as an element of the task's space. Raises UserError if it has another shape or kind of dtype."""
        found, due = np.asarray(observation), self.observation
        # Floats may lose digits, but non-integers never become integers, and integers never overflow.
        if found.shape != due.shape[1:] or not (due.dtype.kind == "f" or _holds(due.dtype, found)):
            raise UserError(
                f"task '{self._task.name}': an observation must be {due.dtype} {due.shape[1:]}, as its space says, got "
                f"{found.dtype} {found.shape}"
            )
        return found.astype(due.dtype)

    def close(self) -> None:
        """Close all of them."""
        self._closing.close()


def step(task: Task, env: HostEnv | Twin, action: Shaped[np.ndarray, "..."]) -> HostStep:
    """A step of one environment; its errors name the task."""
    with calling(task.name, "step"):
        return env.step(action)


def close(task: Task, env: HostEnv | Twin) -> None:
    """Close one environment; its errors name the task."""
    with calling(task.name, "close"):
        env.close()


def finite_rows(tree: PyTree) -> Bool[np.ndarray, "n"]:
    """Which rows of arrays [n, ...] are finite."""
    leaves = [np.isfinite(leaf).reshape(len(leaf), -1).all(axis=1) for leaf in jax.tree.leaves(tree)]
    return np.logical_and.reduce(leaves)


def _holds(dtype: np.dtype[Any], found: Shaped[np.ndarray, "..."]) -> bool:
    """Whether the integer `dtype` can represent all numbers in `found`."""
    if found.dtype == dtype:
        return True
    limits = np.iinfo(dtype)
    return found.dtype.kind in "iu" and bool(((found >= limits.min) & (found <= limits.max)).all())


def collect(
    task: Task, policy: Policy, steps: int, seed: int = 0, update: Callable[[float], None] = lambda done: None
) -> Transition:
    """`steps` transitions [steps, ...] of `policy` in one environment, episode after episode, without the policy's extras.
    `update` receives the number of steps so far.

    Raises UserError if an action is not finite.
    """
    _, policy = auto_reset(task.world, policy)
    start_key, memory_key, key = jax.random.split(jax.random.key(seed), 3)
    environments = Environments(task, 1)
    with contextlib.closing(environments):
        environments.begin(np.asarray(host_seed(start_key))[None])
        acting = jax.jit(lambda memory, seen, is_first, i: act(policy, memory, seen, is_first, key, i))
        memory, rows = policy.init(memory_key), []
        for i in range(steps):
            seen, is_first = environments.observation[0], environments.is_first[0]
            action, _, memory, again = acting(memory, seen, is_first, np.int32(i))
            action, again = jax.device_get((action, again))
            if not np.isfinite(action).all():
                raise UserError(f"task '{task.name}': the policy's action is not finite at step {i + 1}; train it again")
            rows.append(environments.step(np.asarray(action)[None], np.asarray(again)[None], np.ones(1, bool)))
            update(i + 1)
    return jax.tree.map(lambda *leaves: jnp.asarray(np.concatenate(leaves)), *rows)


class Stage(NamedTuple):
    """How episodes are evaluated on the host."""

    make: Callable[[], HostEnv | Twin]
    """Makes one more environment."""
    start: Callable[[Any, int], PyTree]
    """(environment, index of the episode) -> first observation of the environment."""
    observe: Callable[[PyTree], PyTree]
    """Observation of one environment -> observation of the policy, inside a compiled program."""


class Evaluator:
    """Episodes of the deterministic policy on the host, with the keys of `evaluation.begin`."""

    def __init__(
        self,
        algorithm: Algorithm,
        task: Task,
        stage: Stage,
        keys: Callable[[Int[Array, ""]], tuple[Key, Key, Key]],
        episodes: int,
        compile: Callable[..., Any],
    ) -> None:
        """`keys(index)` gives (start key, memory key, rollout key) of an episode."""
        self._task, self._stage, self._episodes, self._compile = task, stage, episodes, compile
        self._closing = contextlib.ExitStack()
        self._envs: list[HostEnv | Twin] = []
        self._acting: Callable[..., Any] | None = None
        self.update: Callable[[float, float], None] = lambda done, total: None
        """Receives (steps so far, steps of all episodes, which may end earlier)."""

        def init(clock: Clock, state: PyTree, index: Int[Array, ""]) -> Memory:
            return algorithm.policy(state, clock, False).init(keys(index)[1])

        def one(clock: Clock, state: PyTree, memory: Memory, seen: PyTree, index: Int[Array, ""], i: Int[Array, ""]) -> Any:
            act_key, _ = step_keys(keys(index)[2], i)
            action, _, memory = algorithm.policy(state, clock, False).act(memory, stage.observe(seen), act_key)
            return action, memory

        self._init = jax.jit(jax.vmap(jax.vmap(init, in_axes=(None, None, 0)), in_axes=(None, 0, None)))
        by_episode = jax.vmap(one, in_axes=(None, None, 0, 0, 0, None))
        self._one = jax.jit(jax.vmap(by_episode, in_axes=(None, 0, 0, 0, None, None)))

    def __call__(self, clock: Clock, states: PyTree) -> Float[Array, "K episodes"]:
        """Returns of each seed of `states` [K, ...]; NaN where the policy's action was not finite."""
        seeds = jax.tree.leaves(states)[0].shape[0]
        wave = min(self._episodes, max(1, SIDE_BY_SIDE // seeds))
        while len(self._envs) < seeds * wave:
            with calling(self._task.name, "making the environment"):
                env = self._stage.make()
            self._closing.callback(close, self._task, env)
            self._envs.append(env)
        waves = [np.arange(first, first + wave) for first in range(0, self._episodes, wave)]
        whole = self._task.episode_length
        returns = []
        for number, indices in enumerate(waves):
            shown = partial(self._show, number * whole, len(waves) * whole)
            returns.append(self._play(clock, states, seeds, indices, shown))
        return jnp.asarray(np.concatenate(returns, axis=1)[:, : self._episodes], float)

    def _show(self, before: int, total: int, steps: int) -> None:
        self.update(before + steps, total)

    def _play(
        self,
        clock: Clock,
        states: PyTree,
        seeds: int,
        indices: Int[np.ndarray, "wave"],
        show: Callable[[int], None],
    ) -> Float[np.ndarray, "K wave"]:
        """Returns of one episode of each seed and index; indices beyond the last episode are skipped. `show` receives the
        number of steps so far."""
        rows = [(k, int(index)) for k in range(seeds) for index in indices]
        seen: list[PyTree] = []
        with calling(self._task.name, "reset"):
            seen.extend(self._stage.start(env, index) for env, (_, index) in zip(self._envs, rows, strict=True))
        alive = np.array([index < self._episodes for _, index in rows])
        total = np.zeros(len(rows))
        at = jnp.asarray(indices, jnp.int32)
        memory = self._init(clock, states, at)
        for i in range(self._task.episode_length):
            if not alive.any():
                break
            shown = jax.tree.map(lambda *x: np.stack(x).reshape(seeds, len(indices), *np.shape(x[0])), *seen)
            arguments = (clock, states, memory, shown, at, jnp.asarray(i, jnp.int32))
            if self._acting is None:
                self._acting = self._compile("evaluation", self._one, *arguments)
            action, memory = self._acting(*arguments)
            action = np.asarray(action).reshape(len(rows), *action.shape[2:])
            lost = alive & ~finite_rows(action)
            total[lost], alive = np.nan, alive & ~lost
            for n in np.flatnonzero(alive):
                result = step(self._task, self._envs[n], np.asarray(action[n]))
                seen[n], alive[n] = result.observation, not (result.terminated or result.truncated)
                total[n] += result.reward
            show(i + 1)
        return total.reshape(seeds, -1)

    def close(self) -> None:
        """Close the environments."""
        self._closing.close()
        self._envs.clear()
