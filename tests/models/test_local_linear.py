"""Local linear models against numbers computed by hand, NumPy's least squares and an EM in float64 NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxmbrl.models import local_linear
from jaxmbrl.models.local_linear import Kept, LocalLinearConfig

POINTS = jnp.array([(0.0, 0.0, 0.1), (1.0, 0.5, 1.2), (-1.0, 0.2, -0.9), (0.5, -1.0, 0.0), (2.0, 1.0, 2.4)])
PLAIN = LocalLinearConfig(clusters=1, strength=0.0, ridge=0.0)


regress = jax.jit(local_linear.regress, static_argnums=(3, 4, 5))
fit = jax.jit(local_linear.fit, static_argnames=("config", "inputs"))


def linear_steps(n=5, length=6, noise=0.0, seed=0, dtype=np.float64):
    """[n, length, 4] rows of x' = A x + B u + f, whose columns have very different units."""
    rng = np.random.default_rng(seed)
    x, u = rng.normal(size=(n, length, 2)) * [1.0, 1e-3], 100 * rng.normal(size=(n, length, 1))
    successor = x @ np.array([[0.9, 1e-4]]).T + 0.02 * u + 7.0 + noise * rng.normal(size=(n, length, 1))
    return jnp.asarray(np.concatenate([x, u, successor], axis=-1), dtype)


def test_the_regression_with_a_prior_computed_by_hand(x64):
    found = regress(POINTS.astype(float), jnp.zeros(3), 0.1 * jnp.eye(3), 1.0, 2, 1e-6)
    np.testing.assert_allclose(found.gain, [[0.9494229, 0.4597622]], atol=5e-8)
    np.testing.assert_allclose([found.offset[0], found.covariance[0, 0]], [0.0209219, 0.0372725], atol=5e-8)


def test_without_a_prior_it_is_least_squares(x64):
    points = POINTS.astype(float)
    found = regress(points, jnp.ones(3), jnp.eye(3), 0.0, 2, 0.0)
    solution = np.linalg.lstsq(np.c_[points[:, :2], np.ones(5)], points[:, 2], rcond=None)[0]
    np.testing.assert_allclose(np.r_[found.gain[0], found.offset], solution, atol=1e-12)
    np.testing.assert_allclose(solution, [0.9636353, 0.4702230, 0.0123511], atol=5e-8)
    # And so is the whole fit, whatever the units.
    steps = linear_steps(noise=0.1)
    found = fit(PLAIN, steps, local_linear.keep(steps), 1, inputs=3)
    for t in range(6):
        design = np.c_[steps[:, t, :3], np.ones(5)]
        solution = np.linalg.lstsq(design, steps[:, t, 3], rcond=None)[0]
        np.testing.assert_allclose(np.r_[found.gain[t, 0], found.offset[t]], solution, rtol=1e-7)
        residual = steps[:, t, 3] - design @ solution
        np.testing.assert_allclose(found.covariance[t], [[residual @ residual / 5]], rtol=1e-6)


def test_a_linear_system_is_recovered_with_fewer_rows_than_inputs(x64):
    """Two rows a step, three inputs: the prior knows the rest."""
    steps = linear_steps(2, 30)
    config = LocalLinearConfig(clusters=1, ridge=1e-12)
    found = fit(config, steps, local_linear.keep(steps), 1, inputs=3)
    np.testing.assert_allclose(found.gain[:, 0] * np.array([1, 1e-3, 100]), np.tile([0.9, 1e-7, 2.0], (30, 1)), atol=1e-4)
    np.testing.assert_allclose(found.offset, 7.0, atol=1e-4)


