"""The steps of a `scan` or `while`, run one compiled step at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmbrl.debug.elements import Place, element_is_bad
from jaxmbrl.debug.equations import Evaluator, Level, Step, jaxpr_of


class Loop(NamedTuple):
    """A `scan` or `while` as a sequence of steps (constants, carry, row) -> (carry, row)."""

    evaluator: Evaluator
    operands: list[Any]
    """The operands of the loop's equation."""
    body: Any
    """The jaxpr of a step."""
    constants: tuple[int, ...]
    """Indices into the operands."""
    carry: tuple[int, ...]
    rows: tuple[int, ...]
    length: int | None
    """Number of steps; None for a `while`, which ends when `goes_on` of the carry is false."""
    reverse: bool
    goes_on: Callable[[list[Any]], Any]
    """Condition of a `while`. Under `vmap` it may return one value for each row: each row ends by its own value, and the
    loop ends with the last row."""

    @property
    def level(self) -> Level:
        """The equations of a step."""
        return self.evaluator.level(self.body)

    def row(self, step: int) -> int:
        """Index of the row that a step reads and writes."""
        return self.length - 1 - step if self.reverse and self.length is not None else step

    def inputs(self, carry: list[Any], number: int) -> list[Any]:
        """The inputs of step `number`."""
        rows = [_row(self.operands[x], self.row(number)) for x in self.rows]
        return [*(self.operands[x] for x in self.constants), *carry, *rows]

    def run(self, last: int | None, and_end: bool = False) -> Iterator[tuple[int, list[Any]]]:
        """Yield (number, carry) before each step below `last`; with `and_end`, also after the last step."""
        carry, number = [self.operands[x] for x in self.carry], 0
        while np.any(on := self.goes_on(carry)) and (last is None or number < last):
            yield number, carry
            if and_end or last is None or number + 1 < last:
                inputs = self.inputs(carry, number)
                after = self.evaluator.values(self.level, inputs, self.level.outputs[: len(self.carry)])
                carry = [_where(on, new, old) for new, old in zip(after, carry, strict=True)] if np.ndim(on) else after
            number += 1
        if and_end:
            yield number, carry

    def faulty_step(self, place: Place, last: int | None) -> tuple[int, list[Any]] | None:
        """(number, carry before it) of the last step before `last` in which an element of the carry ceased to be finite.
        None if there is no such step."""
        found, before = None, None
        for number, carry in self.run(last, and_end=True):
            bad = element_is_bad(carry[place.position], place.element)
            if before is not None and bad and not before[0]:
                found = number - 1, before[1]
            before = bad, carry
        return found


def loop_of(step: Step, operands: list[Any], evaluator: Evaluator) -> Loop:
    """The loop of a `scan` or `while` equation."""
    equation, count = step.equation, len(operands)
    if step.primitive == "while":
        of_test, of_body = equation.params["cond_nconsts"], equation.params["body_nconsts"]
        test = evaluator.level(equation.params["cond_jaxpr"])
        carry = tuple(range(of_test + of_body, count))

        def goes_on(carry: list[Any]) -> Any:
            return evaluator.values(test, [*operands[:of_test], *carry], test.outputs)[0]

        constants = tuple(range(of_test, of_test + of_body))
        return Loop(evaluator, operands, equation.params["body_jaxpr"], constants, carry, (), None, False, goes_on)
    body = equation.params["jaxpr"]
    jaxpr = jaxpr_of(body)
    # Distinguish operands by rank, which works in every version of JAX: rows have one more axis outside of the body.
    pairs = list(zip(equation.invars, jaxpr.invars, strict=True))
    rows = sum(len(outer.aval.shape) > len(inner.aval.shape) for outer, inner in pairs)
    both = zip(equation.outvars, jaxpr.outvars, strict=True)
    carried = sum(len(outer.aval.shape) == len(inner.aval.shape) for outer, inner in both)
    first = count - rows - carried
    return Loop(
        evaluator,
        operands,
        body,
        tuple(range(first)),
        tuple(range(first, count - rows)),
        tuple(range(count - rows, count)),
        equation.params["length"],
        equation.params["reverse"],
        lambda carry: np.True_,
    )


def _where(on: Any, new: Any, old: Any) -> Any:
    """Take a step in some rows only, as `vmap` does in a loop whose rows end at different steps."""
    return jnp.where(on.reshape(on.shape + (1,) * (np.ndim(new) - on.ndim)), new, old)


_row = jax.jit(lambda x, row: x[row])
