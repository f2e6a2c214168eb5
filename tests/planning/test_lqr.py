"""LQR against numbers computed by hand, SciPy's Riccati equation, and a float64 simulation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from jaxmbrl.planning import lqr


@pytest.fixture(autouse=True)
def double(x64):
    """In float64."""


def scalar(horizon=3):
    """x' = 0.9 x + 0.5 u with the cost (x^2 + 0.1 u^2) / 2 and x^2 / 2 at the end."""
    one = jnp.eye(1)
    return lqr.linear_dynamics(0.9 * one, 0.5 * one, horizon), lqr.quadratic_cost(one, 0.1 * one, one, horizon)


def double_integrator(horizon=50):
    """dt = 0.1, Q = I, R = 0.1, and I at the end."""
    A, B = jnp.array([[1.0, 0.1], [0.0, 1.0]]), jnp.array([[0.005], [0.1]])
    dynamics = lqr.linear_dynamics(A, B, horizon)
    return dynamics, lqr.quadratic_cost(jnp.eye(2), 0.1 * jnp.eye(1), jnp.eye(2), horizon)


def drawn(horizon=6, n=3, m=2, seed=0):
    """A time-varying problem with all terms: offsets, noise, cross and linear costs."""
    rng = np.random.default_rng(seed)

    def definite(*shape):
        x = rng.normal(size=shape)
        return x @ x.swapaxes(-1, -2) + np.eye(shape[-1])

    F, f, W = rng.normal(size=(horizon, n, n + m)) / 2, rng.normal(size=(horizon, n)), definite(horizon, n, n) / 10
    C, c = definite(horizon, n + m, n + m), rng.normal(size=(horizon, n + m))
    dynamics = lqr.LinearDynamics(*map(jnp.asarray, (F, f, W)))
    return dynamics, lqr.QuadraticCost(*map(jnp.asarray, (C, c, definite(n, n), rng.normal(size=n))))


def test_three_steps_computed_by_hand():
    found = lqr.lqr(*scalar())
    np.testing.assert_allclose(found.policy.K.ravel(), [-1.3621930, -1.3586690, -1.2857143], atol=5e-8)
    np.testing.assert_allclose(found.value.V.ravel(), [1.2451947, 1.2445604, 1.2314286, 1.0], atol=5e-8)
    np.testing.assert_allclose(found.value.at(jnp.ones(1))[0], 0.6225974, atol=5e-8)
    assert not np.any(found.policy.covariance)
    assert bool(found.convex)
    dynamics, cost = scalar()
    noisy = lqr.lqr(dynamics._replace(W=jnp.full((3, 1, 1), 0.01)), cost)
    np.testing.assert_array_equal(noisy.policy.K, found.policy.K)
    np.testing.assert_allclose(noisy.value.at(jnp.ones(1))[0], 0.6399773, atol=5e-8)


def test_entropy_adds_noise_and_leaves_the_gains():
    hard, soft = lqr.lqr(*scalar()), lqr.lqr(*scalar(), temperature=0.2)
    np.testing.assert_array_equal(soft.policy.K, hard.policy.K)
    np.testing.assert_allclose(soft.policy.covariance.ravel(), [0.4864522, 0.4903678, 0.5714286], atol=5e-8)
    np.testing.assert_allclose(soft.value.at(jnp.ones(1))[0], 0.2705175, atol=5e-8)
    # The soft cost-to-go is the expected cost minus alpha times the entropy of the policy that attains it.
    dynamics, cost = drawn()
    soft = lqr.lqr(dynamics, cost, temperature=0.3)
    x = jnp.array([1.0, -1.0, 0.5])
    paid = jnp.sum(lqr.expected_cost(cost, soft.policy, lqr.propagate(dynamics, soft.policy, x, jnp.zeros((3, 3)))))
    entropy = sum(0.5 * np.linalg.slogdet(2 * np.pi * np.e * S)[1] for S in np.asarray(soft.policy.covariance))
    np.testing.assert_allclose(soft.value.at(x)[0], paid - 0.3 * entropy, rtol=1e-12)


def test_the_double_integrator():
    dynamics, cost = double_integrator()
    found = lqr.lqr(dynamics, cost)
    np.testing.assert_allclose(found.policy.K[0, 0], [-2.5854231, -3.4433415], atol=5e-8)
    np.testing.assert_allclose(found.value.at(jnp.array([1.0, 0.0]))[0], 6.6581332, atol=5e-8)


def test_the_cost_to_go_is_the_cost_of_the_roll():
    """By a simulation in NumPy, with offsets, cross terms and discount; no other actions are cheaper."""
    dynamics, cost = drawn()
    still = dynamics._replace(W=jnp.zeros_like(dynamics.W))
    found = lqr.lqr(still, cost, discount=0.9)

    def paid(shift):
        x, total = np.array([1.0, -1.0, 0.5]), 0.0
        for t in range(6):
            z = np.concatenate([x, found.policy.K[t] @ x + found.policy.k[t] + shift[t]])
            total += 0.9**t * (z @ cost.C[t] @ z / 2 + cost.c[t] @ z)
            x = dynamics.F[t] @ z + dynamics.f[t]
        return total + 0.9**6 * (x @ cost.P @ x / 2 + cost.p @ x)

    np.testing.assert_allclose(found.value.at(jnp.array([1.0, -1.0, 0.5]))[0], paid(np.zeros((6, 2))), rtol=1e-12)
    rng = np.random.default_rng(1)
    assert all(paid(0.01 * rng.normal(size=(6, 2))) > paid(np.zeros((6, 2))) for _ in range(20))


