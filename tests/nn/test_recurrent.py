"""The gated recurrent unit and long short-term memory against Flax, and unrolling over ends of episodes against a loop."""

import jax
import numpy as np
import pytest
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


def block_unit(inputs=3, units=6, blocks=2):
    rng = np.random.default_rng(5)
    shapes = jax.eval_shape(lambda key: recurrent.init_blocks(key, inputs, units, blocks), jax.random.key(0))
    return jax.tree.map(lambda x: rng.normal(size=x.shape), shapes)


step_blocks = jax.jit(recurrent.step_blocks)


def test_a_step_of_the_block_unit_is_that_of_a_loop_over_blocks(x64):
    gru, rng = block_unit(), np.random.default_rng(6)
    hidden, x = rng.normal(size=(4, 6)), rng.normal(size=(4, 3))
    for h, entered, found in zip(hidden, x, step_blocks(gru, hidden, x), strict=True):
        blocks = h.reshape(2, 3)
        y = np.concatenate([np.concatenate([blocks[g], entered]) @ gru.mix_kernel[g] + gru.mix_bias[g] for g in range(2)])
        y = y / np.sqrt(np.mean(y**2) + 1e-4) * gru.scale
        y = y / (1 + np.exp(-y))
        after = []
        for g in range(2):
            r, c, u = np.split(y.reshape(2, 3)[g] @ gru.gate_kernel[g] + gru.gate_bias[g], 3)
            update = 1 / (1 + np.exp(1 - u))
            after.append(update * np.tanh(c / (1 + np.exp(-r))) + (1 - update) * blocks[g])
        np.testing.assert_allclose(found, np.concatenate(after), rtol=1e-12)


def test_the_block_unit_keeps_most_of_its_state_at_first(x64):
    """With all gates 0 it keeps 1 - sigmoid(-1) = .731059 of h."""
    gru = jax.tree.map(np.zeros_like, block_unit())
    hidden = np.arange(1.0, 7.0)
    np.testing.assert_allclose(step_blocks(gru, hidden, np.ones(3)), 0.731059 * hidden, rtol=1e-6)


def test_initial_weights_of_the_block_unit_count_the_inputs_of_all_blocks():
    gru = jax.device_get(jax.jit(lambda key: recurrent.init_blocks(key, 40, 96, 4))(jax.random.key(0)))
    assert gru.mix_kernel.shape == (4, 24 + 40, 24) and gru.gate_kernel.shape == (4, 24, 72)
    for kernel in (gru.mix_kernel, gru.gate_kernel):
        np.testing.assert_allclose(kernel.std(), 1 / np.sqrt(4 * kernel.shape[1]), rtol=0.05)
    assert (gru.scale == 1).all() and not gru.mix_bias.any() and not gru.gate_bias.any()
    with pytest.raises(ValueError, match="must divide 6 hidden numbers, got 4"):
        recurrent.init_blocks(jax.random.key(0), 3, 6, 4)


def test_a_step_of_long_short_term_memory_is_that_of_flax(x64):
    rng = np.random.default_rng(3)
    shapes = jax.eval_shape(lambda key: recurrent.init_lstm(key, I, H), jax.random.key(0))
    lstm = jax.tree.map(lambda x: rng.normal(size=x.shape), shapes)
    kernels = np.split(lstm.input_kernel, 4, 1), np.split(lstm.hidden_kernel, 4, 1), np.split(lstm.bias, 4)
    params = {}
    for name, enter, hidden, bias in zip("ifgo", *kernels, strict=True):
        params[f"i{name}"] = {"kernel": enter}
        params[f"h{name}"] = {"kernel": hidden, "bias": bias + (name == "f")}
    hidden, cell, x = (rng.normal(size=(B, size)) for size in (H, H, I))

    @jax.jit
    def both(hidden, cell, x):
        (c, h), _ = nn.OptimizedLSTMCell(H).apply({"params": params}, (cell, hidden), x)
        return (h, c), recurrent.step_lstm(lstm, hidden, cell, x)

    expected, found = both(hidden, cell, x)
    for a, b in zip(expected, found, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)
