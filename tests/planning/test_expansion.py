"""The quadratic expansion of a cost, in float64."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxmbrl.planning import expansion
from jaxmbrl.planning.lqr import LinearDynamics


def test_the_expansion_of_a_quadratic_is_the_quadratic(x64):
    """Its value is the expected cost after a step of the model, by sampling, wherever the samples are."""
    rng = np.random.default_rng(0)
    half, slope = rng.normal(size=(5, 5)), rng.normal(size=5)
    H = half @ half.T

    def cost(y):
        return y @ H @ y / 2 + slope @ y + 0.7

    noise = rng.normal(size=(3, 2, 2))
    dynamics = LinearDynamics(*map(jnp.asarray, (rng.normal(size=(3, 2, 3)), rng.normal(size=(3, 2)), noise @ noise.mT)))
    steps = jnp.asarray(rng.normal(size=(4, 3, 5)))
    found, constant = jax.jit(lambda steps: expansion.expand(cost, steps, dynamics))(steps)
    z = rng.normal(size=3)
    for t in range(3):
        x = dynamics.F[t] @ z + dynamics.f[t] + rng.normal(size=(400_000, 2)) @ noise[t].T
        y = np.c_[np.tile(z, (400_000, 1)), x]
        expected = np.mean(np.einsum("ni,ij,nj->n", y, H, y) / 2 + y @ slope + 0.7)
        np.testing.assert_allclose(z @ found.C[t] @ z / 2 + found.c[t] @ z + constant[t], expected, rtol=1e-2)
    assert not np.any(found.P) and not np.any(found.p)


def test_a_cost_that_is_not_convex_is_expanded_with_its_value_and_slope(x64):
    def cost(y):
        return jnp.sin(y[0]) + y[1] ** 2 * y[2] + y[1]

    at = jnp.array([1.0, 0.5, -2.0])
    still = LinearDynamics(jnp.zeros((1, 1, 2)), at[None, 2:], jnp.zeros((1, 1, 1)))
    found, constant = expansion.expand(cost, at[None, None], still)
    z = at[:2]
    np.testing.assert_allclose(z @ found.C[0] @ z / 2 + found.c[0] @ z + constant[0], cost(at), rtol=1e-12)
    np.testing.assert_allclose(found.C[0] @ z + found.c[0], jax.grad(cost)(at)[:2], rtol=1e-12)
    assert np.linalg.eigvalsh(found.C[0]).min() >= -1e-12
    # diag(1, -2) rotated keeps the direction of 1 alone.
    turn = np.array([[0.6, -0.8], [0.8, 0.6]])
    found = expansion.convex(jnp.asarray(turn @ np.diag([1.0, -2.0]) @ turn.T))
    np.testing.assert_allclose(found, turn[:, :1] @ turn[:, :1].T, atol=1e-12)
