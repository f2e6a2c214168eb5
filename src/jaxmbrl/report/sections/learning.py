"""Returns of the runs: learning curves, with published returns, and comparisons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxmbrl.diagnostics import published
from jaxmbrl.diagnostics.published import Point
from jaxmbrl.report import curves
from jaxmbrl.report.gathering import Gathered, Group
from jaxmbrl.report.parts import Chart, Facets, Heading, Part, Series, Table, Text
from jaxmbrl.sweeping.status import RETURNS
from jaxmbrl.training.curve import MOST_LINES
from jaxmbrl.training.evaluation import (
    bootstrap_interval,
    improvement_interval,
    interquartile_mean,
    performance_profile,
    probability_of_improvement,
)

KINDS = {"eval/return": "evaluation", "train/return": "training", "data/return": "data"}


def learning(gathered: Gathered, tasks: Sequence[str], points: Sequence[Point], source: str) -> list[Part]:
    """For each task, learning curves and a table of the last returns."""
    parts: list[Part] = []
    for run in gathered.runs:
        if run.status.state == "running":
            name = run.path.absolute().name
            parts.append(Text(f"{name} is still training: this page shows its state when the report was made."))
        if run.status.frozen:
            seeds = ", ".join(map(str, run.status.frozen))
            text = f"{run.path.absolute().name}: a value that was not finite froze seed {seeds}"
            parts.append(
                Text(f"{text}, which has no metrics after it; `jaxmbrl debug {run.path}` finds its origin.", warns=True)
            )
    for env in tasks:
        groups = [group for group in gathered.groups if group.env == env]
        if len(tasks) > 1:
            parts.append(Heading(env))
        parts += _learning_on(groups, published.of_task(points, env), source)
    if gathered.absent:
        rows = [[status.name, status.state, status.error or ""] for status in gathered.absent]
        parts.append(Table("Runs that have not started", ("run", "state", "reason"), rows))
    return parts


def _learning_on(groups: Sequence[Group], points: Sequence[Point], source: str) -> list[Part]:
    charts: list[Chart] = []
    several = any(len(group.seeds) > 1 for group in groups)
    thin = f"seeds, or quantiles over more than {MOST_LINES} of them"
    bold = "their interquartile mean, with its 95% bootstrap band over seeds"
    band = f"Thin: {thin}. Bold: {bold}. " if several else ""
    for name, kind in KINDS.items():
        theirs = _published(groups, points, name) if name == "eval/return" else []
        what = "deterministic policy, fixed start states" if name == "eval/return" else "episodes that ended in the epoch"
        note = f"{band}Undiscounted return of an episode; {what}."
        if theirs:
            sources = "; ".join(sorted({point.source for point in points if point.method in published.LOOKS}))
            note += f" Published ({source}): mean and standard deviation over seeds; sources: {sources}."
        for wall in (False, True):
            title = f"Return in {kind} over {'the wall clock' if wall else 'real steps'}"
            more = [] if wall else theirs
            chart = curves.chart(groups, name, title, "return per episode", note if not wall else "", wall=wall, more=more)
            if chart is not None:
                charts.append(chart)
    if not charts:
        return [Text("No episode has finished and nothing has been evaluated yet.")]
    parts: list[Part] = [charts[0], Facets(tuple(charts[1:])), _final(groups)]
    for group in groups:
        # Seeds of several runs may have the same number.
        rows = [row | {"seed": k} for k, seed in enumerate(group.seeds) for row in seed.rows]
        compared = _beside_published(group, published.compare(rows, points)) if points else None
        if compared is not None:
            parts.append(compared)
    return parts


def _published(groups: Sequence[Group], points: Sequence[Point], name: str) -> list[Series]:
    """Published returns up to our last step. If the first one of a method is later, a horizontal line at its value."""
    ours = max(curves.last_step(group, name) for group in groups)
    if not ours:
        return []
    series = []
    for i, method in enumerate(published.LOOKS):
        own = sorted((p for p in points if p.method == method), key=lambda p: p.environment_steps)
        if not own:
            continue
        near = [p for p in own if p.environment_steps <= 1.1 * ours]
        color = len(groups) + i
        if near:
            means, deviations = ([getattr(p, of) for p in near] for of in ("return_mean", "return_std"))
            low = [mean - deviation for mean, deviation in zip(means, deviations, strict=True)]
            high = [mean + deviation for mean, deviation in zip(means, deviations, strict=True)]
            label = f"{method}, published, {near[0].seeds} seeds"
            series.append(Series(label, label, "errors", [p.environment_steps for p in near], means, low, high, color))
        else:
            label = f"{method} at {own[0].environment_steps:,} steps, published"
            series.append(Series(label, label, "rule", (), [own[0].return_mean], color=color))
    return series


def _final(groups: Sequence[Group]) -> Table:
    """A table of the last returns of all groups."""
    head = (
        "",
        "return of",
        "steps",
        "seeds",
        "mean",
        "std",
        "IQM",
        "95% interval of the IQM",
        "lowest",
        "highest",
        "wall clock",
    )
    rows = []
    for group in groups:
        for name, kind in KINDS.items():
            values = curves.last_values(group, name)
            if not values:
                continue
            low, high = bootstrap_interval(values)
            wall = max(row["wall_time"] for seed in group.seeds for row in seed.rows)
            size, unit = curves.unit_of(wall)
            std = float(np.std(values, ddof=1)) if len(values) > 1 else None
            rows.append(
                [
                    *(group.label, kind, curves.last_step(group, name), len(values), float(np.mean(values)), std),
                    *(interquartile_mean(values), f"{low:,.4g} to {high:,.4g}", min(values), max(values)),
                    f"{wall / size:.3g} {unit}",
                ]
            )
    note = "Each seed's last value. IQM: mean without the lowest and highest quarter. std: over seeds (n - 1)."
    return Table("Last returns", head, rows, note)


def _beside_published(group: Group, comparisons: Sequence[published.Comparison]) -> Table | None:
    if not comparisons:
        return None
    methods = [method for method in published.LOOKS if any(row.of(method) for row in comparisons)]
    rows = []
    for row in comparisons:
        (low, high), theirs = row.ours.interval, [row.of(method) for method in methods]
        texts = [None if point is None else f"{point.return_mean:,.0f} ± {point.return_std:,.0f}" for point in theirs]
        rows.append([row.environment_steps, row.ours.mean, f"{row.ours.iqm:,.1f} ({low:,.1f} to {high:,.1f})", *texts])
    sources = sorted({point.source for row in comparisons for point in row.theirs if point.method in methods})
    note = "A return at a step is the mean of the evaluations within max(2,500, 3%) steps of it, for both. "
    note += f"Published: mean ± standard deviation over seeds; sources: {'; '.join(sources)}."
    head = ("steps", f"{group.label}, mean", "IQM (95% interval)", *methods)
    return Table(f"{group.label} beside published returns", head, rows, note)


def comparison(groups: Sequence[Group], tasks: Sequence[str]) -> list[Part]:
    """Comparisons of the groups at the last step that all have reached, and over all tasks if there are several."""
    parts: list[Part] = []
    normalized: dict[str, dict[str, list[float]]] = {}
    for env in tasks:
        here = [group for group in groups if group.env == env]
        name = curves.shared_metric(here, RETURNS)
        here = [group for group in here if name is not None and curves.last_step(group, name)]
        if len(here) < 2 or name is None:
            continue
        at = min(curves.reached(group, name) for group in here)
        scores = {group.label: curves.last_values(group, name, at) for group in here}
        scores = {label: values for label, values in scores.items() if values}
        if len(scores) < 2:
            continue
        if len(tasks) > 1:
            parts.append(Heading(env))
        what = f"Return in {KINDS[name]} at {at:,} steps, the last that all have reached."
        parts += _compared({label: [values] for label, values in scores.items()}, what, "return per episode")
        every = [value for values in scores.values() for value in values]
        low, spread = min(every), max(every) - min(every)
        if spread > 0:
            normalized[env] = {label: [(value - low) / spread for value in own] for label, own in scores.items()}
    shared = [
        label for label in dict.fromkeys(group.label for group in groups) if all(label in of for of in normalized.values())
    ]
    if len(normalized) > 1 and len(shared) > 1:
        parts.append(Heading("Over all tasks"))
        what = "On each task, 0 is the lowest and 1 the highest return of a seed on this page; seeds are resampled by task."
        parts += _compared(
            {label: [of[label] for of in normalized.values()] for label in shared}, what, "normalised return"
        )
    if not parts:
        parts.append(Text("There is nothing to compare yet: no two groups have returns of the same kind on one task."))
    return parts


def _compared(scores: Mapping[str, Sequence[Sequence[float]]], what: str, unit: str) -> list[Part]:
    """Tables and the performance profile of scores. `scores` maps each name to its values on each task."""
    rows = []
    for label, strata in scores.items():
        every = [value for values in strata for value in values]
        low, high = bootstrap_interval(*strata)
        interval = f"{low:,.4g} to {high:,.4g}"
        rows.append([label, len(every), float(np.mean(every)), interquartile_mean(every), interval])
    head = ("", "seeds", "mean", "IQM", "95% stratified bootstrap interval of the IQM")
    parts: list[Part] = [Table("Scores", head, rows, what)]
    names = list(scores)
    matrix = []
    for row in names:
        entries: list[Any] = [row]
        for column in names:
            pairs = list(zip(scores[row], scores[column], strict=True))
            if row == column:
                entries.append("–")
                continue
            low, high = improvement_interval(*pairs)
            entries.append(f"{probability_of_improvement(*pairs):.2f} ({low:.2f} to {high:.2f})")
        matrix.append(entries)
    note = (
        "How often a seed of the row scores above one of the column, ties counting half (Mann-Whitney), with its 95% "
        "bootstrap interval: 0.5 is no difference (Agarwal et al., arXiv 2108.13264)."
    )
    parts.append(Table("Probability of improvement", ("row over column", *names), matrix, note))
    every = [value for strata in scores.values() for values in strata for value in values]
    low, high = min(every), max(every)
    by = 0.02 * (high - low) or abs(low) * 0.05 or 1.0
    thresholds = np.linspace(low - by, high + by, 101)
    series = []
    for i, (label, strata) in enumerate(scores.items()):
        profile = performance_profile(thresholds, *strata)
        band = Series(f"{label}, {curves.BAND}", label, "band", thresholds, profile.share, profile.low, profile.high, i)
        series += [band, Series(label, label, "line", thresholds, profile.share, color=i)]
    note = "The higher, the better: the share of seeds that score above each threshold, with 95% bootstrap bands."
    parts.append(Chart("Performance profile", f"threshold ({unit})", "share of seeds above it", tuple(series), note))
    return parts
