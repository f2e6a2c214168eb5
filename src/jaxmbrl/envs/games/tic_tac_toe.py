"""Tic-tac-toe, with the exact values of its 5,478 positions: a game on which tree search can be checked."""

from __future__ import annotations

import functools

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8

from jaxmbrl.envs.drawing.canvas import BODY, FORCE, TRACK, Canvas

CELLS = 9
LINES = ((0, 1, 2), (3, 4, 5), (6, 7, 8), (0, 3, 6), (1, 4, 7), (2, 5, 8), (0, 4, 8), (2, 4, 6))
"""Cells of the lines, numbered row by row from the top."""

Board = Int[Array, "9"]
"""The cells from the view of the player to move: 1 their own, -1 the opponent's, 0 empty."""


def start() -> Board:
    """The empty board."""
    return jnp.zeros(CELLS, jnp.int32)


def legal(board: Board) -> Bool[Array, "9"]:
    """Which cells may be taken: the empty ones."""
    return board == 0


def play(board: Board, cell: Int[Array, ""]) -> tuple[Board, Float[Array, ""], Bool[Array, ""]]:
    """(the board for the other player, reward of the player who moved, whether the game is over) after taking an empty
    cell. The reward is 1 for a line, else 0; the other player's is the negative of it."""
    taken = board.at[cell].set(1)
    won = jnp.any(jnp.all(taken[jnp.array(LINES)] == 1, axis=1))
    return -taken, jnp.where(won, 1.0, 0.0), won | jnp.all(taken != 0)


@functools.cache
def minimax(board: tuple[int, ...]) -> int:
    """The value of a position for the player to move, if both play perfectly: 1 a win, 0 a draw, -1 a loss.

    >>> from jaxmbrl.envs.games.tic_tac_toe import minimax
    >>> minimax((0,) * 9)
    0
    """
    if any(all(board[cell] == -1 for cell in line) for line in LINES):
        return -1
    free = [cell for cell in range(CELLS) if board[cell] == 0]
    return max((-minimax(_after(board, cell)) for cell in free), default=0)


def best_cells(board: tuple[int, ...]) -> list[int]:
    """The cells that a perfect player may take: those of the largest value. The game must not be over."""
    values = {cell: -minimax(_after(board, cell)) for cell in range(CELLS) if board[cell] == 0}
    return [cell for cell, value in values.items() if value == max(values.values())]


def draw(board: Int[np.ndarray, "9"]) -> UInt8[np.ndarray, "H W 3"]:
    """The board: crosses of the player who began, circles of the other."""
    crosses_move = np.count_nonzero(board) % 2 == 0
    canvas = Canvas(width=3.4, centre=(1.5, 1.5), size=(240, 240))
    for at in (1, 2):
        canvas.line([(at, 0), (at, 3)], TRACK, 3.0)
        canvas.line([(0, at), (3, at)], TRACK, 3.0)
    for cell in np.flatnonzero(board):
        x, y = cell % 3 + 0.5, 2.5 - cell // 3
        if (board[cell] == 1) == crosses_move:
            for way in (-0.3, 0.3):
                canvas.line([(x - 0.3, y - way), (x + 0.3, y + way)], FORCE, 7.0)
        else:
            turn = np.linspace(0, 2 * np.pi, 33)
            canvas.line([(x + 0.3 * np.cos(at), y + 0.3 * np.sin(at)) for at in turn], BODY, 7.0)
    return canvas.picture()


def _after(board: tuple[int, ...], cell: int) -> tuple[int, ...]:
    """The board for the other player after the player to move takes `cell`."""
    return tuple(-(1 if at == cell else value) for at, value in enumerate(board))
