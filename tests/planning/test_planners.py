"""What every planner promises: bounds, returns that are not finite, ties, many states at once, warm start, reset."""

import dataclasses
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmbrl import envs
from jaxmbrl import planning as planners
from jaxmbrl.core.config import UserError, check
from jaxmbrl.core.types import Planner
from jaxmbrl.planning import PLANNERS, PlannerConfig, make_problem, planning_policy, problem_of_score, unit_box
from jaxmbrl.planning.cem import CEMConfig
from jaxmbrl.planning.gradient import GradientConfig
from jaxmbrl.planning.icem import ICEMConfig
from jaxmbrl.planning.ilqr_planner import ILQRConfig
from jaxmbrl.planning.mppi import MPPIConfig
from jaxmbrl.planning.random_shooting import RandomShootingConfig
from jaxmbrl.rollout import auto_reset, rollout

H, A = 3, 2
ONE, SPACE = unit_box(1), unit_box(A)
SMALL = {
    "cem": CEMConfig(horizon=H, population=30, elites=5, iterations=2, momentum=0.0, min_variance=0.0),
    "icem": ICEMConfig(horizon=H, population=24, elites=4, iterations=2, momentum=0.0, kept=0.5),
    "mppi": MPPIConfig(horizon=H, population=30, iterations=2, temperature=0.5),
    "random-shooting": RandomShootingConfig(horizon=H, population=60),
}
DIFFERENTIATING = {
    "gradient": GradientConfig(horizon=H, iterations=2),
    "ilqr": ILQRConfig(horizon=H, first_iterations=2),
}
"""They are not given scores that NumPy computes: `test_gradient.py` and `test_ilqr.py` are their own."""
every_planner = pytest.mark.parametrize("method", sorted(SMALL))
one_a_kind = pytest.mark.parametrize(
    "method",
    [
        *sorted(SMALL.keys() - {"mppi", "random-shooting"}),
        *(pytest.param(method, marks=pytest.mark.promises) for method in ("mppi", "random-shooting")),
    ],
)


def settings_of(method, **changes):
    known = {field.name for field in dataclasses.fields(SMALL[method])}
    return dataclasses.replace(SMALL[method], **{name: value for name, value in changes.items() if name in known})


def build(method, action=SPACE, **changes):
    config = PlannerConfig(method, **{method.replace("-", "_"): settings_of(method, **changes)})
    return planners.make(check(config), action)


def distance(actions, key):
    return -jnp.sum((actions - 0.3) ** 2)


@pytest.fixture(scope="module")
def search(watched):
    """`search(method, score, state, key, **changes)`: a plan, and the populations that NumPy's `score` was asked about."""
    compiled, asked, seen = {}, [None], []

    def plan(method, function, state, key, **changes):
        config = settings_of(method, **changes)
        planner = build(method, **changes)
        if config not in compiled:
            # Looked up when it is called, for a compiled plan is asked with many scores.
            objective = watched(lambda population: (asked[0])(population), seen)  # noqa: PLW0108
            run = jax.jit(lambda state, key: planner.plan(problem_of_score(objective, SPACE), state, key))
            compiled[config] = run, jax.jit(planner.init)()
        run, first = compiled[config]
        asked[0] = function
        seen.clear()
        found = jax.block_until_ready(run(first if state is None else state, key))
        actions, after, statistics = jax.device_get(found)
        return actions, after, int(statistics["nonfinite"]), list(seen)

    return plan


def leaves_equal(one, other):
    return all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True))


def test_every_planner_is_here_and_can_be_chosen():
    choices = typing.get_args(typing.get_type_hints(PlannerConfig)["method"])
    known = SMALL | DIFFERENTIATING
    assert set(choices) == set(PLANNERS) == set(known)
    task = envs.make("cartpole-continuous")
    start = jax.eval_shape(task.env.reset, jax.random.key(0))
    for i, method in enumerate(sorted(known)):
        settings = dataclasses.replace(known[method], horizon=4 + i)
        config = PlannerConfig(method, **{method.replace("-", "_"): settings})
        assert config.chosen == settings
        assert config.horizon == 4 + i
        planner = planners.make(config, ONE)
        assert planner.horizon == 4 + i

        def plan(start, key, made=planner):
            return made.plan(make_problem(task.world, start, ONE), made.init(), key)

        actions, after, statistics = jax.eval_shape(plan, start, jax.random.key(0))
        assert actions.shape == (4 + i, 1)
        assert jax.tree.map(lambda x: x.dtype, after) == jax.tree.map(lambda x: x.dtype, jax.eval_shape(planner.init))
        assert statistics["nonfinite"].dtype == jnp.int32


