"""Calibration: whether events occur as often as the model predicts.

A model is calibrated if, for every level p, a share p of the observed values lies at or below the predicted p-quantile
(Kuleshov et al., Accurate uncertainties for deep learning using calibrated regression, arXiv 1807.00263, section 3). Their
measure is a weighted sum of squared differences between observed shares and levels. Ours is the mean absolute difference.

The prediction is the equally weighted mixture of the members' distributions, one dimension at a time. A value lies below
the p-quantile if its probability integral transform, the mixture's distribution function (CDF) at the value, is below p.

Where a member's variance is 0, the distribution function jumps. A value at a jump counts in proportion at every level
between the ends of the jump, so that an exact prediction without noise is calibrated (Czado, Gneiting and Held, Predictive
model assessment for count data, Biometrics 65, 2009).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxmbrl.core.types import PyTree, Transition
from jaxmbrl.diagnostics import predicting
from jaxmbrl.diagnostics.predicting import Model, Prediction

LEVELS = 19
"""Default number of quantile levels: 0.05 to 0.95."""


class Calibration(NamedTuple):
    """Observed shares for each predicted quantile level and each of the D target dimensions [next observation, reward]."""

    levels: Float[Array, "L"]
    """Quantile levels, in (0, 1)."""
    shares: Float[Array, "L D"]
    """Share of the observed values at or below the predicted quantile of the level."""
    error: Float[Array, "D"]
    """Miscalibration: the mean over the levels of |share - level|. 0 is perfect. It is about 1/2 if all values lie below,
    or all above, every quantile."""


def levels_between(count: int) -> Float[Array, "L"]:
    """`count` evenly spaced levels in (0, 1)."""
    return jnp.arange(1, count + 1) / (count + 1.0)


def distribution_function(
    mean: Float[Array, "E N D"], variance: Float[Array, "E N D"], value: Float[Array, "N D"]
) -> tuple[Float[Array, "N D"], Float[Array, "N D"]]:
    """(P(X < value), P(X <= value)) under the mixture of the E Gaussians. They differ only at the mean of a member without
    variance."""
    return transforms(predicting.of_gaussians(mean, variance), value)


def transforms(prediction: Prediction, value: Float[Array, "N D"]) -> tuple[Float[Array, "N D"], Float[Array, "N D"]]:
    """The same under the mixture of the members' predictions."""
    certain = prediction.variances == 0
    standard = (value - prediction.means) / jnp.sqrt(jnp.where(certain, 1.0, prediction.variances))
    smooth = jax.scipy.stats.norm.cdf(standard)

    def mixed(of_components: Float[Array, "E K N D"]) -> Float[Array, "N D"]:
        return jnp.mean(jnp.sum(prediction.weights * of_components, axis=1), axis=0)

    less = jnp.where(certain, jnp.heaviside(standard, 0.0), smooth)
    or_less = jnp.where(certain, jnp.heaviside(standard, 1.0), smooth)
    return mixed(less), mixed(or_less)


def calibrate(
    mean: Float[Array, "E N D"],
    variance: Float[Array, "E N D"],
    observed: Float[Array, "N D"],
    levels: Float[Array, "L"] | None = None,
) -> Calibration:
    """The calibration of the mixture of E Gaussians on N rows, all in the same units. NaN inputs give NaN.

    By chance, a calibrated model has an error of about 0.3 / sqrt(N) on N rows.
    """
    return of_transforms(*distribution_function(mean, variance, observed), levels)


def of_transforms(
    less: Float[Array, "N D"], or_less: Float[Array, "N D"], levels: Float[Array, "L"] | None = None
) -> Calibration:
    """The calibration from the results of `distribution_function` for the observed values."""
    levels = levels_between(LEVELS) if levels is None else levels
    # `tiny` avoids 0 / 0: a jump of height 0 becomes a step.
    jump = jnp.maximum(or_less - less, jnp.finfo(less.dtype).tiny)
    shares = jax.lax.map(lambda level: jnp.mean(jnp.clip((level - less) / jump, 0.0, 1.0), axis=0), levels)
    return Calibration(levels, shares, jnp.mean(jnp.abs(shares - levels[:, None]), axis=0))


def calibration(model: Model, state: Any, dataset: Transition, levels: Float[Array, "L"] | None = None) -> Calibration:
    """The calibration of the mixture of all members of a fitted model on the rows [N, ...] of `dataset`. The rows should
    not have been used to fit the model.

    `model` is a `DynamicsModel` with its `state`, or any object with a `predict` function (see `Predictor`). Raises
    UserError if the shapes of rows and model do not match.
    """
    (less, or_less), _ = predicting.summarize(_transforms, model, state, dataset)
    return of_transforms(jnp.asarray(less), jnp.asarray(or_less), levels)


def _transforms(prediction: Prediction, target: Float[Array, "N D"]) -> tuple[PyTree, tuple[()]]:
    return transforms(prediction, target), ()
