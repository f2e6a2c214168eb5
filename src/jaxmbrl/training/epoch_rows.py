"""The rows of metrics of one epoch, one for each seed."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from jaxmbrl.core import metrics
from jaxmbrl.core.types import Metrics
from jaxmbrl.training.loop import Fault
from jaxmbrl.training.programs import Program

Row = dict[str, Any]


class Evaluated(NamedTuple):
    """An evaluation of each seed, on the host."""

    returns: Float[np.ndarray, "K"]
    """Mean return of the deterministic policy."""
    probes: Metrics
    """The algorithm's probes, each [K]."""


class Notice(NamedTuple):
    """A warning, with the fields of its event."""

    text: str
    fields: dict[str, Any]


def of_epoch(
    program: Program,
    common: Row,
    timing: dict[str, float],
    found: Metrics,
    fault: Fault,
    evaluated: Evaluated | None,
    frozen: Collection[int],
) -> tuple[list[Row], list[Notice]]:
    """(rows, warnings) of the seeds of `program`. Each row begins with `common`: epoch, env_steps and wall_time. `found`,
    the metrics of the epoch, and `fault` have a leading axis of seeds and are on the host; `evaluated` is the epoch's
    evaluation.

    A frozen seed has no metrics, and a warning unless it is in `frozen` already. Values that are not finite are omitted
    with a warning.
    """
    epoch, rows, notices = common["epoch"], [], []
    for k in range(program.config.seeds):
        seed = program.config.seed + k
        row = {"epoch": epoch, "env_steps": common["env_steps"], "seed": seed, "wall_time": common["wall_time"]}
        if fault.what[k] >= 0:
            what, at = program.loop.checked[fault.what[k]], int(fault.env_steps[k])
            notices += [] if seed in frozen else [_frozen(seed, epoch, what, at)]
            rows.append(row | {"frozen": True} | timing)
            continue
        row |= metrics.known(_of_seed(found, k))
        if "train/return" in found:
            row["train/episodes"] = int(found["train/return"].weight[k])
        if evaluated is not None:
            row |= {"eval/return": float(evaluated.returns[k])} | metrics.known(_of_seed(evaluated.probes, k))
        row, left_out = finite(row, seed, epoch)
        notices += left_out
        rows.append(row | timing)
    return rows, notices


def finite(row: Row, seed: int, epoch: int) -> tuple[Row, list[Notice]]:
    """(the row without values that are not finite, such as sums that overflowed; a warning for each of them)."""
    left_out = [name for name, value in row.items() if not np.isfinite(value)]
    notices = [
        Notice(
            f"'{name}' of seed {seed} was {row[name]} in epoch {epoch} and is omitted from the metrics",
            {"seed": seed, "epoch": epoch, "metric": name},
        )
        for name in left_out
    ]
    return {name: value for name, value in row.items() if name not in left_out}, notices


def _frozen(seed: int, epoch: int, what: str, env_steps: int) -> Notice:
    text = f"seed {seed} is frozen: '{what}' was not finite in epoch {epoch}, at step {env_steps}"
    return Notice(text, {"seed": seed, "epoch": epoch, "metric": what, "env_steps": env_steps})


def _of_seed(found: Metrics, k: int) -> Metrics:
    return jax.tree.map(lambda x: x[k], found)
