"""Keeping a run: what is written into its folder while it trains, without waiting for the disk and without trusting it.

Checkpoints are copied from the device and written by a thread while training goes on. Where the disk refuses (full, gone,
read-only), rows and events wait in memory and everything is tried again, for as long as the run's `grace` lasts.
"""

from __future__ import annotations

import contextlib
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from jaxmbrl.core.config import UserError
from jaxmbrl.core.types import PyTree
from jaxmbrl.models.branching import Imagined
from jaxmbrl.training import checkpoint
from jaxmbrl.training.checkpoint import Snapshot
from jaxmbrl.training.manifest import CheckpointError
from jaxmbrl.training.hosts import ALONE, Hosts
from jaxmbrl.training.programs import CheckpointConfig
from jaxmbrl.training.run_folder import CONFIG, RunFolder, event_of

SHARE = 0.05
"""Of the wall clock, what checkpoints may cost."""
LOST_SECONDS = 600.0
"""Work that may be lost where a checkpoint each epoch costs too much, and within long epochs."""
RETRY_SECONDS = 5.0
"""Between two attempts to write to a disk that refused."""
LINES, CHECKPOINT = "lines", "checkpoint"
"""What a disk can refuse."""


class Lost(UserError):
    """The run's folder could not be written to for longer than the grace."""


class Keeper:
    """Writes into one run's folder. `say` and `warn` tell the user. Of several hosts each keeps its own seeds, the first
    alone the metrics."""

    def __init__(
        self,
        folder: RunFolder,
        config: CheckpointConfig,
        say: Callable[[str], None],
        warn: Callable[[str], None],
        hosts: Hosts = ALONE,
    ) -> None:
        self.folder, self.config, self.hosts = folder, config, hosts
        self.checkpoints = part_of(folder, hosts)
        self._say, self._warn = say, warn
        self._rows: list[dict[str, Any]] = []
        self._events: list[dict[str, Any]] = []
        self._refused: dict[str, float] = {}
        """Since when the disk refuses what."""
        self._tried = 0.0
        self._saved: tuple[int, int] | None = None
        """Step and metrics offset of the newest checkpoint."""
        self._thread: threading.Thread | None = None
        self._writing: _Writing | None = None
        self._extras = checkpoint.extras(self.checkpoints)
        self._last = time.monotonic()
        self._blocking, self._whole = 0.0, 0.0

    def goes_on_from(self, step: int) -> None:
        """Note that a checkpoint of `step` is there, with nothing after it."""
        self._saved = (step, self._offset())

    def holds(self, step: int) -> bool:
        """Whether all that was given is on the disk, with a checkpoint of `step` after its rows."""
        self.wait()
        return not (self._rows or self._events) and self._saved == (step, self._offset())

    def event(self, kind: str, **fields: Any) -> None:
        """Append to events.jsonl, now or as soon as the disk permits."""
        self._events.append(event_of(kind, **fields))
        self.flush()

    def rows(self, rows: list[dict[str, Any]]) -> None:
        """Append rows to metrics.jsonl, now or as soon as the disk permits."""
        self._rows += rows if self.hosts.first else []
        self.flush()

    def flush(self, now: bool = False) -> None:
        """Write what waits; where the disk has just refused, only `now` or after a while.

        Raises Lost when it has refused for longer than the grace.
        """
        self._collect()
        if LINES in self._refused and not now and time.monotonic() - self._tried < RETRY_SECONDS:
            return
        self._tried = time.monotonic()
        try:
            self._drain()
        except OSError as error:
            self._refuse(LINES, error.strerror or str(error))
        else:
            self._relieve(LINES)

    def due(self, epoch: int | None) -> bool:
        """Whether a checkpoint is due: at the end of `epoch`, or within an epoch (None)."""
        self._collect()
        affordable = self._blocking / SHARE
        if CHECKPOINT in self._refused:
            return self._thread is None and time.monotonic() - self._tried >= max(RETRY_SECONDS, affordable)
        if self.config.every is not None:
            return epoch is not None and epoch % self.config.every == 0
        if self._thread is not None:
            return False
        wanted = min(self._whole / SHARE, LOST_SECONDS) if epoch is not None else LOST_SECONDS
        return time.monotonic() - self._last >= max(affordable, wanted)

    def save(self, step: int, state: PyTree, extra: dict[str, Any], wait: bool = False) -> None:
        """Begin to write a checkpoint of `step`; with `wait` it is on the disk when this returns, unless the disk refuses.

        `extra` may hold a `score`, of which the checkpoint with the highest is kept, and must hold `frozen`, the seeds
        frozen so far: the newest checkpoint without any is kept too, as what went wrong can be replayed from it.
        """
        self.wait()
        began = time.monotonic()
        self.flush(now=True)
        if LINES in self._refused:
            # A checkpoint counts on the rows before it.
            self._refused.setdefault(CHECKPOINT, self._refused[LINES])
            return
        extra = extra | {"metrics_offset": self._offset()}
        left_out = () if self.config.model_buffer else imagined(state)
        self._writing = _Writing(self, step, checkpoint.take(state, left_out), extra)
        self._blocking = time.monotonic() - began
        self._thread = threading.Thread(target=self._writing.run, name="jaxmbrl-checkpoint")
        self._thread.start()
        if wait:
            self.wait()

    def wait(self) -> None:
        """Wait for the checkpoint that is being written."""
        if self._thread is not None:
            self._thread.join()
            self._collect()

    def precious(self, now: dict[str, Any]) -> set[int]:
        """Steps of the checkpoints to keep however old they are, beside one that holds `now`."""
        found = set()
        scored = {step: extra["score"] for step, extra in self._extras.items() if extra.get("score") is not None}
        if scored:
            # Of equals, the later one.
            found.add(max(scored, key=lambda step: (scored[step], step)))
        sound = [step for step, extra in self._extras.items() if not extra["frozen"]]
        return found | ({max(sound)} if sound and now["frozen"] else set())

    def _collect(self) -> None:
        """Take note of a checkpoint that has been written, or could not be."""
        writing = self._writing
        if self._thread is None or writing is None or self._thread.is_alive():
            return
        self._thread.join()
        self._thread = self._writing = None
        if isinstance(writing.error, CheckpointError):
            cause = writing.error.__cause__
            self._refuse(CHECKPOINT, (isinstance(cause, OSError) and cause.strerror) or str(cause or writing.error))
        elif writing.error is not None:
            raise writing.error
        else:
            self._saved = (writing.step, writing.extra["metrics_offset"])
            self._relieve(CHECKPOINT)
            self._last, self._whole = time.monotonic(), self._blocking + writing.seconds
            earlier = {step: extra for step, extra in self._extras.items() if step < writing.step}
            self._extras = earlier | {writing.step: writing.extra}
            seconds, waited = round(writing.seconds, 3), round(self._blocking, 3)
            self.event("checkpoint", env_steps=writing.step, seconds=seconds, waited=waited)

    def _offset(self) -> int:
        """Bytes of metrics that this process has to answer for."""
        return self.folder.metrics_offset() if self.hosts.first else 0

    def _drain(self) -> None:
        _check_there(self.folder)
        if self._rows:
            self.folder.append_metrics(self._rows)
            self._rows = []
        if self._events:
            self.folder.append_events(self._events, self.hosts.index)
            self._events = []

    def _relieve(self, what: str) -> None:
        """The disk has taken it."""
        if self._refused.pop(what, None) is not None and not self._refused:
            self._say(f"{self.folder.path} can be written to again; nothing was lost")

    def _refuse(self, what: str, reason: str) -> None:
        """Begin, or go on, with waiting for the disk."""
        now = self._tried = time.monotonic()
        minutes = f"{self.config.grace:g} minute{'s' if self.config.grace != 1 else ''}"
        known = bool(self._refused)
        since = self._refused.setdefault(what, now)
        if not known:
            self._warn(
                f"{self.folder.path} cannot be written to ({reason}): training goes on and tries again, for {minutes}"
            )
        if now - since > 60 * self.config.grace:
            newest = max(checkpoint.steps(self.checkpoints), default=None)
            kept = "no checkpoint is there" if newest is None else f"its last checkpoint is that of step {newest:,}"
            raise Lost(
                f"{self.folder.path} could not be written to for {minutes} ({reason}) and training has stopped; {kept}: "
                "see to the disk and resume"
            )


