"""Shift and scale of columns to mean 0 and standard deviation 1."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

SMALLEST_STD = 1e-12
"""A column with a smaller standard deviation is only shifted, as in PETS (arXiv 1805.12114). Denormalising it returns a
constant."""


class Normalizer(NamedTuple):
    """Mean and standard deviation of each column, in the column's units."""

    mean: Float[Array, "*e d"]
    std: Float[Array, "*e d"]


def identity(size: int) -> Normalizer:
    """The normaliser of `size` columns that changes nothing."""
    return Normalizer(jnp.zeros(size), jnp.ones(size))


def measure(rows: Float[Array, "c d"], mask: Bool[Array, "c"]) -> Normalizer:
    """Mean and population standard deviation of the rows where `mask` is true.

    The moments are taken about one of the rows, so that a constant column has a std of exactly 0 in any precision.
    Without any row the std is 0, too.
    """
    count = jnp.maximum(jnp.sum(mask), 1)
    origin = rows[jnp.argmax(mask)]
    shifted = jnp.where(mask[:, None], rows - origin, 0.0)
    mean = jnp.sum(shifted, axis=0) / count
    variance = jnp.sum(jnp.where(mask[:, None], shifted - mean, 0.0) ** 2, axis=0) / count
    return Normalizer(origin + mean, jnp.sqrt(variance))


def normalize(normalizer: Normalizer, x: Float[Array, "*n d"]) -> Float[Array, "*n d"]:
    """From the rows' units to normalised ones."""
    return (x - normalizer.mean) / jnp.where(normalizer.std < SMALLEST_STD, 1.0, normalizer.std)


def denormalize(normalizer: Normalizer, x: Float[Array, "*n d"]) -> Float[Array, "*n d"]:
    """From normalised units to the rows'.

    A column that did not vary is returned as its constant, for any x: otherwise a planner would exploit small errors of the
    model in a constant reward.
    """
    return x * normalizer.std + normalizer.mean
