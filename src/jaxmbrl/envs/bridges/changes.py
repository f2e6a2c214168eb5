"""What was changed on a Gymnasium environment after it was made, and is lost where another one is made from its spec.

Nothing is stepped or reset: the attributes of the two objects are compared. An attribute that `reset`, `step` or `render`
assigns is the state of an episode and may differ, as do random numbers that two new environments do not share.
"""

from __future__ import annotations

import contextlib
import dis
import types
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

IGNORED = frozenset(
    "env spec metadata render_mode np_random _np_random _np_random_seed _cached_spec _ezpickle_args _ezpickle_kwargs "
    "mujoco_renderer data".split()
)
"""Attributes that are no settings: links, random numbers, rendering, the state of C MuJoCo."""
CALLED = ("reset", "step", "render", "close")
PLAIN = (bool, int, float, complex, str, bytes, type(None), np.generic)
DEEPEST = 3
"""Levels of objects in attributes that are compared."""
SHOWN = 4
"""Number of changes that are named."""
ABSENT = object()


class Changes(NamedTuple):
    """Texts that name changes."""

    certain: tuple[str, ...]
    """Methods that were replaced, and settings with other values."""
    possible: tuple[str, ...]
    """Arrays and objects that differ, which may be the state of an episode, and attributes that were added."""


def changes(given: Any, make: Callable[[], Any]) -> Changes:
    """What differs between the environment `given` and the one that `make()` returns, which is closed."""
    found = _between(given, make)
    if found:
        with _made(make) as first:
            random = {path for path, *_ in _between(first, make)}
        found = [change for change in found if change[0] not in random]
    certain = [text for _, sure, text in found if sure]
    possible = [text for _, sure, text in found if not sure]
    return Changes(tuple(certain[:SHOWN]), tuple(possible[:SHOWN]))


@contextlib.contextmanager
def _made(make: Callable[[], Any]) -> Iterator[Any]:
    env = make()
    try:
        yield env
    finally:
        getattr(env, "close", lambda: None)()


def _between(given: Any, make: Callable[[], Any]) -> list[tuple[str, bool, str]]:
    """(path, whether it surely matters, text) of each difference."""
    with _made(make) as made:
        theirs, ours = _layers(given), _layers(made)
        inner, due = theirs[-1], ours[-1]
        if type(inner) is not type(due):
            return [("", True, f"it is a {type(inner).__name__} instead of a {type(due).__name__}")]
        begun = any(getattr(layer, "_has_reset", False) for layer in theirs)
        state, read = _accessed([type(layer) for layer in theirs])
        found = []
        for layer in theirs:
            other = next((env for env in ours if type(env) is type(layer)), None)
            if other is None:
                continue
            of = "" if layer is inner else f"{type(layer).__name__}."
            found += _of_object(of, layer, other, state, read, begun)
    return found


def _layers(env: Any) -> list[Any]:
    """The environment's wrappers and itself, from the outermost to the innermost."""
    layers = [env]
    while "env" in vars(layers[-1]) and len(layers) < 100:
        layers.append(layers[-1].env)
    return layers


def _of_object(of: str, mine: Any, due: Any, state: set[str], read: set[str], begun: bool) -> list[tuple[str, bool, str]]:
    """Differences of the attributes of two environments or wrappers of one type."""
    found = []
    for name, value in vars(mine).items():
        if name in IGNORED:
            continue
        expected = vars(due).get(name, getattr(type(due), name, ABSENT))
        if callable(value) and callable(expected) and name not in vars(due):
            found.append((of + name, True, f"{of}{name} is replaced"))
            continue
        if name in state and (begun or expected is ABSENT):
            continue
        if expected is ABSENT:
            found.append((of + name, name in read, f"{of}{name} = {_shown(value)} is new"))
            continue
        for path, one, other in _walk(of + name, value, expected, DEEPEST):
            if begun and path.rpartition(".")[2] in state:
                continue
            plain = isinstance(one, PLAIN) and isinstance(other, PLAIN)
            text = f"{path} = {_shown(one)} instead of {_shown(other)}" if plain else f"{path} has other values"
            found.append((path, name not in state and (plain or not begun), text))
    return found


