"""MPPI: limits of its average, whole plans replayed in NumPy from the noise that was drawn, and its accuracy."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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
