"""The policy's episodes and the critic's values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxmbrl.report.diagnosing import Critic, Diagnosis
from jaxmbrl.report.gathering import Gathered, run_name
from jaxmbrl.report.parts import Chart, Facets, Heading, Part, Picture, Series, Table, Text, chosen
from jaxmbrl.report.sections.shared import (
    AGENT,
    DIMENSIONS,
    IMAGINED,
    SCATTERED,
    metrics,
    others,
    with_tasks,
)


def policy(gathered: Gathered, diagnoses: Mapping[int, Diagnosis | str]) -> list[Part]:
    """Episodes of the newest policies, then metrics of imagined rollouts and of the agent over time."""
    groups = with_tasks(gathered.groups)
    parts: list[Part] = []
    for i, found in diagnoses.items():
        name = run_name(gathered.runs, i)
        if isinstance(found, str):
            parts.append(Text(f"{name} could not be evaluated: {found}", warns=True))
            continue
        parts.append(Heading(f"{name}: seed {found.seed}'s policy after {found.env_steps:,} steps"))
        parts += [Text(note, warns=True) for note in found.notes]
        parts += _acting(found)
    if not diagnoses:
        parts.append(Text("Policies were not restored (--no-rollouts)."))
    over_time = [*_ratio(gathered), *metrics(groups, {**IMAGINED, **AGENT, **others(groups)})]
    if over_time:
        parts += [Heading("Over time"), *over_time]
    return parts


def _ratio(gathered: Gathered) -> list[Part]:
    """The share of real rows in a batch: a setting that does not change during a run."""
    rows = []
    for group in with_tasks(gathered.groups):
        run = gathered.runs[group.runs[0]]
        hyper = run.environment.get("hyper")
        traced = hyper.get("real_ratio") if isinstance(hyper, dict) else None
        settings = run.config["settings"] if isinstance(run.config["settings"], dict) else {}
        value = traced[group.seeds[0].seed - run.seeds[0]] if traced else settings.get("real_ratio")
        if value is not None:
            rows.append([group.label, float(value)])
    note = "Share of real transitions in a batch of the agent's updates; it does not change during a run."
    return [Table("Real ratio", ("", "real ratio"), rows, note)] if rows else []


def _acting(found: Diagnosis) -> list[Part]:
    parts: list[Part] = []
    steps = len(found.rows.reward)
    if found.returns:
        values = ", ".join(f"{value:,.1f}" for value in found.returns[:8])
        mean, count = float(np.mean(found.returns)), len(found.returns)
        first = f"the first 8 of {count} episodes" if count > 8 else f"{count} episode{'s' if count > 1 else ''}"
        parts.append(Text(f"Returns of {first}: {values}; mean of all {mean:,.1f}."))
    else:
        parts.append(Text(f"{steps:,} steps of an episode that had not ended by then."))
    if found.film is not None:
        parts.append(Picture("An episode", found.film, found.film_note))
    else:
        parts.append(Text(f"There is no film of an episode: {found.film_note}."))
    charts = [*_episode(found), *_histograms(found)]
    if found.critic is not None:
        charts.append(_values(found.critic))
    parts.append(Facets(tuple(charts)))
    if found.critic is not None:
        parts.append(_bias(found.critic))
    return parts


def _episode(found: Diagnosis) -> list[Chart]:
    """Observations, actions and rewards of the first episode."""
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

    charts = [] if rows.observation.ndim > 2 else [chart("observation", rows.observation, "observation (task's units)")]
    action = "action (number of the choice)" if _is_discrete(rows.action) else "action (-1 to 1)"
    return [*charts, chart("action", rows.action, action), chart("reward", rows.reward, "reward of a step")]


def _is_discrete(action: Any) -> bool:
    return np.issubdtype(np.asarray(action).dtype, np.integer)


def _histograms(found: Diagnosis) -> list[Chart]:
    """How often each action was taken, of the deterministic policy and in training: a chart for each dimension."""
    taken = [np.asarray(found.rows.action)] + ([] if found.stored is None else [found.stored])
    if _is_discrete(taken[0]):
        edges = np.arange(max(int(actions.max()) for actions in taken) + 2) - 0.5
        return [_histogram("Actions", "action (number of the choice)", edges, taken)]
    if taken[0].ndim != 2:
        return []
    edges, taken = np.linspace(-1.0, 1.0, 21), [np.clip(np.asarray(actions, float), -1, 1) for actions in taken]
    return [
        _histogram(f"Actions, dimension {d}", "action (-1 to 1)", edges, [actions[:, d] for actions in taken])
        for d in range(min(taken[0].shape[1], DIMENSIONS))
    ]


def _histogram(title: str, x: str, edges: Any, taken: Sequence[Any]) -> Chart:
    series = []
    for color, (name, actions) in enumerate(zip(("deterministic policy", "in training"), taken, strict=False)):
        share = np.histogram(actions, edges)[0] / max(len(actions), 1)
        series.append(Series(name, name, "bars", (edges[:-1] + edges[1:]) / 2, share, edges[:-1], edges[1:], color))
    return Chart(title, x, "share of steps", tuple(series))


def _values(critic: Critic) -> Chart:
    bias = critic.bias
    kept = chosen(len(bias.q), SCATTERED)
    points = Series("steps", "steps", "points", bias.returns[kept], bias.q[kept])
    soft = ", entropy bonus included" if critic.soft else ""
    note = f"Along episodes of the policy that the critic evaluates, with its discount factor {critic.discount:g}{soft}."
    if critic.ends_by_critic:
        note += (
            " Rewards after a time limit are unknown: the critic's own value, discounted by half or more, replaces them."
        )
    note += " Above the diagonal the critic overestimates."
    axes = "discounted return that followed", "Q of the critic"
    return Chart("Q and the return that followed", *axes, (points,), note, square=True)


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
