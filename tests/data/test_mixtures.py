"""Mixtures of buffers: their proportions by hand, and two sources as the one mixture that there was."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxmbrl.data import mixtures, replay

KEY = jax.random.key(3)


def of(*sizes, capacity=8):
    """Buffers with the rows 100 k to 100 k + size - 1, for source k."""
    sources = []
    for k, size in enumerate(sizes):
        ids = 100 * k + jnp.arange(size)
        sources.append(replay.add(replay.init({"id": jnp.zeros((), jnp.int32), "x": jnp.zeros(2)}, capacity), rows(ids)))
    return sources


def rows(ids):
    ids = jnp.asarray(ids, jnp.int32)
    return {"id": ids, "x": jnp.stack([ids, -ids], -1).astype(float)}


@partial(jax.jit, static_argnums=3)
def mixed(sources, shares, key, n):
    return mixtures.mixture(sources, shares, key, n)


def counts(sizes, shares, n):
    """Rows of each source in the batch, after checking that a row's leaves belong together and exist."""
    batch = jax.tree.map(np.asarray, mixed(of(*sizes), [jnp.float32(share) for share in shares], KEY, n))
    np.testing.assert_array_equal(batch["x"], np.stack([batch["id"], -batch["id"]], -1))
    source = batch["id"] // 100
    assert (np.diff(source) >= 0).all() and len(source) == n
    assert all(i % 100 < max(sizes[k], 1) for k, i in zip(source, batch["id"], strict=True))
    return np.bincount(source, minlength=len(sizes)).tolist()


@pytest.mark.parametrize(
    ("sizes", "shares", "n", "expected"),
    [
        ((5,), (1.0,), 4, [4]),
        ((5, 8), (0.05, 0.95), 20, [1, 19]),
        ((5, 8), (0.5, 0.5), 7, [3, 4]),
        ((5, 8), (0.0, 1.0), 6, [0, 6]),
        ((5, 8), (1.0, 0.0), 6, [6, 0]),
        ((5, 8, 3), (0.25, 0.5, 0.25), 8, [2, 4, 2]),
        ((5, 8, 3), (1 / 3, 1 / 3, 1 / 3), 10, [3, 3, 4]),
        ((5, 8, 3, 1), (0.1, 0.2, 0.3, 0.4), 100, [10, 20, 30, 40]),
        # What is empty leaves its share to the first.
        ((5, 0), (0.05, 0.95), 20, [20, 0]),
        ((5, 0, 3), (0.25, 0.5, 0.25), 8, [6, 0, 2]),
        ((5, 8, 0), (0.25, 0.5, 0.25), 8, [4, 4, 0]),
        ((5, 0, 0), (0.0, 0.5, 0.5), 8, [8, 0, 0]),
    ],
)
def test_proportions(sizes, shares, n, expected):
    assert counts(sizes, shares, n) == expected


@pytest.mark.parametrize("share", [0.0, 0.05, 0.3, 0.29, 0.7, 1 / 3, 1.0])
@pytest.mark.parametrize("size", [0, 8])
def test_two_sources_are_the_former_mixture_to_the_bit(share, size):
    """With a share that is traced, and one that is a number."""
    first, second = of(5, size)

    @partial(jax.jit, static_argnums=1)
    def former(share, n):
        first_key, second_key = jax.random.split(KEY)
        of_first = jnp.where(second.size == 0, n, jnp.floor(share * n))
        return jax.tree.map(
            lambda a, b: jnp.where((jnp.arange(n) < of_first).reshape(-1, *[1] * (a.ndim - 1)), a, b),
            replay.sample(first, first_key, n),
            replay.sample(second, second_key, n),
        )

    for given in (share, jnp.float32(share)):
        for n in (10, 100):
            batch = mixtures.mixture([first, second], [given, 1 - given], KEY, n)
            jax.tree.map(np.testing.assert_array_equal, batch, former(given, n))


def test_each_source_is_drawn_uniformly_and_apart():
    batch = np.asarray(mixed(of(4, 4), [jnp.float32(0.5), jnp.float32(0.5)], KEY, 20_000)["id"])
    for k in range(2):
        drawn = batch[batch // 100 == k] % 100
        assert stats.chisquare(np.bincount(drawn, minlength=4)).pvalue > 1e-3
    pairs = np.bincount(4 * (batch[:10_000] % 100) + batch[10_000:] % 100, minlength=16)
    assert stats.chisquare(pairs).pvalue > 1e-3


def test_a_share_for_each_source():
    for sources, shares in (([], []), (of(3, 3), [1.0])):
        with pytest.raises(ValueError, match=f"a share for each of its sources, got {len(shares)} for {len(sources)}"):
            mixtures.mixture(sources, shares, KEY, 4)
