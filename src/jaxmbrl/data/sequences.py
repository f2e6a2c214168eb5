"""A sequence buffer, which stores each image once. It samples windows of one environment, for recurrent and latent models,
or single rows.

Add to a buffer before reading it in a scan body: a read followed by an add makes XLA copy the whole buffer.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from jaxmbrl.core.types import Key, PyTree, Transition


class Sequences(NamedTuple):
    """The last `size` transitions, at most T, of each of N environments that are stepped together.

    The successor of a row is the observation stored after its own. Usually that is the next row's observation. At the end
    of an episode, and after the newest row, it is the true successor, which is stored separately. So N (T + E)
    observations are stored instead of 2 N T.
    """

    rows: Transition
    """Leaves [N, T, ...], without the observations."""
    observations: PyTree
    """Leaves [N, T + E, ...]: a ring of each environment's observations in temporal order."""
    number: Int[Array, "N T"]
    """Number of each row's observation, counted from the environment's first; it is stored at this number modulo T + E."""
    position: Int[Array, ""]
    """Column of the next row."""
    size: Int[Array, ""]
    """Number of valid columns, the same for all environments."""
    next_number: Int[Array, "N"]
    """Number of each environment's next observation."""

    def gate(self, healthy: Bool[Array, ""], old: Sequences) -> Sequences:
        """This buffer if `healthy`, else with the old position, size and numbers, which discards the rows written since.
        (In a full buffer, they have overwritten the oldest rows of one call.)"""

        def choose(new: Array, old: Array) -> Array:
            return jnp.where(healthy, new, old)

        return self._replace(
            position=choose(self.position, old.position),
            size=choose(self.size, old.size),
            next_number=choose(self.next_number, old.next_number),
        )

    def interrupted(self, num_envs: int) -> Sequences:
        """The same where the rows added next do not continue the newest ones, whose episodes were cut off: these are
        truncated, so that no window takes the next row's observation for their successor."""
        chex.assert_axis_dimension(self.number, 0, num_envs)
        newest = (self.position - 1) % self.number.shape[1]
        truncated = self.rows.truncated[:, newest]
        cut_off = (self.size > 0) & ~(self.rows.terminated[:, newest] | truncated)
        rows = self.rows._replace(truncated=self.rows.truncated.at[:, newest].set(truncated | cut_off))
        return self._replace(rows=rows, next_number=self.next_number + cut_off)


def init(prototype: Transition, num_envs: int, length: int, ends: int | None = None) -> Sequences:
    """An empty buffer of T = `length` columns for rows like `prototype`, of `num_envs` environments.

    It has room for E = `ends` + 1 successors that are not the observation of a row; `ends` is T // 64 by default. If the
    last T rows of an environment contain more ends of episodes than that, one row fewer is valid for each further end.

    Extras are stored if the prototype has some; otherwise the extras of rows are dropped. Raises ValueError if a number is
    below 1.
    """
    ends = max(1, length // 64) if ends is None else ends
    for name, number in (("num_envs", num_envs), ("length", length), ("ends", ends)):
        if number < 1:
            raise ValueError(f"a sequence buffer's {name} must be at least 1, got {number}")

    def stored(columns: int, tree: PyTree) -> PyTree:
        return jax.tree.map(lambda x: jnp.zeros((num_envs, columns, *jnp.shape(x)), jnp.asarray(x).dtype), tree)

    return Sequences(
        rows=stored(length, prototype._replace(observation=(), next_observation=())),
        observations=stored(length + ends + 1, prototype.observation),
        number=jnp.zeros((num_envs, length), jnp.int32),
        position=jnp.zeros((), jnp.int32),
        size=jnp.zeros((), jnp.int32),
        next_number=jnp.zeros(num_envs, jnp.int32),
    )


def columns_for(length: int) -> int:
    """Columns of a buffer, with the default `ends`, that always has a valid window of `length` rows once so many were
    added: even if each row ends an episode, when two observations are stored for a row."""
    return max(length, 2 * length - 2)


def add(buffer: Sequences, transitions: Transition) -> Sequences:
    """Append `transitions` [period, num_envs, ...], which continue those added before; the oldest are overwritten first.

    If there are more rows than fit, the last ones remain, as if they had been added one by one. At most 2^31 observations
    can be counted. Raises AssertionError if a leaf's shape or dtype is not the buffer's.
    """
    length, room = buffer.number.shape[1], _room(buffer)
    transitions = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), transitions)
    period = transitions.reward.shape[1]
    ended = transitions.terminated | transitions.truncated
    # One number per row, and one more for each successor at the end of an episode.
    number = buffer.next_number[:, None] + jnp.arange(period, dtype=jnp.int32) + _ends_before(ended)
    oldest = number[:, -1:] + 1 - room
    has_place = ended | (jnp.arange(period) == period - 1)
    observations = _write(buffer.observations, transitions.observation, number, number > oldest, room)
    observations = _write(observations, transitions.next_observation, number + 1, has_place & (number + 1 > oldest), room)

    kept = transitions._replace(observation=(), next_observation=())
    if not jax.tree.leaves(buffer.rows.extras):
        kept = kept._replace(extras=buffer.rows.extras)
    column = jnp.broadcast_to(buffer.position + jnp.arange(period, dtype=jnp.int32), number.shape)
    newest = jnp.broadcast_to(jnp.arange(period) >= period - length, number.shape)
    rows, numbers = _write((buffer.rows, buffer.number), (kept, number), column, newest, length)
    added = buffer._replace(
        rows=rows,
        observations=observations,
        number=numbers,
        position=(buffer.position + period) % length,
        size=jnp.minimum(buffer.size + period, length),
        next_number=number[:, -1] + 1 + ended[:, -1],
    )
    return added._replace(size=_with_observations(added, oldest[:, 0]))


