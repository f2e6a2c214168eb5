"""Random bits on a CPU without a loop, which compile faster.

JAX's default generator is Threefry-2x32 with 20 rounds (Salmon et al., Parallel random numbers: as easy as 1, 2, 3, SC
2011). On a CPU JAX lowers each use of it to a loop of five times four rounds with variable rotations, which XLA compiles to
about ten kernels. A program of this package has up to a hundred uses. The same rounds one after the other are one kernel.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.extend.random import threefry2x32_p
from jax.interpreters import mlir
from jaxtyping import Array, UInt32

ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
PARITY = 0x1BD11BDA


@functools.cache
def without_loops() -> None:
    """Let all programs that this process compiles for a CPU from now on compute random bits without loops. The bits do not
    change."""
    mlir.register_lowering(threefry2x32_p, mlir.lower_fun(threefry, multiple_results=True), platform="cpu")


def threefry(
    key: UInt32[Array, "..."], other_key: UInt32[Array, "..."], count: UInt32[Array, "*n"], other_count: UInt32[Array, "*n"]
) -> tuple[UInt32[Array, "..."], UInt32[Array, "..."]]:
    """Threefry-2x32 with 20 rounds: the hash of the two counts by the two halves of the key, broadcast together."""
    keys = key, other_key, key ^ other_key ^ jnp.uint32(PARITY)
    x, y = count + keys[0], other_count + keys[1]
    for i in range(5):
        for rotation in ROTATIONS[i % 2]:
            x = x + y
            y = x ^ _rotated(y, rotation)
        x, y = x + keys[(i + 1) % 3], y + keys[(i + 2) % 3] + jnp.uint32(i + 1)
    return x, y


def _rotated(bits: UInt32[Array, "*n"], places: int) -> UInt32[Array, "*n"]:
    """The bits rotated to the left."""
    left, right = jnp.uint32(places), jnp.uint32(32 - places)
    return jax.lax.shift_left(bits, left) | jax.lax.shift_right_logical(bits, right)