def test_infinite_horizon_against_scipy():
    rng = np.random.default_rng(2)
    A, B = rng.normal(size=(3, 3)), rng.normal(size=(3, 2))
    Q, R = np.diag([1.0, 0.2, 0.5]), np.diag([0.1, 2.0])
    F, C = jnp.asarray(np.hstack([A, B])), jnp.asarray(scipy.linalg.block_diag(Q, R))
    solve = jax.jit(lqr.infinite_horizon)
    for discount in (1.0, 0.95):
        found = solve(F, jnp.zeros(3), C, jnp.zeros(5), discount)
        root = np.sqrt(discount)
        P = scipy.linalg.solve_discrete_are(root * A, root * B, Q, R)
        np.testing.assert_allclose(found.V, P, rtol=1e-10)
        gain = -np.linalg.solve(R + discount * B.T @ P @ B, discount * B.T @ P @ A)
        np.testing.assert_allclose(found.K, gain, rtol=1e-9, atol=1e-12)
        assert int(found.iterations) < 1000


def test_infinite_horizon_of_one_state():
    F, C = jnp.array([[0.9, 0.5]]), jnp.diag(jnp.array([1.0, 0.1]))
    for discount, gain, value in ((1.0, -1.3623703, 1.2452267), (0.95, -1.3442662, 1.2419679)):
        found = lqr.infinite_horizon(F, jnp.zeros(1), C, jnp.zeros(2), discount)
        np.testing.assert_allclose([found.K[0, 0], found.V[0, 0]], [gain, value], atol=5e-8)
    # With an offset and a linear cost, it is where a long finite horizon starts.
    f, c = jnp.array([0.3]), jnp.array([-0.2, 0.1])
    found = lqr.infinite_horizon(F, f, C, c, 0.95)
    dynamics, cost = scalar(400)
    cost = cost._replace(c=jnp.tile(c, (400, 1)))
    finite = lqr.lqr(dynamics._replace(f=jnp.tile(f, (400, 1))), cost, 0.95)
    got = np.array([found.K[0, 0], found.k[0], found.V[0, 0], found.v[0]])
    first = [finite.policy.K[0, 0, 0], finite.policy.k[0, 0], finite.value.V[0, 0, 0], finite.value.v[0, 0]]
    np.testing.assert_allclose(got, np.array(first), rtol=1e-7)


def test_a_cost_without_a_minimum_is_reported():
    dynamics, cost = scalar()
    found = lqr.lqr(dynamics, cost._replace(C=cost.C.at[1, 1, 1].set(-1.0)))
    assert not bool(found.convex)
    assert np.isnan(found.value.V[0, 0, 0])


def test_moments_against_a_simulation():
    dynamics, cost = drawn()
    policy = lqr.lqr(dynamics, cost, temperature=1.0).policy
    mean, covariance = jnp.array([1.0, 0.0, -1.0]), 0.1 * jnp.eye(3)
    moments = lqr.propagate(dynamics, policy, mean, covariance)
    rng, rows = np.random.default_rng(3), 200_000
    root = np.linalg.cholesky
    x, paid = np.asarray(mean) + rng.normal(size=(rows, 3)) @ root(covariance).T, 0.0
    for t in range(6):
        u = x @ np.asarray(policy.K[t]).T + np.asarray(policy.k[t])
        z = np.hstack([x, u + rng.normal(size=(rows, 2)) @ root(policy.covariance[t]).T])
        paid += np.mean(np.einsum("ni,ij,nj->n", z, cost.C[t], z) / 2 + z @ np.asarray(cost.c[t]))
        np.testing.assert_allclose(lqr.joint(policy, moments).covariance[t], np.cov(z.T), atol=0.03)
        x = z @ np.asarray(dynamics.F[t]).T + np.asarray(dynamics.f[t])
        x += rng.normal(size=(rows, 3)) @ root(dynamics.W[t]).T
        np.testing.assert_allclose(moments.mean[t + 1], x.mean(axis=0), atol=0.02)
        np.testing.assert_allclose(moments.covariance[t + 1], np.cov(x.T), atol=0.03)
    paid += np.mean(np.einsum("ni,ij,nj->n", x, cost.P, x) / 2 + x @ np.asarray(cost.p))
    np.testing.assert_allclose(jnp.sum(lqr.expected_cost(cost, policy, moments)), paid, rtol=5e-3)


def test_the_divergence_of_two_policies():
    one = lqr.LinearPolicy(jnp.array([[[-0.4]]]), jnp.array([[0.1]]), jnp.array([[[0.04]]]))
    other = lqr.LinearPolicy(jnp.array([[[-0.2]]]), jnp.array([[0.0]]), jnp.array([[[0.09]]]))
    moments = lqr.Moments(jnp.array([[1.0], [0.0]]), jnp.array([[[0.5]], [[0.0]]]))
    np.testing.assert_allclose(lqr.kl_divergence(one, other, moments), [0.2943540], atol=5e-8)
    np.testing.assert_allclose(lqr.kl_divergence(one, one, moments), [0.0], atol=1e-15)
