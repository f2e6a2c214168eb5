"""Output of a run: its console and its folder."""

from __future__ import annotations

import contextlib
import datetime
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from jaxmbrl.core.config import UserError
from jaxmbrl.core.types import PyTree
from jaxmbrl.training import curve
from jaxmbrl.training.checkpointing import Keeper
from jaxmbrl.training.console import Progress
from jaxmbrl.training.hosts import Hosts
from jaxmbrl.training.loggers import Loggers
from jaxmbrl.training.logs import Described, Logger
from jaxmbrl.training.programs import RunConfig, settings_by_seed
from jaxmbrl.training.run_folder import RunFolder

PICTURE_SHARE = 0.02
"""Largest share of the training time in which the picture is drawn. The last one of a run is always drawn."""


class Recorder:
    """The console of a run, its loggers and, if it has a folder, its rows, events, checkpoints and picture.

    `reproducible` selects the leaves of a state that a checkpoint may omit (`checkpointing.Keeper`).
    """

    def __init__(
        self,
        folder: RunFolder | None,
        config: RunConfig,
        progress: Progress,
        hosts: Hosts,
        reproducible: Callable[[PyTree], PyTree],
    ) -> None:
        self.progress = progress
        self.rows: list[dict[str, Any]] = []
        """The metrics so far, of all seeds."""
        self.keeper = None
        if folder is not None:
            self.keeper = Keeper(folder, config.checkpoint, progress.say, self.warn, hosts, reproducible)
        self._config = config
        self._first = hosts.first
        self._loggers = Loggers(self.warn)
        self._warned_of_picture = False
        self._next_picture = 0.0

    @property
    def _title(self) -> str:
        return f"{self._config.algorithm} on {self._config.env}"

    @property
    def path(self) -> Path | None:
        """The run folder."""
        return None if self.keeper is None else self.keeper.folder.path

    def open_loggers(self, objects: Iterable[Logger]) -> None:
        """Open the loggers that the config names, and use `objects` as well. Of several hosts only the first has any."""
        if self._first:
            self._loggers.open(self._config.log, objects, self._described)

    def close_loggers(self) -> None:
        """Close the loggers."""
        self._loggers.close()

    def _described(self) -> Described:
        assert self.keeper is not None, "the loggers that have names write into the folder of a run"
        folder = self.keeper.folder
        settings = settings_by_seed(self._config, folder.read_environment().get("hyper") or {})
        started = time.time() - max((row["wall_time"] for row in self.rows), default=0.0)
        with contextlib.suppress(UserError, LookupError, TypeError, ValueError):
            started = datetime.datetime.fromisoformat(folder.read_events()[0]["time"]).timestamp()
        return Described(folder.path, self._title, settings, self.rows, started)

    def add(self, rows: list[dict[str, Any]]) -> None:
        """Show the rows of an epoch and write them."""
        self.rows += rows
        if self.keeper is not None:
            self.keeper.rows(rows)
        self.progress.epoch(rows)
        self._loggers.write(rows)

    def event(self, kind: str, **fields: Any) -> None:
        """Append to events.jsonl."""
        if self.keeper is not None:
            self.keeper.event(kind, **fields)

    def warn(self, text: str, **fields: Any) -> None:
        """Append a warning to events.jsonl and show it."""
        self.event("warning", text=text, **fields)
        self.progress.warn(text)

    def due(self, epoch: int | None) -> bool:
        """Write pending rows and events. Return whether a checkpoint is due at the end of `epoch`, or within one (None)."""
        if self.keeper is None:
            return False
        self.keeper.flush()
        return self.keeper.due(epoch)

    def score(self, env_steps: int) -> float | None:
        """Mean evaluation return over seeds if the newest rows have an evaluation at this step, else None."""
        newest = self.rows[-self._config.seeds :]
        found = [row["eval/return"] for row in newest if row["env_steps"] == env_steps and "eval/return" in row]
        return float(np.mean(found)) if found else None

    def draw(self, final: bool = True) -> None:
        """Draw the learning curve, if there is one; unless `final`, only if that takes at most `PICTURE_SHARE` of the time.
        An error becomes a warning, and training continues."""
        started = time.monotonic()
        if self.path is None or not self.rows or not self._first or (not final and started < self._next_picture):
            return
        path = self.path / "curve.png"
        try:
            curve.draw(self.rows, path, self._title)
        except Exception as error:
            if not self._warned_of_picture:
                self._warned_of_picture = True
                self.warn(f"{path} could not be drawn ({type(error).__name__}: {error}); training continues without it")
        self._next_picture = time.monotonic() + (time.monotonic() - started) / PICTURE_SHARE
