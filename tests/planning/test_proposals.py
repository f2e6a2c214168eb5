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
SMALL = {
    "cem": PlannerConfig(
        "cem", cem=CEMConfig(horizon=H, population=30, elites=2, iterations=3, momentum=0.0, min_variance=0.0)
    ),
    "icem": PlannerConfig("icem", icem=ICEMConfig(horizon=H, population=24, elites=4, iterations=2, kept=0.5)),
    "mppi": PlannerConfig("mppi", mppi=MPPIConfig(horizon=H, population=30, iterations=3, temperature=1e-4)),
    "random-shooting": PlannerConfig("random-shooting", random_shooting=RandomShootingConfig(horizon=H, population=50)),
}
every_planner = pytest.mark.parametrize("method", sorted(SMALL))
BEST = np.array([[0.9, -0.95], [-0.8, 0.85], [1.0, -1.0]], np.float32)
OTHER = np.full((H, A), 0.25, np.float32)


@pytest.fixture(scope="module")
def plan(watched):
    """`plan(method, proposals, goal)`: the plan for the sequence nearest to `goal`, and the populations scored."""
    seen = []
    recorded = watched(lambda population: np.zeros(len(population)), seen)

    def compiled(config):
        planner = planning.make(config, SPACE)

        def solve(proposals, goal):
            score = lambda actions, key: recorded(actions, key) - jnp.sum((actions - goal) ** 2)  # noqa: E731
            return planner.plan(problem_of_score(score, SPACE), planner.init(), jax.random.key(0), proposals)

        return jax.jit(solve)

    solvers = {method: compiled(config) for method, config in SMALL.items()}

    def plan(method, proposals=None, goal=BEST):
        seen.clear()
        solve = solvers[method] if isinstance(method, str) else compiled(method)
        found = jax.device_get(jax.block_until_ready(solve(proposals, goal)))
        return *found, list(seen)

    return plan


def distance(population):
    return -np.sum((population - BEST) ** 2, axis=(-2, -1))


@every_planner
def test_a_proposal_that_is_the_optimum_wins(method, plan):
    alone, _, _, _ = plan(method)
    found, _, statistics, _ = plan(method, np.stack([OTHER, BEST, BEST, OTHER]))
    assert distance(alone) < -0.01
    np.testing.assert_allclose(found, BEST, rtol=0, atol=1e-7)
    assert int(statistics["nonfinite"]) == 0


@every_planner
def test_proposals_come_after_the_planners_own_candidates_which_stay_the_same(method, plan):
    """In the first iteration: proposals change no random number."""
    proposals = np.stack([OTHER, -OTHER, BEST, -BEST])
    *_, without = plan(method)
    *_, given = plan(method, proposals)
    np.testing.assert_allclose(given[0][:-4], without[0], atol=1e-6)
    joined = [len(one) - len(other) for one, other in zip(given, without, strict=True)]
    assert joined == {"cem": [4, 4, 4], "icem": [4, 0], "mppi": [4, 4, 4], "random-shooting": [4]}[method]
    for population, count in zip(given, joined, strict=True):
        if count:
            np.testing.assert_array_equal(population[-4:], proposals)


def test_icem_without_kept_elites_takes_proposals_in_every_iteration(plan):
    config = ICEMConfig(horizon=H, population=24, elites=4, iterations=2, kept=0.0, decay=1.0)
    found, _, _, seen = plan(PlannerConfig("icem", icem=config), BEST[None])
    assert [len(population) for population in seen] == [25, 25]
    np.testing.assert_array_equal(found, BEST)


def test_a_proposal_is_an_elite_like_any_other(plan):
    """CEM's mean after one iteration is that of the best four of candidates and proposals."""
    config = CEMConfig(horizon=H, population=20, elites=4, iterations=1, momentum=0.0)
    found, _, _, seen = plan(PlannerConfig("cem", cem=config), np.stack([BEST, OTHER]))
    order = np.argsort(-distance(seen[0]))[:4]
    assert order[0] == 20 and len(seen[0]) == 22
    np.testing.assert_allclose(found, seen[0][order].mean(axis=0), atol=1e-6)


@every_planner
def test_proposals_are_clipped_to_the_bounds(method, plan):
    *_, seen = plan(method, 3 * BEST[None])
    np.testing.assert_array_equal(seen[0][-1], np.clip(3 * BEST, -1, 1))


