"""Shared by the sections: charts of metrics, and the names of runs and groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from jaxmbrl.report import curves
from jaxmbrl.report.gathering import Group
from jaxmbrl.report.parts import Facets, Part

SCATTERED = 400
"""Maximum number of points of a scatter plot."""
DIMENSIONS = 12
"""Maximum number of observation dimensions with a chart each; tables have all dimensions."""
LIKE_TARGETS = "in units of the fitted targets' variance"


class Metric(NamedTuple):
    """How the chart of a metric is labelled."""

    title: str
    y: str
    note: str = ""
    log: bool = False


MODEL = {
    "model/holdout_error": Metric(
        "Holdout error of the model",
        "mean squared error / target variance",
        f"On rows held out of the fit, mean over elites and dimensions, {LIKE_TARGETS}: 1 is no better than their mean.",
        True,
    ),
    "model/holdout_likelihood": Metric(
        "Holdout likelihood of the model",
        "mean log density (nats a dimension)",
        "Higher is better; it falls where the model is overconfident.",
    ),
    "model/aleatoric": Metric(
        "Aleatoric variance",
        "variance / target variance",
        f"The noise that the members predict on the holdout, {LIKE_TARGETS}.",
        True,
    ),
    "model/epistemic": Metric(
        "Epistemic variance",
        "variance / target variance",
        f"The disagreement of the members on the holdout, {LIKE_TARGETS}.",
        True,
    ),
    "model/decoder": Metric("Decoder's loss", "sum over entries or pixels", log=True),
    "model/reward": Metric("Loss of the reward", "loss", "Cross-entropy of bins, or squared error."),
    "model/continuation": Metric("Loss of the continuation", "nats", log=True),
    "model/divergence": Metric(
        "Divergence of prior and posterior",
        "nats",
        "What an observation tells beyond the prediction; below the free nats neither is trained.",
    ),
    "model/weight_std": Metric(
        "Uncertainty of the weights",
        "mean standard deviation",
        "Of Bayes by backprop, mean over the weights and biases.",
        True,
    ),
    "model/dropout_rate": Metric("Dropout rate", "probability", "Of concrete dropout, mean over the hidden layers."),
    "model/fit_epochs": Metric("Epochs of a fit", "epochs"),
    "model/fit_steps": Metric("Gradient steps of a fit", "steps"),
}
IMAGINED = {
    "imagine/rollout_length": Metric("Rollout length", "imagined steps", "By the schedule."),
    "imagine/branch_length": Metric("Length of branches", "imagined steps", "Mean length in fact."),
    "imagine/rows": Metric("Imagined transitions of a refresh", "transitions"),
    "imagine/nonfinite": Metric("Non-finite rows", "rows", "Rows left out because a value was not finite."),
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
COUNTERS = ("epoch", "env_steps", "seed", "wall_time", "frozen")
"""Fields of a row that are not metrics."""
ELSEWHERE = (
    *("train/return", "train/episodes", "train/episode_length", "eval/return"),
    *("data/return", "data/episode_length"),
)
"""Metrics that other sections show, or that are not shown. The same holds for `time/...`."""


def others(groups: Sequence[Group]) -> dict[str, Metric]:
    """The metrics in the rows for which no section has a title, such as an algorithm's probes."""
    rows = [row for group in groups for seed in group.seeds for row in seed.rows]
    present = {name for row in rows for name, value in row.items() if isinstance(value, int | float)}
    titled = {*MODEL, *IMAGINED, *AGENT, *COUNTERS, *ELSEWHERE}
    return {name: Metric(name, name) for name in sorted(present - titled) if not name.startswith("time/")}


def with_tasks(groups: Sequence[Group]) -> list[Group]:
    """The groups, with the task in their labels if there are several tasks."""
    several = len({group.env for group in groups}) > 1
    return [group._replace(label=f"{group.label} on {group.env}") if several else group for group in groups]


def metrics(groups: Sequence[Group], shown: Mapping[str, Metric]) -> list[Part]:
    """A chart over steps for each metric that any of the groups has."""
    charts = []
    for name, of in shown.items():
        chart = curves.chart(groups, name, of.title, of.y, of.note, of.log)
        if chart is not None:
            charts.append(chart)
    return [Facets(tuple(charts))] if charts else []
