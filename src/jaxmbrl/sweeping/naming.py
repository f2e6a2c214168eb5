"""The names of the runs of a sweep. The folder of a run has the same name."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jaxmbrl.core.config import UserError

LONGEST_NAME = 120


class RunRequest(NamedTuple):
    """A run as the file of a sweep describes it, not checked yet."""

    name: str
    fields: dict[str, Any]
    """Values by dotted path."""
    hyper: dict[str, Any]


def given(name: Any, where: str) -> str | None:
    """A name from the file. Raises UserError, with its place `where`, if it cannot be the name of a folder."""
    if name is None:
        return None
    if not isinstance(name, str) or not re.fullmatch(r"[\w=+,][\w.=+,-]*", name) or len(name) > LONGEST_NAME:
        raise UserError(f"{where} must be the name of a folder: letters, digits and any of _.=+,- ; got {name!r:.60}")
    return name


def derived(fields: Mapping[str, Any], change: Mapping[str, Any], hyper: Mapping[str, Any]) -> str:
    """The name of a run to which the file gives none: its algorithm and task, and the fields that it changes."""
    parts = [_text(fields[field]) for field in ("algorithm", "env") if field in fields] or ["run"]
    changed = {**change, **{f"hyper.{name}": value for name, value in hyper.items()}}
    for path, value in changed.items():
        if path not in ("algorithm", "env"):
            parts.append(f"{path.removeprefix('settings.')}={_text(value)}")
    return re.sub(r"[^\w.=+,-]+", "-", "-".join(parts), flags=re.ASCII).lstrip(".-") or "run"


def distinct(runs: Sequence[RunRequest], named: Sequence[bool]) -> list[RunRequest]:
    """The runs with distinct names. A derived name gets a digest if it is too long, or if another run has the same name
    because characters that a folder name may not have were replaced.

    Raises UserError if two runs are the same, or were given the same name.
    """
    seen: dict[str, RunRequest] = {}
    names = [run.name for run in runs]
    for run, is_given in zip(runs, named, strict=True):
        name = run.name
        if not is_given and (names.count(name) > 1 or len(name) > LONGEST_NAME):
            digest = hashlib.sha256(repr((sorted(run.fields.items()), sorted(run.hyper.items()))).encode()).hexdigest()
            name = f"{name[: LONGEST_NAME - 9]}-{digest[:8]}"
        if name in seen:
            raise UserError(f"two runs are {'called' if is_given else 'the same:'} {name}")
        seen[name] = run._replace(name=name)
    return list(seen.values())


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(_text(entry) for entry in value)
    return json.dumps(value) if isinstance(value, bool | float | None) else str(value)
