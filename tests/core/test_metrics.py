"""Totals and weights add up to means; what has no weight is unknown."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmbrl.core import metrics
from jaxmbrl.core.types import Average


def test_averages_over_pieces_are_the_average_of_the_whole():
    rng = np.random.default_rng(0)
    values, weights = rng.normal(size=40), rng.integers(0, 3, 40).astype(float)
    stacked = jax.vmap(lambda v, w: {"x": Average.of(v, w)})(jnp.asarray(values), jnp.asarray(weights))
    first, second = (jax.tree.map(lambda x, part=part: x[part], stacked) for part in (slice(0, 7), slice(7, 40)))
    both = metrics.add(metrics.total(first), metrics.total(second))
    assert float(both["x"].weight) == weights.sum()
    assert metrics.known(both)["x"] == pytest.approx(np.average(values, weights=weights), rel=1e-5)
    assert metrics.known(metrics.total(stacked))["x"] == pytest.approx(np.average(values, weights=weights), rel=1e-5)


def test_what_has_no_weight_is_not_known():
    found = {"a": Average.of(jnp.array(2.0)), "b": Average.empty(), "c": Average.of(jnp.array(jnp.nan), 0.0)}
    assert metrics.known(found) == {"a": 2.0}
    assert metrics.known(
        metrics.add(found, {"a": Average.empty(), "b": Average.of(jnp.array(3)), "c": Average.of(jnp.array(1.0))})
    ) == {
        "a": 2.0,
        "b": 3.0,
        "c": 1.0,
    }
    assert np.isnan(metrics.known({"a": Average.of(jnp.array(jnp.nan))})["a"])


def update(state):
    return state + 1, {"seen": Average.of(state, 2.0), "rows": Average(jnp.ones(3), jnp.ones(3))}


def test_none_like_has_the_shapes_and_no_weight():
    unknown = metrics.none_like(update, jnp.array(4.0))
    assert set(unknown) == {"seen", "rows"}
    assert unknown["rows"].total.shape == (3,)
    assert all(not np.any(np.asarray(leaf)) for leaf in jax.tree.leaves(unknown))


@pytest.mark.parametrize("double", [False, True])
def test_when(double):
    with jax.enable_x64(double):
        run = jax.jit(lambda predicate, state: metrics.cond_update(predicate, update, state))
        state, found = run(jnp.array(True), jnp.array(4.0))
        assert float(state) == 5.0
        assert metrics.known({"seen": found["seen"]}) == {"seen": 4.0}
        assert state.dtype == found["seen"].total.dtype == (jnp.float64 if double else jnp.float32)
        state, found = run(jnp.array(False), jnp.array(4.0))
        assert float(state) == 4.0
        assert metrics.known({"seen": found["seen"]}) == {}
        assert run._cache_size() == 1


def test_when_runs_one_branch_only_for_a_batch_of_seeds():
    batched = jax.vmap(lambda p, s: metrics.cond_update(p, update, s), in_axes=(None, 0))
    assert " cond[" in str(jax.make_jaxpr(batched)(jnp.array(True), jnp.arange(3.0)))


@pytest.mark.parametrize("number", [0, 1, 3])
def test_repeat_adds_up_what_a_traced_number_of_updates_tell(number):
    def update(state, key):
        drawn = jax.random.uniform(key)
        return state + drawn, {"drawn": Average.of(drawn)}

    repeated = jax.jit(lambda number: metrics.repeat(number, update, jnp.zeros(()), jax.random.key(1)))
    state, found = repeated(jnp.asarray(number))
    draws = [float(jax.random.uniform(jax.random.fold_in(jax.random.key(1), i))) for i in range(number)]
    assert float(state) == pytest.approx(sum(draws), rel=1e-6)
    assert float(found["drawn"].weight) == number
    assert metrics.known(found) == pytest.approx({"drawn": np.mean(draws)} if number else {}, rel=1e-6)
