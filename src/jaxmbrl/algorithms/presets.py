"""Presets: published and recommended settings of a method, as data.

A method's presets are in a YAML file beside its module, such as `mbpo.yaml`. Each entry has a name and these fields:

    paper-walker2d:
      source: arXiv 1906.08253, table 1     where the numbers come from, and what differs
      steps: 300_000                        default number of environment steps of a run
      tasks: [Walker2d-v5]                  tasks with this default preset; all other tasks use the first entry
      extends: paper-hopper                 the preset to start from; without it, the defaults of the method's config
      settings:                             changed fields, nested as in a run's config.yaml
        agent: {target_entropy: -3.0}

A preset inherits the source and the steps of the preset that it extends, but not its tasks. If no source is given, it is
the file's name. A user's own file contains either one entry without a name, which is then named after the file, or several
entries with names. Its entries may extend the method's presets.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from annotated_types import Ge

from jaxmbrl.core.config import UserError, closest, from_dict, merged, to_dict
from jaxmbrl.core.plain_yaml import read_yaml


class Preset(NamedTuple):
    """Named settings of a method."""

    config: Any
    source: str
    """Where the numbers come from, and what differs."""
    steps: int
    """Default number of environment steps of a run."""
    tasks: tuple[str, ...] = ()
    """Tasks with this default preset."""


@dataclass(frozen=True)
class Entry:
    """A preset as written in a file."""

    extends: str | None = None
    source: str | None = None
    steps: Annotated[int, Ge(1)] | None = None
    tasks: tuple[str, ...] = ()
    settings: Any = None


def default_for(presets: Mapping[str, Any], task: str) -> str:
    """Name of the default preset of `task`: the one that lists it, else the first."""
    return next((name for name, preset in presets.items() if task in preset.tasks), next(iter(presets)))


def read(file: str | Path, known: Mapping[str, Preset] | None = None) -> dict[str, Entry]:
    """The entries of a file by name, with inherited sources and steps. Settings are neither merged nor checked. Entries may
    extend each other and the presets `known`.

    Raises UserError, naming file, preset and field, if something is missing, unknown or of the wrong type.
    """
    values = read_yaml(file)
    if not isinstance(values, Mapping) or not values:
        raise UserError(f"{file} must be a mapping from names of presets to their fields")
    if set(values) & set(_FIELDS) or not all(isinstance(entry, Mapping) for entry in values.values()):
        values = {Path(file).stem: values}
    entries = {str(name): _entry(f"{file}: preset '{name}'", entry) for name, entry in values.items()}
    return {name: _inherited(file, name, entries, known or {}) for name in entries}


def load(file: str | Path, config: type, known: Mapping[str, Preset] | None = None) -> dict[str, Preset]:
    """The presets of a file, for a method with the config class `config`. They may extend each other and those `known`.

    Raises UserError, naming file, preset and field, if something is missing, unknown, of the wrong type or out of range.
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
    of_entry = {*_FIELDS} - {*defaults}
    for name, entry in entries.items():
        for field in of_entry.intersection(entry.settings or {}):
            raise UserError(
                f"{file}: preset '{name}': unknown field 'settings.{field}': it is a field of the preset: move it out of "
                "settings"
            )
        assert entry.source is not None and entry.steps is not None
        try:
            chosen: Any = from_dict(config, settings(name), "settings.")
        except UserError as error:
            raise UserError(f"{file}: preset '{name}': {error}") from None
        found[name] = Preset(chosen, entry.source, entry.steps, entry.tasks)
    return found


_FIELDS = tuple(field.name for field in fields(Entry))


def _entry(place: str, values: Any) -> Entry:
    """One entry. Raises UserError if one of its own fields is wrong."""
    try:
        entry = from_dict(Entry, values)
    except UserError as error:
        raise UserError(f"{place}: {error}") from None
    if entry.settings is not None and not isinstance(entry.settings, Mapping):
        raise UserError(f"{place}: settings must be a mapping from fields to values, got {entry.settings!r}")
    return entry


def _inherited(file: str | Path, name: str, entries: Mapping[str, Entry], known: Mapping[str, Preset]) -> Entry:
    """The entry `name` with its inherited source and steps."""
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
