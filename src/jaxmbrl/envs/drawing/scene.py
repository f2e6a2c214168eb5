"""Pictures of tasks in JAX, for observations inside of a compiled program: plain shapes with smooth edges.

    def scene(self, state):
        position = state.pipeline_state[:2]
        return Scene((disc(position, 0.1, BODY),), width=4.0)

An environment with this method can be observed as images (`envs.pixels`). Lengths are in the environment's own
coordinates, x to the right and y up, as on a `Canvas`, whose colours the shapes use. Unlike a `Canvas`, a scene can be
drawn under `jit` and `vmap`, at a few thousand pixels.

The edges are smooth, so that a motion of less than a pixel changes the picture. A shape around a segment with radius r
covers the share

    clip(1/2 - (d - r) / pixel, 0, 1)

of a pixel whose centre has the distance d from the segment, where `pixel` is the side of a pixel. For a straight edge
along the rows or columns of pixels this is the covered area, unless the shape is thinner than a pixel.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped, UInt8

from jaxmbrl.envs.drawing.canvas import BACKGROUND

LUMINANCE = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in a grey picture (ITU-R BT.601)."""

Point: TypeAlias = Any
"""x and y, numbers or arrays []; or an array [*n, 2] of several points."""
Color: TypeAlias = Any
"""Red, green and blue from 0 to 255: three numbers or an array [3]."""


class Rods(NamedTuple):
    """All points within `radius` of the segments from `start` to `end`, [*n, 2] each: bars with round ends, and discs where
    the two are equal."""

    start: Point
    end: Point
    radius: Any
    color: Color


class Dots(NamedTuple):
    """Discs at `origin` + i step for all whole numbers i; with two steps, at `origin` + i first step + j second step. Steps
    are constant. A disc must fit into a cell of the grid, with its centre in the middle."""

    origin: Point
    steps: tuple[tuple[float, float], ...]
    radius: Any
    color: Color


class Ground(NamedTuple):
    """All points below the curve y = height(x)."""

    height: Callable[[Float[Array, "W"]], Float[Array, "W"]]
    color: Color


class Tiles(NamedTuple):
    """A grid of squares with sides of length 1, of which (0, 0) is the lower left corner."""

    colors: Shaped[Array | np.ndarray, "rows columns 3"]
    """Red, green and blue from 0 to 255 of each square, from the top."""


Shape: TypeAlias = Rods | Dots | Ground | Tiles


class Scene(NamedTuple):
    """What a square picture shows."""

    shapes: tuple[Shape, ...]
    """Later shapes cover earlier ones."""
    width: float
    """Length of the sides of the picture in the environment's coordinates."""
    centre: Point = (0.0, 0.0)
    background: Color = BACKGROUND


def disc(centre: Point, radius: Any, color: Color) -> Rods:
    """A filled circle, or one around each of several centres [*n, 2]."""
    return Rods(centre, centre, radius, color)


def rod(start: Point, end: Point, width: Any, color: Color) -> Rods:
    """A bar with round ends from `start` to `end`, or several, `width` wide."""
    return Rods(start, end, width / 2, color)


def path(points: tuple[Point, ...], width: Any, color: Color) -> Rods:
    """A line through the points, `width` wide, with round corners and ends."""
    at = jnp.stack([_point(point) for point in points])
    return Rods(at[:-1], at[1:], width / 2, color)


def render(scene: Scene, size: int, grey: bool = False) -> UInt8[Array, "size size C"]:
    """The picture of `scene`, with `size` x `size` pixels: C = 3 colours, or C = 1 in grey."""
    pixel = jnp.float32(scene.width / size)
    offset = jnp.arange(size, dtype=jnp.float32) + (0.5 - size / 2)
    centre = _point(scene.centre)
    x, y = centre[0] + pixel * offset, centre[1] - pixel * offset
    image = jnp.broadcast_to(_channels(scene.background, grey), (size, size, 1 if grey else 3))
    for shape in scene.shapes:
        color, coverage = _covered(shape, x, y, pixel, grey)
        image = image + coverage * (color - image)
    return jnp.round(image).astype(jnp.uint8)


