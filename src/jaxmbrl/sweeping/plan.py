"""From a sweep's file to its runs: what each is called, what it trains, and where.

The file is YAML: the fields of a run (`training.programs.RunConfig`), those of the algorithm's config below `settings`,
nested or dotted, and besides

grid    fields and the list of each one's values: a run for each combination
runs    a list of further runs, each a mapping of fields over the common ones (a file that is a list holds them alone)
hyper   traced numbers and the list of each one's values: all their combinations train in one program
out     the folder of the sweep
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import itertools
import json
import math
import re
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxmbrl.core.config import UserError, check, closest, from_dict, read_yaml, to_dict
from jaxmbrl.sweeping.folder import SweepFolder
from jaxmbrl.training import checkpoint, programs, runner
from jaxmbrl.training.console import Progress
from jaxmbrl.training.programs import RunConfig
from jaxmbrl.training.run_folder import CONFIG, ENVIRONMENT, EVENTS, RunFolder
from jaxmbrl.training.session import Result
from jaxmbrl.training.stopping import Stopping

FIELDS = tuple(field.name for field in dataclasses.fields(RunConfig) if field.name != "data_digest")
"""Fields of a run that a sweep's file may hold."""
WORDS = ("algorithm", "env", "preset", "data")
"""Those that are text."""
NESTED = ("settings", "checkpoint")
"""Those that hold fields of their own."""
MOST_RUNS = 10_000
"""Runs that a sweep may have."""
LONGEST_NAME = 120
PATIENCE = 120.0
"""Seconds that a run waits for the process that worked on it before, which may be saving yet."""


class Asked(NamedTuple):
    """A run as the file asks for it, not yet checked."""

    name: str
    fields: dict[str, Any]
    """By dotted path."""
    hyper: dict[str, Any]


class Sweep(NamedTuple):
    """A sweep's file, read."""

    file: Path
    folder: SweepFolder
    runs: list[Asked]


class Run(NamedTuple):
    """A run of a sweep, checked."""

    name: str
    path: Path
    config: RunConfig
    hyper: dict[str, list[float]]
    """A value for each seed."""


def read(file: str | Path, out: str | Path | None = None) -> Sweep:
    """The sweep that `file` describes, into the folder `out`, or else the file's own, or else runs/FILE's-name.

    Raises UserError where the file cannot be read, is no YAML, or is not built as a sweep. What its fields hold is for
    `checked` to see.
    """
    file = Path(file)
    held = read_yaml(file)
    try:
        common = _mapping({"runs": held} if isinstance(held, list) else held, "a sweep")
        own = common.pop("out", None)
        if not isinstance(own, str | None) or own == "":
            raise UserError(f"out must be the name of a folder, got {own!r}")
        runs = expand(common)
    except UserError as error:
        raise UserError(f"{file}: {error}") from None
    return Sweep(file, SweepFolder(Path(out or own or Path("runs", file.stem))), runs)


def expand(common: Mapping[str, Any]) -> list[Asked]:
    """The runs that the fields of a file ask for, in order. Raises UserError where they are not built as a sweep."""
    common = dict(common)
    grid = _lists(_flat(_mapping(common.pop("grid", {}), "grid"), "grid"))
    explicit, hyper = common.pop("runs", []), _mapping(common.pop("hyper", {}), "hyper")
    if not isinstance(explicit, list):
        raise UserError(f"runs must be a list of mappings, got {explicit!r:.60}")
    base = _flat(common, "")
    count = math.prod(len(values) for values in grid.values()) + len(explicit)
    if count > MOST_RUNS:
        raise UserError(f"a sweep has at most {MOST_RUNS:,} runs, this would have {count:,}")
    changes: list[tuple[str | None, dict[str, Any], dict[str, Any]]] = []
    if grid or not explicit:
        for values in itertools.product(*grid.values()):
            changes.append((None, _flat(dict(zip(grid, values, strict=True)), "a value of grid"), {}))
    for i, run in enumerate(explicit):
        given = _mapping(run, f"runs[{i}]")
        name, traced = given.pop("name", None), _mapping(given.pop("hyper", {}), f"runs[{i}].hyper")
        changes.append((_given_name(name, f"runs[{i}].name"), _flat(given, f"runs[{i}]"), traced))
    runs = [
        Asked(name or _name(base | change, change, traced), base | change, {**hyper, **traced})
        for name, change, traced in changes
    ]
    return _told_apart(runs, [name is not None for name, _, _ in changes])


