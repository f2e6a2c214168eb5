"""Cholesky decompositions one by one, against NumPy's and JAX's own."""

import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxmbrl import envs
from jaxmbrl.core.cholesky import POOL_IS_HELD, cholesky, one_by_one

SIDE_BY_SIDE = """
import jax
import jax.numpy as jnp
from jaxmbrl.core.cholesky import cholesky

def factor(matrices):
    factors = [jax.vmap(cholesky)(matrix) for matrix in matrices]
    return [matrix + 1e-6 * factor @ factor.mT for matrix, factor in zip(matrices, factors)]

matrices = [jnp.tile(2.0 * jnp.eye(9), (1000, 1, 1)) for _ in range(4)]
print(float(jax.jit(lambda xs: jax.lax.fori_loop(0, 200, lambda i, xs: factor(xs), xs))(matrices)[0][0, 0, 0]))
"""


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def definite(*batch, size=5):
    draws = np.random.default_rng(0).normal(size=(*batch, size, size))
    return draws @ np.swapaxes(draws, -1, -2) + size * np.eye(size)


@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
def test_is_numpys(batch):
    matrices = definite(*batch)
    run = cholesky
    for _ in batch:
        run = jax.vmap(run)
    np.testing.assert_allclose(jax.jit(run)(matrices), np.linalg.cholesky(matrices), rtol=1e-13, atol=1e-14)


def test_reads_the_lower_triangle_alone():
    matrix, factor = definite(), jax.jit(cholesky)
    np.testing.assert_array_equal(factor(np.tril(matrix)), factor(matrix))


def test_no_number_where_there_is_none():
    assert not np.isfinite(jax.jit(cholesky)(-np.eye(3))).all()
    found = np.asarray(jax.jit(jax.vmap(cholesky))(np.stack([np.eye(3), -np.eye(3)])))
    np.testing.assert_array_equal(found[0], np.eye(3))
    assert not np.isfinite(found[1]).all()


def test_derivatives():
    def symmetric(x):
        return cholesky(x @ x.mT + np.eye(4))

    check_grads(jax.jit(symmetric), (np.random.default_rng(1).normal(size=(4, 4)),), order=2)
    check_grads(jax.jit(jax.vmap(symmetric)), (np.random.default_rng(1).normal(size=(2, 4, 4)),), order=1)


@pytest.mark.parametrize("lower", [True, False])
def test_what_is_traced_inside_has_scipys_meaning(lower):
    linalg = jax.scipy.linalg
    matrix, other = jnp.asarray(definite()), jnp.asarray(np.arange(10.0).reshape(5, 2))

    def solutions(a, b):
        return linalg.cho_solve(linalg.cho_factor(a, lower=lower), b), linalg.solve(a, b, assume_a="pos", lower=lower)

    def lopsided(a, b):
        return linalg.solve(a, b)

    before = linalg.cho_factor, linalg.solve
    outside = solutions(matrix, other)
    with one_by_one():
        inside = solutions(matrix, other)
        of_any = lopsided(matrix + np.triu(np.ones((5, 5))), other)
    assert (linalg.cho_factor, linalg.solve) == before
    for ours, theirs in zip(inside, outside, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose(ours, np.linalg.solve(matrix, other), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(of_any, np.linalg.solve(matrix + np.triu(np.ones((5, 5))), other), rtol=1e-12)


@pytest.mark.promises
def test_many_side_by_side_come_to_an_end():
    """With a single thread XLA's own batches never return; 2 + 200 times a millionth of itself."""
    done = subprocess.run(
        [sys.executable, "-c", SIDE_BY_SIDE],
        env=os.environ | {"PJRT_NPROC": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert float(done.stdout) == pytest.approx(2.0 * (1 + 1e-6) ** 200, rel=1e-4)


@pytest.mark.skipif(not POOL_IS_HELD, reason="decompositions in batches wait for no thread")
@pytest.mark.parametrize(
    "name",
    [
        "brax/fast",
        *(pytest.param(name, marks=pytest.mark.promises) for name in ("InvertedPendulum-v5", "brax/inverted_pendulum:mjx")),
    ],
)
def test_no_task_decomposes_in_batches(name):
    with jax.enable_x64(False):
        task = envs.make(name)
        world, actions = task.world, jnp.zeros((3, *task.action.shape))
        keys = jax.random.split(jax.random.key(0), 3)
        carry = jax.eval_shape(jax.vmap(world.reset), keys)
        text = jax.jit(jax.vmap(world.step)).lower(carry, actions, keys).compile().as_text()
    found = re.findall(r"= \(?f32\[([\d,]+)\].*custom_call_target=\"lapack_spotrf_ffi\"", text)
    assert all(shape.count(",") == 1 for shape in found)
    assert bool(found) == (name != "brax/fast")
