"""The cross-entropy method: identities, a replay of whole searches in NumPy, known accuracies."""

from math import erf

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxmbrl.core.config import UserError, check
from jaxmbrl.planning import cem, problem_of_score, unit_box
from jaxmbrl.planning.cem import CEMConfig

H, A = 3, 2
ONE, SPACE = unit_box(1), unit_box(A)


def draw(seed, population=12, dtype=np.float32):
    rng = np.random.default_rng(seed)
    sequences = rng.uniform(-1, 1, (population, H, A)).astype(dtype)
    mean, variance = rng.uniform(-1, 1, (H, A)).astype(dtype), rng.uniform(0.01, 1, (H, A)).astype(dtype)
    return mean, variance, sequences, rng.normal(size=population).astype(dtype)


refit = jax.jit(cem.refit, static_argnums=(4, 5))


def refit_in_numpy(mean, variance, population, returns, elites, momentum):
    ranked = np.where(np.isfinite(returns), returns, -np.inf)
    chosen = np.argsort(-ranked, kind="stable")[: min(elites, np.isfinite(returns).sum())]
    if len(chosen) == 0:
        return mean, variance
    best = population[chosen].astype(np.float64)
    middle = best.mean(axis=0)
    spread = ((best - middle) ** 2).mean(axis=0)
    return momentum * mean + (1 - momentum) * middle, momentum * variance + (1 - momentum) * spread


def quadratic(actions, key):
    return -jnp.sum((actions - 0.3) ** 2)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([1, 4, 12]), st.sampled_from([0.0, 0.1, 0.7]), st.integers(0, 12))
def test_refit_is_numpys(seed, elites, momentum, broken):
    """Fewer candidates than elites may be finite, and none."""
    mean, variance, population, returns = draw(seed)
    where = np.random.default_rng(seed).permutation(12)[:broken]
    returns[where] = np.resize([np.nan, np.inf, -np.inf], broken)
    found = refit(mean, variance, population, returns, elites, momentum)
    expected = refit_in_numpy(mean, variance, population, returns, elites, momentum)
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-5, atol=1e-6)


def test_all_elites_and_no_momentum_give_the_sample_mean():
    mean, variance, population, returns = draw(0)
    found, spread = refit(mean, variance, population, returns, 12, 0.0)
    np.testing.assert_allclose(found, population.astype(np.float64).mean(axis=0), atol=1e-7)
    np.testing.assert_allclose(spread, population.astype(np.float64).var(axis=0), rtol=1e-5)


def test_full_momentum_changes_nothing():
    mean, variance, population, returns = draw(0)
    found = refit(mean, variance, population, returns, 4, 1.0)
    np.testing.assert_array_equal(found[0], mean)
    np.testing.assert_array_equal(found[1], variance)
    with pytest.raises(UserError, match="momentum must be below 1"):
        check(CEMConfig(momentum=1.0))


def test_one_elite_in_one_iteration_is_the_best_sample(watched):
    seen = []
    planner = cem.make(CEMConfig(horizon=H, population=50, elites=1, iterations=1, momentum=0.0), SPACE)
    score = lambda x: -np.sum((x - 0.3) ** 2, axis=(-2, -1))  # noqa: E731
    problem = problem_of_score(watched(score, seen), SPACE)
    actions, _, _ = jax.jit(lambda: planner.plan(problem, planner.init(), jax.random.key(0)))()
    assert len(seen) == 1
    np.testing.assert_array_equal(actions, seen[0][np.argmax(score(seen[0]))])


