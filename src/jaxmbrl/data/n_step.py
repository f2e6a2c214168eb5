"""Rows of n steps: from the rows of a replay buffer, the input of an n-step target.

The n-step target of a window of rows is

    y = sum_{i < m} discount^i r_i + discount^m (1 - terminated) V(s_m)

where m is n, or less if the episode ends earlier (Sutton and Barto, Reinforcement Learning, 2nd edition, equation 7.1). A
window that a time limit ends is cut there, with the value of its last successor; after a termination there is no value. The
newest row of an environment also cuts a window: its successor's value stands for what has not been collected yet.

A row of m steps has the sum of rewards as its reward, the successor of the last step, and discount^m. So the TD target of
an agent is that of one step, with the row's discount instead of its own. There is no correction for the difference between
the policy that collected the steps and the current one.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxmbrl.core.types import Action, Observation, PyTree
from jaxmbrl.data import replay, sequences
from jaxmbrl.data.replay import Replay
from jaxmbrl.data.sequences import Sequences


class NStep(NamedTuple):
    """Rows of m <= n steps, with the fields of `Transition` for the steps as a whole."""

    observation: Observation
    action: Action
    """The first action."""
    reward: Float[Array, "*batch"]
    """sum_{i < m} discount^i r_i."""
    next_observation: Observation
    """The true successor of the last step."""
    terminated: Bool[Array, "*batch"]
    """Whether the last step terminated."""
    truncated: Bool[Array, "*batch"]
    """Whether the last step reached a time limit."""
    extras: PyTree
    """Those of the first step."""
    discount: Float[Array, "*batch"]
    """discount^m."""


def until_end(
    rewards: Float[Array, "n"], ended: Bool[Array, "n"], discount: Float[Array, ""] | float
) -> tuple[Float[Array, ""], Int[Array, ""], Float[Array, ""]]:
    """(sum_{i < m} discount^i r_i, m, discount^m) of one window, which ends with the first step with `ended`, or with the
    last. Later steps are ignored.

    >>> from jaxmbrl.data import n_step
    >>> reward, steps, discount = n_step.until_end(jnp.array([1.0, 2.0, 3.0]), jnp.array([False, True, False]), 0.5)
    >>> float(reward), int(steps), float(discount)
    (2.0, 2, 0.25)
    """
    counts = jnp.cumsum(ended) == ended
    steps = jnp.sum(counts, dtype=jnp.int32)
    # The first power is the discount itself, without rounding.
    powers = jnp.cumprod(jnp.full(rewards.shape[0] + 1, discount, rewards.dtype).at[0].set(1.0))
    return jnp.sum(powers[:-1] * jnp.where(counts, rewards, 0.0)), steps, powers[steps]


def begun_at(
    buffer: Replay | Sequences, slot: Int[Array, "B"], n: int, discount: Float[Array, ""] | float, stride: int = 1
) -> NStep:
    """The rows of up to `n` steps, [B, ...], that begin with the rows in the slots `slot` of a buffer of `Transition`.

    `stride` is the number of environments whose steps were added in turn: consecutive rows of one environment are `stride`
    rows apart in a `Replay`; a buffer of sequences knows the number. With n = 1 the rows are those of the buffer. The
    discount may be traced.
    """
    if isinstance(buffer, Sequences):
        stride, columns = buffer.number.shape
        capacity, take = stride * columns, partial(sequences.take, buffer)
        rows, exists = sequences.windows(buffer, slot, n + 1)
        rewards, ended = rows.reward, rows.terminated | rows.truncated
    else:
        data, capacity = buffer.data, jax.tree.leaves(buffer.data)[0].shape[0]
        take = partial(replay.take, buffer)
        steps_of = buffer._replace(data=(data.reward, data.terminated | data.truncated))
        (rewards, ended), exists = replay.windows(steps_of, slot, n + 1, stride)
    # The newest row of an environment ends its window, too.
    ended = ended[:, :-1] | ~exists[:, 1:]
    by_row = jax.vmap(until_end, in_axes=(0, 0, None))
    reward, steps, power = by_row(rewards[:, :-1], ended, discount)
    first, last = take(slot), take((slot + stride * (steps - 1)) % capacity)
    return NStep(
        observation=first.observation,
        action=first.action,
        reward=reward,
        next_observation=last.next_observation,
        terminated=last.terminated,
        truncated=last.truncated,
        extras=first.extras,
        discount=power,
    )
