"""Writing to a run's folder during training, without waiting for the disk, and with retries if the disk fails.

Checkpoints are copied from the device and written by a thread while training continues. If the disk cannot be written to
(full, missing, read-only), rows and events are kept in memory and writing is retried for the run's `grace` period.
"""

from __future__ import annotations

import contextlib
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import jax

from jaxmbrl.core.config import UserError
from jaxmbrl.core.types import PyTree
from jaxmbrl.training import checkpoint
from jaxmbrl.training.checkpoint import Snapshot
from jaxmbrl.training.hosts import ALONE, Hosts
from jaxmbrl.training.manifest import CheckpointError
from jaxmbrl.training.programs import CheckpointConfig
from jaxmbrl.training.run_folder import CONFIG, RunFolder, event_of

SHARE = 0.05
"""Largest share of the wall-clock time for checkpoints."""
LOST_SECONDS = 600.0
"""Work that may be lost, in seconds, if a checkpoint every epoch is too expensive, and within long epochs."""
RETRY_SECONDS = 5.0
"""Time between two attempts to write after a failure."""
LINES, CHECKPOINT = "lines", "checkpoint"
"""The two kinds of writes that can fail."""


class Lost(UserError):
    """The run's folder could not be written to for longer than the grace period."""


def nothing(state: PyTree) -> PyTree:
    """No leaves of the state."""
    return ()


