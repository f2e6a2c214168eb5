"""The product of dense layers and its derivatives, beside NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmbrl.nn.networks import MLP
from jaxmbrl.nn.products import NARROW, TALL, kernel_gradient, product


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-5)


def equal(found, expected):
    """Equal in float64."""
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("out", [7, 2], ids=["wide", "narrow"])
@pytest.mark.parametrize("rows", [(), (5,), (2, 3)], ids=str)
def test_the_product_and_its_derivatives_are_those_of_numpy(rows, out):
    x, kernel, pulled = numbers(*rows, 4), numbers(4, out, seed=1), numbers(*rows, out, seed=2)
    pushed = numbers(*rows, 4, seed=3), numbers(4, out, seed=4)

    def all_of(x, kernel, pulled, pushed):
        found, pull = jax.vjp(product, x, kernel)
        return found, pull(pulled), jax.jvp(product, (x, kernel), pushed)[1]

    found, (of_x, of_kernel), change = jax.device_get(jax.jit(all_of)(x, kernel, pulled, pushed))
    wide = [np.asarray(value, np.float64) for value in (x, kernel, pulled, *pushed)]
    x, kernel, pulled, dx, dkernel = wide
    close(found, x @ kernel)
    close(of_x, pulled @ kernel.T)
    close(of_kernel, np.einsum("ni,no->io", x.reshape(-1, 4), pulled.reshape(-1, out)))
    close(change, dx @ kernel + x @ dkernel)


@pytest.mark.parametrize("widths", [(NARROW, NARROW + 3), (NARROW + 3, NARROW), (NARROW - 1, NARROW)], ids=str)
def test_kernel_gradients_of_many_rows_are_those_of_numpy(widths):
    rows = TALL * max(widths)
    for count in (rows - 1, rows):
        x, pulled = numbers(2, count, widths[0]), numbers(2, count, widths[1], seed=1)
        expected = np.einsum("bni,bno->bio", x.astype(np.float64), pulled.astype(np.float64))
        np.testing.assert_allclose(jax.jit(kernel_gradient)(x, pulled), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("axes", [(0, 0), (0, None), (None, 0)], ids=["both", "rows", "kernels"])
def test_derivatives_of_all_orders_under_vmap_are_those_one_by_one(axes, x64):
    """Twice under vmap, as critics of several seeds: what the axes name has its own rows or kernel."""
    of_x, of_kernel = axes
    x = numbers(*(() if of_x is None else (3, 2)), 5, 4).astype(np.float64)
    kernel = numbers(*(() if of_kernel is None else (3, 2)), 4, 6, seed=1).astype(np.float64)

    def value(x, kernel):
        return jnp.sum(jnp.tanh(product(x, kernel)) ** 3)

    def derivatives(x, kernel):
        slopes = jax.grad(value, argnums=(0, 1))
        towards = jnp.ones_like(x), jnp.ones_like(kernel)
        # Forward over reverse.
        return slopes(x, kernel), jax.jvp(slopes, (x, kernel), towards)[1]

    both = jax.jit(jax.vmap(jax.vmap(derivatives, axes), axes))(x, kernel)
    alone = jax.jit(derivatives)
    for s in range(3):
        for e in range(2):
            one = alone(x if of_x is None else x[s, e], kernel if of_kernel is None else kernel[s, e])
            jax.tree.map(lambda many, one, s=s, e=e: equal(many[s, e], one), both, one)

    # The gradient of the sum over all, in which what has no axis is shared.
    def total(x, kernel):
        return jnp.sum(jax.vmap(jax.vmap(value, axes), axes)(x, kernel))

    shared = jax.jit(jax.grad(total, argnums=(0, 1)))(x, kernel)
    for found, each, axis in zip(shared, both[0], axes, strict=True):
        equal(found, np.sum(each, axis=(0, 1)) if axis is None else each)


def test_hessian_is_that_of_the_plain_product():
    x, kernel = numbers(3, 4), numbers(4, 2, seed=1)

    def hessian(times):
        return jax.jit(jax.hessian(lambda kernel: jnp.sum(jnp.tanh(times(x, kernel)))))(kernel)

    close(hessian(product), hessian(jnp.matmul))


def test_kernel_gradients_of_networks_side_by_side_need_no_transposition():
    """Of two critics of three seeds: what is multiplied and summed over rows comes out as [3, 2, 16, 32]."""
    network = MLP((16, 32), 1)
    params = jax.vmap(jax.vmap(lambda key: network.init(key, jnp.zeros(4))))(jax.random.split(jax.random.key(0), (3, 2)))
    x = jnp.zeros((3, 5, 4))

    def loss(params, x):
        return jnp.sum(jax.vmap(network.apply, (0, None))(params, x))

    equations = jax.make_jaxpr(jax.vmap(jax.grad(loss)))(params, x).eqns
    names = {equation.primitive.name for equation in equations}
    assert "rows_times_kernel" not in names
    large = [equation for equation in equations if equation.outvars[0].aval.shape[-2:] in ((16, 32), (32, 16))]
    made = [equation for equation in large if equation.primitive.name == "dot_general"]
    assert [equation.outvars[0].aval.shape for equation in made] == [(3, 2, 16, 32)]
    transposed = [equation for equation in large if equation.primitive.name == "transpose"]
    assert all(equation.outvars[0].aval.shape[-2:] == (32, 16) for equation in transposed), "a gradient was transposed"


def test_gradients_of_narrow_layers_are_made_with_few_rows_on_a_cpu():
    if jax.default_backend() != "cpu":
        pytest.skip("elsewhere the order is XLA's")
    slopes = jax.make_jaxpr(jax.grad(lambda kernel: jnp.sum(product(jnp.ones((50, 40)), kernel))))(jnp.ones((40, 2)))
    shapes = [e.outvars[0].aval.shape for e in slopes.eqns if e.primitive.name == "dot_general"]
    assert (2, 40) in shapes and (40, 2) not in shapes
