"""Action sequences from outside of the search that compete with the planner's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmbrl import planning
from jaxmbrl.core.spaces import Discrete
from jaxmbrl.core.types import Transition, World
from jaxmbrl.planning import (
    CEMConfig,
    ICEMConfig,
    MPPIConfig,
    PlannerConfig,
    RandomShootingConfig,
    RiskConfig,
    make_problem,
    open_loop_policy,
    planning_policy,
    problem_of_score,
    search,
    unit_box,
)

H, A = 3, 2
SPACE = unit_box(A)
KEY = jax.random.key(0)
SMALL = {
    "cem": PlannerConfig(
        "cem", cem=CEMConfig(horizon=H, population=30, elites=2, iterations=3, momentum=0.0, min_variance=0.0)
    ),
    "icem": PlannerConfig("icem", icem=ICEMConfig(horizon=H, population=24, elites=4, iterations=3, kept=0.5)),
    "mppi": PlannerConfig("mppi", mppi=MPPIConfig(horizon=H, population=30, iterations=3, temperature=1e-4)),
    "random-shooting": PlannerConfig("random-shooting", random_shooting=RandomShootingConfig(horizon=H, population=50)),
}
every_planner = pytest.mark.parametrize("method", sorted(SMALL))
BEST = jnp.array([[0.9, -0.95], [-0.8, 0.85], [1.0, -1.0]])
OTHER = jnp.full((H, A), 0.25)


def plan(planner, objective, proposals=None, space=SPACE):
    solve = jax.jit(lambda: planner.plan(problem_of_score(objective, space), planner.init(), KEY, proposals))
    return jax.block_until_ready(solve())


def distance(population):
    return -np.sum((population - np.asarray(BEST)) ** 2, axis=(-2, -1))


def nearness(actions, key):
    return -jnp.sum((actions - BEST) ** 2)


@every_planner
def test_a_proposal_that_is_the_optimum_wins(method):
    planner = planning.make(SMALL[method], SPACE)
    alone, _, _ = plan(planner, nearness)
    found, _, statistics = plan(planner, nearness, jnp.stack([OTHER, BEST, BEST]))
    assert float(nearness(alone, KEY)) < -0.01
    np.testing.assert_allclose(found, BEST, rtol=0, atol=1e-7)
    assert int(statistics["nonfinite"]) == 0


@every_planner
def test_proposals_come_after_the_planners_own_candidates_which_stay_the_same(method, watched):
    """In the first iteration: proposals change no random number."""
    planner, without, given = planning.make(SMALL[method], SPACE), [], []
    plan(planner, watched(distance, without))
    proposals = jnp.stack([OTHER, -OTHER])
    plan(planner, watched(distance, given), proposals)
    np.testing.assert_allclose(given[0][:-2], without[0], atol=1e-6)
    joined = [len(one) - len(other) for one, other in zip(given, without, strict=True)]
    assert joined == {"cem": [2, 2, 2], "icem": [2, 0, 0], "mppi": [2, 2, 2], "random-shooting": [2]}[method]
    for population, count in zip(given, joined, strict=True):
        if count:
            np.testing.assert_array_equal(population[-2:], proposals)


def test_icem_without_kept_elites_takes_proposals_in_every_iteration(watched):
    config = ICEMConfig(horizon=H, population=24, elites=4, iterations=3, kept=0.0, decay=1.0)
    planner, seen = planning.make(PlannerConfig("icem", icem=config), SPACE), []
    found, _, _ = plan(planner, watched(distance, seen), BEST[None])
    assert [len(population) for population in seen] == [25, 25, 25]
    np.testing.assert_array_equal(found, BEST)


def test_a_proposal_is_an_elite_like_any_other(watched):
    """CEM's mean after one iteration is that of the best four of candidates and proposals."""
    config = CEMConfig(horizon=H, population=20, elites=4, iterations=1, momentum=0.0)
    planner, seen = planning.make(PlannerConfig("cem", cem=config), SPACE), []
    found, _, _ = plan(planner, watched(distance, seen), jnp.stack([BEST, OTHER]))
    order = np.argsort(-distance(seen[0]))[:4]
    assert order[0] == 20 and len(seen[0]) == 22
    np.testing.assert_allclose(found, seen[0][order].mean(axis=0), atol=1e-6)


@every_planner
def test_proposals_are_clipped_to_the_bounds(method, watched):
    planner, seen = planning.make(SMALL[method], SPACE), []
    plan(planner, watched(distance, seen), 3 * BEST[None])
    np.testing.assert_array_equal(seen[0][-1], np.clip(3 * np.asarray(BEST), -1, 1))


