"""Reading and checking configs. A config is a frozen dataclass; the config of a part is a field of the config that uses it.

Fields are annotated with `bool`, `int`, `float`, `str`, `Literal`, `tuple`, `dict[str, ...]`, other configs, and unions of
these. Ranges are given as `Annotated[int, Ge(1)]`. Numbers that may differ between seeds are marked
`Annotated[float, Gt(0), Traced]`. A rule that involves several fields is a method
`problem(self) -> tuple[field, message] | None` of the dataclass.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import numbers
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import annotated_types

C = TypeVar("C")


class UserError(Exception):
    """A user's mistake, described in one line. The command line prints it and exits with code 2, without a traceback."""


class Traced:
    """Marks a config field whose value is an input of the compiled program: `Annotated[float, Gt(0), Traced]`.

    Such a number may differ between seeds, and changing it does not recompile. An algorithm's `init` receives it in `hyper`
    under the name of the field.
    """


def closest(name: str, names: Iterable[str], prefix: str = "") -> str:
    """`did you mean 'X'?` if a known name is close, after a `prefix` that all names have, else the list of all known names.

    >>> from jaxmbrl.core.config import closest
    >>> closest("pendulm", ["cartpole", "pendulum"])
    "did you mean 'pendulum'?"
    >>> closest("hopper", ["cartpole", "pendulum"])
    'there is: cartpole, pendulum'
    """
    names = sorted(names)
    by_lower = {known.lower(): known for known in reversed(names)}
    found = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.5)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5) or [by_lower[lower] for lower in found]
    return f"did you mean '{prefix}{near[0]}'?" if near else f"there is: {', '.join(names)}"


def to_dict(config: Any) -> dict[str, Any]:
    """A nested dict of plain values that YAML can represent (tuples become lists)."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items()}
        return [plain(v) for v in value] if isinstance(value, tuple | list) else value

    return plain(dataclasses.asdict(config))


def from_dict(cls: type[C], values: Any, prefix: str = "") -> C:
    """Build a config from a nested dict, checking every name, type and range.

    An int field accepts whole numbers, a float field any finite number. Either may be written `1e6`, which YAML reads as a
    string. If a field accepts several config classes, the class is chosen by the names in `values`.

    Raises UserError with the path of the first bad field, and with the nearest known name if the field is unknown.
    """
    if not isinstance(values, Mapping):
        raise UserError(f"{prefix.rstrip('.') or 'the config'} must be a mapping from fields to values, got {values!r}")
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}  # type: ignore[arg-type]
    hints = typing.get_type_hints(cls, include_extras=True)
    for name in values:
        if name not in fields:
            raise UserError(f"unknown field '{prefix}{name}'; {closest(str(name), fields, prefix)}")
    for name, field in fields.items():
        if name not in values and field.default is field.default_factory is dataclasses.MISSING:
            raise UserError(f"{prefix}{name} is missing: give it a value")
    config = cls(**{name: _value(hints[name], value, prefix + name) for name, value in values.items()})
    found = config.problem() if hasattr(config, "problem") else None
    if found is not None:
        raise UserError(f"{prefix}{found[0]} {found[1]}")
    return config


def merged(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`values` updated with `changes`. Where both are mappings they are merged recursively; anything else is replaced.

    >>> from jaxmbrl.core.config import merged
    >>> merged({"agent": {"hidden": [256, 256], "critics": 2}, "num_envs": 1}, {"agent": {"critics": 5}})
    {'agent': {'hidden': [256, 256], 'critics': 5}, 'num_envs': 1}
    """
    result = dict(values)
    for name, value in changes.items():
        before = result.get(name)
        both = isinstance(before, Mapping) and isinstance(value, Mapping)
        result[name] = merged(typing.cast(Mapping[str, Any], before), value) if both else value
    return result


def check(config: C) -> C:
    """Run the checks of `from_dict` on a config and return it. Raises UserError as `from_dict` does."""
    return from_dict(type(config), _fields(config))


