"""Targets against numbers by hand, a transcription in NumPy, and their identities."""

import jax
import numpy as np
import pytest

from jaxmbrl import returns

REWARDS, VALUES = np.array([1.0, 2.0, 3.0]), np.array([10.0, 20.0, 30.0])
NEVER = np.zeros(3, bool)
value_expansion_targets, n_step_returns = jax.jit(returns.value_expansion_targets), jax.jit(returns.n_step_returns)
lambda_return, alive_before, steve = jax.jit(returns.lambda_return), jax.jit(returns.alive_before), jax.jit(returns.steve)
last_target_by_values = jax.jit(jax.grad(lambda v, r, e: returns.value_expansion_targets(r, e, v, 0.9)[-1]))


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def expand(rewards, terminated, values, discount):
    """Every T_i by the sum in the docstring, with loops."""
    found, alive, earned = [], 1.0, 0.0
    for j, (reward, ended, value) in enumerate(zip(rewards, terminated, values, strict=True)):
        earned += discount**j * alive * reward
        alive *= 1.0 - ended
        found.append(earned + discount ** (j + 1) * alive * value)
    return np.array(found)


def trajectory(seed, steps=6):
    rng = np.random.default_rng(seed)
    return rng.normal(size=steps), rng.uniform(0, 1, steps), rng.normal(size=steps)


def test_expansions_by_hand():
    # 1 + .5*10; 1 + .5*2 + .25*20; 1 + .5*2 + .25*3 + .125*30
    found = value_expansion_targets(REWARDS, NEVER, VALUES, 0.5)
    np.testing.assert_allclose(found, [6.0, 7.0, 6.5], rtol=1e-12)


def test_a_probable_end_weighs_what_follows_by_hand():
    # The first step ends with probability 0.25: 1 + .5*.75*10; 1 + .5*.75*2 + .25*.75*.2*20 (the second with 0.8).
    found = value_expansion_targets(REWARDS[:2], np.array([0.25, 0.8]), VALUES[:2], 0.5)
    np.testing.assert_allclose(found, [4.75, 2.5], rtol=1e-12)


@pytest.mark.parametrize("discount", [0.0, 0.9, 1.0])
def test_expansions_are_the_sums(discount):
    rewards, ended, values = trajectory(1)
    found = value_expansion_targets(rewards, ended, values, discount)
    np.testing.assert_allclose(found, expand(rewards, ended, values, discount), rtol=1e-12)


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_what_follows_an_end_counts_for_nothing_and_may_not_be_finite(broken):
    """The real step that ended the episode leaves its reward alone as every horizon's target."""
    rewards, values = np.array([1.5, broken, broken]), np.full(3, broken)
    ended = np.array([True, False, True])
    np.testing.assert_array_equal(value_expansion_targets(rewards, ended, values, 0.9), [1.5, 1.5, 1.5])
    assert np.asarray(n_step_returns(rewards, ended, np.asarray(broken), 0.9))[0] == 1.5
    assert float(lambda_return(rewards, ended, values, 0.9, 0.5)) == pytest.approx(1.5, rel=1e-12)
    # Nor may a later probability of ending be.
    unsure = np.array([1.0, broken, 0.5])
    np.testing.assert_array_equal(alive_before(unsure), [1, 0, 0])
    np.testing.assert_array_equal(value_expansion_targets(rewards, unsure, values, 0.9), [1.5, 1.5, 1.5])
    np.testing.assert_array_equal(last_target_by_values(values, rewards, ended), np.zeros(3))


def test_a_probability_of_ending_that_is_not_finite_is_not_hidden_from_the_living():
    ended = np.array([0.5, np.nan, 1.0])
    np.testing.assert_array_equal(alive_before(ended), [1.0, 0.5, np.nan])
    np.testing.assert_array_equal(
        np.isfinite(np.asarray(value_expansion_targets(REWARDS, ended, VALUES, 0.9))), [True, False, False]
    )


def test_a_living_value_that_is_not_finite_is_not_hidden():
    values = np.array([1.0, np.nan, 1.0])
    np.testing.assert_array_equal(
        np.isfinite(np.asarray(value_expansion_targets(REWARDS, NEVER, values, 0.9))), [True, False, True]
    )


