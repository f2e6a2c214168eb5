"""The few flax modules. Ensembles are made by `jax.vmap` over `init` and `apply`, not by modules of their own."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float

Initializer = Callable[..., jax.Array]


def pets_kernel_init(key: jax.Array, shape: tuple[int, ...], dtype: Any = float) -> jax.Array:
    """Normal of standard deviation 1 / (2 sqrt(fan in)), cut off at two of them: PETS's initialisation."""
    return jax.nn.initializers.truncated_normal(1 / (2 * math.sqrt(shape[-2])))(key, shape, dtype)


RARE = 0.05
"""Below this rate, `bernoulli` draws where the true ones are, and not a number for each."""


def bernoulli(key: jax.Array, rate: float, shape: tuple[int, ...]) -> Bool[Array, "*shape"]:
    """Independent truth values, true at `rate`, 0 <= rate < 1.

    Rare ones are found by the geometric gaps between them, of which a few more are drawn than are ever needed (fewer than
    one mask in 10^12 would want more): the cost is that of the true ones, where a random number for each is dear.
    """
    if not 0 < rate < RARE:
        return jax.random.bernoulli(key, rate, shape)
    size = math.prod(shape)
    mean = size * rate
    number = min(size, math.ceil(mean + 8 * math.sqrt(mean) + 16))
    uniform = jax.random.uniform(key, (number,))
    gaps = jnp.minimum(jnp.floor(jnp.log1p(-uniform) / math.log1p(-rate)), size).astype(jnp.int32)
    positions = jnp.cumsum(gaps + 1) - 1
    return jnp.zeros(size, bool).at[positions].set(True, mode="drop").reshape(shape)


class MLP(nn.Module):
    """A multilayer perceptron: `hidden` layers with `activation`, then a linear layer of `out` units.

    A hidden layer is linear, then drops the share `dropout` of its units, then has layer norm (Ba et al., arXiv 1607.06450)
    where `layer_norm` says so, then the activation: DroQ's order (arXiv 2110.02034). Where there are `norms`, each hidden
    layer's activations are normalised too, without learned scale and shift: these are the epsilons. Weights are of JAX's
    default float.
    """

    hidden: tuple[int, ...]
    out: int
    activation: Callable[[jax.Array], jax.Array] = nn.relu
    kernel_init: Initializer = nn.initializers.lecun_normal()
    layer_norm: bool = False
    dropout: float = 0.0
    norms: tuple[float, ...] = ()
    last_init: Initializer | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "*n i"], key: jax.Array | None = None) -> Float[Array, "*n o"]:
        """Apply the network to the last axis; units are dropped, for each row others, only where a key is given."""
        dense = partial(nn.Dense, kernel_init=self.kernel_init, param_dtype=jnp.result_type(float))
        for i, units in enumerate(self.hidden):
            x = dense(units)(x)
            if self.dropout and key is not None:
                dropped = bernoulli(jax.random.fold_in(key, i), self.dropout, x.shape)
                x = jnp.where(dropped, 0, x / (1 - self.dropout))
            if self.layer_norm:
                x = nn.LayerNorm(param_dtype=jnp.result_type(float))(x)
            x = self.activation(x)
            if self.norms:
                x = nn.LayerNorm(epsilon=self.norms[i], use_bias=False, use_scale=False)(x)
        return dense(self.out, kernel_init=self.last_init or self.kernel_init)(x)
