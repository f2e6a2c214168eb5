"""What stands on the page: learning, comparison, the model, the policy, the run."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxmbrl.diagnostics import published
from jaxmbrl.diagnostics.published import Point
from jaxmbrl.report import curves
from jaxmbrl.report.diagnosing import Critic, Diagnosis
from jaxmbrl.report.gathering import Gathered, Group, Run, differences
from jaxmbrl.report.parts import Chart, Facets, Heading, Page, Part, Picture, Section, Series, Table, Text, chosen
from jaxmbrl.sweeping.status import RETURNS
from jaxmbrl.training import programs
from jaxmbrl.training.evaluation import (
    bootstrap_interval,
    improvement_interval,
    interquartile_mean,
    performance_profile,
    probability_of_improvement,
)

KINDS = {"eval/return": "evaluation", "train/return": "training", "data/return": "data"}
SCATTERED = 400
"""Points of a scatter, at most."""
DIMENSIONS = 12
"""Of an observation that are drawn one by one; more are left to the tables."""
LIKE_TARGETS = "in units of the fitted targets' variance"


class Metric(NamedTuple):
    """How a metric of the rows is told."""

    title: str
    y: str
    note: str = ""
    log: bool = False


MODEL = {
    "model/holdout_error": Metric(
        "Holdout error of the model",
        "mean squared error / target variance",
        f"On rows that the fit did not see, mean over elites and dimensions, {LIKE_TARGETS}: 1 is no better than the mean.",
        True,
    ),
    "model/holdout_likelihood": Metric(
        "Holdout likelihood of the model",
        "mean log density (nats a dimension)",
        "Higher is better; it falls where the model is surer than it is right.",
    ),
    "model/aleatoric": Metric(
        "Aleatoric variance",
        "variance / target variance",
        f"The noise that the members expect on the holdout, {LIKE_TARGETS}.",
        True,
    ),
    "model/epistemic": Metric(
        "Epistemic variance",
        "variance / target variance",
        f"How far the members disagree on the holdout, {LIKE_TARGETS}.",
        True,
    ),
    "model/fit_epochs": Metric("Epochs of a fit", "epochs"),
    "model/fit_steps": Metric("Gradient steps of a fit", "steps"),
}
IMAGINED = {
    "imagine/rollout_length": Metric("Rollout length", "imagined steps", "As the schedule asks."),
    "imagine/branch_length": Metric("Length of branches", "imagined steps", "As they came out."),
    "imagine/rows": Metric("Imagined transitions of a refresh", "transitions"),
    "imagine/broken": Metric("Branches that broke", "share", "They met a value that is not finite."),
    "imagine/disagreement": Metric("Disagreement along branches", "the trust rule's measure"),
    "imagine/threshold": Metric("Threshold of trust", "the trust rule's measure"),
}
AGENT = {
    "agent/q": Metric("Mean Q in training", "value (units of return)"),
    "agent/critic_loss": Metric("Critic's loss", "loss", log=True),
    "agent/actor_loss": Metric("Actor's loss", "loss"),
    "agent/entropy": Metric("Entropy of the policy", "nats"),
    "agent/temperature": Metric("Temperature", "units of return a nat", log=True),
    "agent/critic_gradient_norm": Metric("Critic's gradient", "norm", log=True),
    "agent/actor_gradient_norm": Metric("Actor's gradient", "norm", log=True),
}
ELSEWHERE = ("train/", "eval/", "data/", "time/")
"""Metrics that are told in other ways."""


def page(
    gathered: Gathered,
    diagnoses: Mapping[int, Diagnosis | str],
    points: Sequence[Point],
    source: str = "",
) -> Page:
    """The whole page. `diagnoses` holds, by the index of a run, what was found, or why nothing was; `points` are published
    returns, from the file called `source`."""
    groups = gathered.groups
    algorithms = list(dict.fromkeys(group.algorithm for group in groups))
    tasks = list(dict.fromkeys(group.env for group in groups))
    several = len(groups) > 1
    named = [", ".join(algorithms[:-1]), algorithms[-1]] if 1 < len(algorithms) < 6 else [algorithms[0]]
    told = " and ".join(named) if len(algorithms) < 6 else f"{len(algorithms)} algorithms"
    title = f"{told} on {', '.join(tasks)}"
    made = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    facts = [_state(run) for run in gathered.runs[:6]]
    if len(gathered.runs) > 6:
        facts.append(f"and {len(gathered.runs) - 6} more runs")
    found = [
        Section("learning", "Learning", tuple(learning(gathered, tasks, points, source))),
        Section("comparison", "Comparison", tuple(comparison(groups, tasks))) if several else None,
        Section("model", "The model", tuple(model(gathered, diagnoses))),
        Section("policy", "The policy", tuple(policy(gathered, diagnoses))),
        Section("run", "The runs" if len(gathered.runs) > 1 else "The run", tuple(running(gathered, diagnoses))),
    ]
    sections = tuple(section for section in found if section is not None and section.parts)
    return Page(title, (*facts, f"report of {made}"), sections)


def _state(run: Run) -> str:
    told = run.status
    of = "" if told.total_steps is None else f" of {told.total_steps:,}"
    seeds = f"{len(run.seeds)} seed{'s' if len(run.seeds) > 1 else ''}"
    frozen = f" ({len(told.frozen)} frozen)" if told.frozen else ""
    preset = f" ({run.config['preset']} preset)" if run.config.get("preset") else ""
    name = f"{run.path.absolute().name}: {run.config['algorithm']}{preset} on {run.config['env']}"
    return f"{name}, {seeds}{frozen}, {told.state} at {told.env_steps:,}{of} steps"


# Learning


def learning(gathered: Gathered, tasks: Sequence[str], points: Sequence[Point], source: str) -> list[Part]:
    """Curves and the final table, task by task."""
    parts: list[Part] = []
    for run in gathered.runs:
        if run.status.state == "running":
            parts.append(Text(f"{run.path.absolute().name} still trains: this page is what there was when it was made."))
        if run.status.frozen:
            seeds = ", ".join(map(str, run.status.frozen))
            told = f"{run.path.absolute().name}: a value that was not finite froze seed {seeds}, which counts no more from"
            parts.append(Text(f"{told} there; `jaxmbrl debug {run.path}` tells where it came from.", warns=True))
    for env in tasks:
        groups = [group for group in gathered.groups if group.env == env]
        if len(tasks) > 1:
            parts.append(Heading(env))
        parts += _learning_on(groups, published.of_task(points, env), source)
    if gathered.absent:
        rows = [[told.name, told.state, told.error or ""] for told in gathered.absent]
        parts.append(Table("Runs that have not begun", ("run", "state", "why"), rows))
    return parts


def _learning_on(groups: Sequence[Group], points: Sequence[Point], source: str) -> list[Part]:
    charts: list[Chart] = []
    several = any(len(group.seeds) > 1 for group in groups)
    band = "Thin: seeds. Bold: their interquartile mean, with its 95% bootstrap band over seeds. " if several else ""
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
        rows = [row for seed in group.seeds for row in seed.rows]
        compared = _beside_published(group, published.compare(rows, points)) if points else None
        if compared is not None:
            parts.append(compared)
    return parts


def _published(groups: Sequence[Group], points: Sequence[Point], name: str) -> list[Series]:
    """Published returns as far as ours go; of a method whose first one lies beyond, a line at that."""
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
    """The last returns of all groups."""
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
            values = list(curves.last_values(group, name).values())
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
        told = [None if point is None else f"{point.return_mean:,.0f} ± {point.return_std:,.0f}" for point in theirs]
        rows.append([row.environment_steps, row.ours.mean, f"{row.ours.iqm:,.1f} ({low:,.1f} to {high:,.1f})", *told])
    sources = sorted({point.source for row in comparisons for point in row.theirs if point.method in methods})
    note = "A return at a step is the mean of the evaluations within max(2,500, 3%) steps of it, ours as theirs. "
    note += f"Published: mean ± standard deviation over seeds; sources: {'; '.join(sources)}."
    head = ("steps", f"{group.label}, mean", "IQM (95% interval)", *methods)
    return Table(f"{group.label} beside published returns", head, rows, note)


# Comparison


def comparison(groups: Sequence[Group], tasks: Sequence[str]) -> list[Part]:
    """How the groups compare, at the last step that all have come to; over all tasks where there are several."""
    parts: list[Part] = []
    normalized: dict[str, dict[str, list[float]]] = {}
    for env in tasks:
        here = [group for group in groups if group.env == env]
        name = curves.shared_metric(here, RETURNS)
        here = [group for group in here if name is not None and curves.last_step(group, name)]
        if len(here) < 2 or name is None:
            continue
        at = min(curves.last_step(group, name) for group in here)
        scores = {group.label: list(curves.last_values(group, name, at).values()) for group in here}
        scores = {label: values for label, values in scores.items() if values}
        if len(scores) < 2:
            continue
        if len(tasks) > 1:
            parts.append(Heading(env))
        what = f"Return in {KINDS[name]} at {at:,} steps, the last that all have come to."
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
        what = (
            "On each task 0 is the lowest and 1 the highest return of a seed on this page; seeds are resampled within it."
        )
        parts += _compared(
            {label: [of[label] for of in normalized.values()] for label in shared}, what, "normalised return"
        )
    if not parts:
        parts.append(Text("There is nothing to compare yet: no two of them have returns of the same kind on one task."))
    return parts


def _compared(scores: Mapping[str, Sequence[Sequence[float]]], what: str, unit: str) -> list[Part]:
    """Tables and the profile of scores: by name, the values of each task."""
    rows = []
    for label, strata in scores.items():
        every = [value for values in strata for value in values]
        low, high = bootstrap_interval(*strata)
        told = f"{low:,.4g} to {high:,.4g}"
        rows.append([label, len(every), float(np.mean(every)), interquartile_mean(every), told])
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


# The model


def model(gathered: Gathered, diagnoses: Mapping[int, Diagnosis | str]) -> list[Part]:
    """Metrics of the fits, and what the newest model is worth on the newest policy's episodes."""
    parts = _metrics(_told_apart(gathered.groups), MODEL)
    for i, found in diagnoses.items():
        if isinstance(found, str) or found.model is None:
            continue
        parts.append(Heading(f"{_name(gathered, i)}: the model on episodes of seed {found.seed}'s policy"))
        parts += _judged(found)
    return parts


