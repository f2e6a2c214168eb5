"""The multilayer perceptron, its dropout, and PETS's initialisation."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from scipy import stats

from jaxmbrl.nn import networks


def test_mlp_is_affine_activation_affine_by_hand():
    mlp = networks.MLP((3, 4), 2, nn.swish)
    x = jax.random.normal(jax.random.key(1), (5, 6))
    params = mlp.init(jax.random.key(0), x)
    layers = [params["params"][f"Dense_{i}"] for i in range(3)]
    layers = [(np.asarray(layer["kernel"], np.float64), np.asarray(layer["bias"], np.float64) + 0.1) for layer in layers]
    y = np.asarray(x, np.float64)
    for i, (kernel, bias) in enumerate(layers):
        y = y @ kernel + bias
        if i < 2:
            y = y / (1 + np.exp(-y))
    shifted = jax.tree_util.tree_map_with_path(lambda path, p: p + 0.1 if path[-1].key == "bias" else p, params)
    np.testing.assert_allclose(mlp.apply(shifted, x), y, rtol=1e-5, atol=1e-6)
    assert [kernel.shape for kernel, _ in layers] == [(6, 3), (3, 4), (4, 2)]


def test_dropout_then_layer_norm_then_activation_by_hand():
    """A hidden layer drops units before it normalises the rest: in float64 NumPy, with the masks of the same key."""
    mlp = networks.MLP((6, 4), 2, layer_norm=True, dropout=0.4)
    x, key = jax.random.normal(jax.random.key(1), (5, 3)), jax.random.key(7)
    params = mlp.init(jax.random.key(0), x)
    shifted = jax.tree_util.tree_map_with_path(lambda path, p: p + 0.1 if path[-1].key != "kernel" else p, params)
    named = jax.tree.map(lambda p: np.asarray(p, np.float64), shifted["params"])

    def expected(masks):
        y = np.asarray(x, np.float64)
        for i in range(2):
            y = y @ named[f"Dense_{i}"]["kernel"] + named[f"Dense_{i}"]["bias"]
            y = y * masks[i]
            spread = np.sqrt(((y - y.mean(1, keepdims=True)) ** 2).mean(1, keepdims=True) + 1e-6)
            y = (y - y.mean(1, keepdims=True)) / spread * named[f"LayerNorm_{i}"]["scale"] + named[f"LayerNorm_{i}"]["bias"]
            y = np.maximum(y, 0)
        return y @ named["Dense_2"]["kernel"] + named["Dense_2"]["bias"]

    masks = [
        ~np.asarray(jax.random.bernoulli(jax.random.fold_in(key, i), 0.4, (5, units))) / 0.6
        for i, units in enumerate((6, 4))
    ]
    assert all(len(np.unique(mask, axis=0)) > 1 for mask in masks), "rows drop units of their own"
    np.testing.assert_allclose(mlp.apply(shifted, x, key), expected(masks), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(mlp.apply(shifted, x), expected([1, 1]), rtol=1e-4, atol=1e-5)


def test_a_dropped_layer_keeps_its_mean():
    """Of a linear layer's units a quarter is dropped, and the others are a third larger."""
    mlp = networks.MLP((20_000,), 1, lambda x: x, dropout=0.25)
    params = {
        "params": {
            "Dense_0": {"kernel": jnp.ones((1, 20_000)), "bias": jnp.zeros(20_000)},
            "Dense_1": {"kernel": jnp.ones((20_000, 1)), "bias": jnp.zeros(1)},
        }
    }
    found = mlp.apply(params, jnp.array([[3.0]]), jax.random.key(0))[0, 0] / 20_000
    # The share that is kept has a deviation of 0.003.
    np.testing.assert_allclose(found, 3.0, rtol=0.0125)
    assert found != 3.0


def test_dropout_and_layer_norm_leave_the_initial_numbers_as_they_are():
    plain, both = networks.MLP((6, 4), 2), networks.MLP((6, 4), 2, layer_norm=True, dropout=0.4)
    a, b = (mlp.init(jax.random.key(0), jnp.zeros(3))["params"] for mlp in (plain, both))
    assert set(b) - set(a) == {"LayerNorm_0", "LayerNorm_1"}
    jax.tree.map(np.testing.assert_array_equal, a, {name: b[name] for name in a})
    np.testing.assert_array_equal(
        plain.apply({"params": a}, jnp.ones(3), jax.random.key(1)), plain.apply({"params": a}, jnp.ones(3))
    )


