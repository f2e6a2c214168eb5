"""The translations of JAX's primitives to calls of NumPy functions.

A translation gets the builder, the equation and the names of its operands, and returns the names of its results.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmbrl.debug.equations import Step
from jaxmbrl.exporting.program import Builder, Untranslated

Translation = Callable[[Builder, Step, list[str]], list[str]]
"""(builder, equation, names of the operands) -> names of the results."""


UNARY = {
    "abs": "absolute",
    "acos": "arccos",
    "acosh": "arccosh",
    "asin": "arcsin",
    "asinh": "arcsinh",
    "atan": "arctan",
    "atanh": "arctanh",
    "ceil": "ceil",
    "cos": "cos",
    "cosh": "cosh",
    "exp": "exp",
    "exp2": "exp2",
    "expm1": "expm1",
    "floor": "floor",
    "is_finite": "isfinite",
    "log": "log",
    "log1p": "log1p",
    "neg": "negative",
    "sign": "sign",
    "sin": "sin",
    "sinh": "sinh",
    "sqrt": "sqrt",
    "square": "square",
    "tan": "tan",
    "tanh": "tanh",
}
"""Primitives of one operand -> the function of NumPy."""

BINARY = {
    "add": "add",
    "add_any": "add",
    "atan2": "arctan2",
    "eq": "equal",
    "ge": "greater_equal",
    "gt": "greater",
    "le": "less_equal",
    "lt": "less",
    "max": "maximum",
    "min": "minimum",
    "mul": "multiply",
    "ne": "not_equal",
    "rem": "fmod",
    "sub": "subtract",
}
"""Primitives of two operands -> the function of NumPy."""

LOGICAL = {"and": "logical_and", "or": "logical_or", "xor": "logical_xor", "not": "logical_not"}
"""Primitives on booleans -> the function of NumPy. On integers they have another meaning."""

SAME = ("copy", "copy_p", "device_put", "name", "optimization_barrier", "sharding_constraint", "stop_gradient")
"""Primitives that return their operands."""

ROUNDED = ("broadcast_in_dim", "convert_element_type", "reshape", "squeeze", "transpose", *SAME)
"""Primitives that may return bfloat16 numbers: they do not compute with them."""


def shape(step: Step, operand: int) -> tuple[int, ...]:
    """Shape of an operand of an equation."""
    return tuple(step.equation.invars[operand].aval.shape)


def dtype(step: Step, operand: int = 0) -> Any:
    """Dtype of an operand of an equation."""
    return step.equation.invars[operand].aval.dtype


def result(step: Step) -> Any:
    """Shape and dtype of the first result of an equation."""
    return step.equation.outvars[0].aval


def _plain(function: str) -> Translation:
    return lambda to, step, operands: [to.call(function, *operands)]


def _logical(function: str) -> Translation:
    def translation(to: Builder, step: Step, operands: list[str]) -> list[str]:
        if dtype(step) != np.bool_:
            raise Untranslated(f"'{step.primitive}' of {dtype(step)}")
        return [to.call(function, *operands)]

    return translation


def _div(to: Builder, step: Step, operands: list[str]) -> list[str]:
    if not jnp.issubdtype(dtype(step), jnp.floating):
        raise Untranslated(f"'div' of {dtype(step)}")
    return [to.call("divide", *operands)]


def _pow(to: Builder, step: Step, operands: list[str]) -> list[str]:
    base, exponent = operands
    return [to.call("power", base, to.cast(exponent, to.dtypes[base]))]


def _integer_pow(to: Builder, step: Step, operands: list[str]) -> list[str]:
    exponent, square, found = abs(step.equation.params["y"]), operands[0], ""
    while exponent:
        if exponent % 2:
            found = to.call("multiply", found, square) if found else square
        exponent //= 2
        square = to.call("multiply", square, square) if exponent else square
    if not found:
        found = to.constant(np.ones(result(step).shape, to.dtypes[operands[0]]))
    return [to.call("divide", to.like(1.0, found), found) if step.equation.params["y"] < 0 else found]


def _rsqrt(to: Builder, step: Step, operands: list[str]) -> list[str]:
    root = to.call("sqrt", *operands)
    return [to.call("divide", to.like(1.0, root), root)]


def _logistic(to: Builder, step: Step, operands: list[str]) -> list[str]:
    # (1 + tanh(x / 2)) / 2 does not overflow.
    half = to.like(0.5, operands[0])
    return [to.call("add", to.call("multiply", to.call("tanh", to.call("multiply", *operands, half)), half), half)]


def _erf(to: Builder, step: Step, operands: list[str]) -> list[str]:
    if not to.onnx:
        raise Untranslated("'erf'")
    return [to.call("erf", *operands)]


def _round(to: Builder, step: Step, operands: list[str]) -> list[str]:
    if step.equation.params["rounding_method"] != jax.lax.RoundingMethod.TO_NEAREST_EVEN:
        raise Untranslated("'round' with halves away from zero")
    return [to.call("rint", *operands)]


def _clamp(to: Builder, step: Step, operands: list[str]) -> list[str]:
    low, value, high = operands
    return [to.call("minimum", to.call("maximum", value, low), high)]


def _select_n(to: Builder, step: Step, operands: list[str]) -> list[str]:
    which, *cases = operands
    if to.dtypes[which] == "bool":
        return [to.call("where", which, cases[1], cases[0])]
    found = cases[-1]
    for i, case in reversed(list(enumerate(cases[:-1]))):
        found = to.call("where", to.call("equal", which, to.like(i, which)), case, found)
    return [found]


def _convert(to: Builder, step: Step, operands: list[str]) -> list[str]:
    after = step.equation.params["new_dtype"]
    if after != jnp.bfloat16:
        return [to.cast(operands[0], after)]
    return [to.to_bfloat16(to.cast(operands[0], np.float32))]


def _reshape(to: Builder, step: Step, operands: list[str]) -> list[str]:
    if step.equation.params.get("dimensions") is not None:
        raise Untranslated("'reshape' in another order")
    return [to.reshape(operands[0], shape(step, 0), result(step).shape)]


def _squeeze(to: Builder, step: Step, operands: list[str]) -> list[str]:
    return [to.reshape(operands[0], shape(step, 0), result(step).shape)]


def _transpose(to: Builder, step: Step, operands: list[str]) -> list[str]:
    return [to.transpose(operands[0], step.equation.params["permutation"])]


def _broadcast(to: Builder, step: Step, operands: list[str]) -> list[str]:
    before, after = shape(step, 0), result(step).shape
    middle = [1] * len(after)
    for size, axis in zip(before, step.equation.params["broadcast_dimensions"], strict=True):
        middle[axis] = size
    found = to.reshape(operands[0], before, middle)
    return [found if tuple(middle) == tuple(after) else to.call("broadcast_to", found, extras=([*after],))]


def _reduction(function: str) -> Translation:
    def translation(to: Builder, step: Step, operands: list[str]) -> list[str]:
        found = operands[0]
        for axis in sorted(step.equation.params["axes"], reverse=True):
            # The sum of integers would have another dtype.
            more = (to.dtypes[found],) if function in ("sum", "prod") else ()
            found = to.call(function, found, extras=(int(axis), *more))
        return [found]

    return translation


def _argument(function: str) -> Translation:
    def translation(to: Builder, step: Step, operands: list[str]) -> list[str]:
        (axis,) = step.equation.params["axes"]
        return [to.cast(to.call(function, *operands, extras=(int(axis),)), step.equation.params["index_dtype"])]

    return translation


def _cumsum(to: Builder, step: Step, operands: list[str]) -> list[str]:
    if step.equation.params["reverse"]:
        raise Untranslated("'cumsum' in reverse")
    return [to.call("cumsum", *operands, extras=(int(step.equation.params["axis"]), to.dtypes[operands[0]]))]


def _concatenate(to: Builder, step: Step, operands: list[str]) -> list[str]:
    found, *others = operands
    for other in others:
        found = to.call("append", found, other, extras=(int(step.equation.params["dimension"]),))
    return [found]


def _stack(to: Builder, step: Step, operands: list[str]) -> list[str]:
    axis, before = int(step.equation.params["axis"]), shape(step, 0)
    found, *others = (to.reshape(name, before, (*before[:axis], 1, *before[axis:])) for name in operands)
    for other in others:
        found = to.call("append", found, other, extras=(axis,))
    return [found]


def _unstack(to: Builder, step: Step, operands: list[str]) -> list[str]:
    axis = int(step.equation.params["axis"])
    return [to.take(operands[0], i, axis) for i in range(shape(step, 0)[axis])]


def _tile(to: Builder, step: Step, operands: list[str]) -> list[str]:
    found = operands[0]
    for axis, (size, times) in enumerate(zip(shape(step, 0), step.equation.params["reps"], strict=True)):
        found = found if times == 1 else to.take(found, np.tile(np.arange(size), times), axis)
    return [found]


def _slice(to: Builder, step: Step, operands: list[str]) -> list[str]:
    given, found = step.equation.params, operands[0]
    strides = given["strides"] or (1,) * len(given["start_indices"])
    for axis, (start, limit, stride) in enumerate(
        zip(given["start_indices"], given["limit_indices"], strides, strict=True)
    ):
        if (start, limit, stride) != (0, shape(step, 0)[axis], 1):
            found = to.take(found, np.arange(start, limit, stride), axis)
    return [found]


def _split(to: Builder, step: Step, operands: list[str]) -> list[str]:
    axis, ends = int(step.equation.params["axis"]), np.cumsum(step.equation.params["sizes"])
    starts = [0, *ends[:-1]]
    return [to.take(operands[0], np.arange(start, end), axis) for start, end in zip(starts, ends, strict=True)]


def _rev(to: Builder, step: Step, operands: list[str]) -> list[str]:
    found = operands[0]
    for axis in step.equation.params["dimensions"]:
        found = to.take(found, np.arange(shape(step, 0)[axis])[::-1], int(axis))
    return [found]


def _pad(to: Builder, step: Step, operands: list[str]) -> list[str]:
    config = step.equation.params["padding_config"]
    value = to.constants.get(operands[1])
    if any(low < 0 or high < 0 or inner for low, high, inner in config) or value is None or value != 0:
        raise Untranslated("'pad' with numbers other than 0, between entries, or of a negative width")
    widths = [[int(low), int(high)] for low, high, _ in config]
    return [to.call("pad", operands[0], extras=(widths,)) if np.any(widths) else operands[0]]


def _dynamic_slice(to: Builder, step: Step, operands: list[str]) -> list[str]:
    found, *starts = operands
    for axis, (size, length) in enumerate(zip(step.equation.params["slice_sizes"], shape(step, 0), strict=True)):
        if size != length:
            start = to.clamped(to.cast(starts[axis], np.int64), 0, length - size)
            found = to.call("take", found, to.call("add", start, to.constant(np.arange(size))), extras=(axis,))
    return [found]


def _gather(to: Builder, step: Step, operands: list[str]) -> list[str]:
    """A gather whose slices have one entry of some axes and all entries of the others, as `x[i, :, j]` makes it."""
    given, before, of = step.equation.params, shape(step, 0), shape(step, 1)[:-1]
    dims = given["dimension_numbers"]
    axes = [*dims.start_index_map, *dims.operand_batching_dims]
    rest = [axis for axis in range(len(before)) if axis not in axes]
    whole = tuple(1 if axis in axes else size for axis, size in enumerate(before))
    if tuple(given["slice_sizes"]) != whole or set(dims.collapsed_slice_dims) != set(dims.start_index_map):
        raise Untranslated("'gather' of parts of an axis")
    indices = to.cast(operands[1], np.int64)
    parts = [to.take(indices, i, len(of)) for i in range(len(dims.start_index_map))]
    for along in dims.start_indices_batching_dims:
        wide = [of[along] if i == along else 1 for i in range(len(of))]
        parts.append(to.constant(np.broadcast_to(np.arange(of[along]).reshape(wide), of)))
    inside = [to.clamped(part, 0, before[axis] - 1) for part, axis in zip(parts, axes, strict=True)]
    flat = inside[0]
    for part, axis in zip(inside[1:], axes[1:], strict=True):
        flat = to.call("add", to.call("multiply", flat, to.like(before[axis], flat)), part)
    sizes = [before[axis] for axis in rest]
    rows = _rearranged(to, operands[0], before, (*axes, *rest), (math.prod(before[axis] for axis in axes), *sizes))
    found = to.call("take", rows, flat, extras=(0,))
    if given["mode"] == jax.lax.GatherScatterMode.FILL_OR_DROP:
        valid = to.call("equal", parts[0], inside[0])
        for part, clamped in zip(parts[1:], inside[1:], strict=True):
            valid = to.call("logical_and", valid, to.call("equal", part, clamped))
        found = to.call("where", to.reshape(valid, of, (*of, *(1 for _ in rest))), found, _fill(to, step, found))
    batch = [axis for axis in range(len(result(step).shape)) if axis not in dims.offset_dims]
    return [to.transpose(found, np.argsort([*batch, *dims.offset_dims]).tolist())]


def _fill(to: Builder, step: Step, found: str) -> str:
    """What a gather returns for an index out of range: NaN, or the smallest signed or largest unsigned integer."""
    value, kind = step.equation.params["fill_value"], np.dtype(to.dtypes[found])
    if value is None:
        value = np.nan if kind.kind == "f" else np.iinfo(kind).min if kind.kind == "i" else np.iinfo(kind).max
    return to.like(value, found)


def _dot_general(to: Builder, step: Step, operands: list[str]) -> list[str]:
    (contracted, batch), after = step.equation.params["dimension_numbers"], result(step)
    shapes = [shape(step, 0), shape(step, 1)]
    left, right = (to.cast(name, after.dtype) for name in operands)
    if not jnp.issubdtype(after.dtype, jnp.floating):
        raise Untranslated(f"'dot_general' of {after.dtype}")
    if not batch[0] and contracted[1] == (0,) and contracted[0] == (len(shapes[0]) - 1,) and len(shapes[1]) == 2:
        # A dense layer.
        return [to.call("matmul", left, right)]
    free = [[i for i in range(len(size)) if i not in (*contracted[k], *batch[k])] for k, size in enumerate(shapes)]
    rows, columns, inner = (
        math.prod(shapes[k][i] for i in axes) for k, axes in ((0, free[0]), (1, free[1]), (0, contracted[0]))
    )
    outer = [shapes[0][i] for i in batch[0]]
    left = _rearranged(to, left, shapes[0], (*batch[0], *free[0], *contracted[0]), (*outer, rows, inner))
    right = _rearranged(to, right, shapes[1], (*batch[1], *contracted[1], *free[1]), (*outer, inner, columns))
    return [to.reshape(to.call("matmul", left, right), (*outer, rows, columns), after.shape)]


def _rearranged(to: Builder, name: str, before: Sequence[int], axes: Sequence[int], after: Sequence[int]) -> str:
    """`name` of shape `before` with its axes in the order `axes`, then reshaped to `after`."""
    return to.reshape(to.transpose(name, axes), [before[i] for i in axes], after)


def _convolution(to: Builder, step: Step, operands: list[str]) -> list[str]:
    """A convolution as a product of patches [rows, places, patch] with the kernel [patch, features]."""
    given, image, kernel = step.equation.params, shape(step, 0), shape(step, 1)
    dims = given["dimension_numbers"]
    padding, strides, dilation = given["padding"], given["window_strides"], given["rhs_dilation"]
    grouped = given["feature_group_count"] != 1 or given["batch_group_count"] != 1
    if grouped or any(by != 1 for by in given["lhs_dilation"]) or any(width < 0 for pair in padding for width in pair):
        raise Untranslated("'conv_general_dilated' in groups, transposed, or with negative padding")
    order = (dims.lhs_spec[0], *dims.lhs_spec[2:], dims.lhs_spec[1])
    rows, *sizes, channels = (image[i] for i in order)
    found = to.transpose(operands[0], order)
    if np.any(padding):
        found = to.call("pad", found, extras=([[0, 0], *([int(a), int(b)] for a, b in padding), [0, 0]],))
    sizes = [size + low + high for size, (low, high) in zip(sizes, padding, strict=True)]
    window = [kernel[i] for i in dims.rhs_spec[2:]]
    places = [result(step).shape[i] for i in dims.out_spec[2:]]
    # Position of each entry of each patch in the flattened image.
    at: Any = np.zeros((), np.int64)
    for k, size in enumerate(sizes):
        along = np.arange(places[k])[:, None] * strides[k] + np.arange(window[k]) * dilation[k]
        wide = [1] * (2 * len(sizes))
        wide[k], wide[len(sizes) + k] = along.shape
        at = at * size + along.reshape(wide)
    number, patch = math.prod(places), math.prod(window)
    found = to.reshape(found, (rows, *sizes, channels), (rows, math.prod(sizes), channels))
    found = to.take(found, at.reshape(-1), 1)
    found = to.reshape(found, (rows, number * patch, channels), (rows, number, patch * channels))
    features = kernel[dims.rhs_spec[0]]
    weights = _rearranged(
        to, operands[1], kernel, (*dims.rhs_spec[2:], dims.rhs_spec[1], dims.rhs_spec[0]), (patch * channels, features)
    )
    found = to.reshape(to.call("matmul", found, weights), (rows, number, features), (rows, *places, features))
    placed = (dims.out_spec[0], *dims.out_spec[2:], dims.out_spec[1])
    return [to.transpose(found, np.argsort(placed).tolist())]


def _window(function: str) -> Translation:
    """A reduction over windows, such as pooling, one axis after the other."""

    def translation(to: Builder, step: Step, operands: list[str]) -> list[str]:
        given, found, before = step.equation.params, operands[0], shape(step, 0)
        padding = [(int(low), int(high)) for low, high in given["padding"]]
        if any(by != 1 for by in given["base_dilation"]) or any(width < 0 for pair in padding for width in pair):
            raise Untranslated(f"'{step.primitive}' with gaps between entries, or with negative padding")
        if function == "sum" and np.any(padding):
            found = to.call("pad", found, extras=([list(pair) for pair in padding],))
            before = tuple(size + low + high for size, (low, high) in zip(before, padding, strict=True))
            padding = [(0, 0)] * len(before)
        for axis, size in enumerate(before):
            window, spread = given["window_dimensions"][axis], given["window_dilation"][axis]
            if max(padding[axis]) >= (window if spread == 1 else 1):
                raise Untranslated(f"'{step.primitive}' with windows of padding alone")
            places = np.arange(result(step).shape[axis]) * given["window_strides"][axis] - padding[axis][0]
            # A maximum does not change if an entry of the window is repeated in place of the padding.
            at = np.clip(places[:, None] + np.arange(window) * spread, 0, size - 1)
            more = (to.dtypes[found],) if function == "sum" else ()
            found = to.call(function, to.take(found, at, axis), extras=(axis + 1, *more))
        return [found]

    return translation


def _checked(name: str, translation: Translation) -> Translation:
    """`translation` that refuses to compute with bfloat16 numbers, which are rounded only where they are made."""

    def checked(to: Builder, step: Step, operands: list[str]) -> list[str]:
        if name not in ROUNDED and any(out.aval.dtype == jnp.bfloat16 for out in step.equation.outvars):
            raise Untranslated(f"'{name}' of bfloat16")
        return translation(to, step, operands)

    return checked


TRANSLATIONS: dict[str, Translation] = {
    name: _checked(name, translation)
    for name, translation in {
        **{name: _plain(function) for name, function in {**UNARY, **BINARY}.items()},
        **{name: _logical(function) for name, function in LOGICAL.items()},
        **dict.fromkeys(SAME, lambda to, step, operands: operands),
        "argmax": _argument("argmax"),
        "argmin": _argument("argmin"),
        "broadcast_in_dim": _broadcast,
        "clamp": _clamp,
        "concatenate": _concatenate,
        "conv_general_dilated": _convolution,
        "convert_element_type": _convert,
        "cumsum": _cumsum,
        "div": _div,
        "dot_general": _dot_general,
        "dynamic_slice": _dynamic_slice,
        "erf": _erf,
        "gather": _gather,
        "integer_pow": _integer_pow,
        "logistic": _logistic,
        "pad": _pad,
        "pow": _pow,
        "reduce_and": _reduction("all"),
        "reduce_max": _reduction("max"),
        "reduce_min": _reduction("min"),
        "reduce_or": _reduction("any"),
        "reduce_prod": _reduction("prod"),
        "reduce_sum": _reduction("sum"),
        "reduce_window_max": _window("max"),
        "reduce_window_min": _window("min"),
        "reduce_window_sum": _window("sum"),
        "reshape": _reshape,
        "rev": _rev,
        "round": _round,
        "rsqrt": _rsqrt,
        "select_n": _select_n,
        "slice": _slice,
        "split": _split,
        "squeeze": _squeeze,
        "stack": _stack,
        "tile": _tile,
        "transpose": _transpose,
        "unstack": _unstack,
    }.items()
}
"""Primitive -> its translation."""
