"""Minima and maxima whose gradients do not depend on rounding.

JAX differentiates `jnp.min`, `jnp.max`, `jnp.minimum` and `jnp.maximum` by comparing each number with the result for
equality. A compiled program may compute the number again for that comparison, for example with a fused multiply-add where
the first computation had none. It then differs from the result by a rounding error, and the gradient is 0 or not a
number: on a CPU, the gradient of a mean of min(C z + K a, axis=0) is wrong by 10 % in the compiled program, and right if
the operations run one by one (jax 0.10.2). `minimum` and `maximum` of two numbers can fail in the same way where their
operands are computed twice, as was found on GPUs; later versions of JAX differentiate these without the comparison. Use
these functions where a minimum or a maximum is differentiated. A test searches the traced program of every method for
comparisons with `min` or `max`.

The gradient goes to one of several equal numbers, the first one.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def smallest(values: Float[Array, "*n"], axis: int = 0, keepdims: bool = False) -> Float[Array, "*m"]:
    """The minimum along an axis, as `jnp.min`. Not a number if one of the values is none.

    >>> from jaxmbrl.core.extremes import smallest
    >>> jax.grad(lambda x: jnp.sum(smallest(x)))(jnp.array([3.0, 1.0, 1.0])).tolist()
    [0.0, 1.0, 0.0]
    """
    place = jax.lax.broadcasted_iota(jnp.int32, values.shape, axis % values.ndim)
    chosen = place == jnp.argmin(values, axis=axis, keepdims=True)
    return jnp.sum(jnp.where(chosen, values, 0.0), axis=axis, keepdims=keepdims)


def largest(values: Float[Array, "*n"], axis: int = 0, keepdims: bool = False) -> Float[Array, "*m"]:
    """The maximum along an axis, as `jnp.max`. Not a number if one of the values is none."""
    return -smallest(-values, axis, keepdims)


def lesser(x: Any, y: Any) -> Float[Array, "..."]:
    """The smaller of two numbers, as `jnp.minimum`. Not a number if one of them is none."""
    return jnp.where((x <= y) | jnp.isnan(x), x, y)


def greater(x: Any, y: Any) -> Float[Array, "..."]:
    """The larger of two numbers, as `jnp.maximum`. Not a number if one of them is none."""
    return jnp.where((x >= y) | jnp.isnan(x), x, y)
