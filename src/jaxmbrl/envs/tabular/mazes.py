"""Mazes of Sutton and Barto, Reinforcement Learning, 2nd edition: the Dyna maze (example 8.1) and larger copies of it, the
blocking maze (example 8.2) and the shortcut maze (example 8.3), whose walls change during a run.

A state is the number of a cell, row by row from the top. Actions are up, down, left, right; a step against a wall or out of
the maze leads nowhere. Entering a goal earns 1 and ends the episode. Episodes have at most 10,000 steps, where the book has
no limit.

In a maze that changes, each environment counts its steps across episodes; the walls change after a fixed number of them,
which may be in the middle of an episode. An agent in a cell that becomes a wall may leave it. Evaluation episodes begin at
step 0, in the first maze: look at the returns of training instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, UInt8

from jaxmbrl.core.spaces import Discrete
from jaxmbrl.core.types import Key, Task
from jaxmbrl.envs.base import State, initial_state, make_task
from jaxmbrl.envs.drawing.scene import Scene
from jaxmbrl.envs.tabular.pictures import floor_colors, grid_picture, grid_scene
from jaxmbrl.envs.tabular.tables import TabularMDP, deterministic, tabular_task

Cells = Sequence[str]
"""The rows of a maze from the top, a letter for each cell: `#` wall, `S` start, `G` goal."""

DYNA = (".......#G", "..#....#.", "S.#....#.", "..#......", ".....#...", ".........")
BLOCKING = (
    ("........G", ".........", ".........", "########.", ".........", "...S....."),
    ("........G", ".........", ".........", ".########", ".........", "...S....."),
)
SHORTCUT = (
    ("........G", ".........", ".........", ".########", ".........", "...S....."),
    ("........G", ".........", ".........", ".#######.", ".........", "...S....."),
)
BLOCKED_AFTER, OPENED_AFTER = 1000, 3000
"""Environment steps after which the walls of the blocking and of the shortcut maze change."""
MOVES = ((-1, 0), (1, 0), (0, -1), (0, 1))
"""(rows down, columns to the right) of the actions up, down, left, right."""
EPISODE = 10_000


def maze_mdp(cells: Cells) -> TabularMDP:
    """The process of a maze; state = columns * row + column. The first `S` is the start."""
    rows, columns = len(cells), len(cells[0])
    successors = np.zeros((rows * columns, 4), np.int32)
    for state in range(rows * columns):
        for action, (down, right) in enumerate(MOVES):
            row = min(max(state // columns + down, 0), rows - 1)
            column = min(max(state % columns + right, 0), columns - 1)
            successors[state, action] = state if cells[row][column] == "#" else columns * row + column
    goals = np.array([cell == "G" for line in cells for cell in line])
    reached = goals[successors] & ~goals[:, None]
    return deterministic(successors, reached.astype(float), reached, "".join(cells).index("S"))


def enlarged(cells: Cells, factor: int) -> Cells:
    """The maze with `factor` x `factor` cells in place of each cell: as many goals, and one start, the first of them."""
    lines = ["".join(factor * cell for cell in line) for line in cells for _ in range(factor)]
    text = "\n".join(lines)
    start = text.index("S")
    return (text[: start + 1] + text[start + 1 :].replace("S", ".")).split("\n")


class Walker(NamedTuple):
    """The agent in a maze that changes."""

    cell: Int[Array, ""]
    elapsed: Int[Array, ""]
    """Steps of all episodes so far."""


class ChangingMaze:
    """A maze whose walls change after `change` steps of all its episodes together."""

    def __init__(self, first: Cells, then: Cells, change: int) -> None:
        self.cells = (first, then)
        self.mdps = (maze_mdp(first), maze_mdp(then))
        self.change = change
        self._start = int(np.argmax(self.mdps[0].initial))

    def state_at(self, cell: Int[Array, ""] | int, elapsed: Int[Array, ""] | int) -> State:
        """The state in a cell after a number of steps."""
        cell = jnp.asarray(cell, jnp.int32)
        return initial_state(Walker(cell, jnp.asarray(elapsed, jnp.int32)), cell)

    def reset(self, rng: Key) -> State:
        """At the start, after no steps."""
        return self.state_at(self._start, 0)

    def next_episode(self, state: State, rng: Key) -> State:
        """At the start; the steps go on counting."""
        return self.state_at(self._start, state.pipeline_state.elapsed)

    def step(self, state: State, action: Int[Array, ""]) -> State:
        """One step in the maze as it is at this step."""
        cell, elapsed = state.pipeline_state
        at = (elapsed >= self.change).astype(jnp.int32), cell, action, 0
        following = jnp.stack([mdp.successors for mdp in self.mdps])[at]
        reward = jnp.stack([mdp.rewards for mdp in self.mdps]).astype(state.reward.dtype)[at]
        ended = jnp.stack([mdp.terminated for mdp in self.mdps])[at]
        return state.replace(
            pipeline_state=Walker(following, elapsed + 1),
            obs=following,
            reward=reward,
            done=ended.astype(state.done.dtype),
        )

    def draw(self, state: State, action: Int[np.ndarray, ""] | int | None) -> UInt8[np.ndarray, "H W 3"]:
        """The maze as it is at the next step."""
        cells = self.cells[int(int(state.pipeline_state.elapsed) >= self.change)]
        return _picture(cells, int(state.pipeline_state.cell), None if action is None else int(action))

    def scene(self, state: State) -> Scene:
        """The same without the action."""
        cell, elapsed = state.pipeline_state
        first, then = map(floor_colors, self.cells)
        colors = jnp.where(elapsed >= self.change, then, first)
        return grid_scene(self.cells[0], cell, colors)


def _picture(cells: Cells, state: int, action: int | None) -> UInt8[np.ndarray, "H W 3"]:
    return grid_picture(cells, divmod(state, len(cells[0])), None if action is None else MOVES[int(action)])


def maze_task(name: str, cells: Cells) -> Task:
    """The task of a maze. `task.env.mdp` is its table."""
    return tabular_task(
        name, maze_mdp(cells), EPISODE, lambda state, action: _picture(cells, state, action), partial(grid_scene, cells)
    )


def changing_task(name: str, mazes: tuple[Cells, Cells], change: int) -> Task:
    """The task of a maze that changes after `change` steps of an environment."""
    env = ChangingMaze(*mazes, change)
    return make_task(name, env, EPISODE, observation=Discrete(env.mdps[0].states), action=Discrete(len(MOVES)))


def dyna_maze() -> Task:
    """`dyna-maze`: 54 cells, of which 46 are free; the shortest path has 14 steps."""
    return maze_task("dyna-maze", DYNA)


def dyna_maze_216() -> Task:
    """`dyna-maze-216`: each cell of the Dyna maze as 2 x 2 cells."""
    return maze_task("dyna-maze-216", enlarged(DYNA, 2))


def dyna_maze_486() -> Task:
    """`dyna-maze-486`: each cell of the Dyna maze as 3 x 3 cells."""
    return maze_task("dyna-maze-486", enlarged(DYNA, 3))


def blocking_maze() -> Task:
    """`blocking-maze`: after 1,000 steps the short path of 10 steps is blocked, and another one of 16 is open."""
    return changing_task("blocking-maze", BLOCKING, BLOCKED_AFTER)


def shortcut_maze() -> Task:
    """`shortcut-maze`: after 3,000 steps a path of 10 steps opens beside that of 16."""
    return changing_task("shortcut-maze", SHORTCUT, OPENED_AFTER)
