"""Square roots whose derivative at 0 is 0."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float


def root(variance: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """The square root of numbers that are not negative. Its derivative at 0 is 0 in place of infinity, so that a standard
    deviation of equal numbers does not make a gradient that is not a number.

    >>> from jaxmbrl.core.roots import root
    >>> jax.grad(lambda x: jnp.sum(root(x)))(jnp.array([0.0, 4.0])).tolist()
    [0.0, 0.25]
    """
    none = variance == 0
    return jnp.where(none, 0.0, jnp.sqrt(jnp.where(none, 1.0, variance)))