def traced(config: type) -> tuple[str, ...]:
    """Names of the fields marked `Traced` in a config class and its nested configs, in order and without duplicates.

    If a field `method` selects one of several nested configs, only names that are traced in all of them are returned: the
    others would have no effect under some selections.
    """
    hints = typing.get_type_hints(config, include_extras=True)
    choices = [str(choice).replace("-", "_") for choice in typing.get_args(hints.get("method"))]
    selected = {name for name in choices if _nested(hints.get(name)) is not None}
    found: list[str] = []
    for name, hint in hints.items():
        nested = _nested(hint)
        if typing.get_origin(hint) is typing.Annotated and Traced in hint.__metadata__:
            found.append(name)
        elif nested is not None:
            others = [traced(_nested(hints[other])) for other in selected] if name in selected else []
            found += [inner for inner in traced(nested) if all(inner in names for names in others)]
    return tuple(dict.fromkeys(found))


def _nested(hint: Any) -> Any:
    """The config class in a field's annotation, or None."""
    hint = hint.__origin__ if typing.get_origin(hint) is typing.Annotated else hint
    return hint if isinstance(hint, type) and dataclasses.is_dataclass(hint) else None


def converted(hint: Any, value: Any, name: str) -> Any:
    """`value` in the type and range of a config's annotation, such as `Annotated[int, Ge(1)]`. Raises UserError about the
    argument `name` if it is another.

    >>> from jaxmbrl.core.config import converted
    >>> converted(int, "1e3", "episodes")
    1000
    """
    return _value(hint, value, name)


def _fields(config: Any) -> dict[str, Any]:
    return {field.name: getattr(config, field.name) for field in dataclasses.fields(config) if field.init}


def _value(hint: Any, value: Any, name: str) -> Any:
    """`value` converted to the annotation `hint`. Raises UserError about the field `name` if that is impossible."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        value = _value(args[0], value, name)
        for constraint in args[1:]:
            _check_range(constraint, value, name)
        return value
    if origin in (typing.Union, types.UnionType):
        return _one_of(args, value, name)
    if origin is typing.Literal:
        if not any(value == choice and type(value) is type(choice) for choice in args):
            raise UserError(f"{name} must be {' or '.join(map(repr, args))}, got {value!r}")
        return value
    if origin is tuple:
        return _tuple(args, value, name)
    if origin is dict:
        if not isinstance(value, Mapping):
            raise UserError(f"{name} must be a mapping, got {value!r}")
        return {_value(args[0], k, f"a name in {name}"): _value(args[1], v, f"{name}.{k}") for k, v in value.items()}
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return from_dict(hint, _fields(value) if isinstance(value, hint) else value, f"{name}.")
    if hint is Any:
        return value
    if hint not in _PLAIN:
        raise TypeError(f"{name}: configs do not support the annotation {hint!r}")
    convert, expected = _PLAIN[hint]
    converted = convert(value)
    if converted is _REFUSED:
        raise UserError(f"{name} must be {expected}, got {value!r}")
    return converted


_REFUSED = object()
LARGEST = 3.4028234663852886e38
"""Largest finite float32."""


def _number(value: Any) -> Any:
    """`value` as a finite number, else `_REFUSED`. YAML 1.1 reads `1e-3` as a string."""
    if isinstance(value, str) and re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+", value):
        value = float(value)
    if isinstance(value, numbers.Integral) and not isinstance(value, bool):
        return value
    return value if isinstance(value, numbers.Real) and math.isfinite(value) and not isinstance(value, bool) else _REFUSED


def _whole(value: Any) -> Any:
    number = _number(value)
    return int(number) if number is not _REFUSED and number == int(number) else _REFUSED


def _real(value: Any) -> Any:
    number = _number(value)
    # A larger number becomes infinite in a compiled program.
    return float(number) if number is not _REFUSED and abs(number) <= LARGEST else _REFUSED


def _truth(value: Any) -> Any:
    """`value` as a bool, else `_REFUSED`. `plain_yaml` reads YAML 1.1's words for them as text."""
    if isinstance(value, str):
        return {"yes": True, "on": True, "no": False, "off": False}.get(value.lower(), _REFUSED)
    return value if isinstance(value, bool) else _REFUSED