def em_in_numpy(rows, section, clusters, iterations):
    """(weights, means, covariances) of a mixture, from one cluster for each section."""
    shares = np.eye(clusters)[section]
    for _ in range(iterations + 1):
        mass = shares.sum(axis=0)
        means = [np.average(rows, axis=0, weights=shares[:, k]) for k in range(clusters)]
        covariances = [np.cov(rows.T, aweights=shares[:, k], bias=True) + 1e-6 * np.eye(3) for k in range(clusters)]
        density = [stats.multivariate_normal(*of).pdf(rows) for of in zip(means, covariances, strict=True)]
        shares = mass / mass.sum() * np.transpose(density)
        shares /= shares.sum(axis=1, keepdims=True)
    return mass / mass.sum(), np.array(means), np.array(covariances), shares


def test_the_mixture_against_numpy(x64):
    """With one cluster more than asked for, and rows that do not count."""
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(60, 3)) * [1.0, 0.3, 2.0] + np.repeat([[0, 0, 0], [2, 1, 0], [0, 3, 5]], 20, axis=0)
    progress = np.arange(60) / 60
    kept = Kept(jnp.r_[rows, 1e6 * np.ones((5, 3))], jnp.arange(65) < 60, jnp.r_[progress, np.zeros(5)])
    found = jax.jit(local_linear.fit_mixture, static_argnums=(2, 3))(kept, 3, 4, 7)
    weights, means, covariances, shares = em_in_numpy(rows, np.minimum((3 * progress).astype(int), 2), 3, 7)
    np.testing.assert_allclose(np.exp(found.log_weight), [*weights, 0], rtol=1e-9)
    np.testing.assert_allclose(found.mean[:3], means, rtol=1e-9)
    np.testing.assert_allclose(found.covariance[:3], covariances, rtol=1e-8, atol=1e-12)
    np.testing.assert_allclose(local_linear.responsibilities(found, kept.rows[:60]), np.c_[shares, np.zeros(60)], atol=1e-9)
    # The prior of some rows: moments of the mixture with their mean responsibilities as weights, by sampling.
    mean, covariance = local_linear.moments_near(found, kept.rows[15:30])
    chosen = rng.choice(3, size=200_000, p=shares[15:30].mean(axis=0))
    drawn = means[chosen] + np.einsum("nij,nj->ni", np.linalg.cholesky(covariances)[chosen], rng.normal(size=(200_000, 3)))
    np.testing.assert_allclose(mean, drawn.mean(axis=0), atol=0.02)
    np.testing.assert_allclose(covariance, np.cov(drawn.T), atol=0.06)


def test_the_number_of_clusters_grows_with_the_rows():
    config = LocalLinearConfig(clusters=5, rows_per_cluster=40)
    assert [int(config.clusters_for(rows)) for rows in (0, 79, 80, 130, 200, 4000)] == [2, 2, 2, 3, 5, 5]
    assert int(LocalLinearConfig(clusters=1).clusters_for(4000)) == 1


@pytest.mark.parametrize("clusters", [1, 4])
def test_exact_trajectories_from_one_state_are_fitted_in_single_precision(clusters):
    """At the first step all states are the same, everywhere x' is an exact function of x and u, one column is constant. The
    sine is not linear over the spread of the states, so the largest error is not that of rounding."""
    rng = np.random.default_rng(2)
    steps = np.zeros((5, 40, 6))
    for t in range(40):
        steps[:, t, 2] = 1.0
        steps[:, t, 3] = 0.1 * rng.normal(size=5)
        steps[:, t, 4] = steps[:, t, 0] + 0.1 * steps[:, t, 1]
        steps[:, t, 5] = steps[:, t, 1] - np.sin(steps[:, t, 0]) + steps[:, t, 3]
        if t < 39:
            steps[:, t + 1, :2] = steps[:, t, 4:]
    steps = jnp.asarray(steps, jnp.float32)
    found = fit(LocalLinearConfig(clusters=4), steps, local_linear.keep(steps), clusters, inputs=4)
    predicted = jnp.einsum("tij,ntj->nti", found.gain, steps[..., :4]) + found.offset
    error = np.abs(predicted - steps[..., 4:]).max(axis=(0, 1))
    assert error[0] < 1e-4 and error[1] < 0.02
    assert float(jnp.min(jnp.linalg.eigvalsh(found.covariance))) > -1e-7