def test_mlp_without_hidden_layers_is_linear():
    mlp = networks.MLP((), 2)
    params = mlp.init(jax.random.key(0), jnp.zeros(3))
    x = jnp.arange(3.0)
    np.testing.assert_allclose(mlp.apply(params, 5 * x), 5 * mlp.apply(params, x), rtol=1e-6)


def test_mlp_acts_on_the_last_axis_only():
    mlp = networks.MLP((8,), 2)
    x = jax.random.normal(jax.random.key(0), (4, 5, 3))
    params = mlp.init(jax.random.key(0), x[0, 0])
    np.testing.assert_allclose(mlp.apply(params, x)[2, 3], mlp.apply(params, x[2, 3]), rtol=1e-5, atol=1e-6)


def test_ensemble_is_a_vmap_over_init_and_apply():
    mlp = networks.MLP((8,), 2)
    x = jnp.ones(3)
    params = jax.vmap(lambda key: mlp.init(key, x))(jax.random.split(jax.random.key(0), 5))
    out = jax.vmap(mlp.apply, in_axes=(0, None))(params, x)
    assert out.shape == (5, 2)
    assert len(np.unique(np.asarray(out)[:, 0])) == 5
    third = jax.tree.map(lambda p: p[3], params)
    np.testing.assert_allclose(out[3], mlp.apply(third, x), rtol=1e-5, atol=1e-6)


def test_parameters_follow_the_default_float():
    for x64, dtype in ((False, jnp.float32), (True, jnp.float64)):
        with jax.enable_x64(x64):
            mlp = networks.MLP((4,), 2, kernel_init=networks.pets_kernel_init)
            params = mlp.init(jax.random.key(0), jnp.zeros(3))
            assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(dtype)}
            assert mlp.apply(params, jnp.zeros(3)).dtype == dtype
            assert networks.pets_kernel_init(jax.random.key(0), (3, 4)).dtype == dtype


def test_pets_kernel_init_is_a_truncated_normal_by_the_fan_in():
    fan_in = 100
    kernel = np.asarray(networks.pets_kernel_init(jax.random.key(0), (fan_in, 4000)))
    scale = 1 / (2 * np.sqrt(fan_in))
    assert np.abs(kernel).max() <= 2 * scale * (1 + 1e-6)
    assert np.abs(kernel).max() > 1.99 * scale
    # a normal cut off at two standard deviations keeps 0.77374 of its variance
    np.testing.assert_allclose(kernel.var(), 0.77374 * scale**2, rtol=0.02)
    np.testing.assert_allclose(kernel.mean(), 0, atol=5 * scale / np.sqrt(kernel.size))


@pytest.mark.parametrize("rate", [0.001, 0.01, 0.049])
def test_rare_ones_are_where_the_gaps_put_them(rate):
    shape = (40, 50)
    found = np.asarray(networks.bernoulli(jax.random.key(3), rate, shape)).reshape(-1)
    uniform = np.asarray(jax.random.uniform(jax.random.key(3), (math.ceil(2000 * rate + 8 * math.sqrt(2000 * rate) + 16),)))
    expected, at = np.zeros(2000, bool), -1
    for u in uniform.astype(np.float64):
        at += 1 + math.floor(math.log1p(-u) / math.log1p(-rate))
        if at < 2000:
            expected[at] = True
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("rate", [0.001, 0.03, 0.2])
def test_each_place_is_true_at_the_rate_and_by_itself(rate):
    masks = np.asarray(
        jax.vmap(lambda key: networks.bernoulli(key, rate, (5, 20)))(jax.random.split(jax.random.key(0), 40_000))
    )
    flat = masks.reshape(-1, 100)
    # The number in a mask is binomial; so is, over the masks, the number at each place, the first and last ones too.
    for counts, trials in ((flat.sum(axis=1), 100), (flat.sum(axis=0), 40_000)):
        most = stats.binom(trials, rate).ppf(0.9999) + 1
        observed = np.bincount(np.minimum(counts, most).astype(int), minlength=int(most) + 1)
        assert abs(counts.mean() - trials * rate) < 4 * math.sqrt(trials * rate * (1 - rate) / counts.size)
        assert abs(counts.var() / (trials * rate * (1 - rate)) - 1) < 6 * math.sqrt(2 / counts.size) + 5 / math.sqrt(
            observed.sum()
        )
    # Neighbours are both true as often as chance has it.
    both = (flat[:, 1:] & flat[:, :-1]).sum()
    expected = 99 * 40_000 * rate**2
    assert abs(both - expected) < 5 * math.sqrt(expected) + 1


def test_none_is_true_at_rate_zero():
    assert not networks.bernoulli(jax.random.key(0), 0.0, (1000,)).any()


