"""CMA-ES: its constants, evaluations until a minimum is found, the same points as the package of its author, and values
that are not finite."""

from functools import partial

import cma
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmbrl.nn import cma_es
from jaxmbrl.nn.cma_es import CMAConfig

N, GOAL = 10, 1e-10
CONFIG = CMAConfig(deviation=0.5)
SCALES = 10.0 ** (6 * np.arange(N) / (N - 1))


def sphere(x):
    return (x**2).sum(-1)


def ellipsoid(x):
    return (SCALES * x**2).sum(-1)


def evaluations(function, key, most):
    """The number of evaluations after which a point with a value of at most 1e-10 was seen."""

    def generation(loop):
        state, best, i = loop
        points = cma_es.ask(CONFIG, state, jax.random.fold_in(key, i))
        values = function(points)
        return cma_es.tell(CONFIG, state, points, values), jnp.minimum(best, values.min()), i + 1

    def unfinished(loop):
        return (loop[1] > GOAL) & (loop[2] < most)

    start = (cma_es.init(CONFIG, jnp.ones(N)), jnp.inf, 0)
    return 10 * jax.lax.while_loop(unfinished, generation, start)[2]


def of_the_package(function, seed):
    """The same of Hansen's package."""
    options = {"CMA_active": False, "ftarget": GOAL, "seed": seed, "verbose": -9}
    search = cma.CMAEvolutionStrategy(np.ones(N), 0.5, options)
    while not search.stop():
        points = search.ask()
        search.tell(points, [function(x) for x in points])
    return search.result.evals_best


def test_its_constants_are_those_of_the_tutorial():
    found = cma_es.constants(10, 10)
    np.testing.assert_allclose(found.weights, [0.456273, 0.270753, 0.162231, 0.085234, 0.025510], atol=1e-6)
    numbers = (found.effective, found.scale_rate, found.path_rate, found.rank_one, found.rank_mu)
    np.testing.assert_allclose(numbers, [3.167299, 0.284429, 0.294990, 0.015284, 0.020154], atol=1e-6)
    assert found == cma_es.constants(10)._replace(weights=found.weights) and found.population == 10


def test_it_finds_the_minimum_of_a_sphere_in_as_many_evaluations_as_its_authors_package(x64):
    ours = np.median(jax.jit(jax.vmap(partial(evaluations, sphere, most=400)))(jax.random.split(jax.random.key(0), 15)))
    theirs = np.median([of_the_package(sphere, seed) for seed in range(1, 6)])
    assert abs(ours - 1590) < 0.2 * 1590 and abs(ours - theirs) < 0.2 * theirs


@pytest.mark.slow
def test_it_finds_the_minimum_of_an_ellipsoid_in_as_many_evaluations(x64):
    ours = np.median(jax.jit(jax.vmap(partial(evaluations, ellipsoid, most=1500)))(jax.random.split(jax.random.key(0), 9)))
    theirs = np.median([of_the_package(ellipsoid, seed) for seed in range(1, 6)])
    assert abs(ours - 5900) < 0.2 * 5900 and abs(ours - theirs) < 0.2 * theirs


@pytest.fixture(scope="module")
def tell():
    with jax.enable_x64(True):
        return jax.jit(partial(cma_es.tell, CONFIG))


def test_the_same_points_give_the_same_mean_as_in_its_authors_package(x64, tell):
    """The points of three generations of the package, told to both."""
    theirs = cma.CMAEvolutionStrategy(np.ones(N), 0.5, {"CMA_active": False, "seed": 3, "verbose": -9})
    ours = cma_es.init(CONFIG, jnp.ones(N))
    for _ in range(3):
        points = theirs.ask()
        values = [ellipsoid(x) for x in points]
        theirs.tell(points, values)
        ours = tell(ours, np.array(points), np.array(values))
        np.testing.assert_allclose(ours.mean, theirs.mean, rtol=1e-12)


