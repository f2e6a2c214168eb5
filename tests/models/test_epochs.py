"""Splits, bootstraps, shuffles, early stopping and the normaliser, apart from any network."""

import functools

import ensemble_in_numpy as reference
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxmbrl.data import shuffling
from jaxmbrl.models import epochs
from jaxmbrl.models.normalizer import denormalize, measure, normalize

draw_shuffles = jax.jit(shuffling.draw_shuffles, static_argnums=(1, 2))
minibatch = jax.jit(epochs.minibatch, static_argnums=4)


@pytest.fixture(scope="module")
def split_of_64():
    def split(key, count):
        made = epochs.split_rows(key, 64, count, 0.2, 7)
        return made, epochs.training_mask(made)

    return jax.jit(split)


@pytest.mark.parametrize(
    ("count", "holdout"), [(0, 0), (1, 0), (4, 0), (5, 1), (9, 1), (10, 2), (15, 3), (34, 6), (35, 7), (64, 7)]
)
def test_split_divides_the_valid_rows(split_of_64, count, holdout):
    split, mask = jax.device_get(split_of_64(jax.random.key(count), np.int32(count)))
    assert (int(split.holdout), int(split.train)) == (holdout, count - holdout)
    assert sorted(split.order[:count]) == list(range(count))
    assert set(np.flatnonzero(mask)) == set(split.order[holdout:count])


def test_each_valid_row_is_equally_likely_to_be_held_out():
    @jax.jit
    def orders(key, count):
        return jax.vmap(lambda key: epochs.split_rows(key, 16, count, 0.3, 100).order)(jax.random.split(key, 4000))

    held_out = np.bincount(np.asarray(orders(jax.random.key(0), np.int32(10)))[:, :3].ravel(), minlength=16)
    assert (held_out[10:] == 0).all()
    np.testing.assert_allclose(held_out[:10] / 4000, 0.3, atol=5 * np.sqrt(0.3 * 0.7 / 4000))


def test_bootstraps_draw_with_replacement_from_the_training_rows_and_differ():
    @jax.jit
    def draw(count):
        split = epochs.split_rows(jax.random.key(0), 1000, count, 0.25, 500)
        return split, epochs.bootstrap(jax.random.key(1), split, 4)

    split, rows = jax.device_get(draw(np.int32(800)))
    rows, training = rows[:, : split.train], set(split.order[200:800])
    for own in rows:
        assert set(own) <= training
        # With replacement a share of 1 - 1/e of the rows is drawn at all.
        assert abs(len(set(own)) / 600 - (1 - np.exp(-1))) < 0.05
    assert all((rows[i] != rows[j]).mean() > 0.9 for i in range(4) for j in range(i))


@settings(max_examples=40, deadline=None)
@given(count=st.integers(1, 300), seed=st.integers(0, 2**31 - 1))
def test_a_shuffle_is_a_permutation(count, seed):
    places = shuffle_300(jax.random.key(seed), np.int32(count))
    assert sorted(np.asarray(places)[:count]) == list(range(count))


@jax.jit
def shuffle_300(key, count):
    (table,) = draw_shuffles(key, 1, 300, count)
    return shuffling.shuffled(table, jnp.minimum(jnp.arange(300), count - 1), count)


def test_shuffles_take_each_position_anywhere_and_pairs_apart():
    count, draws = 23, 6000

    @jax.jit
    def shuffles(key, count):
        def shuffle(key):
            (table,) = shuffling.draw_shuffles(key, 1, 300, count)
            return shuffling.shuffled(table, jnp.arange(23), count)

        return jax.vmap(shuffle)(jax.random.split(key, draws))

    places = np.asarray(shuffles(jax.random.key(0), np.int32(count)))
    for position in (0, 7, 22):
        seen = np.bincount(places[:, position], minlength=count)
        # Chi-square with 22 degrees of freedom: mean 22, standard deviation 6.6.
        assert ((seen - draws / count) ** 2 / (draws / count)).sum() < 22 + 5 * 6.7
    distance = (places[:, 1] - places[:, 0]) % count
    seen = np.bincount(distance, minlength=count)
    assert seen[0] == 0
    assert ((seen[1:] - draws / (count - 1)) ** 2 / (draws / (count - 1))).sum() < 21 + 5 * 6.5
    fixed = (places == np.arange(count)).sum(axis=1)
    np.testing.assert_allclose([fixed.mean(), fixed.var()], [1.0, 1.0], atol=0.1)


