"""The operation that made a value that is not finite, described for the user."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmbrl.debug.elements import kind
from jaxmbrl.debug.equations import Step

ARGUMENT = "argument"
"""The operation of an argument that was not finite to begin with."""

FRAMES = 8
"""Source lines that are kept of an operation, at most."""

FOREIGN = frozenset(["jax", "jaxlib", "flax", "optax", "jaxtyping", "beartype"])
"""Packages whose source lines are left out."""

FIRST = Path(__file__).with_name("nonfinite.py")
"""Where the search traces the function: frames from here on outwards are its caller's."""


class Operand(NamedTuple):
    """An operand of an operation."""

    type: str
    """Dtype and shape."""
    low: float | None
    """Least of its finite values; None where it has none, or holds no numbers."""
    high: float | None
    """Greatest of its finite values."""
    at: float | None
    """Its value at the index of the result's element; None where its shape is another."""
    finite: bool
    """Whether all of it is finite."""


class Origin(NamedTuple):
    """The operation that made a value that is not finite."""

    operation: str
    """Name of its primitive in JAX; `ARGUMENT` for an argument that was not finite to begin with."""
    kind: str
    """'nan' or 'inf'; 'false' for a truth value that no longer depends on finite or non-finite numbers."""
    type: str
    """Dtype and shape of the result."""
    element: tuple[int, ...]
    """Index into the result of the element that was followed."""
    operands: tuple[Operand, ...]
    where: tuple[str, ...]
    """Source lines `FILE:LINE in FUNCTION`, innermost first. Of a gradient, those of what was differentiated."""
    path: str
    """Which step of which loop, in which function: 'scan step 7 / jit loss / log'; of an argument its name."""


def of_step(step: Step, operands: list[Any], result: Any, element: int, path: tuple[str, ...]) -> Origin:
    """The operation of a step; `element` is an index into its flattened result."""
    index = tuple(int(x) for x in np.unravel_index(element, result.shape))
    described = tuple(_operand(x, result, element) for x in operands)
    where = _source(step.equation.source_info)
    whole = " / ".join((*path, *step.path, step.primitive))
    return Origin(step.primitive, kind(result, element), _type(result), index, described, where, whole)


def of_argument(path: tuple[Any, ...], value: Any, element: int) -> Origin:
    """An argument that was not finite to begin with; `path` is its path in the tree of all arguments."""
    name = f"{path[0].idx}{jax.tree_util.keystr(path[1:])}"
    index = tuple(int(x) for x in np.unravel_index(element, value.shape))
    return Origin(ARGUMENT, kind(value, element), _type(value), index, (), (), name)


def _type(x: Any) -> str:
    return f"{x.dtype}[{', '.join(map(str, x.shape))}]"


def _operand(x: Any, result: Any, element: int) -> Operand:
    numbers = jnp.issubdtype(x.dtype, jnp.floating) or jnp.issubdtype(x.dtype, jnp.integer)
    if not numbers or not x.size:
        return Operand(_type(x), None, None, None, True)
    values = np.asarray(x).astype(float)
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (None, None)
    at = float(values.flat[element]) if values.shape == result.shape else None
    return Operand(_type(x), low, high, at, finite.size == values.size)


def _source(info: Any) -> tuple[str, ...]:
    """The source lines of an operation, innermost first, without those of JAX and those outside of `nonfinite.find`."""
    traceback = getattr(info, "traceback", None)
    lines: list[str] = []
    for frame in traceback.frames if traceback is not None else ():
        file = Path(frame.file_name)
        if file == FIRST:
            break
        if file.is_absolute() and not FOREIGN.intersection(file.parts):
            line = f"{_short(file)}:{frame.line_num} in {frame.function_name}"
            lines += [] if lines[-1:] == [line] else [line]
    return tuple(lines[:FRAMES])


def _short(file: Path) -> str:
    """The path below the folder of the package that a file belongs to, or below the current folder."""
    for base in (*Path(__file__).parents[2:3], *(x for x in file.parents if x.name == "site-packages"), Path.cwd()):
        if file.is_relative_to(base):
            return str(file.relative_to(base))
    return str(file)