@every_planner
def test_bounds_hold_exactly(method, search):
    """Of all candidates and plans, where the best is a corner of the bounds."""
    state, corner = None, np.array([1.0, -1.0])
    for i in range(6):
        score = lambda x: np.sum(corner * x, axis=(-2, -1))  # noqa: E731
        actions, state, nonfinite, seen = search(method, score, state, jax.random.key(i))
        assert actions.dtype == np.float32
        assert np.abs(actions).max() <= 1.0
        assert np.mean(corner * actions) > 0.2
        assert 0.9 < max(np.abs(population).max() for population in seen) <= 1.0
        assert nonfinite == 0


@every_planner
def test_double_precision_stays(method):
    """And with it the bounds."""
    with jax.enable_x64(True):
        planner = build(method)

        def objective(actions, key):
            return jnp.where(jnp.all(jnp.abs(actions) <= 1.0), jnp.sum(actions), jnp.nan)

        plan = jax.jit(lambda state, key: planner.plan(problem_of_score(objective, SPACE), state, key))
        state = jax.jit(planner.init)()
        dtypes = jax.tree.map(lambda x: x.dtype, state)
        for i in range(4):
            actions, state, statistics = plan(state, jax.random.key(i))
            assert actions.dtype == jnp.float64
            assert np.any(np.asarray(actions) != np.asarray(actions, np.float32))
            assert np.abs(np.asarray(actions)).max() <= 1.0
            assert statistics["nonfinite"].dtype == jnp.int32
            assert jax.tree.map(lambda x: x.dtype, state) == dtypes
            assert int(statistics["nonfinite"]) == 0


@every_planner
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_where_one_candidate_is_finite_it_is_the_plan(method, bad, search):
    def score(population):
        total = population.sum(axis=(-2, -1))
        return np.where(total == total.min(), -5.0, bad)

    actions, after, nonfinite, (population,) = search(method, score, None, jax.random.key(1), iterations=1)
    np.testing.assert_array_equal(actions, population[np.argmin(population.sum(axis=(-2, -1)))])
    assert nonfinite == len(population) - 1
    if method == "icem":
        np.testing.assert_array_equal(after.known, [True, False])


@every_planner
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_where_nothing_is_finite_the_old_plan_stays(method, bad, search):
    _, state, _, _ = search(method, lambda x: -np.sum((x - 0.3) ** 2, axis=(-2, -1)), None, jax.random.key(1))
    actions, after, nonfinite, seen = search(method, lambda x: np.full(len(x), bad), state, jax.random.key(2))
    np.testing.assert_array_equal(actions, np.zeros((H, A)) if state == () else state.mean)
    assert nonfinite == sum(len(population) for population in seen)
    assert len(seen) == (1 if method == "random-shooting" else 2)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(after))
    if method == "icem":
        assert not np.any(after.known)


@every_planner
def test_what_is_not_finite_leaves_no_trace(method, search):
    """Fewer candidates are finite than there are elites: the plan is within the range of those."""

    def score(population):
        total = population.sum(axis=(-2, -1))
        return np.where(total > np.sort(total)[2], np.nan, -total)

    actions, _, nonfinite, (population,) = search(method, score, None, jax.random.key(3), iterations=1)
    finite = population[np.argsort(population.sum(axis=(-2, -1)))[:3]]
    assert nonfinite == len(population) - 3
    assert np.all((finite.min(axis=0) - 1e-6 < actions) & (actions < finite.max(axis=0) + 1e-6))


@every_planner
@pytest.mark.parametrize("value", [0.0, 1e30, -7.0])
def test_a_constant_objective_is_safe(method, value, search):
    actions, after, nonfinite, _ = search(method, lambda x: np.full(len(x), value), None, jax.random.key(0))
    assert np.all(np.abs(actions) <= 1.0)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(after))
    assert nonfinite == 0


