"""Batches of rows from several replay buffers, such as real and imagined data, or own data and demonstrations."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from itertools import accumulate

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxmbrl.core.schedules import traced_rounded_down
from jaxmbrl.core.types import Key, PyTree
from jaxmbrl.data import replay
from jaxmbrl.data.replay import Replay


def mixture(sources: Sequence[Replay], shares: Sequence[Float[Array, ""] | float], key: Key, n: int) -> PyTree:
    """`n` rows [n, ...], sampled uniformly from each of K `sources` in the proportions of the K `shares`, in their order.

    For k below K, the first k sources fill the first floor(n (shares[0] + ... + shares[k - 1])) rows; the last source fills
    the rest, whatever its share. Shares may be traced. The first source replaces sources that are empty.
    Raises ValueError if there is no source, or not one share for each.

    >>> from jaxmbrl.data import mixtures, replay
    >>> own, demonstrations = replay.of_rows(jnp.zeros(5)), replay.of_rows(jnp.ones(3))
    >>> [float(row) for row in mixtures.mixture([own, demonstrations], [0.5, 0.5], jax.random.key(0), 4)]
    [0.0, 0.0, 1.0, 1.0]
    """
    if not sources or len(shares) != len(sources):
        raise ValueError(f"a mixture needs a share for each of its sources, got {len(shares)} for {len(sources)}")
    keys = jax.random.split(key, len(sources))
    edges = [0, *(traced_rounded_down(jnp.asarray(share), n) for share in accumulate(shares[:-1])), n]
    is_empty = jnp.stack([source.size == 0 for source in sources]).at[0].set(False)
    counts = jnp.where(is_empty, 0, jnp.diff(jnp.stack([jnp.asarray(edge, jnp.int32) for edge in edges])))
    ends = jnp.cumsum(counts.at[0].add(n - jnp.sum(counts, dtype=jnp.int32)))

    def choose(first: tuple[PyTree, Array], second: tuple[PyTree, Array]) -> tuple[PyTree, Array]:
        (rows, end), (others, end_of_others) = first, second
        of_first = jnp.arange(n) < end

        def where(a: Array, b: Array) -> Array:
            return jnp.where(of_first.reshape(-1, *[1] * (a.ndim - 1)), a, b)

        return jax.tree.map(where, rows, others), end_of_others

    drawn = [replay.sample(source, key, n) for source, key in zip(sources, keys, strict=True)]
    return reduce(choose, zip(drawn, ends, strict=True))[0]