def _told_apart(groups: Sequence[Group]) -> list[Group]:
    """The groups, with their tasks in their labels where there are several."""
    several = len({group.env for group in groups}) > 1
    return [group._replace(label=f"{group.label} on {group.env}") if several else group for group in groups]


def _metrics(groups: Sequence[Group], told: Mapping[str, Metric]) -> list[Part]:
    charts = []
    for name, of in told.items():
        chart = curves.chart(groups, name, of.title, of.y, of.note, of.log)
        if chart is not None:
            charts.append(chart)
    return [Facets(tuple(charts))] if charts else []


def _judged(found: Diagnosis) -> list[Part]:
    judged, errors, imagined = found.model, found.errors, found.imagined
    assert judged is not None
    size = judged.error.shape[0]
    names = _dimensions(size, judged.learns_reward)
    rows = len(judged.observed)
    parts: list[Part] = [
        Text(
            f"Judged on {rows:,} steps of the deterministic policy after {found.env_steps:,} steps of training: episodes "
            "that the model was not fitted to, though it knows their like."
        )
    ]
    table = []
    shares = np.asarray(judged.calibration.shares)
    for d, name in enumerate(names):
        measured = [judged.error[d], judged.unexplained[d], judged.aleatoric[d], judged.epistemic[d], judged.mixture_nll[d]]
        table.append([name, *(float(x) for x in measured), float(judged.calibration.error[d])])
    head = ("dimension", "error", "unexplained", "aleatoric", "epistemic", "negative log density", "miscalibration")
    note = (
        "One step ahead. error: root mean square, in the task's units, as aleatoric and epistemic are (roots of the mean "
        "variance); unexplained: share of the change's variance; negative log density of the mixture in nats; "
        "miscalibration: mean |share - level|, 0 is perfect."
    )
    parts.append(Table("One-step predictions", head, table, note))
    levels = np.asarray(judged.calibration.levels)
    series = [
        Series(name, name, "line", levels, shares[:, d], color=d, thin=size > 1)
        for d, name in enumerate(names[:DIMENSIONS])
    ]
    if size > 1:
        mean = shares.mean(axis=1)
        series.append(Series("mean over dimensions", "mean over dimensions", "line", levels, mean, color=-1))
    note = (
        "On the dashed diagonal what is predicted with some probability happens that often. A curve flatter than "
        "it is overconfidence: too much lies beyond the outer quantiles. A steeper one expects more noise than there is."
    )
    charts = [
        Chart(
            "Calibration",
            "predicted quantile level",
            "share of observed values at or below",
            tuple(series),
            note,
            square=True,
        )
    ]
    if errors is not None:
        charts.append(_compounding(errors))
    parts.append(Facets(tuple(charts)))
    kept = chosen(rows, SCATTERED)
    scatters = []
    for d, name in enumerate(names[:DIMENSIONS]):
        what = name if name == "reward" else f"change of {name}"
        observed, predicted = judged.observed[kept, d], judged.predicted[kept, d]
        points = Series(what, what, "points", observed, predicted, color=d)
        scatters.append(
            Chart(f"One step: {what}", "observed (task's units)", "predicted (task's units)", (points,), square=True)
        )
    parts.append(Facets(tuple(scatters)))
    if imagined is not None:
        parts.append(Facets(tuple(_imagined(imagined))))
    if size > DIMENSIONS:
        parts.append(Text(f"Of {size} dimensions the first {DIMENSIONS} are drawn; the table holds all."))
    return parts


