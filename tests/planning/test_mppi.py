"""MPPI: limits of its average, whole plans replayed in NumPy from the noise that was drawn, and its accuracy."""

import dataclasses
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxmbrl.core.config import UserError, check
from jaxmbrl.planning import mppi, problem_of_score, unit_box
from jaxmbrl.planning.mppi import MPPIConfig

H, A = 4, 2
ONE, SPACE = unit_box(1), unit_box(A)


def draw(seed, count=12):
    rng = np.random.default_rng(seed)
    return rng.uniform(-1, 1, (H, A)), rng.uniform(-1, 1, (count, H, A)), rng.normal(size=count) * 3


def average_in_numpy(mean, population, returns, temperature):
    finite = np.isfinite(returns)
    if not finite.any():
        return mean
    weight = np.array([np.exp((r - returns[finite].max()) / temperature) for r in returns[finite]])
    return np.tensordot(weight / weight.sum(), population[finite], 1)


def candidates_in_numpy(mean, played, noise, smoothing):
    tried = np.zeros_like(noise)
    for n in range(noise.shape[0]):
        before = played
        for t in range(noise.shape[1]):
            before = tried[n, t] = np.clip(smoothing * (mean[t] + noise[n, t]) + (1 - smoothing) * before, -1, 1)
    return tried


@partial(jax.jit, static_argnums=3)
def average(mean, population, returns, temperature):
    return mppi.average(mean, population, returns, temperature, SPACE)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([1e-3, 0.5, 20.0]), st.integers(0, 12))
def test_the_average_is_numpys(seed, temperature, broken):
    mean, population, returns = draw(seed)
    returns[:broken] = np.resize([np.nan, np.inf, -np.inf], broken)
    with jax.enable_x64(True):
        found = average(mean, population, returns, temperature)
    np.testing.assert_allclose(found, average_in_numpy(mean, population, returns, temperature), rtol=1e-12, atol=1e-14)


def test_limits_of_the_temperature():
    mean, population, returns = (x.astype(np.float32) for x in draw(0))
    best = population[np.argmax(returns)]
    sample_mean = population.astype(np.float64).mean(axis=0)
    np.testing.assert_array_equal(average(mean, population, returns, 1e-6), best)
    # Returns so large that a division before the subtraction would overflow.
    np.testing.assert_array_equal(average(mean, population, np.float32(1e36) * returns, 1e-6), best)
    np.testing.assert_allclose(average(mean, population, returns, 1e9), sample_mean, atol=1e-6)
    np.testing.assert_allclose(average(mean, population, np.full(12, -8e5, np.float32), 1.0), sample_mean, atol=1e-6)


@pytest.mark.parametrize("constant", [-3.0, 512.0, 2.0**14])
def test_a_constant_added_to_the_returns_changes_nothing(constant):
    """Exactly, for returns that the sum holds without rounding."""
    mean, population, returns = (x.astype(np.float32) for x in draw(1))
    returns = np.round(returns * 64) / 64
    plain = average(mean, population, returns, 0.7)
    np.testing.assert_array_equal(plain, average(mean, population, returns + np.float32(constant), 0.7))


@pytest.mark.parametrize("count", [1, 3, 49, 1000])
def test_an_average_of_values_at_the_bound_is_the_bound(count):
    returns = np.random.default_rng(0).normal(size=count).astype(np.float32)
    found = jax.jit(lambda *x: mppi.average(*x, 1.0, ONE))(np.zeros((1, 1)), np.ones((count, 1, 1)), returns)
    assert 1 - 1e-6 < np.asarray(found)[0, 0] <= 1.0


@pytest.mark.parametrize("smoothing", [1.0, 0.9, 0.3])
def test_candidates_are_numpys(smoothing):
    """Where actions are clipped, the next one leans towards what was played."""
    mean, noise, _ = draw(2)
    played = np.array([0.8, -0.4])
    with jax.enable_x64(True):
        found = np.asarray(jax.jit(lambda *x: mppi.candidates(*x, smoothing, SPACE))(mean, played, 2 * noise))
    np.testing.assert_allclose(found, candidates_in_numpy(mean, played, 2 * noise, smoothing), rtol=0, atol=1e-15)
    assert (np.abs(found) == 1).any()
    if smoothing == 1.0:
        np.testing.assert_array_equal(found, np.clip(mean + 2 * noise, -1, 1))