def rounded(x):
    """Of 8 bits of significand, in float64."""
    return np.asarray(x).astype(jnp.bfloat16).astype(np.float64)


def test_a_product_in_bfloat16_and_its_gradient_are_those_of_rounded_factors():
    """In NumPy: rounded factors, products in float64; in the gradient's products what comes in is rounded too."""
    x, kernel = jax.random.normal(jax.random.key(0), (2, 5, 40)), jax.random.normal(jax.random.key(1), (40, 7))
    pulled = jax.random.normal(jax.random.key(2), (2, 5, 7))
    found, pull = jax.vjp(networks.bfloat16_product, x, kernel)
    np.testing.assert_allclose(found, rounded(x) @ rounded(kernel), rtol=1e-5, atol=1e-5)
    assert np.abs(np.asarray(found) - np.asarray(x, np.float64) @ np.asarray(kernel, np.float64)).max() > 1e-3
    of_x, of_kernel = pull(pulled)
    np.testing.assert_allclose(of_x, rounded(pulled) @ rounded(kernel).T, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(of_kernel, np.einsum("abi,abo->io", rounded(x), rounded(pulled)), rtol=1e-5, atol=1e-5)
    assert found.dtype == of_x.dtype == of_kernel.dtype == jnp.float32


def test_what_bfloat16_holds_is_multiplied_exactly():
    x = jax.random.randint(jax.random.key(0), (6, 30), -20, 20).astype(float)
    kernel = jax.random.randint(jax.random.key(1), (30, 4), -20, 20).astype(float)
    np.testing.assert_array_equal(networks.bfloat16_product(x, kernel), x @ kernel)
    of = jax.grad(lambda f, kernel: jnp.sum(f(x, kernel)), argnums=1)
    np.testing.assert_array_equal(of(networks.bfloat16_product, kernel), of(jnp.matmul, kernel))


def test_products_in_bfloat16_side_by_side_are_those_one_by_one():
    """Members have weights of their own; a row alone has no batch axis."""
    x, kernel = jax.random.normal(jax.random.key(0), (3, 5, 8)), jax.random.normal(jax.random.key(1), (3, 8, 6))

    def value(x, kernel):
        return jnp.sum(jnp.sin(networks.bfloat16_product(x, kernel)))

    both = jax.vmap(jax.value_and_grad(value, argnums=(0, 1)))(x, kernel)
    for e in range(3):
        alone = jax.value_and_grad(value, argnums=(0, 1))(x[e], kernel[e])
        jax.tree.map(lambda of_all, one: np.testing.assert_allclose(of_all[e], one, rtol=1e-5, atol=1e-5), both, alone)  # noqa: B023
    one = jax.grad(value)(x[0, 0], kernel[0])
    np.testing.assert_allclose(one, both[1][0][0, 0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("hidden", [(9,), (9, 8), (9, 8, 7)])
def test_products_between_hidden_layers_alone_are_in_bfloat16(hidden):
    """The first layer sees measurements, the last one tells predictions: with one hidden layer nothing is rounded."""
    x = 0.01 + jax.random.normal(jax.random.key(1), (5, 6))
    full, coarse = networks.MLP(hidden, 2, nn.swish), networks.MLP(hidden, 2, nn.swish, precision="bfloat16")
    params = full.init(jax.random.key(0), x)
    jax.tree.map(np.testing.assert_array_equal, coarse.init(jax.random.key(0), x), params)
    y = np.asarray(x)
    for i in range(len(hidden) + 1):
        layer = params["params"][f"Dense_{i}"]
        held = rounded if 0 < i < len(hidden) else np.float64
        y = held(y.astype(np.float32)) @ held(layer["kernel"])
        if i < len(hidden):
            y = y / (1 + np.exp(-y))
    np.testing.assert_allclose(coarse.apply(params, x), y, rtol=2e-3 if len(hidden) > 1 else 1e-5, atol=1e-6)
    same = bool(np.all(np.asarray(coarse.apply(params, x)) == np.asarray(full.apply(params, x))))
    assert same == (len(hidden) == 1)


def test_products_in_bfloat16_keep_the_weights_own_type(x64):
    x = jnp.ones((3, 4))
    mlp = networks.MLP((5, 5), 2, precision="bfloat16")
    params = mlp.init(jax.random.key(0), x)
    value, gradient = jax.value_and_grad(lambda p: jnp.sum(mlp.apply(p, x)))(params)
    assert {leaf.dtype for leaf in jax.tree.leaves((value, gradient))} == {jnp.dtype("float64")}
