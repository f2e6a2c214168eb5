"""Planners in boxes of other bounds than [-1, 1], and in discrete spaces; the spaces that each refuses."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmbrl import planning
from jaxmbrl.core.config import UserError
from jaxmbrl.core.spaces import Box, Discrete
from jaxmbrl.core.types import Transition, World
from jaxmbrl.planning import (
    CEMConfig,
    ICEMConfig,
    MPPIConfig,
    PlannerConfig,
    RandomShootingConfig,
    planning_policy,
    problem_of_score,
    unit_box,
)

H, A = 3, 2
SMALL = {
    "cem": PlannerConfig("cem", cem=CEMConfig(horizon=H, population=40, elites=5, iterations=4, min_variance=0.03)),
    "icem": PlannerConfig("icem", icem=ICEMConfig(horizon=H, population=24, elites=4, iterations=3, kept=0.5)),
    "mppi": PlannerConfig("mppi", mppi=MPPIConfig(horizon=H, population=30, iterations=2, temperature=0.3)),
    "random-shooting": PlannerConfig("random-shooting", random_shooting=RandomShootingConfig(horizon=H, population=200)),
}
every_planner = pytest.mark.parametrize("method", sorted(SMALL))
# Bounds that are no binary fractions, as a float32 has them.
UNIT, OTHER = unit_box(A), Box((A,), -0.7, 0.3)


def to_other(actions):
    """[-1, 1] mapped onto [-0.7, 0.3]."""
    return -0.2 + 0.5 * actions


@pytest.fixture(scope="module")
def searched(watched):
    """`searched(method, box, score, plans)`: successive plans in `box` [plans, H, A], and all populations scored."""
    asked, seen = [None], []
    # Looked up when it is called, for a compiled plan is asked with several scores.
    objective = watched(lambda population: (asked[0])(population), seen)  # noqa: PLW0108

    @functools.cache
    def compiled(method, box):
        planner = planning.make(SMALL[method], box)
        problem = problem_of_score(objective, box)
        return jax.jit(lambda state, key: planner.plan(problem, state, key)), jax.jit(planner.init)()

    def searched(method, box, score, plans=3):
        plan, state = compiled(method, box)
        asked[0], found = score, []
        seen.clear()
        for i in range(plans):
            actions, state, _ = jax.block_until_ready(plan(state, jax.random.key(i)))
            found.append(np.asarray(actions))
        return np.stack(found), list(seen)

    return searched


@every_planner
def test_a_search_in_another_box_is_the_search_in_the_unit_box_mapped_onto_it(method, searched):
    """Also where it stops: CEM's least variance is in units of the range."""
    goal = np.array([0.4, -0.9], np.float32)
    unit, tried = searched(method, UNIT, lambda x: -np.sum((x - goal) ** 2, axis=(-2, -1)))
    inverse = lambda x: (x + 0.2) / 0.5  # noqa: E731
    mapped, others = searched(method, OTHER, lambda x: -np.sum((inverse(x) - goal) ** 2, axis=(-2, -1)))
    np.testing.assert_allclose(mapped, to_other(unit), atol=1e-5)
    assert [x.shape for x in tried] == [x.shape for x in others]
    for one, other in zip(tried, others, strict=True):
        np.testing.assert_allclose(other, to_other(one), atol=1e-5)


@every_planner
def test_actions_stay_within_the_box_and_reach_its_ends(method, searched):
    corner, low, high = np.array([1.0, -1.0]), np.float32(-0.7), np.float32(0.3)
    found, seen = searched(method, OTHER, lambda x: np.sum(corner * x, axis=(-2, -1)), plans=6)
    population = np.concatenate([x.reshape(-1, A) for x in seen])
    assert population.min() >= low and population.max() <= high and found.min() >= low and found.max() <= high
    assert population.min() < -0.65 and population.max() > 0.25
    assert np.mean(found[-1][:, 0]) > -0.15 and np.mean(found[-1][:, 1]) < -0.25


@every_planner
def test_where_nothing_is_finite_the_middle_of_the_box_is_the_plan(method, searched):
    (actions,), _ = searched(method, OTHER, lambda x: np.full(len(x), np.nan), plans=1)
    np.testing.assert_allclose(actions, np.full((H, A), -0.2), atol=1e-6)


