"""Comparison of learning curves with published ones: published returns from a file, ours at the same steps, and a plot.

The return of a seed "at step N" is the mean of its evaluations within max(2500, 3 %) environment steps of N, for ours and
the published ones alike. Over our seeds: mean, standard deviation, interquartile mean, and 95% bootstrap intervals
(`training.evaluation`).
"""

from __future__ import annotations

import csv
import io
import re
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxmbrl.core.config import UserError
from jaxmbrl.training.curve import EVAL, Rows, mean_curve, seed_curves
from jaxmbrl.training.evaluation import bootstrap_interval, interquartile_mean
from jaxmbrl.training.run_folder import new_figure, write_figure

REFERENCE = "MBPO"
"""The published method that serves as the reference; it is drawn largest."""
LOOKS: dict[str, dict[str, Any]] = {
    REFERENCE: {
        "color": "#c1440e",
        "marker": "D",
        "markersize": 8,
        "elinewidth": 1.8,
        "capsize": 4,
        "zorder": 6,
        "alpha": 1.0,
    },
    "MACURA": {"color": "#6a1b9a", "marker": "^"},
    "DHMBPO": {"color": "#2e7d32", "marker": "v"},
    "DroQ (UTD20)": {"color": "#00838f", "marker": "s"},
    "REDQ (UTD20)": {"color": "#b8860b", "marker": "o"},
    "SAC (UTD1)": {"color": "0.45", "marker": "x"},
}
"""The methods that are drawn."""
SMALL = {"markersize": 4.5, "elinewidth": 0.8, "capsize": 2, "alpha": 0.75, "zorder": 3}
PLACES = (0, -2, 2, -3, 3, 4)
"""Horizontal shifts of the methods, so that their points at the same step do not overlap."""
OURS = "#0b3d91"


class Point(NamedTuple):
    """A published return: one row of the file."""

    task: str
    environment_steps: int
    method: str
    return_mean: float
    """Over seeds."""
    return_std: float
    """Over seeds (n - 1)."""
    seeds: int
    wall_clock_hours: float | None
    """Until that step, on the authors' machines."""
    suite: str
    """Version of the environments."""
    source: str


class Summary(NamedTuple):
    """Returns of our seeds at one step."""

    per_seed: dict[int, float]
    mean: float
    std: float | None
    """Over seeds (n - 1); None for one seed."""
    iqm: float
    """Interquartile mean."""
    interval: tuple[float, float]
    """95% bootstrap interval of the interquartile mean."""
    wall_clock_hours: float
    """Until that step."""


class Comparison(NamedTuple):
    """Our returns and the published ones at one step."""

    environment_steps: int
    ours: Summary
    theirs: list[Point]

    def of(self, method: str) -> Point | None:
        """The published return of `method`; None if there is none."""
        return next((point for point in self.theirs if point.method == method), None)


def read(path: Path) -> list[Point]:
    """The published returns in a CSV file. Its header must be the field names of `Point`. Raises UserError with the number
    of the wrong line."""
    try:
        lines = list(csv.reader(io.StringIO(path.read_text(encoding="utf-8"))))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from None
    if not lines or tuple(lines[0]) != Point._fields:
        raise UserError(f"{path} must begin with the line {','.join(Point._fields)}")
    return [_point(line, f"{path}, line {i}") for i, line in enumerate(lines[1:], start=2)]


def _point(line: Sequence[str], where: str) -> Point:
    kinds: tuple[Callable[[str], Any], ...] = (str, int, str, float, float, int, _hours, str, str)
    if len(line) != len(kinds):
        raise UserError(f"{where} must have {len(kinds)} entries, got {len(line)}")
    found = []
    for name, kind, entry in zip(Point._fields, kinds, line, strict=True):
        try:
            found.append(kind(entry))
        except ValueError:
            raise UserError(f"{where}: {name} must be a number, got '{entry}'") from None
    return Point(*found)


def _hours(entry: str) -> float | None:
    return float(entry) if entry else None


def of_task(points: Sequence[Point], env: str) -> list[Point]:
    """The points of the task `env`. Published names have no version: `Hopper-v5` is Hopper, `Ant-v5/truncated` is Ant."""
    named = re.fullmatch(r"(?:gymnasium/)?(\w+)-v\d+(?:/truncated)?", env)
    return [point for point in points if named and point.task == named[1]]


def at_step(rows: Rows, step: int) -> dict[int, float]:
    """The return of each seed at `step`, from the evaluations in metrics `rows`. Seeds without one there are absent."""
    reach = max(2500, 0.03 * step)
    found = {}
    for seed, (steps, values) in seed_curves(rows, EVAL).items():
        near = [value for at, value in zip(steps, values, strict=True) if abs(at - step) <= reach]
        if near and steps[-1] >= step:
            found[seed] = statistics.fmean(near)
    return found


def compare(rows: Rows, points: Sequence[Point]) -> list[Comparison]:
    """Our returns and the published `points` of the task, at each published step that one of our seeds has reached."""
    found = []
    for step in sorted({point.environment_steps for point in points}):
        per_seed = at_step(rows, step)
        if per_seed:
            theirs = [point for point in points if point.environment_steps == step]
            seconds = min(row["wall_time"] for row in rows if row["env_steps"] >= step)
            found.append(Comparison(step, _summary(per_seed, seconds / 3600), theirs))
    return found


