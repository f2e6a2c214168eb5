"""The score of a problem: discount, terminal value and risk against numbers computed by hand, and the plan played."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmbrl.core.config import UserError, check, from_dict
from jaxmbrl.core.spaces import Box, Discrete
from jaxmbrl.core.types import Transition, World
from jaxmbrl.planning import RiskConfig, make_problem, play, problem_of_score, unit_box
from jaxmbrl.planning.problem import at_risk

KEY = jax.random.key(0)
ONE = unit_box(1)


def counting(ends=lambda x: jnp.zeros(x.shape, bool), reward=lambda x, a: x + a):
    """A World of rows that count up: row n starts at n, and earns `reward` of its number and the action."""

    def step(observation, action, key):
        x, action = observation[:, 0], jnp.broadcast_to(action, (*observation.shape[:-1], 1))
        row = Transition(observation, action, reward(x, action[:, 0]), observation + 1, ends(x), x > 1e9)
        return observation + 1.0, row

    return World(reset=None, start=lambda origin, key: origin, observe=lambda carry: carry, step=step)


def score(world, rows, actions, **settings):
    origin = jnp.arange(float(rows))[:, None]
    problem = make_problem(world, origin, ONE, **settings)
    return float(problem.score(jnp.asarray(actions, float)[:, None], KEY))


def test_rewards_are_discounted():
    # Row 0: 0 + 1/2 * 1 + 1/4 * 2 = 1; row 1: 1 + 1/2 * 2 + 1/4 * 3 = 2.75.
    assert score(counting(), 2, [0.0, 0.0, 0.0], discount=0.5) == (1 + 2.75) / 2
    # With the actions 1, 1, 1 each row earns 1.75 more.
    assert score(counting(), 2, [1.0, 1.0, 1.0], discount=0.5) == (2.75 + 4.5) / 2
    assert score(counting(), 2, [1.0, 1.0, 1.0], discount=0.0) == 1.5
    assert score(counting(), 2, [1.0, 1.0, 1.0]) == 7.5


def test_the_discount_may_be_traced_and_differ_from_seed_to_seed():
    def scored(discount):
        problem = make_problem(counting(), jnp.arange(2.0)[:, None], ONE, discount=discount)
        return problem.score(jnp.zeros((3, 1)), KEY)

    found = jax.jit(jax.vmap(scored))(jnp.array([0.5, 1.0, 0.0]))
    np.testing.assert_array_equal(found, [1.875, 4.5, 0.5])


def test_the_terminal_value_is_discounted_and_counts_for_rows_that_are_alive():
    """Rows 0, 1, 2 start at their number; a row that steps from 2 terminates. The value of arriving at x is 10 x."""
    world = counting(ends=lambda x: x == 2)
    value = lambda carry: 10 * carry[:, 0]  # noqa: E731
    # Two steps: row 0 earns 0 + 1/2 * 1 and is worth 1/4 * 10 * 2; row 1 earns 1 + 1/2 * 2, row 2 earns 2, and both end.
    by_hand = [0.5 + 5.0, 2.0, 2.0]
    assert score(world, 3, [0.0, 0.0], discount=0.5, terminal_value=value) == pytest.approx(np.mean(by_hand), rel=1e-6)
    # Undiscounted: 0 + 1 + 20, 1 + 2, 2.
    assert score(world, 3, [0.0, 0.0], terminal_value=value) == pytest.approx((21 + 3 + 2) / 3, rel=1e-6)
    assert score(world, 3, [0.0, 0.0], terminal_value=lambda carry: jnp.zeros(3)) == score(world, 3, [0.0, 0.0])


def test_the_terminal_value_counts_by_the_probability_of_being_alive():
    world = counting(ends=lambda x: jnp.full(x.shape, 0.25))
    # One row: 0 + 3/4 * 1 + 9/16 * 16.
    assert score(world, 1, [0.0, 0.0], terminal_value=lambda carry: jnp.full(1, 16.0)) == 9.75


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_terminal_value_that_is_not_finite_rules_out_the_candidate_while_the_row_is_alive(bad):
    value = lambda carry: jnp.where(carry[:, 0] == 4, bad, 1.0)  # noqa: E731
    assert score(counting(), 3, [0.0, 0.0], terminal_value=value) == -np.inf
    # Only row 2 arrives at 4. Here its first step ends it: 0 + 1 + 1, 1 + 2 + 1, 2.
    world = counting()
    only_row_2 = lambda o, a, k: (o + 1, world.step(o, a, k)[1]._replace(terminated=jnp.arange(3) == 2))  # noqa: E731
    dying = world._replace(step=only_row_2)
    assert score(dying, 3, [0.0, 0.0], terminal_value=value) == pytest.approx((2 + 4 + 2) / 3)


def test_a_terminal_value_of_another_shape_than_the_rewards_is_refused():
    with pytest.raises(AssertionError, match="shape"):
        score(counting(), 3, [0.0], terminal_value=lambda carry: carry)


RETURNS = jnp.array([4.0, 1.0, 3.0, 2.0, 10.0])


@pytest.mark.parametrize(
    ("risk", "expected"),
    [
        (RiskConfig(), 4.0),
        (RiskConfig(quantile=0.0), 1.0),
        (RiskConfig(quantile=0.1), 1.4),
        (RiskConfig(quantile=0.5), 3.0),
        (RiskConfig(quantile=1.0), 10.0),
        # The population variance is (0 + 9 + 1 + 4 + 36) / 5 = 10.
        (RiskConfig(deviations=1.0), 4 - np.sqrt(10)),
        (RiskConfig(deviations=-0.5), 4 + 0.5 * np.sqrt(10)),
    ],
)
def test_the_risk_over_rows_by_hand(risk, expected):
    assert float(at_risk(RETURNS, risk)) == pytest.approx(expected, rel=1e-6)
    world = counting(reward=lambda x, a: RETURNS)
    assert score(world, 5, [0.0], risk=risk) == pytest.approx(expected, rel=1e-6)
    assert score(world, 5, [0.0, 0.0], risk=risk) == pytest.approx(2 * expected, rel=1e-6)


@pytest.mark.parametrize(
    "risk", [RiskConfig(), RiskConfig(quantile=0.5), RiskConfig(quantile=0.0), RiskConfig(deviations=2.0)]
)
def test_the_risk_of_a_single_return_is_that_return(risk):
    assert float(at_risk(jnp.float32(-3.25), risk)) == float(at_risk(jnp.full(1, -3.25), risk)) == -3.25
    assert float(at_risk(jnp.full(4, -3.25), risk)) == -3.25


def test_no_deviation_is_the_mean_bit_for_bit():
    returns = jax.random.normal(KEY, (1000,)) * 1e3
    assert float(at_risk(returns, RiskConfig(deviations=0.0))) == float(jnp.mean(returns))


@pytest.mark.parametrize("risk", [RiskConfig(), RiskConfig(quantile=0.9), RiskConfig(deviations=1.0)])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_one_row_that_is_not_finite_rules_out_the_candidate_at_any_risk(risk, bad):
    world = counting(reward=lambda x, a: jnp.where((x == 1) & (a > 0), bad, 1.0))
    assert score(world, 4, [1.0, -1.0], risk=risk) == -np.inf
    assert score(world, 4, [-1.0, -1.0], risk=risk) == 2.0


def test_risk_decides_between_a_safe_and_a_risky_plan():
    """The action 1 earns 0 or 10, the action -1 earns 4 for certain."""
    world = counting(reward=lambda x, a: jnp.where(a > 0, jnp.where(x == 0, 0.0, 10.0), 4.0))
    mean, careful = [{"risk": risk} for risk in (RiskConfig(), RiskConfig(quantile=0.1))]
    assert score(world, 2, [1.0], **mean) == 5.0 > score(world, 2, [-1.0], **mean)
    assert score(world, 2, [1.0], **careful) == 1.0 < score(world, 2, [-1.0], **careful)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"quantile": 0.1, "deviations": 1.0}, "deviations must be 0 if quantile is given, got 1.0"),
        ({"quantile": 1.5}, "quantile must be at most 1, got 1.5"),
        ({"quantile": -0.1}, "quantile must be at least 0, got -0.1"),
        ({"deviations": float("inf")}, "deviations must be a finite number, got inf"),
    ],
)
def test_a_risk_that_makes_no_sense_is_refused(values, message):
    with pytest.raises(UserError) as refused:
        from_dict(RiskConfig, values)
    assert str(refused.value) == message
    with pytest.raises(UserError):
        make_problem(counting(), jnp.zeros((1, 1)), ONE, risk=RiskConfig(**values))


def test_a_risk_is_a_plain_setting():
    assert from_dict(RiskConfig, {"quantile": 0.1}) == RiskConfig(quantile=0.1)
    assert from_dict(RiskConfig, {"quantile": None}) == RiskConfig()
    assert hash(RiskConfig(deviations=1.0)) == hash(check(RiskConfig(deviations=1.0)))
    assert dataclasses.replace(RiskConfig(), quantile=0.5).quantile == 0.5


def noisy():
    """Rows of a random walk that is paid for where it is."""

    def step(observation, action, key):
        following = observation + action + jax.random.normal(key, observation.shape)
        ended = jnp.zeros(observation.shape[0], bool)
        return following, Transition(observation, action, following[:, 0], following, ended, ended)

    def start(origin, key):
        return origin + jax.random.normal(key, origin.shape)

    return World(reset=None, start=start, observe=lambda carry: carry, step=step)


def test_a_played_plan_is_the_one_that_was_scored():
    problem = make_problem(noisy(), jnp.zeros((6, 1)), ONE)
    actions, key = jnp.array([[0.5], [-0.25], [1.0]]), jax.random.key(3)
    steps = play(problem, actions, key)
    assert steps.reward.shape == (3, 6) and steps.next_observation.shape == (3, 6, 1)
    np.testing.assert_array_equal(steps.action, actions)
    np.testing.assert_array_equal(steps.observation[1:], steps.next_observation[:-1])
    assert float(problem.score(actions, key)) == pytest.approx(float(steps.reward.sum(axis=0).mean()), rel=1e-6)
    assert float(problem.score(actions, jax.random.key(4))) != float(problem.score(actions, key))


def test_discrete_actions_are_scored_and_played():
    """A simulator that counts up by the choice and pays the count."""

    def step(carry, action, key):
        after = carry + action
        row = Transition(carry[None], action, after.astype(float), after[None], after < 0, after < 0)
        return after, row

    world = World(reset=None, start=lambda origin, key: origin, observe=lambda carry: carry[None], step=step)
    problem = make_problem(world, jnp.int32(1), Discrete(3), terminal_value=lambda carry: 100.0 * carry)
    actions = jnp.array([2, 0, 1], jnp.int32)
    assert float(problem.score(actions, KEY)) == (3 + 3 + 4) + 400
    steps = play(problem, actions, KEY)
    assert steps.action.tolist() == [2, 0, 1] and steps.action.dtype == jnp.int32
    assert steps.reward.tolist() == [3.0, 3.0, 4.0]


def test_a_problem_of_a_score_has_no_world():
    problem = problem_of_score(lambda actions, key: jnp.sum(actions), ONE)
    assert problem.action == Box((1,), -1.0, 1.0) and problem.terminal_value is None
    assert float(problem.score(jnp.ones((2, 1)), KEY)) == 2.0
    with pytest.raises(ValueError, match="no world"):
        play(problem, jnp.ones((2, 1)), KEY)