def test_a_shuffle_of_a_large_buffer_is_a_permutation():
    count = 100_003

    @jax.jit
    def shuffle(count):
        (table,) = shuffling.draw_shuffles(jax.random.key(3), 1, 200_000, count)
        return shuffling.shuffled(table, jnp.arange(100_003, dtype=jnp.int32), count)

    places = np.asarray(shuffle(np.int32(count)))
    assert (np.sort(places) == np.arange(count)).all()
    assert abs(np.corrcoef(places, np.arange(count))[0, 1]) < 5 / np.sqrt(count)


@pytest.mark.parametrize(("count", "size"), [(10, 4), (8, 4), (3, 4), (1, 1)])
def test_an_epoch_visits_each_bootstrapped_row_once(count, size):
    rows = 100 + np.arange(24, dtype=np.int32).reshape(2, 12)
    shuffles = draw_shuffles(jax.random.key(0), 2, 12, np.int32(count))
    seen = [[], []]
    for number in range(-(-count // size)):
        index, valid = jax.device_get(minibatch(shuffles, rows, np.int32(count), np.int32(number), size))
        assert valid.sum() == min(size, count - number * size)
        for e in range(2):
            seen[e] += list(index[e][valid])
    for e in range(2):
        assert sorted(seen[e]) == list(rows[e, :count])


def test_members_and_epochs_have_orders_of_their_own():
    @jax.jit
    def batch(key, rows, count):
        return epochs.minibatch(shuffling.draw_shuffles(key, 2, 50, count), rows, count, jnp.zeros((), int), 50)[0]

    rows = np.tile(np.arange(50, dtype=np.int32), (2, 1))
    a, b = (np.asarray(batch(jax.random.key(seed), rows, np.int32(50))) for seed in range(2))
    assert (a[0] != a[1]).mean() > 0.8
    assert (a[0] != b[0]).mean() > 0.8


def run_search(scores, patience, max_epochs, has_holdout=True, logarithmic=False):
    """Early stopping over given scores [epoch, member]; the weights of a member are the numbers of the epochs done."""
    return jax.device_get(search(np.asarray(scores, np.float32), patience, max_epochs, np.bool_(has_holdout), logarithmic))


def test_the_progress_is_told_epoch_by_epoch():
    told = []

    @jax.jit
    def counted(start):
        return epochs.train_with_early_stopping(
            lambda training, number: training + 1,
            lambda training: jnp.ones(2),
            lambda training: training,
            start,
            members=2,
            has_holdout=jnp.asarray(True),
            patience=3,
            max_epochs=9,
            on_epoch=lambda done: told.append(int(done)),
        )

    found = counted(jnp.zeros(2))
    jax.effects_barrier()
    # The first epoch improves on nothing; after it four do not.
    assert told == [1, 2, 3, 4, 5] and int(found.epochs) == 5


@functools.partial(jax.jit, static_argnums=(1, 2, 4))
def search(scores, patience, max_epochs, has_holdout, logarithmic=False):
    return epochs.train_with_early_stopping(
        epoch=lambda training, number: number + 1,
        score=lambda training: scores[training - 1],
        weights=lambda training: {"w": jnp.full((scores.shape[1], 2), training)},
        training=jnp.zeros((), jnp.int32),
        members=scores.shape[1],
        has_holdout=has_holdout,
        patience=patience,
        max_epochs=max_epochs,
        logarithmic=logarithmic,
    )


def test_logarithms_are_compared_as_their_numbers_and_may_be_large():
    """A log-density of -1e5 has no exponential in float32."""
    logs = np.log(np.array([[1.0, 2.0], [0.995, 1.5], [0.98, 1.49], [0.98, 1.4]] + [[0.98, 1.4]] * 9))
    due, found = run_search(np.exp(logs), 2, 13), run_search(logs, 2, 13, logarithmic=True)
    np.testing.assert_array_equal(found.best["w"], due.best["w"])
    assert found.best["w"][:, 0].tolist() == [3, 4] and int(found.epochs) == int(due.epochs) == 7
    far = run_search([[3e5], [2e5], [2e5], [1e5], [1e5]] + [[1e5]] * 9, 2, 13, logarithmic=True)
    assert far.best["w"][0, 0] == 4 and int(far.epochs) == 7


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("patience", [0, 2, 5])
def test_early_stopping_as_transcribed(seed, patience):
    rng = np.random.default_rng(seed)
    scores = np.exp(-0.05 * np.arange(30))[:, None] * rng.uniform(0.9, 1.1, (30, 3))
    scores[4, 1] = np.nan
    expected = reference.EarlyStopping(3, patience)
    for row in scores[:25]:
        if expected.stops_with(row):
            break
    search = run_search(scores, patience, max_epochs=25)
    assert search.epochs == expected.epochs
    np.testing.assert_allclose(search.score, expected.best, rtol=1e-6)
    np.testing.assert_array_equal(search.best["w"], np.array(expected.at)[:, None].repeat(2, 1) + 1)


def test_patience_five_bears_five_barren_epochs_and_stops_with_the_sixth():
    flat = np.ones((30, 3))
    assert run_search(flat, 5, 25).epochs == 1 + 6
    assert run_search(flat, 0, 25).epochs == 1 + 1


def test_one_percent_is_not_enough_and_a_little_more_is():
    assert run_search([[1.0], [0.991], [0.5]], 0, 3).epochs == 2
    assert run_search([[1.0], [0.989], [0.97]], 0, 3).epochs == 3


def test_each_member_keeps_its_own_best():
    search = run_search([[3.0, 1.0], [2.0, 5.0], [4.0, 0.5], [9.0, 9.0]], 5, 4)
    np.testing.assert_array_equal(search.best["w"][:, 0], [2, 3])
    np.testing.assert_array_equal(search.score, [2.0, 0.5])


def test_a_member_that_never_has_a_finite_score_keeps_what_it_had_and_ranks_last():
    search = run_search([[np.nan, 1.0], [np.inf, 0.5]], 5, 2)
    np.testing.assert_array_equal(search.best["w"][:, 0], [0, 2])
    assert list(np.argsort(search.score)) == [1, 0]


def test_without_a_holdout_all_epochs_are_run_and_the_last_weights_kept():
    search = run_search(np.zeros((9, 2)), 0, 9, has_holdout=False)
    assert search.epochs == 9
    np.testing.assert_array_equal(search.best["w"], np.full((2, 2), 9))


@jax.jit
def measured(rows, mask, x):
    """The normaliser of the masked rows, x normalised, and that denormalised."""
    normalizer = measure(rows, mask)
    normal = normalize(normalizer, x)
    return normalizer, normal, denormalize(normalizer, normal)


def test_normaliser_measures_the_masked_rows():
    rng = np.random.default_rng(0)
    rows = rng.normal(3.0, [1.0, 100.0, 1e-3], (50, 3))
    rows = np.concatenate([rows, np.full((50, 1), 0.1)], axis=1)
    mask = rng.uniform(size=50) < 0.5
    mean, std = reference.moments(rows[mask])
    rows[~mask] = np.nan
    with jax.enable_x64(True):
        normalizer, shifted, back = jax.device_get(measured(rows, mask, rows[mask]))
        np.testing.assert_allclose(normalizer.mean, mean, rtol=1e-12)
        np.testing.assert_allclose(normalizer.std, std, rtol=1e-10)
        assert normalizer.std[3] == 0.0
        np.testing.assert_allclose(shifted, (rows[mask] - mean) / np.where(std == 0, 1, std), atol=1e-9)
        np.testing.assert_allclose(back, rows[mask], rtol=1e-12)


def test_normaliser_leaves_a_constant_column_unscaled_in_single_precision():
    rows, mask, x = np.full((1000, 1), 0.1, np.float32), np.arange(1000) < 777, np.array([[0.6], [7.1]], np.float32)
    normalizer, normal, back = jax.device_get(measured(rows, mask, x))
    assert (normalizer.mean[0], normalizer.std[0]) == (np.float32(0.1), 0.0)
    assert normal[:, 0] == pytest.approx([0.5, 7.0])
    # Whatever a network says about it, it is what it was.
    assert (back == np.float32(0.1)).all()


def test_normaliser_measures_in_any_units_that_the_dtype_holds():
    rng = np.random.default_rng(1)
    rows = rng.normal(0.5, 1.0, (300, 1)) * np.array([1.0, 1e20, 1e-13, 1e30])
    rows = np.concatenate([rows, 0.5 + 1e-9 * rng.normal(size=(300, 1)), 5.2e6 + 10 * rng.normal(size=(300, 1))], axis=1)
    single = rows.astype(np.float32)
    normalizer, normal, _ = jax.device_get(measured(single, np.ones(300, bool), single))
    mean, std = single.mean(axis=0, dtype=np.float64), single.astype(np.float64).std(axis=0)
    varying = [0, 1, 2, 3, 5]
    np.testing.assert_allclose(normalizer.mean, mean, rtol=1e-5)
    np.testing.assert_allclose(normalizer.std[varying], std[varying], rtol=1e-5)
    np.testing.assert_allclose(normal[:, varying].std(axis=0), 1.0, rtol=1e-4)
    # What is below the rounding of single precision is no variation.
    assert normalizer.std[4] == 0.0


def test_normaliser_clips_to_the_measured_range_and_its_margin():
    rows = np.array([[1.0, 7.0], [3.0, 7.0], [2.0, 7.0], [99.0, 99.0]], np.float32)
    mask = np.array([True, True, True, False])
    x = np.array([[-9.0, 7.5], [0.5, 7.0], [4.5, 6.0], [9.0, np.nan]], np.float32)

    @jax.jit
    def clipped(rows, mask, x):
        kept = measure(rows, mask, 0.5)
        nothing = measure(rows, jnp.zeros_like(mask), 0.5)
        return kept, normalize(kept, x), normalize(nothing, x), normalize(measure(rows, mask), x)

    kept, normal, unmeasured, free = jax.device_get(clipped(rows, mask, x))
    np.testing.assert_array_equal([kept.low, kept.high], [[0.0, 7.0], [4.0, 7.0]])
    std = np.sqrt(2 / 3)
    np.testing.assert_allclose(normal[:, 0], (np.array([0.0, 0.5, 4.0, 4.0]) - 2) / std, rtol=1e-6)
    np.testing.assert_array_equal(normal[:, 1], [0.0, 0.0, 0.0, np.nan])
    np.testing.assert_allclose(free[:, 0], (x[:, 0] - 2) / std, rtol=1e-6)
    # Without rows there is no range.
    np.testing.assert_allclose(unmeasured[:, 0], x[:, 0] - 1.0)


def test_normaliser_of_no_row_is_finite():
    _, normal, back = jax.device_get(measured(np.ones((4, 2), np.float32), np.zeros(4, bool), np.ones(2, np.float32)))
    assert np.isfinite(normal).all() and np.isfinite(back).all()