@pytest.fixture
def x64_in_callbacks():
    """In float64 in all threads: callbacks run in others than the test."""
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


def test_plans_replayed_in_numpy(watched, monkeypatch, x64_in_callbacks):
    """Three plans in a row, in double precision, from the noise that was drawn."""
    config = MPPIConfig(horizon=H, population=15, iterations=3, temperature=0.4, deviation=0.6, smoothing=0.7)
    score = lambda x: -np.sum((x - np.array([0.3, -0.9])) ** 2, axis=(-2, -1))  # noqa: E731
    drawn, tried = [], []
    true = jax.random.normal

    def record(noise):
        drawn.append(np.array(noise))
        return drawn[-1]

    def normal(*args, **kwargs):
        noise = true(*args, **kwargs)
        return jax.pure_callback(record, noise, noise)

    monkeypatch.setattr(jax.random, "normal", normal)
    planner = mppi.make(config, SPACE)
    problem = problem_of_score(watched(score, tried), SPACE)
    plan = jax.jit(lambda state, seed: planner.plan(problem, state, jax.random.key(seed)))
    state = jax.jit(planner.init)()
    mean, played = np.zeros((H, A)), np.zeros(A)
    for i in range(3):
        drawn.clear()
        tried.clear()
        actions, state, _ = jax.block_until_ready(plan(state, i))
        assert [x.shape for x in drawn] == [(15, H, A)] * 3
        assert len({x.tobytes() for x in drawn}) == 3
        for noise, population in zip(drawn, tried, strict=True):
            xs = candidates_in_numpy(mean, played, 0.6 * noise, 0.7)
            np.testing.assert_allclose(population, xs, rtol=0, atol=1e-13)
            mean = average_in_numpy(mean, xs, score(xs), 0.4)
        np.testing.assert_allclose(actions, mean, rtol=0, atol=1e-13)
        mean, played = np.array([*mean[1:], np.zeros(A)]), mean[0]
        np.testing.assert_allclose(state.mean, mean, rtol=0, atol=1e-13)
        np.testing.assert_allclose(state.played, played, rtol=0, atol=1e-13)


def moved_in_numpy(mean, deviation, population, returns, temperature, low, high):
    """Mean and deviation after an iteration."""
    finite = np.isfinite(returns)
    if not finite.any():
        return mean, deviation
    weight = np.exp((returns[finite] - returns[finite].max()) / temperature)
    middle = np.tensordot(weight / weight.sum(), population[finite], 1)
    spread = np.sqrt(np.tensordot(weight / weight.sum(), (population[finite] - middle) ** 2, 1))
    return middle, np.clip(spread, low, high)


@pytest.mark.parametrize("broken", [0, 5, 12])
def test_the_refitted_deviation_is_numpys(broken):
    mean, population, returns = draw(3)
    returns[:broken] = np.nan
    before = np.full((H, A), 0.7)

    @jax.jit
    def refit(mean, before, population, returns):
        middle = mppi.average(mean, population, returns, 5.0, SPACE)
        return middle, mppi.refitted_deviation(before, middle, population, returns, 5.0, 0.4, 0.6)

    with jax.enable_x64(True):
        found = refit(mean, before, population, returns)
    due = moved_in_numpy(mean, before, population, returns, 5.0, 0.4, 0.6)
    for x, y in zip(found, due, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-12)
    if broken == 0:
        assert len(set(np.round(due[1].ravel(), 6))) > 3


def test_plans_are_drawn_by_their_weights():
    """Returns that differ by temperature * ln 3 are drawn as 3 to 1; those that are not finite are never drawn."""
    population = np.arange(4.0)[:, None, None] * np.ones((1, H, A))
    returns = np.array([1.0, 1.0 + 0.5 * np.log(3), np.nan, np.inf])

    @jax.jit
    def drawn(keys, mean, population, returns):
        found = jax.vmap(lambda key: mppi.draw(key, mean, population, returns, 0.5))(keys)
        return found[:, 0, 0]

    given = jax.random.split(jax.random.key(0), 4000), -np.ones((H, A)), population
    shares = np.bincount(np.asarray(drawn(*given, returns), int), minlength=4) / 4000
    np.testing.assert_allclose(shares, [0.25, 0.75, 0, 0], atol=0.03)
    assert set(np.asarray(drawn(*given, np.full(4, np.nan)))) == {-1.0}


