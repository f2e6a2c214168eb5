"""Shift and scale of columns to mean 0 and standard deviation 1, within the range of the rows that were measured."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxmbrl.data.examining import ROUNDING


class Normalizer(NamedTuple):
    """Statistics of each column, in the column's units."""

    mean: Float[Array, "*e d"]
    std: Float[Array, "*e d"]
    """Population standard deviation; 0 for a column that varies by rounding only, which is only shifted and denormalised as
    a constant. PETS (arXiv 1805.12114) compares with 1e-12 instead, whatever the units."""
    low: Float[Array, "*e d"]
    """Smallest value that is not clipped."""
    high: Float[Array, "*e d"]
    """Largest value that is not clipped."""


def identity(size: int) -> Normalizer:
    """The normaliser of `size` columns that changes nothing."""
    low, high = _unlimited(jnp.zeros(size))
    return Normalizer(jnp.zeros(size), jnp.ones(size), low, high)


def measure(rows: Float[Array, "c d"], mask: Bool[Array, "c"], margin: float | None = None) -> Normalizer:
    """Mean and population standard deviation of the rows where `mask` is true.

    The moments are taken about one of the rows, so that a constant column has a std of exactly 0 in any precision, and in
    units of a power of two near the largest deviation, so that their squares do not overflow or underflow. Without any row
    the std is 0, too.

    With a `margin`, values are clipped to the range of these rows, widened on each side by `margin` times its width. A
    column that hardly varies has a tiny std. Without clipping, a later value that is a little different would become a huge
    input, for which a network's outputs are arbitrary.
    """
    count = jnp.maximum(jnp.sum(mask), 1)
    origin = rows[jnp.argmax(mask)]
    shifted = jnp.where(mask[:, None], rows - origin, 0.0)
    # Multiplication by a power of two is exact, so that it does not change a result that neither overflows nor underflows.
    exponent = jnp.frexp(jnp.max(jnp.abs(shifted), axis=0))[1]
    shifted = jnp.ldexp(shifted, -exponent)
    mean = jnp.sum(shifted, axis=0) / count
    variance = jnp.sum(jnp.where(mask[:, None], shifted - mean, 0.0) ** 2, axis=0) / count
    std = jnp.ldexp(jnp.sqrt(variance), exponent)
    magnitude = jnp.max(jnp.where(mask[:, None], jnp.abs(rows), 0.0), axis=0)
    varies = std > ROUNDING * jnp.finfo(rows.dtype).eps * magnitude
    low, high = _unlimited(origin)
    if margin is not None:
        smallest, largest = (extreme(jnp.where(mask[:, None], rows, origin), axis=0) for extreme in (jnp.min, jnp.max))
        widening, measured = margin * (largest - smallest), jnp.any(mask)
        low = jnp.where(measured, smallest - widening, low)
        high = jnp.where(measured, largest + widening, high)
    return Normalizer(origin + jnp.ldexp(mean, exponent), jnp.where(varies, std, 0.0), low, high)


class RunningNormalizer(NamedTuple):
    """The normaliser of all rows so far."""

    normalizer: Normalizer
    rows: Float[Array, ""]
    """Number of rows."""


def running(size: int) -> RunningNormalizer:
    """A running normaliser of `size` columns before its first rows, which changes nothing."""
    return RunningNormalizer(identity(size), jnp.zeros(()))


def merge(running: RunningNormalizer, rows: Float[Array, "c d"], limit: float) -> RunningNormalizer:
    """The normaliser of the earlier rows and of `rows` together, by the parallel update of Chan, Golub and LeVeque (1979).
    Normalised values are clipped to [-limit, limit]. The variance has 1e-8 added."""
    before, added = running.normalizer, jnp.asarray(rows.shape[0], float)
    total = running.rows + added
    share = added / total
    step = jnp.mean(rows, axis=0) - before.mean
    mean = before.mean + step * share
    variance = (1 - share) * before.std**2 + share * jnp.var(rows, axis=0) + step**2 * share * (1 - share)
    std = jnp.sqrt(variance + VARIANCE_FLOOR * share)
    return RunningNormalizer(Normalizer(mean, std, mean - limit * std, mean + limit * std), total)


VARIANCE_FLOOR = 1e-8
"""Added to a running variance, so that a constant column is not divided by 0."""


def normalize(normalizer: Normalizer, x: Float[Array, "*n d"]) -> Float[Array, "*n d"]:
    """From the rows' units to normalised ones, clipped to the normaliser's range. NaN stays NaN."""
    return (_clip(normalizer, x) - normalizer.mean) / jnp.where(normalizer.std > 0, normalizer.std, 1.0)


def denormalize(normalizer: Normalizer, x: Float[Array, "*n d"]) -> Float[Array, "*n d"]:
    """From normalised units to the rows'.

    A column that did not vary is returned as its constant, for any x: otherwise a planner would exploit small errors of the
    model in a constant reward.
    """
    return x * normalizer.std + normalizer.mean


def _clip(normalizer: Normalizer, x: Float[Array, "*n d"]) -> Float[Array, "*n d"]:
    return jnp.clip(x, normalizer.low, normalizer.high)


def _unlimited(like: Float[Array, "d"]) -> tuple[Float[Array, "d"], Float[Array, "d"]]:
    """(low, high) for no clipping: the smallest and largest finite numbers, so that a state contains no infinity."""
    largest = jnp.full_like(like, jnp.finfo(like.dtype).max)
    return -largest, largest
