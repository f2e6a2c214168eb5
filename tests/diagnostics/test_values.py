"""Returns of recorded episodes by hand and summed anew, and how values differ from them."""

import numpy as np
import pytest

from jaxmbrl.core.config import UserError
from jaxmbrl.diagnostics import monte_carlo_returns, value_bias

NO = np.zeros(3, bool)
LAST = np.array([False, False, True])


def test_a_terminated_episode_by_hand():
    found = monte_carlo_returns(np.array([1.0, 2.0, 4.0]), LAST, NO, 0.5)
    np.testing.assert_array_equal(found, [1 + 0.5 * (2 + 0.5 * 4), 2 + 0.5 * 4, 4])
    # The value of what follows an end does not count, whatever it is; a truncation beside it neither.
    odd = monte_carlo_returns(np.array([1.0, 2.0, 4.0]), LAST, LAST, 0.5, bootstrap=np.array([9.0, 9.0, np.nan]))
    np.testing.assert_array_equal(odd, found)


def test_a_truncated_episode_goes_on_by_its_value():
    found = monte_carlo_returns(np.array([1.0, 2.0, 4.0]), NO, LAST, 0.5, bootstrap=np.array([7.0, 7.0, 8.0]))
    np.testing.assert_array_equal(found, [1 + 0.5 * (2 + 0.5 * (4 + 0.5 * 8)), 2 + 0.5 * (4 + 0.5 * 8), 4 + 0.5 * 8])
    # So does a record that breaks off.
    np.testing.assert_array_equal(
        monte_carlo_returns(np.array([4.0]), NO[:1], NO[:1], 0.5, bootstrap=np.array([8.0])), [8.0]
    )


def test_without_a_value_only_what_is_known_well_enough():
    """Hidden after k steps is at most the share 0.5^k: 1/8, 1/4, 1/2 of the three rows."""
    reward = np.array([1.0, 2.0, 4.0])
    for tolerance, known in ((0.1, 0), (0.125, 1), (0.3, 2), (0.5, 3)):
        found = monte_carlo_returns(reward, NO, LAST, 0.5, tolerance=tolerance)
        assert np.isfinite(found).tolist() == [True] * known + [False] * (3 - known)
    np.testing.assert_array_equal(found, [3.0, 4.0, 4.0])
    assert np.isnan(monte_carlo_returns(reward, NO, LAST, 1.0)).all()
    # The default: 0.99^299 is the first power below 0.05.
    found = monte_carlo_returns(np.ones(500), np.zeros(500, bool), np.zeros(500, bool), 0.99)
    assert np.isfinite(found).sum() == 500 - 298
    whole = 1 / (1 - 0.99)
    assert ((whole - found[:202]) / whole <= 0.05).all() and (found[:202] < whole).all()


def test_the_bonus_of_an_action_counts_one_step_before():
    bonus = np.array([10.0, 20.0, 40.0])
    found = monte_carlo_returns(np.array([1.0, 2.0, 4.0]), LAST, NO, 0.5, bonus=bonus)
    np.testing.assert_array_equal(found, [1 + 0.5 * (20 + 2 + 0.5 * (40 + 4)), 2 + 0.5 * (40 + 4), 4.0])


def test_many_episodes_as_summed_anew():
    rng = np.random.default_rng(0)
    count, discount = 200, 0.93
    reward, bootstrap, bonus = rng.normal(size=(3, count))
    terminated = rng.random(count) < 0.05
    truncated = (rng.random(count) < 0.05) & ~terminated
    found = monte_carlo_returns(reward, terminated, truncated, discount, bootstrap=bootstrap, bonus=bonus)
    blind = monte_carlo_returns(reward, terminated, truncated, discount, tolerance=0.2)
    for t in range(count):
        end = next((i for i in range(t, count) if terminated[i] or truncated[i]), count - 1)
        steps = np.arange(end - t + 1)
        total = np.sum(discount**steps * reward[t : end + 1])
        if terminated[end] or discount ** (end - t + 1) <= 0.2:
            np.testing.assert_allclose(blind[t], total, rtol=1e-9)
        else:
            assert np.isnan(blind[t])
        total += np.sum((discount**steps * bonus[t : end + 1])[1:])
        total += 0 if terminated[end] else discount ** (end - t + 1) * bootstrap[end]
        np.testing.assert_allclose(found[t], total, rtol=1e-9, atol=1e-12)


def test_bias_over_the_rows_whose_return_is_known():
    found = value_bias(np.array([3.0, 100.0, 1.0, 8.0]), np.array([1.0, np.nan, 3.0, 5.0]))
    np.testing.assert_array_equal(found.q, [3, 1, 8])
    np.testing.assert_array_equal(found.returns, [1, 3, 5])
    deviation = np.sqrt(((2 - 1) ** 2 + (-2 - 1) ** 2 + (3 - 1) ** 2) / 3)
    assert found.bias == 1.0 and found.normalized_bias == 1 / 3
    np.testing.assert_allclose([found.deviation, found.normalized_deviation], [deviation, deviation / 3], rtol=1e-12)
    np.testing.assert_allclose(found.correlation, np.corrcoef([3, 1, 8], [1, 3, 5])[0, 1], rtol=1e-12)


def test_what_is_not_defined_is_not_a_number():
    found = value_bias(np.ones(2), np.array([-1.0, 1.0]))
    assert found.bias == 1.0 and np.isnan([found.normalized_bias, found.normalized_deviation, found.correlation]).all()
    # A value that is not a number is not left out.
    assert np.isnan(value_bias(np.array([np.nan, 1.0]), np.ones(2)).bias)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: value_bias(np.ones(2), np.ones(3)),
            "q and returns must both be \\[N\\], got shapes \\(2,\\) and \\(3,\\)",
        ),
        (lambda: value_bias(np.ones(2), np.full(2, np.nan)), "no return is known: record longer episodes"),
        (lambda: monte_carlo_returns(np.ones(3), NO[:2], NO, 0.9), "terminated must have the 3 rows of reward, got shape"),
        (lambda: monte_carlo_returns(np.ones(3), NO, NO, 0.9, bonus=np.ones(2)), "bonus must have the 3 rows"),
        (lambda: monte_carlo_returns(np.ones(3), NO, NO, 1.1), "discount must be from 0 to 1, got 1.1"),
        (lambda: monte_carlo_returns(np.ones(3), NO, NO, 0.9, tolerance=-1.0), "tolerance must be from 0 to 1, got -1.0"),
    ],
)
def test_what_does_not_fit_is_told(call, message):
    with pytest.raises(UserError, match=message):
        call()


def test_nothing_recorded_has_no_returns():
    assert monte_carlo_returns(np.zeros(0), NO[:0], NO[:0], 0.9).shape == (0,)
