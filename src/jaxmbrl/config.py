"""Configs are frozen dataclasses, nested as the parts nest. Here they meet the outside: YAML, checks, names.

Types and ranges (`Annotated[int, Ge(1)]`) are checked by pydantic; a rule between fields is a method
`problem(self) -> tuple[field, message] | None` on the dataclass.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import pydantic

C = TypeVar("C")

Forbid = pydantic.ConfigDict(extra="forbid", allow_inf_nan=False)


class UserError(Exception):
    """A mistake of the user's, told in one line; the command line ends with exit code 2 and no traceback."""


def closest(name: str, names: Iterable[str]) -> str:
    """`; did you mean X?` for a near miss, else the list of what there is."""
    names = sorted(names)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"did you mean '{near[0]}'?" if near else f"there is: {', '.join(names)}"


def to_dict(config: Any) -> dict[str, Any]:
    """A nested dict of plain values, as YAML holds it (tuples as lists)."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items()}
        return [plain(v) for v in value] if isinstance(value, tuple | list) else value

    return plain(dataclasses.asdict(config))


def from_dict(cls: type[C], values: Mapping[str, Any], prefix: str = "") -> C:
    """Build a config from a nested dict, checking every name, type and range.

    Raises UserError naming the first bad field by its path, with the nearest known name where it is unknown.
    """
    try:
        config = pydantic.TypeAdapter(cls).validate_python(values)
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False)[0]
        path = [part for part in first["loc"] if isinstance(part, str)]
        name = prefix + ".".join(path)
        if first["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
            raise UserError(f"unknown field '{name}'; {closest(path[-1], _names(cls, path[:-1]))}") from None
        message = first["msg"].removeprefix("Input should be ").removeprefix("a valid ")
        raise UserError(f"{name} must be {message}, got {first['input']!r}") from None
    _check_rules(config, prefix)
    return config


def check(config: C) -> C:
    """The config itself, after the checks of `from_dict`."""
    return from_dict(type(config), to_dict(config))


def _check_rules(config: Any, prefix: str) -> None:
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            _check_rules(value, f"{prefix}{field.name}.")
    found = config.problem() if hasattr(config, "problem") else None
    if found is not None:
        raise UserError(f"{prefix}{found[0]} {found[1]}")


def _names(cls: type, path: list[str]) -> list[str]:
    """Field names of the config at `path` below `cls`."""
    import typing

    for part in path:
        cls = typing.get_type_hints(cls)[part]
    return [field.name for field in dataclasses.fields(cls)]
