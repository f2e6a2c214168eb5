"""Read run folders, without writing to them, and group their seeds by settings."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxmbrl import algorithms
from jaxmbrl.core.config import UserError, to_dict
from jaxmbrl.core.places import expanded
from jaxmbrl.sweeping import status
from jaxmbrl.training import programs
from jaxmbrl.training.run_folder import CONFIG, RunFolder

Rows = list[dict[str, Any]]
FREE = ("seed", "seeds", "preset", "data", *programs.MAY_CHANGE)
"""Fields in which runs of one group may differ."""


class Run(NamedTuple):
    """The contents of one run's folder."""

    path: Path
    config: dict[str, Any]
    """config.yaml as plain values, without checks, so that runs of older versions can be read."""
    rows: Rows
    events: list[dict[str, Any]]
    """Events of all hosts, sorted by time."""
    environment: dict[str, Any]
    status: status.RunStatus
    damaged: tuple[str, ...]
    """Damaged checkpoints, which were set aside."""

    @property
    def seeds(self) -> list[int]:
        """The seeds of the run."""
        first = int(self.config.get("seed") or 0)
        return list(range(first, first + int(self.config.get("seeds") or 1)))


class Seed(NamedTuple):
    """One seed of one run."""

    run: int
    """Index of the run."""
    seed: int
    name: str
    """Its name on the page."""
    rows: Rows
    """Its rows, sorted by steps."""


class Group(NamedTuple):
    """Seeds with the same settings on the same task, from one or several runs."""

    label: str
    algorithm: str
    env: str
    runs: tuple[int, ...]
    """Indices of its runs."""
    seeds: tuple[Seed, ...]


class Gathered(NamedTuple):
    """The data of a report."""

    runs: list[Run]
    groups: list[Group]
    absent: list[status.RunStatus]
    """Runs of a sweep that have not started."""


def gather(paths: Sequence[str | Path]) -> Gathered:
    """Read the runs in `paths`: folders of runs, of sweeps, or with runs in them.

    Nothing is written, and a run may be training meanwhile. Raises UserError if a path is none of these, or cannot be
    read.
    """
    found: list[Run] = []
    absent: list[status.RunStatus] = []
    seen: set[Path] = set()
    for path in map(expanded, paths):
        single = (path / CONFIG).is_file()
        for found_status in status.of_folder(path):
            folder = path if single else path / found_status.name
            if folder.resolve() in seen:
                continue
            seen.add(folder.resolve())
            if (folder / CONFIG).is_file():
                found.append(read(folder, found_status))
            else:
                absent.append(found_status)
    if not found:
        raise UserError(f"no run in {', '.join(map(str, paths))} has started; make the report once one has")
    return Gathered(found, group(found), absent)


def read(path: Path, of: status.RunStatus) -> Run:
    """The contents of the run folder `path`. Raises UserError if it cannot be read."""
    folder = RunFolder.open(path)
    config = folder.read_config()
    for name in ("algorithm", "env", "settings", "steps"):
        if name not in config:
            raise UserError(f"{path / CONFIG} is not a run's: it lacks {name}")
    for name, least in (("seed", 0), ("seeds", 1)):
        value = config.get(name, least)
        if not isinstance(value, int) or value < least:
            raise UserError(f"{path / CONFIG}: {name} must be a whole number of at least {least}, got {value!r}")
    rows = folder.read_metrics()
    for row in rows:
        if not all(isinstance(row.get(name), int | float) for name in ("env_steps", "seed", "wall_time")):
            raise UserError(f"{path / 'metrics.jsonl'} holds a row without env_steps, seed or wall_time; remove the line")
    damaged = sorted(file.relative_to(path).as_posix() for file in folder.checkpoints.rglob("damaged-*"))
    return Run(path, config, rows, _events(folder), folder.read_environment(), of, tuple(damaged))


def _events(folder: RunFolder) -> list[dict[str, Any]]:
    """Events of all hosts, sorted by time."""
    found = folder.read_events()
    for file in sorted(folder.path.glob("events.host-*.jsonl")):
        with contextlib.suppress(ValueError, OSError):
            lines = file.read_bytes().split(b"\n")[:-1]
            found += [event for event in map(json.loads, lines) if isinstance(event, dict)]
    return sorted(found, key=lambda event: str(event.get("time", "")))