def test_the_best_sample_of_clipped_normal_populations(watched):
    """With `best`, `deviation` and without `truncated`: the populations that were drawn are normal, clipped at the bounds,
    with NumPy's moments of the elites; the plan is the best sample of the last one."""
    config = CEMConfig(H, 200, 8, 3, momentum=0.0, min_variance=0.0, deviation=1.0, truncated=False, best=True)
    planner, seen = cem.make(config, SPACE), []
    score = lambda x: -np.sum((x - np.array([0.3, -0.95])) ** 2, axis=(-2, -1))  # noqa: E731
    run = jax.jit(lambda k: planner.plan(problem_of_score(watched(score, seen), SPACE), planner.init(), k))
    actions, after, _ = jax.device_get(jax.block_until_ready(run(jax.random.key(4))))
    mean, deviation = np.zeros((H, A)), np.ones((H, A))
    for population in seen:
        assert population.shape == (200, H, A) and np.abs(population).max() <= 1
        inside = np.abs(population) < 1
        standard = (population - mean) / deviation
        below = np.mean(standard < 0, axis=0)
        np.testing.assert_allclose(below[np.abs(mean) < 1], 0.5, atol=0.15)
        assert np.mean(inside) == pytest.approx(
            np.mean(
                [
                    [erf((1 - m) / s / 2**0.5) + erf((1 + m) / s / 2**0.5) for m, s in zip(*row, strict=True)]
                    for row in zip(mean, deviation, strict=True)
                ]
            )
            / 2,
            abs=0.03,
        )
        mean, variance = refit_in_numpy(mean, deviation**2, population, score(population), 8, 0.0)
        deviation = np.sqrt(variance)
    assert len(seen) == 3
    np.testing.assert_array_equal(actions, seen[-1][np.argmax(score(seen[-1]))])
    np.testing.assert_allclose(after.mean, np.concatenate([mean[1:], np.zeros((1, A))]), atol=1e-5)


@pytest.mark.parametrize("transform", [np.exp, np.cbrt, lambda x: 1e3 * x - 7e2, lambda x: np.sign(x) * x**2])
def test_refit_sees_the_order_of_returns_only(transform):
    mean, variance, population, returns = draw(1)
    plain = refit(mean, variance, population, returns, 4, 0.1)
    other = refit(mean, variance, population, transform(returns), 4, 0.1)
    np.testing.assert_array_equal(plain[0], other[0])
    np.testing.assert_array_equal(plain[1], other[1])


@pytest.mark.parametrize(
    ("size", "error", "deviation"),
    [
        (1, 4.8e-5, 3.5e-5),
        pytest.param(5, 3.0e-3, 1.0e-3, marks=pytest.mark.promises),
        (25, 0.045, 0.007),
    ],
)
def test_accuracy_on_a_quadratic(size, error, deviation):
    """Root mean square error of the mean after 5 iterations of 400 with 40 elites, momentum 0.1, no early stop."""
    planner = cem.make(CEMConfig(horizon=size, min_variance=0.0), ONE)
    plan = jax.vmap(lambda k: planner.plan(problem_of_score(quadratic, ONE), planner.init(), k)[0])
    found = np.asarray(jax.jit(lambda: plan(jax.random.split(jax.random.key(1), 50)))(), np.float64)
    errors = np.sqrt(np.mean((found - 0.3) ** 2, axis=(1, 2)))
    assert abs(errors.mean() - error) < 0.5 * deviation
    assert 0.5 * deviation < errors.std() < 1.6 * deviation


@pytest.mark.parametrize("min_variance", [1e-3, 0.02, 0.0])
def test_a_whole_search_replayed_in_numpy(min_variance, watched):
    """Given the populations that were drawn, NumPy says when to stop, what to return, and what they may look like."""
    config = CEMConfig(horizon=H, population=60, elites=8, iterations=7, momentum=0.2, min_variance=min_variance)
    planner, seen = cem.make(config, SPACE), []
    score = lambda x: -np.sum((x - np.array([0.3, -0.95])) ** 2, axis=(-2, -1))  # noqa: E731
    start = cem.PlanState(np.linspace(-0.6, 0.9, H * A, dtype=np.float32).reshape(H, A))
    run = jax.jit(lambda start, k: planner.plan(problem_of_score(watched(score, seen), SPACE), start, k))
    actions, after, statistics = jax.device_get(jax.block_until_ready(run(start, jax.random.key(4))))
    mean, variance = np.asarray(start.mean, np.float64), np.full((H, A), 0.25)
    for i, population in enumerate(seen):
        assert i == 0 or variance.max() > min_variance
        assert population.shape == (60, H, A)
        deviation = np.minimum(np.sqrt(variance), np.minimum(mean + 1, 1 - mean) / 2)
        standard = (population - mean) / deviation
        assert np.abs(standard).max() < 2 + 1e-4
        # Truncation at two deviations leaves 0.774 of the variance.
        assert standard.var() == pytest.approx(0.774, abs=0.12)
        mean, variance = refit_in_numpy(mean, variance, population, score(population), 8, 0.2)
    assert len(seen) == 7 or variance.max() <= min_variance
    assert len(seen) == (7 if min_variance == 0 else len(seen))
    assert (len(seen) < 7) == (min_variance == 0.02)
    np.testing.assert_allclose(actions, mean, atol=1e-5)
    np.testing.assert_array_equal(after.mean, np.concatenate([actions[1:], np.zeros((1, A))]))
    assert int(statistics["nonfinite"]) == 0


