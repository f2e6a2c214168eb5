"""Prioritised experience replay (Schaul et al., arXiv 1511.05952), proportional variant, with a sum tree in the program.

A row with the priority p_i = |error_i| + epsilon is drawn with the probability P(i) = p_i^alpha / sum_k p_k^alpha. Its
importance weight is (N P(i))^-beta, divided by the largest weight of the batch.

Add before you sample in a scan body, and write the errors of a batch back after each update.
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
    """A ring of rows, and p^alpha of each in the leaves of a binary tree in which a node is the sum of its children."""

    replay: Replay
    tree: Float[Array, "nodes"]
    """[2 P], where P is the smallest power of two that is at least C. Node 1 is the root, nodes 2 i and 2 i + 1 are the
    children of i, and leaf P + slot is of the row in that slot. Leaves without a row are 0."""
    largest: Float[Array, ""]
    """Largest priority p so far, 1 at the start: that of new rows, so that each is soon drawn."""
    alpha: Float[Array, ""]
    """Exponent of the priorities; 0 draws uniformly."""
    epsilon: Float[Array, ""]
    """Added to each absolute error, so that every row can be drawn."""
    active: Bool[Array, ""]
    """True while all errors were finite; once false, nothing more is written."""

    @property
    def checks(self) -> str:
        """What `active` is the check of."""
        return "priorities"

    def gate(self, healthy: Bool[Array, ""], old: Prioritized) -> Prioritized:
        """The same where `healthy`, else closed to further writes, with the rows gated as `Replay.gate` does."""
        return self._replace(
            replay=self.replay.gate(healthy, old.replay),
            largest=jnp.where(healthy, self.largest, old.largest),
            active=self.active & healthy,
        )


def init(prototype: PyTree, capacity: int, alpha: Any = 0.6, epsilon: Any = 1e-6) -> Prioritized:
    """An empty buffer for rows like `prototype`; `alpha` in [0, 1] and `epsilon` above 0 may be traced. Raises ValueError
    where `capacity` is below 1."""
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
    """Append those `rows` [n, ...] where `mask` is true, as `replay.add`, with the largest priority so far."""
    n = jax.tree.leaves(rows)[0].shape[0]
    mask = (jnp.ones(n, bool) if mask is None else mask) & buffer.active
    slot = replay.slots_to_write(buffer.replay, mask)
    written = slot < jax.tree.leaves(buffer.replay.data)[0].shape[0]
    mass = jnp.broadcast_to(buffer.largest**buffer.alpha, (n,))
    return buffer._replace(replay=replay.add(buffer.replay, rows, mask), tree=_set(buffer.tree, slot, mass, written))


def sample(
    buffer: Prioritized, key: Key, n: int, beta: Float[Array, ""] | float
) -> tuple[PyTree, Int[Array, "n"], Float[Array, "n"]]:
    """(rows [n, ...], their indices, their importance weights in (0, 1]), drawn in proportion to p^alpha, with replacement.

    The draws are stratified: one from each of n equal parts of the total. They come in the order of the slots: shuffle a
    batch before it is split. `beta` in [0, 1] may be traced; 1 corrects for the priorities in full. An empty buffer gives
    rows of zeros with weight 1: add first.
    """
    part = (jnp.arange(n) + jax.random.uniform(key, (n,))) / n
    index = find(buffer.tree, part)
    mass = buffer.tree[buffer.tree.shape[0] // 2 + index]
    # N and the total cancel against the largest weight, which is that of the smallest priority.
    weight = jnp.where(mass > 0, jnp.min(mass) / jnp.where(mass > 0, mass, 1.0), 1.0) ** beta
    return jax.tree.map(lambda x: x[index], buffer.replay.data), index, weight


def update(buffer: Prioritized, index: Int[Array, "n"], error: Float[Array, "n"]) -> Prioritized:
    """Set the priorities of the rows at `index`, as `sample` returned them before further rows were added, by their errors.

    Of a row that was drawn several times, the largest error counts. Where an error is not finite, `active` becomes false,
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
    """The first slots at which the cumulative sum of the leaves exceeds `part` of the total; 0 where that is 0."""
    leaves = tree.shape[0] // 2

    def descend(_: Int[Array, ""], at: tuple[Array, Array]) -> tuple[Array, Array]:
        node, rest = at
        left = tree[2 * node]
        # By rounding, `rest` may reach beyond the last leaf that is not 0.
        right = (rest >= left) & (tree[2 * node + 1] > 0)
        return 2 * node + right, jnp.where(right, rest - left, rest)

    root = jnp.ones(part.shape, jnp.int32)
    return jax.lax.fori_loop(0, leaves.bit_length() - 1, descend, (root, part * tree[1]))[0] - leaves


def _set(
    tree: Float[Array, "nodes"], slot: Int[Array, "n"], mass: Float[Array, "n"], mask: Bool[Array, "n"]
) -> Float[Array, "nodes"]:
    """`tree` with the leaves of those slots where `mask` is true set to `mass`, of a slot given twice the larger one. The
    sums above them are computed anew, so that rounding errors do not accumulate."""
    leaves = tree.shape[0] // 2
    node = jnp.where(mask, leaves + slot, 2 * leaves)
    tree = tree.at[node].set(0.0, mode="drop").at[node].max(mass, mode="drop")

    def ascend(_: Int[Array, ""], loop: tuple[Array, Array]) -> tuple[Array, Array]:
        tree, node = loop
        above = jnp.where(mask, node // 2, 2 * leaves)
        return tree.at[above].set(tree[2 * above] + tree[2 * above + 1], mode="drop"), above

    return jax.lax.fori_loop(0, leaves.bit_length() - 1, ascend, (tree, node))[0]