def _covered(
    shape: Shape, x: Float[Array, "W"], y: Float[Array, "H"], pixel: Float[Array, ""], grey: bool
) -> tuple[Float[Array, "*HW C"], Float[Array, "H W 1"]]:
    """(colour of the shape, share of each pixel that it covers) for pixels with centres (x, y)."""
    if isinstance(shape, Tiles):
        rows, columns = shape.colors.shape[:2]
        across, down = _overlaps(x, columns, pixel), _overlaps(rows - y, rows, pixel)
        coverage = jnp.sum(down, axis=1)[:, None, None] * jnp.sum(across, axis=1)[None, :, None]
        total = jnp.einsum("hr,rck,wc->hwk", down, _channels(shape.colors, grey), across, precision="highest")
        return total / jnp.where(coverage > 0, coverage, 1.0), coverage
    if isinstance(shape, Ground):
        slope = (shape.height(x + pixel / 2) - shape.height(x - pixel / 2)) / pixel
        outside = (y[:, None] - shape.height(x)) / jnp.sqrt(1 + slope**2)
    elif isinstance(shape, Dots):
        outside = _outside_dots(shape, x, y)
    else:
        outside = _outside(shape, x, y)
    return _channels(shape.color, grey), jnp.clip(0.5 - outside / pixel, 0.0, 1.0)[..., None]


def _outside(shape: Rods, x: Float[Array, "W"], y: Float[Array, "H"]) -> Float[Array, "H W"]:
    """Distance of each pixel's centre from the nearest of the bars, negative inside."""
    start, end = jnp.broadcast_arrays(_point(shape.start), _point(shape.end))
    along = end - start
    (start_x, start_y), (along_x, along_y) = (jnp.moveaxis(at, -1, 0)[..., None, None] for at in (start, along))
    from_x, from_y = x[None, :] - start_x, y[:, None] - start_y
    squared = along_x**2 + along_y**2
    # The nearest point of a segment without length is its start.
    nearest = jnp.clip((from_x * along_x + from_y * along_y) / jnp.where(squared > 0, squared, 1.0), 0.0, 1.0)
    distance = jnp.sqrt((from_x - nearest * along_x) ** 2 + (from_y - nearest * along_y) ** 2)
    radius = jnp.asarray(shape.radius, jnp.float32)[..., None, None]
    return jnp.min(distance - radius, axis=tuple(range(distance.ndim - 2)))


def _outside_dots(shape: Dots, x: Float[Array, "W"], y: Float[Array, "H"]) -> Float[Array, "H W"]:
    """The same for the dots."""
    origin, steps = _point(shape.origin), np.array(shape.steps, float)
    # Of a point in units of the steps, the nearest dot is at whole numbers.
    units = np.linalg.pinv(steps)
    from_x, from_y = x[None, :] - origin[0], y[:, None] - origin[1]
    counts = [jnp.round(from_x * across + from_y * up) for across, up in jnp.asarray(units.T, jnp.float32)]
    for count, (across, up) in zip(counts, jnp.asarray(steps, jnp.float32), strict=True):
        from_x, from_y = from_x - count * across, from_y - count * up
    return jnp.sqrt(from_x**2 + from_y**2) - jnp.asarray(shape.radius, jnp.float32)


def _overlaps(at: Float[Array, "n"], cells: int, pixel: Float[Array, ""]) -> Float[Array, "n cells"]:
    """Share of each pixel, centred at `at` along one axis, that lies in each of the cells [0, 1], [1, 2], ..."""
    first = jnp.arange(cells, dtype=jnp.float32)
    low, high = (at - pixel / 2)[:, None], (at + pixel / 2)[:, None]
    return jnp.maximum(jnp.minimum(high, first + 1) - jnp.maximum(low, first), 0.0) / pixel


def _channels(color: Color, grey: bool) -> Float[Array, "*n C"]:
    """The channels of a colour, or of an array of colours, in a picture."""
    rgb = jnp.asarray(color, jnp.float32)
    return jnp.sum(rgb * jnp.array(LUMINANCE, jnp.float32), axis=-1, keepdims=True) if grey else rgb


def _point(point: Point) -> Float[Array, "*n 2"]:
    if isinstance(point, tuple | list):
        return jnp.stack([jnp.asarray(number, jnp.float32) for number in point])
    return jnp.asarray(point, jnp.float32)
