"""Minima and maxima: values as those of JAX, and gradients that a compiled program does not get wrong by rounding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmbrl.core.extremes import greater, largest, lesser, smallest

PAIRS = {"smallest": (smallest, jnp.min), "largest": (largest, jnp.max)}


@pytest.mark.parametrize("name", PAIRS)
def test_values_are_those_of_jax(name):
    ours, theirs = PAIRS[name]
    values = np.random.default_rng(0).normal(size=(3, 4, 5)).astype(np.float32)
    values[0, 0, 0], values[1, 1, :2], values[2, 3, 1] = np.nan, np.inf, -np.inf
    values = jnp.asarray(values)
    for axis in (0, 1, -1):
        for keepdims in (False, True):
            np.testing.assert_array_equal(ours(values, axis, keepdims), theirs(values, axis=axis, keepdims=keepdims))


@pytest.mark.parametrize(("ours", "theirs"), [(lesser, jnp.minimum), (greater, jnp.maximum)])
def test_of_two_numbers_too(ours, theirs):
    numbers = np.array([1.0, 2.0, np.nan, np.inf, -np.inf])
    x, y = np.meshgrid(numbers, numbers)
    np.testing.assert_array_equal(ours(x, y), theirs(x, y))
    gradient = jax.vmap(jax.grad(ours, argnums=(0, 1)), (0, 0))
    np.testing.assert_array_equal(
        gradient(jnp.array([1.0, 2.0]), jnp.array([2.0, 1.0]))[0], [ours is lesser, ours is greater]
    )


def slope(reduced, scale, values, weights, offsets):
    """d/ds sum over columns of the extreme over rows of w (s v) + o, squared."""
    C, K, a = weights[:, None], offsets[:, None], values[1]

    def loss(s):
        return jnp.sum(reduced(C * (values[0] * s) + K * a + values[2]) ** 2)

    return jax.grad(loss)(scale)


@pytest.mark.parametrize("level", [0, None])
@pytest.mark.parametrize("name", PAIRS)
def test_a_compiled_gradient_is_that_of_the_chosen_row(name, level):
    """Products and sums before the extreme may be rounded differently each time they are computed: `jnp.min` fails here."""
    rng = np.random.default_rng(1)
    weights, offsets = rng.normal(size=(2, 2)).astype(np.float32)
    values, scale = rng.normal(size=(3, 256)).astype(np.float32), np.float32(0.7)
    rows = weights[:, None].astype(float) * values[0] * scale + offsets[:, None] * values[1] + values[2]
    chosen = (np.argmin if name == "smallest" else np.argmax)(rows, axis=0)
    due = np.sum(2 * rows[chosen, np.arange(256)] * weights[chosen] * values[0])
    options = {} if level is None else {"xla_backend_optimization_level": level}
    compiled = jax.jit(lambda *given: slope(PAIRS[name][0], *given), compiler_options=options)
    np.testing.assert_allclose(compiled(scale, values, weights, offsets), due, rtol=1e-5)
