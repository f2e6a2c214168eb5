"""The few flax modules. Ensembles are made by `jax.vmap` over `init` and `apply`, not by modules of their own."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

Initializer = Callable[..., jax.Array]


def pets_kernel_init(key: jax.Array, shape: tuple[int, ...], dtype: Any = float) -> jax.Array:
    """Normal of standard deviation 1 / (2 sqrt(fan in)), cut off at two of them: PETS's initialisation."""
    return jax.nn.initializers.truncated_normal(1 / (2 * math.sqrt(shape[-2])))(key, shape, dtype)


class MLP(nn.Module):
    """A multilayer perceptron: `hidden` layers with `activation`, before it layer norm (Ba et al., arXiv 1607.06450) where
    `layer_norm` says so, then a linear layer of `out` units.

    Weights are of JAX's default float.
    """

    hidden: tuple[int, ...]
    out: int
    activation: Callable[[jax.Array], jax.Array] = nn.relu
    kernel_init: Initializer = nn.initializers.lecun_normal()
    layer_norm: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "*n i"]) -> Float[Array, "*n o"]:
        """Apply the network to the last axis."""
        dense = partial(nn.Dense, kernel_init=self.kernel_init, param_dtype=jnp.result_type(float))
        for units in self.hidden:
            x = dense(units)(x)
            if self.layer_norm:
                x = nn.LayerNorm(param_dtype=jnp.result_type(float))(x)
            x = self.activation(x)
        return dense(self.out)(x)