def choices(population=400, n=3):
    return planning.make(
        PlannerConfig("random-shooting", random_shooting=RandomShootingConfig(horizon=H, population=population)),
        Discrete(n),
    )


def test_random_shooting_over_choices(watched):
    """Int32 sequences [H], all 27 of them about equally often, and the best of them is the plan."""
    planner, seen, goal = choices(population=2700), [], np.array([2, 0, 1])
    score = lambda x: -np.sum((x - goal) ** 2, axis=-1).astype(np.float32)  # noqa: E731

    def objective(actions, key):
        record = lambda x: (seen.append(np.array(x)), score(seen[-1]))[1]  # noqa: E731
        value = jax.ShapeDtypeStruct((), jnp.float32)
        return jax.pure_callback(record, value, actions, vmap_method="broadcast_all")

    problem = problem_of_score(objective, Discrete(3))
    plan = jax.jit(lambda: planner.plan(problem, planner.init(), jax.random.key(0)))
    actions, state, statistics = jax.block_until_ready(plan())
    assert actions.dtype == jnp.int32 and actions.tolist() == [2, 0, 1]
    assert state == () and int(statistics["nonfinite"]) == 0
    (population,) = seen
    assert population.shape == (2700, H) and population.dtype == np.int32
    rows = [tuple(row) for row in population.tolist()]
    counts = np.array([rows.count(row) for row in itertools.product(range(3), repeat=3)])
    assert counts.sum() == 2700
    # Chi-squared with 26 degrees of freedom: 99.9 % lie below 54.
    assert ((counts - 100) ** 2 / 100).sum() < 54


def test_where_nothing_is_finite_the_plan_is_choice_0():
    planner = choices()
    problem = problem_of_score(lambda actions, key: jnp.inf + jnp.sum(actions), Discrete(3))
    actions, _, statistics = jax.jit(lambda: planner.plan(problem, planner.init(), jax.random.key(0)))()
    assert actions.tolist() == [0, 0, 0] and int(statistics["nonfinite"]) == 400


def test_a_policy_of_choices_plays_an_int32():
    """A walk on the integers that is paid for being near 2."""

    def step(carry, action, key):
        after = carry + action.astype(float) - 1
        no = jnp.zeros((), bool)
        return after, Transition(carry, action, -jnp.abs(after[0] - 2), after, no, no)

    world = World(reset=None, start=lambda origin, key: origin, observe=lambda carry: carry, step=step)
    policy = planning_policy(choices(), world, lambda observation: observation, Discrete(3))
    act, played = jax.jit(policy.act), []
    for place in (-3.0, 2.0, 5.0):
        action, _, _ = act(policy.init(jax.random.key(0)), np.array([place], np.float32), jax.random.key(1))
        assert action.shape == () and action.dtype == jnp.int32
        played.append(int(action))
    assert played == [2, 1, 0]


def test_icem_refuses_choices_and_names_the_planners_that_take_them():
    with pytest.raises(UserError) as refused:
        planning.make(SMALL["icem"], Discrete(4))
    assert str(refused.value) == (
        "icem needs continuous actions, got 4 choices: use cem, mppi or random-shooting, which plan both"
    )


@every_planner
def test_boxes_that_cannot_be_searched_are_refused(method):
    with pytest.raises(UserError) as refused:
        planning.make(SMALL[method], Box((2,), 0.0))
    assert str(refused.value) == f"{method} needs bounded actions, got bounds [0.0, inf]"
    with pytest.raises(UserError) as refused:
        planning.make(SMALL[method], Box((8, 8, 1), 0, 255, "uint8"))
    assert str(refused.value) == f"{method} needs vectors of real numbers as actions, got uint8 [8, 8, 1]"


@every_planner
def test_a_problem_of_another_space_is_refused(method):
    planner = planning.make(SMALL[method], UNIT)
    problem = problem_of_score(lambda actions, key: jnp.sum(actions), OTHER)
    with pytest.raises(ValueError, match="the planner was made for actions in Box"):
        planner.plan(problem, planner.init(), jax.random.key(0))
