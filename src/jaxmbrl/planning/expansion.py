"""The quadratic expansion of a cost around sampled trajectories, as a `QuadraticCost` for `planning.lqr`.

    c(y) ~ c(y_i) + g_i'(y - y_i) + (y - y_i)' H_i (y - y_i) / 2,    y = [x; u; x'],  averaged over the samples i of a step

x' is replaced by its expectation F [x; u] + f in a linear model, and its variance W adds tr(H_x'x' W) / 2 to the constant.
Negative eigenvalues of H_i, where the cost is not convex, are replaced by 0: the expansion then has a minimum.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxmbrl.planning.lqr import LinearDynamics, QuadraticCost


def expand(
    cost: Callable[[Float[Array, "nmn"]], Float[Array, ""]], steps: Float[Array, "N T nmn"], dynamics: LinearDynamics
) -> tuple[QuadraticCost, Float[Array, "T"]]:
    """(expansion of `cost([x; u; x'])` around the steps of N trajectories, constant of each of the T steps). There is no
    cost of the last state."""
    n = dynamics.f.shape[-1]

    def of_step(
        at: Float[Array, "N nmn"], F: Float[Array, "n nm"], f: Float[Array, "n"], W: Float[Array, "n n"]
    ) -> tuple[Float[Array, "nm nm"], Float[Array, "nm"], Float[Array, ""]]:
        constant, slope, curvature = (jnp.mean(terms, axis=0) for terms in jax.vmap(lambda y: _around(cost, y))(at))
        # y = G [x; u] + e
        G = jnp.concatenate([jnp.eye(F.shape[1], dtype=F.dtype), F])
        e = jnp.concatenate([jnp.zeros(F.shape[1], F.dtype), f])
        spread = jnp.sum(curvature[-n:, -n:] * W) / 2
        return G.T @ curvature @ G, G.T @ (slope + curvature @ e), constant + (slope + curvature @ e / 2) @ e + spread

    C, c, constant = jax.vmap(of_step, in_axes=(1, 0, 0, 0))(steps, *dynamics)
    # Not a constant matrix, with which XLA's products may be wrong (`core.xla`).
    return QuadraticCost(C, c, 0.0 * dynamics.W[0], jnp.zeros_like(dynamics.f[0])), constant


def _around(
    cost: Callable[[Float[Array, "nmn"]], Float[Array, ""]], y: Float[Array, "nmn"]
) -> tuple[Float[Array, ""], Float[Array, "nmn"], Float[Array, "nmn nmn"]]:
    """(constant, slope, curvature) of the expansion around `y`, as a function of y itself and not of the distance."""
    value, gradient = jax.value_and_grad(cost)(y)
    curvature = convex(jax.hessian(cost)(y))
    return value - gradient @ y + (curvature @ y) @ y / 2, gradient - curvature @ y, curvature


def convex(matrix: Float[Array, "d d"]) -> Float[Array, "d d"]:
    """The symmetric `matrix` with its negative eigenvalues replaced by 0."""
    values, vectors = jnp.linalg.eigh(matrix)
    return (vectors * jnp.maximum(values, 0.0)) @ vectors.T