def test_an_exact_model_with_the_policys_values_has_one_target_for_all_horizons():
    """Along a deterministic chain with V(s_t) = r_t + discount V(s_{t+1}) all T_i are V(s_0)."""
    rng, discount = np.random.default_rng(2), 0.93
    rewards, after = rng.normal(size=8), 3.7
    values = np.zeros(8)
    for t in reversed(range(8)):
        values[t] = after
        after = rewards[t] + discount * after
    found = value_expansion_targets(rewards, np.zeros(8, bool), values, discount)
    np.testing.assert_allclose(found, np.full(8, after), rtol=1e-12)


def test_suffixes_are_each_states_own_longest_expansion():
    rewards, ended, values = trajectory(3)
    found = np.asarray(n_step_returns(rewards, ended, values[-1], 0.9))
    assert found.shape == (7,)
    for t in range(6):
        np.testing.assert_allclose(found[t], expand(rewards[t:], ended[t:], values[t:], 0.9)[-1], rtol=1e-12)
    assert found[-1] == values[-1]


def test_of_no_steps_the_last_value_is_the_target():
    assert n_step_returns(np.zeros(0), np.zeros(0, bool), np.asarray(2.5), 0.9).tolist() == [2.5]


def test_lambda_return_by_hand_and_at_its_ends():
    given = REWARDS, NEVER, VALUES
    targets = np.asarray(value_expansion_targets(*given, 0.5))
    # .75*6 + .25*.75*7 + .0625*6.5
    assert float(lambda_return(*given, 0.5, 0.25)) == pytest.approx(6.21875, rel=1e-12)
    assert float(lambda_return(*given, 0.5, 0.0)) == float(targets[0])
    assert float(lambda_return(*given, 0.5, 1.0)) == float(targets[-1])


def test_lambda_return_is_the_recursion():
    """G_t = r_t + discount m ((1 - mix) v_t + mix G_{t+1}), with the last value at the end."""
    rewards, ended, values = trajectory(4)
    following = values[-1]
    for reward, end, value in zip(rewards[::-1], ended[::-1], values[::-1], strict=True):
        following = reward + 0.9 * (1 - end) * (0.3 * value + 0.7 * following)
    found = lambda_return(rewards, ended, values, 0.9, 0.7)
    assert float(found) == pytest.approx(following, rel=1e-12)


def test_steve_weighs_variances_of_one_and_three_by_three_quarters_and_one_quarter():
    samples = np.array([[9.0, 20.0 - np.sqrt(3)], [11.0, 20.0 + np.sqrt(3)]])
    mixed, weights = jax.jit(lambda x: returns.steve(x, epsilon=0.0))(samples)
    np.testing.assert_allclose(weights, [0.75, 0.25], rtol=1e-12)
    assert float(mixed) == pytest.approx(0.75 * 10 + 0.25 * 20, rel=1e-12)


def test_steve_takes_the_plain_mean_where_variances_are_equal_or_nothing_varies():
    rng = np.random.default_rng(5)
    samples = rng.normal(size=(4, 1)) + np.array([1.0, 5.0, 9.0])
    mixed, weights = steve(samples)
    np.testing.assert_allclose(weights, np.full(3, 1 / 3), rtol=1e-9)
    assert float(mixed) == pytest.approx(samples.mean(), rel=1e-9)
    single, weights = steve(np.array([[2.0, 4.0, 9.0]]))
    np.testing.assert_allclose(weights, np.full(3, 1 / 3), rtol=1e-12)
    assert float(single) == pytest.approx(5.0, rel=1e-12)


def test_steve_gives_a_horizon_that_all_agree_on_nearly_all_weight_and_stays_finite():
    mixed, weights = steve(np.array([[3.0, -5.0], [3.0, 5.0]]))
    np.testing.assert_allclose(weights, [1.0, 0.0], atol=1e-9)
    assert float(mixed) == pytest.approx(3.0, rel=1e-8)


def test_steves_weights_are_constants():
    samples = np.array([[1.0, 2.0], [4.0, -3.0]])
    weights = steve(samples)[1]
    gradient = jax.jit(jax.grad(lambda x: returns.steve(x)[0]))(samples)
    np.testing.assert_allclose(gradient, np.tile(np.asarray(weights) / 2, (2, 1)), rtol=1e-12)


advantages = jax.jit(returns.advantages)