def part_of(folder: RunFolder, hosts: Hosts) -> Path:
    """The folder of a host's checkpoints."""
    return folder.checkpoints if hosts.count == 1 else folder.checkpoints / f"host-{hosts.index}-of-{hosts.count}"


def imagined(state: PyTree) -> set[str]:
    """Paths of the leaves that are buffers of imagined transitions, which a model can imagine again."""
    parts = jax.tree_util.tree_leaves_with_path(state, is_leaf=lambda x: isinstance(x, Imagined))
    buffers = tuple(f"{jax.tree_util.keystr(path)}.buffer" for path, part in parts if isinstance(part, Imagined))
    leaves = (jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(state))
    return {name for name in leaves if name.startswith(buffers)}


class _Writing:
    """One checkpoint on its way to the disk."""

    def __init__(self, keeper: Keeper, step: int, snapshot: Snapshot, extra: dict[str, Any]) -> None:
        self.step, self.extra = step, extra
        self.error: Exception | None = None
        self.seconds = 0.0
        self._keeper, self._snapshot = keeper, snapshot

    def run(self) -> None:
        """Write it; an error waits for who asks."""
        began, keeper = time.monotonic(), self._keeper
        try:
            _check_there(keeper.folder)
            checkpoint.save(
                keeper.checkpoints,
                self.step,
                self._snapshot,
                self.extra,
                keeper.config.keep,
                keeper.precious(self.extra),
            )
            _check_there(keeper.folder)
        except OSError as error:
            self.error = CheckpointError(str(error))
            self.error.__cause__ = error
        except Exception as error:
            self.error = error
        if self.error is not None:
            _take_away(keeper.folder)
        self.seconds = time.monotonic() - began
        del self._snapshot


def _take_away(folder: RunFolder) -> None:
    """Remove a folder that writing made where the run's own had gone: nothing but a checkpoint is in it."""
    with contextlib.suppress(OSError):
        if [path.name for path in folder.path.iterdir()] == [folder.checkpoints.name]:
            shutil.rmtree(folder.checkpoints)
            folder.path.rmdir()


def _check_there(folder: RunFolder) -> None:
    """Raise FileNotFoundError where the run's folder has gone: writing into it would make another one."""
    if not Path(folder.path / CONFIG).is_file():
        raise FileNotFoundError(2, "the folder is gone", str(folder.path))
