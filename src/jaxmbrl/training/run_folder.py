"""The folder of a run: its settings, its environment and its results.

config.yaml          the settings, enough to start the run again, except traced hyperparameters given for each seed
environment.json     versions, devices, source commit, command line, the user's program, and those hyperparameters
metrics.jsonl        one JSON object per line: a row for each epoch and seed
events.jsonl         one JSON object per line: an event with its time
checkpoints/         see `checkpoint`; on several hosts, each has a folder host-I-of-N
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import fcntl
import importlib.metadata
import io
import json
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import jax
import yaml

from jaxmbrl.core import calling, precision
from jaxmbrl.core.config import UserError
from jaxmbrl.core.places import check_utf8, expanded
from jaxmbrl.core.plain_yaml import read_yaml
from jaxmbrl.core.surroundings import import_despite
from jaxmbrl.training import durable

CONFIG = "config.yaml"
ENVIRONMENT = "environment.json"
METRICS = "metrics.jsonl"
EVENTS = "events.jsonl"
LOOKING_SECONDS = 0.5
"""A lock that is held for longer is one for writing, and not a look at it."""
KINDS = ("start", "compile", "checkpoint", "resume", "warning", "stop", "end")
PACKAGES = ("jaxmbrl", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "mujoco", "mujoco-mjx", "numpy")


class RunFolder(NamedTuple):
    """A run's folder, from `create` or `open`. Files are replaced in one rename, lines are appended."""

    path: Path

    @classmethod
    def create(cls, path: Path | str) -> RunFolder:
        """Create an empty run folder, and its parents. Raises UserError if `path` is not empty, cannot be written to, or is
        not UTF-8."""
        path = expanded(path)
        check_utf8(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
            taken = next(path.iterdir(), None)
        except FileExistsError:
            raise UserError(f"{path} is a file; choose another folder for the run") from None
        except NotADirectoryError:
            raise UserError(f"{path} cannot be created: a parent is a file; choose another folder for the run") from None
        except OSError as error:
            raise UserError(f"{path} cannot be created ({error.strerror}); choose another folder for the run") from None
        if taken is not None:
            raise UserError(f"{path} is not empty (it has {taken.name}); choose another folder, or resume the run in it")
        _try_writing(path)
        return cls(path)

    @classmethod
    def open(cls, path: Path | str) -> RunFolder:
        """The run folder at `path`. Raises UserError if it is not one."""
        if not isinstance(path, str | Path):
            inner = isinstance(getattr(path, "path", None), Path)
            advice = "write result.path" if inner else "jaxmbrl.train(..., out='runs/x') writes into a folder"
            raise UserError(f"give the folder of a run, got a {type(path).__name__}: {advice}")
        path = expanded(path)
        if not path.is_dir():
            raise UserError(f"there is no folder {path}; give the folder of a run")
        if not (path / CONFIG).is_file():
            inside = sorted(file.parent.name for file in path.glob(f"*/{CONFIG}"))
            names = ", ".join(inside[:4]) + (f" and {len(inside) - 4} more" if inside[4:] else "")
            advice = f"its runs are {names}: give one, {path / inside[0]}" if inside else "give the folder of a run"
            raise UserError(f"{path} is not a run: it has no {CONFIG}; {advice}")
        return cls(path)

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints."""
        return self.path / "checkpoints"

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Lock the run for writing, at most until the process ends. Raises UserError if another process has the lock."""
        try:
            handle = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise UserError(
                f"{self.path} cannot be written to ({error.strerror}); make it writable to resume the run"
            ) from None
        gives_up = time.monotonic() + LOOKING_SECONDS
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > gives_up:
                    os.close(handle)
                    raise UserError(f"another process is writing to {self.path}; wait for it or stop it") from None
                # `is_locked` of another process may hold it for a moment.
                time.sleep(LOOKING_SECONDS / 50)
        try:
            yield
        finally:
            os.close(handle)

    def is_locked(self) -> bool:
        """Whether a process has the lock for writing. This writes nothing and does not keep a lock."""
        try:
            handle = os.open(self.path / ".lock", os.O_RDONLY)
        except OSError:
            return False
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(handle)
        return False

    def write_config(self, config: dict[str, Any]) -> None:
        """Write config.yaml from a nested dict of plain values."""
        write_file(self.path / CONFIG, yaml.safe_dump(config, sort_keys=False).encode())

    def read_config(self) -> dict[str, Any]:
        """Read config.yaml. Raises UserError if it is not valid."""
        file = self.path / CONFIG
        config = read_yaml(file)
        if not isinstance(config, dict):
            raise UserError(
                f"{file} must be a mapping of fields to values, got {'nothing' if config is None else repr(config)}"
            )
        return config

    def write_environment(self, extra: dict[str, Any]) -> None:
        """Write environment.json: versions, machine, source commit and command line, then `extra`."""
        text = json.dumps({**environment(), **extra}, indent=2, allow_nan=False)
        write_file(self.path / ENVIRONMENT, text.encode() + b"\n")

    def read_environment(self) -> dict[str, Any]:
        """Read environment.json; {} if it is missing or not valid."""
        try:
            found = json.loads((self.path / ENVIRONMENT).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def check_precision(self) -> None:
        """Raise UserError if the run was made in another floating-point type than this process computes in."""
        known = self.read_environment().get("float64")
        if isinstance(known, bool):
            precision.check_same(str(self.path), known)

    def append_metrics(self, rows: list[dict[str, Any]]) -> None:
        """Append rows to metrics.jsonl in one write, on the disk when this returns.

        Raises ValueError for a NaN or an infinity, before anything is written: leave unknown values out.
        """
        for row in rows:
            for name, value in row.items():
                if not isinstance(value, str) and not math.isfinite(value):
                    raise ValueError(f"metric {name} is {value} in epoch {row.get('epoch')}, seed {row.get('seed')}")
        _append(self.path / METRICS, rows)

    def metrics_offset(self) -> int:
        """Bytes in metrics.jsonl."""
        file = self.path / METRICS
        return file.stat().st_size if file.exists() else 0

    def truncate_metrics(self, offset: int) -> None:
        """Remove everything after the first `offset` bytes of metrics.jsonl. Raises UserError if it has fewer bytes."""
        file = self.path / METRICS
        size = self.metrics_offset()
        if size < offset:
            raise UserError(f"{file} has {size} bytes, but had {offset} at its checkpoint; restore the whole file")
        if size > offset:
            with file.open("r+b") as opened:
                opened.truncate(offset)
                os.fsync(opened.fileno())

    def read_metrics(self) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl without an incomplete last line. Raises UserError for any other invalid line."""
        return _read_lines(self.path / METRICS)

    def append_events(self, events: list[dict[str, Any]], host: int = 0) -> None:
        """Append events (from `event_of`) to events.jsonl; hosts other than the first have their own files."""
        _append(self.path / (EVENTS if host == 0 else f"events.host-{host}.jsonl"), events)

    def read_events(self) -> list[dict[str, Any]]:
        """The events of the first host, read as in `read_metrics`."""
        return _read_lines(self.path / EVENTS)


def event_of(kind: str, **fields: Any) -> dict[str, Any]:
    """An event at the present time: time (ISO 8601, UTC), kind (one of KINDS), `fields`."""
    if kind not in KINDS:
        raise ValueError(f"an event's kind is one of {', '.join(KINDS)}, got {kind!r}")
    return {"time": datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds"), "kind": kind, **fields}


def write_file(path: Path, data: bytes) -> None:
    """Write the file `path` in one step: readers see the old file or the new one, also after a crash."""
    path = expanded(path)
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    durable.sync(path.parent)


def new_figure(width: float | int, height: float | int) -> Any:
    """A matplotlib figure of this size in inches. It needs no backend, so MPLBACKEND does not matter."""
    figures = import_despite("MPLBACKEND", None, "matplotlib.figure")
    return figures.Figure(figsize=(width, height), dpi=120, layout="constrained")


def write_figure(path: Path, figure: Any) -> None:
    """Write a matplotlib figure to `path` as a PNG, as `write_file` does."""
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    write_file(path, picture.getvalue())


def versions() -> dict[str, str]:
    """Versions of Python and of the installed `PACKAGES`."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def environment(command: str | None = None) -> dict[str, Any]:
    """Versions, machine, source commit and command line of this process; unknown entries are omitted. A given `command` is
    recorded instead of the process's own words and paths."""
    return {
        "versions": versions(),
        "platform": platform.platform(),
        "backend": jax.default_backend(),
        "devices": [{"id": d.id, "kind": d.device_kind, "platform": d.platform} for d in jax.devices()],
        "float64": precision.is_float64(),
        "cpu_count": os.cpu_count(),
        "processor": _processor(),
        **_source(Path(__file__).parents[1]),
        **({"command": sys.argv, **calling.recorded()} if command is None else {"command": command}),
    }


def _processor() -> str:
    file = Path("/proc/cpuinfo")
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _source(package: Path) -> dict[str, Any]:
    """Commit of the git checkout of `package`, and whether the package differs from it; {} outside of a checkout."""
    if _git(package, "ls-files", "--error-unmatch", "__init__.py") is None:
        return {}
    commit = _git(package, "rev-parse", "HEAD")
    changes = _git(package, "status", "--porcelain", "--", ".")
    return {} if commit is None or changes is None else {"commit": commit, "dirty": changes != ""}


def _git(folder: Path, *arguments: str) -> str | None:
    """The output of git; None if it fails or is not installed."""
    try:
        done = subprocess.run(
            ["git", *arguments],
            cwd=folder,
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=20,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _try_writing(path: Path) -> None:
    probe = path / ".probe"
    try:
        probe.write_bytes(b"probe")
        probe.unlink()
    except OSError as error:
        raise UserError(f"{path} cannot be written to ({error.strerror}); choose another folder for the run") from None


def _append(file: Path, rows: list[dict[str, Any]]) -> None:
    """Append lines, after removing an incomplete last line."""
    data = "".join(json.dumps(row, allow_nan=False, default=lambda x: x.item()) + "\n" for row in rows).encode()
    with file.open("a+b", buffering=0) as opened:
        size = _whole_lines(opened)
        opened.truncate(size)
        try:
            if opened.write(data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file))
            os.fsync(opened.fileno())
        except OSError:
            # Write all rows or none, so that writing can be retried.
            opened.truncate(size)
            raise


def _whole_lines(opened: BinaryIO) -> int:
    """Bytes up to the last newline."""
    size = opened.seek(0, os.SEEK_END)
    opened.seek(max(size - 1, 0))
    if opened.read() in (b"", b"\n"):
        return size
    opened.seek(0)
    return opened.read().rfind(b"\n") + 1


def _read_lines(file: Path) -> list[dict[str, Any]]:
    if not file.exists():
        return []
    lines = file.read_bytes().split(b"\n")
    torn = lines.pop()  # The text after the last newline.
    rows = []
    for i, line in enumerate(lines):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if isinstance(row, dict):
            rows.append(row)
        elif i < len(lines) - 1 or torn:
            raise UserError(f"{file}, line {i + 1} is not a JSON object; remove the line")
    return rows
