"""The multilayer perceptron, its dropout, and initial kernels."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from scipy import stats

from jaxmbrl.nn import networks


def numbers(*shape, seed=1):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def parameters(mlp, inputs):
    """Random ones in place of the initial ones, of which some are 0."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(mlp.init, jax.random.key(0), np.zeros(inputs))
    return jax.tree.map(lambda p: rng.normal(scale=p.shape[0] ** -0.5, size=p.shape).astype(p.dtype), shapes)


@pytest.mark.parametrize("shape", [(40, 40), (12, 30), (30, 12), (5, 1)])
def test_orthogonal_matrices_are_those_of_jax(x64, shape):
    key = jax.random.key(3)
    expected = jax.nn.initializers.orthogonal(1.5)(key, shape, np.float64)
    np.testing.assert_allclose(networks.orthogonal(1.5)(key, shape, np.float64), expected, rtol=1e-9, atol=1e-9)


def test_mlp_is_affine_activation_affine_by_hand():
    mlp = networks.MLP((3, 4), 2, nn.swish)
    x, params = numbers(5, 6), parameters(mlp, 6)
    layers = [params["params"][f"Dense_{i}"] for i in range(3)]
    layers = [(layer["kernel"].astype(np.float64), layer["bias"].astype(np.float64)) for layer in layers]
    y = x.astype(np.float64)
    for i, (kernel, bias) in enumerate(layers):
        y = y @ kernel + bias
        if i < 2:
            y = y / (1 + np.exp(-y))
    np.testing.assert_allclose(jax.jit(mlp.apply)(params, x), y, rtol=1e-5, atol=1e-6)
    assert [kernel.shape for kernel, _ in layers] == [(6, 3), (3, 4), (4, 2)]