TDMPC = MPPIConfig(
    horizon=H, population=40, iterations=3, temperature=0.2, deviation=0.9, smoothing=1.0, elites=9, min_deviation=0.1
)


def test_a_search_with_elites_replayed_in_numpy(watched):
    """Each population is sampled around the mean of the elites of the one before, with their deviation; the state holds the
    last ones. As many elites as candidates and an infinite temperature give the mean of the samples."""
    score = lambda x: -np.sum((x - np.array([0.3, -0.9])) ** 2, axis=(-2, -1))  # noqa: E731
    key = jax.random.key(4)

    def plan(config, tried):
        problem, planner = problem_of_score(watched(score, tried), SPACE), mppi.make(config, SPACE)
        return jax.block_until_ready(jax.jit(lambda: planner.plan(problem, planner.init(), key)[:2])())

    tried = []
    actions, state = plan(TDMPC, tried)
    mean, deviation = np.zeros((H, A)), np.full((H, A), 0.9)
    for population in tried:
        inside = np.abs(population) < 1
        standard = ((population - mean) / deviation)[inside]
        assert abs(np.mean(standard**2) - 1) < 0.6 or population is tried[0]
        returns = score(population)
        best = np.argsort(-returns, kind="stable")[:9]
        mean, deviation = moved_in_numpy(mean, deviation, population[best], returns[best], 0.2, 0.1, 0.9)
    np.testing.assert_allclose(actions, mean, atol=2e-6)
    np.testing.assert_allclose(state.deviation, deviation[0], atol=2e-6)
    assert (deviation < 0.9).all() and len(tried) == 3
    even = dataclasses.replace(TDMPC, iterations=1, elites=40, temperature=math.inf)
    tried.clear()
    actions, _ = plan(even, tried)
    np.testing.assert_allclose(actions, tried[0].mean(axis=0), atol=1e-6)
    # A drawn plan is one of the last elites, and the next search begins from their mean.
    tried.clear()
    actions, state = plan(dataclasses.replace(even, drawn=True), tried)
    assert (np.abs(tried[0] - np.asarray(actions)).max(axis=(1, 2)) == 0).any()
    np.testing.assert_allclose(state.mean[:-1], tried[0].mean(axis=0)[1:], atol=1e-6)
    np.testing.assert_array_equal(state.played, actions[0])


def test_settings_of_the_elites_that_do_not_fit():
    for changes, message in (
        ({"elites": 41}, r"^elites must be at most population \(40\), got 41$"),
        ({"min_deviation": 1.0}, r"^min_deviation must be at most deviation \(0.9\), got 1.0$"),
    ):
        with pytest.raises(UserError, match=message):
            check(dataclasses.replace(TDMPC, **changes))


def error(population, iterations):
    """Root mean square error over 40 plans for the minimum of |x - 0.3|^2 in 5 dimensions."""
    config = MPPIConfig(
        horizon=5, population=population, iterations=iterations, temperature=0.02, deviation=0.2, smoothing=1.0
    )
    planner = mppi.make(config, ONE)
    problem = problem_of_score(lambda a, _: -jnp.sum((a - 0.3) ** 2), ONE)
    plan = jax.vmap(lambda key: planner.plan(problem, planner.init(), key)[0])
    found = np.asarray(jax.jit(lambda: plan(jax.random.split(jax.random.key(1), 40)))(), np.float64)
    return np.sqrt(np.mean((found - 0.3) ** 2))


def test_the_error_on_a_quadratic_falls_with_candidates_and_refinements():
    by_refinements = [error(200, iterations) for iterations in (1, 3)]
    by_candidates = [error(20, 3), by_refinements[1], error(2000, 3)]
    assert np.all(np.diff(np.log(by_candidates)) < np.log(0.7))
    assert np.all(np.diff(np.log(by_refinements)) < np.log(0.7))
