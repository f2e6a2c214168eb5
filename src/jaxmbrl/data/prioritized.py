"""Prioritised experience replay (Schaul et al., arXiv 1511.05952), proportional variant, with a sum tree on the device.

A row with the priority p_i = |error_i| + epsilon is sampled with the probability P(i) = p_i^alpha / sum_k p_k^alpha. Its
importance weight is (N P(i))^-beta, divided by the largest weight of the batch.

In a scan body, add before you sample. After each update, write the errors of the batch back (`update`).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxmbrl.core.types import Key, PyTree
from jaxmbrl.data import replay
from jaxmbrl.data.replay import Replay


class Prioritized(NamedTuple):
    """A ring of rows, and a binary tree with p^alpha of each row in its leaves; each node is the sum of its children."""

    replay: Replay
    tree: Float[Array, "nodes"]
    """[2 P], where P is the smallest power of two that is at least C. Node 1 is the root, nodes 2 i and 2 i + 1 are the
    children of i, and leaf P + slot belongs to the row in that slot. Leaves without a row are 0."""
    largest: Float[Array, ""]
    """Largest priority p so far, initially 1. New rows get this priority, so that each is soon sampled."""
    alpha: Float[Array, ""]
    """Exponent of the priorities; 0 for uniform sampling."""
    epsilon: Float[Array, ""]
    """Added to each absolute error, so that every row can be sampled."""
    active: Bool[Array, ""]
    """True as long as all errors were finite; once false, nothing more is written."""

    @property
    def checks(self) -> str:
        """What `active` is the check of."""
        return "priorities"

    def gate(self, healthy: Bool[Array, ""], old: Prioritized) -> Prioritized:
        """This buffer if `healthy`, else one that ignores further writes, with the rows gated as in `Replay.gate`."""
        return self._replace(
            replay=self.replay.gate(healthy, old.replay),
            largest=jnp.where(healthy, self.largest, old.largest),
            active=self.active & healthy,
        )

    def interrupted(self, num_envs: int) -> Prioritized:
        """The same where the rows added next do not continue the newest ones (`Replay.interrupted`)."""
        return self._replace(replay=self.replay.interrupted(num_envs))


def init(prototype: PyTree, capacity: int, alpha: Any = 0.6, epsilon: Any = 1e-6) -> Prioritized:
    """An empty buffer for rows like `prototype`; `alpha` in [0, 1] and `epsilon` above 0 may be traced. Raises ValueError
    if `capacity` is below 1."""
    rows = replay.init(prototype, capacity)
    leaves = 1 << (capacity - 1).bit_length()
    return Prioritized(
        replay=rows,
        tree=jnp.zeros(2 * leaves),
        largest=jnp.ones(()),
        alpha=jnp.asarray(alpha, float),
        epsilon=jnp.asarray(epsilon, float),
        active=jnp.ones((), bool),
    )


def add(buffer: Prioritized, rows: PyTree, mask: Bool[Array, "n"] | None = None) -> Prioritized:
    """Append the `rows` [n, ...] for which `mask` is true, as `replay.add` does, with the largest priority so far."""
    n = jax.tree.leaves(rows)[0].shape[0]
    mask = (jnp.ones(n, bool) if mask is None else mask) & buffer.active
    slot = replay.slots_to_write(buffer.replay, mask)
    written = slot < jax.tree.leaves(buffer.replay.data)[0].shape[0]
    mass = jnp.broadcast_to(buffer.largest**buffer.alpha, (n,))
    return buffer._replace(replay=replay.add(buffer.replay, rows, mask), tree=_set(buffer.tree, slot, mass, written))


def sample(
    buffer: Prioritized, key: Key, n: int, beta: Float[Array, ""] | float
) -> tuple[PyTree, Int[Array, "n"], Float[Array, "n"]]:
    """(rows [n, ...], their indices, their importance weights in (0, 1]), sampled in proportion to p^alpha, with
    replacement.

    Sampling is stratified: one row from each of n equal parts of the total. Rows are returned in the order of their slots,
    so shuffle a batch before splitting it. `beta` in [0, 1] may be traced; 1 corrects fully for the priorities. An empty
    buffer returns rows of zeros with weight 1: add first.
    """
    index, weight = sample_slots(buffer, key, n, beta)
    return jax.tree.map(lambda x: x[index], buffer.replay.data), index, weight


def sample_slots(
    buffer: Prioritized, key: Key, n: int, beta: Float[Array, ""] | float
) -> tuple[Int[Array, "n"], Float[Array, "n"]]:
    """(indices, importance weights) of the rows that `sample` returns with the same key."""
    index = find(buffer.tree, _parts(key, n))
    return index, _weights(_mass(buffer, index), beta)


def sample_jointly(
    first: Prioritized, second: Prioritized, key: Key, n: int, beta: Float[Array, ""] | float
) -> tuple[Bool[Array, "n"], Int[Array, "n"], Float[Array, "n"]]:
    """(whether the row is of `second`, its index, its importance weight) of n rows, sampled as from one buffer that has
    the rows of both. At least one of the two must not be empty."""
    masses = first.tree[1], second.tree[1]
    at = _parts(key, n) * (masses[0] + masses[1])
    # Because of rounding, the part of an empty buffer is not empty.
    of_second = (at >= masses[0]) & (masses[1] > 0) | (masses[0] <= 0)

    def part(offset: Any, mass: Float[Array, ""]) -> Float[Array, "n"]:
        return jnp.clip((at - offset) / jnp.where(mass > 0, mass, 1.0), 0.0, 1.0)

    slots = find(first.tree, part(0.0, masses[0])), find(second.tree, part(masses[0], masses[1]))
    mass = jnp.where(of_second, _mass(second, slots[1]), _mass(first, slots[0]))
    return of_second, jnp.where(of_second, slots[1], slots[0]), _weights(mass, beta)


def _parts(key: Key, n: int) -> Float[Array, "n"]:
    """A uniform number in each of n equal parts of [0, 1)."""
    return (jnp.arange(n) + jax.random.uniform(key, (n,))) / n


def _mass(buffer: Prioritized, index: Int[Array, "n"]) -> Float[Array, "n"]:
    """p^alpha of the rows at `index`."""
    return buffer.tree[buffer.tree.shape[0] // 2 + index]


def _weights(mass: Float[Array, "n"], beta: Float[Array, ""] | float) -> Float[Array, "n"]:
    """Importance weights of rows with these p^alpha, divided by the largest."""
    # N and the total cancel: the largest weight is that of the smallest priority.
    return jnp.where(mass > 0, jnp.min(mass) / jnp.where(mass > 0, mass, 1.0), 1.0) ** beta


def update(
    buffer: Prioritized, index: Int[Array, "n"], error: Float[Array, "n"], mask: Bool[Array, "n"] | None = None
) -> Prioritized:
    """Set the priorities of the rows at `index` for which `mask` is true from their errors. `index` is from `sample`; no
    rows may have been added since.

    For a row that was sampled several times, the largest error counts. If an error is not finite, `active` becomes false
    and nothing more is written.
    """
    mask = jnp.ones(index.shape, bool) if mask is None else mask
    priority = jnp.abs(error) + buffer.epsilon
    active = buffer.active & jnp.isfinite(priority).all()
    largest = jnp.maximum(buffer.largest, jnp.max(jnp.where(mask, priority, 0.0)))
    return buffer._replace(
        tree=_set(buffer.tree, index, priority**buffer.alpha, mask & active),
        largest=jnp.where(active, largest, buffer.largest),
        active=active,
    )


def without_rows(buffer: Any) -> PyTree:
    """The buffer without its rows, if it has priorities; else (). This is what changes with the updates: rows that the
    updates do not change need not be passed on in their loop."""
    no_rows: Any = ()
    return buffer._replace(replay=no_rows) if isinstance(buffer, Prioritized) else ()


def with_rows(buffer: Any, priorities: PyTree) -> Any:
    """The buffer with the priorities that `without_rows` returned."""
    return priorities._replace(replay=buffer.replay) if isinstance(buffer, Prioritized) else buffer


def find(tree: Float[Array, "nodes"], part: Float[Array, "n"]) -> Int[Array, "n"]:
    """The first slots at which the cumulative sum of the leaves exceeds `part` times the total; 0 if the total is 0."""
    leaves = tree.shape[0] // 2

    def descend(_: Int[Array, ""], at: tuple[Array, Array]) -> tuple[Array, Array]:
        node, rest = at
        left = tree[2 * node]
        # Because of rounding, `rest` may exceed the sum up to the last leaf that is not 0.
        right = (rest >= left) & (tree[2 * node + 1] > 0)
        return 2 * node + right, jnp.where(right, rest - left, rest)

    root = jnp.ones(part.shape, jnp.int32)
    return jax.lax.fori_loop(0, leaves.bit_length() - 1, descend, (root, part * tree[1]))[0] - leaves


def _set(
    tree: Float[Array, "nodes"], slot: Int[Array, "n"], mass: Float[Array, "n"], mask: Bool[Array, "n"]
) -> Float[Array, "nodes"]:
    """`tree` with the leaves of the slots for which `mask` is true set to `mass`; the larger one if a slot occurs twice.
    The sums above them are recomputed, so that rounding errors do not accumulate."""
    leaves = tree.shape[0] // 2
    node = jnp.where(mask, leaves + slot, 2 * leaves)
    tree = tree.at[node].set(0.0, mode="drop").at[node].max(mass, mode="drop")

    def ascend(_: Int[Array, ""], loop: tuple[Array, Array]) -> tuple[Array, Array]:
        tree, node = loop
        above = jnp.where(mask, node // 2, 2 * leaves)
        return tree.at[above].set(tree[2 * above] + tree[2 * above + 1], mode="drop"), above

    return jax.lax.fori_loop(0, leaves.bit_length() - 1, ascend, (tree, node))[0]