def _walk(path: str, one: Any, other: Any, depth: int) -> Iterator[tuple[str, Any, Any]]:
    """(path, value, other value) where two values differ."""
    if one is other:
        return
    if isinstance(one, PLAIN) or isinstance(other, PLAIN):
        if not _equal(one, other):
            yield path, one, other
    elif isinstance(one, types.FunctionType) and isinstance(other, types.FunctionType):
        if one.__code__ is not other.__code__ and one.__code__ != other.__code__:
            yield path, one, other
    elif isinstance(one, np.ndarray) or isinstance(other, np.ndarray):
        if not _equal(np.asarray(one), np.asarray(other)):
            yield path, one, other
    elif type(one) is not type(other):
        yield path, one, other
    elif isinstance(one, dict):
        if one.keys() != other.keys() or any(True for key in one for _ in _walk("", one[key], other[key], depth)):
            yield path, one, other
    elif isinstance(one, list | tuple):
        if len(one) != len(other) or any(True for pair in zip(one, other, strict=True) for _ in _walk("", *pair, depth)):
            yield path, one, other
    elif type(one).__module__.startswith("mujoco"):
        yield from _of_model(path, one, other)
    elif ".spaces." in f".{type(one).__module__}.":
        if not _equal(one, other):
            yield path, one, other
    elif depth and hasattr(one, "__dict__") and not isinstance(one, type | types.ModuleType):
        state, _ = _accessed([type(one)], every=True)
        for name, value in vars(one).items():
            if name not in IGNORED and name not in state and name in vars(other):
                yield from _walk(f"{path}.{name}", value, vars(other)[name], depth - 1)


def _of_model(path: str, one: Any, other: Any) -> Iterator[tuple[str, Any, Any]]:
    """Fields of a model of C MuJoCo, and of its options, that differ."""
    for name in dir(one):
        if name.startswith("_"):
            continue
        a, b = getattr(one, name), getattr(other, name)
        if name == "opt":
            yield from _of_model(f"{path}.opt", a, b)
        elif isinstance(a, np.ndarray | int | float) and not _equal(a, b):
            yield f"{path}.{name}", a, b


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray | float | np.floating) and isinstance(other, np.ndarray | float | np.floating):
        a, b = np.asarray(one), np.asarray(other)
        return np.array_equal(a, b, equal_nan=a.dtype.kind == b.dtype.kind == "f")
    try:
        return bool(one == other)
    except Exception:
        # A type without a comparison says nothing.
        return True


def _accessed(kinds: list[type], every: bool = False) -> tuple[set[str], set[str]]:
    """(attributes that are assigned, names that are read) by the methods that `CALLED` ones call, or with `every` by all
    methods except the constructor."""
    methods: dict[str, list[types.CodeType]] = {}
    for kind in kinds:
        for owner in kind.__mro__:
            for name, member in vars(owner).items():
                for function in (member, *(getattr(member, part, None) for part in ("__func__", "fget", "fset"))):
                    if isinstance(function, types.FunctionType):
                        methods.setdefault(name, []).append(function.__code__)
    waiting = [name for name in methods if name != "__init__"] if every else list(CALLED)
    seen: set[str] = set()
    stored: set[str] = set()
    read: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name in seen or name == "__init__":
            continue
        seen.add(name)
        for code in methods.get(name, []):
            assigned, names = _of_code(code)
            stored |= assigned
            read |= names
            waiting += names & methods.keys()
    return stored, read


def _of_code(code: types.CodeType) -> tuple[set[str], set[str]]:
    """(attributes that the code assigns, all names in it), those of inner functions included."""
    stored = {str(step.argval) for step in dis.get_instructions(code) if step.opname == "STORE_ATTR"}
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            inner = _of_code(constant)
            stored, names = stored | inner[0], names | inner[1]
    return stored, names


def _shown(value: Any) -> str:
    text = repr(value.item() if isinstance(value, np.generic) else value)
    return " ".join(text.split())[:40]


__all__ = ["Changes", "changes"]
