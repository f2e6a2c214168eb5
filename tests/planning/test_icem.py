"""iCEM: its noise, whole plans replayed in NumPy from the noise that was drawn, what it keeps, and what it costs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmbrl.planning import icem, problem_of_score, unit_box
from jaxmbrl.planning.icem import ICEMConfig

H, A = 6, 2
SPACE = unit_box(A)


def score(population):
    """Four peaks of different heights, one a corner."""
    return -np.sum((population**2 - 0.5) ** 2 - 0.3 * population * np.array([1.0, -0.6]), axis=(-2, -1))


def theory(steps, exponent, lag):
    """Autocorrelation of periodic noise whose power is f^-exponent, that of f = 0 being the lowest other one's."""
    power = [max(min(k, steps - k), 1) ** -exponent for k in range(steps)]
    return sum(p * np.cos(2 * np.pi * k * lag / steps) for k, p in enumerate(power)) / sum(power)


EXPONENTS = (0.0, 0.25, 2.0, 3.5)


@functools.cache
def noises(seed, shape, exponents):
    """The noise of every exponent, from the same key."""
    key = jax.random.key(seed)
    found = jax.jit(lambda key: [icem.coloured_noise(key, shape, exponent, jnp.float32) for exponent in exponents])(key)
    return [np.asarray(noise, np.float64) for noise in found]


@pytest.mark.parametrize("steps", [1, 2, 7, 20])
@pytest.mark.parametrize("exponent", EXPONENTS)
def test_noise_has_unit_variance_and_the_colour_asked_for(steps, exponent):
    count = 20_000
    noise = noises(0, (count, steps, 3), EXPONENTS)[EXPONENTS.index(exponent)]
    assert noise.shape == (count, steps, 3)
    assert np.abs(noise.mean(axis=0)).max() < 4.5 / np.sqrt(count)
    # At each time, not on average over times.
    assert np.abs(noise.var(axis=0) - 1).max() < 4.5 * np.sqrt(2 / count)
    for lag in range(1, min(steps, 4)):
        found = np.mean(noise[:, :-lag] * noise[:, lag:], axis=(0, 1))
        np.testing.assert_allclose(found, theory(steps, exponent, lag), atol=4.5 / np.sqrt(count))
    # Action dimensions and candidates know nothing of each other.
    pairs = [noise[:, :, 0] * noise[:, :, 1], noise[:, :, 1] * noise[:, :, 2], noise[1:, :, 0] * noise[:-1, :, 0]]
    assert max(np.abs(pair.mean(axis=0)).max() for pair in pairs) < 5 / np.sqrt(count)


def test_noise_is_the_smoother_the_larger_its_exponent():
    found = [np.mean(x[:, 1:] * x[:, :-1]) for x in noises(1, (4000, 30, 1), (0.0, 0.25, 1.0, 2.0, 3.0))]
    assert abs(found[0]) < 0.01
    assert np.all(np.diff(found) > 0.02)
    assert found[-1] > 0.9


def test_the_power_of_the_noise_falls_with_frequency_by_the_exponent():
    exponents = (0.5, 2.0)
    for exponent, noise in zip(exponents, noises(2, (4000, 64, 1), exponents), strict=True):
        power = np.mean(np.abs(np.fft.rfft(noise[..., 0], axis=1)) ** 2, axis=0)[1:]
        slope = np.polyfit(np.log(np.arange(1, 33)), np.log(power), 1)[0]
        assert slope == pytest.approx(-exponent, abs=0.03)


def test_fewer_sequences_are_drawn_in_each_iteration():
    assert ICEMConfig().populations == (40, 32, 25)
    assert ICEMConfig(population=100, elites=10, decay=1.25, iterations=9).populations == (
        100,
        80,
        64,
        51,
        40,
        32,
        25,
        20,
        20,
    )
    assert ICEMConfig(population=50, decay=1.0).populations == (50, 50, 50)
    assert ICEMConfig().kept_elites == 3
    assert ICEMConfig(population=200, elites=100, kept=0.29).kept_elites == 29
    assert ICEMConfig(kept=0.0).kept_elites == 0


def objective(actions, key):
    """`score` of one sequence."""
    return -jnp.sum((actions**2 - 0.5) ** 2 - 0.3 * actions * jnp.array([1.0, -0.6]))


