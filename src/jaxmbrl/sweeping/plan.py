"""Check all runs of a sweep before any of them starts."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Mapping
from typing import Any

from jaxmbrl.core.config import UserError, check, from_dict, to_dict
from jaxmbrl.sweeping.file import NESTED, Sweep
from jaxmbrl.sweeping.folder import SweepFolder
from jaxmbrl.sweeping.naming import RunRequest
from jaxmbrl.sweeping.runs import Run, check_same
from jaxmbrl.training import experts, programs
from jaxmbrl.training.programs import RunConfig

TEXTS = ("algorithm", "env", "preset", "data", "demonstrations")
"""Fields of a run that must be text."""


def checked(run: RunRequest, folder: SweepFolder) -> Run:
    """The run with its config checked. Whether its parts fit together is checked later, when they are built.

    Each combination of the traced hyperparameters gets the run's number of seeds: with 2 seeds, the first combination has
    seeds 0 and 1, and the second has seeds 2 and 3. Raises UserError if a field is missing, unknown or out of range.
    """
    fields = dict(run.fields)
    settings, kept = (
        {path.removeprefix(f"{nested}."): fields.pop(path) for path in run.fields if path.startswith(f"{nested}.")}
        for nested in NESTED
    )
    if kept:
        fields["checkpoint"] = kept
    for name in TEXTS:
        if name in fields and not isinstance(fields[name], str | None):
            raise UserError(f"{name} must be text, got {fields[name]!r:.60}")
    for name in TEXTS[:2]:
        if fields.get(name) is None:
            raise UserError(f"{name} is missing: give it a value")
    steps = fields.pop("steps", None)
    config = programs.configure(settings=settings, call="sweep", **fields)
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
    """(the valid runs, the errors of the other runs by name)."""
    runs: list[Run] = []
    wrong: dict[str, str] = {}
    seen: dict[str, str] = {}
    built: dict[str, str | None] = {}
    for described in sweep.runs:
        try:
            run = checked(described, sweep.folder)
            first = seen.setdefault(json.dumps([to_dict(run.config), run.hyper]), run.name)
            if first != run.name:
                raise UserError(f"it is the same as {first}")
            # Building takes seconds for tasks with contacts, so runs that differ only in the seed are built once.
            alike = json.dumps(to_dict(run.config) | {"seed": 0})
            if alike not in built:
                built[alike] = _problem(run.config)
            problem = built[alike]
            if problem is not None:
                raise UserError(problem)
            check_same(run)
        except UserError as error:
            wrong[described.name] = str(error)
        else:
            runs.append(run)
    return runs, wrong


def _problem(config: RunConfig) -> str | None:
    """The error if the parts of a run do not fit together; None if they do."""
    try:
        experts.build(config)
    except UserError as error:
        return str(error)
    return None


def _combinations(hyper: Mapping[str, Any]) -> list[dict[str, float]]:
    """All combinations of the values of traced hyperparameters; empty if there are none."""
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
        raise UserError(f"hyper.{name} contains the same number twice, got {values!r:.60}")
    return found
