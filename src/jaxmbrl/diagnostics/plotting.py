"""Plots of the diagnostics. Each function takes a result and returns a matplotlib `Figure`, which a notebook displays and
`figure.savefig(path)` writes. None uses pyplot, and matplotlib is imported at the first plot.

Observed data are black or grey, the model's predictions blue, and references orange and dashed. Line styles and markers
make the same distinctions as the colours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from jaxmbrl.core.config import UserError
from jaxmbrl.diagnostics.calibrating import Calibration
from jaxmbrl.diagnostics.one_step import ModelEvaluation
from jaxmbrl.diagnostics.open_loop import CompoundingError, ImaginedVsReal
from jaxmbrl.diagnostics.values import ValueBias
from jaxmbrl.training.run_folder import new_figure

BLUE, ORANGE, GREEN, PURPLE = "#0b3d91", "#c1440e", "#2e7d32", "#6a1b9a"
COLORS = (BLUE, ORANGE, GREEN, PURPLE)
MARKERS = "os^D"
COLUMNS = 4
"""Largest number of panels in a row."""


def dimension_names(count: int, learns_reward: bool, names: Sequence[str] | None = None) -> list[str]:
    """The names of `count` target dimensions. The last is the reward if it is learned; `names` are those of the observation
    dimensions. Raises UserError if their number does not match."""
    size = count - learns_reward
    if names is not None and len(names) != size:
        raise UserError(f"names must be {size}, one for each observation dimension, got {len(names)}")
    labels = [f"observation {d}" for d in range(size)] if names is None else list(names)
    return labels + ["reward"] * learns_reward


def plot_model_evaluation(evaluation: ModelEvaluation, names: Sequence[str] | None = None) -> Any:
    """Plot the results of `evaluate_model`, with a row for each dimension: the error and the predicted uncertainties, the
    unexplained share of the variance, the likelihood, and the miscalibration. `names` are those of the observation's
    dimensions."""
    labels = dimension_names(len(evaluation.error), evaluation.learns_reward, names)
    place = np.arange(len(labels))
    figure = new_figure(12, 1.8 + 0.3 * len(labels))
    errors, unexplained, likelihood, quantiles = figure.subplots(1, 4, sharey=True)
    series = (("error", "error", BLUE, "o"), ("aleatoric", "noise", ORANGE, "s"), ("epistemic", "disagreement", GREEN, "^"))
    for name, label, color, marker in series:
        errors.plot(getattr(evaluation, name), place, marker, color=color, markersize=5, label=label)
    errors.set(xlabel="root mean square,\nin the dimension's unit", title="Error and uncertainty")
    unexplained.plot(evaluation.unexplained, place, "o", color=BLUE, markersize=5)
    unexplained.set(xlabel="share of the change's\nvariance", title="Not explained")
    for axes, values in (
        (errors, [getattr(evaluation, name) for name, *_ in series]),
        (unexplained, evaluation.unexplained),
    ):
        _log(axes, "x", values)
    members = evaluation.member_nll
    likelihood.hlines(place, members.min(axis=0), members.max(axis=0), color=BLUE, alpha=0.4, linewidth=4, label="members")
    likelihood.plot(evaluation.mixture_nll, place, "D", color=ORANGE, markersize=5, label="their mixture")
    likelihood.set(xlabel="nats of the density in the\ndimension's unit", title="Negative log-likelihood")
    quantiles.plot(np.asarray(evaluation.calibration.error), place, "o", color=BLUE, markersize=5)
    quantiles.set(xlabel="mean difference of shares\n(0 best, 0.5 worst)", title="Miscalibration", xlim=(-0.02, 0.52))
    errors.set_yticks(place, labels)
    errors.set_ylim(len(labels) - 0.5, -0.5)
    for axes in (errors, unexplained, likelihood, quantiles):
        axes.set_title(axes.get_title(), fontsize=10)
        if axes.get_xscale() == "linear":
            axes.locator_params(axis="x", nbins=4)
            axes.ticklabel_format(axis="x", scilimits=(-3, 4))
        _dress(axes)
    _legend_below(figure, errors, likelihood)
    return figure


def plot_scatter(evaluation: ModelEvaluation, names: Sequence[str] | None = None) -> Any:
    """Plot the predicted against the observed change in one step, with a panel for each dimension and a point for each row.
    Points on the dashed diagonal are exact predictions. `names` are those of the observation's dimensions."""
    labels = dimension_names(len(evaluation.error), evaluation.learns_reward, names)
    figure, panels = _panels(len(labels), 3.0, 2.9)
    for d, (axes, name) in enumerate(zip(panels, labels, strict=True)):
        observed, predicted = evaluation.observed[:, d], evaluation.predicted[:, d]
        _diagonal(axes, observed)
        axes.plot(observed, predicted, ".", color=BLUE, markersize=3, alpha=_faint(len(observed)), rasterized=True)
        change = "" if evaluation.learns_reward and d == len(labels) - 1 else " change"
        axes.set(xlabel=f"observed{change}", ylabel=f"predicted{change}")
        axes.set_title(name, fontsize=10, loc="left")
        axes.locator_params(nbins=5)
        share = evaluation.unexplained[d]
        said = "never varied" if math.isnan(share) else f"{share:.2g} of the\nvariance not\nexplained"
        axes.text(0.04, 0.96, said, fontsize=8, va="top", transform=axes.transAxes)
    return figure


