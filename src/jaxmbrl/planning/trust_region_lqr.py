"""LQR within a trust region: linear-Gaussian controllers of least expected cost, within a bound on their divergence from
given ones. This is the C-step of guided policy search (Levine and Abbeel, Learning neural network policies with guided
policy search under unknown dynamics, NIPS 2014; Montgomery and Levine, arXiv 1607.04614).

    minimise  E_p sum_t c(x_t, u_t)  over p_t = N(K_t x + k_t, C_t)    subject to    sum_t KL(p_t || pibar_t) <= bound

The Lagrangian, divided by the multiplier eta of the bound, is a maximum-entropy LQR of temperature 1 with the cost
c / eta - log pibar. eta is found by bisection of its logarithm. For eta -> infinity p is pibar, for eta -> 0 it is the LQR.

Nothing is batched: use `jax.vmap`. Shapes: T steps, n the size of a state x, m that of an action u.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxmbrl.core.cholesky import cholesky
from jaxmbrl.planning import lqr
from jaxmbrl.planning.lqr import LinearDynamics, LinearPolicy, QuadraticCost

LOWEST, HIGHEST = 1e-8, 1e16
"""Bounds of the multiplier eta."""
TRIES = 50
"""Largest number of multipliers that a C-step tries."""
TOLERANCE = 0.1
"""Largest relative distance of the divergence from its bound."""


class Models(NamedTuple):
    """What is known around the trajectories from one start state."""

    dynamics: LinearDynamics
    cost: QuadraticCost
    constant: Float[Array, "T"]
    """Constants of the cost of each step."""
    mean: Float[Array, "n"]
    """Mean of x_0."""
    covariance: Float[Array, "n n"]
    """Covariance of x_0."""
    reference: LinearPolicy
    """pibar."""


def expected_cost(models: Models, policy: LinearPolicy) -> Float[Array, ""]:
    """The expected cost of an episode under `policy`, in the models."""
    moments = lqr.propagate(models.dynamics, policy, models.mean, models.covariance)
    return jnp.sum(lqr.expected_cost(models.cost, policy, moments)) + jnp.sum(models.constant)


class CStep(NamedTuple):
    """State and result of a C-step."""

    local: LinearPolicy
    """p."""
    divergence: Float[Array, ""]
    """sum_t KL(p_t || pibar_t)."""
    multiplier: Float[Array, ""]
    """eta."""
    low: Float[Array, ""]
    """A multiplier that is too small."""
    high: Float[Array, ""]
    """A multiplier that is too large."""
    tries: Int[Array, ""]


def c_step(
    models: Models,
    bound: Float[Array, ""],
    multiplier: Float[Array, ""],
    entropy_weight: float = 0.0,
    least_std: float = 0.0,
) -> CStep:
    """The controller of least expected cost whose divergence from pibar is `bound`, within 10%. The search for its
    multiplier begins at `multiplier`."""

    def tried(multiplier: Array, low: Array, high: Array, tries: Array) -> CStep:
        local = controller(models, multiplier, entropy_weight, least_std)
        moments = lqr.propagate(models.dynamics, local, models.mean, models.covariance)
        divergence = jnp.sum(lqr.kl_divergence(local, models.reference, moments))
        return CStep(local, divergence, multiplier, low, high, tries + 1)

    def unfinished(at: CStep) -> Bool[Array, ""]:
        return (jnp.abs(at.divergence - bound) > TOLERANCE * bound) & (at.tries < TRIES) & (at.high > 1.001 * at.low)

    def bisect(at: CStep) -> CStep:
        too_far = at.divergence > bound
        low, high = jnp.where(too_far, at.multiplier, at.low), jnp.where(too_far, at.high, at.multiplier)
        middle = jnp.sqrt(low) * jnp.sqrt(high)
        return tried(jnp.where(too_far, jnp.minimum(middle, 10 * low), jnp.maximum(middle, high / 10)), low, high, at.tries)

    low, high = (jnp.full_like(multiplier, end) for end in (LOWEST, HIGHEST))
    return jax.lax.while_loop(unfinished, bisect, tried(multiplier, low, high, jnp.zeros((), jnp.int32)))


def controller(
    models: Models,
    multiplier: Float[Array, ""],
    entropy_weight: float | Float[Array, ""] = 0.0,
    least_std: float = 0.0,
) -> LinearPolicy:
    """The p that minimises E_p sum_t c + eta sum_t KL(p_t || pibar_t) - alpha sum_t H(p_t) for the multiplier eta and the
    entropy's weight alpha: the maximum-entropy LQR with the cost (c - eta log pibar) / (eta + alpha)."""
    K, k, covariance = models.reference
    identity = jnp.broadcast_to(jnp.eye(k.shape[1], dtype=k.dtype), covariance.shape)
    difference = jnp.concatenate([K, -identity], axis=-1)  # times [x; u], plus k: the mean of pibar minus u
    weighted = difference.mT @ jax.vmap(inverse)(covariance)
    total = multiplier + entropy_weight
    C = (models.cost.C + multiplier * weighted @ difference) / total
    c = (models.cost.c + multiplier * (weighted @ k[..., None])[..., 0]) / total
    cost = QuadraticCost(C, c, models.cost.P / total, models.cost.p / total)
    found = lqr.lqr(models.dynamics, cost, temperature=1.0).policy
    return found._replace(covariance=jax.vmap(at_least, (0, None))(found.covariance, least_std)) if least_std else found


def inverse(covariance: Float[Array, "m m"]) -> Float[Array, "m m"]:
    """The inverse of a positive definite matrix."""
    identity = jnp.eye(covariance.shape[0], dtype=covariance.dtype)
    return jax.scipy.linalg.cho_solve((cholesky(covariance), True), identity)


def at_least(covariance: Float[Array, "m m"], std: float) -> Float[Array, "m m"]:
    """`covariance` with standard deviations of at least `std` in all directions."""
    values, vectors = jnp.linalg.eigh(covariance)
    return (vectors * jnp.maximum(values, std**2)) @ vectors.T
