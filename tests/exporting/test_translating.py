"""Each primitive, by NumPy and in ONNX Runtime, as JAX computes it."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

from jaxmbrl.exporting import onnx_graph, program
from jaxmbrl.exporting.program import Untranslated
from jaxmbrl.exporting.translating import translate, uses
from jaxmbrl.nn.networks import bfloat16_product

NUMBERS = np.array([[-2.5, -1.0, -1e-4, 0.0], [0.5, 1.5, 2.0, 30.0], [3e-5, -0.5, 0.25, -40.0]], np.float32)
WHOLE = np.array([3, 0, 2, 1], np.int32)
TENSOR = np.linspace(-1, 1, 2 * 5 * 6 * 3, dtype=np.float32).reshape(2, 5, 6, 3)
KERNEL = np.sin(np.arange(2 * 3 * 3 * 4, dtype=np.float32)).reshape(2, 3, 3, 4)


def elementwise(x, i, t):
    """By the name of the primitive."""
    unit, positive = jnp.tanh(x), jnp.abs(x) + 0.5
    return {
        **{name: getattr(jnp, name)(x) for name in ("abs", "ceil", "exp2", "expm1", "floor", "negative", "rint", "sign")},
        **{name: getattr(jnp, name)(x) for name in ("cos", "exp", "sin", "sinh", "square", "tan", "tanh", "arctan")},
        **{name: getattr(jnp, name)(0.99 * unit) for name in ("arccos", "arcsin", "arctanh")},
        **{name: getattr(jnp, name)(positive) for name in ("log", "log1p", "sqrt", "arcsinh")},
        "log1p near 0": jnp.log1p(x * 1e-4),
        "arccosh": jnp.arccosh(positive + 1),
        "rsqrt": lax.rsqrt(positive),
        "logistic": jax.nn.sigmoid(x),
        "softplus": jax.nn.softplus(x),
        "elu": jax.nn.elu(x),
        "swish": jax.nn.swish(x),
        "is_finite": jnp.isfinite(jnp.log(x)),
        "remainders": lax.rem(x, jnp.full_like(x, 0.7)),
        "powers": positive**1.7 + positive**-2 + x**3 + lax.integer_pow(x, 0),
        "power of integers": lax.pow(positive, jnp.broadcast_to(i, x.shape)),
        "comparisons": jnp.stack([x == t, x != t, x < t, x <= t, x > t, x >= t]),
        "logic": ((x > 0) & (t > 0)) | ~(x > t) ^ (t < 0),
        "clip": jnp.clip(x, -1.0, 2.0),
        "select": jnp.where(x > 0, x, t),
        "select of three": lax.select_n(jnp.broadcast_to(i % 3, x.shape), x, t, x + t),
        "divided": x / (t + 5),
        "to integers": x.astype(jnp.int32) + i,
        "to truths": x.astype(bool),
        "of bytes": jnp.clip(x, 0, 20).astype(jnp.uint8).astype(jnp.float32) / 255,
        "integers": jnp.maximum(i, 1) * 3 - i,
    }


def structural(x, i, t):
    """By what is done."""
    image, table = TENSOR * x[0, 0], x[:, ::-1]
    return {
        "reduced": (x.sum(), x.sum(0), x.max(1), x.min(0), jnp.prod(x, axis=1), i.sum(), (x > 0).all(0), (x > 9).any()),
        "cumulative": (jnp.cumsum(x, axis=1), jnp.cumsum(i)),
        "arguments": (jnp.argmax(x, axis=1), jnp.argmin(x, axis=0), jnp.argmax(x)),
        "softmax": (jax.nn.softmax(x), jax.nn.logsumexp(x, axis=1)),
        "arranged": (x.T, x.reshape(2, 6), x[:, None, 1::2], x[::-1], jnp.flip(x), jnp.squeeze(x[:1]), jnp.tile(x, (2, 1))),
        "joined": (jnp.concatenate([x, t, x[:, :1]], axis=1), jnp.stack([x, t]), jnp.pad(x, ((1, 0), (0, 2)))),
        "split": tuple(jnp.split(x, 2, axis=1)),
        "products": (x @ t.T, x[0] @ t.T, x @ t[1], x[0] @ t[0], jnp.outer(x[0], i.astype(float))),
        "products of stacks": jnp.einsum("bhwc,bhwd->hcd", image, image)
        + jnp.einsum("bhwc,wc->cb", image, image[0, 0]).sum(),
        "entries": (x[i[0], i[1]], x[i[2]], x[:, i], x[i[:3] % 3, i[1:]], jnp.take(x, i, axis=1), table[1]),
        "entries out of range": (x.at[i + 2].get(mode="fill"), i.at[i + 2].get(mode="fill"), x.at[i + 2].get(mode="clip")),
        "entries of each row": jnp.take_along_axis(x, i[:3, None], axis=1),
        "slices from a place": (lax.dynamic_slice(x, (i[3], i[2]), (2, 3)), lax.dynamic_index_in_dim(x, i[1], 0)),
        "convolved": (
            lax.conv_general_dilated(image, KERNEL, (2, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")),
            lax.conv_general_dilated(image, KERNEL * x[1, 1], (1, 2), "VALID", None, (2, 1), ("NHWC", "HWIO", "NCHW")),
        ),
        "pooled": (
            nn.max_pool(image, (3, 2), (2, 1), "SAME"),
            nn.avg_pool(image, (2, 3), (1, 2), "SAME", count_include_pad=False),
            lax.reduce_window(image, jnp.inf, lax.min, (1, 2, 2, 1), (1, 2, 2, 1), "VALID"),
        ),
        "rounded to bfloat16": bfloat16_product(x, t.T @ x),
        "constant": jax.random.normal(jax.random.key(1), (3,)),
        "argument": x,
    }


def both(x, i, t):
    return elementwise(x, i, t) | structural(x, i, t)


@pytest.fixture(scope="module")
def given():
    return {"x": NUMBERS, "i": WHOLE, "t": NUMBERS[:, ::-1] * np.float32(0.7)}


@pytest.fixture(scope="module")
def due(given):
    """By name, what JAX computes."""
    return jax.device_get(jax.jit(both)(*given.values()))


def check(due, found):
    found = jax.tree.unflatten(jax.tree.structure(due), found)
    for name in due:
        for ours, theirs in zip(jax.tree.leaves(found[name]), jax.tree.leaves(due[name]), strict=True):
            assert np.shape(ours) == np.shape(theirs) and np.asarray(ours).dtype == theirs.dtype, name
            np.testing.assert_allclose(ours, theirs, rtol=3e-6, atol=3e-7, err_msg=name)


def flat(x, i, t):
    return tuple(jax.tree.leaves(both(x, i, t)))


def test_numpy_computes_as_jax_does(given, due):
    translated = translate(flat, given)
    with np.errstate(all="ignore"):
        check(due, program.run(translated, list(given.values())))


def test_onnx_computes_as_jax_does(given, due):
    onnxruntime = pytest.importorskip("onnxruntime")
    leaves = jax.tree.leaves(due)
    outputs = [f"output {k}" for k in range(len(leaves))]
    shapes = {name: value.shape for name, value in given.items()}
    shapes |= {name: leaf.shape for name, leaf in zip(outputs, leaves, strict=True)}
    session = onnxruntime.InferenceSession(onnx_graph.model(translate(flat, given, onnx=True), shapes, outputs, "text"))
    check(due, session.run(None, given))
    assert session.get_modelmeta().custom_metadata_map == {"jaxmbrl": "text"}


def test_bfloat16_is_rounded_to_the_nearest_and_ties_to_even():
    bits = np.arange(2**12, dtype=np.uint32) * np.uint32(2**15 - 3) + np.uint32(0x3F000000)
    numbers = np.concatenate([bits, (bits >> 16 << 16) + 2**15, [0]]).astype(np.uint32).view(np.float32)
    translated = translate(lambda x: (x.astype(jnp.bfloat16).astype(jnp.float32),), {"x": numbers})
    (found,) = program.run(translated, [numbers])
    np.testing.assert_array_equal(found, numbers.astype(ml_dtypes.bfloat16).astype(np.float32))


@pytest.mark.parametrize(
    ("function", "named"),
    [
        (lambda x: lax.fori_loop(0, x.sum().astype(int), lambda i, x: x + 1, x), "'while'"),
        (lambda x: lax.scan(lambda total, x: (total + x, total), 0.0, x)[1], "'scan'"),
        (lambda x: lax.cond(x[0] > 0, jnp.sin, jnp.cos, x), "'cond'"),
        (jnp.sort, "'sort'"),
        (lambda x: jax.random.normal(jax.random.key(x[0].astype(int)), (3,)), "'random_seed'"),
        (lambda x: x.at[0].set(x[1]), "'scatter'"),
        (jax.scipy.special.erf, "'erf'"),
        (lambda x: x.astype(int) // 2, "'div' of int32"),
        (lambda x: x.astype(jnp.bfloat16) * x.astype(jnp.bfloat16), "'mul' of bfloat16"),
    ],
)
def test_what_cannot_be_translated_is_named(function, named):
    with pytest.raises(Untranslated, match=f"^{named}$"):
        translate(lambda x: (function(x),), {"x": np.ones(4, np.float32)})


def test_what_no_output_needs_is_not_translated():
    translated = translate(lambda x: (x + jnp.sort(jnp.arange(3.0)), (jnp.sort(x), 1)[1]), {"x": np.ones(3, np.float32)})
    assert [call.function for call in translated.calls] == ["add"]
    np.testing.assert_array_equal(program.run(translated, [np.ones(3, np.float32)])[0], [1, 2, 3])


def test_inputs_that_decide_are_found():
    traced = jax.make_jaxpr(lambda x, y, z: (x + 1, (jnp.sin(y), z)[1]))(1.0, 2.0, 3.0)
    assert uses(traced) == [True, False, True]