def plot_calibration(calibrations: Calibration | Mapping[str, Calibration]) -> Any:
    """Plot one calibration, or several by name: a thin line for each dimension, and the mean over dimensions in bold."""
    named = {"observed": calibrations} if isinstance(calibrations, Calibration) else calibrations
    figure = new_figure(5, 5.3 + 0.22 * len(named))
    calibration_onto(figure.add_subplot(), named)
    return figure


def calibration_onto(axes: Any, calibrations: Mapping[str, Calibration]) -> None:
    """Draw calibrations, by name, onto matplotlib axes, as `plot_calibration` does.

    The dashed diagonal is perfect calibration. The legend shows the mean error.
    """
    axes.plot([0, 1], [0, 1], color="0.4", linestyle="--", linewidth=1, label="perfect")
    for i, (name, found) in enumerate(calibrations.items()):
        color, marker = COLORS[i % len(COLORS)], MARKERS[i % len(MARKERS)]
        levels, shares = np.asarray(found.levels), np.asarray(found.shares)
        if shares.shape[1] > 1:
            axes.plot(levels, shares, color=color, linewidth=0.7, alpha=0.5)
        label = f"{name}: error {float(np.mean(found.error)):.3f}"
        axes.plot(levels, shares.mean(axis=1), color=color, marker=marker, markersize=4, linewidth=2, label=label)
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="predicted quantile level", ylabel="share of observed values at or below")
    axes.set_aspect("equal")
    _dress(axes)
    # Below the axes, because curves may be anywhere inside.
    axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.14), fontsize=9)


