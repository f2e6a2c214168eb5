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
        ids = np.where(np.arange(capacity) < size, 100 * k + np.arange(capacity), 0).astype(np.int32)
        rows = {"id": ids, "x": np.stack([ids, -ids], -1).astype(np.float32)}
        sources.append(replay.Replay(rows, *(np.int32(number) for number in (size % capacity, size, capacity))))
    return sources


@partial(jax.jit, static_argnums=3)
def mixed(sources, shares, key, n):
    return mixtures.mixture(sources, shares, key, n)


def counts(sizes, shares, n):
    """Rows of each source in the batch, after checking that a row's leaves belong together and exist."""
    batch = jax.device_get(mixed(of(*sizes), [np.float32(share) for share in shares], KEY, n))
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
        ((5, 8), (0.0, 1.0), 7, [0, 7]),
        ((5, 8), (1.0, 0.0), 7, [7, 0]),
        ((5, 8, 3), (0.25, 0.5, 0.25), 8, [2, 4, 2]),
        ((5, 8, 3), (1 / 3, 1 / 3, 1 / 3), 8, [2, 3, 3]),
        ((5, 8, 3, 1), (0.1, 0.2, 0.3, 0.4), 100, [10, 20, 30, 40]),
        # In float32 these products are below 53 and 59.
        ((5, 8), (0.53, 0.47), 100, [53, 47]),
        ((5, 8), (0.59, 0.41), 100, [59, 41]),
        # What is empty leaves its share to the first.
        ((5, 0), (0.05, 0.95), 20, [20, 0]),
        ((5, 0, 3), (0.25, 0.5, 0.25), 8, [6, 0, 2]),
        ((5, 8, 0), (0.25, 0.5, 0.25), 8, [4, 4, 0]),
        ((5, 0, 0), (0.0, 0.5, 0.5), 8, [8, 0, 0]),
    ],
)
def test_proportions(sizes, shares, n, expected):
    assert counts(sizes, shares, n) == expected


SHARES = (0.0, 0.05, 0.3, 0.29, 0.7, 1 / 3, 1.0)


@partial(jax.jit, static_argnums=2)
def former(sources, share, n):
    (first, second), (first_key, second_key) = sources, jax.random.split(KEY)
    of_first = jnp.where(second.size == 0, n, jnp.floor(share * n))
    return jax.tree.map(
        lambda a, b: jnp.where((jnp.arange(n) < of_first).reshape(-1, *[1] * (a.ndim - 1)), a, b),
        replay.sample(first, first_key, n),
        replay.sample(second, second_key, n),
    )


@partial(jax.jit, static_argnums=1)
def mixed_by_numbers(sources, n):
    return [mixtures.mixture(sources, [share, 1 - share], KEY, n) for share in SHARES]


@pytest.mark.parametrize("n", [20, 100])
@pytest.mark.parametrize("size", [0, 8])
def test_two_sources_are_the_former_mixture_to_the_bit(size, n):
    """With a share that is traced, and one that is a number."""
    sources = of(5, size)
    for share, by_number in zip(SHARES, mixed_by_numbers(sources, n), strict=True):
        traced = np.float32(share)
        for batch in (by_number, mixed(sources, [traced, 1 - traced], KEY, n)):
            jax.tree.map(np.testing.assert_array_equal, batch, former(sources, traced, n))


def test_each_source_is_drawn_uniformly_and_apart():
    batch = np.asarray(mixed(of(4, 4), [np.float32(0.5), np.float32(0.5)], KEY, 20_000)["id"])
    for k in range(2):
        drawn = batch[batch // 100 == k] % 100
        assert stats.chisquare(np.bincount(drawn, minlength=4)).pvalue > 1e-3
    pairs = np.bincount(4 * (batch[:10_000] % 100) + batch[10_000:] % 100, minlength=16)
    assert stats.chisquare(pairs).pvalue > 1e-3


def test_a_share_for_each_source():
    for sources, shares in (([], []), (of(3, 3), [1.0])):
        with pytest.raises(ValueError, match=f"a share for each of its sources, got {len(shares)} for {len(sources)}"):
            mixtures.mixture(sources, shares, KEY, 4)
