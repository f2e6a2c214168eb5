"""Calibration against SciPy's distributions, root finding, and cases whose shares are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize, special, stats

from jaxmbrl.core.types import DynamicsModel, Transition
from jaxmbrl.diagnostics.calibrating import calibrate, calibration, distribution_function, levels_between

LEVELS = np.arange(1, 20) / 20
ROWS = 20_000


def mixture(seed, rows, members=4, size=2):
    rng = np.random.default_rng(seed)
    mean, std = rng.normal(size=(members, rows, size)), rng.uniform(0.2, 1.5, (members, rows, size))
    owner = rng.integers(members, size=(rows, size))[None]
    drawn = np.take_along_axis(mean, owner, 0) + np.take_along_axis(std, owner, 0) * rng.normal(size=(1, rows, size))
    return mean, std**2, drawn[0]


calibrated = jax.jit(calibrate)


def test_shares_as_counted_below_quantiles_that_are_searched_for():
    """The definition itself: each row's quantiles by bisection of its mixture's distribution function."""
    mean, variance, observed = mixture(0, 60)
    observed[:, 1] += 0.5

    def quantile(level, n, d):
        def above(x):
            return special.ndtr((x - mean[:, n, d]) / np.sqrt(variance[:, n, d])).mean() - level

        return optimize.brentq(above, -20, 20, xtol=1e-12)

    shares = [
        [np.mean([observed[n, d] <= quantile(level, n, d) for n in range(60)]) for d in range(2)] for level in LEVELS[::3]
    ]
    with jax.enable_x64(True):
        found = calibrated(mean, variance, observed, LEVELS[::3])
        np.testing.assert_allclose(found.shares, shares, rtol=1e-12)
        np.testing.assert_allclose(found.error, np.abs(np.array(shares) - LEVELS[::3, None]).mean(axis=0), rtol=1e-12)


def test_the_integral_transform_is_scipys():
    mean, variance, observed = mixture(1, 50)
    with jax.enable_x64(True):
        less, or_less = jax.jit(distribution_function)(mean, variance, observed)
        np.testing.assert_allclose(less, stats.norm.cdf(observed, mean, np.sqrt(variance)).mean(axis=0), rtol=1e-10)
        np.testing.assert_array_equal(less, or_less)


def test_a_perfect_prediction_is_calibrated_to_chance():
    found = jax.device_get(calibrated(*mixture(2, ROWS)))
    np.testing.assert_allclose(found.levels, LEVELS, rtol=1e-6)
    error = np.sqrt(LEVELS * (1 - LEVELS) / ROWS)[:, None]
    assert (np.abs(found.shares - LEVELS[:, None]) < 4 * error).all()
    assert (found.error < 1 / np.sqrt(ROWS)).all()


@pytest.mark.parametrize(("shift", "scale"), [(0.0, 2.0), (0.7, 1.0), (-0.3, 0.5)])
def test_wrong_widths_and_biases_have_the_shares_of_algebra(shift, scale):
    """For truth N(shift, scale^2) in predicted units, the share below the p-quantile is cdf((z_p - shift) / scale).

    Scale 2 is a variance predicted a quarter as large as it is.
    """
    rng = np.random.default_rng(3)
    mean, std = rng.normal(size=(1, ROWS, 1)), rng.uniform(0.5, 3.0, (1, ROWS, 1))
    observed = (mean + std * (shift + scale * rng.normal(size=mean.shape)))[0]
    found = jax.device_get(calibrated(mean, std**2, observed))
    expected = stats.norm.cdf((stats.norm.ppf(LEVELS) - shift) / scale)
    np.testing.assert_allclose(found.shares[:, 0], expected, atol=4 * 0.5 / np.sqrt(ROWS))
    miss = np.abs(expected - LEVELS).mean()
    assert miss > 0.05
    assert abs(float(found.error[0]) - miss) < 4 * 0.5 / np.sqrt(ROWS)


def test_predictions_without_variance():
    """Exact ones are calibrated, ones beside the truth not at all; members that disagree are right half of the time."""
    value, nothing = np.full((8, 1), 0.1, np.float32), np.zeros((2, 8, 1), np.float32)
    found = jax.device_get(calibrated(nothing + value, nothing, value))
    np.testing.assert_allclose(found.shares[:, 0], LEVELS, atol=1e-6)
    np.testing.assert_allclose(found.error, 0.0, atol=1e-6)
    for side, share in ((1e-3, 0.0), (-1e-3, 1.0)):
        beside = calibrated(nothing + value, nothing, value + np.float32(side))
        np.testing.assert_array_equal(beside.shares, share)
        np.testing.assert_allclose(beside.error, 0.5, rtol=1e-6)
    members = np.stack([np.zeros((8, 1)), np.ones((8, 1))])
    coin = (np.arange(8.0) % 2)[:, None]
    by_coin, heads = (np.asarray(calibrated(members, nothing, x).shares) for x in (coin, np.zeros((8, 1))))
    np.testing.assert_allclose(by_coin[:, 0], LEVELS, atol=1e-6)
    np.testing.assert_allclose(heads[:, 0], np.minimum(2 * LEVELS, 1), atol=1e-6)


def test_one_member_without_variance_beside_one_with():
    mean, variance = np.zeros((2, 1, 1)), np.array([0.0, 1.0])[:, None, None]
    transforms = jax.jit(distribution_function)
    for value, less, or_less in ((0.0, 0.25, 0.75), (1.0, (1 + stats.norm.cdf(1)) / 2, (1 + stats.norm.cdf(1)) / 2)):
        found = transforms(mean, variance, np.full((1, 1), value))
        np.testing.assert_allclose(np.ravel(found), [less, or_less], rtol=1e-6)


@pytest.mark.parametrize("part", [0, 1, 2])
def test_what_is_not_a_number_stays_so_in_its_dimension(part):
    parts = [np.ones((2, 5, 2)), np.ones((2, 5, 2)), np.ones((5, 2))]
    parts[part][..., 3, 1] = np.nan
    found = calibrated(*parts)
    assert np.isnan(np.asarray(found.error)).tolist() == [False, True]


@pytest.mark.parametrize("learns_reward", [False, True])
def test_a_models_rows_are_held_against_next_observation_and_reward(learns_reward):
    """Next observation as predicted, reward beside it; a model of a known reward says nothing about it."""
    size = 2 + learns_reward
    rows = Transition(np.zeros((6, 2)), np.zeros((6, 1)), np.ones(6), np.zeros((6, 2)), np.zeros(6), np.zeros(6))

    def predict(state, observation, action):
        assert (observation.shape, action.shape) == ((6, 2), (6, 1))
        return jnp.full((3, 6, size), state), jnp.zeros((3, 6, size))

    model = DynamicsModel(init=None, fit=None, predict=predict, world=None)
    found = calibration(model, 0.0, rows, levels_between(9))
    np.testing.assert_allclose(found.error, [0.0, 0.0, 0.5][:size], atol=1e-6)
    np.testing.assert_allclose(found.levels, np.arange(1, 10) / 10, rtol=1e-6)
