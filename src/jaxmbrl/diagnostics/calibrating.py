"""Calibration: whether events predicted with some probability happen that often.

A model is calibrated if, for every level p, a share p of the observed values lies at or below the predicted p-quantile
(Kuleshov et al., Accurate uncertainties for deep learning using calibrated regression, arXiv 1807.00263, section 3, whose
measure is a weighted sum of squared differences; ours is their mean absolute value, in the unit of a share). The prediction
is the equal mixture of the members' Gaussians, one dimension at a time; a value lies below the p-quantile where its
probability integral transform, the mixture's distribution function at the value, is below p.

Members without variance make the distribution function jump. A value at a jump counts in proportion at every level between
its ends, so that an exact prediction without noise is calibrated (Czado, Gneiting and Held, Predictive model assessment
for count data, Biometrics 65, 2009).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxmbrl.core.types import PyTree, Transition
from jaxmbrl.diagnostics import predicting
from jaxmbrl.diagnostics.predicting import Model

LEVELS = 19
"""Quantile levels by default: 0.05 to 0.95."""


class Calibration(NamedTuple):
    """Observed shares against predicted quantile levels, for each target dimension: D of [next observation, reward]."""

    levels: Float[Array, "L"]
    """Quantile levels, in (0, 1)."""
    shares: Float[Array, "L D"]
    """Share of the observed values at or below the predicted quantile of the level."""
    error: Float[Array, "D"]
    """Miscalibration: the mean over the levels of |share - level|. 0 is perfect; 1/2 is all values below, or above, every
    quantile."""


def levels_between(count: int) -> Float[Array, "L"]:
    """`count` levels that divide (0, 1) evenly."""
    return jnp.arange(1, count + 1) / (count + 1.0)


def distribution_function(
    mean: Float[Array, "E N D"], variance: Float[Array, "E N D"], value: Float[Array, "N D"]
) -> tuple[Float[Array, "N D"], Float[Array, "N D"]]:
    """The mixture's probability of less than `value`, and of `value` or less, which differ where it has an atom."""
    certain = variance == 0
    standard = (value - mean) / jnp.sqrt(jnp.where(certain, 1.0, variance))
    smooth = jax.scipy.stats.norm.cdf(standard)
    less = jnp.where(certain, jnp.heaviside(standard, 0.0), smooth)
    or_less = jnp.where(certain, jnp.heaviside(standard, 1.0), smooth)
    return jnp.mean(less, axis=0), jnp.mean(or_less, axis=0)


def calibrate(
    mean: Float[Array, "E N D"],
    variance: Float[Array, "E N D"],
    observed: Float[Array, "N D"],
    levels: Float[Array, "L"] | None = None,
) -> Calibration:
    """The calibration of the mixture of E Gaussians on N rows, all in the same units; NaN stays NaN.

    N rows of a calibrated model have an error of about 0.3 / sqrt(N) by chance.
    """
    return of_transforms(*distribution_function(mean, variance, observed), levels)


def of_transforms(
    less: Float[Array, "N D"], or_less: Float[Array, "N D"], levels: Float[Array, "L"] | None = None
) -> Calibration:
    """The calibration from the results of `distribution_function` for the observed values."""
    levels = levels_between(LEVELS) if levels is None else levels
    # A jump of height 0 is a step at its place, without 0 / 0.
    jump = jnp.maximum(or_less - less, jnp.finfo(less.dtype).tiny)
    shares = jax.lax.map(lambda level: jnp.mean(jnp.clip((level - less) / jump, 0.0, 1.0), axis=0), levels)
    return Calibration(levels, shares, jnp.mean(jnp.abs(shares - levels[:, None]), axis=0))


def calibration(model: Model, state: Any, dataset: Transition, levels: Float[Array, "L"] | None = None) -> Calibration:
    """The calibration of all members of a fitted model on the rows [N, ...] of `dataset`, to which it should not have been
    fitted.

    `model` is a `DynamicsModel` with its `state`, or anything with a `predict` (see `Predictor`). Raises UserError where
    rows and model do not fit each other.
    """
    (less, or_less), _ = predicting.summarize(_transforms, model, state, dataset)
    return of_transforms(jnp.asarray(less), jnp.asarray(or_less), levels)


def _transforms(
    mean: Float[Array, "E N D"], variance: Float[Array, "E N D"], target: Float[Array, "N D"]
) -> tuple[PyTree, tuple[()]]:
    return distribution_function(mean, variance, target), ()
