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

LINKS = ("env", "spec", "_cached_spec", "metadata", "render_mode", "mujoco_renderer", "_ezpickle_args", "_ezpickle_kwargs")
IGNORED = frozenset((*LINKS, "np_random", "_np_random", "_np_random_seed", "data"))
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
    while "env" in _attributes(layers[-1]) and len(layers) < 100:
        layers.append(layers[-1].env)
    return layers


def _attributes(value: Any) -> dict[str, Any]:
    return getattr(value, "__dict__", {})


def _of_object(of: str, mine: Any, due: Any, state: set[str], read: set[str], begun: bool) -> list[tuple[str, bool, str]]:
    """Differences of the attributes of two environments or wrappers of one type."""
    found = []
    for name, value in _attributes(mine).items():
        if name in IGNORED:
            continue
        expected = _attributes(due).get(name, getattr(type(due), name, ABSENT))
        if callable(value) and callable(expected) and name not in _attributes(due):
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
    parts = _parts(path, one, other)
    if parts is None and not _alike(one, other, depth):
        yield path, one, other
    for part in (parts or []) if depth else []:
        yield from _walk(*part, depth - 1)


def _parts(path: str, one: Any, other: Any) -> list[tuple[str, Any, Any]] | None:
    """(path, value, other value) of the attributes of two objects of one type: of models of C MuJoCo the numbers and the
    options, of others the attributes that only the constructor assigns. None for all other values."""
    module = type(one).__module__
    if type(one) is not type(other) or isinstance(one, type | types.ModuleType | types.FunctionType) or _is_space(one):
        return None
    if module.partition(".")[0] == "mujoco":
        named = {name: getattr(one, name) for name in dir(one) if not name.startswith("_")}
        names = [name for name, value in named.items() if name == "opt" or isinstance(value, np.ndarray | int | float)]
        return [(f"{path}.{name}", named[name], getattr(other, name)) for name in names]
    if not hasattr(one, "__dict__") or isinstance(one, dict | list | tuple) or hasattr(one, "__array__"):
        return None
    ours, (state, _) = vars(other), _accessed([type(one)], every=True)
    names = [name for name in vars(one) if name in ours and name not in IGNORED and name not in state]
    return [(f"{path}.{name}", vars(one)[name], ours[name]) for name in names]


def _alike(one: Any, other: Any, depth: int) -> bool:
    """Whether two values are equal; two objects that cannot be compared are."""
    if any(isinstance(value, PLAIN) or hasattr(value, "__array__") for value in (one, other)):
        return _equal(one, other)
    if isinstance(one, types.FunctionType) and isinstance(other, types.FunctionType):
        return one.__code__ == other.__code__
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(not any(_walk("", one[key], other[key], depth)) for key in one)
    if isinstance(one, list | tuple):
        pairs = zip(one, other, strict=False)
        return len(one) == len(other) and all(not any(_walk("", *pair, depth)) for pair in pairs)
    return not _is_space(one) or _equal(one, other)


def _is_space(value: Any) -> bool:
    return "spaces" in type(value).__module__.split(".")


def _equal(one: Any, other: Any) -> bool:
    try:
        if isinstance(one, float) or hasattr(one, "__array__") or hasattr(other, "__array__"):
            a, b = np.asarray(one), np.asarray(other)
            return np.array_equal(a, b, equal_nan=a.dtype.kind == b.dtype.kind == "f")
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
