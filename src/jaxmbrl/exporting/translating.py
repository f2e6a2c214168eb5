"""The translation of a jaxpr to a `Program` of NumPy functions.

The translation knows primitives, not methods. What does not depend on the inputs is computed once and becomes a constant.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmbrl.debug.equations import Constant, Evaluator, Level, Step, flattened
from jaxmbrl.exporting.primitives import TRANSLATIONS
from jaxmbrl.exporting.program import Builder, Program, Untranslated


def translate(function: Callable[..., Any], inputs: dict[str, Any], onnx: bool = False) -> Program:
    """The program of `function(*inputs) -> tuple of arrays`. `inputs` are structures of arrays by name. With `onnx` the
    program may call functions that NumPy lacks and ONNX has.

    Raises Untranslated.
    """
    closed = jax.make_jaxpr(function)(*inputs.values())
    level = flattened(closed)
    steps, constant = live(level)
    for step in steps:
        if step.primitive not in TRANSLATIONS:
            raise Untranslated(f"'{step.primitive}'")
    builder = Builder(onnx)
    values = dict(enumerate(inputs))
    builder.dtypes |= {name: np.dtype(given.dtype).name for name, given in inputs.items()}
    read = [x for step in steps for x in step.operands] + list(level.outputs)
    known = sorted({x for x in read if isinstance(x, int) and x in constant})
    zeros = [jnp.zeros(given.shape, given.dtype) for given in inputs.values()]
    folded = Evaluator().values(level, zeros, known) if known else []
    values |= {x: builder.constant(value) for x, value in zip(known, folded, strict=True)}

    def name_of(x: int | Constant) -> str:
        return builder.constant(x.value) if isinstance(x, Constant) else values[x]

    for step in steps:
        results = TRANSLATIONS[step.primitive](builder, step, [name_of(x) for x in step.operands])
        values |= dict(zip(step.results, results, strict=True))
    outputs = tuple(name_of(x) for x in level.outputs)
    return _used(Program(tuple(inputs), builder.constants, tuple(builder.calls), outputs, builder.dtypes))


def live(level: Level) -> tuple[list[Step], set[Any]]:
    """(steps that depend on the inputs and on which the outputs depend, values that do not depend on the inputs)."""
    depends = set(range(level.inputs))
    for step in level.steps:
        if depends.intersection(x for x in step.operands if isinstance(x, int)):
            depends.update(step.results)
    needed = {x for x in level.outputs if isinstance(x, int)}
    steps = []
    for step in reversed(level.steps):
        if needed.intersection(step.results) and depends.intersection(step.results):
            steps.append(step)
            needed.update(x for x in step.operands if isinstance(x, int))
    return steps[::-1], {x for step in level.steps for x in step.results if x not in depends}


def uses(closed: Any) -> list[bool]:
    """Whether the results of a jaxpr depend on each of its inputs."""
    level = flattened(closed)
    values = [x for step in live(level)[0] for x in step.operands] + list(level.outputs)
    read = {x for x in values if isinstance(x, int)}
    return [i in read for i in range(level.inputs)]


def _used(program: Program) -> Program:
    """The program without calls and constants that nothing reads."""
    needed, calls = set(program.outputs), []
    for call in reversed(program.calls):
        if call.result in needed:
            calls.append(call)
            needed.update(call.operands)
    constants = {name: value for name, value in program.constants.items() if name in needed}
    return program._replace(constants=constants, calls=tuple(calls[::-1]))