def _dimensions(size: int, learns_reward: bool) -> list[str]:
    names = [f"observation {d}" for d in range(size - int(learns_reward))]
    return names + ["reward"] * int(learns_reward)


def _compounding(errors: Any) -> Chart:
    steps = np.arange(1, errors.scaled_mean.shape[0] + 1)
    low, high = errors.scaled_members.min(axis=0), errors.scaled_members.max(axis=0)
    middle = np.median(errors.scaled_members, axis=0)
    series = (
        Series("members, lowest to highest", "members", "band", steps, middle, low, high, 0),
        Series("median member", "members", "line", steps, middle, color=0),
        Series("mean over members", "mean over members", "line", steps, errors.scaled_mean, color=1),
        Series("nothing changes", "nothing changes", "line", steps, errors.scaled_persistence, color=7, dashed=True),
    )
    note = (
        f"The model left alone from {len(errors.starts)} recorded states, by the recorded actions. 1 is an error as large "
        "as the data's own spread; the model is of use as long as it lies below 'nothing changes'."
    )
    return Chart(
        "Compounding error",
        "rollout length (imagined steps)",
        "error (standard deviations of the data)",
        series,
        note,
        log=True,
    )


def _imagined(found: Any) -> list[Chart]:
    charts = []
    for d in range(min(found.real.shape[1], DIMENSIONS)):
        members, particles = found.members[:, :, d], found.particles[:, :, d]
        charts.append(_trajectories(f"observation {d}", found.real[:, d], found.mean[:, d], members, particles))
    if found.mean_reward is not None:
        members, particles = found.members_reward, found.particles_reward
        charts.append(_trajectories("reward", found.real_reward, found.mean_reward, members, particles))
    return charts


