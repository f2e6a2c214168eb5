"""The gated recurrent unit (Cho et al., arXiv 1406.1078), with the reset gate after the product, as in cuDNN:

r = sigmoid(W_r x + U_r h + b_r)
z = sigmoid(W_z x + U_z h + b_z)
n = tanh(W_n x + b_n + r (U_n h + c_n))
h' = (1 - z) n + z h
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxmbrl.core.types import Key


class GRU(NamedTuple):
    """Parameters of a unit with I inputs and H hidden numbers. Columns are those of r, z and n in turn."""

    input_kernel: Float[Array, "I 3*H"]
    """W."""
    hidden_kernel: Float[Array, "H 3*H"]
    """U."""
    bias: Float[Array, "3*H"]
    """b."""
    hidden_bias: Float[Array, "H"]
    """c_n."""


def init(key: Key, inputs: int, units: int) -> GRU:
    """Initial parameters: W by LeCun's normal distribution, each block of U orthogonal, biases 0."""
    input_key, *hidden_keys = jax.random.split(key, 4)
    dtype = jnp.result_type(float)
    orthogonal = jax.nn.initializers.orthogonal()
    return GRU(
        input_kernel=jax.nn.initializers.lecun_normal()(input_key, (inputs, 3 * units), dtype),
        hidden_kernel=jnp.concatenate([orthogonal(k, (units, units), dtype) for k in hidden_keys], axis=1),
        bias=jnp.zeros(3 * units, dtype),
        hidden_bias=jnp.zeros(units, dtype),
    )


def step(gru: GRU, hidden: Float[Array, "*n H"], x: Float[Array, "*n I"]) -> Float[Array, "*n H"]:
    """The next hidden state h' from h and the input x."""
    return _gated(gru, hidden, x @ gru.input_kernel + gru.bias)


def unroll(
    gru: GRU, hidden: Float[Array, "B H"], x: Float[Array, "B L I"], is_first: Bool[Array, "B L"]
) -> Float[Array, "B L H"]:
    """The hidden states after each of L steps from `hidden`. Before a step where `is_first` is true, the hidden state is
    set to 0. The products with the inputs are computed for all steps at once."""
    entered = x @ gru.input_kernel + gru.bias

    def one(hidden: Array, given: tuple[Array, Array]) -> tuple[Array, Array]:
        entered, is_first = given
        hidden = _gated(gru, jnp.where(is_first[:, None], 0.0, hidden), entered)
        return hidden, hidden

    _, states = jax.lax.scan(one, hidden, (jnp.swapaxes(entered, 0, 1), is_first.T))
    return jnp.swapaxes(states, 0, 1)


def _gated(gru: GRU, hidden: Float[Array, "*n H"], entered: Float[Array, "*n 3*H"]) -> Float[Array, "*n H"]:
    of_r, of_z, of_n = jnp.split(entered, 3, axis=-1)
    from_r, from_z, from_n = jnp.split(hidden @ gru.hidden_kernel, 3, axis=-1)
    r, z = jax.nn.sigmoid(of_r + from_r), jax.nn.sigmoid(of_z + from_z)
    n = jnp.tanh(of_n + r * (from_n + gru.hidden_bias))
    return (1 - z) * n + z * hidden
