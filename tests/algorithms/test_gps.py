"""GPS: the C-step at its limits and at its bound, the step size, the S-step, and what is refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmbrl import envs
from jaxmbrl.algorithms.trajectory import gps
from jaxmbrl.core.config import UserError, check
from jaxmbrl.planning import lqr
from jaxmbrl.planning.lqr import LinearDynamics, LinearPolicy, QuadraticCost

T, N, M = 4, 2, 2
PLAIN = gps.Config(least_std=0.0)


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
    found = gps.Models(dynamics, cost, rng.normal(size=T), np.array([1.0, -0.5]), 0.1 * np.eye(N), reference)
    return jax.tree.map(jnp.asarray, found)


@pytest.fixture(scope="module")
def controller():
    return jax.jit(gps.controller, static_argnums=(3,))


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
        return gps.expected_cost(of, policy) + multiplier * divergence(of, policy)

    step, judge = jax.jit(gps.c_step, static_argnums=0), jax.jit(jax.vmap(lagrangian, (0, None)))
    for bound in (0.5, 4.0):
        found = step(PLAIN, of, jnp.asarray(bound), jnp.ones(()))
        assert abs(float(found.divergence) - bound) <= 0.1 * bound
        assert float(found.divergence) == pytest.approx(float(divergence(of, found.local)), rel=1e-12)
        rng = np.random.default_rng(1)
        at = found.local
        K, k = (part + 1e-3 * rng.normal(size=(60, *part.shape)) for part in at[:2])
        others = LinearPolicy(K, k, jnp.exp(1e-2 * rng.normal(size=(60, T, 1, 1))) * at.covariance)
        values = judge(jax.tree.map(lambda x, y: jnp.concatenate([x[None], y]), at, others), found.multiplier)
        assert np.all(values[1:] > values[0])
    # A smaller bound has a larger multiplier and a larger cost.
    near, far = (step(PLAIN, of, jnp.asarray(bound), jnp.asarray(1e3)) for bound in (0.5, 4.0))
    assert float(near.multiplier) > float(far.multiplier)
    assert float(gps.expected_cost(of, near.local)) > float(gps.expected_cost(of, far.local))
    # A bound that nothing reaches: the multiplier is at its own bound, and the controller is LQR.
    free = step(PLAIN, of, jnp.asarray(1e6), jnp.ones(()))
    assert float(free.multiplier) < 2 * gps.LOWEST and int(free.tries) <= gps.TRIES


def test_standard_deviations_have_a_lower_bound_in_every_direction(controller):
    of = models()
    free, bounded = controller(of, 0.05, 0.0), controller(of, 0.05, 0.0, 0.3)
    np.testing.assert_array_equal(free.K, bounded.K)
    for S, at_least in zip(free.covariance, bounded.covariance, strict=True):
        values, vectors = np.linalg.eigh(S)
        np.testing.assert_allclose(at_least, vectors @ np.diag(np.maximum(values, 0.09)) @ vectors.T, rtol=1e-10)
    assert float(np.linalg.eigvalsh(free.covariance).min()) < 0.09 < float(np.linalg.eigvalsh(free.covariance).max())


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
    np.testing.assert_allclose(gps.expected_cost(of, of.reference), paid, rtol=5e-3)


@pytest.mark.parametrize(
    ("predicted", "actual", "factor"),
    [(10.0, 5.0, 1.0), (10.0, 8.0, 2.5), (10.0, 0.0, 0.5), (10.0, 10.0, 3.0), (10.0, 12.0, 3.0), (10.0, -90.0, 0.5)],
)
def test_the_step_size(predicted, actual, factor):
    """Twice the shortfall is the prediction: the same step again. It grows at most to 3 and falls at most to 0.5."""
    found = gps.adjusted_step_size(PLAIN, jnp.ones(()), jnp.asarray(predicted), jnp.asarray(actual))
    assert float(found) == pytest.approx(factor)


def test_one_step_size_changes_at_most_fivefold():
    wide = dataclasses.replace(PLAIN, least_step=1e-3, largest_step=1e3)
    grown, fallen = (
        float(gps.adjusted_step_size(wide, jnp.asarray(2.0), jnp.asarray(10.0), jnp.asarray(x))) for x in (10.0, -1e6)
    )
    assert (grown, fallen) == pytest.approx((10.0, 0.2))


def test_an_s_step_learns_the_controllers_commands():
    """At the sampled states, by numbers computed by hand: K_t x + k_t, and C_t^-1."""
    x = jnp.arange(1.0, 9.0).reshape(2, 2, 2, 1)
    local = LinearPolicy(
        jnp.array([[[[1.0]], [[2.0]]], [[[3.0]], [[4.0]]]]),
        jnp.array([[[0.1], [0.2]], [[0.3], [0.4]]]),
        jnp.array([[[[1.0]], [[2.0]]], [[[4.0]], [[5.0]]]]),
    )
    states, target, precision = gps.supervision(x, local)
    np.testing.assert_array_equal(states[:, 0], np.arange(1.0, 9.0))
    np.testing.assert_allclose(target[:, 0], [1.1, 4.2, 3.1, 8.2, 15.3, 24.4, 21.3, 32.4])
    np.testing.assert_allclose(precision[:, 0, 0], [1, 0.5, 1, 0.5, 0.25, 0.2, 0.25, 0.2])


def test_what_is_refused():
    for task, problem in (
        (envs.make("cartpole-continuous"), "may terminate"),
        (envs.make("pendulum", action_repeat=2), "has no reward function"),
        (envs.make("CliffWalking"), "gps takes vectors"),
    ):
        with pytest.raises(UserError, match=problem):
            gps.make(gps.Config(), task)
    for changes, problem in (
        ({"start_states": 2, "num_envs": 5}, "num_envs must be a multiple, at least 2, of start_states"),
        ({"start_states": 4, "num_envs": 4}, "num_envs must be a multiple, at least 2, of start_states"),
        ({"policy": "local", "start_states": 2, "num_envs": 4}, "start_states must be 1 with policy local"),
        ({"least_step": 4.0}, "largest_step must be at least least_step"),
    ):
        with pytest.raises(UserError, match=problem):
            check(dataclasses.replace(gps.Config(), **changes))
