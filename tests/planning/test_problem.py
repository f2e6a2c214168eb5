"""The score of a problem: discount, terminal value and risk against numbers computed by hand, and the plan played."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmbrl.core.config import UserError, check, from_dict
from jaxmbrl.core.spaces import Box, Discrete
from jaxmbrl.core.types import Transition, World
from jaxmbrl.planning import RiskConfig, make_problem, play, problem_of_score, unit_box
from jaxmbrl.planning.problem import at_risk

ONE = unit_box(1)


def counting(ends=lambda x: jnp.zeros(x.shape, bool), reward=lambda x, a: x + a):
    """A World of rows that count up: row n starts at n, and earns `reward` of its number and the action."""

    def step(observation, action, key):
        x, action = observation[:, 0], jnp.broadcast_to(action, (*observation.shape[:-1], 1))
        row = Transition(observation, action, reward(x, action[:, 0]), observation + 1, ends(x), x > 1e9)
        return observation + 1.0, row

    return World(reset=None, start=lambda origin, key: origin, observe=lambda carry: carry, step=step)


def score(world, rows, actions, **settings):
    problem = make_problem(world, jnp.arange(float(rows))[:, None], ONE, **settings)
    return problem.score(jnp.asarray(actions, float)[:, None], jax.random.key(0))


def numbers(scores):
    """What `scores()` gives, computed under one compilation."""
    return [float(x) for x in jax.jit(scores)()]


def test_rewards_are_discounted():
    found = numbers(
        lambda: [
            score(counting(), 2, [0.0, 0.0, 0.0], discount=0.5),
            *(score(counting(), 2, [1.0, 1.0, 1.0], discount=discount) for discount in (0.5, 0.0, 1.0)),
            score(counting(), 2, [1.0, 1.0, 1.0]),
        ]
    )
    # Row 0: 0 + 1/2 * 1 + 1/4 * 2 = 1; row 1: 1 + 1/2 * 2 + 1/4 * 3 = 2.75.
    # With the actions 1, 1, 1 each row earns 1.75 more.
    assert found == [(1 + 2.75) / 2, (2.75 + 4.5) / 2, 1.5, 7.5, 7.5]


def test_the_discount_may_be_traced_and_differ_from_seed_to_seed():
    found = jax.jit(jax.vmap(lambda discount: score(counting(), 2, [0.0, 0.0, 0.0], discount=discount)))
    np.testing.assert_array_equal(found(np.array([0.5, 1.0, 0.0], np.float32)), [1.875, 4.5, 0.5])


def test_the_terminal_value_is_discounted_and_counts_for_rows_that_are_alive():
    """Rows 0, 1, 2 start at their number; a row that steps from 2 terminates. The value of arriving at x is 10 x."""
    world = counting(ends=lambda x: x == 2)
    value = lambda carry: 10 * carry[:, 0]  # noqa: E731
    discounted, plain, worthless, without = numbers(
        lambda: [
            score(world, 3, [0.0, 0.0], discount=0.5, terminal_value=value),
            score(world, 3, [0.0, 0.0], terminal_value=value),
            score(world, 3, [0.0, 0.0], terminal_value=lambda carry: jnp.zeros(3)),
            score(world, 3, [0.0, 0.0]),
        ]
    )
    # Two steps: row 0 earns 0 + 1/2 * 1 and is worth 1/4 * 10 * 2; row 1 earns 1 + 1/2 * 2, row 2 earns 2, and both end.
    by_hand = [0.5 + 5.0, 2.0, 2.0]
    assert discounted == pytest.approx(np.mean(by_hand), rel=1e-6)
    # Undiscounted: 0 + 1 + 20, 1 + 2, 2.
    assert plain == pytest.approx((21 + 3 + 2) / 3, rel=1e-6)
    assert worthless == without


def test_the_terminal_value_counts_by_the_probability_of_being_alive():
    world = counting(ends=lambda x: jnp.full(x.shape, 0.25))
    # One row: 0 + 3/4 * 1 + 9/16 * 16.
    assert numbers(lambda: [score(world, 1, [0.0, 0.0], terminal_value=lambda carry: jnp.full(1, 16.0))]) == [9.75]


@jax.jit
def with_a_bad_terminal_value(bad):
    """The scores where arriving at 4 is worth `bad`, and where, moreover, row 2 ends with its first step."""
    value = lambda carry: jnp.where(carry[:, 0] == 4, bad, 1.0)  # noqa: E731
    world = counting()
    only_row_2 = lambda o, a, k: (o + 1, world.step(o, a, k)[1]._replace(terminated=jnp.arange(3) == 2))  # noqa: E731
    dying = world._replace(step=only_row_2)
    return [score(each, 3, [0.0, 0.0], terminal_value=value) for each in (world, dying)]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_terminal_value_that_is_not_finite_rules_out_the_candidate_while_the_row_is_alive(bad):
    living, dying = with_a_bad_terminal_value(bad)
    assert float(living) == -np.inf
    # Only row 2 arrives at 4. There its first step ends it: 0 + 1 + 1, 1 + 2 + 1, 2.
    assert float(dying) == pytest.approx((2 + 4 + 2) / 3)


def test_a_terminal_value_of_another_shape_than_the_rewards_is_refused():
    with pytest.raises(AssertionError, match="shape"):
        jax.eval_shape(lambda: score(counting(), 3, [0.0], terminal_value=lambda carry: carry))


RETURNS = np.array([4.0, 1.0, 3.0, 2.0, 10.0], np.float32)


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
    world = counting(reward=lambda x, a: jnp.asarray(RETURNS))
    found = numbers(
        lambda: [at_risk(jnp.asarray(RETURNS), risk), *(score(world, 5, steps, risk=risk) for steps in ([0.0], [0.0, 0.0]))]
    )
    assert found == pytest.approx([expected, expected, 2 * expected], rel=1e-6)


@pytest.mark.parametrize(
    "risk", [RiskConfig(), RiskConfig(quantile=0.5), RiskConfig(quantile=0.0), RiskConfig(deviations=2.0)]
)
def test_the_risk_of_a_single_return_is_that_return(risk):
    returns = [np.full(shape, -3.25, np.float32) for shape in ((), 1, 4)]
    found = jax.jit(lambda returns: [at_risk(x, risk) for x in returns])(returns)
    assert [float(x) for x in found] == [-3.25] * 3


@pytest.mark.parametrize("deviations", [1.0, -0.5])
def test_the_derivative_of_a_risk_of_equal_returns_is_that_of_their_mean(deviations):
    """That of a deviation of exactly 0 is not defined. Of other returns it is (r_i - mean) / (n deviation)."""
    slope = jax.jit(jax.grad(lambda returns: at_risk(returns, RiskConfig(deviations=deviations))))
    for equal in (np.full(4, -3.25, np.float32), np.full(1, 7.0, np.float32)):
        np.testing.assert_array_equal(slope(equal), 1 / np.float32(equal.size))
    returns = np.array([1.0, 2.0, 4.0, 9.0])
    due = 1 / 4 - deviations * (returns - returns.mean()) / (4 * returns.std())
    np.testing.assert_allclose(slope(returns.astype(np.float32)), due, rtol=1e-5)


def test_no_deviation_is_the_mean_bit_for_bit():
    returns = np.random.default_rng(0).normal(size=1000).astype(np.float32) * 1000
    risky, mean = jax.jit(lambda x: at_risk(x, RiskConfig(deviations=0.0))), jax.jit(jnp.mean)
    assert float(risky(returns)) == float(mean(returns))


@functools.cache
def with_a_bad_row(risk):
    """`(bad, actions) -> score` where row 1 earns `bad` for actions above 0, compiled."""

    def found(bad, actions):
        world = counting(reward=lambda x, a: jnp.where((x == 1) & (a > 0), bad, 1.0))
        return score(world, 4, actions, risk=risk)

    return jax.jit(found)


@pytest.mark.parametrize("risk", [RiskConfig(), RiskConfig(quantile=0.9), RiskConfig(deviations=1.0)])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_one_row_that_is_not_finite_rules_out_the_candidate_at_any_risk(risk, bad):
    found = with_a_bad_row(risk)
    assert float(found(bad, np.array([1.0, -1.0]))) == -np.inf
    assert float(found(bad, np.array([-1.0, -1.0]))) == 2.0


def test_risk_decides_between_a_safe_and_a_risky_plan():
    """The action 1 earns 0 or 10, the action -1 earns 4 for certain."""
    world = counting(reward=lambda x, a: jnp.where(a > 0, jnp.where(x == 0, 0.0, 10.0), 4.0))
    risks = RiskConfig(), RiskConfig(quantile=0.1)
    found = numbers(lambda: [score(world, 2, [action], risk=risk) for risk in risks for action in (1.0, -1.0)])
    assert found == [5.0, 4.0, 1.0, 4.0]


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
        make_problem(counting(), np.zeros((1, 1)), ONE, risk=RiskConfig(**values))


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
    problem = make_problem(noisy(), np.zeros((6, 1), np.float32), ONE)
    actions = np.array([[0.5], [-0.25], [1.0]], np.float32)

    @jax.jit
    def both(actions, seed):
        key = jax.random.key(seed)
        return play(problem, actions, key), problem.score(actions, key)

    (steps, scored), (_, other) = jax.device_get([both(actions, seed) for seed in (3, 4)])
    assert steps.reward.shape == (3, 6) and steps.next_observation.shape == (3, 6, 1)
    np.testing.assert_array_equal(steps.action, actions)
    np.testing.assert_array_equal(steps.observation[1:], steps.next_observation[:-1])
    assert float(scored) == pytest.approx(float(steps.reward.sum(axis=0).mean()), rel=1e-6)
    assert float(other) != float(scored)


def test_discrete_actions_are_scored_and_played():
    """A simulator that counts up by the choice and pays the count."""

    def step(carry, action, key):
        after = carry + action
        row = Transition(carry[None], action, after.astype(float), after[None], after < 0, after < 0)
        return after, row

    world = World(reset=None, start=lambda origin, key: origin, observe=lambda carry: carry[None], step=step)

    @jax.jit
    def both(actions, origin):
        problem = make_problem(world, origin, Discrete(3), terminal_value=lambda carry: 100.0 * carry)
        return problem.score(actions, jax.random.key(0)), play(problem, actions, jax.random.key(0))

    scored, steps = both(np.array([2, 0, 1], np.int32), np.int32(1))
    assert float(scored) == (3 + 3 + 4) + 400
    assert steps.action.tolist() == [2, 0, 1] and steps.action.dtype == jnp.int32
    assert steps.reward.tolist() == [3.0, 3.0, 4.0]


def test_a_problem_of_a_score_has_no_world():
    problem = problem_of_score(lambda actions, key: jnp.sum(actions), ONE)
    assert problem.action == Box((1,), -1.0, 1.0) and problem.terminal_value is None
    actions, key = jnp.asarray(np.ones((2, 1))), jax.random.key(0)
    assert float(problem.score(actions, key)) == 2.0
    with pytest.raises(ValueError, match="no world"):
        play(problem, actions, key)
