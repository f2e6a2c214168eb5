"""Evaluation: the deterministic policy on fixed start states, and summaries over seeds."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxmbrl.core import tree
from jaxmbrl.core.types import Algorithm, Carry, Clock, HostEnv, Key, Memory, Policy, PyTree, Task, Transition, World
from jaxmbrl.envs.bridges import twin
from jaxmbrl.rollout import Return, episode_return, rollout, world_of
from jaxmbrl.training import hosted, waves
from jaxmbrl.training.devices import OF_ALL, OF_SEEDS, SeedSharding
from jaxmbrl.training.loop import Compile, clock_at

_STREAM = 0x45564131
"""Key of the start states, independent of the trained seed."""
PART_STEPS = 100
"""Steps of `evaluate` after which it ends if all episodes have ended."""
PART_SECONDS = 0.5
"""Target duration of a call of `in_parts`' program."""


def keys_of(index: int | Int[Array, ""]) -> tuple[Key, Key, Key]:
    """(start key, memory key, rollout key) of the episode with this index."""
    start_key, memory_key, rollout_key = jax.random.split(jax.random.fold_in(jax.random.key(_STREAM), index), 3)
    return start_key, memory_key, rollout_key


def begin(
    algorithm: Algorithm, task: Task, state: PyTree, index: Int[Array, ""], clock: Clock | None = None
) -> tuple[World, Policy, tuple[Carry, Memory], Key]:
    """(world, policy, start, key) of the rollout of one episode under the policy of `state` (of one seed). `index` alone
    determines the start state and all randomness. `clock` is that of the state; the default is the start of a run, since
    few deterministic policies depend on it."""
    world, policy = _parts(algorithm, task, state, clock)
    start_key, memory_key, rollout_key = keys_of(index)
    return world, policy, (world.reset(start_key), policy.init(memory_key)), rollout_key


def _parts(algorithm: Algorithm, task: Task, state: PyTree, clock: Clock | None) -> tuple[World, Policy]:
    policy = algorithm.policy(state, clock_at(0) if clock is None else clock, False)
    return world_of(task, algorithm), policy


class _Episode(NamedTuple):
    """An episode that is computed in parts."""

    algorithm: Algorithm
    task: Task

    def start(self, clock: Clock | None, state: PyTree, index: Int[Array, ""]) -> tuple[tuple[Carry, Memory], Return]:
        """What the first part begins with: where the episode is, and what it has earned."""
        return begin(self.algorithm, self.task, state, index, clock)[2], Return.zero()

    def starts(self, clock: Clock | None, states: PyTree, index: Int[Array, "episodes"]) -> Any:
        """`start` of each seed and index: leaves are [K, episodes, ...]."""
        by_episode = jax.vmap(self.start, in_axes=(None, None, 0))
        return jax.vmap(by_episode, in_axes=(None, 0, None))(clock, states, index)

    def steps(
        self, clock: Clock | None, state: PyTree, index: Int[Array, ""], at: Any, first: Any, length: Any, earn: Any
    ) -> Any:
        """What the next part begins with, `length` steps after step number `first`; `earn` adds up rewards."""
        world, policy = _parts(self.algorithm, self.task, state, clock)
        return rollout(world, policy, at[0], keys_of(index)[2], length, earn, at[1], first)