@every_planner
def test_a_proposal_that_is_not_finite_never_wins_and_is_counted(method, plan):
    """Not even under a score that prefers the plan that stands in its place."""
    bad = np.tile(OTHER, (3, 1, 1))
    bad[:, 0, 0] = np.nan, np.inf, -np.inf
    middle = np.zeros_like(BEST)
    found, after, statistics, _ = plan(method, np.stack([*bad, BEST]), middle)
    assert np.all(np.isfinite(found)) and all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(after))
    assert int(statistics["nonfinite"]) == {"cem": 9, "mppi": 9, "icem": 3, "random-shooting": 3}[method]
    # As if only the finite one had been proposed.
    alone, _, _, _ = plan(method, BEST[None], middle)
    np.testing.assert_allclose(found, alone, atol=1e-6)
    assert np.abs(alone).max() > 1e-3


@pytest.mark.parametrize(
    "method", ["icem", "random-shooting", *(pytest.param(name, marks=pytest.mark.promises) for name in ("cem", "mppi"))]
)
def test_no_proposals_of_some_shape_are_no_proposals(method, plan):
    *none, _ = plan(method)
    *empty, _ = plan(method, np.zeros((0, H, A), np.float32))
    jax.tree.map(np.testing.assert_array_equal, none, empty)


@pytest.mark.parametrize("shape", [(2, H + 1, A), (2, H, A + 1), (H, A)])
def test_proposals_of_another_horizon_or_action_are_refused(shape):
    with pytest.raises(AssertionError, match="shape"):
        search.admit(jnp.asarray(np.zeros(shape, np.float32)), H, SPACE)


@every_planner
def test_every_planner_refuses_another_horizon(method, plan):
    with pytest.raises(AssertionError, match="shape"):
        plan(method, np.zeros((2, H + 1, A), np.float32))


def test_proposals_of_choices():
    config = PlannerConfig("random-shooting", random_shooting=RandomShootingConfig(horizon=8, population=5))
    space = Discrete(6)
    planner, goal = planning.make(config, space), np.arange(8, dtype=np.int32) % 6

    @jax.jit
    def solve(proposals, bonus):
        """`bonus` is for a choice that does not exist."""
        hits = lambda actions, key: jnp.sum(actions == goal, dtype=float) + bonus * (actions[0] < 0)  # noqa: E731
        return planner.plan(problem_of_score(hits, space), planner.init(), jax.random.key(0), proposals)

    # A sequence with a choice that does not exist scores well, and is counted out.
    proposals = np.stack([goal, goal, goal])
    proposals[1:, 0] = 6, -1
    for bonus in (0.0, 100.0):
        found, _, statistics = solve(proposals, bonus)
        assert found.tolist() == goal.tolist() and int(statistics["nonfinite"]) == 2
    with pytest.raises(AssertionError):
        search.admit(jnp.asarray(np.zeros((2, 8), np.float32)), 8, space)


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


@pytest.mark.parametrize(
    ("make_policy", "proposals"),
    [
        (planning_policy, None),
        (planning_policy, propose),
        (open_loop_policy, propose),
        pytest.param(open_loop_policy, None, marks=pytest.mark.promises),
    ],
)
def test_a_policy_plans_with_the_settings_and_proposals_that_it_is_given(make_policy, proposals):
    planner, world = planning.make(SMALL["random-shooting"], SPACE), drift()
    observation, key = np.array([-0.4, 0.8], np.float32), jax.random.key(7)
    policy = make_policy(planner, world, particles, SPACE, proposals=proposals, **SETTINGS)

    @jax.jit
    def both(memory):
        """The policy's step, and the plan that it plays."""
        problem = make_problem(world, particles(observation), SPACE, **SETTINGS)
        if proposals is None:
            expected, _, _ = planner.plan(problem, (), key)
        else:
            search_key, proposal_key = jax.random.split(key)
            expected, _, _ = planner.plan(problem, (), search_key, propose(observation, proposal_key))
        return policy.act(memory, observation, key), expected

    memory = jax.jit(policy.init)(jax.random.key(1))
    for step in range(1 if make_policy is planning_policy else H):
        (action, _, memory), expected = both(memory)
        np.testing.assert_allclose(action, np.asarray(expected)[step], atol=1e-6)
