"""Charts of metrics: a thin line for each seed, or the quantiles of many seeds, the interquartile mean over seeds in bold,
and its bootstrap band."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from jaxmbrl.report.gathering import Group
from jaxmbrl.report.parts import MOST_POINTS, Chart, Series, chosen
from jaxmbrl.training.curve import MOST_LINES
from jaxmbrl.training.evaluation import bootstrap_bands, interquartile_mean

WALL = "wall_time"
BAND = "95% bootstrap band"
UNITS = ((86_400.0, "days"), (3_600.0, "hours"), (60.0, "minutes"))
"""Units of the wall clock: seconds, and name."""


class Curves(NamedTuple):
    """One metric of the seeds of a group, at the S steps at which any seed has a value."""

    steps: Float[np.ndarray, "S"]
    wall: Float[np.ndarray, "S"]
    """Mean wall clock time, in s, of the seeds that have a value at the step."""
    walls: Float[np.ndarray, "S seeds"]
    values: Float[np.ndarray, "S seeds"]
    """NaN where a seed has no value."""


def curves(group: Group, name: str) -> Curves | None:
    """The curves of metric `name`, at most at `MOST_POINTS` steps; None if no seed has a value."""
    steps = sorted({row["env_steps"] for seed in group.seeds for row in seed.rows if name in row})
    if not steps:
        return None
    steps = [steps[i] for i in chosen(len(steps), MOST_POINTS)]
    place = {step: i for i, step in enumerate(steps)}
    values = np.full((len(steps), len(group.seeds)), np.nan)
    walls = values.copy()
    for k, seed in enumerate(group.seeds):
        for row in seed.rows:
            at = place.get(row["env_steps"])
            if at is not None and name in row:
                values[at, k], walls[at, k] = row[name], row[WALL]
    return Curves(np.asarray(steps, float), np.nanmean(walls, axis=1), walls, values)


def middle(values: Float[np.ndarray, "S seeds"]) -> Float[np.ndarray, "S"]:
    """The interquartile mean over the seeds that have a value; NaN if none has."""
    known = [row[~np.isnan(row)] for row in values]
    return np.asarray([interquartile_mean(row.tolist()) if len(row) else np.nan for row in known])


def unit_of(seconds: float) -> tuple[float, str]:
    """(seconds, name) of the largest unit that is at most half of `seconds`."""
    return next(((size, name) for size, name in UNITS if seconds >= 2 * size), (1.0, "s"))


def chart(
    groups: Sequence[Group],
    name: str,
    title: str,
    y: str,
    note: str = "",
    log: bool = False,
    wall: bool = False,
    more: Sequence[Series] = (),
) -> Chart | None:
    """A chart of metric `name` of the groups over real environment steps, or over the `wall` clock; None without values.

    With one group, each seed has a colour and an entry in the legend; with several groups, each group has.
    """
    found = [(i, group, of) for i, group in enumerate(groups) if (of := curves(group, name)) is not None]
    if not found:
        return None
    size, unit = unit_of(max(float(of.wall.max()) for _, _, of in found)) if wall else (1.0, "")
    series: list[Series] = []
    alone = len(groups) == 1
    for i, group, of in found:
        series += _of_group(group, of, alone, i, (size if wall else None))
    x = f"wall clock, compilation included ({unit})" if wall else "real environment steps per seed"
    return Chart(title, x, y, (*series, *more), note, log)


def _of_group(group: Group, of: Curves, alone: bool, color: int, size: float | None) -> list[Series]:
    """The series of one group. `size` is the unit of the wall clock in s; None if x is steps."""
    x = of.steps if size is None else of.wall / size
    several = len(group.seeds) > 1
    series = []
    if len(group.seeds) > MOST_LINES:
        series += _quantiles(group, of, x, alone, color)
    for k, seed in enumerate(group.seeds if len(group.seeds) <= MOST_LINES else ()):
        known = ~np.isnan(of.values[:, k])
        if not known.any():
            continue
        own = of.steps[known] if size is None else of.walls[known, k] / size
        label = f"seed {seed.name}" if alone else f"{group.label}, seed {seed.name}"
        key = label if alone else f"{group.label}: seeds"
        number = k if alone else color
        series.append(Series(label, key, "line", own, of.values[known, k], color=number, thin=several))
    if not several:
        one = series[0]
        return [one._replace(key=one.name if alone else group.label, name=one.name if alone else group.label)]
    label = "interquartile mean" if alone else group.label
    bold = -1 if alone else color
    low, high = bootstrap_bands(of.values)
    mean = middle(of.values)
    band = Series(f"{label}, {BAND}", label, "band", x, mean, low, high, bold)
    return [band, *series, Series(label, label, "line", x, mean, color=bold)]


def _quantiles(group: Group, of: Curves, x: Float[np.ndarray, "S"], alone: bool, color: int) -> list[Series]:
    """Thin lines at quantiles over seeds, each of the seeds that have a value at the step."""
    found = []
    for share in (0.05, 0.25, 0.75, 0.95):
        label = f"{share:.0%} of the seeds" if alone else f"{group.label}, {share:.0%} of the seeds"
        key = "quantiles over seeds" if alone else f"{group.label}: quantiles over seeds"
        y = np.nanquantile(of.values, share, axis=1)
        found.append(Series(label, key, "line", x, y, color=0 if alone else color, thin=True))
    return found


def last_values(group: Group, name: str, at: int | None = None) -> list[float]:
    """The last value of metric `name` of each seed that has one, up to step `at` if given."""
    each = [
        [row[name] for row in seed.rows if name in row and (at is None or row["env_steps"] <= at)] for seed in group.seeds
    ]
    return [float(values[-1]) for values in each if values]


def reached(group: Group, name: str) -> int:
    """The last step that all seeds which have a value of metric `name` have reached with one; 0 if there is none."""
    last = [max((row["env_steps"] for row in seed.rows if name in row), default=0) for seed in group.seeds]
    return min((step for step in last if step), default=0)


def last_step(group: Group, name: str) -> int:
    """The last step at which any seed has a value of metric `name`; 0 if there is none."""
    return max((row["env_steps"] for seed in group.seeds for row in seed.rows if name in row), default=0)


def shared_metric(groups: Sequence[Group], names: Sequence[str]) -> str | None:
    """The first of `names` that all groups with any of these metrics have; None if there is none."""
    present = [{name for name in names for seed in group.seeds for row in seed.rows if name in row} for group in groups]
    known = [of for of in present if of]
    return next((name for name in names if known and all(name in of for of in known)), None)
