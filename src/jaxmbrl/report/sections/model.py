"""The model's predictions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxmbrl.diagnostics import video
from jaxmbrl.diagnostics.latent import LatentPredictions, prediction_strip
from jaxmbrl.report.diagnosing import Diagnosis
from jaxmbrl.report.gathering import Gathered, run_name
from jaxmbrl.report.parts import Chart, Facets, Heading, Part, Picture, Series, Table, Text, chosen
from jaxmbrl.report.sections.shared import DIMENSIONS, MODEL, SCATTERED, metrics, with_tasks

STRIPS = 3
"""Maximum number of parts of episodes whose images are shown."""
BETWEEN = 16
"""Height of the gap between them, in pixels."""


def model(gathered: Gathered, diagnoses: Mapping[int, Diagnosis | str]) -> list[Part]:
    """Metrics of the fits, and the newest model's predictions on the newest policy's episodes."""
    parts = metrics(with_tasks(gathered.groups), MODEL)
    for i, found in diagnoses.items():
        if isinstance(found, str) or (found.model is None and found.latent is None):
            continue
        parts.append(Heading(f"{run_name(gathered.runs, i)}: the model on episodes of seed {found.seed}'s policy"))
        if found.model is not None:
            parts += _evaluation(found)
        if found.latent is not None:
            parts += _latent(found.latent, found.env_steps)
    return parts


def _evaluation(found: Diagnosis) -> list[Part]:
    result, errors, imagined = found.model, found.errors, found.imagined
    assert result is not None
    size = result.error.shape[0]
    names = _dimensions(size, result.learns_reward)
    rows = len(result.observed)
    parts: list[Part] = [
        Text(
            f"Evaluated on {rows:,} steps of the deterministic policy after {found.env_steps:,} steps of training: on "
            "episodes that the model was not fitted to, similar to those that it was fitted to."
        )
    ]
    table = []
    shares = np.asarray(result.calibration.shares)
    for d, name in enumerate(names):
        measured = [
            result.error[d],
            result.unexplained[d],
            result.aleatoric[d],
            result.epistemic[d],
            result.mixture_nll[d],
        ]
        table.append([name, *(float(x) for x in measured), float(result.calibration.error[d])])
    head = ("dimension", "error", "unexplained", "aleatoric", "epistemic", "negative log density", "miscalibration")
    note = (
        "One step ahead. error: root mean square, in the task's units, as aleatoric and epistemic are (roots of the mean "
        "variance); unexplained: share of the change's variance; negative log density of the mixture in nats; "
        "miscalibration: mean |share - level|, 0 is perfect."
    )
    parts.append(Table("One-step predictions", head, table, note))
    levels = np.asarray(result.calibration.levels)
    series = [
        Series(name, name, "line", levels, shares[:, d], color=d, thin=size > 1)
        for d, name in enumerate(names[:DIMENSIONS])
    ]
    if size > 1:
        mean = shares.mean(axis=1)
        series.append(Series("mean over dimensions", "mean over dimensions", "line", levels, mean, color=-1))
    note = (
        "On the dashed diagonal, events occur as often as they are predicted. A flatter curve means overconfidence: too "
        "many values lie beyond the outer quantiles. A steeper one means that the model predicts too much noise."
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
        observed, predicted = result.observed[kept, d], result.predicted[kept, d]
        points = Series(what, what, "points", observed, predicted, color=d)
        scatters.append(
            Chart(f"One step: {what}", "observed (task's units)", "predicted (task's units)", (points,), square=True)
        )
    parts.append(Facets(tuple(scatters)))
    if imagined is not None:
        what = "Imagined and real trajectories from the first state of the first episode, under the recorded actions."
        parts.append(Text(f"{what} The axes are scaled to the lines; a wide band of samples may exceed them."))
        parts.append(Facets(tuple(_imagined(imagined))))
    if size > DIMENSIONS:
        parts.append(Text(f"Of {size} dimensions the first {DIMENSIONS} are drawn; the table has all."))
    return parts


def _latent(found: LatentPredictions, env_steps: int) -> list[Part]:
    count, total = found.observed.shape[:2]
    parts: list[Part] = [
        Text(
            f"Evaluated on {count} parts, of {total} positions, of the deterministic policy's episodes after {env_steps:,} "
            f"steps of training. The model sees the first {found.context} observations, and then the actions alone."
        ),
        Table(
            "The belief",
            ("", "value"),
            [
                ["entries of the stochastic part", len(found.spread)],
                ["entries that vary", found.active()],
                ["largest standard deviation", float(found.spread[0])],
            ],
            "Over all recorded positions. An entry that does not vary carries no information about the observations.",
        ),
    ]
    if found.observed.ndim == 5:
        strips = [prediction_strip(found, window) for window in range(min(count, STRIPS))]
        gap = np.full((BETWEEN, strips[0].shape[1], 3), 255, np.uint8)
        joined = np.concatenate([part for strip in strips for part in (gap, strip)][1:])
        note = (
            "For each part of an episode: what was observed; its reconstruction from the belief; and, after the dark line, "
            "what the model expects if it sees only the actions."
        )
        parts.append(Picture("Open-loop predictions beside the truth", video.gif([joined], [1000]), note))
    else:
        parts.append(Facets(tuple(_along(found, d) for d in range(min(found.observed.shape[2], DIMENSIONS)))))
    steps = np.arange(found.context, total)
    series = (
        Series("predicted", "predicted", "line", steps, found.predicted_reward[0], color=0),
        Series("real", "real", "line", steps, found.reward[0], color=-1),
    )
    parts.append(Facets((Chart("Open-loop prediction: reward", "position", "reward (task's units)", series),)))
    return parts


def _along(found: LatentPredictions, d: int) -> Chart:
    """Entry d of the observation along the first window."""
    steps = np.arange(found.observed.shape[1])
    series = (
        Series("reconstructed", "reconstructed", "line", steps, found.reconstructed[0, :, d], color=1, thin=True),
        Series("predicted", "predicted", "line", steps[found.context :], found.predicted[0, :, d], color=0),
        Series("real", "real", "line", steps, found.observed[0, :, d], color=-1),
    )
    return Chart(f"Open-loop prediction: observation {d}", "position", f"observation {d} (task's units)", series)


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
        f"The model's own predictions from {len(errors.starts)} recorded states, under the recorded actions. 1 is an error "
        "as large as the data's standard deviation; the model is useful while its error is below 'nothing changes'."
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