def test_dropout_then_layer_norm_then_activation_by_hand():
    """A hidden layer drops units before it normalises the rest: in float64 NumPy, with the masks of the same key."""
    mlp = networks.MLP((6, 4), 2, layer_norm=True, dropout=0.4)
    x, key, params = numbers(5, 3), jax.random.key(7), parameters(mlp, 3)
    named = jax.tree.map(lambda p: p.astype(np.float64), params["params"])

    def expected(masks):
        y = x.astype(np.float64)
        for i in range(2):
            y = y @ named[f"Dense_{i}"]["kernel"] + named[f"Dense_{i}"]["bias"]
            y = y * masks[i]
            spread = np.sqrt(((y - y.mean(1, keepdims=True)) ** 2).mean(1, keepdims=True) + 1e-6)
            y = (y - y.mean(1, keepdims=True)) / spread * named[f"LayerNorm_{i}"]["scale"] + named[f"LayerNorm_{i}"]["bias"]
            y = np.maximum(y, 0)
        return y @ named["Dense_2"]["kernel"] + named["Dense_2"]["bias"]

    @jax.jit
    def dropped(key):
        return [jax.random.bernoulli(jax.random.fold_in(key, i), 0.4, (5, units)) for i, units in enumerate((6, 4))]

    masks = [~np.asarray(mask) / 0.6 for mask in dropped(key)]
    assert all(len(np.unique(mask, axis=0)) > 1 for mask in masks), "rows drop units of their own"
    apply = jax.jit(mlp.apply)
    np.testing.assert_allclose(apply(params, x, key), expected(masks), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(apply(params, x), expected([1, 1]), rtol=1e-4, atol=1e-5)


def test_a_dropped_layer_keeps_its_mean():
    """Of a linear layer's units a quarter is dropped, and the others are a third larger."""
    mlp = networks.MLP((20_000,), 1, lambda x: x, dropout=0.25)
    params = {
        "params": {
            "Dense_0": {"kernel": np.ones((1, 20_000)), "bias": np.zeros(20_000)},
            "Dense_1": {"kernel": np.ones((20_000, 1)), "bias": np.zeros(1)},
        }
    }
    found = jax.jit(mlp.apply)(params, np.array([[3.0]]), jax.random.key(0)).item() / 20_000
    # The share that is kept has a deviation of 0.003.
    np.testing.assert_allclose(found, 3.0, rtol=0.0125)
    assert found != 3.0


def test_dropout_and_layer_norm_leave_the_initial_numbers_as_they_are():
    plain, both = networks.MLP((6, 4), 2), networks.MLP((6, 4), 2, layer_norm=True, dropout=0.4)
    a, b = (jax.jit(mlp.init)(jax.random.key(0), np.zeros(3))["params"] for mlp in (plain, both))
    assert set(b) - set(a) == {"LayerNorm_0", "LayerNorm_1"}
    jax.tree.map(np.testing.assert_array_equal, a, {name: b[name] for name in a})
    apply = jax.jit(plain.apply)
    np.testing.assert_array_equal(apply({"params": a}, np.ones(3), jax.random.key(1)), apply({"params": a}, np.ones(3)))


def test_mlp_without_hidden_layers_is_linear():
    mlp = networks.MLP((), 2)
    params, x = jax.jit(mlp.init)(jax.random.key(0), np.zeros(3)), np.arange(3.0)
    apply = jax.jit(mlp.apply)
    np.testing.assert_allclose(apply(params, 5 * x), 5 * np.asarray(apply(params, x)), rtol=1e-6)


def test_mlp_acts_on_the_last_axis_only():
    mlp = networks.MLP((8,), 2)
    x, params, apply = numbers(4, 5, 3), parameters(mlp, 3), jax.jit(mlp.apply)
    np.testing.assert_allclose(np.asarray(apply(params, x))[2, 3], apply(params, x[2, 3]), rtol=1e-5, atol=1e-6)


def test_ensemble_is_a_vmap_over_init_and_apply():
    mlp = networks.MLP((8,), 2)
    x = np.ones(3, np.float32)

    @jax.jit
    def members(keys, x):
        params = jax.vmap(lambda key: mlp.init(key, x))(keys)
        return params, jax.vmap(mlp.apply, in_axes=(0, None))(params, x)

    params, out = jax.device_get(members(jax.random.split(jax.random.key(0), 5), x))
    assert out.shape == (5, 2)
    assert len(np.unique(out[:, 0])) == 5
    third = jax.tree.map(lambda p: p[3], params)
    np.testing.assert_allclose(out[3], jax.jit(mlp.apply)(third, x), rtol=1e-5, atol=1e-6)


def test_parameters_follow_the_default_float():
    mlp = networks.MLP((4,), 2, kernel_init=networks.pets_kernel_init)

    def made(x):
        params = mlp.init(jax.random.key(0), x)
        return params, mlp.apply(params, x), networks.pets_kernel_init(jax.random.key(0), (3, 4))

    for x64, dtype in ((False, jnp.float32), (True, jnp.float64)):
        with jax.enable_x64(x64):
            assert {leaf.dtype for leaf in jax.tree.leaves(jax.eval_shape(made, np.zeros(3)))} == {jnp.dtype(dtype)}


def test_pets_kernel_init_is_a_truncated_normal_by_the_fan_in():
    fan_in = 100
    kernel = np.asarray(jax.jit(networks.pets_kernel_init, static_argnums=1)(jax.random.key(0), (fan_in, 4000)))
    scale = 1 / (2 * np.sqrt(fan_in))
    assert np.abs(kernel).max() <= 2 * scale * (1 + 1e-6)
    assert np.abs(kernel).max() > 1.99 * scale
    # a normal cut off at two standard deviations keeps 0.77374 of its variance
    np.testing.assert_allclose(kernel.var(), 0.77374 * scale**2, rtol=0.02)
    np.testing.assert_allclose(kernel.mean(), 0, atol=5 * scale / np.sqrt(kernel.size))


@pytest.mark.parametrize("rate", [0.001, 0.01, 0.049])
def test_rare_ones_are_where_the_gaps_put_them(rate):
    number = math.ceil(2000 * rate + 8 * math.sqrt(2000 * rate) + 16)

    @jax.jit
    def drawn(key):
        return networks.bernoulli(key, rate, (40, 50)).reshape(-1), jax.random.uniform(key, (number,))

    found, uniform = jax.device_get(drawn(jax.random.key(3)))
    expected, at = np.zeros(2000, bool), -1
    for u in uniform.astype(np.float64):
        at += 1 + math.floor(math.log1p(-u) / math.log1p(-rate))
        if at < 2000:
            expected[at] = True
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("rate", [0.001, 0.03, 0.2])
def test_each_place_is_true_at_the_rate_and_by_itself(rate):
    drawn = jax.jit(jax.vmap(lambda key: networks.bernoulli(key, rate, (5, 20))))
    masks = np.asarray(drawn(jax.random.split(jax.random.key(0), 40_000)))
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
    assert not np.any(networks.bernoulli(jax.random.key(0), 0.0, (1000,)))


def rounded(x):
    """Of 8 bits of significand, in float64."""
    return np.asarray(x).astype(jnp.bfloat16).astype(np.float64)


def test_a_product_in_bfloat16_and_its_gradient_are_those_of_rounded_factors():
    """In NumPy: rounded factors, products in float64; in the gradient's products what comes in is rounded too."""
    x, kernel, pulled = numbers(2, 5, 40), numbers(40, 7, seed=2), numbers(2, 5, 7, seed=3)

    @jax.jit
    def both(x, kernel, pulled):
        found, pull = jax.vjp(networks.bfloat16_product, x, kernel)
        return found, *pull(pulled)

    found, of_x, of_kernel = both(x, kernel, pulled)
    np.testing.assert_allclose(found, rounded(x) @ rounded(kernel), rtol=1e-5, atol=1e-5)
    assert np.abs(np.asarray(found) - np.asarray(x, np.float64) @ np.asarray(kernel, np.float64)).max() > 1e-3
    np.testing.assert_allclose(of_x, rounded(pulled) @ rounded(kernel).T, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(of_kernel, np.einsum("abi,abo->io", rounded(x), rounded(pulled)), rtol=1e-5, atol=1e-5)
    assert found.dtype == of_x.dtype == of_kernel.dtype == jnp.float32


def test_what_bfloat16_holds_is_multiplied_exactly():
    rng = np.random.default_rng(0)
    x, kernel = (rng.integers(-20, 20, shape).astype(np.float32) for shape in ((6, 30), (30, 4)))

    @jax.jit
    def both(x, kernel):
        found = networks.bfloat16_product(x, kernel)
        return found, jax.grad(lambda kernel: jnp.sum(networks.bfloat16_product(x, kernel)))(kernel)

    found, slope = both(x, kernel)
    np.testing.assert_array_equal(found, x @ kernel)
    np.testing.assert_array_equal(slope, np.tile(x.sum(axis=0)[:, None], 4))


def test_products_in_bfloat16_side_by_side_are_those_one_by_one():
    """Members have weights of their own; a row alone has no batch axis."""
    x, kernel = numbers(3, 5, 8), numbers(3, 8, 6, seed=2)

    def value(x, kernel):
        return jnp.sum(jnp.sin(networks.bfloat16_product(x, kernel)))

    slopes = jax.value_and_grad(value, argnums=(0, 1))
    both, alone = jax.device_get(jax.jit(jax.vmap(slopes))(x, kernel)), jax.jit(slopes)
    for e in range(3):
        one = alone(x[e], kernel[e])
        jax.tree.map(lambda of_all, one: np.testing.assert_allclose(of_all[e], one, rtol=1e-5, atol=1e-5), both, one)  # noqa: B023
    one = jax.jit(jax.grad(value))(x[0, 0], kernel[0])
    np.testing.assert_allclose(one, both[1][0][0, 0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("hidden", [(9,), (9, 8), (9, 8, 7)])
def test_products_between_hidden_layers_alone_are_in_bfloat16(hidden):
    """The first layer sees measurements, the last one tells predictions: with one hidden layer nothing is rounded."""
    x = numbers(5, 6)
    full, coarse = networks.MLP(hidden, 2, nn.swish), networks.MLP(hidden, 2, nn.swish, precision="bfloat16")
    params = jax.device_get(jax.jit(full.init)(jax.random.key(0), x))
    jax.tree.map(np.testing.assert_array_equal, jax.jit(coarse.init)(jax.random.key(0), x), params)
    y = x
    for i in range(len(hidden) + 1):
        layer = params["params"][f"Dense_{i}"]
        held = rounded if 0 < i < len(hidden) else np.float64
        y = held(y.astype(np.float32)) @ held(layer["kernel"])
        if i < len(hidden):
            y = y / (1 + np.exp(-y))
    in_full, found = (np.asarray(jax.jit(mlp.apply)(params, x)) for mlp in (full, coarse))
    np.testing.assert_allclose(found, y, rtol=2e-3 if len(hidden) > 1 else 1e-5, atol=1e-6)
    assert np.array_equal(found, in_full) == (len(hidden) == 1)


def test_products_in_bfloat16_keep_the_weights_own_type(x64):
    mlp = networks.MLP((5, 5), 2, precision="bfloat16")

    def both(x):
        params = mlp.init(jax.random.key(0), x)
        return jax.value_and_grad(lambda p: jnp.sum(mlp.apply(p, x)))(params)

    assert {leaf.dtype for leaf in jax.tree.leaves(jax.eval_shape(both, np.ones((3, 4))))} == {jnp.dtype("float64")}


@pytest.mark.parametrize(("strides", "shape"), [((2, 1), (2, 3)), ((3, 2), (1, 1))], ids=["overlapping", "patches"])
def test_convolutions_by_hand(strides, shape):
    """Pixels are divided by 255; no padding; kernels that the stride divides and not, and columns that are left over."""
    torso = networks.ConvTorso(((2, 3, strides[0]), (3, 2, strides[1])))
    random = np.random.default_rng(0)
    image = random.integers(0, 256, (4, 7, 9, 2)).astype(np.uint8)
    params = jax.eval_shape(torso.init, jax.random.key(0), image)
    params = jax.tree.map(lambda p: random.normal(size=p.shape).astype(p.dtype), params)

    def conv(x, layer, stride):
        kernel, bias = (np.float64(params["params"][layer][name]) for name in ("kernel", "bias"))
        size = kernel.shape[0]
        rows, columns = ((side - size) // stride + 1 for side in x.shape[1:3])
        out = np.zeros((len(x), rows, columns, kernel.shape[-1]))
        for i in range(rows):
            for j in range(columns):
                patch = x[:, i * stride : i * stride + size, j * stride : j * stride + size]
                out[:, i, j] = np.tensordot(patch, kernel, 3) + bias
        return np.maximum(out, 0)

    expected = conv(conv(image / 255, "Conv_0", strides[0]), "Conv_1", strides[1])
    assert expected.shape == (4, *shape, 3)
    found = jax.jit(torso.apply)(params, image)
    np.testing.assert_allclose(found, expected.reshape(4, -1), rtol=1e-4, atol=1e-5)
    assert networks.smallest_side(torso.layers) == (5 if strides == (2, 1) else 6)


def test_a_convolution_begins_as_flaxs_does():
    image = jnp.zeros((9, 6, 2))
    ours = networks.Convolution(4, 3, 2).init(jax.random.key(1), image)
    flaxs = nn.Conv(4, (3, 3), 2, "VALID").init(jax.random.key(1), image)
    jax.tree.map(np.testing.assert_array_equal, ours, flaxs)


@pytest.mark.parametrize("layers", [networks.NATURE, ((2, 3, 2), (3, 2, 1)), ((4, 3, 3),)])
def test_the_smallest_side_is_the_smallest(layers):
    side = networks.smallest_side(layers)

    def features(side):
        params = jax.eval_shape(networks.ConvTorso(layers).init, jax.random.key(0), jnp.zeros((side, side, 1)))
        image = jax.ShapeDtypeStruct((side, side, 1), jnp.uint8)
        return jax.eval_shape(networks.ConvTorso(layers).apply, params, image).shape[0]

    assert features(side) == layers[-1][0]
    assert not features(side - 1)


def test_rms_norm_by_numpy_and_a_network_without_a_last_layer(x64):
    """x W + b, divided by its root mean square (with 1e-4 in the root), times a scale, then the activation."""
    rng = np.random.default_rng(0)
    network = networks.MLP((4,), None, activation=nn.silu, rms_norm=True)
    shapes = jax.eval_shape(network.init, jax.random.key(0), np.zeros(3))
    params, x = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), shapes), rng.normal(size=(5, 3))
    dense, scale = params["params"]["Dense_0"], params["params"]["RMSNorm_0"]["scale"]
    y = x @ dense["kernel"] + dense["bias"]
    y = y / np.sqrt(np.mean(y**2, axis=-1, keepdims=True) + 1e-4) * scale
    np.testing.assert_allclose(jax.jit(network.apply)(params, x), y / (1 + np.exp(-y)), rtol=1e-12)