def _trajectories(name: str, real: Any, mean: Any, members: Any, particles: Any) -> Chart:
    steps = np.arange(len(real))
    series = []
    if len(particles):
        low, high = np.quantile(particles, [0.05, 0.95], axis=0)
        series.append(
            Series("sampled, 5% to 95%", "sampled, 5% to 95%", "band", steps, np.median(particles, axis=0), low, high, 0)
        )
    series += [Series(f"member {e}", "members", "line", steps, own, color=0, thin=True) for e, own in enumerate(members)]
    series.append(Series("mean over members", "mean over members", "line", steps, mean, color=1))
    series.append(Series("real", "real", "line", steps, real, color=-1))
    return Chart(f"Imagined and real: {name}", "steps from the same start", f"{name} (task's units)", tuple(series))


# The policy


def policy(gathered: Gathered, diagnoses: Mapping[int, Diagnosis | str]) -> list[Part]:
    """What imagining and the agent's metrics were over time, then what the newest policies do."""
    groups = _told_apart(gathered.groups)
    parts: list[Part] = []
    for i, found in diagnoses.items():
        name = _name(gathered, i)
        if isinstance(found, str):
            parts.append(Text(f"{name} was not looked at: {found}", warns=True))
            continue
        parts.append(Heading(f"{name}: seed {found.seed}'s policy after {found.env_steps:,} steps"))
        parts += [Text(note, warns=True) for note in found.notes]
        parts += _acting(found)
    if not diagnoses:
        parts.append(Text("Policies were not restored (--no-rollouts)."))
    known = {**MODEL, **IMAGINED, **AGENT}
    present = sorted({name for group in groups for seed in group.seeds for row in seed.rows for name in row if "/" in name})
    others = {name: Metric(name, name) for name in present if name not in known and not name.startswith(ELSEWHERE)}
    over_time = [*_ratio(gathered), *_metrics(groups, {**IMAGINED, **AGENT, **others})]
    if over_time:
        parts += [Heading("Over time"), *over_time]
    return parts