def _summary(per_seed: dict[int, float], hours: float) -> Summary:
    values = list(per_seed.values())
    std = statistics.stdev(values) if len(values) > 1 else None
    mean, iqm = statistics.fmean(values), interquartile_mean(values)
    return Summary(per_seed, mean, std, iqm, bootstrap_interval(values), round(hours, 3))


def draw(rows: Rows, points: Sequence[Point], path: Path, title: str, label: str) -> None:
    """Write a PNG to `path`. It shows the mean over seeds of the evaluations in metrics `rows` with its 95% bootstrap band,
    named `label`, and the published `points` of the task with their standard deviations."""
    figure = new_figure(9.5, 5)
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    axes = figure.add_subplot()
    ours, last = _draw_ours(axes, rows, label)
    last = max([1, last, *(point.environment_steps for point in points if point.method == REFERENCE)])
    theirs = []
    for method, place in zip(LOOKS, PLACES, strict=True):
        seen = [point for point in points if point.method == method and point.environment_steps <= last]
        theirs += _draw_method(axes, seen, LOOKS[method], 0.008 * last * place)
    axes.set_title(title, loc="left", fontsize=11)
    axes.set(xlabel="real environment steps per seed", ylabel="return per episode", xlim=(-0.03 * last, 1.05 * last))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 2.5, 5, 10], integer=True))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="0.92", linewidth=0.6)
    beside = {"frameon": False, "fontsize": 9, "title_fontsize": 9, "alignment": "left"}
    figure.legend(handles=ours, loc="outside right upper", title="ours", **beside)
    if theirs:
        heading = "published: mean and standard\ndeviation, shifted where\nsteps are the same"
        figure.legend(handles=theirs, loc="outside right lower", title=heading, **beside)
    write_figure(path, figure)


def _draw_ours(axes: Any, rows: Rows, label: str) -> tuple[list[Any], int]:
    """Draw our mean and its band. Returns (the handles for the legend, the last evaluated step or 0)."""
    steps, means = mean_curve(rows, EVAL)
    values: dict[int, list[float]] = {}
    for row in rows:
        if EVAL in row:
            values.setdefault(row["env_steps"], []).append(row[EVAL])
    bands = [bootstrap_interval(values[step], trim=0.0) for step in steps]
    look = {"linewidth": 2.6, "marker": "o" if len(steps) <= 30 else "", "markersize": 4, "zorder": 5}
    shown = axes.plot(steps, means, color=OURS, label=label if steps else "no evaluation yet", **look)
    if max(map(len, values.values()), default=0) > 1:
        # The band of a single step has no width, so its edge is drawn.
        edge = 0 if len(steps) > 1 else 8
        filled = axes.fill_between(steps, *zip(*bands, strict=True), color=OURS, alpha=0.18, linewidth=edge)
        filled.set_label("95% bootstrap interval\nof the mean")
        shown.append(filled)
    return shown, max(steps, default=0)


def _draw_method(axes: Any, points: Sequence[Point], look: dict[str, Any], shift: float) -> list[Any]:
    """Draw the points of one method, shifted from their steps. Returns the handles for the legend."""
    if not points:
        return []
    steps = [point.environment_steps + shift for point in points]
    means, stds = [point.return_mean for point in points], [point.return_std for point in points]
    label = f"{points[0].method}, {points[0].seeds} seeds"
    return [axes.errorbar(steps, means, stds, linestyle="", label=label, **{**SMALL, **look})]


def table(comparisons: Sequence[Comparison]) -> str:
    """Our returns and those of the drawn methods as text, with a line for each step. Intervals are those of the
    interquartile mean."""
    methods = [method for method in LOOKS if any(row.of(method) for row in comparisons)]
    lines = [f"{'steps':>9}  {'ours: mean, IQM [95% interval]':<38}" + "".join(f"{name:>17}" for name in methods)]
    for row in comparisons:
        ours, (low, high) = row.ours, row.ours.interval
        text = f"{ours.mean:,.0f}, {ours.iqm:,.0f} [{low:,.0f}, {high:,.0f}], {len(ours.per_seed)} seeds"
        published = "".join(f"{_mean_and_std(row.of(name)):>17}" for name in methods)
        lines.append(f"{row.environment_steps:>9,}  {text:<38}{published}")
    return "\n".join(lines)


def _mean_and_std(point: Point | None) -> str:
    return "-" if point is None else f"{point.return_mean:,.0f} \u00b1 {point.return_std:,.0f}"


def share_of_reference(by_task: Sequence[Sequence[Comparison]]) -> dict[str, Any] | None:
    """Our return divided by the mean of `REFERENCE` at the last step where both are known: the interquartile mean over all
    seeds of all tasks, and its interval, with resampling within each task. None if no task has reached such a step."""
    shares = []
    for comparisons in by_task:
        known = [(row.ours, point) for row in comparisons if (point := row.of(REFERENCE))]
        if known:
            ours, point = known[-1]
            shares.append([value / point.return_mean for value in ours.per_seed.values()])
    if not shares:
        return None
    iqm = interquartile_mean([share for task in shares for share in task])
    return {"tasks": len(shares), "iqm": iqm, "interval": bootstrap_interval(*shares)}
