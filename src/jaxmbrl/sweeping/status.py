"""The states of runs, read from their folders without writing to them."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxmbrl.core.config import UserError
from jaxmbrl.core.places import expanded
from jaxmbrl.sweeping.folder import INDEX, LOGS, SweepFolder
from jaxmbrl.training import checkpoint
from jaxmbrl.training.run_folder import CONFIG, EVENTS, METRICS, RunFolder

STATES = ("running", "waiting", "stopped", "finished", "failed", "invalid")
FAILURES = ("died", "failed")
"""Kinds of notes that report a failure."""
RETURNS = ("eval/return", "train/return", "data/return")
"""Metrics of a policy's performance, in order of preference."""
TAIL = 1 << 22
"""Number of bytes that are read at the end of a file of metrics."""


class RunStatus(NamedTuple):
    """The state of a run."""

    name: str
    state: str
    """One of STATES."""
    env_steps: int
    """Environment steps of each seed so far."""
    total_steps: int | None
    """Steps of the whole run, in whole epochs; None if not known yet."""
    seeds: int | None
    frozen: tuple[int, ...]
    """Seeds that were frozen because a value was not finite."""
    metric: str | None
    """The metric of `value`: the first of RETURNS that the run has."""
    value: float | None
    """The last mean of the metric over seeds."""
    active: float | None
    """Time of the run's last write, in seconds since 1970."""
    error: str | None
    """Why the run failed or is invalid."""
    ended: bool
    """Whether the run is complete: all steps are done, or every seed is frozen."""


def look(path: Path, log: tuple[str, str] = ("", "")) -> RunStatus:
    """The state of the run in the folder `path`. `log` is the last note in its log, if it belongs to a sweep."""
    folder = RunFolder(path)
    running = folder.is_locked()
    if not (path / CONFIG).is_file():
        state = "running" if running else "failed" if log[0] in FAILURES else "waiting"
        error = log[1] if state == "failed" else None
        return RunStatus(path.name, state, 0, None, None, (), None, None, None, error, False)
    total, seeds, problem = _size(folder)
    rows, events = _last_lines(path / METRICS), _last_lines(path / EVENTS)
    steps = max((row["env_steps"] for row in rows if isinstance(row.get("env_steps"), int)), default=0)
    frozen = tuple(sorted({row["seed"] for row in rows if row.get("frozen") and row.get("env_steps") == steps}))
    metric, value = _value(rows)
    last = events[-1] if events else {}
    saved = max([*checkpoint.steps(folder.checkpoints), _ended_at(last)])
    done = (total is not None and saved >= total) or _reached(folder, last)
    dead = last.get("kind") == "end" and bool(seeds) and len(frozen) == seeds
    state, error = "stopped", None
    if running:
        state = "running"
    elif problem is not None:
        state, error = "invalid", problem
    elif dead:
        warnings = [str(event.get("text")) for event in events if event.get("kind") == "warning"]
        state, error = "failed", warnings[-1] if warnings else "no seed reached the end"
    elif done:
        state = "finished"
    elif log[0] in FAILURES:
        state, error = "failed", log[1]
    times = [file.stat().st_mtime for name in (CONFIG, METRICS, EVENTS) if (file := path / name).exists()]
    active = max(times, default=None)
    return RunStatus(path.name, state, max(steps, saved), total, seeds, frozen, metric, value, active, error, done or dead)


def has_ended(found: RunStatus, total_steps: int | None) -> bool:
    """Whether nothing is left to do for a run in the state `found`: it has ended, and `total_steps`, in whole epochs, are
    no more than it was started with. A run that reached its return, or without a healthy seed, is not continued."""
    whole = found.total_steps is not None and found.env_steps >= found.total_steps
    extends = found.state == "finished" and whole and (total_steps or 0) > (found.total_steps or 0)
    return found.ended and not extends


def of_folder(path: str | Path) -> list[RunStatus]:
    """The states of all runs in the folder `path`: first the runs of its sweep in their order, then others by name, then
    those of the sweeps inside, as SWEEP/RUN.

    Raises UserError if there is no folder, or no run in it.
    """
    path = expanded(path)
    if not path.is_dir():
        raise UserError(f"there is no folder {path}; give the folder of a sweep, or of runs")
    if (path / CONFIG).is_file():
        return [look(path)._replace(name=path.absolute().name)]
    sweep = SweepFolder(path)
    names, invalid = sweep.read_index()
    others = [file.parent.name for file in path.glob(f"*/{CONFIG}")]
    others += [log.stem for log in (path / LOGS).glob("*.log")]
    found = []
    for name in [*names, *sorted({*others} - {*names})]:
        status = look(sweep.run(name), sweep.last_note(name))
        if name in invalid and status.state != "running":
            status = status._replace(state="invalid", error=invalid[name])
        if sweep.log(name).exists():
            status = status._replace(active=max(status.active or 0.0, sweep.log(name).stat().st_mtime))
        found.append(status)
    for index in sorted(path.glob(f"*/{INDEX}")):
        inside = index.parent
        with contextlib.suppress(UserError):
            found += [status._replace(name=f"{inside.name}/{status.name}") for status in of_folder(inside)]
    if not found:
        raise UserError(f"{path} has no runs; give the folder of a sweep, or of runs")
    return found


