"""Description, for the user, of the operation that produced a value that is not finite."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmbrl.debug.elements import kind
from jaxmbrl.debug.equations import Step

ARGUMENT = "argument"
"""`Origin.operation` of an argument that was already not finite."""

FRAMES = 8
"""Maximum number of source lines that are kept for an operation."""

FOREIGN = frozenset(["jax", "jaxlib", "flax", "optax", "jaxtyping", "beartype"])
"""Packages whose source lines are left out."""

FIRST = Path(__file__).with_name("nonfinite.py")
"""The file in which the search traces the function. Frames outside of it belong to the caller of the search."""


class Operand(NamedTuple):
    """An operand of an operation."""

    type: str
    """Dtype and shape."""
    low: float | None
    """Smallest of its finite values; None if it has none, or if its elements are not numbers."""
    high: float | None
    """Largest of its finite values."""
    at: float | None
    """Its value at the index of the result's element; None if its shape is different."""
    finite: bool
    """Whether all of its values are finite."""


class Origin(NamedTuple):
    """The operation that produced a value that is not finite."""

    operation: str
    """Name of its JAX primitive; `ARGUMENT` for an argument that was already not finite."""
    kind: str
    """'nan' or 'inf'; 'false' for a boolean that cannot be traced to a number that is not finite."""
    type: str
    """Dtype and shape of the result."""
    element: tuple[int, ...]
    """Index, in the result, of the element that was followed."""
    operands: tuple[Operand, ...]
    where: tuple[str, ...]
    """Source lines `FILE:LINE in FUNCTION`, innermost first. For a gradient, those of the differentiated operation."""
    path: str
    """The steps of loops and the functions that contain it: 'scan step 7 / jit loss / log'. For an argument, its name."""


def of_step(step: Step, operands: list[Any], result: Any, element: int, path: tuple[str, ...]) -> Origin:
    """Describe the operation of a step. `element` is an index into its flattened result."""
    index = tuple(int(x) for x in np.unravel_index(element, result.shape))
    described = tuple(_operand(x, result, element) for x in operands)
    where = _source(step.equation.source_info)
    whole = " / ".join((*path, *step.path, step.primitive))
    return Origin(step.primitive, kind(result, element), _type(result), index, described, where, whole)


def of_argument(path: tuple[Any, ...], value: Any, element: int) -> Origin:
    """Describe an argument that was already not finite. `path` is its path in the tree of all arguments."""
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
    """The source lines of an operation, innermost first, without those of JAX and of the callers of `nonfinite.find`."""
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
    """The path of a file relative to the folder of its package, or to the current folder."""
    for base in (*Path(__file__).parents[2:3], *(x for x in file.parents if x.name == "site-packages"), Path.cwd()):
        if file.is_relative_to(base):
            return str(file.relative_to(base))
    return str(file)
