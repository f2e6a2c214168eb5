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
    part = (jnp.arange(n) + jax.random.uniform(key, (n,))) / n
    index = find(buffer.tree, part)
    mass = buffer.tree[buffer.tree.shape[0] // 2 + index]
    # N and the total cancel: the largest weight is that of the smallest priority.
    weight = jnp.where(mass > 0, jnp.min(mass) / jnp.where(mass > 0, mass, 1.0), 1.0) ** beta
    return jax.tree.map(lambda x: x[index], buffer.replay.data), index, weight


def update(buffer: Prioritized, index: Int[Array, "n"], error: Float[Array, "n"]) -> Prioritized:
    """Set the priorities of the rows at `index` from their errors. `index` is from `sample`; no rows may have been added
    since.

    For a row that was sampled several times, the largest error counts. If an error is not finite, `active` becomes false
    and nothing more is written.
    """
    priority = jnp.abs(error) + buffer.epsilon
    active = buffer.active & jnp.isfinite(priority).all()
    return buffer._replace(
        tree=_set(buffer.tree, index, priority**buffer.alpha, jnp.broadcast_to(active, index.shape)),
        largest=jnp.where(active, jnp.maximum(buffer.largest, jnp.max(priority)), buffer.largest),
        active=active,
    )


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