def checked(run: Asked, folder: SweepFolder) -> Run:
    """The run, its config checked; whether its parts fit each other is seen where they are built.

    Each combination of its traced numbers has as many seeds as the run was asked to have, and they follow each other: with
    2 seeds, the first combination has seeds 0 and 1 and the second 2 and 3. Raises UserError, in one line.
    """
    fields = dict(run.fields)
    settings, kept = (
        {path.removeprefix(f"{nested}."): fields.pop(path) for path in run.fields if path.startswith(f"{nested}.")}
        for nested in NESTED
    )
    if kept:
        fields["checkpoint"] = kept
    for name in WORDS:
        if name in fields and not isinstance(fields[name], str | None):
            raise UserError(f"{name} must be text, got {fields[name]!r:.60}")
    for name in WORDS[:2]:
        if fields.get(name) is None:
            raise UserError(f"{name} is missing: give it a value")
    steps = fields.pop("steps", None)
    config = programs.configure(settings=settings, **fields)
    if steps is not None:
        config = from_dict(RunConfig, vars(config) | {"steps": steps})
    rows = _combinations(run.hyper)
    if rows:
        config = check(dataclasses.replace(config, seeds=len(rows) * config.seeds))
    each = config.seeds // max(len(rows), 1)
    hyper = {name: [row[name] for row in rows for _ in range(each)] for name in run.hyper}
    programs.hyper_of(hyper, config)
    return Run(run.name, folder.run(run.name), config, hyper)


def check_all(sweep: Sweep) -> tuple[list[Run], dict[str, str]]:
    """The runs that are valid, and what is wrong with those that are not, by name."""
    runs: list[Run] = []
    wrong: dict[str, str] = {}
    seen: dict[str, str] = {}
    built: dict[str, str | None] = {}
    for asked in sweep.runs:
        try:
            run = checked(asked, sweep.folder)
            first = seen.setdefault(json.dumps([to_dict(run.config), run.hyper]), run.name)
            if first != run.name:
                raise UserError(f"it is the same as {first}")
            # Building takes seconds where there are contacts, and does not depend on the seed.
            alike = json.dumps(to_dict(run.config) | {"seed": 0})
            if alike not in built:
                built[alike] = _problem(run.config)
            problem = built[alike]
            if problem is not None:
                raise UserError(problem)
            check_same(run)
        except UserError as error:
            wrong[asked.name] = str(error)
        else:
            runs.append(run)
    return runs, wrong


def _problem(config: RunConfig) -> str | None:
    """Why the parts of a run do not fit."""
    try:
        programs.build(config)
    except UserError as error:
        return str(error)
    return None


def check_same(run: Run) -> None:
    """Raise UserError where the run's folder holds a run that was begun with another config, or what is no run."""
    if not begun(run.path):
        foreign = _foreign(run.path)
        if foreign is not None:
            raise UserError(f"{run.path} is taken (it holds {foreign}); remove it, or choose another out")
        return
    folder = RunFolder.open(run.path)
    held, asked = (programs.leaves(to_dict(config)) for config in (programs.read(folder), run.config))
    for path, value in asked.items():
        before = held.get(path)
        if before != value:
            raise UserError(
                f"{run.path} was begun with {path} {before!r:.60} and the sweep asks for {value!r:.60}; "
                "put that back, or choose another out"
            )
    traced = folder.read_environment().get("hyper") or {}
    for name in sorted({*traced, *run.hyper}):
        before, now = np.asarray(traced.get(name, ()), float), np.asarray(run.hyper.get(name, ()), float)
        if before.shape != now.shape or not np.allclose(before, now, rtol=1e-6, atol=0.0):
            raise UserError(
                f"{run.path} was begun with other values of hyper {name} than the sweep asks for; "
                "put them back, or choose another out"
            )


