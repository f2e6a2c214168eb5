"""Shapes that the drawings of several tasks share."""

from __future__ import annotations

from jaxmbrl.envs.drawing.canvas import BODY, FORCE, INK, ROD, TRACK, Canvas, Point


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