def evaluate(
    algorithm: Algorithm, task: Task, states: PyTree, episodes: int, clock: Clock | None = None
) -> Float[Array, "K episodes"]:
    """Returns of `episodes` episodes for each seed of `states` [K, ...]: the same start states for every seed.

    The steps are in parts of at most `PART_STEPS`, of which no further one begins once all episodes have ended. Nothing is
    stored for each step of a whole episode.
    """
    whole = task.episode_length
    parts = -(-whole // PART_STEPS)
    length = -(-whole // parts)
    episode = _Episode(algorithm, task)

    def earn(acc: Return, transition: Transition, i: Int[Array, ""]) -> Return:
        earned = episode_return(acc, transition, i)
        # The last part may be longer than what is left of the episode.
        return earned if parts * length == whole else tree.where(i < whole, earned, acc)

    def part(done: tuple[Int[Array, ""], Any]) -> tuple[Int[Array, ""], Any]:
        def steps(state: PyTree, index: Int[Array, ""], at: Any) -> Any:
            return episode.steps(clock, state, index, at, done[0] * length, length, earn)

        by_episode = jax.vmap(steps, in_axes=(None, 0, 0))
        return done[0] + 1, jax.vmap(by_episode, in_axes=(0, None, 0))(states, index, done[1])

    def goes_on(done: tuple[Int[Array, ""], Any]) -> Bool[Array, ""]:
        return (done[0] < parts) & jnp.any(done[1][1].alive != 0)

    index = jnp.arange(episodes)
    at = episode.starts(clock, states, index)
    return jax.lax.while_loop(goes_on, part, (jnp.zeros((), jnp.int32), at))[1][1].total


def in_parts(
    algorithm: Algorithm,
    task: Task,
    episodes: int,
    compile: Compile,
    clock: Clock,
    states: PyTree,
    update: Callable[[float, float], None],
) -> Float[Array, "K episodes"]:
    """As `evaluate`, in calls of a compiled program that take about `PART_SECONDS`. The episodes run in waves of
    `waves.side_by_side` at a time, of all seeds. A wave ends early if all of its episodes have ended after a call. `update`
    receives (steps so far, steps of all waves), first when the program is compiled."""
    episode = _Episode(algorithm, task)
    start = episode.start

    def part(clock: Clock, state: PyTree, index: Int[Array, ""], at: Any, first: Any, length: Any) -> Any:
        at = jax.lax.cond(first == 0, lambda: start(clock, state, index), lambda: at)
        return episode.steps(clock, state, index, at, first, length, episode_return)

    part = jax.jit(part, inline=True)  # One trace, for the size of its arrays and for the program.
    seeds, whole = jax.tree.leaves(states)[0].shape[0], task.episode_length
    state, zero = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), states), jnp.int32(0)
    first = clock, state, zero
    wave = waves.side_by_side(part, 2, (*first, jax.eval_shape(start, *first), zero, zero), seeds, episodes)
    by_episode = jax.vmap(part, in_axes=(None, None, 0, 0, None, None))
    steps = jax.jit(jax.vmap(by_episode, in_axes=(None, 0, None, 0, None, None)))
    index = jnp.arange(wave, dtype=jnp.int32)
    # `jnp.zeros` also makes keys, which a state of a random environment contains.
    at = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(episode.starts, clock, states, index))
    compiled = compile("evaluation", steps, clock, states, index, at, zero, zero)
    # The last wave also repeats episodes of the one before it if it has fewer of its own.
    firsts = [min(number, episodes - wave) for number in range(0, episodes, wave)]
    returns, calls = np.zeros((seeds, episodes)), 1
    update(0, len(firsts) * whole)
    for number, of in enumerate(firsts):
        done, alive = 0, True
        while done < whole and alive:
            began, length = time.monotonic(), min(calls, whole - done)
            at = compiled(clock, states, of + index, at, jnp.int32(done), jnp.int32(length))
            alive = bool(jnp.any(at[1].alive != 0))
            done += length
            update(number * whole + (done if alive else whole), len(firsts) * whole)
            calls = max(1, min(int(length * PART_SECONDS / max(time.monotonic() - began, 1e-6)), 16 * length))
        returns[:, of : of + wave] = at[1].total
    return jnp.asarray(returns, at[1].total.dtype)


