"""Pictures of grids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Array, Float, Int, Shaped, UInt8

from jaxmbrl.envs.drawing.canvas import BACKGROUND, BODY, FORCE, GOAL, INK, TRACK, Canvas, Color
from jaxmbrl.envs.drawing.scene import Scene, Tiles, disc

PIXELS = 480
"""Length of the longer side of a picture."""
FLOORS: Mapping[str, Color] = {
    "#": INK,
    "C": (226, 148, 138),
    "G": (150, 200, 165),
    "H": (158, 190, 222),
}
"""Colours of walls, cliffs, goals and holes; all other cells have the background's."""


def grid_picture(
    cells: Sequence[str], at: tuple[int, int] | None, move: tuple[int, int] | None = None
) -> UInt8[np.ndarray, "H W 3"]:
    """A grid, with the agent as a disc at (row, column) `at` and an arrow along `move` (rows down, columns to the right);
    without the agent if `at` is None.

    `cells` are the rows from the top, a letter for each cell: `#` wall, `C` cliff, `G` goal, `H` hole, `S` start, which is
    marked by a ring; others are free.
    """
    rows, columns = len(cells), len(cells[0])
    width, height = columns + 0.5, rows + 0.5
    scale = PIXELS / max(width, height)
    canvas = Canvas(width, (columns / 2, rows / 2), (round(scale * width), round(scale * height)))
    for row, line in enumerate(cells):
        for column, kind in enumerate(line):
            centre = (column + 0.5, rows - row - 0.5)
            canvas.box(centre, (1.0, 1.0), FLOORS.get(kind, BACKGROUND))
            if kind == "S":
                canvas.ring(centre, 0.4, TRACK)
            elif kind == "G":
                canvas.ring(centre, 0.4, GOAL, 3.0)
    for row in range(rows + 1):
        canvas.line([(0, row), (columns, row)], TRACK, 1.0)
    for column in range(columns + 1):
        canvas.line([(column, 0), (column, rows)], TRACK, 1.0)
    if at is not None:
        x, y = at[1] + 0.5, rows - at[0] - 0.5
        canvas.disc((x, y), 0.28, BODY)
        if move is not None:
            canvas.arrow((x, y), (x + 0.48 * move[1], y - 0.48 * move[0]), FORCE)
    return canvas.picture()


def grid_scene(
    cells: Sequence[str], state: Int[Array, ""], colors: Shaped[Array | np.ndarray, "rows columns 3"] | None = None
) -> Scene:
    """The same grid and agent as a scene, without the start; the agent is in cell number `state`, row by row from the top.
    Around a grid that is not square there are walls. `colors` replaces `floor_colors(cells)`."""
    rows, columns = len(cells), len(cells[0])
    agent = disc((state % columns + 0.5, rows - 0.5 - state // columns), 0.36, BODY)
    tiles = Tiles(floor_colors(cells) if colors is None else colors)
    return Scene((tiles, agent), float(max(rows, columns)), (columns / 2, rows / 2), background=INK)


def floor_colors(cells: Sequence[str]) -> Float[np.ndarray, "rows columns 3"]:
    """The colours of a grid's cells."""
    return np.array([[FLOORS.get(kind, BACKGROUND) for kind in line] for line in cells], float)