@one_a_kind
def test_many_states_at_once_are_planned_as_one_by_one(method):
    """Up to rounding, and so up to ties that rounding decides."""
    planner = build(method)
    goals, seeds = np.linspace(-1, 1, 5, dtype=np.float32), np.arange(5)

    def plan(goal, state, seed):
        key = jax.random.key(seed)

        def objective(actions, key):
            return -jnp.sum((actions - goal) ** 2) + 0.01 * jnp.sum(actions * jax.random.normal(key, actions.shape))

        return planner.plan(problem_of_score(objective, SPACE), state, key)

    many, alone = jax.jit(jax.vmap(plan)), jax.jit(plan)
    fresh = jax.jit(lambda: jax.tree.map(lambda x: jnp.stack([x] * 5), planner.init()))()
    starts = jax.device_get(many(goals, fresh, seeds)[1])
    together = jax.device_get(many(goals, starts, seeds))
    for i in (0, 3):
        one = alone(goals[i], jax.tree.map(lambda x, i=i: x[i], starts), seeds[i])
        jax.tree.map(lambda a, b, i=i: np.testing.assert_allclose(a[i], b, atol=3e-6), together, one)
    assert np.corrcoef(together[0][:, 0, 0], goals)[0, 1] > 0.6


@every_planner
def test_the_same_key_gives_the_same_plan(method, search):
    score = lambda x: -np.sum((x - 0.3) ** 2, axis=(-2, -1))  # noqa: E731
    one, again, other = (search(method, score, None, jax.random.key(seed)) for seed in (5, 5, 6))
    assert leaves_equal(one, again)
    assert not np.any(one[0] == other[0])


@every_planner
def test_the_smallest_search(method, search):
    """One step ahead, as few candidates as there may be."""
    least = {"horizon": 1, "population": 2 if method == "icem" else 1, "elites": 1, "iterations": 1, "kept": 1.0}
    state = None
    for i in range(3):
        actions, state, _, seen = search(method, lambda x: -x[:, 0, 0], state, jax.random.key(i), **least)
        assert actions.shape == (1, A)
        assert np.all(np.abs(actions) <= 1.0)
        assert [len(population) for population in seen] == [3 if method == "icem" else 1]


@pytest.mark.parametrize(
    ("method", "changes", "message"),
    [
        ("cem", {"elites": 31}, "cem.elites must be at most population (30), got 31"),
        ("icem", {"elites": 13}, "icem.elites must be at most half of population (24), got 13"),
        ("icem", {"population": 1}, "icem.population must be at least 2, got 1"),
        ("icem", {"kept": 0.2}, "icem.kept must be 0 or keep at least one of the 4 elites, got 0.2"),
        ("icem", {"kept": 1.1}, "icem.kept must be at most 1, got 1.1"),
        ("icem", {"decay": 0.9}, "icem.decay must be at least 1, got 0.9"),
        ("icem", {"deviation": 0.0}, "icem.deviation must be above 0, got 0.0"),
        ("mppi", {"temperature": 0.0}, "mppi.temperature must be above 0, got 0.0"),
        ("mppi", {"smoothing": 0.0}, "mppi.smoothing must be above 0, got 0.0"),
        ("random-shooting", {"population": 0}, "random_shooting.population must be at least 1, got 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(method, changes, message):
    with pytest.raises(UserError) as refused:
        build(method, **changes)
    assert str(refused.value) == message


@one_a_kind
def test_a_plan_starts_from_the_last_one_and_anew_with_each_episode(method):
    """On the cart and pole, as seen by planners that want to push, whatever ends: so episodes end soon."""
    task, planner = envs.make("cartpole-continuous"), build(method, action=ONE, horizon=8, iterations=1)

    def step(carry, action, key):
        carry, row = task.world.step(carry, action, key)
        return carry, row._replace(reward=action[0], terminated=jnp.zeros((), bool))

    def plan(problem, state, key, proposals):
        actions, after, _ = planner.plan(problem, state, key, proposals)
        return actions, after, (state, after, actions)

    world = task.world._replace(observe=lambda carry: carry[0])
    policy = planning_policy(Planner(planner.init, plan, 8), task.world._replace(step=step), lambda state: state, ONE)
    collector, policy = auto_reset(world, policy)

    @jax.jit
    def played():
        start = (collector.reset(jax.random.key(0)), policy.init(jax.random.key(1)))
        return rollout(collector, policy, start, jax.random.key(2), 60)[1], planner.init()

    steps, first = jax.device_get(played())
    before, after, actions = steps.extras
    assert np.array_equal(steps.action, actions[:, 0])
    ended = steps.terminated
    assert 2 <= ended.sum() < 20
    for i in range(60):
        state = jax.tree.map(lambda x, i=i: x[i], before)
        fresh = i == 0 or ended[i - 1]
        assert leaves_equal(state, first if fresh else jax.tree.map(lambda x, i=i: x[i - 1], after))
    if method != "random-shooting":
        assert np.all(np.abs(after.mean).max(axis=(1, 2)) > 0)
