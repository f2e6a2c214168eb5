"""Find the element of an operand that makes an element of an operation's result bad."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxmbrl.debug.elements import Place, bad, has_nan, kind, sound
from jaxmbrl.debug.equations import Step, bound


def cause(step: Step, operands: list[Any], place: Place) -> Place | None:
    """An element of an operand that alone makes the element `place` of a result bad; None if the finite elements of the
    operands do. To find it, bad elements are replaced by finite ones and the operation is computed again.
    """
    marks = _marks(step, operands, place)

    def outcome(kept: dict[int, Any]) -> str:
        """The kind of the result's element if only the bad elements in `kept` stay and all others are replaced."""
        tried = [
            x if i not in marks else jnp.where(jnp.asarray(marks[i] & ~kept.get(i, np.False_)), sound(x), x)
            for i, x in enumerate(operands)
        ]
        return kind(bound(step, tried)[place.position], place.element)

    if not marks or outcome({}) != "":
        return None
    full = outcome(marks)
    for accepted in ({full}, {"nan", "inf", "false"}):
        for i, mark in marks.items():

            def accepts(kept: Any, of: int = i, accepted: set[str] = accepted) -> bool:
                return outcome({of: kept}) in accepted

            if accepts(mark):
                return Place(i, _narrowed(accepts, mark, place.element))
    first = next(iter(marks))
    return Place(first, int(np.flatnonzero(marks[first])[0]))


def _marks(step: Step, operands: list[Any], place: Place) -> dict[int, Any]:
    """Masks of the bad operand elements that may cause a bad result, by position; operands with a NaN come first."""
    of_truth = step.equation.outvars[place.position].aval.dtype == bool
    # The predicate of a select chooses a value, but is not itself one of the values.
    first = 1 if step.primitive == "select_n" else 0
    marks = {}
    for i, x in list(enumerate(operands))[first:]:
        if of_truth or x.dtype != bool:
            mark = bad(x)
            if mark.any():
                marks[i] = mark
    return dict(sorted(marks.items(), key=lambda item: not has_nan(operands[item[0]])))


def _narrowed(accepts: Callable[[Any], bool], mark: Any, guess: int) -> int:
    """A marked element that is accepted alone, or else one of a few that are only accepted together. `guess` is tried
    first."""

    def only(elements: Any) -> Any:
        kept = np.zeros(mark.size, bool)
        kept[elements] = True
        return kept.reshape(mark.shape)

    left = np.flatnonzero(mark)
    if guess in left and accepts(only([guess])):
        return guess
    while len(left) > 1:
        half = len(left) // 2
        left = next((part for part in (left[:half], left[half:]) if accepts(only(part))), left[:1])
    return int(left[0])
