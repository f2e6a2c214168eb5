"""Evaluation of a fitted model's one-step predictions: errors, likelihood, uncertainties and calibration.

All numbers are given for each dimension, over recorded rows that should not have been used to fit the model. They include
all members, elite or not.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxmbrl.core.types import PyTree, Transition
from jaxmbrl.diagnostics import calibrating, predicting
from jaxmbrl.diagnostics.calibrating import Calibration
from jaxmbrl.diagnostics.predicting import Model, Prediction
from jaxmbrl.models import uncertainty


class ModelEvaluation(NamedTuple):
    """Quality of a model's one-step predictions. The D dimensions are [next observation, reward], with the reward only if
    it is learned. NumPy arrays, in the task's units unless stated otherwise."""

    error: Float[np.ndarray, "D"]
    """Root mean squared error (RMSE) of the mean over members."""
    unexplained: Float[np.ndarray, "D"]
    """The squared error as a share of the variance of [observation change, reward]; NaN where the variance is 0."""
    aleatoric: Float[np.ndarray, "D"]
    """Square root of the mean predicted noise variance of the members."""
    epistemic: Float[np.ndarray, "D"]
    """Square root of the mean variance between the members' predicted means."""
    member_nll: Float[np.ndarray, "E D"]
    """Mean negative log-likelihood (NLL) of each member's distribution, in nats, one dimension at a time, with the density
    in the task's units. NaN if a variance is 0, because there is no density then."""
    mixture_nll: Float[np.ndarray, "D"]
    """The same for the equally weighted mixture of the members' distributions."""
    calibration: Calibration
    predicted: Float[np.ndarray, "N D"]
    """Mean over members of the predicted [observation change, reward]."""
    observed: Float[np.ndarray, "N D"]
    """The recorded [observation change, reward]."""
    learns_reward: bool
    """Whether the last of the D dimensions is the reward."""


def evaluate_model(
    model: Model, state: Any, dataset: Transition, levels: Float[Array, "L"] | None = None
) -> ModelEvaluation:
    """Evaluate a fitted model on the rows [N, ...] of `dataset`, which should not have been used to fit it.

    `model` is a `DynamicsModel` with its `state`, or any object with a `predict` function (see `Predictor`). `levels` are
    the quantile levels of the calibration, by default 0.05 to 0.95. Raises UserError if the shapes of rows and model do not
    match.
    """
    rows, means = predicting.summarize(_summary, model, state, dataset)
    size = np.shape(dataset.observation)[1]
    target, middle = (np.asarray(rows[name], np.float64) for name in ("target", "middle"))
    less, or_less = rows["transforms"]
    before = np.zeros_like(target)
    before[:, :size] = dataset.observation
    squared = np.mean((middle - target) ** 2, axis=0)
    change = target - before
    # Relative to the first row, so that the variance of a constant dimension is exactly 0.
    variation = np.var(change - change[0], axis=0)
    return ModelEvaluation(
        error=np.sqrt(squared),
        unexplained=np.where(variation > 0, squared / np.where(variation > 0, variation, 1.0), np.nan),
        aleatoric=np.sqrt(means["aleatoric"]),
        epistemic=np.sqrt(means["epistemic"]),
        member_nll=means["member_nll"],
        mixture_nll=means["mixture_nll"],
        calibration=calibrating.of_transforms(jnp.asarray(less), jnp.asarray(or_less), levels),
        predicted=middle - before,
        observed=change,
        learns_reward=target.shape[1] > size,
    )


def _summary(prediction: Prediction, target: Float[Array, "N D"]) -> tuple[PyTree, PyTree]:
    aleatoric, epistemic = uncertainty(prediction.mean, prediction.variance)
    variances = prediction.variances
    density = jax.scipy.stats.norm.logpdf(target, prediction.means, jnp.sqrt(variances))
    density = jnp.where(variances > 0, density, jnp.nan)
    of_member = jax.nn.logsumexp(jnp.log(prediction.weights) + density, axis=1)
    mixture = jax.nn.logsumexp(of_member, axis=0) - math.log(of_member.shape[0])
    by_row = {
        "target": target,
        "middle": jnp.mean(prediction.mean, axis=0),
        "transforms": calibrating.transforms(prediction, target),
    }
    sums = {
        "aleatoric": jnp.sum(aleatoric, axis=0),
        "epistemic": jnp.sum(epistemic, axis=0),
        "member_nll": -jnp.sum(of_member, axis=1),
        "mixture_nll": -jnp.sum(mixture, axis=0),
    }
    return by_row, sums
