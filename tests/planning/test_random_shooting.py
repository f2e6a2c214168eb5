"""Random shooting: the best sample, ties, its limits, and its known accuracy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmbrl.planning import cem, problem_of_score, random_shooting, unit_box
from jaxmbrl.planning.random_shooting import RandomShootingConfig

H, A = 3, 2
ONE, SPACE = unit_box(1), unit_box(A)


def plan(score, seen, watched, **settings):
    planner = random_shooting.make(RandomShootingConfig(**settings), SPACE)
    problem = problem_of_score(watched(score, seen), SPACE)
    found = jax.jit(lambda: planner.plan(problem, planner.init(), jax.random.key(0)))()
    actions, state, statistics = jax.device_get(jax.block_until_ready(found))
    assert state == ()
    assert int(statistics["nonfinite"]) == 0
    (population,) = seen
    assert population.shape == (settings["population"], settings["horizon"], A)
    return actions, population


def test_the_best_sample_is_the_plan(watched):
    score = lambda x: -np.sum((x - 0.3) ** 2, axis=(-2, -1))  # noqa: E731
    actions, population = plan(score, [], watched, horizon=H, population=200)
    np.testing.assert_array_equal(actions, population[np.argmax(score(population))])
    # The same as what the cross-entropy method makes of one uniform population with a single elite.
    refit = jax.jit(lambda *given: cem.refit(*given, 1, 0.0))
    refitted, _ = refit(np.zeros((H, A)), np.ones((H, A)), population, score(population))
    np.testing.assert_array_equal(actions, refitted)


def test_of_equal_candidates_the_first_wins(watched):
    """Scores are whole numbers, so that many candidates share the largest."""
    score = lambda x: np.floor(2 * x[:, 0, 0])  # noqa: E731
    actions, population = plan(score, [], watched, horizon=H, population=200)
    winners = np.flatnonzero(score(population) == score(population).max())
    assert len(winners) > 10
    np.testing.assert_array_equal(actions, population[winners[0]])


def test_candidates_are_uniform(watched):
    """Kolmogorov-Smirnov distance to the uniform law, and no correlation between entries."""
    _, population = plan(lambda x: np.zeros(len(x)), [], watched, horizon=H, population=20_000)
    rows = np.sort(population.reshape(20_000, -1).astype(np.float64), axis=0)
    law = (np.arange(20_000) + 0.5) / 20_000
    assert np.abs((rows + 1) / 2 - law[:, None]).max() < 1.95 / np.sqrt(20_000)
    correlation = np.corrcoef(population.reshape(20_000, -1).T) - np.eye(H * A)
    assert np.abs(correlation).max() < 4 / np.sqrt(20_000)


def test_one_step_ahead_it_is_the_greedy_policy_over_the_actions_tried(watched):
    """A reward of the next state s + a, greedy for the goal 0.55 - s."""
    planner, seen = random_shooting.make(RandomShootingConfig(horizon=1, population=4000), SPACE), []
    recorded = watched(lambda population: np.zeros(len(population)), seen)

    @jax.jit
    def act(state):
        reward = lambda actions, key: recorded(actions, key) - jnp.abs(state + actions[0] - 0.55).sum()  # noqa: E731
        return planner.plan(problem_of_score(reward, SPACE), (), jax.random.key(0))[0][0]

    for state in np.array([-0.3, 0.0, 0.4], np.float32):
        action = np.asarray(jax.block_until_ready(act(state)))
        population = seen.pop()
        distance = np.abs(state + population[:, 0] - np.float32(0.55)).sum(axis=-1)
        np.testing.assert_array_equal(action, population[np.argmin(distance), 0])
        np.testing.assert_allclose(action, 0.55 - state, atol=0.06)


def test_a_single_candidate_is_a_random_policy(watched):
    actions, population = plan(lambda x: -np.sum(x, axis=(-2, -1)), [], watched, horizon=H, population=1)
    np.testing.assert_array_equal(actions, population[0])
    planner = random_shooting.make(RandomShootingConfig(horizon=1, population=1), ONE)
    problem = problem_of_score(lambda a, k: a[0, 0], ONE)
    act = jax.vmap(lambda key: planner.plan(problem, (), key)[0][0, 0])
    many = jax.jit(lambda: act(jax.random.split(jax.random.key(1), 4000)))()
    law = (np.arange(4000) + 0.5) / 4000
    assert np.abs((np.sort(np.asarray(many, np.float64)) + 1) / 2 - law).max() < 1.95 / np.sqrt(4000)


def test_accuracy_on_a_quadratic():
    """2,000 candidates in 25 dimensions: a root mean square error of 0.396."""
    planner = random_shooting.make(RandomShootingConfig(horizon=25, population=2000), ONE)
    problem = problem_of_score(lambda a, _: -jnp.sum((a - 0.3) ** 2), ONE)
    plan = jax.vmap(lambda key: planner.plan(problem, (), key)[0])
    found = jax.jit(lambda: plan(jax.random.split(jax.random.key(1), 100)))()
    errors = np.sqrt(np.mean((np.asarray(found, np.float64) - 0.3) ** 2, axis=(1, 2)))
    assert errors.mean() == pytest.approx(0.396, abs=4 * errors.std() / 10 + 0.0005)
    assert errors.std() < 0.04
