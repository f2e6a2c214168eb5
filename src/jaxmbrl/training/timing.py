"""Measurement of the time of a run, by its parts."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

PARTS = ("compile", "train", "evaluate")


class Timing:
    """Wall-clock time of a run and of its epoch in progress, in seconds."""

    def __init__(self) -> None:
        self.wall_time = 0.0
        """Time of the whole run, including the time before a resume."""
        self.epoch = 0.0
        """Time of the epoch in progress, without compilation."""
        self.spent = dict.fromkeys(PARTS, 0.0)
        """Time of the epoch in progress for each part; for training and evaluation, that of the compiled program."""
        self._counted = time.monotonic()

    def count(self) -> None:
        """Add the time since the last call."""
        now = time.monotonic()
        self.wall_time += now - self._counted
        self.epoch += now - self._counted
        self._counted = now

    @contextlib.contextmanager
    def spending(self, part: str) -> Iterator[None]:
        """Context whose time is counted for `part`, unless an exception is raised inside."""
        started = time.monotonic()
        yield
        self.spent[part] += time.monotonic() - started

    def compiled(self, seconds: float) -> None:
        """Record a compilation."""
        self.spent["compile"] += seconds
        self.exclude(seconds)

    def exclude(self, seconds: float) -> None:
        """Exclude time from the epoch in progress, but not from the time of the run."""
        self.epoch -= seconds

    def metrics(self) -> dict[str, float]:
        """The epoch's times as metrics."""
        times = {"time/epoch": round(self.epoch, 3)}
        return times | {f"time/{name}": round(seconds, 3) for name, seconds in self.spent.items() if seconds}

    def end_epoch(self) -> None:
        """Begin another epoch."""
        self.epoch, self.spent = 0.0, dict.fromkeys(PARTS, 0.0)

    def extra(self) -> dict[str, Any]:
        """Values to save in a checkpoint. Compilation is not included, because programs are compiled again on resume."""
        return {"wall_time": self.wall_time, "epoch_seconds": self.epoch, "spent": self.spent | {"compile": 0.0}}

    def resume(self, extra: dict[str, Any]) -> None:
        """Continue from the values saved in a checkpoint."""
        self.wall_time, self.epoch = extra["wall_time"], extra["epoch_seconds"]
        self.spent |= extra["spent"]
