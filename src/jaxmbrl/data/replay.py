"""A ring buffer of transitions, as a pytree: masked add, uniform samples, sequences with episode starts.

Add to a buffer before reading it in a scan body: a read followed by an add makes XLA copy the whole buffer.
"""

from __future__ import annotations

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from jaxmbrl.core.types import Key, PyTree, Transition


class Replay(NamedTuple):
    """The last `size` rows added, at most `capacity`, in a ring of C >= `capacity` rows."""

    data: PyTree
    """Leaves [C, ...]."""
    position: Int[Array, ""]
    """Slot of the next row."""
    size: Int[Array, ""]
    """Number of valid rows."""
    capacity: Int[Array, ""]
    """Largest number of valid rows; traced, so that it can change without recompiling (`resize`)."""

    def gate(self, healthy: Bool[Array, ""], old: Replay) -> Replay:
        """This buffer if `healthy`, else with the old size and position, which discards the rows written since. (In a full
        ring, they have overwritten the oldest rows of one call.)"""
        return self._replace(
            position=jnp.where(healthy, self.position, old.position), size=jnp.where(healthy, self.size, old.size)
        )

    def interrupted(self, num_envs: int) -> Replay:
        """The same where the rows of `num_envs` environments that are added next do not continue the newest ones. For rows
        like `Transition`, the newest one of each environment is truncated, so that no window of rows crosses the seam."""
        if not isinstance(self.data, Transition):
            return self
        newest = _slot(self, self.size - 1 - jnp.arange(num_envs))
        # With fewer rows than environments, the other slots are not valid, and are written before they are.
        truncated = self.data.truncated[newest] | ~self.data.terminated[newest]
        return self._replace(data=self.data._replace(truncated=self.data.truncated.at[newest].set(truncated)))


def init(prototype: PyTree, capacity: int) -> Replay:
    """An empty buffer for rows like `prototype`. Raises ValueError if `capacity` is below 1."""
    if capacity < 1:
        raise ValueError(f"a replay buffer needs a capacity of at least 1, got {capacity}")
    data = jax.tree.map(lambda x: jnp.zeros((capacity, *jnp.shape(x)), jnp.asarray(x).dtype), prototype)
    return Replay(data, jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32), jnp.asarray(capacity, jnp.int32))


def of_rows(rows: PyTree, size: Int[Array, ""] | int | None = None) -> Replay:
    """A buffer of given rows [C, ...], oldest first, for fitting a model to data without a run.

    All rows are valid, or the first `size` <= C of them if `size` is given; it may be traced.

    >>> from jaxmbrl.data import replay
    >>> buffer = replay.of_rows(jnp.arange(3.0))
    >>> int(buffer.size), [float(row) for row in buffer.data]
    (3, [0.0, 1.0, 2.0])
    """
    capacity = jax.tree.leaves(rows)[0].shape[0]
    chex.assert_tree_shape_prefix(rows, (capacity,))
    size = jnp.asarray(capacity if size is None else size, jnp.int32)
    return Replay(jax.tree.map(jnp.asarray, rows), size % capacity, size, jnp.asarray(capacity, jnp.int32))


def with_size(replay: Replay, size: Int[Array, ""]) -> Replay:
    """The same buffer with its `size` replaced by `size`, which must be the same number.

    All seeds of a run have the same number of rows: min(environment steps, capacity), which the shared clock gives. Inside
    `vmap` over seeds the buffer's own `size` is batched, and so would be the loops of a model's fit over its rows.
    """
    return replay._replace(size=jnp.asarray(size, jnp.int32))


def add(replay: Replay, rows: PyTree, mask: Bool[Array, "n"] | None = None) -> Replay:
    """Append the `rows` [n, ...] for which `mask` is true; the oldest rows are overwritten first.

    If there are more rows than fit, the last `capacity` remain, as if they had been added one by one. Raises AssertionError
    if a leaf's shape or dtype is not the buffer's: a probability of termination is not a termination.

    >>> from jaxmbrl.data import replay
    >>> buffer = replay.init(jnp.zeros(()), capacity=3)
    >>> buffer = replay.add(buffer, jnp.arange(5.0), mask=jnp.array([True, True, False, True, True]))
    >>> sorted(float(row) for row in buffer.data), int(buffer.size)
    ([1.0, 3.0, 4.0], 3)
    """
    n = jax.tree.leaves(rows)[0].shape[0]
    mask = jnp.ones(n, bool) if mask is None else mask
    slot, added = slots_to_write(replay, mask), jnp.sum(mask, dtype=jnp.int32)

    def write(buffer: Array, x: Array) -> Array:
        chex.assert_type(x, buffer.dtype)
        chex.assert_shape(x, (n, *buffer.shape[1:]))
        return buffer.at[slot].set(x, mode="drop")

    return Replay(
        data=jax.tree.map(write, replay.data, rows),
        position=(replay.position + added) % _physical(replay),
        size=jnp.minimum(replay.size + added, replay.capacity),
        capacity=replay.capacity,
    )


