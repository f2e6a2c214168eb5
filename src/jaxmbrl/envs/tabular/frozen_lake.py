"""Gymnasium's FrozenLake-v1: cross a frozen lake to the goal without falling into a hole. On slippery ice an action moves
in its own direction or in one of the two perpendicular to it, with probability 1/3 each."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
from jaxtyping import UInt8

from jaxmbrl.core.types import Task
from jaxmbrl.envs.tabular.pictures import grid_picture, grid_scene
from jaxmbrl.envs.tabular.tables import TabularMDP, from_outcomes, tabular_task

SMALL = ("SFFF", "FHFH", "FFFH", "HFFG")
LARGE = ("SFFFFFFF", "FFFFFFFF", "FFFHFFFF", "FFFFFHFF", "FFFHFFFF", "FHHFFFHF", "FHFFHFHF", "FFFHFFFG")
MOVES = ((0, -1), (1, 0), (0, 1), (-1, 0))
"""(rows down, columns to the right) of the actions left, down, right, up."""
SUCCESS = 1 / 3
"""Probability that an action on slippery ice moves in its own direction."""


def lake_mdp(cells: Sequence[str], slippery: bool) -> TabularMDP:
    """The process; states are numbered row by row. The reward is 1 for reaching the goal, which ends the episode, as does a
    hole. `cells` are rows from the top of the letters S (start), F (frozen), H (hole), G (goal)."""
    rows, columns = len(cells), len(cells[0])
    letters = "".join(cells)

    def moved(state: int, action: int) -> int:
        down, right = MOVES[action]
        row, column = divmod(state, columns)
        return columns * min(max(row + down, 0), rows - 1) + min(max(column + right, 0), columns - 1)

    def outcomes(state: int, action: int) -> list[tuple[float, int, float, bool]]:
        if letters[state] in "GH":
            return [(1.0, state, 0.0, True)]
        turns = {-1: (1 - SUCCESS) / 2, 0: SUCCESS, 1: (1 - SUCCESS) / 2} if slippery else {0: 1.0}
        successors = [(chance, moved(state, (action + turn) % 4)) for turn, chance in turns.items()]
        return [(chance, after, float(letters[after] == "G"), letters[after] in "GH") for chance, after in successors]

    table = [[outcomes(state, action) for action in range(4)] for state in range(len(letters))]
    return from_outcomes(table, np.array([letter == "S" for letter in letters], float))


def lake_task(name: str, cells: Sequence[str], slippery: bool, episode_length: int) -> Task:
    """The task `name` on the lake with the given cells (`lake_mdp`)."""

    def draw(state: int, action: int | None) -> UInt8[np.ndarray, "H W 3"]:
        return grid_picture(cells, divmod(state, len(cells[0])), None if action is None else MOVES[action])

    return tabular_task(name, lake_mdp(cells, slippery), episode_length, draw, partial(grid_scene, cells))


def frozen_lake() -> Task:
    """`FrozenLake`: 4 x 4 cells of slippery ice, 100 steps. The best policy reaches the goal in 74 of 100 episodes."""
    return lake_task("FrozenLake", SMALL, True, 100)


def frozen_lake_deterministic() -> Task:
    """`FrozenLake/deterministic`: 4 x 4 cells, 100 steps; the goal is 6 steps away."""
    return lake_task("FrozenLake/deterministic", SMALL, False, 100)


def frozen_lake_8x8() -> Task:
    """`FrozenLake8x8`: 8 x 8 cells of slippery ice, 200 steps."""
    return lake_task("FrozenLake8x8", LARGE, True, 200)


def frozen_lake_8x8_deterministic() -> Task:
    """`FrozenLake8x8/deterministic`: 8 x 8 cells, 200 steps; the goal is 14 steps away."""
    return lake_task("FrozenLake8x8/deterministic", LARGE, False, 200)
