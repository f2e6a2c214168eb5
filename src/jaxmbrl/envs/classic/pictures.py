"""Shapes that the drawings of several tasks share."""

from __future__ import annotations

from typing import Any

from jaxtyping import Array, Float

from jaxmbrl.envs.drawing.canvas import BODY, FORCE, INK, ROD, TRACK, Canvas, Point
from jaxmbrl.envs.drawing.scene import Rods, rod


def cart_with_pole(canvas: Canvas, position: float, tip: Point, size: float, push: float) -> None:
    """A cart at `position` (m) on a track along y = 0, and a pole from the cart to `tip`. The cart is `size` m wide. `push`
    is the length (m) of an arrow at the side of the cart, negative to the left."""
    canvas.line([(position - 100.0, -0.42 * size), (position + 100.0, -0.42 * size)], TRACK)
    for side in (-0.28, 0.28):
        canvas.disc((position + side * size, -0.3 * size), 0.12 * size, INK)
    canvas.box((position, 0.0), (size, 0.45 * size), BODY)
    canvas.rod((position, 0.0), tip, 0.16 * size, ROD)
    canvas.disc((position, 0.0), 0.06 * size, INK)
    at = position + (0.58 if push > 0 else -0.58) * size
    canvas.arrow((at, 0.0), (at + push, 0.0), FORCE)


def cart_scene(position: Float[Array, ""], tip: tuple[Any, Any], size: float) -> tuple[Rods, ...]:
    """The same cart, track and pole as shapes of a scene, `size` m wide."""
    track = rod((position - 100.0, -0.3 * size), (position + 100.0, -0.3 * size), 0.1 * size, TRACK)
    cart = rod((position - 0.3 * size, 0.0), (position + 0.3 * size, 0.0), 0.4 * size, BODY)
    return track, cart, rod((position, 0.0), tip, 0.25 * size, ROD)
