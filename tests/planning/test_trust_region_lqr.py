"""LQR within a trust region: the controllers at the limits of the multiplier and at the bound."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmbrl.planning import lqr, trust_region_lqr
from jaxmbrl.planning.lqr import LinearDynamics, LinearPolicy, QuadraticCost
from jaxmbrl.planning.trust_region_lqr import LOWEST, TRIES, Models

T, N, M = 4, 2, 2


@pytest.fixture(scope="module", autouse=True)
def double():
    """In float64."""
    with jax.enable_x64(True):
        yield


def models(seed=0):
    """Linear dynamics, a convex cost and a policy pibar, all of them drawn."""
    rng = np.random.default_rng(seed)

    def definite(*shape):
        x = rng.normal(size=shape)
        return x @ x.swapaxes(-1, -2) + np.eye(shape[-1])

    dynamics = LinearDynamics(rng.normal(size=(T, N, N + M)) / 2, rng.normal(size=(T, N)), definite(T, N, N) / 20)
    cost = QuadraticCost(definite(T, N + M, N + M), rng.normal(size=(T, N + M)), np.zeros((N, N)), np.zeros(N))
    reference = LinearPolicy(rng.normal(size=(T, M, N)), rng.normal(size=(T, M)), definite(T, M, M) / 3)
    found = Models(dynamics, cost, rng.normal(size=T), np.array([1.0, -0.5]), 0.1 * np.eye(N), reference)
    return jax.tree.map(jnp.asarray, found)


@pytest.fixture(scope="module")
def controller():
    return jax.jit(trust_region_lqr.controller, static_argnums=(3,))


def divergence(of, policy):
    moments = lqr.propagate(of.dynamics, policy, of.mean, of.covariance)
    return jnp.sum(lqr.kl_divergence(policy, of.reference, moments))


def test_the_limits_of_the_multiplier(controller):
    """All of the divergence, none of it, and none of it with entropy: bit for bit the maximum-entropy LQR."""
    of = models()
    far, near, soft = controller(of, 1e16), controller(of, 1e-12), controller(of, 0.0, 0.25)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10), far, of.reference)
    solve = jax.jit(lqr.lqr)
    optimal, maximum_entropy = solve(of.dynamics, of.cost).policy, solve(of.dynamics, of.cost, 1.0, 0.25).policy
    np.testing.assert_allclose(near.K, optimal.K, rtol=1e-7)
    np.testing.assert_allclose(near.k, optimal.k, rtol=1e-7)
    assert float(jnp.max(jnp.abs(near.covariance))) < 1e-11
    jax.tree.map(np.testing.assert_array_equal, soft, maximum_entropy)


def test_the_c_step_is_optimal_at_its_bound():
    """No controller nearby has a smaller Lagrangian, and the bound holds within its tolerance."""
    of = models()

    def lagrangian(policy, multiplier):
        return trust_region_lqr.expected_cost(of, policy) + multiplier * divergence(of, policy)

    step, judge = jax.jit(trust_region_lqr.c_step), jax.jit(jax.vmap(lagrangian, (0, None)))
    for bound in (0.5, 4.0):
        found = step(of, jnp.asarray(bound), jnp.ones(()))
        assert abs(float(found.divergence) - bound) <= 0.1 * bound
        assert float(found.divergence) == pytest.approx(float(divergence(of, found.local)), rel=1e-12)
        rng = np.random.default_rng(1)
        at = found.local
        K, k = (part + 1e-3 * rng.normal(size=(60, *part.shape)) for part in at[:2])
        others = LinearPolicy(K, k, jnp.exp(1e-2 * rng.normal(size=(60, T, 1, 1))) * at.covariance)
        values = judge(jax.tree.map(lambda x, y: jnp.concatenate([x[None], y]), at, others), found.multiplier)
        assert np.all(values[1:] > values[0])
    # A smaller bound has a larger multiplier and a larger cost.
    near, far = (step(of, jnp.asarray(bound), jnp.asarray(1e3)) for bound in (0.5, 4.0))
    assert float(near.multiplier) > float(far.multiplier)
    assert float(trust_region_lqr.expected_cost(of, near.local)) > float(trust_region_lqr.expected_cost(of, far.local))
    # A bound that nothing reaches: the multiplier is at its own bound, and the controller is LQR.
    free = step(of, jnp.asarray(1e6), jnp.ones(()))
    assert float(free.multiplier) < 2 * LOWEST and int(free.tries) <= TRIES


def test_standard_deviations_have_a_lower_bound_in_every_direction(controller):
    of = models()
    free = controller(of, 0.05, 0.0)
    middle = float(np.median(np.linalg.eigvalsh(free.covariance)))
    bounded = controller(of, 0.05, 0.0, middle**0.5)
    np.testing.assert_array_equal(free.K, bounded.K)
    for S, at_least in zip(free.covariance, bounded.covariance, strict=True):
        values, vectors = np.linalg.eigh(S)
        np.testing.assert_allclose(at_least, vectors @ np.diag(np.maximum(values, middle)) @ vectors.T, atol=1e-12)
    assert np.abs(bounded.covariance - free.covariance).max() > 1e-3


def test_the_expected_cost_is_that_of_a_simulation():
    of = models()
    rng, rows, paid = np.random.default_rng(2), 200_000, 0.0
    x = np.asarray(of.mean) + np.sqrt(0.1) * rng.normal(size=(rows, N))
    for t in range(T):
        root = np.linalg.cholesky(of.reference.covariance[t])
        u = x @ np.asarray(of.reference.K[t]).T + np.asarray(of.reference.k[t]) + rng.normal(size=(rows, M)) @ root.T
        z = np.hstack([x, u])
        quadratic = np.einsum("ni,ij,nj->n", z, of.cost.C[t], z) / 2 + z @ np.asarray(of.cost.c[t])
        paid += np.mean(quadratic) + float(of.constant[t])
        x = z @ np.asarray(of.dynamics.F[t]).T + np.asarray(of.dynamics.f[t])
        x += rng.normal(size=(rows, N)) @ np.linalg.cholesky(of.dynamics.W[t]).T
    np.testing.assert_allclose(trust_region_lqr.expected_cost(of, of.reference), paid, rtol=5e-3)
