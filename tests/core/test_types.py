"""Averages, spaces and the helpers on rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxmbrl import envs
from jaxmbrl.core.spaces import Box, Discrete, encode, encoded_size
from jaxmbrl.core.types import Average, Transition, flatten, row_like


def mean(average):
    return float(average.total / average.weight)


def plus(a, b):
    return jax.tree.map(jnp.add, a, b)


def test_averages_add_up_to_the_weighted_mean():
    values, weights = np.array([3.0, -1.0, 8.0]), np.array([1.0, 0.5, 2.0])
    total = Average.empty()
    for value, weight in zip(values, weights, strict=True):
        total = plus(total, Average.of(jnp.asarray(value), weight))
    assert mean(total) == pytest.approx(np.average(values, weights=weights))
    assert float(Average.of(jnp.asarray(3)).weight) == 1.0


def test_an_unknown_average_stays_unknown_and_changes_no_other():
    assert np.isnan(mean(plus(Average.empty(), Average.empty())))
    assert mean(plus(Average.empty(), Average.of(jnp.asarray(2.0)))) == 2.0


def test_a_fault_counts_only_where_it_has_weight():
    skipped = Average.of(jnp.asarray([jnp.nan, jnp.inf, 2.0]), jnp.array([0.0, 0.0, 1.0]))
    np.testing.assert_array_equal(skipped.total, [0, 0, 2])
    assert np.isnan(Average.of(jnp.asarray(jnp.nan)).total)


def test_the_weight_is_broadcast_and_may_be_a_mask():
    average = Average.of(jnp.arange(6.0).reshape(2, 3), jnp.array([True, False, True]))
    np.testing.assert_array_equal(average.total, [[0, 0, 2], [3, 0, 5]])
    np.testing.assert_array_equal(average.weight, [[1, 0, 1], [1, 0, 1]])


@pytest.mark.parametrize("kind", [jnp.int32, jnp.bool_, jnp.float32])
def test_averages_are_of_the_default_float(kind):
    for double in (False, True):
        with jax.enable_x64(double):
            average = Average.of(jnp.ones((), kind), jnp.asarray(True))
            wanted = jnp.float64 if double else jnp.float32
            assert {leaf.dtype for leaf in (*average, *Average.empty())} == {jnp.dtype(wanted)}
            assert not any(leaf.weak_type for leaf in (*average, *Average.empty()))


def test_box_samples_uniformly_between_its_bounds():
    box = Box((3,), -1.0, 1.0)
    draws = np.asarray(jax.vmap(box.sample)(jax.random.split(jax.random.key(0), 3000)))
    assert draws.shape == (3000, 3)
    for i in range(3):
        assert stats.kstest(draws[:, i], stats.uniform(-1, 2).cdf).pvalue > 1e-3
    assert np.abs(np.corrcoef(draws.T) - np.eye(3)).max() < 0.07


@pytest.mark.parametrize("box", [Box((2,)), Box((2,), low=0.0), Box((2,), high=0.0)])
def test_an_unbounded_box_refuses_to_sample(box):
    with pytest.raises(ValueError, match="unbounded"):
        box.sample(jax.random.key(0))


def test_discrete_samples_uniformly():
    space = Discrete(5)
    draws = np.asarray(jax.vmap(space.sample)(jax.random.split(jax.random.key(0), 5000)))
    assert set(draws.tolist()) == set(range(5))
    assert stats.chisquare(np.bincount(draws)).pvalue > 1e-3


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("space", [Box((2, 3), -1.0, 1.0), Discrete(4)])
def test_zeros_look_like_samples(space, double):
    with jax.enable_x64(double):
        zeros, draw = space.zeros(), space.sample(jax.random.key(0))
        assert zeros.shape == draw.shape == space.shape
        assert zeros.dtype == draw.dtype
        assert not np.asarray(zeros).any()


@pytest.mark.parametrize("name", ["pendulum", "cartpole-continuous"])
def test_row_like_has_the_form_of_a_step(name):
    for double in (False, True):
        with jax.enable_x64(double):
            task = envs.make(name)
            carry = jax.eval_shape(task.world.reset, jax.random.key(0))
            _, step = jax.eval_shape(task.world.step, carry, task.action.zeros(), jax.random.key(1))
            form = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)  # noqa: E731
            assert form(row_like(task)) == form(step)
            assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(row_like(task)))


def test_flatten_keeps_the_order_of_time_with_environments_in_turn():
    numbers = jnp.arange(12.0).reshape(4, 3)
    flags = numbers > 5
    rows = Transition(
        numbers[..., None], numbers[..., None], numbers, numbers[..., None] + 1, flags, ~flags, {"x": numbers}
    )
    flat = flatten(rows)
    np.testing.assert_array_equal(flat.reward, range(12))
    np.testing.assert_array_equal(flat.observation, np.arange(12)[:, None])
    np.testing.assert_array_equal(flat.next_observation, np.arange(1, 13)[:, None])
    np.testing.assert_array_equal(flat.terminated, np.arange(12) > 5)
    np.testing.assert_array_equal(flat.truncated, np.arange(12) <= 5)
    assert flat.extras == ()


@pytest.mark.parametrize(
    ("space", "values", "code"),
    [
        (Discrete(3), [[2, 0]], [[[0, 0, 1], [1, 0, 0]]]),
        (Box((2,)), [[0.5, -3.0], [1.0, 2.0]], [[0.5, -3.0], [1.0, 2.0]]),
        (Box((2, 1, 2), 0, 255, "uint8"), [[[[0, 255]], [[255, 0]]]], [[0, 1, 1, 0]]),
        (Box(()), [1.0, 2.0], [[1.0], [2.0]]),
    ],
)
def test_elements_of_any_space_are_encoded_as_vectors_of_floats(space, values, code):
    dtype = space.zeros().dtype
    found = encode(space, jnp.asarray(values, dtype))
    assert found.dtype == jnp.result_type(float) and found.shape[-1] == encoded_size(space)
    assert found.tolist() == code


def test_rows_may_keep_their_extras():
    task = envs.make("pendulum")
    row = row_like(task, {"value": jnp.zeros(2)})
    assert row_like(task).extras == () and row.extras["value"].shape == (2,)
    steps = jax.tree.map(lambda leaf: np.zeros((3, 4, *leaf.shape), leaf.dtype), row)
    steps.extras["value"][:, :, 0] = np.arange(12).reshape(3, 4)
    assert flatten(steps).extras == ()
    np.testing.assert_array_equal(flatten(steps, with_extras=True).extras["value"][:, 0], np.arange(12))