@every_planner
def test_a_proposal_that_is_not_finite_never_wins_and_is_counted(method):
    """Not even under a score that prefers the plan that stands in its place."""
    planner = planning.make(SMALL[method], SPACE)
    objective = lambda actions, key: -jnp.sum(actions**2)  # noqa: E731
    bad = [OTHER.at[0, 0].set(value) for value in (jnp.nan, jnp.inf, -jnp.inf)]
    found, after, statistics = plan(planner, objective, jnp.stack([*bad, BEST]))
    assert np.all(np.isfinite(found)) and all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(after))
    assert int(statistics["nonfinite"]) == {"cem": 9, "mppi": 9, "icem": 3, "random-shooting": 3}[method]
    # As if only the finite one had been proposed.
    alone, _, _ = plan(planner, objective, BEST[None])
    np.testing.assert_allclose(found, alone, atol=1e-6)
    assert np.abs(np.asarray(alone)).max() > 1e-3


@every_planner
def test_no_proposals_of_some_shape_are_no_proposals(method):
    planner = planning.make(SMALL[method], SPACE)
    none, empty = plan(planner, nearness), plan(planner, nearness, jnp.zeros((0, H, A)))
    jax.tree.map(np.testing.assert_array_equal, none, empty)


@pytest.mark.parametrize("shape", [(2, H + 1, A), (2, H, A + 1), (H, A)])
def test_proposals_of_another_horizon_or_action_are_refused(shape):
    with pytest.raises(AssertionError, match="shape"):
        search.admit(jnp.zeros(shape), H, SPACE)


@every_planner
def test_every_planner_refuses_another_horizon(method):
    planner = planning.make(SMALL[method], SPACE)
    with pytest.raises(AssertionError, match="shape"):
        plan(planner, nearness, jnp.zeros((2, H + 1, A)))


def test_proposals_of_choices():
    config = PlannerConfig("random-shooting", random_shooting=RandomShootingConfig(horizon=8, population=5))
    space = Discrete(6)
    planner, goal = planning.make(config, space), jnp.arange(8) % 6
    hits = lambda actions, key: jnp.sum(actions == goal, dtype=float)  # noqa: E731
    # A sequence with a choice that does not exist scores well, and is counted out.
    proposals = jnp.stack([goal, goal.at[0].set(6), goal.at[0].set(-1)])
    found, _, statistics = plan(planner, hits, proposals, space)
    assert found.tolist() == goal.tolist() and int(statistics["nonfinite"]) == 2
    found, _, _ = plan(planner, lambda actions, key: hits(actions, key) + 100.0 * (actions[0] < 0), proposals, space)
    assert found.tolist() == goal.tolist()
    with pytest.raises(AssertionError):
        search.admit(jnp.zeros((2, 8)), 8, space)


def drift():
    """Rows that go where they are pushed, with noise, and are paid for staying near 0.5."""

    def step(observation, action, key):
        following = observation + 0.3 * action + 0.1 * jax.random.normal(key, observation.shape)
        ended = jnp.zeros(observation.shape[0], bool)
        pushed = jnp.broadcast_to(action, observation.shape)
        return following, Transition(observation, pushed, -jnp.sum((following - 0.5) ** 2, -1), following, ended, ended)

    return World(reset=None, start=lambda origin, key: origin, observe=lambda carry: carry, step=step)


SETTINGS = {"risk": RiskConfig(quantile=0.2), "discount": 0.9, "terminal_value": lambda carry: 5 * carry[:, 0]}


def particles(observation):
    return jnp.tile(observation, (6, 1))


def propose(observation, key):
    return jnp.tanh(0.5 - observation + jax.random.normal(key, (4, H, A)))


@pytest.mark.parametrize("proposals", [None, propose])
def test_a_policy_plans_with_the_settings_and_proposals_that_it_is_given(proposals):
    planner, world = planning.make(SMALL["random-shooting"], SPACE), drift()
    observation, key = jnp.array([-0.4, 0.8]), jax.random.key(7)
    problem = make_problem(world, particles(observation), SPACE, **SETTINGS)
    search_key, proposal_key = jax.random.split(key)
    if proposals is None:
        expected, _, _ = jax.jit(lambda: planner.plan(problem, (), key))()
    else:
        expected, _, _ = jax.jit(lambda: planner.plan(problem, (), search_key, propose(observation, proposal_key)))()
    for make_policy in (planning_policy, open_loop_policy):
        policy = make_policy(planner, world, particles, SPACE, proposals=proposals, **SETTINGS)
        act, memory = jax.jit(policy.act), policy.init(jax.random.key(1))
        for step in range(1 if make_policy is planning_policy else H):
            action, _, memory = act(memory, observation, key)
            np.testing.assert_allclose(action, expected[step], atol=1e-6)