def _ratio(gathered: Gathered) -> list[Part]:
    """The share of real rows in a batch, which is a setting and stays."""
    rows = []
    for group in _told_apart(gathered.groups):
        run = gathered.runs[group.runs[0]]
        hyper = run.environment.get("hyper")
        traced = hyper.get("real_ratio") if isinstance(hyper, dict) else None
        settings = run.config["settings"] if isinstance(run.config["settings"], dict) else {}
        value = traced[group.seeds[0].seed - run.seeds[0]] if traced else settings.get("real_ratio")
        if value is not None:
            rows.append([group.label, float(value)])
    note = "Share of real transitions in a batch of the agent's; it stays the same over a run."
    return [Table("Real ratio", ("", "real ratio"), rows, note)] if rows else []


def _acting(found: Diagnosis) -> list[Part]:
    parts: list[Part] = []
    steps = len(found.rows.reward)
    if found.returns:
        told = ", ".join(f"{value:,.1f}" for value in found.returns[:8])
        mean, count = float(np.mean(found.returns)), len(found.returns)
        first = f"the first 8 of {count} episodes" if count > 8 else f"{count} episode{'s' if count > 1 else ''}"
        parts.append(Text(f"Played here: returns of {first} {told}; mean of all {mean:,.1f}."))
    else:
        parts.append(Text(f"{steps:,} steps were played here, of an episode that had not ended by then."))
    if found.film is not None:
        parts.append(Picture("An episode", found.film, found.film_told, 320, 240))
    else:
        parts.append(Text(f"There is no film of an episode: {found.film_told}."))
    charts = _episode(found)
    action = np.asarray(found.rows.action, float)
    if action.ndim == 2:
        charts += [_histogram(found, d) for d in range(min(action.shape[1], DIMENSIONS))]
    if found.critic is not None:
        charts.append(_values(found.critic))
    parts.append(Facets(tuple(charts)))
    if found.critic is not None:
        parts.append(_bias(found.critic))
    return parts


def _episode(found: Diagnosis) -> list[Chart]:
    """The first episode: what was observed, done and earned."""
    rows = found.rows
    ends = np.flatnonzero(rows.terminated | rows.truncated)
    length = int(ends[0]) + 1 if len(ends) else len(rows.reward)
    at = chosen(length, 300)

    def chart(what: str, values: Any, unit: str) -> Chart:
        values = np.asarray(values, float)[:length].reshape(length, -1)[at]
        several = values.shape[1] > 1
        names = [f"{what} {d}" if several else what for d in range(min(values.shape[1], DIMENSIONS))]
        series = [Series(name, name, "line", at, values[:, d], color=d, thin=several) for d, name in enumerate(names)]
        return Chart(f"First episode: {what}", "step of the episode", unit, tuple(series))

    found_charts = [
        chart("observation", rows.observation, "observation (task's units)"),
        chart("action", rows.action, "action (-1 to 1)"),
        chart("reward", rows.reward, "reward of a step"),
    ]
    return found_charts