def fed(config, monkeypatch):
    """`plan(state, noises) -> (actions, next state)`, compiled, where `noises`, one each iteration, are what is drawn."""
    planner, feed = icem.make(config, SPACE), []
    monkeypatch.setattr(icem, "coloured_noise", lambda key, shape, exponent, dtype: feed.pop(0))

    def plan(state, noises):
        feed.extend(noises)
        actions, after, _ = planner.plan(problem_of_score(objective, SPACE), state, jax.random.key(0))
        assert feed == []
        return actions, after

    return jax.jit(planner.init)(), jax.jit(plan)


def noises_for(config, rng):
    """White noise, three plans' worth of what an iteration of each draws."""
    sizes = [size + (config.kept_elites if i == 0 else 0) for i, size in enumerate(config.populations)]
    return [[rng.normal(size=(size, H, A)) for size in sizes] for _ in range(3)]


def replay(config, plans):
    """The same plans in NumPy: what is tried, and each plan's answer, next mean and kept elites."""
    keep, size, tried, answers = int(config.kept * config.elites + 1e-9), None, [], []
    mean, old = np.zeros((H, A)), None
    for drawn in plans:
        std, pool = np.full((H, A), config.deviation), []
        size = config.population
        for i in range(config.iterations):
            if i:
                size = max(2 * config.elites, int(size / config.decay + 1e-9))
            xs = []
            for j, noise in enumerate(drawn[i]):
                x = mean + std * noise
                if i == config.iterations - 1 and j == 0:
                    x = mean.copy()
                x = np.minimum(np.maximum(x, -1), 1)
                if i == 0 and j >= size and old is not None:
                    x = np.array([*old[j - size][1:], x[-1]])
                xs.append(x)
            assert len(xs) == size + (keep if i == 0 else 0)
            tried.append(np.array(xs))
            pool = [(score(x[None])[0], x) for x in xs] + pool[:keep]
            pool.sort(key=lambda pair: -pair[0])
            pool = pool[: config.elites]
            best = np.array([x for _, x in pool])
            mean = config.momentum * mean + (1 - config.momentum) * best.mean(axis=0)
            std = config.momentum * std + (1 - config.momentum) * best.std(axis=0)
        mean = np.array([*mean[1:], mean[-1]])
        old = [x for _, x in pool[:keep]]
        answers.append((pool[0][1], mean, np.array(old)))
    return tried, answers


@pytest.mark.parametrize(
    "config",
    [
        ICEMConfig(horizon=H, population=20, elites=5, iterations=4, kept=0.6),
        ICEMConfig(horizon=H, population=12, elites=6, iterations=3, kept=1.0, momentum=0.5, decay=1.6, deviation=1.5),
        ICEMConfig(horizon=H, population=9, elites=2, iterations=1, kept=0.5, noise_beta=0.0, momentum=0.0),
        ICEMConfig(horizon=H, population=16, elites=4, iterations=3, kept=0.0, decay=1.0, noise_beta=3.0),
    ],
)
def test_plans_replayed_in_numpy(config, monkeypatch):
    """Three plans in a row, in double precision, from the same noise."""
    plans = noises_for(config, np.random.default_rng(0))
    with jax.enable_x64(True):
        state, plan = fed(config, monkeypatch)
        for drawn, (best, mean, elites) in zip(plans, replay(config, plans)[1], strict=True):
            actions, state = plan(state, drawn)
            np.testing.assert_allclose(actions, best, rtol=0, atol=1e-13)
            np.testing.assert_allclose(state.mean, mean, rtol=0, atol=1e-13)
            np.testing.assert_allclose(state.elites, elites.reshape(-1, H, A), rtol=0, atol=1e-13)
            assert np.all(np.asarray(state.known))


