"""The return at which a run ends (`RunConfig.stop_at_return`)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from jaxmbrl.training.curve import EVAL, TRAIN
from jaxmbrl.training.programs import RunConfig


class Reached(NamedTuple):
    """A return that is at least the target."""

    metric: str
    value: float
    """Mean over the seeds that are not frozen."""


def reached(config: RunConfig, rows: Sequence[dict[str, Any]]) -> Reached | None:
    """Whether the return of a run whose `rows` end with those of an epoch has reached the target.

    The return is the newest `eval/return`, or `train/return` if the run has no evaluations, averaged over the seeds that
    are not frozen. It is compared only in epochs with a new value, and only if each of these seeds has one.
    """
    if config.stop_at_return is None or not rows:
        return None
    metric = EVAL if config.evaluates else TRAIN
    running = [row for row in rows[-config.seeds :] if not row.get("frozen", False)]
    if not any(metric in row for row in running):
        return None
    newest: dict[int, float] = {}
    for row in running if config.evaluates else rows:
        if metric in row:
            newest[row["seed"]] = row[metric]
    values = [newest[row["seed"]] for row in running if row["seed"] in newest]
    if len(values) < len(running):
        return None
    mean = math.fsum(values) / len(values)
    return Reached(metric, mean) if mean >= config.stop_at_return else None
