"""bsuite's Deep Sea: dive from the top left of an N x N grid to the bottom right, one row a step, N times to the right.

The rules are those of `bsuite.environments.deep_sea` without noise (Osband et al., Behaviour Suite for Reinforcement
Learning, ICLR 2020). Each step to the right costs 0.01 / N, and a step to the right in the last column of the last row
gives 1. So the best return is 0.99, and random actions earn the 1 once in 2^N episodes.

Which of the two actions is the right one differs from cell to cell, by the same random draw as in bsuite.
"""

from __future__ import annotations

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8

from jaxmbrl.core.config import UserError
from jaxmbrl.core.spaces import Box
from jaxmbrl.core.types import Task
from jaxmbrl.envs.drawing.scene import Scene
from jaxmbrl.envs.tabular.pictures import grid_picture, grid_scene
from jaxmbrl.envs.tabular.tables import TabularEnv, TabularMDP, deterministic, table_task, tabular_task

MOVE_COST = 0.01  # of N steps to the right
MAPPING_SEED = 42
"""bsuite's seed in its experiments."""
SIZE = 10
LARGEST = 100


def action_mapping(size: int, seed: int | None = MAPPING_SEED) -> Int[np.ndarray, "N N"]:
    """The action that moves to the right in each cell (row, column): as bsuite draws it with `mapping_seed=seed`, or with
    None 1 everywhere, as bsuite has it without `randomize_actions`."""
    if seed is None:
        return np.ones((size, size), int)
    return np.random.RandomState(seed).binomial(1, 0.5, (size, size))


def deep_sea_mdp(size: int, mapping: Int[np.ndarray, "N N"]) -> TabularMDP:
    """The process. State size * row + column; after the last row there is one more state, the end."""
    end = size * size
    successors, rewards = np.full((end + 1, 2), end, np.int32), np.zeros((end + 1, 2))
    for row in range(size):
        for column in range(size):
            for action in range(2):
                right = action == mapping[row, column]
                after = min(column + 1, size - 1) if right else max(column - 1, 0)
                state = size * row + column
                if row + 1 < size:
                    successors[state, action] = size * (row + 1) + after
                rewards[state, action] = (column == size - 1) - MOVE_COST / size if right else 0.0
    return deterministic(successors, rewards, successors == end, 0)


def deep_sea(size: int = SIZE, seed: int | None = MAPPING_SEED, name: str | None = None) -> Task:
    """`bsuite/DeepSea`, or `bsuite/DeepSea/N` for another size: the observation is the board [N * N], row by row, 1 in the
    cell of the diver; after the last row it is all zeros. Every episode has N steps and ends with a termination.

    `seed` is that of `action_mapping`.
    """
    mdp = deep_sea_mdp(size, action_mapping(size, seed))
    cells = size * size

    def observe(state: Int[Array, ""]) -> Float[Array, "NN"]:
        return jax.nn.one_hot(state, cells, dtype=jnp.result_type(float))

    def reward(
        observation: Float[Array, "*n NN"], action: Int[Array, "*n"], next_observation: Float[Array, "*n NN"]
    ) -> Float[Array, "*n"]:
        """The reward of the action in the observed cell."""
        by_action = jnp.asarray(mdp.rewards[:cells, :, 0].T, observation.dtype)
        return jnp.sum(by_action[action] * observation, axis=-1)

    def terminated(next_observation: Float[Array, "*n NN"]) -> Bool[Array, "*n"]:
        """Whether the board is empty."""
        return jnp.sum(next_observation, axis=-1) < 0.5

    env = TabularEnv(mdp, partial(_draw, size), observe, partial(_show, size))
    return table_task(name or f"bsuite/DeepSea/{size}", env, size, Box((cells,), 0.0, 1.0), reward, terminated)


def deep_sea_tabular(size: int = SIZE, seed: int | None = MAPPING_SEED, name: str | None = None) -> Task:
    """`bsuite/DeepSea/tabular`, or `bsuite/DeepSea/N/tabular` for another size: the observation is the number of the cell,
    N * row + column, and N * N after the last row."""
    mdp = deep_sea_mdp(size, action_mapping(size, seed))
    return tabular_task(name or f"bsuite/DeepSea/{size}/tabular", mdp, size, partial(_draw, size), partial(_show, size))


def registered() -> Task:
    """`bsuite/DeepSea`, with N = 10."""
    return deep_sea(name="bsuite/DeepSea")


def registered_tabular() -> Task:
    """`bsuite/DeepSea/tabular`, with N = 10."""
    return deep_sea_tabular(name="bsuite/DeepSea/tabular")


def bsuite_task(name: str) -> Task:
    """The task `bsuite/NAME`, of NAME `DeepSea/N` or `DeepSea/N/tabular`. Raises UserError for another name or size."""
    found = re.fullmatch(r"DeepSea/(\d{1,4})(/tabular)?", name)
    size = int(found[1]) if found else 0
    if not found or not 2 <= size <= LARGEST:
        raise UserError(
            f"unknown task 'bsuite/{name}'; there are bsuite/Catch, bsuite/DeepSea/N and bsuite/DeepSea/N/tabular, with N "
            f"from 2 to {LARGEST}"
        )
    return deep_sea_tabular(size) if found[2] else deep_sea(size)


def _draw(size: int, state: int, action: int | None) -> UInt8[np.ndarray, "H W 3"]:
    """The board with the diver, and without it at the end. The direction of an action depends on the cell before, which a
    state does not contain, so there is no arrow."""
    return grid_picture(_cells(size), divmod(state, size) if state < size * size else None)


def _show(size: int, state: Int[Array, ""]) -> Scene:
    """The board with the diver. At the end the diver is below the picture."""
    return grid_scene(_cells(size), state + 2 * size * (state == size * size))


def _cells(size: int) -> list[str]:
    return ["S" + "." * (size - 1), *["." * size] * (size - 2), "." * (size - 1) + "G"]
