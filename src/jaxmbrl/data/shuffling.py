"""Random permutations without sorting.

`jax.random.permutation` sorts random numbers, three times, and sorts the whole capacity of a buffer even if few of its rows
are valid. Here a permutation is a Feistel network of random functions on a square of at least `count` cells (Black and
Rogaway, Ciphers with arbitrary finite domains, 2002); the image of a position is computed where it is needed.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from jaxmbrl.core.types import Key

ROUNDS = 6


def draw_shuffles(key: Key, members: int, capacity: int, count: Int[Array, ""]) -> Int[Array, "E rounds side"]:
    """One random permutation of range(count), count <= capacity, for each member, in the form that `shuffled` reads."""
    bits = jax.random.bits(key, (members, ROUNDS, math.isqrt(capacity) + 2), jnp.uint32)
    return (bits % _side(count).astype(jnp.uint32)).astype(jnp.int32)


def shuffled(table: Int[Array, "rounds side"], position: Int[Array, "B"], count: Int[Array, ""]) -> Int[Array, "B"]:
    """The image of each position in range(count) under a permutation from `draw_shuffles`."""
    side = _side(count)

    def permute(cell: Int[Array, "B"]) -> Int[Array, "B"]:
        left, right = cell // side, cell % side
        for function in table:
            left, right = right, (left + function[right]) % side
        return left * side + right

    def walk(place: tuple[Int[Array, "B"], Bool[Array, "B"]]) -> tuple[Int[Array, "B"], Bool[Array, "B"]]:
        cell = jnp.where(place[1], permute(place[0]), place[0])
        return cell, cell >= count

    # A cell at or above `count` is permuted again until it is below: cycles close, so this permutes range(count).
    start = position, jnp.ones(position.shape, bool)
    return jax.lax.while_loop(lambda place: jnp.any(place[1]), walk, start)[0]


def _side(count: Int[Array, ""]) -> Int[Array, ""]:
    # One more cell per side for rounding up, and one for the rounding error of the root.
    return jnp.floor(jnp.sqrt(count.astype(float))).astype(jnp.int32) + 2
