"""Presets: published and recommended settings of a method, as data.

A method's presets lie in a YAML file beside its module, such as `mbpo.yaml`. Each entry has a name and these fields:

    paper-walker2d:
      source: arXiv 1906.08253, table 1     where the numbers come from, and what differs
      steps: 300_000                        environment steps of a run unless it asks for others
      tasks: [Walker2d-v5]                  tasks whose default it is; the first entry is the default of all others
      extends: paper-hopper                 the preset that it changes; without it, the defaults of the method's config
      settings:                             what it changes, nested as in a run's config.yaml
        agent: {target_entropy: -3.0}

A preset inherits the source and the steps of the one that it extends, but not its tasks; the source of last resort is the
file's name. A user's own file may hold one
entry without a name, which is then called as the file is, or several with names; its entries may extend the method's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from annotated_types import Ge

from jaxmbrl.core.config import UserError, closest, from_dict, merged, read_yaml, to_dict


class Preset(NamedTuple):
    """Settings under a name."""

    config: Any
    source: str
    """Where the numbers come from, and what differs."""
    steps: int
    """Environment steps of a run unless it asks for others."""
    tasks: tuple[str, ...] = ()
    """The tasks whose default it is."""


@dataclass(frozen=True)
class Entry:
    """A preset as it stands in a file."""

    extends: str | None = None
    source: str | None = None
    steps: Annotated[int, Ge(1)] | None = None
    tasks: tuple[str, ...] = ()
    settings: Any = None


def default_for(presets: Mapping[str, Any], task: str) -> str:
    """Name of the preset that `task` gets when none is asked for: the one that lists it, else the first."""
    return next((name for name, preset in presets.items() if task in preset.tasks), next(iter(presets)))


def read(file: str | Path, known: Mapping[str, Preset] | None = None) -> dict[str, Entry]:
    """The entries of a file by name, with the source and steps that they inherit; settings are neither merged nor checked.
    They may extend each other and the presets `known`.

    Raises UserError, naming file, preset and field, for whatever is missing, unknown or of the wrong type.
    """
    values = read_yaml(file)
    if not isinstance(values, Mapping) or not values:
        raise UserError(f"{file} must be a mapping from names of presets to their fields")
    if set(values) & set(_FIELDS) or not all(isinstance(entry, Mapping) for entry in values.values()):
        values = {Path(file).stem: values}
    entries = {str(name): _entry(f"{file}: preset '{name}'", entry) for name, entry in values.items()}
    return {name: _inherited(file, name, entries, known or {}) for name in entries}


def load(file: str | Path, config: type, known: Mapping[str, Preset] | None = None) -> dict[str, Preset]:
    """The presets of a file, for a method whose settings are a `config`. They may extend each other and those `known`.

    Raises UserError, naming file, preset and field, for whatever is missing, unknown, of the wrong type or out of range.
    """
    known = known or {}
    entries = read(file, known)
    defaults = to_dict(config())

    def settings(name: str) -> dict[str, Any]:
        if name not in entries:
            return to_dict(known[name].config)
        entry = entries[name]
        return merged(defaults if entry.extends is None else settings(entry.extends), entry.settings or {})

    found = {}
    for name, entry in entries.items():
        assert entry.source is not None and entry.steps is not None
        try:
            chosen: Any = from_dict(config, settings(name), "settings.")
        except UserError as error:
            raise UserError(f"{file}: preset '{name}': {error}") from None
        found[name] = Preset(chosen, entry.source, entry.steps, entry.tasks)
    return found


_FIELDS = tuple(field.name for field in fields(Entry))


def _entry(place: str, values: Any) -> Entry:
    """One entry, its own fields checked."""
    try:
        entry = from_dict(Entry, values)
    except UserError as error:
        raise UserError(f"{place}: {error}") from None
    if entry.settings is not None and not isinstance(entry.settings, Mapping):
        raise UserError(f"{place}: settings must be a mapping from fields to values, got {entry.settings!r}")
    return entry


def _inherited(file: str | Path, name: str, entries: Mapping[str, Entry], known: Mapping[str, Preset]) -> Entry:
    """The entry `name` with the source and steps that it inherits."""
    source, steps = entries[name].source, entries[name].steps
    trail = [name]
    while (base := entries[trail[-1]].extends) is not None:
        if base in trail:
            raise UserError(f"{file}: preset '{name}' extends itself, by way of {' and '.join(trail)}")
        found = entries.get(base, known.get(base))
        if found is None:
            names = {*entries, *known} - {trail[-1]}
            raise UserError(f"{file}: preset '{trail[-1]}' extends an unknown preset '{base}'; {closest(base, names)}")
        source, steps = source or found.source, steps or found.steps
        if base not in entries:
            break
        trail.append(base)
    if steps is None:
        raise UserError(f"{file}: preset '{name}': steps is missing: give it a value")
    return replace(entries[name], source=source or str(file), steps=steps)