def begun(path: Path) -> bool:
    """Whether a run was begun in the folder `path`, so far that it can go on or that something would be lost."""
    held = path / CONFIG
    return held.is_file() and (bool(checkpoint.steps(RunFolder(path).checkpoints)) or (path / "metrics.jsonl").exists())


def work(run: Run, progress: Progress, stopping: Stopping | None = None) -> Result:
    """Train the run from its start, or on from where it stopped; it ends early when `stopping` is asked to.

    Raises UserError where its folder holds another run, or another process does not let go of it.
    """
    _wait_for(run.path)
    check_same(run)
    if begun(run.path):
        return runner.resume(run.path, progress=progress, stopping=stopping)
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
    """Which seeds have which traced numbers, a line for each combination."""
    rows = [dict(zip(run.hyper, values, strict=True)) for values in zip(*run.hyper.values(), strict=True)]
    lines, first = [], 0
    for row, same in itertools.groupby(rows):
        last = first + len(list(same)) - 1
        seeds = f"seed {run.config.seed + first}" + (f" to {run.config.seed + last}" if last > first else "")
        lines.append(f"{seeds}: " + ", ".join(f"{name} {value:g}" for name, value in row.items()))
        first = last + 1
    return lines


def _wait_for(path: Path) -> None:
    """Wait while another process has the run."""
    end = time.monotonic() + PATIENCE
    while RunFolder(path).is_locked() and time.monotonic() < end:
        time.sleep(0.1)


def _clear(path: Path) -> None:
    """Remove what a process left that died before the run's first checkpoint."""
    if path.is_dir() and any(path.iterdir()):
        with RunFolder(path).lock():
            shutil.rmtree(path)


def _foreign(path: Path) -> str | None:
    """The name of something in the folder `path` that no run leaves before its first checkpoint."""
    if not path.is_dir():
        return path.name if path.exists() else None
    ours = {".lock", ".probe", "checkpoints", CONFIG, ENVIRONMENT, EVENTS}
    files = [*path.iterdir(), *RunFolder(path).checkpoints.glob("[!.]*")]
    return next((file.name for file in files if file.name not in ours and ".partial-" not in file.name), None)


def _combinations(hyper: Mapping[str, Any]) -> list[dict[str, float]]:
    """All combinations of the traced numbers' values; none where there are no traced numbers."""
    given = {name: _numbers(values, name) for name, values in hyper.items()}
    return [dict(zip(given, row, strict=True)) for row in itertools.product(*given.values())] if given else []


def _numbers(values: Any, name: str) -> list[float]:
    listed = values if isinstance(values, list) else [values]
    try:
        found = [float(value) for value in listed if not isinstance(value, bool | None)]
    except (TypeError, ValueError):
        found = []
    if not found or len(found) != len(listed):
        raise UserError(f"hyper.{name} must be a list of numbers, got {values!r:.60}")
    if len(set(found)) != len(found):
        raise UserError(f"hyper.{name} holds the same number twice, got {values!r:.60}")
    return found


def _mapping(values: Any, what: str) -> dict[str, Any]:
    if not isinstance(values, Mapping):
        raise UserError(f"{what} must be a mapping from fields to values, got {values!r:.60}")
    for name in values:
        if not isinstance(name, str):
            raise UserError(f"a field of {what} must be text, got {name!r:.60}")
    return dict(values)


