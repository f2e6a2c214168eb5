"""Flatten a traced function into a list of equations, and evaluate it in pieces.

Function calls (`jit`, `remat`, custom derivatives) are inlined into their caller. `cond`, `scan` and `while` stay single
equations.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend.core import Literal

from jaxmbrl.debug.elements import any_bad

CALLS = frozenset(["jit", "pjit", "closed_call", "core_call", "remat", "remat2", "checkpoint"]) | frozenset(
    ["custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr"]
)
"""Primitives that call one function once."""


class Constant(NamedTuple):
    """An operand that does not depend on the arguments."""

    value: Any


class Step(NamedTuple):
    """One equation. Operands and results are indices of values in the level."""

    equation: Any
    operands: tuple[int | Constant, ...]
    results: tuple[int, ...]
    path: tuple[str, ...]
    """The calls from which it was inlined, outermost first."""

    @property
    def primitive(self) -> str:
        """Name of the operation."""
        return self.equation.primitive.name

    @property
    def has_parts(self) -> bool:
        """Whether it is a branch or a loop, with equations of its own."""
        return self.primitive in ("cond", "scan", "while")


class Level(NamedTuple):
    """The equations of a function, including those of the functions that it calls. The inputs are the first values."""

    steps: tuple[Step, ...]
    inputs: int
    outputs: tuple[int | Constant, ...]


class Evaluator:
    """Computes values of levels, and caches compiled programs."""

    def __init__(self) -> None:
        self._levels: dict[int, tuple[Any, Level]] = {}
        self._compiled: dict[Any, Any] = {}

    def level(self, closed: Any) -> Level:
        """The level of a jaxpr."""
        if id(closed) not in self._levels:
            # Keep a reference to the jaxpr, so that its id is not reused.
            self._levels[id(closed)] = closed, flattened(closed)
        return self._levels[id(closed)][1]

    def values(self, level: Level, inputs: Sequence[Any], wanted: Sequence[int | Constant]) -> list[Any]:
        """The `wanted` values of a level, computed from its inputs in one compiled program."""
        key = id(level), tuple(x for x in wanted if isinstance(x, int))
        if key not in self._compiled:
            self._compiled[key] = jax.jit(lambda inputs: [_computed(level, inputs)[x] for x in key[1]])
        computed = dict(zip(key[1], self._compiled[key](list(inputs)), strict=True))
        return [x.value if isinstance(x, Constant) else computed[x] for x in wanted]

    def behind(self, level: Level, inputs: Sequence[Any], output: int) -> dict[int, Any]:
        """The values with bad elements on which an output depends, and the operands of the equations that produced them.

        Each equation is compiled separately, because XLA takes minutes to compile one program that returns all of these
        values.
        """
        needed = {output}
        for step in reversed(level.steps):
            if needed.intersection(step.results):
                needed.update(x for x in step.operands if isinstance(x, int))
        steps = [step for step in level.steps if needed.intersection(step.results)]
        uses = Counter(x for step in steps for x in step.operands if isinstance(x, int))
        known = {x: inputs[x] for x in needed if x < level.inputs}
        kept = {output}
        for step in steps:
            results = bound(step, [x.value if isinstance(x, Constant) else known[x] for x in step.operands])
            bad = [x for x, value in zip(step.results, results, strict=True) if any_bad(value)]
            kept.update(bad)
            known |= {x: value for x, value in zip(step.results, results, strict=True) if x in needed}
            for x in (x for x in step.operands if isinstance(x, int)):
                uses[x] -= 1
                if bad:
                    kept.add(x)
                elif uses[x] == 0 and x not in kept:
                    known.pop(x, None)
        return known


def flattened(closed: Any) -> Level:
    """The level of a jaxpr, with the functions that it calls inlined."""
    steps: list[Step] = []
    count = len(jaxpr_of(closed).invars)
    numbers = iter(range(count, 2**62))

    def add(closed: Any, atoms: Sequence[int | Constant], path: tuple[str, ...]) -> list[int | Constant]:
        jaxpr = jaxpr_of(closed)
        found: dict[Any, int | Constant] = dict(zip(jaxpr.invars, atoms, strict=True))
        constants = getattr(closed, "consts", ())
        found |= {variable: Constant(value) for variable, value in zip(jaxpr.constvars, constants, strict=True)}

        def read(atom: Any) -> int | Constant:
            if isinstance(atom, Literal):
                aval: Any = atom.aval
                return Constant(np.asarray(atom.val, aval.dtype))
            return found[atom]

        for equation in jaxpr.eqns:
            operands = tuple(read(atom) for atom in equation.invars)
            if equation.primitive.name in CALLS:
                params = equation.params
                called = next(params[name] for name in ("jaxpr", "call_jaxpr", "fun_jaxpr") if name in params)
                name = params.get("name")
                label = " ".join([equation.primitive.name, *([name] if isinstance(name, str) else [])])
                results: Sequence[int | Constant] = add(called, operands, (*path, label))
            else:
                own = tuple(next(numbers) for _ in equation.outvars)
                steps.append(Step(equation, operands, own, path))
                results = own
            found |= dict(zip(equation.outvars, results, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    outputs = add(closed, range(count), ())
    return Level(tuple(steps), count, tuple(outputs))


def jaxpr_of(closed: Any) -> Any:
    """The jaxpr inside a closed jaxpr, or the argument itself if it is not closed."""
    return getattr(closed, "jaxpr", closed)


def bound(step: Step, operands: Sequence[Any]) -> Sequence[Any]:
    """The results of one equation for these operands."""
    primitive = step.equation.primitive
    with step.equation.ctx.manager:
        found = primitive.bind(*operands, **primitive.get_bind_params(step.equation.params))
    return found if primitive.multiple_results else [found]


def _computed(level: Level, inputs: Sequence[Any]) -> dict[int, Any]:
    """Compute all values of a level."""
    known = dict(enumerate(inputs))
    for step in level.steps:
        operands = [x.value if isinstance(x, Constant) else known[x] for x in step.operands]
        known |= dict(zip(step.results, bound(step, operands), strict=True))
    return known