def test_without_its_improvements_it_is_the_clipped_gaussian_cross_entropy_method(monkeypatch):
    """White noise, nothing kept, no decay; the sequence that the mean would replace has no noise."""
    config = ICEMConfig(
        horizon=H, population=30, elites=6, iterations=4, momentum=0.2, noise_beta=0.0, kept=0.0, decay=1.0, deviation=0.7
    )
    white = np.random.default_rng(0).normal(size=(4, 30, H, A))
    white[3, 0] = 0.0
    with jax.enable_x64(True):
        state, plan = fed(config, monkeypatch)
        actions, state = plan(state, list(white))
    mean, std = np.zeros((H, A)), np.full((H, A), 0.7)
    for noise in white:
        xs = np.clip(mean + std * noise, -1, 1)
        best = xs[np.argsort(-score(xs))[:6]]
        mean, std = 0.2 * mean + 0.8 * best.mean(0), 0.2 * std + 0.8 * best.std(0)
    np.testing.assert_allclose(actions, best[0], atol=1e-13)
    np.testing.assert_allclose(np.asarray(state.mean)[:-1], mean[1:], atol=1e-13)


def test_white_noise_is_what_is_drawn_where_the_exponent_is_0():
    (noise,) = noises(3, (50, 9, 2), (0.0,))
    np.testing.assert_allclose(noise, jax.random.normal(jax.random.key(3), (50, 9, 2)), atol=1e-6)


def test_the_best_never_gets_worse_while_elites_are_kept(monkeypatch):
    """So the plan is the best of all that was tried; without elites it need not be."""

    def shortfall(kept):
        config = ICEMConfig(horizon=H, population=12, elites=3, iterations=5, kept=kept, deviation=1.0)
        lacking = []
        with jax.enable_x64(True):
            first, plan = fed(config, monkeypatch)
            for seed in range(12):
                (drawn, *_) = noises_for(config, np.random.default_rng(seed))
                actions, _ = plan(first, drawn)
                tried, _ = replay(config, [drawn])
                lacking.append(max(score(x).max() for x in tried) - score(np.asarray(actions)[None])[0])
        return lacking

    assert max(np.abs(shortfall(0.34))) < 1e-13
    assert max(shortfall(0.0)) > 0.01


@pytest.fixture(scope="module")
def searched(watched):
    """`searched(score, state, seed)`: a plan, the next state, and what was tried, under a `score` in NumPy."""
    planner = icem.make(ICEMConfig(horizon=H, population=20, elites=5, kept=0.6, iterations=3), SPACE)
    asked, tried = [None], []
    # Looked up when it is called, for the compiled plan is asked with several scores.
    problem = problem_of_score(watched(lambda population: (asked[0])(population), tried), SPACE)  # noqa: PLW0108
    plan = jax.jit(lambda state, seed: planner.plan(problem, state, jax.random.key(seed)))
    first = jax.jit(planner.init)()

    def searched(score, state=first, seed=0):
        asked[0] = score
        tried.clear()
        actions, state, _ = jax.device_get(jax.block_until_ready(plan(state, seed)))
        return actions, state, list(tried)

    return searched


def test_kept_elites_are_not_tried_again_within_a_plan(searched):
    """Their returns are those they had, under the key of an earlier iteration."""
    calls = iter([0.0, -100.0, -200.0])
    actions, state, tried = searched(lambda x: score(x) + next(calls))
    assert [len(population) for population in tried] == [23, 16, 12]
    first = tried[0][np.argsort(-score(tried[0]))[:3]]
    np.testing.assert_array_equal(state.elites, first)
    np.testing.assert_array_equal(actions, first[0])


def test_before_there_are_elites_fresh_sequences_stand_in_their_places(searched):
    _, state, (tried, *_) = searched(score)
    assert len(np.unique(tried.reshape(23, -1), axis=0)) == 23
    assert np.abs(tried).min() > 0
    _, _, (tried, *_) = searched(score, state._replace(known=np.array([True, False, True])), 1)
    same = [np.array_equal(tried[20 + i, :-1], state.elites[i, 1:]) for i in range(3)]
    assert same == [True, False, True]
    assert not np.any(tried[20:, -1] == state.elites[:, -1])


def test_where_all_are_equal_the_mean_is_played(searched):
    actions, _, tried = searched(lambda x: np.zeros(len(x)))
    np.testing.assert_array_equal(actions, tried[-1][0])
    mean = 0.1 * 0.9 * tried[0][:5].mean(axis=0) + 0.9 * tried[1][:5].mean(axis=0)
    np.testing.assert_allclose(actions, mean, atol=1e-6)