def test_the_stored_variance_is_not_constrained(watched):
    """At the edge nothing is left to draw from, but the variance that decides on stopping is still the elites'."""
    planner, seen = cem.make(CEMConfig(horizon=1, population=30, elites=5, iterations=4, momentum=0.9), ONE), []
    problem = problem_of_score(watched(lambda x: x[..., 0, 0], seen), ONE)
    plan = jax.jit(lambda: planner.plan(problem, cem.PlanState(jnp.ones((1, 1))), jax.random.key(0)))
    actions, _, _ = jax.block_until_ready(plan())
    assert len(seen) == 4
    np.testing.assert_array_equal(np.stack(seen), np.ones((4, 30, 1, 1)))
    np.testing.assert_array_equal(actions, np.ones((1, 1)))


@pytest.mark.parametrize("double", [False, True])
def test_bounds_hold_exactly(double):
    with jax.enable_x64(double):
        config = CEMConfig(horizon=4, population=64, elites=7, iterations=12, momentum=0.1, min_variance=0.0)
        planner = cem.make(config, unit_box(2))

        @jax.jit
        def plan(sign, state, seed):
            def objective(actions, key):
                return jnp.where(jnp.all(jnp.abs(actions) <= 1.0), sign * jnp.sum(actions), jnp.nan)

            return planner.plan(problem_of_score(objective, unit_box(2)), state, jax.random.key(seed))

        start = jax.jit(planner.init)()
        for sign in (-1.0, 1.0):
            state = start
            for i in range(6):
                actions, state, statistics = plan(sign, state, i)
                assert actions.dtype == state.mean.dtype == (jnp.float64 if double else jnp.float32)
                assert np.abs(np.asarray(actions)).max() <= 1.0
                assert int(statistics["nonfinite"]) == 0
                assert np.min(sign * np.asarray(actions)) > 0.0
                assert np.mean(sign * np.asarray(actions)) > 0.6


@pytest.mark.parametrize("elites", [1, 3, 7, 49])
def test_a_mean_of_values_at_the_bound_is_the_bound(elites):
    one = np.ones((1, 1), np.float32)
    many, returns = np.ones((49, 1, 1), np.float32), np.zeros(49, np.float32)

    @jax.jit
    def means(one, many, returns):
        return [cem.refit(one, one, many, returns, elites, momentum)[0] for momentum in (0.1, 0.3, 0.77)]

    assert all(1 - 1e-7 < float(np.asarray(mean)[0, 0]) <= 1.0 for mean in means(one, many, returns))


@pytest.fixture(scope="module")
def spoiled(watched):
    """`spoiled(bad)`: a plan for the largest first number, where those above 0 count as `bad`; and what was tried."""
    planner, seen = cem.make(CEMConfig(horizon=H, population=100, elites=10, iterations=3), SPACE), []
    recorded = watched(lambda population: population[..., 0, 0], seen)

    @jax.jit
    def plan(bad):
        def objective(actions, key):
            first = recorded(actions, key)
            return jnp.where(first > 0, bad, first)

        return planner.plan(problem_of_score(objective, SPACE), planner.init(), jax.random.key(0))

    def spoiled(bad):
        seen.clear()
        actions, _, statistics = jax.device_get(jax.block_until_ready(plan(bad)))
        return actions, statistics, list(seen)

    return spoiled


