"""Find the origin of a value that is not finite: the operation that produced it, its operands, and its source lines.

`find` traces a function and walks backwards from one element that is not finite. It goes to an element of an operand that
alone causes it, then to the operation that produced that element, and so on, until an operation produces it from finite
numbers. Values on which the element does not depend are never examined. So it does not report a NaN that a `where`
discards, a fault of another seed, or an intended infinity (a mask of -inf, an initial best value). Called functions are
treated as part of their caller. The steps of a `scan` or `while` run compiled, and the walk continues in the last step in
which the element ceased to be finite.

All values are recomputed, in smaller programs than the whole function. A value close to overflow may then round
differently, and the walk ends early, at the last operation with a result that is still not finite.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmbrl.core.types import PyTree
from jaxmbrl.debug import origins
from jaxmbrl.debug.causes import cause
from jaxmbrl.debug.elements import Place, bad, kind
from jaxmbrl.debug.equations import Constant, Evaluator, Level, Step, jaxpr_of
from jaxmbrl.debug.loops import Loop, loop_of
from jaxmbrl.debug.origins import Origin


def find(function: Callable[..., PyTree], *arguments: PyTree, element: int | None = None) -> Origin | None:
    """The origin of the first element of `function(*arguments)` that is NaN, infinite or false. If the function returns one
    array, `element` is an index into the flattened array and selects the element. None if it is finite (or true).

    A false result is followed through `isfinite` and `all` to the number that is not finite. The function is traced and
    compiled in parts. All intermediate values on which the element depends are in memory at the same time.
    """
    named = jax.tree_util.tree_flatten_with_path(arguments)[0]
    walk = _Walk()
    level = walk.evaluator.level(jax.make_jaxpr(function)(*arguments))
    inputs = [jnp.asarray(leaf) for _, leaf in named]
    if element is None:
        marks = [np.flatnonzero(bad(x)) for x in walk.evaluator.values(level, inputs, level.outputs)]
        places = [Place(i, int(mark[0])) for i, mark in enumerate(marks) if mark.size]
    else:
        places = [Place(0, element)]
    for place in places[:1]:
        found = walk.search(level, inputs, place, ())
        if not isinstance(found, Place):
            return found
        if kind(inputs[found.position], found.element):
            argument = origins.of_argument(named[found.position][0], inputs[found.position], found.element)
            return walk.turned or argument
    return None


class _Walk:
    """One walk from a result back to its origin."""

    def __init__(self) -> None:
        self.evaluator = Evaluator()
        self.turned: Origin | None = None
        """The operation that turned the infinity that is being followed into a NaN."""

    def search(self, level: Level, inputs: Sequence[Any], place: Place, path: tuple[str, ...]) -> Origin | Place | None:
        """Walk back from an output of the level. Returns an `Origin` or a place in the level's inputs; None if the output
        is not bad."""
        at, element = level.outputs[place.position], place.element
        if isinstance(at, Constant):
            return None
        if at < level.inputs:
            return place._replace(position=at)
        made_by = {x: step for step in level.steps for x in step.results}
        known = self.evaluator.behind(level, inputs, at)
        if not bad(known[at]).flat[element]:
            return None
        while True:
            step = made_by[at]
            operands = [x.value if isinstance(x, Constant) else known[x] for x in step.operands]
            here = Place(step.results.index(at), element)
            found = self.inside(step, operands, here, path) if step.has_parts else cause(step, operands, here)
            if isinstance(found, Origin):
                return found
            origin = origins.of_step(step, operands, known[at], element, path)
            if found is None:
                return origin
            follows = kind(operands[found.position], found.element)
            if follows == "inf" and origin.kind == "nan" and not step.has_parts:
                self.turned = self.turned or origin
            elif follows == "nan":
                self.turned = None
            next_one, element = step.operands[found.position], found.element
            if isinstance(next_one, Constant):
                return self.turned or origin
            if next_one < level.inputs:
                return Place(next_one, element)
            at = next_one

    def inside(self, step: Step, operands: list[Any], place: Place, path: tuple[str, ...]) -> Origin | Place | None:
        """Walk back from a result of a loop or a branch. Returns an `Origin` or a place in its operands."""
        name, path = step.primitive, (*path, *step.path)
        if name == "cond":
            branch = int(np.clip(operands[0], 0, len(step.equation.params["branches"]) - 1))
            level = self.evaluator.level(step.equation.params["branches"][branch])
            found = self.search(level, operands[1:], place, (*path, f"cond branch {branch}"))
            return Place(found.position + 1, found.element) if isinstance(found, Place) else found
        return self.steps(loop_of(step, operands, self.evaluator), place, (*path, name))

    def steps(self, loop: Loop, place: Place, path: tuple[str, ...]) -> Origin | Place | None:
        """Walk back through the steps of a loop from one of its results."""
        last, operands = loop.length, loop.operands
        while True:
            if place.position < len(loop.carry):
                found = loop.faulty_step(place, last)
                if found is None:
                    begins_bad = bad(operands[loop.carry[place.position]]).flat[place.element]
                    return Place(loop.carry[place.position], place.element) if begins_bad else None
                number, carry = found
            else:
                size = math.prod(jaxpr_of(loop.body).outvars[place.position].aval.shape)
                number = loop.row(place.element // size)
                *_, (_, carry) = loop.run(number + 1)
                place = Place(place.position, place.element % size)
            step = (*path[:-1], f"{path[-1]} step {number}")
            inner = self.search(loop.level, loop.inputs(carry, number), place, step)
            if not isinstance(inner, Place):
                return inner
            if inner.position < len(loop.constants):
                return Place(loop.constants[inner.position], inner.element)
            position = inner.position - len(loop.constants)
            if position >= len(loop.carry):
                row = operands[loop.rows[position - len(loop.carry)]]
                first = loop.row(number) * math.prod(row.shape[1:])
                return Place(loop.rows[position - len(loop.carry)], first + inner.element)
            place, last = Place(position, inner.element), number
