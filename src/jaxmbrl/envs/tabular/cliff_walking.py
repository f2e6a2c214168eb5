"""Gymnasium's CliffWalking-v1: walk along a cliff from the left end of the bottom row to its right end (Sutton and Barto,
Reinforcement Learning, 2nd edition, example 6.6).

What differs: Gymnasium's has no time limit.
"""

from __future__ import annotations

from functools import partial

import numpy as np
from jaxtyping import UInt8

from jaxmbrl.core.types import Task
from jaxmbrl.envs.tabular.pictures import grid_picture, grid_scene
from jaxmbrl.envs.tabular.tables import TabularMDP, deterministic, tabular_task

CELLS = ("............", "............", "............", "SCCCCCCCCCCG")
ROWS, COLUMNS = 4, 12
START, GOAL = 36, 47
MOVES = ((-1, 0), (0, 1), (1, 0), (0, -1))
"""(rows down, columns to the right) of the actions up, right, down, left."""
FALL = -100.0


def cliff_mdp() -> TabularMDP:
    """The process; state 12 * row + column. Each step costs 1. A step off the cliff costs 100 and leads to the start."""
    successors, rewards = np.zeros((48, 4), np.int32), np.full((48, 4), -1.0)
    for state in range(48):
        for action, (down, right) in enumerate(MOVES):
            row = min(max(state // COLUMNS + down, 0), ROWS - 1)
            column = min(max(state % COLUMNS + right, 0), COLUMNS - 1)
            falls = CELLS[row][column] == "C"
            successors[state, action] = START if falls else COLUMNS * row + column
            if falls:
                rewards[state, action] = FALL
    return deterministic(successors, rewards, successors == GOAL, START)


def _draw(state: int, action: int | None) -> UInt8[np.ndarray, "H W 3"]:
    return grid_picture(CELLS, divmod(state, COLUMNS), None if action is None else MOVES[action])


def cliff_walking() -> Task:
    """`CliffWalking`: at most 200 steps; the best return is -13."""
    return tabular_task("CliffWalking", cliff_mdp(), 200, _draw, partial(grid_scene, CELLS))