def table(found: Sequence[RunStatus], now: float | None = None) -> str:
    """The runs as lines of text, with the reason below each failed run."""
    now = time.time() if now is None else now
    head = ("run", "state", "steps", "", "seeds", "return", "last active")
    rows = [_columns(status, now) for status in found]
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    lines = [_line(head, widths)]
    for status, row in zip(found, rows, strict=True):
        lines.append(_line(row, widths))
        if status.error is not None:
            lines.append(f"    {' '.join(status.error.split())}")
    counts = [f"{n} {state}" for state in STATES if (n := sum(status.state == state for status in found))]
    return "\n".join([*lines, "", f"{len(found)} run{'s' if len(found) > 1 else ''}: {', '.join(counts)}"])


def as_json(found: Sequence[RunStatus]) -> str:
    """The runs as a JSON list, on one line."""
    return json.dumps([status._asdict() for status in found], allow_nan=False)


def _columns(status: RunStatus, now: float) -> tuple[str, ...]:
    total = status.total_steps
    steps = f"{status.env_steps:,} of {total:,}" if total is not None else "-"
    share = f"{100 * status.env_steps // total}%" if total else ""
    seeds = "-" if status.seeds is None else str(status.seeds)
    seeds += f" ({len(status.frozen)} frozen)" if status.frozen else ""
    value = "-" if status.value is None else f"{status.value:.1f} ({str(status.metric).partition('/')[0]})"
    age = "-" if status.active is None else _age(max(now - status.active, 0.0))
    return status.name, status.state, steps, share, seeds, value, age


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()


def _age(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"


def _size(folder: RunFolder) -> tuple[int | None, int | None, str | None]:
    """(steps in whole epochs, seeds, error of the config).

    The fields are not checked, so that runs of older versions, or on the user's own tasks, have a status too.
    """
    try:
        config = folder.read_config()
    except UserError as error:
        return None, None, str(error)
    settings = config.get("settings")
    epoch = settings.get("epoch_steps") if isinstance(settings, dict) else None
    steps, seeds = config.get("steps"), config.get("seeds", 1)
    if not isinstance(steps, int) or not isinstance(seeds, int) or not isinstance(epoch, int) or epoch < 1:
        return None, None, f"{folder.path / CONFIG} is not a run's: it lacks steps, seeds or settings.epoch_steps"
    return (steps // epoch if config.get("data") else -(-steps // epoch)) * epoch, seeds, None


def _last_lines(file: Path) -> list[dict[str, Any]]:
    """The objects at the end of a file of JSON lines; incomplete and invalid lines are skipped."""
    try:
        with file.open("rb") as opened:
            start = max(opened.seek(0, 2) - TAIL, 0)
            opened.seek(start)
            lines = opened.read().split(b"\n")
    except OSError:
        return []
    rows = []
    for line in lines[1:] if start else lines:
        with contextlib.suppress(ValueError):
            row = json.loads(line)
            if isinstance(row, dict):
                rows.append(row)
    return rows


def _value(rows: list[dict[str, Any]]) -> tuple[str | None, float | None]:
    """(the first of RETURNS in the rows, its mean over the seeds of the last epoch that has it)."""
    for name in RETURNS:
        having = [row for row in rows if isinstance(row.get(name), int | float)]
        if having:
            last = [row[name] for row in having if row.get("epoch") == having[-1].get("epoch")]
            return name, float(sum(last) / len(last))
    return None, None


def _reached(folder: RunFolder, event: dict[str, Any]) -> bool:
    """Whether the last event is the end of a run that reached its target, which is still the target."""
    value = event.get("reached") if event.get("kind") == "end" else None
    if not isinstance(value, int | float):
        return False
    with contextlib.suppress(UserError):
        target = folder.read_config().get("stop_at_return")
        return isinstance(target, int | float) and value >= target
    return False


def _ended_at(event: dict[str, Any]) -> int:
    steps = event.get("env_steps")
    return steps if event.get("kind") == "end" and isinstance(steps, int) else -1
