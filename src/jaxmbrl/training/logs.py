"""Loggers: further destinations of a run's metrics, beside its own folder.

A logger is any object with `write(rows)` and `close()`. Those of `NAMES` are made from their name; each needs an optional
package. `loggers` calls them.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

from jaxmbrl.core.config import UserError

Row = dict[str, Any]
Name = Literal["tensorboard", "wandb"]
PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb"}
"""Name of a logger -> the package that it needs; the extra of jaxmbrl has the logger's name."""
NOT_METRICS = ("epoch", "env_steps", "seed")
"""Entries of a row that identify it."""


@runtime_checkable
class Logger(Protocol):
    """A destination of metrics."""

    def write(self, rows: Sequence[Row]) -> None:
        """Write the rows of one epoch, one for each seed, as in metrics.jsonl. If a process was killed, its resumed run
        writes the epochs after the checkpoint again: `env_steps` and `seed` identify a row."""

    def close(self) -> None:
        """The run ends, is stopped, or fails. Nothing is written afterwards."""


class Described(NamedTuple):
    """A run, as described to a logger that is made from its name."""

    path: Path
    """The run folder."""
    title: str
    """Algorithm and task."""
    settings: dict[int, dict[str, Any]]
    """For each seed, all settings by dotted path, traced hyperparameters with the value of that seed."""
    rows: Sequence[Row]
    """The rows so far, in order; empty unless the run is resumed."""
    started: float
    """The start of the run, in seconds since 1970."""


def split(log: Any) -> tuple[tuple[str, ...], tuple[Logger, ...]]:
    """(names, objects) in a `log` argument: a name, an object, or several of them. Raises UserError for anything else."""
    given = tuple(log) if isinstance(log, list | tuple) else (log,)
    names = tuple(one for one in given if isinstance(one, str))
    objects = tuple(one for one in given if not isinstance(one, str))
    for one in objects:
        if isinstance(one, type) or not isinstance(one, Logger):
            known = " or ".join(map(repr, PACKAGES))
            raise UserError(f"log must be {known}, or an object with write(rows) and close(), got {one!r:.60}")
    return names, objects


def check(names: Iterable[str]) -> None:
    """Raise UserError if the package of a logger is not installed."""
    for name in names:
        package = PACKAGES[name]
        try:
            importlib.import_module(package)
        except ModuleNotFoundError as error:
            missing = package if error.name == package else f"{package} needs {error.name}, which"
            raise UserError(f"log '{name}': {missing} is not installed: pip install 'jaxmbrl[{name}]'") from None
        except Exception as error:
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            raise UserError(
                f"log '{name}': {package} cannot be imported ({reason}); pip install --upgrade 'jaxmbrl[{name}]'"
            ) from None


def scalars(row: Row) -> dict[str, float]:
    """The metrics of a row as numbers."""
    return {name: float(value) for name, value in row.items() if name not in NOT_METRICS and not isinstance(value, str)}


def means(rows: Sequence[Row]) -> dict[str, float]:
    """The mean of each metric over the seeds that are not frozen and have it."""
    values: dict[str, list[float]] = {}
    for row in rows:
        if not row.get("frozen", False):
            for name, value in scalars(row).items():
                values.setdefault(name, []).append(value)
    return {name: math.fsum(found) / len(found) for name, found in values.items()}


def epochs(rows: Sequence[Row]) -> list[list[Row]]:
    """Rows in order, grouped by epoch."""
    found: dict[int, list[Row]] = {}
    for row in rows:
        found.setdefault(row["epoch"], []).append(row)
    return list(found.values())
