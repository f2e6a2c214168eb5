"""MPPI: limits of its average, whole plans replayed in NumPy from the noise that was drawn, and its accuracy."""

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


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([1e-3, 0.5, 20.0]), st.integers(0, 12))
def test_the_average_is_numpys(seed, temperature, broken):
    mean, population, returns = draw(seed)
    returns[:broken] = np.resize([np.nan, np.inf, -np.inf], broken)
    with jax.enable_x64(True):
        found = mppi.average(*(jnp.asarray(x) for x in (mean, population, returns)), temperature, SPACE)
    np.testing.assert_allclose(found, average_in_numpy(mean, population, returns, temperature), rtol=1e-12, atol=1e-14)


def test_limits_of_the_temperature():
    mean, population, returns = (jnp.asarray(x, jnp.float32) for x in draw(0))
    best = population[jnp.argmax(returns)]
    sample_mean = np.asarray(population, np.float64).mean(axis=0)
    np.testing.assert_array_equal(mppi.average(mean, population, returns, 1e-6, SPACE), best)
    # Returns so large that a division before the subtraction would overflow.
    np.testing.assert_array_equal(mppi.average(mean, population, 1e36 * returns, 1e-6, SPACE), best)
    np.testing.assert_allclose(mppi.average(mean, population, returns, 1e9, SPACE), sample_mean, atol=1e-6)
    np.testing.assert_allclose(mppi.average(mean, population, jnp.full(12, -8e5), 1.0, SPACE), sample_mean, atol=1e-6)


@pytest.mark.parametrize("constant", [-3.0, 512.0, 2.0**14])
def test_a_constant_added_to_the_returns_changes_nothing(constant):
    """Exactly, for returns that the sum holds without rounding."""
    mean, population, returns = (jnp.asarray(x, jnp.float32) for x in draw(1))
    returns = jnp.round(returns * 64) / 64
    plain = mppi.average(mean, population, returns, 0.7, SPACE)
    np.testing.assert_array_equal(plain, mppi.average(mean, population, returns + constant, 0.7, SPACE))


@pytest.mark.parametrize("count", [1, 3, 49, 1000])
def test_an_average_of_values_at_the_bound_is_the_bound(count):
    returns = jnp.asarray(np.random.default_rng(0).normal(size=count), jnp.float32)
    found = float(mppi.average(jnp.zeros((1, 1)), jnp.ones((count, 1, 1)), returns, 1.0, ONE)[0, 0])
    assert 1 - 1e-6 < found <= 1.0


@pytest.mark.parametrize("smoothing", [1.0, 0.9, 0.3])
def test_candidates_are_numpys(smoothing):
    """Where actions are clipped, the next one leans towards what was played."""
    mean, noise, _ = draw(2)
    played = np.array([0.8, -0.4])
    with jax.enable_x64(True):
        found = np.asarray(mppi.candidates(*(jnp.asarray(x) for x in (mean, played, 2 * noise)), smoothing, SPACE))
    np.testing.assert_allclose(found, candidates_in_numpy(mean, played, 2 * noise, smoothing), rtol=0, atol=1e-15)
    assert (np.abs(found) == 1).any()
    if smoothing == 1.0:
        np.testing.assert_array_equal(found, np.clip(mean + 2 * noise, -1, 1))


def test_plans_replayed_in_numpy(watched, monkeypatch):
    """Three plans in a row, uncompiled and in double precision, from the noise that was drawn."""
    config = MPPIConfig(horizon=H, population=15, iterations=3, temperature=0.4, deviation=0.6, smoothing=0.7)
    score = lambda x: -np.sum((x - np.array([0.3, -0.9])) ** 2, axis=(-2, -1))  # noqa: E731
    drawn, tried = [], []
    true = jax.random.normal

    def normal(*args, **kwargs):
        drawn.append(np.array(true(*args, **kwargs)))
        return jnp.asarray(drawn[-1])

    with jax.enable_x64(True), jax.disable_jit():
        planner = mppi.make(config, SPACE)
        state = planner.init()
        mean, played = np.zeros((H, A)), np.zeros(A)
        for i in range(3):
            drawn.clear()
            tried.clear()
            with monkeypatch.context() as patch:
                patch.setattr(jax.random, "normal", normal)
                actions, state, _ = planner.plan(problem_of_score(watched(score, tried), SPACE), state, jax.random.key(i))
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
    plan = jax.jit(
        jax.vmap(lambda k: planner.plan(problem_of_score(lambda a, _: -jnp.sum((a - 0.3) ** 2), ONE), planner.init(), k)[0])
    )
    found = np.asarray(plan(jax.random.split(jax.random.key(1), 40)), np.float64)
    return np.sqrt(np.mean((found - 0.3) ** 2))


def test_the_error_on_a_quadratic_falls_with_candidates_and_refinements():
    by_refinements = [error(200, iterations) for iterations in (1, 3)]
    by_candidates = [error(20, 3), by_refinements[1], error(2000, 3)]
    assert np.all(np.diff(np.log(by_candidates)) < np.log(0.7))
    assert np.all(np.diff(np.log(by_refinements)) < np.log(0.7))