def _exactly(kind: type) -> Callable[[Any], Any]:
    return lambda value: value if isinstance(value, kind) else _REFUSED


_PLAIN: dict[Any, tuple[Callable[[Any], Any], str]] = {
    int: (_whole, "a whole number"),
    float: (_real, "a finite number"),
    bool: (_truth, "true or false"),
    str: (_exactly(str), "text"),
    type(None): (_exactly(type(None)), "null"),
}


def _one_of(kinds: tuple[Any, ...], value: Any, name: str) -> Any:
    """`value` as one of several kinds: a config is chosen by its field names, anything else by the first kind that fits."""
    configs = [kind for kind in kinds if isinstance(kind, type) and dataclasses.is_dataclass(kind)]
    if type(value) in configs:
        return _value(type(value), value, name)
    if configs and isinstance(value, Mapping):
        return from_dict(_named_by(configs, value, name), value, f"{name}.")
    if value is None and type(None) in kinds:
        return None
    kinds = tuple(kind for kind in kinds if kind is not type(None))
    problems = []
    for kind in sorted(kinds, key=lambda kind: (kind is str, kind is not type(value))):
        try:
            return _value(kind, value, name)
        except UserError as problem:
            problems.append(str(problem))
    if len(problems) == 1:
        raise UserError(problems[0])
    expected = [problem.removeprefix(f"{name} must be ").partition(", got ")[0] for problem in problems]
    raise UserError(f"{name} must be {' or '.join(expected)}, got {value!r}")


def _named_by(configs: list[Any], given: Iterable[str], path: str) -> Any:
    """The smallest config class that has all the given names; if none has, the one with most of them."""
    known = [{field.name for field in dataclasses.fields(config)} for config in configs]
    for name in given:
        if not any(name in names for names in known):
            raise UserError(f"unknown field '{path}.{name}'; {closest(str(name), set().union(*known), f'{path}.')}")
    best = min(range(len(configs)), key=lambda i: (len(set(given) - known[i]), len(known[i])))
    return configs[best]


def _tuple(kinds: tuple[Any, ...], value: Any, name: str) -> tuple[Any, ...]:
    if not isinstance(value, tuple | list):
        raise UserError(f"{name} must be a list, got {value!r}")
    if len(kinds) == 2 and kinds[1] is ...:
        kinds = (kinds[0],) * len(value)
    if len(kinds) != len(value):
        raise UserError(f"{name} must be a list of {len(kinds)} entries, got {value!r}")
    return tuple(_value(kind, entry, f"{name}[{i}]") for i, (kind, entry) in enumerate(zip(kinds, value, strict=True)))


def _check_range(constraint: Any, value: Any, name: str) -> None:
    if constraint is Traced:
        return
    match constraint:
        case annotated_types.Gt(gt=bound):
            holds, expected = value > bound, f"above {bound}"
        case annotated_types.Ge(ge=bound):
            holds, expected = value >= bound, f"at least {bound}"
        case annotated_types.Lt(lt=bound):
            holds, expected = value < bound, f"below {bound}"
        case annotated_types.Le(le=bound):
            holds, expected = value <= bound, f"at most {bound}"
        case annotated_types.MinLen(min_length=bound):
            holds, expected = len(value) >= bound, f"a list of at least {bound} entries"
        case annotated_types.MaxLen(max_length=bound):
            holds, expected = len(value) <= bound, f"a list of at most {bound} entries"
        case annotated_types.GroupedMetadata():
            for part in constraint:
                _check_range(part, value, name)
            return
        case _:
            raise TypeError(f"{name}: configs do not support the constraint {constraint!r}")
    if not holds:
        raise UserError(f"{name} must be {expected}, got {value!r}")
