"""Learning curves: return over real environment steps, as a picture and as text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxmbrl.training.run_folder import new_figure, write_figure

Rows = Sequence[dict[str, Any]]
TRAIN = "train/return"
EVAL = "eval/return"
LOOKS = {
    TRAIN: {"color": "0.55", "linestyle": "--", "marker": "o", "label": "training episodes"},
    EVAL: {"color": "#0b3d91", "linestyle": "-", "marker": "s", "label": "evaluation"},
}
MOST_LINES = 50
"""With more seeds a band is drawn in place of a line for each: between the 5% and the 95% quantile over seeds."""
NOTHING = "no finished episode and no evaluation yet"


class Curve(NamedTuple):
    """Values of one metric over real environment steps of one seed, ascending."""

    steps: list[int]
    values: list[float]


def seed_curves(rows: Rows, name: str) -> dict[int, Curve]:
    """The curve of metric `name`, for each seed that has a value."""
    curves: dict[int, Curve] = {}
    for row in sorted(rows, key=lambda row: row["env_steps"]):
        if name in row:
            curve = curves.setdefault(row["seed"], Curve([], []))
            curve.steps.append(row["env_steps"])
            curve.values.append(row[name])
    return dict(sorted(curves.items()))


def mean_curve(rows: Rows, name: str) -> Curve:
    """The mean of metric `name` over the seeds that have a value, at each step where one has."""
    found: dict[int, list[float]] = {}
    for curve in seed_curves(rows, name).values():
        for step, value in zip(*curve, strict=True):
            found.setdefault(step, []).append(value)
    return Curve(sorted(found), [sum(found[step]) / len(found[step]) for step in sorted(found)])


def draw(rows: Rows, path: Path, title: str) -> None:
    """Write the learning curve of metrics `rows` to `path` as a PNG: a thin line for each seed, or a band of more than
    `MOST_LINES`, and their mean in bold.

    If there are evaluation returns, training returns are also drawn, grey and dashed. If no episode has finished, the
    picture says so.
    """
    figure = new_figure(7, 4.5)
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    axes = figure.add_subplot()
    drawn = [_draw_metric(axes, rows, name) for name in LOOKS]
    axes.set_title(title, fontsize=11)
    axes.set_xlabel("real environment steps per seed")
    axes.set_ylabel("return per episode")
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10], integer=True))
    last = max([1, *(row["env_steps"] for row in rows)])
    axes.set_xlim(-0.03 * last, 1.03 * last)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="0.9", linewidth=0.6)
    if any(drawn):
        axes.legend(frameon=False, handlelength=3)
    else:
        axes.text(0.5, 0.5, NOTHING, ha="center", va="center", transform=axes.transAxes, color="0.3")
        axes.set_yticks([])
    write_figure(path, figure)


def _draw_metric(axes: Any, rows: Rows, name: str) -> bool:
    """Draw one metric. Return whether it has a value."""
    curves = seed_curves(rows, name)
    mean = mean_curve(rows, name)
    look = dict(LOOKS[name] if seed_curves(rows, EVAL) else LOOKS[EVAL])
    del look["label"]
    label = LOOKS[name]["label"] + (f", mean of {len(curves)} seeds" if len(curves) > 1 else "")
    marked = len(mean.steps) <= 30
    if len(curves) > MOST_LINES:
        label += ", and 5% to 95% of them"
        axes.fill_between(mean.steps, *_quantiles(curves, mean.steps), color=look["color"], alpha=0.2, linewidth=0)
    for curve in curves.values() if 1 < len(curves) <= MOST_LINES else ():
        lone = len(curve.steps) == 1
        axes.plot(*curve, **{**look, "marker": look["marker"] if lone else ""}, linewidth=0.8, markersize=3, alpha=0.6)
    if mean.steps:
        axes.plot(*mean, **{**look, "marker": look["marker"] if marked else ""}, linewidth=2.4, markersize=4.5, label=label)
    return bool(mean.steps)


def _quantiles(curves: dict[int, Curve], steps: Sequence[int]) -> np.ndarray:
    """The 5% and the 95% quantile [2, S] of the values at each of S steps over the seeds that have one; each step has."""
    place = {step: i for i, step in enumerate(steps)}
    values = np.full((len(curves), len(steps)), np.nan)
    for k, curve in enumerate(curves.values()):
        values[k, [place[step] for step in curve.steps]] = curve.values
    return np.nanquantile(values, [0.05, 0.95], axis=0)


def text_curve(rows: Rows, width: int = 72, height: int = 12) -> str:
    """The mean learning curve as plain text of at most `width` columns and `height` lines, steps from left to right.

    Shows evaluation returns if there are any, else training returns. Raises ValueError below 24 by 5.
    """
    if width < 24 or height < 5:
        raise ValueError(f"a text curve needs at least 24 by 5 characters, got {width} by {height}")
    name = EVAL if any(EVAL in row for row in rows) else TRAIN
    mean = mean_curve(rows, name)
    if not mean.steps:
        return NOTHING
    lines = height - 3
    labels = _labels(min(mean.values), max(mean.values), lines)
    margin = max(len(label) for label in labels)
    columns = width - margin - 2
    dots = _dots(mean, 2 * columns, 4 * lines)
    seeds = len(seed_curves(rows, name))
    heading = ("evaluation" if name == EVAL else "training") + " return"
    if seeds > 1 and len(heading) + 20 <= width:
        heading += f", mean of {seeds} seeds"
    text = [heading]
    for i, label in enumerate(labels):
        text.append(f"{label:>{margin}} \u2524{_braille(dots[4 * i : 4 * i + 4])}".rstrip())
    text.append(" " * (margin + 1) + "\u2514" + "\u2500" * columns)
    text.append(" " * (margin + 2) + _axis(mean.steps, columns))
    return "\n".join(text)


def _labels(low: float, high: float, lines: int) -> list[str]:
    """Values beside every other line, top to bottom."""
    spread = high - low
    if not spread:
        return [_number(low, 1) if i == (lines - 1) // 2 else "" for i in range(lines)]
    decimals = min(max(2 - math.ceil(math.log10(spread)), 0), 6)
    shown = {lines - 1, *range(0, lines - 2, 2)}
    return [_number(high - spread * i / (lines - 1), decimals) if i in shown else "" for i in range(lines)]


def _number(value: float, decimals: int) -> str:
    return f"{value:,.{decimals}f}" if abs(value) < 1e7 else f"{value:.3g}"


def _axis(steps: list[int], columns: int) -> str:
    """First and last step at the ends of the axis, if there is room."""
    first, last = f"{steps[0]:,}", f"{steps[-1]:,} steps"
    if len(steps) > 1 and len(first) + len(last) < columns:
        return first + last.rjust(columns - len(first))
    shown = next(text for text in (last, f"{steps[-1]:,}", f"{steps[-1]:.2g}") if len(text) <= columns)
    return shown.rjust(columns) if len(steps) > 1 else shown


def _dots(curve: Curve, columns: int, lines: int) -> np.ndarray:
    """The curve on a grid of dots [lines, columns], first line on top; its points are joined by straight lines."""
    steps, values = np.asarray(curve.steps, float), np.asarray(curve.values, float)
    spread = np.ptp(values)
    x = np.linspace(steps[0], steps[-1], columns) if len(steps) > 1 else steps
    height = (np.interp(x, steps, values) - values.min()) / spread if spread else np.full(len(x), 0.5)
    at = np.rint((1 - height) * (lines - 1)).astype(int)
    grid = np.zeros((lines, columns), bool)
    for i, line in enumerate(at):
        before = at[max(i - 1, 0)]
        joined = range(min(line, before + 1), max(line, before - 1) + 1)
        grid[list(joined), i] = True
    return grid


def _braille(dots: np.ndarray) -> str:
    """One line of characters from dots [4, 2 * n]."""
    bits = np.array([[0x01, 0x08], [0x02, 0x10], [0x04, 0x20], [0x40, 0x80]])
    cells = dots.reshape(4, -1, 2)
    codes = [int((bits * cells[:, i]).sum()) for i in range(cells.shape[1])]
    return "".join(chr(0x2800 + code) if code else " " for code in codes)
