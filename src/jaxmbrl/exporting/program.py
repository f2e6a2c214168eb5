"""Functions as lists of calls of NumPy functions, without branches and loops.

Such a list is the content of a NumPy file and the source of an ONNX graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Shaped


class Untranslated(Exception):
    """An operation that a format cannot represent. The message names it."""


class Call(NamedTuple):
    """One call of a NumPy function: `numpy.function(*operands, *extras)`."""

    result: str
    function: str
    operands: tuple[str, ...]
    """Names of inputs, constants and earlier results."""
    extras: tuple[Any, ...] = ()
    """Further positional arguments: shapes, axes and names of dtypes."""


class Program(NamedTuple):
    """A function without branches and loops."""

    inputs: tuple[str, ...]
    constants: dict[str, Shaped[np.ndarray, "..."]]
    calls: tuple[Call, ...]
    outputs: tuple[str, ...]
    """Names of inputs, constants or results."""
    dtypes: dict[str, str]
    """Dtype of every value."""

    @property
    def functions(self) -> list[str]:
        """The functions that are called, in order of their names."""
        return sorted({call.function for call in self.calls})


def run(program: Program, inputs: Sequence[Any]) -> list[Any]:
    """The outputs for these inputs, by NumPy."""
    values: dict[str, Any] = program.constants | dict(zip(program.inputs, inputs, strict=True))
    for call in program.calls:
        values[call.result] = getattr(np, call.function)(*(values[name] for name in call.operands), *call.extras)
    return [values[name] for name in program.outputs]


class Builder:
    """Builds a `Program`. Calls whose operands are all constants are computed at once, and equal constants are shared."""

    def __init__(self, onnx: bool) -> None:
        self.onnx = onnx
        self.constants: dict[str, Any] = {}
        self.calls: list[Call] = []
        self.dtypes: dict[str, str] = {}
        self._known: dict[Any, str] = {}

    def constant(self, value: Any, dtype: Any = None) -> str:
        """The name of a constant. bfloat16 numbers are stored as float32."""
        array = np.asarray(value, dtype)
        array = array.astype(np.float32) if array.dtype == jnp.bfloat16 else array
        key = array.shape, array.dtype.str, array.tobytes()
        if key not in self._known:
            name = self._known[key] = f"c{len(self._known)}"
            self.constants[name], self.dtypes[name] = array, array.dtype.name
        return self._known[key]

    def call(self, function: str, *operands: str, extras: tuple[Any, ...] = ()) -> str:
        """The name of the result of a call."""
        if all(name in self.constants for name in operands) and hasattr(np, function):
            return self.constant(getattr(np, function)(*(self.constants[name] for name in operands), *extras))
        name = f"v{len(self.calls)}"
        self.calls.append(Call(name, function, operands, extras))
        self.dtypes[name] = self._dtype(function, operands, extras)
        return name

    def _dtype(self, function: str, operands: tuple[str, ...], extras: tuple[Any, ...]) -> str:
        if function in TRUTHS:
            return "bool"
        if function in ("argmax", "argmin"):
            return "int64"
        if function in ("asarray", "sum", "prod", "cumsum"):
            return str(extras[-1])
        return self.dtypes[operands[1 if function == "where" else 0]]

    def like(self, value: float | int, operand: str) -> str:
        """The scalar `value` with the dtype of `operand`."""
        return self.constant(value, self.dtypes[operand])

    def cast(self, operand: str, dtype: Any) -> str:
        """`operand` with another dtype."""
        name = np.dtype(dtype).name
        return operand if self.dtypes[operand] == name else self.call("asarray", operand, extras=(name,))

    def to_bfloat16(self, operand: str) -> str:
        """float32 `operand` rounded to the nearest bfloat16, ties to even, as float32."""
        if operand in self.constants:
            return self.constant(np.asarray(self.constants[operand]).astype(jnp.bfloat16))
        if self.onnx:
            rounded = self.call("asarray", operand, extras=("bfloat16",))
            return self.call("asarray", rounded, extras=("float32",))
        # The last kept digit has 16 digits of the significand of float32 behind it.
        digit = self.call("multiply", self.call("spacing", self.call("absolute", operand)), self.like(2.0**16, operand))
        return self.call("multiply", self.call("rint", self.call("divide", operand, digit)), digit)

    def reshape(self, operand: str, before: Sequence[int], after: Sequence[int]) -> str:
        """`operand` of shape `before` with the shape `after`."""
        return operand if tuple(before) == tuple(after) else self.call("reshape", operand, extras=(_list(after),))

    def transpose(self, operand: str, axes: Sequence[int]) -> str:
        """`operand` with its axes in another order."""
        same = tuple(axes) == tuple(range(len(axes)))
        return operand if same else self.call("transpose", operand, extras=(_list(axes),))

    def take(self, operand: str, indices: Any, axis: int) -> str:
        """The entries `indices` of an axis."""
        return self.call("take", operand, self.constant(indices, np.int64), extras=(axis,))

    def clamped(self, operand: str, low: int, high: int) -> str:
        """Integers clamped to [low, high]."""
        return self.call("minimum", self.call("maximum", operand, self.like(low, operand)), self.like(high, operand))


TRUTHS = frozenset(["equal", "not_equal", "less", "less_equal", "greater", "greater_equal", "isfinite"]) | frozenset(
    ["logical_and", "logical_or", "logical_xor", "logical_not", "all", "any"]
)
"""Functions whose result is boolean."""


def _list(numbers: Sequence[int]) -> list[int]:
    return [int(number) for number in numbers]
