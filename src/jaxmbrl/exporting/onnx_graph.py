"""The ONNX graph of a `Program`. The package `onnx` writes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jaxmbrl.core.config import UserError
from jaxmbrl.exporting.program import Call, Program, Untranslated

OPSET, IR_VERSION = 17, 8
"""Versions of the operators and of the format, which ONNX Runtime has loaded since 1.12."""

OPERATORS = {
    "absolute": "Abs",
    "add": "Add",
    "arccos": "Acos",
    "arccosh": "Acosh",
    "arcsin": "Asin",
    "arcsinh": "Asinh",
    "arctan": "Atan",
    "arctanh": "Atanh",
    "ceil": "Ceil",
    "cos": "Cos",
    "cosh": "Cosh",
    "divide": "Div",
    "equal": "Equal",
    "erf": "Erf",
    "exp": "Exp",
    "floor": "Floor",
    "greater": "Greater",
    "greater_equal": "GreaterOrEqual",
    "less": "Less",
    "less_equal": "LessOrEqual",
    "log": "Log",
    "logical_and": "And",
    "logical_not": "Not",
    "logical_or": "Or",
    "logical_xor": "Xor",
    "matmul": "MatMul",
    "maximum": "Max",
    "minimum": "Min",
    "multiply": "Mul",
    "negative": "Neg",
    "power": "Pow",
    "rint": "Round",
    "sign": "Sign",
    "sin": "Sin",
    "sinh": "Sinh",
    "sqrt": "Sqrt",
    "subtract": "Sub",
    "tan": "Tan",
    "tanh": "Tanh",
    "where": "Where",
}
"""Functions of NumPy that are one operator with the same operands."""


def import_onnx() -> Any:
    """The package `onnx`. Raises UserError if it is not installed."""
    try:
        import onnx
    except ImportError:
        raise UserError("onnx is missing: pip install 'jaxmbrl[onnx]'") from None
    return onnx


def model(program: Program, shapes: Mapping[str, tuple[int, ...]], outputs: list[str], about: str) -> bytes:
    """The bytes of an ONNX model. `shapes` are those of the inputs and, by the names `outputs`, of the outputs. `about` is
    text in the model's metadata, under the key `jaxmbrl`. Raises Untranslated."""
    onnx = import_onnx()
    graph = _Graph(onnx, program)
    for call in program.calls:
        graph.add(call)
    for name, value in zip(outputs, program.outputs, strict=True):
        graph.node("Identity", [value], name)

    def declared(name: str, value: str) -> Any:
        kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(program.dtypes[value]))
        return onnx.helper.make_tensor_value_info(name, kind, shapes[name])

    made = onnx.helper.make_model(
        onnx.helper.make_graph(
            graph.nodes,
            "policy",
            [declared(name, name) for name in program.inputs],
            [declared(name, value) for name, value in zip(outputs, program.outputs, strict=True)],
            graph.initializers,
        ),
        producer_name="jaxmbrl",
        opset_imports=[onnx.helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
    )
    onnx.helper.set_model_props(made, {"jaxmbrl": about})
    onnx.checker.check_model(made, full_check=True)
    return made.SerializeToString()


class _Graph:
    """The nodes and initializers of a graph, which grow call by call."""

    def __init__(self, onnx: Any, program: Program) -> None:
        self.onnx, self.dtypes = onnx, program.dtypes
        self.nodes: list[Any] = []
        self.initializers = [onnx.numpy_helper.from_array(value, name) for name, value in program.constants.items()]

    def add(self, call: Call) -> None:
        """The nodes of one call."""
        if call.function in OPERATORS:
            self.node(OPERATORS[call.function], list(call.operands), call.result)
        elif call.function in SPECIAL:
            SPECIAL[call.function](self, call)
        else:
            raise Untranslated(f"'{call.function}'")

    def node(self, operator: str, operands: list[str], result: str = "", **attributes: Any) -> str:
        """Add a node, and return the name of its result."""
        result = result or f"n{len(self.nodes)}"
        self.nodes.append(self.onnx.helper.make_node(operator, operands, [result], **attributes))
        return result

    def constant(self, value: Any, dtype: Any = np.int64) -> str:
        """The name of a further constant."""
        name = f"k{len(self.initializers)}"
        self.initializers.append(self.onnx.numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def like(self, value: float | int, operand: str) -> str:
        """The scalar `value` with the dtype of `operand`."""
        return self.constant(value, self.dtypes[operand])

    def cast(self, operand: str, dtype: str, result: str = "") -> str:
        """`operand` with another dtype."""
        kinds = self.onnx.TensorProto
        kind = kinds.BFLOAT16 if dtype == "bfloat16" else self.onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        return self.node("Cast", [operand], result, to=kind)


def _with_constant(operator: str) -> Callable[[_Graph, Call], None]:
    """An operator whose second operand is a list of integers, the last extra argument of the function."""

    def add(graph: _Graph, call: Call) -> None:
        graph.node(operator, [*call.operands, graph.constant(call.extras[-1])], call.result)

    return add


def _transpose(graph: _Graph, call: Call) -> None:
    graph.node("Transpose", list(call.operands), call.result, perm=call.extras[0])


def _cast(graph: _Graph, call: Call) -> None:
    graph.cast(call.operands[0], call.extras[0], call.result)


def _sum(graph: _Graph, call: Call) -> None:
    graph.node("ReduceSum", [*call.operands, graph.constant([call.extras[0]])], call.result, keepdims=0)


def _reduction(operator: str) -> Callable[[_Graph, Call], None]:
    def add(graph: _Graph, call: Call) -> None:
        graph.node(operator, list(call.operands), call.result, axes=[call.extras[0]], keepdims=0)

    return add


def _of_truths(operator: str) -> Callable[[_Graph, Call], None]:
    """A reduction of booleans, as numbers."""

    def add(graph: _Graph, call: Call) -> None:
        number = graph.cast(call.operands[0], "int32")
        graph.cast(graph.node(operator, [number], axes=[call.extras[0]], keepdims=0), "bool", call.result)

    return add


def _argument(operator: str) -> Callable[[_Graph, Call], None]:
    def add(graph: _Graph, call: Call) -> None:
        graph.node(operator, list(call.operands), call.result, axis=call.extras[0], keepdims=0)

    return add


def _cumsum(graph: _Graph, call: Call) -> None:
    graph.node("CumSum", [*call.operands, graph.constant(call.extras[0])], call.result)


def _take(graph: _Graph, call: Call) -> None:
    graph.node("Gather", list(call.operands), call.result, axis=call.extras[0])


def _append(graph: _Graph, call: Call) -> None:
    graph.node("Concat", list(call.operands), call.result, axis=call.extras[0])


def _pad(graph: _Graph, call: Call) -> None:
    widths = [width[0] for width in call.extras[0]] + [width[1] for width in call.extras[0]]
    graph.node("Pad", [*call.operands, graph.constant(widths)], call.result)


def _square(graph: _Graph, call: Call) -> None:
    graph.node("Mul", [call.operands[0], call.operands[0]], call.result)


def _not_equal(graph: _Graph, call: Call) -> None:
    graph.node("Not", [graph.node("Equal", list(call.operands))], call.result)


def _isfinite(graph: _Graph, call: Call) -> None:
    # The difference of a number that is not finite from itself is NaN.
    zero = graph.node("Sub", [call.operands[0], call.operands[0]])
    graph.node("Equal", [zero, graph.like(0.0, call.operands[0])], call.result)


def _fmod(graph: _Graph, call: Call) -> None:
    graph.node("Mod", list(call.operands), call.result, fmod=1)


def _exp2(graph: _Graph, call: Call) -> None:
    graph.node("Pow", [graph.like(2.0, call.operands[0]), call.operands[0]], call.result)


def _log1p(graph: _Graph, call: Call) -> None:
    """x log(y) / (y - 1) for y = 1 + x, as rounded, which is as accurate as log(y) is (W. Kahan); x where y is 1."""
    x, one = call.operands[0], graph.like(1.0, call.operands[0])
    y = graph.node("Add", [x, one])
    exact = graph.node("Equal", [y, one])
    less = graph.node("Where", [exact, one, graph.node("Sub", [y, one])])
    ratio = graph.node("Div", [x, less])
    # Infinity over infinity.
    ratio = graph.node("Where", [graph.node("Equal", [y, x]), one, ratio])
    graph.node("Where", [exact, x, graph.node("Mul", [graph.node("Log", [y]), ratio])], call.result)


def _expm1(graph: _Graph, call: Call) -> None:
    """(y - 1) x / log(y) for y = exp(x), as rounded (W. Kahan); x where y is 1, and y - 1 where |x| > 1."""
    x, one = call.operands[0], graph.like(1.0, call.operands[0])
    y = graph.node("Exp", [x])
    less, exact = graph.node("Sub", [y, one]), graph.node("Equal", [y, one])
    log = graph.node("Where", [exact, one, graph.node("Log", [y])])
    near = graph.node("Mul", [less, graph.node("Div", [x, log])])
    far = graph.node("Greater", [graph.node("Abs", [x]), one])
    graph.node("Where", [exact, x, graph.node("Where", [far, less, near])], call.result)


SPECIAL: dict[str, Callable[[_Graph, Call], None]] = {
    "all": _of_truths("ReduceMin"),
    "any": _of_truths("ReduceMax"),
    "append": _append,
    "argmax": _argument("ArgMax"),
    "argmin": _argument("ArgMin"),
    "asarray": _cast,
    "broadcast_to": _with_constant("Expand"),
    "cumsum": _cumsum,
    "exp2": _exp2,
    "expm1": _expm1,
    "fmod": _fmod,
    "isfinite": _isfinite,
    "log1p": _log1p,
    "max": _reduction("ReduceMax"),
    "min": _reduction("ReduceMin"),
    "not_equal": _not_equal,
    "pad": _pad,
    "prod": _reduction("ReduceProd"),
    "reshape": _with_constant("Reshape"),
    "square": _square,
    "sum": _sum,
    "take": _take,
    "transpose": _transpose,
}
"""Functions that are written in other ways."""