def test_values_that_are_not_finite_count_as_the_largest(x64, tell):
    state = cma_es.init(CONFIG, jnp.ones(N))
    points = np.array(cma_es.ask(CONFIG, state, jax.random.key(0)))
    values = np.arange(10.0)
    known = tell(state, points, values)
    for bad in (np.nan, -np.inf, np.inf):
        found = tell(state, points, np.where(values > 5, bad, values))
        jax.tree.map(np.testing.assert_array_equal, found, known)
    jax.tree.map(np.testing.assert_array_equal, tell(state, points, np.full(10, np.nan)), state)


def test_a_generation_by_numpy(x64, tell):
    """The second generation, with the formulas of the module written in NumPy."""
    first = cma_es.init(CONFIG, jnp.ones(N))
    points = np.array(cma_es.ask(CONFIG, first, jax.random.key(1)))
    state = tell(first, points, ellipsoid(points))
    points = np.array(cma_es.ask(CONFIG, state, jax.random.key(2)))
    found = tell(state, points, ellipsoid(points))

    w, mu_eff = np.array(cma_es.constants(N).weights), 3.1672993
    c_s, c_c, c_1, c_mu = 0.2844285, 0.2949900, 0.0152838, 0.0201543
    mean, scale, covariance = (np.array(x) for x in (state.mean, state.scale, state.covariance))
    y = (points[np.argsort(ellipsoid(points))[:5]] - mean) / scale
    values, vectors = np.linalg.eigh(covariance)
    p_s = (1 - c_s) * state.scale_path + np.sqrt(c_s * (2 - c_s) * mu_eff) * (vectors / np.sqrt(values)) @ vectors.T @ (
        w @ y
    )
    length = np.sqrt(N) * (1 - 1 / (4 * N) + 1 / (21 * N**2))
    long = np.linalg.norm(p_s) / np.sqrt(1 - (1 - c_s) ** 4) >= (1.4 + 2 / 11) * length
    assert not long
    p_c = (1 - c_c) * state.covariance_path + np.sqrt(c_c * (2 - c_c) * mu_eff) * (w @ y)
    expected = (
        (1 - c_1 - c_mu) * covariance
        + c_1 * np.outer(p_c, p_c)
        + c_mu * sum(wi * np.outer(yi, yi) for wi, yi in zip(w, y, strict=True))
    )
    np.testing.assert_allclose(found.covariance, expected, atol=1e-6)
    damping = 1 + 2 * max(0, np.sqrt((mu_eff - 1) / (N + 1)) - 1) + c_s
    np.testing.assert_allclose(found.scale, scale * np.exp(c_s / damping * (np.linalg.norm(p_s) / length - 1)), rtol=1e-6)
    np.testing.assert_allclose((found.basis * found.deviations**2) @ found.basis.T, expected, atol=1e-6)


def test_points_with_equal_values_share_their_weights(x64, tell):
    """The order of the points does not matter then, and the mean moves less: by the mean step of the equal points."""
    state = cma_es.init(CONFIG, jnp.ones(N))
    points = np.array(cma_es.ask(CONFIG, state, jax.random.key(0)))
    w = cma_es.constants(N).weights
    values = np.array([3.0, 1.0, 2.0, 2.0, 2.0, 5.0, 4.0, 3.0, 3.0, np.inf])
    expected = np.array([w[4] / 3, w[0], *[(w[1] + w[2] + w[3]) / 3] * 3, 0, 0, w[4] / 3, w[4] / 3, 0]) @ points
    np.testing.assert_allclose(tell(state, points, values).mean, expected, rtol=1e-12)
    flat, turned = tell(state, points, np.zeros(10)), tell(state, points[::-1].copy(), np.zeros(10))
    np.testing.assert_allclose(flat.mean, points.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(turned.mean, flat.mean, rtol=1e-12)


def test_the_deviation_shrinks_where_all_values_are_equal(x64, tell):
    def generation(state, key):
        return tell(state, cma_es.ask(CONFIG, state, key), jnp.zeros(10)), None

    state = jax.jit(lambda key: jax.lax.scan(generation, cma_es.init(CONFIG, jnp.ones(N)), jax.random.split(key, 30))[0])
    assert 0 < state(jax.random.key(0)).scale < 0.1 * CONFIG.deviation