def evaluator(
    algorithm: Algorithm,
    task: Task,
    episodes: int,
    compile: Compile,
    closing: contextlib.ExitStack,
    clock: Clock,
    states: PyTree,
    sharding: SeedSharding,
    in_gymnasium: bool = False,
) -> Callable[[Clock, PyTree], Float[Array, "K episodes"]]:
    """A compiled `evaluate` for a clock and states like `states` [K, ...], placed according to `sharding`. Episodes run on
    the host if the task does, or in the task's Gymnasium counterpart. Opened resources are released with `closing`.

    Raises UserError if the task has no Gymnasium counterpart.
    """
    if task.host is None and not in_gymnasium:
        everywhere = sharding.over(
            lambda clock, states: evaluate(algorithm, task, states, episodes, clock), OF_ALL, OF_SEEDS, result=OF_SEEDS
        )
        return compile("evaluation", jax.jit(everywhere), clock, states)
    found = hosted.Evaluator(algorithm, task, stage(algorithm, task, episodes), keys_of, episodes, compile)
    closing.callback(found.close)
    return found


def stage(algorithm: Algorithm, task: Task, episodes: int) -> hosted.Stage:
    """How episodes of a task that runs on the host are evaluated, or of any other task in its Gymnasium counterpart. Raises
    UserError if it has none."""
    if task.host is not None:
        return hosted.Stage(task.host, _start, lambda seen: seen)
    twin.check_twin(task)
    starts = jax.jit(jax.vmap(lambda i: task.env.reset(keys_of(i)[0]).pipeline_state))(jnp.arange(episodes))
    return _twin_stage(algorithm, task, np.asarray(starts.qpos), np.asarray(starts.qvel))


def _start(env: HostEnv, index: int) -> PyTree:
    return env.reset(int(hosted.host_seed(keys_of(index)[0])))


def _twin_stage(
    algorithm: Algorithm, task: Task, qpos: Float[np.ndarray, "N nq"], qvel: Float[np.ndarray, "N nv"]
) -> hosted.Stage:
    """Gymnasium's environment of the same task, with episodes that begin in the same states as the task's own."""

    def start(env: Any, index: int) -> PyTree:
        at = min(index, len(qpos) - 1)
        return env.start(qpos[at], qvel[at])

    observe = twin.carry_of(task) if algorithm.observes_full_state else lambda seen: seen.observation
    return hosted.Stage(lambda: twin.Twin(task), start, observe)


MOST_DRAWN = 5_000_000
"""A bootstrap of this many values, over runs and repetitions, has fewer repetitions instead of more values."""
MOST_DRAWN_STEP = 200_000
"""The same at each step of curves."""


