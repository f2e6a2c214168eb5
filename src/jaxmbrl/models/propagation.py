"""Propagation: how imagined rows move through the members of an ensemble (Chua et al., PETS, arXiv 1805.12114, section 4).

With mean m_e and variance v_e of member e at the row, a step of a row samples from

    ts1, tsinf          N(m_e, v_e), where e is the row's member, which changes at every step (ts1) or never (tsinf)
    distribution        N(mean_e m_e, mean_e v_e + var_e m_e)
    moment_matching     as distribution; then all rows are resampled from the diagonal Gaussian of the next observations
    expectation         mean_e m_e itself

The first two cost one network evaluation a row, the others one for each member and row. Difference: moment matching refits
the next observations, whereas PETS's code refits their changes; there the spread of the rows before the step remains, and
the distribution of the particles is not Gaussian.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxmbrl.core.roots import root
from jaxmbrl.core.types import Key

Propagation: TypeAlias = Literal["ts1", "tsinf", "expectation", "distribution", "moment_matching"]


def scatter_to_members(rows: Float[Array, "N I"], members: int, shift: Int[Array, ""] | int) -> Float[Array, "E M I"]:
    """Assign row n to member (n + shift) mod E. If E does not divide N, the last row is repeated at the end."""
    padded = jnp.pad(rows, ((0, -rows.shape[0] % members), (0, 0)), mode="edge")
    return _rolled(padded.reshape(-1, members, rows.shape[1]), shift).swapaxes(0, 1)


def gather_rows(outputs: Float[Array, "E M D"], rows: int, shift: Int[Array, ""] | int) -> Float[Array, "N D"]:
    """The inverse of `scatter_to_members`: the members' outputs in the order of the N rows."""
    in_order = _rolled(outputs.swapaxes(0, 1), -shift)
    return in_order.reshape(math.prod(in_order.shape[:2]), outputs.shape[2])[:rows]


def _rolled(blocks: Float[Array, "M E D"], shift: Int[Array, ""] | int) -> Float[Array, "M E D"]:
    """`jnp.roll(blocks, shift, axis=1)`. A traced shift is made of those by 1, 2, 4, ... places: for shifts that differ
    between seeds or episodes, `jnp.roll` becomes a gather, and on a CPU a plan takes almost twice as long."""
    if isinstance(shift, int):
        return jnp.roll(blocks, shift, axis=1)
    members = blocks.shape[1]
    places = shift % members
    for bit in range((members - 1).bit_length()):
        blocks = jnp.where((places >> bit) & 1 == 1, jnp.roll(blocks, 1 << bit, axis=1), blocks)
    return blocks


def evaluate(
    propagation: Propagation,
    members: int,
    shift: Int[Array, ""] | int,
    function: Callable[[Float[Array, "E M I"]], tuple[Float[Array, "E M D"], ...]],
    rows: Float[Array, "N I"],
) -> tuple[Float[Array, "K N D"], ...]:
    """The members' `function` at the rows: K = 1 prediction by each row's own member, or K = E predictions by all."""
    count = rows.shape[0]
    with jax.default_matmul_precision("highest"):
        if propagation not in ("ts1", "tsinf"):
            return function(jnp.broadcast_to(rows, (members, *rows.shape)))
        outputs = function(scatter_to_members(rows, members, shift))
    return tuple(gather_rows(part, count, shift)[None] for part in outputs)


def uncertainty(
    mean: Float[Array, "E N D"], variance: Float[Array, "E N D"]
) -> tuple[Float[Array, "N D"], Float[Array, "N D"]]:
    """(aleatoric, epistemic) variance of the equal mixture of E Gaussians, in the square of the units of `mean`.

    Aleatoric is the mean over members of the variance, the noise that they predict; epistemic is the population variance
    over members of the mean, their disagreement. Their sum is the variance of the mixture (law of total variance).
    """
    return jnp.mean(variance, axis=0), jnp.var(mean, axis=0)


def gaussian(
    propagation: Propagation, mean: Float[Array, "K N D"], variance: Float[Array, "K N D"]
) -> tuple[Float[Array, "N D"], Float[Array, "N D"]]:
    """(mean, standard deviation) of the Gaussian that each row is sampled from, given the predictions of `evaluate`."""
    middle = jnp.mean(mean, axis=0)
    if propagation == "expectation":
        return middle, jnp.zeros_like(middle)
    aleatoric, epistemic = uncertainty(mean, variance)
    return middle, root(aleatoric + epistemic)


def uncertain(mean: Float[Array, "K N D"], variance: Float[Array, "K N D"], threshold: float | None) -> Bool[Array, "N"]:
    """Rows for which the standard deviation of some dimension, aleatoric and epistemic, is above `threshold`. None selects
    no row. With K = 1, as under ts1 and tsinf, there is no epistemic variance.
    """
    if threshold is None:
        return jnp.zeros(mean.shape[1], bool)
    return jnp.any(sum(uncertainty(mean, variance)) > threshold**2, axis=-1)


def match_moments(rows: Float[Array, "N O"], key: Key) -> Float[Array, "N O"]:
    """N rows resampled from the diagonal Gaussian with the mean and the population variance of the rows."""
    # Relative to one of the rows, so that equal rows stay equal in any precision.
    shifted = rows - rows[0]
    mean = rows[0] + jnp.mean(shifted, axis=0)
    return mean + root(jnp.var(shifted, axis=0)) * jax.random.normal(key, rows.shape, rows.dtype)
