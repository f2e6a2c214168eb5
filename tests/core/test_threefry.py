"""Random bits without loops are those of JAX, and of the published generator."""

import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.random import threefry_2x32

from jaxmbrl.core import threefry

KNOWN = [
    ((0x00000000, 0x00000000), (0x00000000, 0x00000000), (0x6B200159, 0x99BA4EFE)),
    ((0xFFFFFFFF, 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF), (0x1CB996FC, 0xBB002BE7)),
    ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3), (0xC4923A9C, 0x483DF7A0)),
]
"""Key, counts and hash: the test vectors of the authors' library Random123 for 20 rounds."""


@pytest.mark.parametrize(("key", "counts", "due"), KNOWN)
def test_the_published_vectors(key, counts, due):
    words = [np.uint32(word) for word in (*key, *counts)]
    found = threefry.threefry(*map(jnp.asarray, words))
    assert [int(word) for word in found] == list(due)


def test_the_bits_are_those_of_jax():
    random = np.random.default_rng(0)
    key, counts = (jnp.asarray(random.integers(2**32, size=n, dtype=np.uint32)) for n in (2, 1000))
    theirs = threefry_2x32(key, counts)
    np.testing.assert_array_equal(jnp.concatenate(threefry.threefry(key[0], key[1], *jnp.split(counts, 2))), theirs)


DRAWS = """
import sys
import jax
from jaxmbrl.core import threefry
if sys.argv[1] == "straight":
    threefry.without_loops()

def draws(seed):
    keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), 7), 3)
    normal = jax.vmap(lambda key: jax.random.normal(key, (3,)))(keys)
    return normal, jax.random.bits(keys[0], (5,)), jax.random.randint(keys[1], (), 0, 9)

lowered = jax.jit(jax.vmap(draws)).lower(jax.numpy.arange(2))
print("while" in lowered.as_text())
print([leaf.tolist() for leaf in jax.tree.leaves(lowered.compile()(jax.numpy.arange(2)))])
"""


def test_programs_draw_the_same_numbers_without_loops():
    """In processes of their own, because the lowering is one for the whole process."""
    looped, straight = (
        subprocess.run([sys.executable, "-c", DRAWS, which], capture_output=True, text=True, check=True).stdout.splitlines()
        for which in ("loops", "straight")
    )
    assert looped[0] == "True" and straight[0] == "False"
    assert looped[1] == straight[1]
