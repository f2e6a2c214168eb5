"""Prioritised replay against a transcription in NumPy, and by numbers computed by hand."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loops import copies
from scipy import stats

from jaxmbrl.data import prioritized

ROW = np.zeros((), np.int32)
init = jax.jit(prioritized.init, static_argnums=1)
add = jax.jit(prioritized.add)
update = jax.jit(prioritized.update)
draw = jax.jit(prioritized.sample, static_argnums=2)


def sample(*given):
    """On the host."""
    return jax.device_get(draw(*given))


def of(priorities, alpha=0.6):
    """A buffer of the rows 0, 1, ... with these priorities."""
    n = len(priorities)
    buffer = add(init(ROW, n, alpha, 0.0), np.arange(n, dtype=np.int32))
    return update(buffer, np.arange(n), np.asarray(priorities, float))


def leaves(buffer):
    return np.asarray(buffer.tree)[len(buffer.tree) // 2 :]


def test_probabilities_and_draws_by_hand():
    buffer = of([0.5, 1.0, 2.0, 0.1])
    probability = leaves(buffer) / np.asarray(buffer.tree)[1]
    np.testing.assert_allclose(probability, [0.192536, 0.291829, 0.442331, 0.073304], atol=1e-6)
    drawn = jax.jit(prioritized.find)(buffer.tree, np.array([0.1, 0.35, 0.6, 0.9, 0.0, 0.99999, 1.0]))
    assert drawn.tolist() == [0, 1, 2, 2, 0, 3, 3]


@pytest.mark.parametrize(
    ("beta", "expected"),
    [(0.0, [1, 1, 1, 1]), (0.4, [0.67959, 0.57544, 0.487251, 1]), (1.0, [0.380731, 0.251189, 0.165723, 1])],
)
def test_weights_by_hand(beta, expected):
    """Of batches in which all four rows are."""
    _, index, weight = sample(of([0.5, 1.0, 2.0, 0.1]), jax.random.key(0), 64, beta)
    assert set(index.tolist()) == {0, 1, 2, 3}
    np.testing.assert_allclose(weight, np.asarray(expected)[index], rtol=1e-5)


def test_the_largest_weight_is_that_of_the_batch():
    """The row of the smallest priority is in none of these."""
    _, index, weight = sample(of([1.0, 1.0, 4.0, 1e-9], alpha=1.0), jax.random.key(0), 8, 1.0)
    assert 3 not in index.tolist()
    np.testing.assert_allclose(weight, np.where(np.asarray(index) == 2, 0.25, 1.0), rtol=1e-6)


def test_weighted_draws_have_the_uniform_mean():
    """At beta 1, without the division by the largest weight: E_P[x / (N P)] is the mean of x."""
    priorities, x = np.array([0.5, 1.0, 2.0, 0.1]), np.array([3.0, -1.0, 2.0, 7.0])
    probability = priorities**0.6 / (priorities**0.6).sum()
    _, index, weight = sample(of(priorities), jax.random.key(1), 40_000, 1.0)
    largest = 1 / (4 * probability.min())
    assert np.mean(np.asarray(weight) * largest * x[index]) == pytest.approx(x.mean(), abs=0.05)


def test_without_an_exponent_draws_are_uniform_and_weights_one():
    rows, index, weight = sample(of([0.5, 1.0, 2.0, 0.1], alpha=0.0), jax.random.key(2), 4000, 1.0)
    assert np.bincount(index).tolist() == [1000] * 4 and (np.asarray(weight) == 1).all()
    np.testing.assert_array_equal(rows, index)


def test_draws_are_stratified_and_in_proportion():
    """Of n draws each row gets its share to within one at each end of it, and by chance in between."""
    priorities = np.random.default_rng(0).uniform(0.1, 3, 50)
    buffer = of(priorities, alpha=1.0)
    share = priorities / priorities.sum()
    for seed in range(3):
        _, index, _ = sample(buffer, jax.random.key(seed), 500, 0.4)
        count = np.bincount(index, minlength=50)
        assert (np.abs(count - 500 * share) < 2).all() and (np.diff(index) >= 0).all()
    many = jax.jit(jax.vmap(lambda buffer, key: prioritized.sample(buffer, key, 1, 0.4)[1][0], in_axes=(None, 0)))
    index = np.asarray(many(buffer, jax.random.split(jax.random.key(0), 20_000)))
    assert stats.chisquare(np.bincount(index, minlength=50), 20_000 * share).pvalue > 1e-3


CAPACITY = 5
adds = st.integers(1, 3).flatmap(lambda n: st.lists(st.booleans(), min_size=3, max_size=3))
updates = st.lists(st.tuples(st.integers(0, CAPACITY - 1), st.floats(0, 8, width=32)), min_size=4, max_size=4)


@settings(max_examples=60, deadline=None)
@given(st.lists(adds | updates, max_size=10), st.sampled_from([0.6, 1.0]))
def test_against_a_transcription(steps, alpha):
    """A list of rows and priorities, written over from the oldest on."""
    buffer = init(ROW, CAPACITY, alpha, 1e-3)
    rows, priority, position, count, largest = [0] * CAPACITY, np.zeros(CAPACITY), 0, 0, 1.0
    for step in steps:
        if isinstance(step[0], bool):
            ids = np.arange(count + 1, count + 4)
            buffer = add(buffer, ids.astype(np.int32), np.asarray(step))
            count += 3
            for i in ids[np.asarray(step)]:
                rows[position], priority[position] = i, largest
                position = (position + 1) % CAPACITY
        else:
            held = [(i, error) for i, error in step if priority[i] > 0]
            index, error = [i for i, _ in held], [e for _, e in held]
            if not held:
                continue
            # The program is compiled for four; the first of them is repeated.
            pad = 4 - len(held)
            buffer = update(buffer, np.asarray(index + index[:1] * pad), np.asarray(error + error[:1] * pad, float))
            for i in set(index):
                priority[i] = max(e for j, e in held if j == i) + 1e-3
            largest = max(largest, max(error) + 1e-3)
        mass = np.where(priority > 0, priority, 0) ** alpha * (priority > 0)
        np.testing.assert_allclose(leaves(buffer), np.r_[mass, np.zeros(3)], rtol=1e-5)
        assert float(np.asarray(buffer.tree)[1]) == pytest.approx(mass.sum(), rel=1e-5)
        assert float(buffer.largest) == pytest.approx(largest, rel=1e-6)
        np.testing.assert_array_equal(buffer.replay.data, rows)
        if mass.sum():
            drawn, index, _ = sample(buffer, jax.random.key(count), 16, 0.4)
            assert (priority[index] > 0).all()
            np.testing.assert_array_equal(drawn, np.asarray(rows)[index])


def test_sums_stay_exact_over_many_updates():
    """No difference is ever added to a sum, so nothing adds up."""
    rng = np.random.default_rng(0)
    buffer, expected = add(init(ROW, 1000, 1.0, 0.0), np.arange(1000, dtype=np.int32)), np.ones(1000)
    for _ in range(200):
        index, error = rng.integers(0, 1000, 32), 10 ** rng.uniform(-6, 6, 32)
        buffer = update(buffer, index, error)
        for i in set(index.tolist()):
            expected[i] = error[index == i].max()
    np.testing.assert_allclose(leaves(buffer)[:1000], expected, rtol=1e-6)
    tree = np.asarray(buffer.tree)
    assert float(tree[1]) == pytest.approx(expected.sum(), rel=1e-6)
    np.testing.assert_array_equal(tree[1:1024], tree[2::2] + tree[3::2])


@pytest.mark.parametrize("capacity", [1, 2, 3])
def test_small_buffers(capacity):
    @jax.jit
    def drawn(rows):
        empty, key = prioritized.init(ROW, capacity), jax.random.key(0)
        return prioritized.sample(empty, key, 4, 0.4), prioritized.sample(prioritized.add(empty, rows), key, 4, 0.4)[0]

    (rows, index, weight), later = drawn(np.array([7], np.int32))
    assert (rows.tolist(), index.tolist(), weight.tolist()) == ([0] * 4, [0] * 4, [1.0] * 4)
    assert later.tolist() == [7] * 4
    with pytest.raises(ValueError, match="at least 1, got 0"):
        prioritized.init(ROW, 0)


def test_an_error_that_is_not_finite_closes_the_buffer():
    buffer = of([0.5, 1.0, 2.0, 0.1])
    closed = update(buffer, np.arange(4), np.array([3.0, np.nan, 1.0, 1.0]))
    assert not closed.active
    later = add(update(closed, np.arange(4), np.ones(4)), np.arange(9, 13, dtype=np.int32))
    for left in (closed, later):
        jax.tree.map(np.testing.assert_array_equal, left._replace(active=buffer.active), buffer)


def test_a_frozen_seed_keeps_what_it_had():
    """And lets through nothing later; a healthy seed is not touched."""
    one, two = (np.arange(3) < number for number in (1, 2))
    buffer = add(init(ROW, CAPACITY, 0.6, 1e-3), np.array([1, 2, 0], np.int32), two)
    new = update(add(buffer, np.array([3, 0, 0], np.int32), one), np.zeros(4, int), np.full(4, 5.0))
    gated = jax.jit(prioritized.Prioritized.gate)
    jax.tree.map(np.testing.assert_array_equal, gated(new, True, buffer), new)
    frozen = gated(new, False, buffer)
    assert (int(frozen.replay.size), int(frozen.replay.position), float(frozen.largest)) == (2, 2, 1.0)
    later = add(frozen, np.array([4, 0, 0], np.int32), one)
    jax.tree.map(np.testing.assert_array_equal, later, frozen)


def test_seeds_side_by_side_are_each_alone():
    def one(seed, alpha):
        key = jax.random.key(seed)
        buffer = prioritized.add(prioritized.init(ROW, 6, alpha), jnp.arange(8, dtype=jnp.int32))
        _, index, weight = prioritized.sample(buffer, key, 4, 0.4)
        buffer = prioritized.update(buffer, index, weight * jnp.arange(4.0))
        return buffer, prioritized.sample(buffer, key, 4, 0.4)

    seeds, alphas, alone = np.arange(2), np.array([0.6, 1.0]), jax.jit(one)
    together = jax.device_get(jax.jit(jax.vmap(one))(seeds, alphas))
    for i in range(2):
        jax.tree.map(lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=1e-6), together, alone(seeds[i], alphas[i]))


@pytest.mark.parametrize("seeds", [None, 2])
def test_add_sample_and_update_in_a_scan_copy_no_buffer(seeds):
    row = {"x": np.zeros(2, np.float32)}

    def body(rows, buffer, key):
        buffer = prioritized.add(buffer, rows)
        batch, index, weight = prioritized.sample(buffer, key, 8, 0.4)
        buffer = prioritized.update(buffer, index, batch["x"].sum(-1) * weight)
        return buffer, weight.sum()

    def loop(buffer, rows, key):
        return jax.lax.scan(partial(body, rows), buffer, jax.random.split(key, 10))

    buffer = jax.device_get(init(row, 4096))
    if seeds:
        loop = jax.vmap(loop, in_axes=(0, None, None))
        buffer = jax.tree.map(lambda x: np.stack([x] * seeds), buffer)
    found = copies(loop, buffer, {"x": np.ones((4, 2), np.float32)}, sizes=(4096, 8192))
    assert found == []
