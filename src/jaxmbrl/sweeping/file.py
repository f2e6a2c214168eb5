"""Read the file of a sweep into a list of runs.

The file is YAML. It contains the fields of a run (`training.programs.RunConfig`), with those of the algorithm's config
under `settings`, nested or dotted, and also

grid    fields and a list of values for each: a run for each combination
runs    a list of further runs, each a mapping of fields that replace the common ones (a file may be this list alone)
hyper   traced hyperparameters and a list of values for each: all their combinations train in one program
out     the folder of the sweep
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jaxmbrl import algorithms
from jaxmbrl.core import hints
from jaxmbrl.core.config import UserError, closest, to_dict
from jaxmbrl.core.places import expanded
from jaxmbrl.core.plain_yaml import read_yaml
from jaxmbrl.sweeping import naming
from jaxmbrl.sweeping.folder import SweepFolder
from jaxmbrl.sweeping.naming import RunRequest
from jaxmbrl.training.programs import RunConfig

OF_FILES = ("data_digest", "demonstrations_digest", "demonstrations_rows")
"""Fields of a run that its files of transitions determine."""
FIELDS = tuple(field.name for field in dataclasses.fields(RunConfig) if field.name not in OF_FILES)
"""Fields of a run that the file of a sweep may contain."""
NESTED = ("settings", "checkpoint")
"""Fields of a run that have fields of their own."""
MOST_RUNS = 10_000
"""Largest number of runs in a sweep."""


class Sweep(NamedTuple):
    """The contents of the file of a sweep."""

    file: Path
    folder: SweepFolder
    runs: list[RunRequest]


def read(file: str | Path, out: str | Path | None = None) -> Sweep:
    """The sweep that `file` describes. Its folder is `out`, or else the one that the file names, or else runs/NAME with the
    name of the file.

    Raises UserError if the file cannot be read, is not YAML, or does not have the form of a sweep. `plan.checked` checks
    the values of the fields.
    """
    file = expanded(file)
    contents = read_yaml(file)
    try:
        common = _mapping({"runs": contents} if isinstance(contents, list) else contents, "a sweep")
        own = common.pop("out", None)
        if not isinstance(own, str | None) or own == "":
            raise UserError(f"out must be the name of a folder, got {own!r}")
        runs = expand(common)
    except UserError as error:
        raise UserError(f"{file}: {error}") from None
    return Sweep(file, SweepFolder(expanded(out or own or Path("runs", file.stem))), runs)


def expand(common: Mapping[str, Any]) -> list[RunRequest]:
    """The runs that the fields of a file describe, in order. Raises UserError if they do not have the form of a sweep."""
    common = dict(common)
    known = _settings(common)
    grid = _lists(_flat(_mapping(common.pop("grid", {}), "grid"), "grid", known))
    explicit, hyper = common.pop("runs", []), _mapping(common.pop("hyper", {}), "hyper")
    if not isinstance(explicit, list):
        raise UserError(f"runs must be a list of mappings, got {explicit!r:.60}")
    base = _flat(common, "", known)
    count = math.prod(len(values) for values in grid.values()) + len(explicit)
    if count > MOST_RUNS:
        raise UserError(f"a sweep has at most {MOST_RUNS:,} runs, this would have {count:,}")
    changes: list[tuple[str | None, dict[str, Any], dict[str, Any]]] = []
    if grid or not explicit:
        for values in itertools.product(*grid.values()):
            changes.append((None, _flat(dict(zip(grid, values, strict=True)), "a value of grid", known), {}))
    for i, run in enumerate(explicit):
        given = _mapping(run, f"runs[{i}]")
        name, traced = given.pop("name", None), _mapping(given.pop("hyper", {}), f"runs[{i}].hyper")
        changes.append((naming.given(name, f"runs[{i}].name"), _flat(given, f"runs[{i}]", known), traced))
    runs = [
        RunRequest(name or naming.derived(base | change, change, traced), base | change, {**hyper, **traced})
        for name, change, traced in changes
    ]
    return naming.distinct(runs, [name is not None for name, _, _ in changes])


def find(sweep: Sweep, name: str) -> RunRequest:
    """The run called `name`. Raises UserError if there is none."""
    for run in sweep.runs:
        if run.name == name:
            return run
    raise UserError(f"{sweep.file} has no run '{name}'; {closest(name, [run.name for run in sweep.runs])}")


def _mapping(values: Any, what: str) -> dict[str, Any]:
    if not isinstance(values, Mapping):
        raise UserError(
            f"{what} must be a mapping from fields to values, got {'nothing' if values is None else repr(values):.60}"
        )
    for name in values:
        if not isinstance(name, str):
            raise UserError(f"a field of {what} must be text, got {name!r:.60}")
    return dict(values)


def _settings(common: Mapping[str, Any]) -> dict[str, Any]:
    """The nested settings of the first algorithm that a file names, for hints; {} if it names none that is known."""
    grid, runs = common.get("grid"), common.get("runs")
    listed = grid.get("algorithm") if isinstance(grid, Mapping) else None
    first = runs[0].get("algorithm") if isinstance(runs, list) and runs and isinstance(runs[0], Mapping) else None
    named = common.get("algorithm") or (listed[0] if isinstance(listed, list) and listed else first)
    if not isinstance(named, str) or named not in algorithms.METHODS:
        return {}
    return to_dict(algorithms.preset(named, str(common.get("env")), None)[1])


def _flat(values: Mapping[str, Any], where: str, settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Fields by dotted path. Raises UserError, with a hint from the nested `settings`, for a field that no run has."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        path = prefix + str(name)
        _check_path(path, f"{where}.{path}".removeprefix("."), settings)
        if path.split(".")[0] in NESTED and isinstance(value, Mapping):
            found |= _flat(value, where, settings, f"{path}.")
        elif path == "settings" and not (where == "grid" and isinstance(value, list)):
            raise UserError(f"{where}.{path}".removeprefix(".") + f" must be a mapping, got {value!r:.60}")
        else:
            found[path] = value
    return found


def _check_path(path: str, shown: str, settings: Mapping[str, Any]) -> None:
    """Raise UserError if a run, of an algorithm with these nested `settings`, has no field at `path`."""
    top, _, rest = path.partition(".")
    if top in NESTED or (top in FIELDS and not rest):
        return
    if top == "hyper":
        raise UserError(f"unknown field '{shown}'; the values of hyper train in one program: list them under hyper itself")
    if top in FIELDS:
        raise UserError(f"unknown field '{shown}': {top} has no fields")
    known = [*FIELDS, "grid", "runs", "hyper", "out", "name"] if "." not in shown else FIELDS
    raise hints.unknown_in_sweep(path, shown, known, settings)


def _lists(grid: dict[str, Any]) -> dict[str, list[Any]]:
    for path, values in grid.items():
        if not isinstance(values, list) or not values:
            raise UserError(f"grid.{path} must be a list of values, got {values!r:.60}")
    return grid
