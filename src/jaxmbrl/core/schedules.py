"""Schedules: numbers that change with environment steps, linearly between two values or by a table."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any

import jax.numpy as jnp
from annotated_types import Ge
from jaxtyping import Array, Bool, Float, Int, Shaped


def linear(first: Any, last: Any, length: Any, steps: Any) -> Float[Array, ""]:
    """A linear schedule from `first` to `last` over `length` environment steps, then constant.

    >>> from jaxmbrl.core.schedules import linear
    >>> [float(linear(1.0, 0.0, 100, steps)) for steps in (-5, 0, 50, 200)]
    [1.0, 1.0, 0.5, 0.0]
    """
    return first + (last - first) * jnp.clip(steps / length, 0.0, 1.0)


def linear_whole(first: Any, last: Any, length: Any, steps: Any) -> Int[Array, ""]:
    """The same between whole numbers, exactly, and rounded down. `length` times their difference must be below 2^31."""
    return first + (jnp.clip(steps, 0, length) * (last - first)) // length


def fits_whole(length: int, difference: int, field: str) -> tuple[str, str] | None:
    """(field, message) if `linear_whole` over `length` steps between numbers with this `difference` would overflow."""
    if length * abs(difference) < 2**31:
        return None
    return field, f"changes by {abs(difference):,} over {length:,} steps: their product must be below 2^31"


def rounded_down(share: float, whole: int) -> int:
    """`share` times `whole`, rounded down. A product that misses a whole number by its rounding alone is this number.

    >>> from jaxmbrl.core.schedules import rounded_down
    >>> int(0.29 * 100), rounded_down(0.29, 100), rounded_down(0.289, 100)
    (28, 29, 28)
    """
    return math.floor(share * whole + 1e-9)


def traced_rounded_down(share: Float[Array, ""], whole: int) -> Int[Array, ""]:
    """The same for a share that is traced."""
    product = share * whole
    return jnp.floor(product * (1 + 4 * jnp.finfo(product.dtype).eps)).astype(jnp.int32)


def of_table(
    steps: Int[Array, "S"], values: Shaped[Array, "S"], now: Int[Array, ""] | int, interpolates: Bool[Array, ""] | bool
) -> Shaped[Array, ""]:
    """The value of a table at `now`: that of the last of the `steps`, which increase, that is not above it, or between this
    and the next one linearly if it `interpolates`. Before the first step the first value, after the last step the last.
    Whole numbers are rounded down.

    >>> from jaxmbrl.core.schedules import of_table
    >>> table = jnp.array([0, 100, 200]), jnp.array([1.0, 3.0, 2.0])
    >>> [float(of_table(*table, now, False)) for now in (0, 99, 100, 900)]
    [1.0, 1.0, 3.0, 2.0]
    >>> [float(of_table(*table, now, True)) for now in (0, 50, 150, 900)]
    [1.0, 2.0, 2.5, 2.0]
    """
    i = row_of(steps, now)
    j = jnp.minimum(i + 1, len(steps) - 1)
    between = linear_whole if jnp.issubdtype(values.dtype, jnp.integer) else linear
    length = jnp.maximum(steps[j] - steps[i], 1)
    return jnp.where(interpolates, between(values[i], values[j], length, now - steps[i]), values[i])


def row_of(steps: Int[Array, "S"], now: Int[Array, ""] | int) -> Int[Array, ""]:
    """The index of the last of the increasing `steps` that is not above `now`; 0 if none is."""
    return jnp.maximum(jnp.searchsorted(steps, now, side="right") - 1, 0)


@dataclass(frozen=True)
class LinearSchedule:
    """A number that is `first` until `begins`, then changes linearly, and is `last` from `ends` on."""

    first: float
    """Value at the start."""
    last: float
    """Value at the end."""
    begins: Annotated[int, Ge(0)] = 0
    """Environment steps after the warm-up at which it begins to change."""
    ends: Annotated[int, Ge(1)] = 1
    """Environment steps after the warm-up at which it reaches `last`."""

    def problem(self) -> tuple[str, str] | None:
        """(field, message) of the first violated rule that involves several fields, or None."""
        if self.ends <= self.begins:
            return "ends", f"must be above begins ({self.begins}), got {self.ends}"
        return None

    def at(self, steps: Int[Array, ""] | int) -> Shaped[Array, ""]:
        """The value at `steps` environment steps after the warm-up."""
        return jnp.asarray(linear(self.first, self.last, self.ends - self.begins, steps - self.begins), float)


@dataclass(frozen=True)
class GrowingLength(LinearSchedule):
    """A whole number that grows linearly, rounded down."""

    first: int
    last: int

    def problem(self) -> tuple[str, str] | None:
        """(field, message) of the first violated rule that involves several fields, or None."""
        if self.last < self.first:
            return "last", f"must be at least first ({self.first}), got {self.last}"
        return super().problem() or fits_whole(self.ends - self.begins, self.last - self.first, "last")

    def at(self, steps: Int[Array, ""] | int) -> Int[Array, ""]:
        """The value at `steps` environment steps after the warm-up."""
        return linear_whole(self.first, self.last, self.ends - self.begins, steps - self.begins)
