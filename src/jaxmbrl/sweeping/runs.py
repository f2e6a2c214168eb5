"""One run of a sweep: checks of its folder, and training it."""

from __future__ import annotations

import itertools
import shutil
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxmbrl.core.config import UserError, to_dict
from jaxmbrl.sweeping.file import FIELDS
from jaxmbrl.training import checkpoint, logs, programs, runner
from jaxmbrl.training.console import Progress
from jaxmbrl.training.programs import RunConfig
from jaxmbrl.training.run_folder import CONFIG, ENVIRONMENT, EVENTS, METRICS, RunFolder
from jaxmbrl.training.session import Result
from jaxmbrl.training.stopping import Stopping

PATIENCE = 120.0
"""Seconds to wait for an earlier process of the same run, which may still be saving."""


class Run(NamedTuple):
    """A checked run of a sweep."""

    name: str
    path: Path
    config: RunConfig
    hyper: dict[str, list[float]]
    """A value for each seed."""


def has_started(path: Path) -> bool:
    """Whether a run was started in the folder `path` and has data to resume from, or to lose."""
    saved = bool(checkpoint.steps(RunFolder(path).checkpoints)) or (path / METRICS).exists()
    return (path / CONFIG).is_file() and saved


def check_same(run: Run) -> None:
    """Raise UserError if the run's folder contains a run that was started with another config, or other files."""
    if not has_started(run.path):
        foreign = _foreign(run.path)
        if foreign is not None:
            raise UserError(f"{run.path} is in use (it has {foreign}); remove it, or choose another out")
        return
    folder = RunFolder.open(run.path)
    started, described = (programs.leaves(to_dict(config)) for config in (programs.read(folder), run.config))
    for path, value in described.items():
        before = started.get(path)
        if path == "steps" and isinstance(before, int) and before < value:
            # The run is continued to more steps than it was started with.
            continue
        if before != value and path != "log":
            raise UserError(
                f"{run.path} was started with {path} {before!r:.60} and the sweep asks for {value!r:.60}; "
                "restore it, or choose another out"
            )
    traced = folder.read_environment().get("hyper") or {}
    for name in sorted({*traced, *run.hyper}):
        before, now = np.asarray(traced.get(name, ()), float), np.asarray(run.hyper.get(name, ()), float)
        if before.shape != now.shape or not np.allclose(before, now, rtol=1e-6, atol=0.0):
            raise UserError(
                f"{run.path} was started with other values of hyper {name} than the sweep asks for; "
                "restore them, or choose another out"
            )


def work(run: Run, progress: Progress, stopping: Stopping | None = None) -> Result:
    """Start or resume the run. It ends early when `stopping` is asked to stop.

    Raises UserError if its folder contains another run, or another process keeps writing to it.
    """
    _wait_for(run.path)
    check_same(run)
    if has_started(run.path):
        return runner.resume(run.path, steps=run.config.steps, log=run.config.log, progress=progress, stopping=stopping)
    _clear(run.path)
    config = run.config
    return runner.train(
        config.algorithm,
        config.env,
        **{name: getattr(config, name) for name in FIELDS if name not in ("algorithm", "env")},
        hyper=run.hyper,
        out=run.path,
        progress=progress,
        stopping=stopping,
    )


def traced_lines(run: Run) -> list[str]:
    """The seeds of each combination of traced hyperparameters, one line each."""
    rows = [dict(zip(run.hyper, values, strict=True)) for values in zip(*run.hyper.values(), strict=True)]
    lines, first = [], 0
    for row, same in itertools.groupby(rows):
        last = first + len(list(same)) - 1
        seeds = f"seed {run.config.seed + first}" + (f" to {run.config.seed + last}" if last > first else "")
        lines.append(f"{seeds}: " + ", ".join(f"{name} {value:g}" for name, value in row.items()))
        first = last + 1
    return lines


def _wait_for(path: Path) -> None:
    """Wait while another process writes to the run."""
    end = time.monotonic() + PATIENCE
    while RunFolder(path).is_locked() and time.monotonic() < end:
        time.sleep(0.1)


def _clear(path: Path) -> None:
    """Remove the files of a process that died before the run's first checkpoint."""
    if path.is_dir() and any(path.iterdir()):
        with RunFolder(path).lock():
            shutil.rmtree(path)


def _foreign(path: Path) -> str | None:
    """The name of a file in the folder `path` that a run does not write before its first checkpoint; None if there is
    none."""
    if not path.is_dir():
        return path.name if path.exists() else None
    ours = {".lock", ".probe", "checkpoints", CONFIG, ENVIRONMENT, EVENTS, *logs.PACKAGES}
    files = [*path.iterdir(), *RunFolder(path).checkpoints.glob("[!.]*")]
    return next((file.name for file in files if file.name not in ours and ".partial-" not in file.name), None)
