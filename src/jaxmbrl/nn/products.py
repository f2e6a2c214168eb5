"""The product of a dense layer, with a gradient of its kernel that is fast on a CPU.

The gradient of the kernel is a sum over rows, sum_n x_n g_n^T. JAX computes its transpose, sum_n g_n x_n^T, and transposes
that. For a single network XLA removes the transposition. For networks under `jax.vmap` (critics, members, seeds) it may
keep it, and each later operation on the gradient then reads memory in the wrong order. On a CPU a product with few columns
is also ten times as slow as its transpose with few rows. Here the factors are ordered by their widths.

The product has derivatives of all orders, in forward and in reverse mode.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, Float

NARROW, TALL = 32, 4
"""On a CPU a factor with many rows is transposed in memory first, if both widths are at least NARROW and there are at least
TALL times as many rows: XLA sums over the last axis in a third of the time."""


@jax.custom_jvp
def product(x: Float[Array, "*n i"], kernel: Float[Array, "i o"]) -> Float[Array, "*n o"]:
    """`x @ kernel`."""
    return _product(x, kernel)


def _product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return jax.lax.dot_general(x, kernel, (((x.ndim - 1,), (0,)), ((), ())))


def _tangent(primals: tuple[Any, Any], tangents: tuple[Any, Any]) -> tuple[jax.Array, jax.Array]:
    (x, kernel), (x_change, kernel_change) = primals, tangents
    found = product(x, kernel)
    terms = [
        times.bind(rows.reshape(-1, x.shape[-1]), factor).reshape(found.shape)
        for rows, factor in ((x_change, kernel), (x, kernel_change))
        if not any(isinstance(of, jax.custom_derivatives.SymbolicZero) for of in (rows, factor))
    ]
    return found, sum(terms[1:], start=terms[0])


product.defjvp(_tangent, symbolic_zeros=True)


times = Primitive("rows_times_kernel")
"""x [*b, n, i], kernel [*b, i, o] -> x @ kernel [*b, n, o]. Unlike the product of JAX, the transpose of this map with
respect to the kernel is `kernel_gradient`. It occurs in tangents only; in reverse mode no program contains it."""


def _matmul(x: Any, kernel: Any) -> jax.Array:
    batch = tuple(range(x.ndim - 2))
    return jax.lax.dot_general(x, kernel, (((x.ndim - 1,), (x.ndim - 2,)), (batch, batch)))


def kernel_gradient(x: Float[Array, "*b n i"], gradient: Float[Array, "*b n o"]) -> Float[Array, "*b i o"]:
    """The sum over rows of x_n g_n^T, for each network of the batch. The factor with fewer columns comes first."""
    batch, rows = tuple(range(x.ndim - 2)), x.ndim - 2
    dimensions = (((rows,), (rows,)), (batch, batch))
    widths = x.shape[-1], gradient.shape[-1]
    if jax.default_backend() == "cpu" and min(widths) >= NARROW and x.shape[-2] >= TALL * max(widths):
        # Without the barrier XLA would merge the transposition into the product.
        return jnp.matmul(jax.lax.optimization_barrier(jnp.matrix_transpose(x)), gradient)
    if gradient.shape[-1] >= x.shape[-1] or jax.default_backend() != "cpu":
        return jax.lax.dot_general(x, gradient, dimensions)
    # Without the barrier XLA would reorder the factors.
    return jnp.matrix_transpose(jax.lax.optimization_barrier(jax.lax.dot_general(gradient, x, dimensions)))


def _of_x(gradient: Any, x: Any, kernel: Any) -> jax.Array:
    batch = tuple(range(gradient.ndim - 2))
    return jax.lax.dot_general(gradient, kernel, (((gradient.ndim - 1,), (gradient.ndim - 1,)), (batch, batch)))


def _of_kernel(gradient: Any, x: Any, kernel: Any) -> jax.Array:
    return kernel_gradient(jnp.asarray(x), jnp.asarray(gradient))


def _batched(operands: tuple[Any, Any], axes: tuple[int | None, int | None]) -> tuple[jax.Array, int]:
    (x, kernel), (of_x, of_kernel) = operands, axes
    if of_kernel is None:
        assert of_x is not None, "an operand under vmap has an axis"
        # More rows for the same kernels.
        x = jnp.moveaxis(x, of_x, -3)
        found = times.bind(x.reshape(*x.shape[:-3], -1, x.shape[-1]), kernel)
        return found.reshape(*x.shape[:-1], kernel.shape[-1]), x.ndim - 3
    kernel = jnp.moveaxis(kernel, of_kernel, 0)
    x = jnp.broadcast_to(x, (len(kernel), *x.shape)) if of_x is None else jnp.moveaxis(x, of_x, 0)
    return times.bind(x, kernel), 0


times.def_impl(_matmul)
times.def_abstract_eval(
    lambda x, kernel: jax.core.ShapedArray((*x.shape[:-1], kernel.shape[-1]), jnp.result_type(x.dtype, kernel.dtype))
)
ad.defbilinear(times, _of_x, _of_kernel)
batching.primitive_batchers[times] = _batched
mlir.register_lowering(times, mlir.lower_fun(_matmul, multiple_results=False))
