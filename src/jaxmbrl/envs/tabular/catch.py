"""bsuite's Catch: move a paddle along the bottom of a board to catch a ball that falls down one column.

The rules are those of `bsuite.environments.catch` (Osband et al., Behaviour Suite for Reinforcement Learning, ICLR 2020).
The board has 10 rows and 5 columns, so every episode ends after 9 steps, when the ball reaches the row of the paddle.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped, UInt8

from jaxmbrl.core.spaces import Box, Discrete
from jaxmbrl.core.types import Key, Task
from jaxmbrl.envs.base import State, initial_state, make_task
from jaxmbrl.envs.drawing.canvas import BACKGROUND, BODY, FORCE, GOAL, INK, TRACK, Canvas
from jaxmbrl.envs.drawing.scene import Scene, Tiles, disc, rod

ROWS, COLUMNS = 10, 5


class Position(NamedTuple):
    """Where ball and paddle are; the paddle is in the bottom row."""

    ball_row: Int[Array, "*n"]
    """0 is the top row."""
    ball_column: Int[Array, "*n"]
    paddle_column: Int[Array, "*n"]


class Catch:
    """Observation: the board [50], row by row from the top, 1 where the ball or the paddle is, else 0. Actions 0, 1, 2 move
    the paddle one column to the left, not at all, and one column to the right."""

    observation_size = ROWS * COLUMNS

    def state_at(self, position: Position) -> State:
        """The state with the given position."""
        return initial_state(position, self._observe(position))

    def reset(self, rng: Key) -> State:
        """The ball in a uniformly chosen column of the top row, the paddle in the middle."""
        column = jax.random.randint(rng, (), 0, COLUMNS, jnp.int32)
        return self.state_at(Position(jnp.int32(0), column, jnp.int32(COLUMNS // 2)))

    def step(self, state: State, action: Int[Array, ""]) -> State:
        """Move the paddle, then the ball one row down. The reward is 0 until the ball reaches the bottom row, and there 1
        if it is caught, else -1. Steps after the end leave the ball where it is."""
        row, column, paddle = state.pipeline_state
        paddle = jnp.clip(paddle + action - 1, 0, COLUMNS - 1)
        position = Position(jnp.minimum(row + 1, ROWS - 1), column, paddle)
        observation = self._observe(position)
        return state.replace(
            pipeline_state=position,
            obs=observation,
            reward=reward(state.obs, action, observation),
            done=terminated(observation).astype(state.done.dtype),
        )

    def _observe(self, position: Position) -> Float[Array, "50"]:
        cells = jnp.arange(ROWS * COLUMNS)
        ball = cells == position.ball_row * COLUMNS + position.ball_column
        paddle = cells == (ROWS - 1) * COLUMNS + position.paddle_column
        return (ball | paddle).astype(jnp.result_type(float))

    def draw(self, state: State, action: Int[np.ndarray, ""] | None) -> UInt8[np.ndarray, "H W 3"]:
        """The board with ball and paddle, and the paddle's move as an arrow below it. A caught ball is green, a missed one
        red."""
        row, column, paddle = map(int, state.pipeline_state)
        canvas = Canvas(width=COLUMNS + 1.0, centre=(COLUMNS / 2, ROWS / 2 - 0.3), size=(240, 464))
        for line in range(COLUMNS + 1):
            canvas.line([(line, 0), (line, ROWS)], TRACK, 1.0)
        for line in range(ROWS + 1):
            canvas.line([(0, line), (COLUMNS, line)], TRACK, 1.0)
        canvas.box((paddle + 0.5, 0.2), (0.9, 0.3), BODY)
        ball = INK if row < ROWS - 1 else GOAL if column == paddle else FORCE
        canvas.disc((column + 0.5, ROWS - row - 0.4), 0.25, ball)
        if action is not None and int(action) != 1:
            move = 0.45 * (int(action) - 1)
            canvas.arrow((paddle + 0.5 - move, -0.3), (paddle + 0.5 + move, -0.3), FORCE)
        return canvas.picture()

    def scene(self, state: State) -> Scene:
        """The board with ball and paddle."""
        row, column, paddle = state.pipeline_state
        board = Tiles(np.full((ROWS, COLUMNS, 3), BACKGROUND))
        bar = rod((paddle + 0.3, 0.25), (paddle + 0.7, 0.25), 0.4, BODY)
        ball = disc((column + 0.5, ROWS - 0.4 - row), 0.3, INK)
        return Scene((board, bar, ball), float(ROWS), (COLUMNS / 2, ROWS / 2), background=TRACK)


def reward(
    observation: Float[Array, "*n 50"], action: Shaped[Array, "..."], next_observation: Float[Array, "*n 50"]
) -> Float[Array, "*n"]:
    """At the end 1 if ball and paddle are in the same cell, else -1; before it 0."""
    caught = jnp.sum(next_observation[..., -COLUMNS:], axis=-1) < 1.5
    return jnp.where(terminated(next_observation), jnp.where(caught, 1.0, -1.0), 0.0)


def terminated(next_observation: Float[Array, "*n 50"]) -> Bool[Array, "*n"]:
    """Whether the ball is in the bottom row."""
    return jnp.sum(next_observation[..., :-COLUMNS], axis=-1) < 0.5


def catch() -> Task:
    """`bsuite/Catch`: every episode has 9 steps and ends with a termination; the return is 1 or -1."""
    return make_task(
        "bsuite/Catch", Catch(), ROWS - 1, reward, terminated, Discrete(3), observation=Box((ROWS * COLUMNS,), 0.0, 1.0)
    )
