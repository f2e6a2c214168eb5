"""TensorBoard: event files of a run's metrics.

RUN/tensorboard has a folder for each seed, and `mean` if there are several: TensorBoard shows their curves in the same
charts. The x axis is environment steps. Each seed's folder has its settings for the HPARAMS tab; TEXT shows all of them.

When a run is resumed, its files are written again from the rows that it keeps, so they always contain the points of
metrics.jsonl and no others. A TensorBoard that is open meanwhile drops the earlier points.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from jaxmbrl.training.curve import EVAL, TRAIN
from jaxmbrl.training.logs import Described, Row, epochs, means, scalars

FOLDER = "tensorboard"
MEAN = "mean"
RETURNS = (EVAL, TRAIN)
"""Metrics that the HPARAMS tab shows."""


class TensorBoardLog:
    """Writes event files for TensorBoard. If writing fails, everything that is missing is written with the next epoch."""

    def __init__(self, run: Described) -> None:
        folder = run.path / FOLDER
        self._seeds = {seed: EventFile(folder / f"seed-{seed}") for seed in run.settings}
        self._mean = EventFile(folder / MEAN) if len(run.settings) > 1 else None
        self._describe(run)
        for rows in epochs(run.rows):
            self._add(rows, run.started + rows[0]["wall_time"])
        self._flush()

    def write(self, rows: Sequence[Row]) -> None:
        """Write the rows of one epoch. Raises OSError if the files cannot be written to."""
        self._add(rows, time.time())
        self._flush()

    def close(self) -> None:
        """Mark the runs as ended. Raises OSError if the files cannot be written to."""
        from tensorboardX import summary

        for file in self._seeds.values():
            file.add(summary.hparams({}, {})[2], 0, time.time())
        self._flush()

    def _describe(self, run: Described) -> None:
        """Add the settings."""
        from tensorboardX import summary

        for seed, file in self._seeds.items():
            plain = {name: _plain(value) for name, value in run.settings[seed].items()}
            for part in summary.hparams(plain, dict.fromkeys(RETURNS, 0.0))[:2]:
                file.add(part, 0, run.started)
        table = ["| setting | value |", "|---|---|"]
        table += [f"| {name} | {str(value).replace('|', chr(92) + '|')} |" for name, value in _common(run.settings).items()]
        shown = self._mean or next(iter(self._seeds.values()))
        shown.add(summary.text("settings", f"{run.title}\n\n" + "\n".join(table)), 0, run.started)

    def _add(self, rows: Sequence[Row], wall_time: float) -> None:
        files: list[tuple[EventFile, dict[str, float]]] = [(self._seeds[row["seed"]], scalars(row)) for row in rows]
        if self._mean is not None:
            files.append((self._mean, means(rows)))
        for file, values in files:
            file.add(_summary(values), rows[0]["env_steps"], wall_time)

    def _flush(self) -> None:
        """Write all files. Raises the first OSError, after trying each."""
        failed: OSError | None = None
        for file in (*self._seeds.values(), *((self._mean,) if self._mean is not None else ())):
            try:
                file.flush()
            except OSError as error:
                failed = failed or error
        if failed is not None:
            raise failed


class EventFile:
    """A new event file in `folder`; earlier ones are emptied once it is written. What cannot be written yet is kept."""

    def __init__(self, folder: Path) -> None:
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        now = time.time()
        # Readers go from file to file in the order of their names.
        numbers = [int(path.name.split(".")[3]) for path in folder.glob("events.out.tfevents.[0-9]*.*")]
        number = max([int(now), *(number + 1 for number in numbers)])
        self.path = folder / f"events.out.tfevents.{number}.{socket.gethostname()}.{os.getpid()}"
        self._pending = bytearray()
        self._size = 0
        self._earlier = True
        # A reader of earlier files in this folder forgets their points at this event.
        restart = SessionLog(status=SessionLog.START)
        for event in (
            Event(wall_time=now, file_version="brain.Event:2"),
            Event(wall_time=now, step=0, session_log=restart),
        ):
            self._pending += framed(event.SerializeToString())

    def add(self, summary: Any, step: int, wall_time: float) -> None:
        """Add a summary; `flush` writes it."""
        from tensorboardX.proto.event_pb2 import Event

        self._pending += framed(Event(wall_time=wall_time, step=step, summary=summary).SerializeToString())

    def flush(self) -> None:
        """Append what was added, all or nothing. Raises OSError if that fails."""
        if not self._pending:
            return
        if not self._size:
            # Not the folder of the run, which must exist.
            for folder in (self.path.parents[1], self.path.parent):
                folder.mkdir(exist_ok=True)
        with self.path.open("ab", buffering=0) as file:
            file.truncate(self._size)
            try:
                if file.write(self._pending) != len(self._pending):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
            except OSError:
                file.truncate(self._size)
                raise
        self._size += len(self._pending)
        self._pending.clear()
        if self._earlier:
            self._clear_earlier()

    def _clear_earlier(self) -> None:
        """Empty the earlier files. They are removed the next time: a TensorBoard that has one of them open only continues
        with the new file if its own still exists."""
        for other in self.path.parent.glob("*tfevents*"):
            if other == self.path:
                continue
            if other.stat().st_size:
                os.truncate(other, 0)
            else:
                other.unlink()
        self._earlier = False


def framed(data: bytes) -> bytes:
    """A record of a TFRecord file: the length and the data, each followed by its masked CRC-32C."""
    from tensorboardX.record_writer import masked_crc32c

    length = struct.pack("<Q", len(data))
    return length + struct.pack("<I", masked_crc32c(length)) + data + struct.pack("<I", masked_crc32c(data))


def _summary(values: dict[str, float]) -> Any:
    from tensorboardX.proto.summary_pb2 import Summary

    return Summary(value=[Summary.Value(tag=name, simple_value=value) for name, value in values.items()])


def _plain(value: Any) -> str | bool | float | None:
    """A setting as a hyperparameter of TensorBoard."""
    return value if isinstance(value, str | bool | int | float | None) else str(value)


def _common(settings: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """The settings of all seeds; the values of one that differ are listed in the order of the seeds."""
    first, *others = settings.values()
    found = {name: [value, *(other[name] for other in others)] for name, value in first.items()}
    return {name: values[0] if _same(values) else values for name, values in found.items()}


def _same(values: Iterable[Any]) -> bool:
    first, *others = values
    return all(other == first for other in others)
