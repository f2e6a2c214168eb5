"""The gated recurrent unit (Cho et al., arXiv 1406.1078), with the reset gate after the product, as in cuDNN:

r = sigmoid(W_r x + U_r h + b_r)
z = sigmoid(W_z x + U_z h + b_z)
n = tanh(W_n x + b_n + r (U_n h + c_n))
h' = (1 - z) n + z h

and the block unit of DreamerV3 (arXiv 2301.04104, section "World model learning" and its code), in which each of G blocks
of h sees itself and the input only:

y   = silu(rms_norm(W_g [h_g, x] of all blocks g))
r, c, u = V_g y_g
h'  = sigmoid(u - 1) tanh(sigmoid(r) c) + (1 - sigmoid(u - 1)) h

and long short-term memory (LSTM; Hochreiter and Schmidhuber, Neural Computation 9, 1997, with the forget gate of Gers et
al., 2000), with a cell c:

i, f, g, o = W x + U h + b
c' = sigmoid(f + 1) c + sigmoid(i) tanh(g)
h' = sigmoid(o) tanh(c')
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxmbrl.core.types import Key
from jaxmbrl.nn.networks import RMS_EPSILON, orthogonal


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
    input_kernel, hidden_kernel = _kernels(key, inputs, units, 3)
    dtype = input_kernel.dtype
    return GRU(input_kernel, hidden_kernel, bias=jnp.zeros(3 * units, dtype), hidden_bias=jnp.zeros(units, dtype))


def _kernels(key: Key, inputs: int, units: int, blocks: int) -> tuple[Float[Array, "I _"], Float[Array, "H _"]]:
    """(W, U) of a unit with this number of blocks of columns."""
    input_key, *hidden_keys = jax.random.split(key, blocks + 1)
    dtype = jnp.result_type(float)
    return (
        jax.nn.initializers.lecun_normal()(input_key, (inputs, blocks * units), dtype),
        jnp.concatenate([orthogonal()(k, (units, units), dtype) for k in hidden_keys], axis=1),
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


class BlockGRU(NamedTuple):
    """Parameters of the block unit with G blocks, I inputs and H hidden numbers."""

    mix_kernel: Float[Array, "G H/G+I H/G"]
    """W."""
    mix_bias: Float[Array, "G H/G"]
    scale: Float[Array, "H"]
    """Of the norm, which is that of all blocks together."""
    gate_kernel: Float[Array, "G H/G 3*H/G"]
    """V; columns are those of r, c and u in turn."""
    gate_bias: Float[Array, "G 3*H/G"]


def init_blocks(key: Key, inputs: int, units: int, blocks: int) -> BlockGRU:
    """Initial parameters: normal, truncated at two standard deviations, with variance 1 over the inputs of all blocks, so
    that a sum over the inputs of one block has variance 1 / G. Biases are 0. Raises ValueError if `blocks` does not divide
    `units`."""
    if units % blocks:
        raise ValueError(f"the number of blocks must divide {units} hidden numbers, got {blocks}")
    mix_key, gate_key = jax.random.split(key)
    dtype, size = jnp.result_type(float), units // blocks

    def kernel(key: Key, rows: int, columns: int) -> Float[Array, "G rows columns"]:
        of_all = jax.nn.initializers.lecun_normal()(key, (blocks * rows, columns), dtype)
        return of_all.reshape(blocks, rows, columns)

    return BlockGRU(
        mix_kernel=kernel(mix_key, size + inputs, size),
        mix_bias=jnp.zeros((blocks, size), dtype),
        scale=jnp.ones(units, dtype),
        gate_kernel=kernel(gate_key, size, 3 * size),
        gate_bias=jnp.zeros((blocks, 3 * size), dtype),
    )


def step_blocks(gru: BlockGRU, hidden: Float[Array, "*n H"], x: Float[Array, "*n I"]) -> Float[Array, "*n H"]:
    """The next hidden state of the block unit from h and the input x."""
    blocks, shape = gru.mix_kernel.shape[0], hidden.shape

    def by_block(y: Array) -> Array:
        return y.reshape(*shape[:-1], blocks, -1)

    shown = jnp.broadcast_to(x[..., None, :], (*x.shape[:-1], blocks, x.shape[-1]))
    y = _of_blocks(jnp.concatenate([by_block(hidden), shown], axis=-1), gru.mix_kernel, gru.mix_bias).reshape(shape)
    y = y * jax.lax.rsqrt(jnp.mean(y**2, axis=-1, keepdims=True) + RMS_EPSILON) * gru.scale
    gates = _of_blocks(by_block(jax.nn.silu(y)), gru.gate_kernel, gru.gate_bias)
    reset, candidate, update = (gate.reshape(shape) for gate in jnp.split(gates, 3, axis=-1))
    update = jax.nn.sigmoid(update - 1)
    return update * jnp.tanh(jax.nn.sigmoid(reset) * candidate) + (1 - update) * hidden


def _of_blocks(
    x: Float[Array, "*n G i"], kernel: Float[Array, "G i o"], bias: Float[Array, "G o"]
) -> Float[Array, "*n G o"]:
    return jnp.einsum("...gi,gio->...go", x, kernel) + bias


class LSTM(NamedTuple):
    """Parameters of long short-term memory with I inputs and H hidden numbers. Columns are of i, f, g and o in turn."""

    input_kernel: Float[Array, "I 4*H"]
    """W."""
    hidden_kernel: Float[Array, "H 4*H"]
    """U."""
    bias: Float[Array, "4*H"]
    """b."""


def init_lstm(key: Key, inputs: int, units: int) -> LSTM:
    """Initial parameters: W by LeCun's normal distribution, each block of U orthogonal, biases 0."""
    input_kernel, hidden_kernel = _kernels(key, inputs, units, 4)
    return LSTM(input_kernel, hidden_kernel, bias=jnp.zeros(4 * units, input_kernel.dtype))


def step_lstm(
    lstm: LSTM, hidden: Float[Array, "*n H"], cell: Float[Array, "*n H"], x: Float[Array, "*n I"]
) -> tuple[Float[Array, "*n H"], Float[Array, "*n H"]]:
    """The next (hidden state h', cell c') from h, c and the input x."""
    gates = x @ lstm.input_kernel + hidden @ lstm.hidden_kernel + lstm.bias
    enter, forget, new, show = jnp.split(gates, 4, axis=-1)
    cell = jax.nn.sigmoid(forget + 1) * cell + jax.nn.sigmoid(enter) * jnp.tanh(new)
    return jax.nn.sigmoid(show) * jnp.tanh(cell), cell
