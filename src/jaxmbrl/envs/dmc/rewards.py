"""The reward function of DeepMind Control (Tassa et al., arXiv 1801.00690, section 2.3): 1 within bounds, less outside."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, TypeAlias

import jax.numpy as jnp
from jaxtyping import Array, Float

Shape: TypeAlias = Literal["gaussian", "linear", "quadratic"]

_SHAPES: dict[Shape, Callable[[Float[Array, "*n"], float], Float[Array, "*n"]]] = {
    "gaussian": lambda d, at_margin: jnp.exp(math.log(at_margin) * d**2),
    "linear": lambda d, at_margin: jnp.maximum(1 - (1 - at_margin) * d, 0.0),
    "quadratic": lambda d, at_margin: jnp.maximum(1 - (1 - at_margin) * d**2, 0.0),
}


def tolerance(
    x: Float[Array, "*n"],
    bounds: tuple[float, float] = (0.0, 0.0),
    margin: float = 0.0,
    shape: Shape = "gaussian",
    at_margin: float = 0.1,
) -> Float[Array, "*n"]:
    """1 where `x` is within `bounds`, both included. Outside, a function of the distance from the bounds: 0 if `margin` is
    0; otherwise it falls from 1 at the bounds to `at_margin` at the distance `margin`, with the given `shape`."""
    low, high = bounds
    inside = (low <= x) & (x <= high)
    if not margin:
        return inside.astype(x.dtype)
    distance = jnp.where(x < low, low - x, x - high) / margin
    # A distance of 0 inside keeps the unused branch, and its derivative, finite.
    return jnp.where(inside, 1.0, _SHAPES[shape](jnp.where(inside, 0.0, distance), at_margin))
