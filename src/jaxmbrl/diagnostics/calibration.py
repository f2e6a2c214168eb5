"""Calibration: whether what was predicted to happen with some probability happened that often.

A model is calibrated if, for every level p, a share p of the observed values lies at or below the predicted p-quantile
(Kuleshov et al., Accurate uncertainties for deep learning using calibrated regression, arXiv 1807.00263, section 3, whose
measure is a weighted sum of squared differences; ours is their mean absolute value, in the unit of a share). The prediction
is the equal mixture of the members' Gaussians, one dimension at a time; a value lies below the p-quantile where its
probability integral transform, the mixture's distribution function at the value, is below p.

Members without variance make the distribution function jump. A value that it jumps at counts at every level in between in
proportion, so that an exact prediction without noise is calibrated (Czado, Gneiting and Held, Predictive model assessment
for count data, Biometrics 65, 2009).
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxmbrl.training.run_folder import write_file
from jaxmbrl.types import DynamicsModel, Transition

LEVELS = 19
"""Quantile levels by default: 0.05 to 0.95."""
COLORS = ("#0b3d91", "#c1440e", "#2e7d32", "#6a1b9a")


class Calibration(NamedTuple):
    """Observed shares against predicted quantile levels, for each target dimension: D of [next observation, reward]."""

    levels: Float[Array, "L"]
    """Quantile levels, in (0, 1)."""
    shares: Float[Array, "L D"]
    """Share of the observed values at or below the predicted quantile of the level."""
    error: Float[Array, "D"]
    """Miscalibration: the mean over the levels of |share - level|. 0 is perfect; beside the truth altogether, all values
    below or above every quantile, is 1/2."""


def levels_between(count: int) -> Float[Array, "L"]:
    """`count` levels that part (0, 1) evenly."""
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
    """The calibration of the mixture of E Gaussians on N rows, all in the same units; what is not a number stays so.

    N observed rows of a calibrated model still give an error of about 0.3 / sqrt(N), by chance.
    """
    levels = levels_between(LEVELS) if levels is None else levels
    less, or_less = distribution_function(mean, variance, observed)
    # A jump of nothing is a step at its place, without 0 / 0.
    jump = jnp.maximum(or_less - less, jnp.finfo(less.dtype).tiny)
    shares = jax.lax.map(lambda level: jnp.mean(jnp.clip((level - less) / jump, 0.0, 1.0), axis=0), levels)
    return Calibration(levels, shares, jnp.mean(jnp.abs(shares - levels[:, None]), axis=0))


def of_model(model: DynamicsModel, state: Any, rows: Transition, levels: Float[Array, "L"] | None = None) -> Calibration:
    """The calibration of all members of a fitted model on `rows` [N], which it should not have been fitted to."""
    mean, variance = model.predict(state, rows.observation, rows.action)
    observed = jnp.concatenate([rows.next_observation, rows.reward[:, None]], axis=1)[:, : mean.shape[2]]
    return calibrate(mean, variance, observed, levels)


def plot(axes: Any, calibrations: Mapping[str, Calibration]) -> None:
    """Draw calibrations by their names onto matplotlib axes: a thin line a dimension, the mean over dimensions in bold.

    The dashed diagonal is perfect calibration. The legend tells the mean error.
    """
    axes.plot([0, 1], [0, 1], color="0.4", linestyle="--", linewidth=1, label="perfect")
    for i, (name, found) in enumerate(calibrations.items()):
        color, marker = COLORS[i % len(COLORS)], "os^D"[i % 4]
        levels, shares = np.asarray(found.levels), np.asarray(found.shares)
        if shares.shape[1] > 1:
            axes.plot(levels, shares, color=color, linewidth=0.7, alpha=0.5)
        label = f"{name}: error {float(np.mean(found.error)):.3f}"
        axes.plot(levels, shares.mean(axis=1), color=color, marker=marker, markersize=4, linewidth=2, label=label)
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="predicted quantile level", ylabel="share of observed values at or below")
    axes.set_aspect("equal")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="0.9", linewidth=0.6)
    # Below the axes: curves may go anywhere inside.
    axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.14), fontsize=9)


def draw(calibrations: Mapping[str, Calibration], path: Path, title: str) -> None:
    """Write the picture of `plot` to `path` as a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 5.6), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    plot(axes, calibrations)
    axes.set_title(title, fontsize=11)
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    write_file(path, picture.getvalue())