def sample(
    buffer: Sequences, key: Key, batch: int, length: int
) -> tuple[Transition, Bool[Array, "batch length"], Bool[Array, "batch length"]]:
    """`batch` windows of `length` consecutive rows of one environment, [batch, length, ...], sampled uniformly.

    Returns (rows, is_first, valid). `is_first` marks the first row of a window and every row after the end of an episode,
    where a recurrent state must be reset. `valid` is false for rows beyond the newest, which occur only if the buffer has
    fewer than `length` columns.
    """
    num_envs, columns = buffer.number.shape
    env_key, first_key = jax.random.split(key)
    env = jax.random.randint(env_key, (batch, 1), 0, num_envs)
    first = jax.random.randint(first_key, (batch, 1), 0, jnp.maximum(buffer.size - length + 1, 1))
    age = first + jnp.arange(length)
    rows = _rows(buffer, env, (buffer.position - buffer.size + age) % columns)
    ended = (rows.terminated | rows.truncated)[:, :-1]
    is_first = jnp.concatenate([jnp.ones((batch, 1), bool), ended], axis=1)
    return rows, is_first, age < buffer.size


def sample_slots(buffer: Sequences, key: Key, n: int) -> Int[Array, "n"]:
    """The slots of `n` rows, sampled uniformly with replacement. The row in column t of environment e is in slot t N + e,
    as in a `Replay` to which rows of N environments are added in turn; the slots are those that `replay.sample_slots`
    returns for it with the same key. Add to an empty buffer first."""
    num_envs, columns = buffer.number.shape
    age = jax.random.randint(key, (n,), 0, jnp.maximum(buffer.size * num_envs, 1))
    return ((buffer.position - buffer.size) * num_envs + age) % (columns * num_envs)


def sample_starts(buffer: Sequences, key: Key, n: int) -> Int[Array, "n"]:
    """The slots of `n` rows with which an episode begins, sampled uniformly with replacement. The oldest row of each
    environment counts as one. Add to an empty buffer first."""
    columns = buffer.number.shape[1]
    age = (jnp.arange(columns) - buffer.position + buffer.size) % columns
    ended = buffer.rows.terminated | buffer.rows.truncated
    begins = (jnp.roll(ended, 1, axis=1) | (age == 0)) & (age < buffer.size)
    counted = jnp.cumsum(begins.T.reshape(-1), dtype=jnp.int32)
    chosen = jax.random.randint(key, (n,), 0, jnp.maximum(counted[-1], 1))
    return jnp.searchsorted(counted, chosen, side="right").astype(jnp.int32)


def take(buffer: Sequences, slots: Int[Array, "*n"]) -> Transition:
    """The rows in `slots`, [*n, ...]."""
    num_envs = buffer.number.shape[0]
    return _rows(buffer, slots % num_envs, slots // num_envs)


def windows(buffer: Sequences, slots: Int[Array, "n"], length: int) -> tuple[Transition, Bool[Array, "n length"]]:
    """The windows [n, length, ...] of consecutive rows of one environment whose first rows are in `slots`.

    Returns (rows, valid). `valid` is false for rows beyond the newest.
    """
    num_envs, columns = buffer.number.shape
    column = (slots // num_envs)[:, None] + jnp.arange(length)
    age = (slots // num_envs - buffer.position + buffer.size) % columns
    return _rows(buffer, (slots % num_envs)[:, None], column % columns), age[:, None] + jnp.arange(length) < buffer.size


def _rows(buffer: Sequences, env: Int[Array, "*#n"], column: Int[Array, "*#n"]) -> Transition:
    """The rows in these columns of these environments."""
    kept, number = jax.tree.map(lambda x: x[env, column], (buffer.rows, buffer.number))

    def observation(number: Int[Array, "*n"]) -> PyTree:
        return jax.tree.map(lambda x: x[env, number % _room(buffer)], buffer.observations)

    return kept._replace(observation=observation(number), next_observation=observation(number + 1))


def _room(buffer: Sequences) -> int:
    """Capacity in observations of each environment."""
    return jax.tree.leaves(buffer.observations)[0].shape[1]


def _ends_before(ended: Bool[Array, "N period"]) -> Int[Array, "N period"]:
    return jnp.cumsum(ended, axis=1, dtype=jnp.int32) - ended


def _write(stored: PyTree, new: PyTree, number: Int[Array, "N period"], mask: Bool[Array, "N period"], room: int) -> PyTree:
    """`stored` [N, room, ...] with the entries of `new` [N, period, ...] where `mask` is true, at `number` mod `room`."""
    place = jnp.where(mask, number % room, room)
    env = jnp.arange(place.shape[0])[:, None]

    def write(buffer: Array, x: Array) -> Array:
        chex.assert_type(x, buffer.dtype)
        chex.assert_shape(x, (*place.shape, *buffer.shape[2:]))
        return buffer.at[env, place].set(x, mode="drop")

    return jax.tree.map(write, stored, new)


def _with_observations(buffer: Sequences, oldest: Int[Array, "N"]) -> Int[Array, ""]:
    """Number of newest columns, at most `size`, whose observations are all still stored: numbered above `oldest`."""
    columns = buffer.number.shape[1]

    def halve(i: Int[Array, ""], bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        middle = (low + high + 1) // 2
        whole = (buffer.number[:, (buffer.position - middle) % columns] > oldest).all()
        return jnp.where(whole, middle, low), jnp.where(whole, high, middle - 1)

    # Numbers decrease with age, and the observations of the newest column are always stored, so bisection works.
    one: Any = jnp.ones((), jnp.int32)
    return jax.lax.fori_loop(0, columns.bit_length(), halve, (one, buffer.size))[0]