def plot_compounding_error(found: CompoundingError, names: Sequence[str] | None = None) -> Any:
    """Plot the error against the number of imagined steps. The top panel is over all dimensions, in standard deviations of
    the data; below is a panel for each dimension, in its own unit. `names` are those of the observation's dimensions."""
    labels = dimension_names(len(found.scale), False, names)
    rows = math.ceil(len(labels) / COLUMNS)
    columns = min(COLUMNS, len(labels))
    figure = new_figure(max(7.0, 3.0 * columns), 3.8 + 2.3 * rows)
    grid = figure.add_gridspec(1 + rows, columns, height_ratios=(1.5, *[1] * rows))
    whole = figure.add_subplot(grid[0, :])
    _errors(whole, found.scaled_members, found.scaled_mean, found.scaled_persistence)
    whole.set(xlabel="imagined steps", ylabel="error in standard\ndeviations of the data")
    whole.set_title(f"All dimensions, from {len(found.starts):,} starts", fontsize=10, loc="left")
    for d, name in enumerate(labels):
        axes = figure.add_subplot(grid[1 + d // COLUMNS, d % COLUMNS])
        _errors(axes, found.members[:, :, d], found.mean[:, d], found.persistence[:, d])
        axes.set_title(name, fontsize=9, loc="left")
        axes.set(xlabel="imagined steps", ylabel="root mean squared error" if d % COLUMNS == 0 else "")
    figure.legend(
        handles=whole.get_legend_handles_labels()[0], frameon=False, ncol=4, loc="outside lower center", fontsize=9
    )
    return figure


def plot_imagined_vs_real(found: ImaginedVsReal, names: Sequence[str] | None = None) -> Any:
    """Plot imagined trajectories and the real one, with a panel for each observation dimension, and one for the reward if
    it is known. `names` are those of the observation's dimensions."""
    labels = dimension_names(found.real.shape[1], False, names)
    rewarded = found.mean_reward is not None
    figure, panels = _panels(len(labels) + rewarded, 3.2, 2.5)
    for d, (axes, name) in enumerate(zip(panels, labels, strict=False)):
        parts = (found.real[:, d], found.mean[:, d], found.members[:, :, d], found.particles[:, :, d])
        _trajectories(axes, 0, *parts)
        axes.set(xlabel="steps from the start", ylabel=name)
    if found.mean_reward is not None and found.members_reward is not None and found.particles_reward is not None:
        parts = (found.real_reward, found.mean_reward, found.members_reward, found.particles_reward)
        _trajectories(panels[-1], 1, *parts)
        panels[-1].set(xlabel="steps from the start", ylabel="reward of the step")
    _legend_below(figure, panels[0])
    return figure


def plot_value_bias(found: ValueBias) -> Any:
    """Plot Q-values against the returns that followed, with a dashed diagonal for zero error, and a histogram of the
    differences."""
    figure = new_figure(9, 4)
    scatter, differences = figure.subplots(1, 2, width_ratios=(1.2, 1))
    _diagonal(scatter, found.returns)
    scatter.plot(found.returns, found.q, ".", color=BLUE, markersize=4, alpha=_faint(len(found.q)), rasterized=True)
    scatter.set(xlabel="discounted return that followed", ylabel="value Q")
    correlation = "" if math.isnan(found.correlation) else f", correlation {found.correlation:.2f}"
    scatter.set_title(f"{len(found.q):,} rows{correlation}", fontsize=10, loc="left")
    differences.hist(found.q - found.returns, bins=40, color=BLUE, alpha=0.75)
    differences.axvline(0, color="black", linestyle="--", linewidth=1)
    differences.axvline(found.bias, color=ORANGE, linewidth=2, label="mean difference")
    differences.set(xlabel="Q - return", ylabel="rows")
    differences.set_title(f"bias {found.bias:.3g}, deviation {found.deviation:.3g}", fontsize=10, loc="left")
    for axes in (scatter, differences):
        _dress(axes)
    _legend_below(figure, scatter, differences)
    return figure


def _panels(count: int, width: float, height: float) -> tuple[Any, list[Any]]:
    """A figure with `count` styled axes, each of the given size in inches, in rows of at most `COLUMNS`."""
    columns = min(COLUMNS, count)
    rows = math.ceil(count / columns)
    figure = new_figure(max(width * columns, 4.2), height * rows + 0.4)
    grid = figure.add_gridspec(rows, columns)
    panels = [figure.add_subplot(grid[i // columns, i % columns]) for i in range(count)]
    for axes in panels:
        _dress(axes)
    return figure, panels


def _dress(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)


def _legend_below(figure: Any, *panels: Any) -> None:
    """Draw one legend below the whole figure, because lines may be anywhere inside the panels."""
    handles = [handle for axes in panels for handle in axes.get_legend_handles_labels()[0]]
    figure.legend(handles=handles, frameon=False, ncol=len(handles), loc="outside lower center", fontsize=9)


def _faint(points: int) -> float:
    """An opacity at which the density of that many points is visible."""
    return min(1.0, max(0.15, 10 / math.sqrt(max(points, 1))))


def _diagonal(axes: Any, values: Float[np.ndarray, "N"]) -> None:
    finite = values[np.isfinite(values)]
    ends = (finite.min(), finite.max()) if len(finite) else (0.0, 1.0)
    axes.plot(ends, ends, color="black", linestyle="--", linewidth=1, label="no difference")


def _log(axes: Any, which: str, values: Any) -> None:
    """Make an axis logarithmic if all finite values are positive and their range is large."""
    known = np.concatenate([np.ravel(x) for x in values]) if isinstance(values, list) else np.ravel(values)
    known = known[np.isfinite(known)]
    if len(known) and known.min() > 0 and known.max() > 10 * known.min():
        axes.set(**{f"{which}scale": "log"})


def _errors(
    axes: Any, members: Float[np.ndarray, "E H"], mean: Float[np.ndarray, "H"], persistence: Float[np.ndarray, "H"]
) -> None:
    """Draw one panel of errors against steps: the band and the lines of the members, the mean over members, and the
    persistence baseline."""
    from matplotlib.ticker import MaxNLocator

    steps = np.arange(1, len(mean) + 1)
    marker = "." if len(mean) == 1 else ""
    if len(members) > 1:
        axes.fill_between(steps, members.min(axis=0), members.max(axis=0), color=BLUE, alpha=0.15, linewidth=0)
    for e, member in enumerate(members):
        label = {"label": "each member alone"} if e == 0 else {}
        axes.plot(steps, member, marker=marker, color=BLUE, linewidth=0.6, alpha=0.6, **label)
    axes.plot(steps, mean, marker=marker, color=BLUE, linewidth=2.2, label="mean over members")
    axes.plot(steps, persistence, marker=marker, color=ORANGE, linestyle="--", linewidth=1.6, label="if nothing changed")
    _log(axes, "y", [members, mean, persistence])
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    _dress(axes)


def _trajectories(
    axes: Any,
    first: int,
    real: Float[np.ndarray, "T"],
    mean: Float[np.ndarray, "T"],
    members: Float[np.ndarray, "E T"],
    particles: Float[np.ndarray, "P T"],
) -> None:
    """Draw one panel of imagined and real trajectories. Its first step has number `first`."""
    from matplotlib.ticker import MaxNLocator

    steps = np.arange(first, first + len(real))
    marker = "." if len(real) == 1 else ""
    looks: tuple[tuple[Any, dict[str, Any]], ...] = (
        (particles, {"color": "0.7", "linewidth": 0.6, "alpha": 0.8, "label": "sampled"}),
        (members, {"color": BLUE, "linewidth": 0.8, "alpha": 0.6, "label": "each member's mean"}),
        (mean[None], {"color": BLUE, "linewidth": 2.2, "label": "mean over members"}),
        (real[None], {"color": "black", "linestyle": "--", "linewidth": 1.6, "label": "real"}),
    )
    for lines, look in looks:
        for i, line in enumerate(lines):
            axes.plot(steps, line, marker=marker, **(look if i == 0 else {**look, "label": None}))
    axes.set_ylim(*_limits(real, np.concatenate([mean[None], members, particles])))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))


def _limits(real: Float[np.ndarray, "T"], imagined: Float[np.ndarray, "K T"]) -> tuple[float, float]:
    """Limits of the y axis. They include all values, but exceed the real range by at most twice that range, because
    imagined trajectories may diverge."""
    low, high = float(real.min()), float(real.max())
    known = imagined[np.isfinite(imagined)]
    room = 2 * max(high - low, 1e-3 * max(abs(low), abs(high)), 1e-6)
    if len(known):
        low, high = max(low - room, min(low, float(known.min()))), min(high + room, max(high, float(known.max())))
    return low - 0.03 * room, high + 0.03 * room
