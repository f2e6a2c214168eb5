"""Evaluation: the deterministic policy on fixed start states, and summaries over seeds."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxmbrl.rollout import Return, episode_return, rollout, world_of
from jaxmbrl.types import Algorithm, Carry, Key, Memory, Policy, PyTree, Task, World

_STREAM = 0x45564131
"""Start states are drawn below this key, whatever the seed that was trained."""


def episode(algorithm: Algorithm, task: Task, state: PyTree, index: Int[Array, ""]) -> Float[Array, ""]:
    """Undiscounted return of one episode under the policy of `state` (of one seed). The start state and all randomness
    follow from `index` alone."""
    world, policy, start, key = begin(algorithm, task, state, index)
    return rollout(world, policy, start, key, task.episode_length, episode_return, Return.zero())[1].total


def begin(
    algorithm: Algorithm, task: Task, state: PyTree, index: Int[Array, ""]
) -> tuple[World, Policy, tuple[Carry, Memory], Key]:
    """(world, policy, start, key): what `episode` rolls out."""
    start_key, memory_key, rollout_key = jax.random.split(jax.random.fold_in(jax.random.key(_STREAM), index), 3)
    policy = algorithm.policy(state, False)
    world = world_of(task, algorithm)
    return world, policy, (world.reset(start_key), policy.init(memory_key)), rollout_key


def evaluate(algorithm: Algorithm, task: Task, states: PyTree, episodes: int) -> Float[Array, "K episodes"]:
    """Returns of `episodes` episodes for each seed of `states` [K, ...]: the same start states for every seed."""
    by_episode = jax.vmap(lambda state, i: episode(algorithm, task, state, i), in_axes=(None, 0))
    return jax.vmap(by_episode, in_axes=(0, None))(states, jnp.arange(episodes))


def interquartile_mean(values: Sequence[float]) -> float:
    """Mean without the lowest and highest quarter, rounded down to whole values (Agarwal et al., arXiv 2108.13264)."""
    ordered = np.sort(np.asarray(values, float))
    cut = len(ordered) // 4
    return float(np.mean(ordered[cut : len(ordered) - cut]))


def bootstrap_interval(values: Sequence[float], confidence: float = 0.95, repetitions: int = 50_000) -> tuple[float, float]:
    """Percentile bootstrap interval of the interquartile mean over runs (Agarwal et al., arXiv 2108.13264).

    The resampling is seeded, so the same values give the same interval.
    """
    data = np.asarray(values, float)
    drawn = data[np.random.default_rng(0).integers(len(data), size=(repetitions, len(data)))]
    cut = len(data) // 4
    means = np.sort(drawn, axis=1)[:, cut : len(data) - cut].mean(axis=1)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