@pytest.mark.parametrize(
    ("terminated", "truncated", "successors", "expected"),
    [
        ((0, 0, 0), (0, 0, 0), (0.5, 0.5, 4.0), (5.51624, 6.342, 6.1)),
        ((0, 1, 0), (0, 0, 0), (0.5, 0.5, 4.0), (2.03, 1.5, 6.1)),
        ((0, 0, 0), (0, 1, 0), (0.5, 2.0, 4.0), (3.326, 3.3, 6.1)),
    ],
)
def test_advantages_by_hand(terminated, truncated, successors, expected):
    ends = np.array(terminated, bool), np.array(truncated, bool)
    found = advantages(REWARDS, *ends, np.full(3, 0.5), np.array(successors), 0.9, 0.8)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_advantages_of_several_episodes_are_those_of_each():
    """Ends of both kinds inside a batch: the definition as a sum, for each episode alone. No mixing gives the TD errors,
    full mixing the return minus the value. What would follow a termination is ignored, even if it is not finite."""
    rng = np.random.default_rng(4)
    rewards, values, successors = rng.normal(size=(3, 12))
    terminated, truncated = np.zeros((2, 12), bool)
    terminated[[2, 9]] = truncated[[5]] = True
    within = ~(terminated | truncated)[:-1]
    successors[:-1][within] = values[1:][within]
    for discount, mix in ((0.9, 0.8), (0.9, 0.0), (0.7, 1.0)):
        errors = rewards + discount * np.where(terminated, 0.0, successors) - values
        expected = np.zeros(12)
        for first, last in ((0, 3), (3, 6), (6, 10), (10, 12)):
            for t in range(first, last):
                expected[t] = sum((discount * mix) ** (j - t) * errors[j] for j in range(t, last))
        found = advantages(rewards, terminated, truncated, values, np.where(terminated, np.nan, successors), discount, mix)
        np.testing.assert_allclose(found, expected, rtol=1e-10)
        if mix == 0:
            np.testing.assert_array_equal(found, errors)
        if mix == 1:
            inside = n_step_returns(rewards[3:6], terminated[3:6], successors[5], discount)[:-1]
            np.testing.assert_allclose(found[3:6] + values[3:6], inside, rtol=1e-12)


lambda_returns = jax.jit(returns.lambda_returns)


def test_lambda_returns_by_hand():
    """DreamerV3's timing, where an arrival earns the reward: r = (9, 1, 2, 3), v = (5, 6, 7, 8), lambda .95, discount .997;
    and an end at the second arrival. V1 counts a state's own reward: the same recursion on other entries, discount .99."""
    rewards, values = np.array([1.0, 2.0, 3.0]), np.array([6.0, 7.0, 8.0])
    found = lambda_returns(rewards, np.zeros(3), values, 0.997, 0.95)
    np.testing.assert_allclose(found, [13.370402, 12.744868, 10.976], atol=5e-7)
    ended = lambda_returns(rewards, np.array([0.0, 1.0, 0.0]), values, 0.997, 0.95)
    np.testing.assert_allclose(ended, [3.1934, 2.0, 10.976], atol=5e-7)
    first = lambda_returns(np.array([9.0, 1.0, 2.0]), np.zeros(3), values, 0.99, 0.95)
    np.testing.assert_allclose(first, [19.338023, 10.676260, 9.92], atol=5e-7)
    some = lambda_returns(rewards, np.array([0.0, 0.2, 0.0]), values, 0.99, 0.95)
    np.testing.assert_allclose(some, [11.166051, 10.493408, 10.92], atol=5e-7)


def test_the_lambda_returns_of_all_states_start_with_that_of_the_first():
    rewards, ended, values = trajectory(3)
    for mix in (0.0, 0.7, 1.0):
        found = lambda_returns(rewards, ended, values, 0.9, mix)
        due = [lambda_return(rewards[t:], ended[t:], values[t:], 0.9, mix) for t in (0, 2, 5)]
        np.testing.assert_allclose(found[np.array([0, 2, 5])], due, rtol=1e-12)
    np.testing.assert_allclose(found, n_step_returns(rewards, ended, values[-1], 0.9)[:-1], rtol=1e-12)


def test_lambda_may_be_zero_where_a_trajectory_is_cut():
    rewards, ended, values = trajectory(4)
    shares = np.where(np.arange(6) == 2, 0.0, 0.7)
    found = lambda_returns(rewards, ended, values, 0.9, shares)
    np.testing.assert_allclose(found[:3], lambda_returns(rewards[:3], ended[:3], values[:3], 0.9, 0.7), rtol=1e-12)
    np.testing.assert_allclose(found[3:], lambda_returns(rewards[3:], ended[3:], values[3:], 0.9, 0.7), rtol=1e-12)
    broken = lambda_returns(np.array([1.5, np.nan]), np.array([True, False]), np.full(2, np.nan), 0.9, 0.95)
    assert float(broken[0]) == 1.5