def _flat(values: Mapping[str, Any], where: str, prefix: str = "") -> dict[str, Any]:
    """Fields by dotted path. Raises UserError for one that no run has."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        path = prefix + str(name)
        _check_path(path, f"{where}.{path}".removeprefix("."))
        if path.split(".")[0] in NESTED and isinstance(value, Mapping):
            found |= _flat(value, where, f"{path}.")
        elif path == "settings" and not (where == "grid" and isinstance(value, list)):
            raise UserError(f"{where}.{path}".removeprefix(".") + f" must be a mapping, got {value!r:.60}")
        else:
            found[path] = value
    return found


def _check_path(path: str, shown: str) -> None:
    """Raise UserError where no run has a field at `path`."""
    top, _, rest = path.partition(".")
    if top in NESTED or (top in FIELDS and not rest):
        return
    if top == "hyper":
        raise UserError(
            f"unknown field '{shown}'; hyper is swept inside of one program: list its values below hyper itself"
        )
    if top in FIELDS:
        raise UserError(f"unknown field '{shown}': {top} has no fields")
    known = [*FIELDS, "grid", "runs", "hyper", "out", "name"] if "." not in shown else FIELDS
    near = difflib.get_close_matches(path, known, n=1, cutoff=0.7)
    told = f"did you mean '{near[0]}'?" if near else f"a field of the algorithm's config is written settings.{path}"
    raise UserError(f"unknown field '{shown}'; {told}")


def _lists(grid: dict[str, Any]) -> dict[str, list[Any]]:
    for path, values in grid.items():
        if not isinstance(values, list) or not values:
            raise UserError(f"grid.{path} must be a list of values, got {values!r:.60}")
    return grid


def _given_name(name: Any, where: str) -> str | None:
    if name is None:
        return None
    if not isinstance(name, str) or not re.fullmatch(r"[\w=+,][\w.=+,-]*", name) or len(name) > LONGEST_NAME:
        raise UserError(f"{where} must be the name of a folder: letters, digits and any of _.=+,- ; got {name!r:.60}")
    return name


def _name(fields: Mapping[str, Any], change: Mapping[str, Any], hyper: Mapping[str, Any]) -> str:
    """A run's name: algorithm and task, and what it changes of the common fields."""
    parts = [_text(fields[field]) for field in ("algorithm", "env") if field in fields] or ["run"]
    changed = {**change, **{f"hyper.{name}": value for name, value in hyper.items()}}
    for path, value in changed.items():
        if path not in ("algorithm", "env"):
            parts.append(f"{path.removeprefix('settings.')}={_text(value)}")
    return re.sub(r"[^\w.=+,-]+", "-", "-".join(parts), flags=re.ASCII).lstrip(".-") or "run"


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(_text(entry) for entry in value)
    return json.dumps(value) if isinstance(value, bool | float | None) else str(value)


def _told_apart(runs: Sequence[Asked], named: Sequence[bool]) -> list[Asked]:
    """The runs with names that differ, also where only signs did that a folder's name may not hold, or where it is cut.

    Raises UserError where two runs are the same, or were given the same name.
    """
    seen: dict[str, Asked] = {}
    spoken = [run.name for run in runs]
    for run, given in zip(runs, named, strict=True):
        name = run.name
        if not given and (spoken.count(name) > 1 or len(name) > LONGEST_NAME):
            digest = hashlib.sha256(repr((sorted(run.fields.items()), sorted(run.hyper.items()))).encode()).hexdigest()
            name = f"{name[: LONGEST_NAME - 9]}-{digest[:8]}"
        if name in seen:
            raise UserError(f"two runs are {'called' if given else 'the same:'} {name}")
        seen[name] = run._replace(name=name)
    return list(seen.values())


def find(sweep: Sweep, name: str) -> Asked:
    """The run called `name`. Raises UserError where there is none."""
    for run in sweep.runs:
        if run.name == name:
            return run
    raise UserError(f"{sweep.file} has no run '{name}'; {closest(name, [run.name for run in sweep.runs])}")