def group(runs: Sequence[Run]) -> list[Group]:
    """The seeds of `runs`, grouped by settings, in order of first appearance. The settings include traced hyperparameters
    that differ from seed to seed."""
    members: dict[str, list[tuple[int, int]]] = {}
    settings: dict[str, dict[str, Any]] = {}
    for i, run in enumerate(runs):
        hyper = run.environment.get("hyper")
        hyper = hyper if isinstance(hyper, dict) else {}
        leaves = programs.leaves(run.config)
        own = {name: value for name, value in leaves.items() if not _free(name)}
        for k, seed in enumerate(run.seeds):
            traced = {name: values[k] for name, values in hyper.items() if isinstance(values, list) and k < len(values)}
            whole = own | {f"hyper.{name}": value for name, value in traced.items()}
            key = json.dumps(whole, sort_keys=True, default=str)
            members.setdefault(key, []).append((i, seed))
            settings[key] = whole
    labels = _labels(runs, members, settings)
    by_seed = [_by_seed(run.rows) for run in runs]
    found = []
    for key, own_seeds in members.items():
        indices = tuple(dict.fromkeys(i for i, _ in own_seeds))
        names = [str(seed) for _, seed in own_seeds]
        seeds = []
        for (i, seed), name in zip(own_seeds, names, strict=True):
            clear = name if names.count(name) == 1 else f"{name} of {run_name(runs, i)}"
            seeds.append(Seed(i, seed, clear, by_seed[i].get(seed, [])))
        own = settings[key]
        found.append(Group(labels[key], str(own["algorithm"]), str(own["env"]), indices, tuple(seeds)))
    return found


def _free(name: str) -> bool:
    return any(name == field or name.startswith(f"{field}.") for field in FREE)


def _by_seed(rows: Rows) -> dict[int, Rows]:
    found: dict[int, Rows] = {}
    for row in sorted(rows, key=lambda row: row["env_steps"]):
        found.setdefault(row["seed"], []).append(row)
    return found


def _labels(
    runs: Sequence[Run], members: dict[str, list[tuple[int, int]]], settings: dict[str, dict[str, Any]]
) -> dict[str, str]:
    """A short name for each group: its algorithm, and the settings in which groups of that algorithm differ."""
    found = {}
    for key, own in settings.items():
        mates = [other for other in settings.values() if all(other[name] == own[name] for name in ("algorithm", "env"))]
        names = sorted({name for other in mates for name in {*own, *other} if own.get(name) != other.get(name)})
        folders = list(dict.fromkeys(run_name(runs, i) for i, _ in members[key]))
        if len(names) > 3:
            found[key] = f"{own['algorithm']} ({', '.join(folders)})"
            continue
        differing = [f"{name.removeprefix('settings.').removeprefix('hyper.')} {_word(own.get(name))}" for name in names]
        found[key] = ", ".join([str(own["algorithm"]), *differing])
    # On another task a group may have the same label.
    place = {key: (settings[key]["env"], label) for key, label in found.items()}
    counts, numbers = Counter(place.values()), Counter[tuple[str, str]]()
    for key, label in found.items():
        if counts[place[key]] > 1:
            numbers[place[key]] += 1
            found[key] = f"{label} ({numbers[place[key]]})"
    return found


def run_name(runs: Sequence[Run], index: int) -> str:
    """The name of a run's folder, or its path if several runs have that name."""
    names = [run.path.absolute().name for run in runs]
    return names[index] if names.count(names[index]) == 1 else str(runs[index].path)


def _word(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else "none" if value is None else str(value)


def differences(config: dict[str, Any]) -> list[tuple[str, Any, Any]] | None:
    """(field, value in the preset, value in the run) of the settings that differ from the run's preset; None if the preset
    is unknown."""
    try:
        method = algorithms.get(str(config.get("algorithm")))
        preset = method.presets[str(config.get("preset"))]
    except (UserError, KeyError):
        return None
    settings = config["settings"] if isinstance(config["settings"], dict) else {}
    due, own = programs.leaves(to_dict(preset.config)), programs.leaves(settings)
    due["steps"], own["steps"] = preset.steps, config["steps"]
    return [(name, due.get(name), own.get(name)) for name in [*due, *(own.keys() - due)] if due.get(name) != own.get(name)]
