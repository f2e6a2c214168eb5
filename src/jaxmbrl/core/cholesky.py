"""Cholesky decompositions of small matrices on a CPU, and functions that solve with larger ones, one at a time.

Before jaxlib 0.11.1, XLA distributes the matrices of a batch over its thread pool, and the thread that does so waits for
the others. If as many decompositions run at once as there are threads, they deadlock. So do triangular solves with 16
matrices of 40 x 40 on their right-hand side; with vectors, or matrices of 20 x 20, they do not. A single matrix needs no
other thread. MJX's matrices are so small that one at a time is as fast: 0.9 ms for 1,000 of 9 x 9, both ways, on two cores.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from importlib.metadata import version
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

POOL_IS_HELD = tuple(int(number) for number in re.findall(r"\d+", version("jaxlib"))[:3]) < (0, 11, 1)
"""Whether this jaxlib has the deadlock: a batched decomposition waits for the thread pool while it occupies a thread."""


@jax.custom_jvp
def cholesky(matrix: Float[Array, "N N"]) -> Float[Array, "N N"]:
    """The lower triangular L with L L^T = matrix. Only the lower triangle of `matrix` is read. Not finite if there is no
    such L."""
    return jax.lax.platform_dependent(matrix, cpu=_alone, default=_decompose)


@cholesky.defjvp
def _derivative(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    """dL = L F(L^-1 dA L^-T), where F(x) is the lower triangle of x with its diagonal halved (Murray, 2016, equation 8)."""
    lower = cholesky(*primals)
    left = jax.scipy.linalg.solve_triangular(lower, *tangents, lower=True)
    both = jax.scipy.linalg.solve_triangular(lower, left.mT, lower=True).mT
    return lower, lower @ (jnp.tril(both) - jnp.diag(jnp.diag(both)) / 2)


def _decompose(matrix: Float[Array, "N N"]) -> Float[Array, "N N"]:
    return jax.lax.linalg.cholesky(matrix, symmetrize_input=False)


_alone = jax.custom_batching.sequential_vmap(_decompose)


def one_at_a_time(function: Callable[[Any, Any], Float[Array, ""]]) -> Callable[[Any, Any], Float[Array, ""]]:
    """`function(point, data)`, a number, of which `jax.vmap` computes the value and the gradient for one element after the
    other. It has a gradient with respect to `point`, in reverse mode, and none with respect to `data`."""
    both = jax.custom_batching.sequential_vmap(jax.value_and_grad(function))

    @jax.custom_vjp
    def value(point: Any, data: Any) -> Float[Array, ""]:
        return both(point, data)[0]

    def backward(gradient: Any, scale: Float[Array, ""]) -> tuple[Any, None]:
        return jax.tree.map(lambda x: scale * x, gradient), None

    value.defvjp(both, backward)
    return value


@contextlib.contextmanager
def one_by_one() -> Iterator[None]:
    """Context manager: code traced inside uses `cholesky` when it calls `jax.scipy.linalg` to factor a single matrix, or to
    solve with a single positive definite one, as MJX and Brax do. The numbers stay the same."""
    if not POOL_IS_HELD:
        yield
        return
    linalg: Any = jax.scipy.linalg
    factor, solve = linalg.cho_factor, linalg.solve

    def our_factor(a: Array, lower: bool = False, **options: Any) -> tuple[Array, bool]:
        return (cholesky(a) if lower else cholesky(a.mT).mT), lower

    def our_solve(a: Array, b: Array, lower: bool = False, assume_a: str = "gen", **options: Any) -> Array:
        if assume_a != "pos":
            return solve(a, b, lower=lower, assume_a=assume_a, **options)
        return linalg.cho_solve(our_factor(a, lower), b)

    linalg.cho_factor, linalg.solve = our_factor, our_solve
    try:
        yield
    finally:
        linalg.cho_factor, linalg.solve = factor, solve