class Keeper:
    """Writes into one run's folder, with messages to the user by `say` and `warn`. Each host saves its own seeds; only the
    first writes the metrics.

    `reproducible` selects leaves of the state that can be recomputed (`types.Views`); checkpoints omit them if the config's
    `model_buffer` is false.
    """

    def __init__(
        self,
        folder: RunFolder,
        config: CheckpointConfig,
        say: Callable[[str], None],
        warn: Callable[[str], None],
        hosts: Hosts = ALONE,
        reproducible: Callable[[PyTree], PyTree] = nothing,
    ) -> None:
        self.folder, self.config, self.hosts, self.reproducible = folder, config, hosts, reproducible
        self.checkpoints = hosts.checkpoints(folder)
        self._say, self._warn = say, warn
        self._rows: list[dict[str, Any]] = []
        self._events: list[dict[str, Any]] = []
        self._refused: dict[str, float] = {}
        """Times since which writes of LINES and CHECKPOINT have failed."""
        self._tried = 0.0
        self._saved: tuple[int, int] | None = None
        """Step and metrics offset of the newest checkpoint."""
        self._thread: threading.Thread | None = None
        self._writing: _Writing | None = None
        self._extras = checkpoint.extras(self.checkpoints)
        self._last = time.monotonic()
        self._blocking, self._whole = 0.0, 0.0

    def continue_from(self, step: int) -> None:
        """Record that the newest checkpoint is that of `step`, with nothing after it."""
        self._saved = (step, self._offset())
        # Damaged checkpoints have been set aside.
        self._extras = checkpoint.extras(self.checkpoints)

    def has_saved(self, step: int) -> bool:
        """Whether all rows and events, and then a checkpoint of `step`, are on the disk."""
        self.wait()
        return not (self._rows or self._events) and self._saved == (step, self._offset())

    def event(self, kind: str, **fields: Any) -> None:
        """Append to events.jsonl, now or as soon as the disk can be written to."""
        self._events.append(event_of(kind, **fields))
        self.flush()

    def rows(self, rows: list[dict[str, Any]]) -> None:
        """Append rows to metrics.jsonl, now or as soon as the disk can be written to."""
        self._rows += rows if self.hosts.first else []
        self.flush()

    def flush(self, now: bool = False) -> None:
        """Write the pending rows and events. After a recent failure this is only tried with `now`, or after a while.

        Raises Lost if writing has failed for longer than the grace period.
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
        """Whether a checkpoint is due, at the end of `epoch` or within an epoch (None)."""
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
        """Begin to write a checkpoint of `step`. With `wait` it is on the disk when this returns, unless writing fails.

        `extra` may have a `score`: the checkpoint with the highest score is kept. It must have `frozen`, the seeds frozen
        so far: the newest checkpoint without frozen seeds is kept too, to replay the fault from it.
        """
        self.wait()
        began = time.monotonic()
        self.flush(now=True)
        if LINES in self._refused:
            # The rows before a checkpoint must be on the disk first.
            self._refused.setdefault(CHECKPOINT, self._refused[LINES])
            return
        extra = extra | {"metrics_offset": self._offset()}
        left_out = () if self.config.model_buffer else paths_of(self.reproducible(state), state)
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
        """Steps of the checkpoints to keep regardless of age, besides a new one with the extra `now`."""
        found = set()
        scored = {step: extra["score"] for step, extra in self._extras.items() if extra.get("score") is not None}
        if scored:
            # Of equal scores, the later.
            found.add(max(scored, key=lambda step: (scored[step], step)))
        sound = [step for step, extra in self._extras.items() if not extra["frozen"]]
        return found | ({max(sound)} if sound and now["frozen"] else set())

    def _collect(self) -> None:
        """Record whether a checkpoint has been written or has failed."""
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
        """Bytes of metrics.jsonl that this process has written."""
        return self.folder.metrics_offset() if self.hosts.first else 0

    def _drain(self) -> None:
        _check_exists(self.folder)
        if self._rows:
            self.folder.append_metrics(self._rows)
            self._rows = []
        if self._events:
            self.folder.append_events(self._events, self.hosts.index)
            self._events = []

    def _relieve(self, what: str) -> None:
        """Record that a write has succeeded."""
        if self._refused.pop(what, None) is not None and not self._refused:
            self._say(f"{self.folder.path} can be written to again; nothing was lost")

    def _refuse(self, what: str, reason: str) -> None:
        """Record that a write has failed. Raises Lost after the grace period."""
        now = self._tried = time.monotonic()
        minutes = f"{self.config.grace:g} minute{'s' if self.config.grace != 1 else ''}"
        known = bool(self._refused)
        since = self._refused.setdefault(what, now)
        if not known:
            self._warn(
                f"{self.folder.path} cannot be written to ({reason}): training continues and tries again, for {minutes}"
            )
        if now - since > 60 * self.config.grace:
            newest = max(checkpoint.steps(self.checkpoints), default=None)
            kept = "there is no checkpoint" if newest is None else f"the last checkpoint is that of step {newest:,}"
            raise Lost(
                f"{self.folder.path} could not be written to for {minutes} ({reason}) and training has stopped; {kept}: "
                "check the disk and resume"
            )


def paths_of(leaves: PyTree, state: PyTree) -> set[str]:
    """Paths (`jax.tree_util.keystr`) of the leaves of `state` that are the same objects as in `leaves`. An array that also
    occurs elsewhere in the state is not included.

    Raises ValueError if `leaves` contains an array that is not in the state.
    """
    selected = Counter(id(leaf) for leaf in jax.tree.leaves(leaves))
    named = [(jax.tree_util.keystr(path), id(leaf)) for path, leaf in jax.tree_util.tree_leaves_with_path(state)]
    present = Counter(number for _, number in named)
    if selected.keys() - present.keys():
        raise ValueError("Views.reproducible must contain leaves of the state itself, not arrays computed from it")
    return {name for name, number in named if selected[number] == present[number]}


class _Writing:
    """One checkpoint that is being written."""

    def __init__(self, keeper: Keeper, step: int, snapshot: Snapshot, extra: dict[str, Any]) -> None:
        self.step, self.extra = step, extra
        self.error: Exception | None = None
        self.seconds = 0.0
        self._keeper, self._snapshot = keeper, snapshot

    def run(self) -> None:
        """Write it and store an error in `error`."""
        began, keeper = time.monotonic(), self._keeper
        try:
            _check_exists(keeper.folder)
            checkpoint.save(
                keeper.checkpoints,
                self.step,
                self._snapshot,
                self.extra,
                keeper.config.keep,
                keeper.precious(self.extra),
            )
            _check_exists(keeper.folder)
        except OSError as error:
            self.error = CheckpointError(str(error))
            self.error.__cause__ = error
        except Exception as error:
            self.error = error
        if self.error is not None:
            _remove_remains(keeper.folder)
        self.seconds = time.monotonic() - began
        del self._snapshot


def _remove_remains(folder: RunFolder) -> None:
    """Remove a folder that writing created again after the run's folder was removed: it only contains a checkpoint."""
    with contextlib.suppress(OSError):
        if [path.name for path in folder.path.iterdir()] == [folder.checkpoints.name]:
            shutil.rmtree(folder.checkpoints)
            folder.path.rmdir()


def _check_exists(folder: RunFolder) -> None:
    """Raise FileNotFoundError if the run's folder was removed: writing into it would create it again."""
    if not (folder.path / CONFIG).is_file():
        raise FileNotFoundError(2, "the folder is gone", str(folder.path))