def _histogram(found: Diagnosis, d: int) -> Chart:
    edges = np.linspace(-1.0, 1.0, 21)
    middle = (edges[:-1] + edges[1:]) / 2
    held = [("deterministic policy", np.asarray(found.rows.action, float)[:, d], 0)]
    if found.stored is not None:
        held.append(("in training", found.stored[:, d], 1))
    series = []
    for name, values, color in held:
        count = np.histogram(np.clip(values, -1, 1), edges)[0]
        series.append(Series(name, name, "bars", middle, count / max(len(values), 1), edges[:-1], edges[1:], color))
    return Chart(f"Actions, dimension {d}", "action (-1 to 1)", "share of steps", tuple(series))


def _values(critic: Critic) -> Chart:
    bias = critic.bias
    kept = chosen(len(bias.q), SCATTERED)
    points = Series("steps", "steps", "points", bias.returns[kept], bias.q[kept])
    soft = ", entropy bonus included" if critic.soft else ""
    note = f"Along episodes of the policy that the critic values, at its discount of {critic.discount:g}{soft}."
    if critic.ends_by_critic:
        note += " What follows a time limit is not seen: the critic's own value stands for it, discounted to half or less."
    note += " Above the diagonal the critic overestimates."
    told = "discounted return that followed", "Q of the critic"
    return Chart("Q and what came", *told, (points,), note, square=True)


def _bias(critic: Critic) -> Table:
    bias = critic.bias
    rows = [
        ["bias (mean of Q - return)", bias.bias],
        ["deviation of Q - return", bias.deviation],
        ["bias / |mean return|", bias.normalized_bias],
        ["deviation / |mean return|", bias.normalized_deviation],
        ["correlation of Q and return", bias.correlation],
        ["steps", len(bias.q)],
    ]
    return Table("The critic's bias", ("", "value"), rows)


# The run


def running(gathered: Gathered, diagnoses: Mapping[int, Diagnosis | str]) -> list[Part]:
    """Where time and memory went, what was asked, where it ran, what was said."""
    parts: list[Part] = []
    for i, run in enumerate(gathered.runs):
        if len(gathered.runs) > 1:
            parts.append(Heading(_name(gathered, i)))
        parts += _warnings(run)
        parts += _changed(run)
        parts += _timing(run)
        found = diagnoses.get(i)
        parts += _memory(run, found if isinstance(found, Diagnosis) else None)
        parts += _asked(run)
    return parts


def _name(gathered: Gathered, index: int) -> str:
    names = [run.path.absolute().name for run in gathered.runs]
    return names[index] if names.count(names[index]) == 1 else str(gathered.runs[index].path)


def _warnings(run: Run) -> list[Part]:
    rows = []
    for event in run.events:
        told = {"warning": "text", "resume": "env_steps", "stop": "env_steps", "end": "env_steps"}.get(
            str(event.get("kind"))
        )
        if told is not None:
            value = event.get(told)
            text = f"at {value:,} steps" if told == "env_steps" and isinstance(value, int) else str(value)
            rows.append([str(event.get("time", ""))[:19].replace("T", " "), str(event["kind"]), text])
    parts: list[Part] = []
    parts += [Text(row[2], warns=True) for row in rows if row[1] == "warning"][:10]
    if run.damaged:
        told = f"Checkpoints that were found damaged and set aside: {', '.join(run.damaged)}."
        parts.append(Text(told, warns=True))
    if rows:
        parts.append(Table("What happened", ("time (UTC)", "what", "told"), rows, closed=True))
    return parts


def _changed(run: Run) -> list[Part]:
    preset, differing = run.config.get("preset"), differences(run.config)
    if differing is None:
        return [Text(f"The preset '{preset}' is not known here, so what differs from it cannot be told.")]
    if not differing:
        return [Text(f"All settings are those of the preset '{preset}'.")]
    rows = [[name, _plain(due), _plain(own)] for name, due, own in differing]
    return [Table(f"What differs from the preset '{preset}'", ("setting", "preset", "run"), rows)]