def slots_to_write(replay: Replay, mask: Bool[Array, "n"]) -> Int[Array, "n"]:
    """The slot to which `add` writes each of n rows; C for rows that it does not write. No slot is written twice."""
    rank = jnp.cumsum(mask, dtype=jnp.int32)
    stays = mask & (rank > jnp.sum(mask, dtype=jnp.int32) - replay.capacity)
    return jnp.where(stays, (replay.position + rank - 1) % _physical(replay), _physical(replay))


def sample(replay: Replay, key: Key, n: int) -> PyTree:
    """`n` rows sampled uniformly with replacement, [n, ...]. An empty buffer returns rows of zeros: add first."""
    return take(replay, sample_slots(replay, key, n))


def sample_recent(replay: Replay, key: Key, n: int, newest: int) -> PyTree:
    """`n` rows sampled uniformly with replacement from the `newest` rows added, [n, ...]. Add to an empty buffer first."""
    count = jnp.clip(replay.size, 1, newest)
    return take(replay, _slot(replay, replay.size - 1 - jax.random.randint(key, (n,), 0, count)))


def sample_slots(replay: Replay, key: Key, n: int) -> Int[Array, "n"]:
    """The slots of the rows that `sample` returns with the same key, for `windows`. Add to an empty buffer first."""
    return _slot(replay, jax.random.randint(key, (n,), 0, jnp.maximum(replay.size, 1)))


def take(replay: Replay, slots: Int[Array, "*n"]) -> PyTree:
    """The rows in `slots`, [*n, ...]."""
    return jax.tree.map(lambda buffer: buffer[slots], replay.data)


def of_age(replay: Replay, age: Int[Array, "*n"]) -> PyTree:
    """The rows that were added `age` rows after the oldest, [*n, ...]; all valid rows have ages from 0 to `size` - 1."""
    return take(replay, _slot(replay, age))


def sample_sequences(
    replay: Replay, key: Key, n: int, length: int, stride: int = 1
) -> tuple[PyTree, Bool[Array, "n length"], Bool[Array, "n length"]]:
    """`n` windows of `length` consecutive rows of one environment, [n, length, ...], for rows like `Transition`.

    `stride` is the number of environments whose steps were added in turn: consecutive rows of one environment are `stride`
    rows apart.

    Returns (rows, start, valid). `start` marks the first row of a window and every row after the end of an episode, where a
    recurrent state must be reset. `valid` is false for rows beyond the newest, which occur only if the buffer has fewer
    rows than a window. `data.sequences` samples windows of several environments without a stride, and stores images once.
    """
    whole = replay.size - (length - 1) * stride
    short = jnp.clip(replay.size, 1, stride)
    first = jax.random.randint(key, (n,), 0, jnp.where(whole > 0, whole, short))
    rows, valid = windows(replay, _slot(replay, first), length, stride)
    ended = (rows.terminated | rows.truncated)[:, :-1]
    start = jnp.concatenate([jnp.ones((n, 1), bool), ended], axis=1)
    return rows, start, valid


def windows(replay: Replay, slots: Int[Array, "n"], length: int, stride: int = 1) -> tuple[PyTree, Bool[Array, "n length"]]:
    """The windows [n, length, ...] of consecutive rows of one environment whose first rows are in `slots`, such as those
    that `sample_slots` or `prioritized.sample` returned; `stride` as in `sample_sequences`.

    Returns (rows, valid). `valid` is false for rows beyond the newest.
    """
    age = (slots - replay.position + replay.size) % _physical(replay)
    age = age[:, None] + stride * jnp.arange(length)
    return take(replay, _slot(replay, age)), age < replay.size


def resize(replay: Replay, capacity: Int[Array, ""]) -> Replay:
    """Set the capacity to `capacity` (at most C), keeping the newest rows that fit. No row is moved."""
    capacity = jnp.clip(capacity, 1, _physical(replay)).astype(jnp.int32)
    return replay._replace(size=jnp.minimum(replay.size, capacity), capacity=capacity)


def empty(replay: Replay) -> Replay:
    """The same buffer without valid rows. No row is written."""
    return replay._replace(position=jnp.zeros_like(replay.position), size=jnp.zeros_like(replay.size))


def _physical(replay: Replay) -> int:
    return jax.tree.leaves(replay.data)[0].shape[0]


def _slot(replay: Replay, age: Int[Array, "*n"]) -> Int[Array, "*n"]:
    """The slot of the row that was added `age` rows after the oldest."""
    return (replay.position - replay.size + age) % _physical(replay)
