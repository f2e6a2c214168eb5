"""The gated recurrent unit against Flax's, and its unrolling over ends of episodes against a loop."""

import jax
import numpy as np
from flax import linen as nn

from jaxmbrl.nn import recurrent

I, H, B, L = 3, 4, 2, 6  # noqa: E741


def unit(seed=0):
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda key: recurrent.init(key, I, H), jax.random.key(0))
    return jax.tree.map(lambda x: rng.normal(size=x.shape), shapes)


def in_flax(gru):
    """The same parameters for `flax.linen.GRUCell`."""
    kernels = {
        f"i{name}": {"kernel": kernel, "bias": bias}
        for name, kernel, bias in zip("rzn", np.split(gru.input_kernel, 3, 1), np.split(gru.bias, 3), strict=True)
    }
    hidden = {f"h{name}": {"kernel": kernel} for name, kernel in zip("rzn", np.split(gru.hidden_kernel, 3, 1), strict=True)}
    hidden["hn"]["bias"] = gru.hidden_bias
    return {"params": kernels | hidden}


def test_a_step_is_that_of_flax_and_unrolling_starts_anew_where_an_episode_does(x64):
    gru, rng = unit(), np.random.default_rng(1)
    x, first = rng.normal(size=(B, L, I)), rng.normal(size=(B, H))
    is_first = np.zeros((B, L), bool)
    is_first[0, 3] = is_first[1, 0] = True
    cell, params = nn.GRUCell(H), in_flax(gru)
    step = jax.jit(lambda h, x: (cell.apply(params, h, x)[0], recurrent.step(gru, h, x)))
    expected, hidden = [], first
    for t in range(L):
        hidden, own = step(np.where(is_first[:, t, None], 0.0, hidden), x[:, t])
        np.testing.assert_allclose(own, hidden, rtol=1e-12)
        expected.append(hidden)
    found = jax.jit(recurrent.unroll)(gru, first, x, is_first)
    np.testing.assert_allclose(found, np.stack(expected, axis=1), rtol=1e-12)


def test_a_step_by_hand():
    """With x = 1, h = 2 and r = z = 1/2: n = tanh(1 + 1/2 (2 + 1)) = tanh(2.5), h' = n / 2 + 1."""
    gru = recurrent.GRU(np.array([[0.0, 0, 1]]), np.array([[0.0, 0, 1]]), np.zeros(3), np.ones(1))
    found = jax.jit(recurrent.step)(gru, np.array([2.0]), np.array([1.0]))
    np.testing.assert_allclose(found, [0.5 * 0.9866143 + 1], rtol=1e-6)


def test_initial_hidden_kernels_are_orthogonal():
    gru = jax.device_get(jax.jit(lambda key: recurrent.init(key, I, H))(jax.random.key(0)))
    blocks = np.split(gru.hidden_kernel, 3, axis=1)
    for block in blocks:
        np.testing.assert_allclose(block.T @ block, np.eye(H), atol=1e-6)
    assert not np.allclose(blocks[0], blocks[1]) and not gru.bias.any() and not gru.hidden_bias.any()