def _plain(value: Any) -> str:
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _timing(run: Run) -> list[Part]:
    first = run.seeds[0]
    rows = sorted((row for row in run.rows if row["seed"] == first), key=lambda row: row["env_steps"])
    compiled = [event for event in run.events if event.get("kind") == "compile"]
    parts: list[Part] = []
    if rows:
        spent = {
            name: sum(float(row.get(f"time/{name}", 0.0)) for row in rows) for name in ("compile", "train", "evaluate")
        }
        wall = float(rows[-1]["wall_time"])
        spent["other"] = max(wall - sum(spent.values()), 0.0)
        told = {
            "compile": "compiling",
            "train": "training, the compiled program",
            "evaluate": "evaluation",
            "other": "the rest: start, metrics, checkpoints",
        }
        table = [[told[name], seconds, f"{100 * seconds / wall:.1f}%" if wall else "–"] for name, seconds in spent.items()]
        table.append(["wall clock", wall, "100%"])
        parts.append(Table("Where the time went", ("", "seconds", "share"), table, "Of all seeds together."))
        parts.append(Facets((_throughput(rows, len(run.seeds)), _epochs(rows))))
    if compiled:
        held = [
            [str(event.get("what")), event.get("seconds"), _bytes(event["memory"]) if event.get("memory") else None]
            for event in compiled
        ]
        head = ("program", "seconds to compile", "memory while it runs")
        parts.append(Table("Compiled programs", head, held))
    return parts


def _throughput(rows: Sequence[dict[str, Any]], seeds: int) -> Chart:
    x, y, before = [], [], 0
    for row in rows:
        seconds = float(row.get("time/train", 0.0))
        if seconds > 0:
            x.append(row["env_steps"])
            y.append(seeds * (row["env_steps"] - before) / seconds)
        before = row["env_steps"]
    series = Series("steps a second", "steps a second", "line", x, y)
    title, unit = "Throughput", "real steps of all seeds a second"
    return Chart(title, "real environment steps per seed", unit, (series,), "While the compiled program trains.", log=True)


def _epochs(rows: Sequence[dict[str, Any]]) -> Chart:
    names = {"time/train": "training", "time/evaluate": "evaluation", "time/epoch": "whole epoch"}
    rows = [rows[i] for i in chosen(len(rows), 400)]
    series = []
    for i, (name, label) in enumerate(names.items()):
        held = [(row["env_steps"], row[name]) for row in rows if name in row]
        if held:
            series.append(Series(label, label, "line", [x for x, _ in held], [y for _, y in held], color=i))
    return Chart("Time of an epoch", "real environment steps per seed", "seconds", tuple(series), "Without compiling.")


def _memory(run: Run, found: Diagnosis | None) -> list[Part]:
    rows = []
    if found is not None:
        rows.append(["state of the run, all seeds", _bytes(found.state_bytes)])
        rows.append(["a step of the deterministic policy with its task", f"{1000 * found.step_seconds:.3g} ms"])
    saved = [event for event in run.events if event.get("kind") == "checkpoint"]
    seconds = [float(event.get("seconds") or 0.0) for event in saved]
    if saved:
        rows.append(["checkpoints written", f"{len(saved)}, {np.mean(seconds):.2g} s each"])
    return [Table("Memory and checkpoints", ("", ""), rows)] if rows else []


def _bytes(size: Any) -> str:
    size = float(size)
    return f"{size / 1e9:,.2f} GB" if size >= 1e8 else f"{size / 1e6:,.2f} MB"


def _asked(run: Run) -> list[Part]:
    """The whole config, and where the run was begun."""
    leaves = [[name, _plain(value)] for name, value in programs.leaves(run.config).items()]
    parts: list[Part] = [Table("All settings", ("setting", "value"), leaves, closed=True)]
    known = run.environment
    rows: list[list[Any]] = []
    ways: dict[str, Callable[[Any], str]] = {
        "versions": lambda held: ", ".join(f"{name} {number}" for name, number in held.items()),
        "devices": lambda held: ", ".join(str(device.get("kind")) for device in held),
        "command": lambda held: " ".join(map(str, held)),
        "hyper": lambda held: "; ".join(f"{name} {values}" for name, values in held.items()),
    }
    for name, value in known.items():
        if value not in ({}, [], None):
            try:
                rows.append([name.replace("_", " "), ways.get(name, str)(value)])
            except (AttributeError, TypeError):
                rows.append([name.replace("_", " "), str(value)])
    if rows:
        parts.append(Table("Versions and machine", ("", ""), rows, closed=True))
    return parts
