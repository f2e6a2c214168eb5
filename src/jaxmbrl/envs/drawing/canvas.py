"""A canvas for drawings of tasks: plain shapes in the task's own coordinates, x to the right and y up."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import SupportsFloat, TypeAlias

import numpy as np
from jaxtyping import Float, UInt8

Color: TypeAlias = tuple[int, int, int]
"""Red, green and blue, 0 to 255."""
Point: TypeAlias = Sequence[SupportsFloat] | Float[np.ndarray, "2"]
"""x and y in the units of the canvas."""

BACKGROUND: Color = (250, 250, 248)
INK: Color = (52, 58, 70)
"""Joints, wheels, outlines."""
BODY: Color = (64, 112, 176)
"""The body that is controlled, such as a cart."""
ROD: Color = (196, 142, 84)
"""Poles and links."""
GOAL: Color = (70, 160, 96)
FORCE: Color = (214, 76, 60)
"""Forces and torques."""
TRACK: Color = (176, 180, 188)
"""The ground, and limits."""

SMOOTHING = 3
"""Shapes are drawn larger by this factor and then reduced, which makes their edges smooth."""
FARTHEST = 1e5
"""Coordinates are clipped to this number of pixels."""


class Canvas:
    """A picture of `size` (width and height in pixels) that shows `width` units around `centre`. Later shapes cover earlier
    ones. Lengths are in units, except for line widths, which are in pixels."""

    def __init__(
        self, width: float, centre: Point = (0.0, 0.0), size: tuple[int, int] = (480, 360), background: Color = BACKGROUND
    ) -> None:
        # Here, because importing a task must not import Pillow.
        from PIL import Image, ImageDraw

        self._centre, self._scale = _pair(centre), SMOOTHING * size[0] / width
        self._image = Image.new("RGB", (SMOOTHING * size[0], SMOOTHING * size[1]), background)
        self._draw = ImageDraw.Draw(self._image)

    def picture(self) -> UInt8[np.ndarray, "H W 3"]:
        """The picture."""
        return np.array(self._image.reduce(SMOOTHING))

    def line(self, points: Sequence[Point], color: Color, width: float = 2.0) -> None:
        """A line through the points, with round corners and ends, `width` pixels wide."""
        at, thick = [self._at(point) for point in points], round(SMOOTHING * width)
        self._draw.line(at, color, thick)
        for x, y in at:
            self._draw.ellipse([x - thick / 2, y - thick / 2, x + thick / 2, y + thick / 2], color)

    def rod(self, start: Point, end: Point, width: float, color: Color) -> None:
        """A bar with round ends from `start` to `end`, `width` units wide."""
        self.line([start, end], color, width * self._scale / SMOOTHING)

    def polygon(self, points: Sequence[Point], color: Color) -> None:
        """A filled polygon."""
        self._draw.polygon([self._at(point) for point in points], color)

    def box(self, centre: Point, size: Point, color: Color, angle: float = 0.0) -> None:
        """A filled rectangle of `size` (width and height), turned by `angle` (rad, anticlockwise)."""
        (x, y), (w, h), cos, sin = _pair(centre), _pair(size), math.cos(angle), math.sin(angle)
        corners = [(side * w / 2, end * h / 2) for side, end in ((-1, -1), (1, -1), (1, 1), (-1, 1))]
        self.polygon([(x + cos * u - sin * v, y + sin * u + cos * v) for u, v in corners], color)

    def disc(self, centre: Point, radius: float, color: Color) -> None:
        """A filled circle."""
        x, y = self._at(centre)
        r = radius * self._scale
        self._draw.ellipse([x - r, y - r, x + r, y + r], color)

    def ring(self, centre: Point, radius: float, color: Color, width: float = 2.0) -> None:
        """A circle, drawn as a line of `width` pixels inside its radius."""
        x, y = self._at(centre)
        r = radius * self._scale
        self._draw.ellipse([x - r, y - r, x + r, y + r], outline=color, width=round(SMOOTHING * width))

    def arrow(self, start: Point, end: Point, color: Color = FORCE, width: float = 3.0) -> None:
        """An arrow from `start` to `end`. If it is shorter than 3 pixels, nothing is drawn."""
        first, last = np.array(_pair(start)), np.array(_pair(end))
        pixel = SMOOTHING / self._scale
        length = float(np.linalg.norm(last - first))
        if not length > 3 * pixel:
            return
        along = (last - first) / length
        head = min(4 * width * pixel, length)
        neck = last - head * along
        if length > head:
            self.line([first, neck], color, width)
        across = 0.5 * head * np.array([-along[1], along[0]])
        self.polygon([last, neck + across, neck - across], color)

    def turn(
        self, centre: Point, radius: float, start: float, turned: float, color: Color = FORCE, width: float = 3.0
    ) -> None:
        """An arrow along a circle, from the angle `start`, for the angle `turned` (rad, anticlockwise). If it is shorter
        than 3 pixels, nothing is drawn."""
        pixel = SMOOTHING / self._scale
        if not abs(turned) * radius > 3 * pixel:
            return
        x, y = _pair(centre)

        def at(angle: float, radius: float = radius) -> tuple[float, float]:
            return x + radius * math.cos(angle), y + radius * math.sin(angle)

        head = min(4 * width * pixel / radius, abs(turned))
        neck = start + math.copysign(abs(turned) - head, turned)
        if abs(turned) > head:
            self.line([at(angle) for angle in np.linspace(start, neck, 24)], color, width)
        half = 0.5 * head * radius
        self.polygon([at(start + turned), at(neck, radius - half), at(neck, radius + half)], color)

    def _at(self, point: Point) -> tuple[float, float]:
        """The pixel of a point."""
        x, y = _pair(point)
        x = self._image.width / 2 + self._scale * (x - self._centre[0])
        y = self._image.height / 2 - self._scale * (y - self._centre[1])
        return min(max(x, -FARTHEST), FARTHEST), min(max(y, -FARTHEST), FARTHEST)


def _pair(point: Point) -> tuple[float, float]:
    x, y = point
    return float(x), float(y)
