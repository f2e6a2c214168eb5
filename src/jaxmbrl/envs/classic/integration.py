"""Integration of equations of motion over a control step."""

from __future__ import annotations

from collections.abc import Callable

import jax
from jaxtyping import Array, Float, Int


def runge_kutta(
    derivative: Callable[[Float[Array, "S"]], Float[Array, "S"]], coordinates: Float[Array, "S"], dt: float, substeps: int
) -> Float[Array, "S"]:
    """The coordinates after `dt` seconds, by `substeps` classical Runge-Kutta steps of order 4 (Kutta, 1901)."""
    h = dt / substeps

    def substep(i: Int[Array, ""], y: Float[Array, "S"]) -> Float[Array, "S"]:
        k1 = derivative(y)
        k2 = derivative(y + h / 2 * k1)
        k3 = derivative(y + h / 2 * k2)
        k4 = derivative(y + h * k3)
        return y + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)

    return jax.lax.fori_loop(0, substeps, substep, coordinates)