def _fewer(repetitions: int, runs: int, most: int) -> int:
    """The repetitions of a bootstrap over `runs` runs, which draw at most `most` values; at least 100."""
    return min(repetitions, max(most // runs, 100))


def interquartile_mean(values: Sequence[float]) -> float:
    """Mean without the lowest and highest quarter, rounded down to whole values (Agarwal et al., arXiv 2108.13264).

    >>> from jaxmbrl.training.evaluation import interquartile_mean
    >>> interquartile_mean([-900.0, 3.0, 5.0, 700.0])
    4.0
    """
    return float(_trimmed_mean(np.asarray([values], float), 0.25)[0])


def bootstrap_interval(
    *strata: Sequence[float], trim: float = 0.25, confidence: float = 0.95, repetitions: int = 50_000
) -> tuple[float, float]:
    """Percentile bootstrap interval over runs of the mean trimmed by the share `trim` at either end: by default the
    interquartile mean; with 0 the mean (Agarwal et al., arXiv 2108.13264).

    Each stratum, such as the runs of one task, is resampled separately. The resampling is seeded, so the same values give
    the same interval.

    >>> from jaxmbrl.training.evaluation import bootstrap_interval
    >>> bootstrap_interval([2.0, 2.0, 2.0, 2.0])
    (2.0, 2.0)
    """
    random = np.random.default_rng(0)
    data = [np.asarray(values, float) for values in strata]
    repetitions = _fewer(repetitions, sum(map(len, data)), MOST_DRAWN)
    drawn = np.concatenate([runs[random.integers(len(runs), size=(repetitions, len(runs)))] for runs in data], axis=1)
    low, high = np.quantile(_trimmed_mean(drawn, trim), [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def bootstrap_bands(
    values: Float[np.ndarray, "S runs"], trim: float = 0.25, confidence: float = 0.95, repetitions: int = 2_000
) -> tuple[Float[np.ndarray, "S"], Float[np.ndarray, "S"]]:
    """(low, high) of `bootstrap_interval` at each of S steps of curves; NaN marks a missing value of a run.

    Whole runs are resampled, so all steps use the same resamples and a band is as smooth as its curves. At steps without
    any value the band is NaN.
    """
    values = np.asarray(values, float)
    low, high = np.full(len(values), np.nan), np.full(len(values), np.nan)
    present, where = np.unique(~np.isnan(values), axis=0, return_inverse=True)
    for i, known in enumerate(present):
        if not known.any():
            continue
        rows = np.flatnonzero(where.reshape(-1) == i)
        runs = int(known.sum())
        size = _fewer(repetitions, runs, MOST_DRAWN_STEP), runs
        index = np.random.default_rng(0).integers(runs, size=size)
        for at in rows:
            drawn = _trimmed_mean(values[at, known][index], trim)
            low[at], high[at] = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2])
    return low, high


Pair = tuple[Sequence[float], Sequence[float]]
"""Scores of the runs of two methods on one task."""


def probability_of_improvement(*tasks: Pair) -> float:
    """The probability that a run of the first method scores above one of the second, ties counting half: the Mann-Whitney
    statistic over the product of the numbers of runs, averaged over tasks (Agarwal et al., arXiv 2108.13264, section 4.3).
    """
    return float(np.mean([_above(*pair).mean() for pair in tasks]))


def improvement_interval(*tasks: Pair, confidence: float = 0.95, repetitions: int = 10_000) -> tuple[float, float]:
    """Percentile bootstrap interval of `probability_of_improvement`: the runs of each method on each task are resampled
    separately, with a fixed seed."""
    random = np.random.default_rng(0)
    drawn = np.zeros(repetitions)
    for pair in tasks:
        above = _above(*pair)
        ours, theirs = (random.multinomial(n, np.full(n, 1 / n), size=repetitions) / n for n in above.shape)
        drawn += np.sum((ours @ above) * theirs, axis=1) / len(tasks)
    low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def _above(ours: Sequence[float], theirs: Sequence[float]) -> Float[np.ndarray, "X Y"]:
    """1 where a run of `ours` is above one of `theirs`, 1/2 where they are equal."""
    x, y = np.asarray(ours, float)[:, None], np.asarray(theirs, float)[None]
    return (x > y) + 0.5 * (x == y)


class Profile(NamedTuple):
    """A performance profile: the share of runs that score above each threshold, and its bootstrap band."""

    thresholds: Float[np.ndarray, "T"]
    share: Float[np.ndarray, "T"]
    low: Float[np.ndarray, "T"]
    high: Float[np.ndarray, "T"]


def performance_profile(
    thresholds: Float[np.ndarray, "T"], *strata: Sequence[float], confidence: float = 0.95, repetitions: int = 2_000
) -> Profile:
    """The share of runs above each threshold, averaged over strata such as tasks (the score distributions of Agarwal et
    al., arXiv 2108.13264, section 4.2), with a percentile bootstrap band: each stratum is resampled separately."""
    thresholds, random = np.asarray(thresholds, float), np.random.default_rng(0)
    share, drawn = np.zeros(len(thresholds)), np.zeros((repetitions, len(thresholds)))
    for values in strata:
        runs = len(values)
        above = np.asarray(values, float)[:, None] > thresholds
        share += above.mean(axis=0) / len(strata)
        drawn += random.multinomial(runs, np.full(runs, 1 / runs), size=repetitions) @ above / (runs * len(strata))
    low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
    return Profile(thresholds, share, low, high)


def _trimmed_mean(values: Float[np.ndarray, "N runs"], trim: float) -> Float[np.ndarray, "N"]:
    cut = int(trim * values.shape[1])
    return np.sort(values, axis=1)[:, cut : values.shape[1] - cut].mean(axis=1)
