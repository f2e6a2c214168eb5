"""TRPO's step by hand, its conjugate gradient and line search, and where there is no step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmbrl.agents.trust_region import conjugate_gradient, natural_step
from jaxmbrl.distributions import Gaussian

START = (jnp.zeros(1), jnp.log(jnp.full(1, 0.5)))
"""Mean and log standard deviation of a policy with sigma = .5, whose Fisher matrix is diag(4, 2)."""


def divergence(params):
    return Gaussian(*START).divergence(Gaussian(*params))


def both(params):
    """An objective with the gradient (1, 1)."""
    return params[0][0] + params[1][0]


@pytest.mark.parametrize(("damping", "step"), [(0.0, (0.040825, 0.081650)), (0.1, (0.040648, 0.079360))])
def test_the_step_by_hand(damping, step, x64):
    """With the damping in the conjugate gradient alone the damped step would be (.041481, .080986)."""
    fisher, gradient = np.diag([4.0, 2.0]), np.ones(2)
    direction = np.linalg.solve(fisher + damping * np.eye(2), gradient)
    if damping:
        mixed = np.sqrt(0.02 / (direction @ fisher @ direction)) * direction
        np.testing.assert_allclose(mixed, (0.041481, 0.080986), atol=6e-7)
    params, found = jax.jit(lambda start: natural_step(both, divergence, start, 0.01, damping, 10))(START)
    np.testing.assert_allclose([params[0][0], params[1][0] - START[1][0]], step, atol=6e-7)
    assert float(found.shrinkage) == 1.0 and float(found.gradient_norm) == pytest.approx(2**0.5)
    if damping == 0:
        assert float(found.gain) == pytest.approx(0.122474, abs=5e-7)
        assert float(found.divergence) == pytest.approx(0.009149, abs=5e-7)


def test_the_step_of_the_mean_alone(x64):
    params, _ = jax.jit(lambda start: natural_step(lambda p: p[0][0], divergence, start, 0.01, 0.0, 10))(START)
    assert float(params[0][0]) == pytest.approx(0.5 * (2 * 0.01) ** 0.5, rel=1e-3) == pytest.approx(0.070711, rel=1e-3)


def test_conjugate_gradient_is_the_direct_solution(x64):
    """With as many iterations as parameters; with fewer, it is not."""
    rng = np.random.default_rng(0)
    root = rng.normal(size=(6, 6))
    matrix, gradient = root @ root.T + np.eye(6), rng.normal(size=6)
    found = jax.jit(lambda: conjugate_gradient(lambda v: matrix @ v, jnp.asarray(gradient), 6))()
    np.testing.assert_allclose(found, np.linalg.solve(matrix, gradient), rtol=1e-6)
    early = jax.jit(lambda: conjugate_gradient(lambda v: matrix @ v, jnp.asarray(gradient), 2))()
    assert np.abs(early - np.linalg.solve(matrix, gradient)).max() > 1e-3


def test_the_search_halves_the_step_until_both_conditions_hold():
    """An objective that only gains near the start, and a divergence of four times its quadratic form far from it."""

    def narrow(params):
        return both(params) - 100 * params[0][0] ** 2 - 100 * (params[1][0] - START[1][0]) ** 2

    def steep(params):
        inside = divergence(params)
        return inside + 1000 * jax.nn.relu(inside - 0.003)

    @jax.jit
    def steps(start):
        return natural_step(narrow, divergence, start, 0.01, 0.0, 10), natural_step(both, steep, start, 0.01, 0.0, 10)

    by_gain, by_divergence = steps(START)
    # The gain of a share h of the step is .122474 h - 100 (.00833) h^2: positive below .147.
    assert float(by_gain[1].shrinkage) == 0.125
    # A quarter of the step has about 1/16 of .0091, a half about 1/4.
    assert float(by_divergence[1].shrinkage) == 0.5
    assert float(by_gain[1].gain) > 0 and float(by_divergence[1].divergence) <= 0.01


def test_without_a_gradient_or_a_gain_nothing_moves():
    @jax.jit
    def steps(start):
        flat = natural_step(lambda p: 0.0 * both(p), divergence, start, 0.01, 0.1, 10)
        # The slope promises a gain that no candidate has.
        cusp = natural_step(
            lambda p: both(p) - 1e6 * (p[0][0] + p[1][0] - both(START)) ** 2, divergence, start, 0.01, 0.1, 10
        )
        return flat, cusp

    for params, found in steps(START):
        jax.tree.map(np.testing.assert_array_equal, params, START)
        assert float(found.shrinkage) == float(found.divergence) == float(found.gain) == 0.0


def test_steps_obey_the_bounds_of_parameters():
    """The candidates that are judged are the bounded ones."""

    def bounded(params):
        return params[0], jnp.minimum(params[1], START[1] + 0.05)

    params, found = jax.jit(lambda start: natural_step(both, divergence, start, 0.01, 0.0, 10, bounded))(START)
    np.testing.assert_array_equal(params[1], START[1] + 0.05)
    assert float(found.gain) == pytest.approx(0.040825 + 0.05, rel=1e-4)