@pytest.mark.parametrize("bad", [np.nan, -np.inf, np.inf])
def test_what_is_not_finite_ranks_worst(bad, spoiled):
    """Half of the candidates, the ones that would win, are not finite."""
    actions, statistics, seen = spoiled(bad)
    assert np.all(np.isfinite(actions))
    assert int(statistics["nonfinite"]) == sum(int((p[:, 0, 0] > 0).sum()) for p in seen) > 100
    mean, variance = np.zeros((H, A)), np.full((H, A), 0.25)
    for population in seen:
        first = population[:, 0, 0]
        mean, variance = refit_in_numpy(mean, variance, population, np.where(first > 0, bad, first), 10, 0.1)
    np.testing.assert_allclose(actions, mean, atol=1e-5)
    assert -0.3 < actions[0, 0] < 0.0


@jax.jit
def plan_for_a_constant(value):
    planner = cem.make(CEMConfig(horizon=H, population=40, elites=6, iterations=3), SPACE)
    return planner.plan(problem_of_score(lambda a, k: value, SPACE), planner.init(), jax.random.key(0))


@pytest.mark.parametrize("value", [np.nan, -np.inf, 0.0, 5.0])
def test_a_constant_objective_is_safe(value):
    actions, after, statistics = jax.device_get(plan_for_a_constant(value))
    assert np.all(np.abs(actions) <= 1.0)
    assert np.all(np.abs(after.mean) <= 1.0)
    assert int(statistics["nonfinite"]) == (0 if np.isfinite(value) else 120)


def test_many_states_at_once_are_planned_as_one_by_one():
    """Searches that stop at different iterations do not disturb each other."""
    planner = cem.make(CEMConfig(horizon=H, population=60, elites=6, iterations=8, min_variance=5e-3), SPACE)
    goals, seeds = np.linspace(-1, 1, 5, dtype=np.float32), np.arange(5)
    starts = np.random.default_rng(2).uniform(-1, 1, (5, H, A)).astype(np.float32)

    def plan(goal, start, seed):
        def objective(actions, key):
            value = -jnp.sum(jnp.abs(actions - goal)) + 0.01 * jax.random.normal(key)
            return jnp.where(jnp.isfinite(value), value, jnp.nan)

        return planner.plan(problem_of_score(objective, SPACE), cem.PlanState(start), jax.random.key(seed))

    together = jax.device_get(jax.jit(jax.vmap(plan))(goals, starts, seeds))
    alone = jax.jit(plan)
    for i in range(5):
        one = alone(goals[i], starts[i], seeds[i])
        jax.tree.map(lambda a, b, i=i: np.testing.assert_allclose(a[i], b, atol=2e-6), together, one)


def test_the_last_plan_is_where_the_next_search_starts(watched):
    planner, seen = cem.make(CEMConfig(horizon=4, population=500, elites=20, iterations=1), ONE), []
    problem = problem_of_score(watched(lambda x: x[..., 0, 0], seen), ONE)
    start = np.array([[0.9], [-0.9], [0.5], [0.0]], np.float32)

    @jax.jit
    def plan():
        return planner.plan(problem, cem.PlanState(jnp.asarray(start)), jax.random.key(0)), planner.init()

    _, first = jax.block_until_ready(plan())
    np.testing.assert_allclose(seen[0].mean(axis=0), start, atol=0.1)
    np.testing.assert_array_equal(first.mean, np.zeros((4, 1)))


def test_candidates_of_an_iteration_share_their_noise_and_iterations_do_not():
    planner, noise = cem.make(CEMConfig(horizon=1, population=6, elites=2, iterations=4, min_variance=0.0), ONE), []

    def objective(actions, key):
        value = jax.ShapeDtypeStruct((), actions.dtype)
        record = lambda bits, x: (noise.append(np.array(bits)), np.zeros(x.shape, x.dtype))[1]  # noqa: E731
        return jax.pure_callback(record, value, jax.random.bits(key), actions[0, 0], vmap_method="expand_dims")

    plan = jax.jit(lambda: planner.plan(problem_of_score(objective, ONE), planner.init(), jax.random.key(0)))
    jax.block_until_ready(plan())
    assert len(noise) == 4
    assert all(len(np.unique(x)) == 1 for x in noise)
    assert len({int(x.ravel()[0]) for x in noise}) == 4


def test_no_more_elites_than_candidates():
    with pytest.raises(UserError, match=r"elites must be at most population \(10\), got 11"):
        check(CEMConfig(population=10, elites=11))
