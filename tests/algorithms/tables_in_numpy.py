"""The Dyna maze and the updates of tabular methods in NumPy, in float64, written from the book."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmbrl.core.types import Transition
from jaxmbrl.training.loop import clock_at

ROWS, COLUMNS, START, GOAL = 6, 9, (2, 0), (0, 8)
WALLS = {(1, 2), (2, 2), (3, 2), (0, 7), (1, 7), (2, 7), (4, 5)}
MOVES = ((-1, 0), (1, 0), (0, -1), (0, 1))
STATES, ACTIONS = ROWS * COLUMNS, 4
DISCOUNT = 0.95
FREE = [
    COLUMNS * r + c for r in range(ROWS) for c in range(COLUMNS) if (r, c) not in WALLS and (r, c) != GOAL
]  # states in which an action is chosen


def moved(state: int, action: int) -> tuple[int, float, bool]:
    """(next state, reward, terminated) of a step in the maze."""
    r, c = divmod(state, COLUMNS)
    at = (r + MOVES[action][0], c + MOVES[action][1])
    if not (0 <= at[0] < ROWS and 0 <= at[1] < COLUMNS) or at in WALLS:
        at = (r, c)
    return COLUMNS * at[0] + at[1], float(at == GOAL), at == GOAL


def optimal_values() -> tuple[np.ndarray, int]:
    """(V* of all states, number of synchronous sweeps until nothing changes any more)."""
    values, sweeps = np.zeros(STATES), 0
    while True:
        after = values.copy()
        for state in FREE:
            steps = [moved(state, action) for action in range(ACTIONS)]
            after[state] = max(r + (0.0 if d else DISCOUNT * values[s]) for s, r, d in steps)
        if (after == values).all():
            return values, sweeps
        values, sweeps = after, sweeps + 1


def walked(steps: int, seed: int, limit: int = 40) -> list[tuple[int, int, float, int, bool, bool]]:
    """(state, action, reward, next state, terminated, truncated) of a random walk, over several episodes."""
    random, rows = np.random.default_rng(seed), []
    state, elapsed = COLUMNS * START[0] + START[1], 0
    for _ in range(steps):
        action = int(random.integers(ACTIONS))
        following, reward, ended = moved(state, action)
        elapsed += 1
        rows.append((state, action, reward, following, ended, elapsed == limit and not ended))
        if ended or elapsed == limit:
            # Near the goal, so that several episodes reach it.
            state, elapsed = int(random.choice([26, 34, 35])), 0
        else:
            state = following
    return rows


def transitions(rows: list[Any]) -> Transition:
    """The rows as transitions [T, 1, 1]: T calls of `learn` of one environment."""
    state, action, reward, following, ended, cut = (np.array(column)[:, None, None] for column in zip(*rows, strict=True))
    return Transition(
        jnp.asarray(state, jnp.int32),
        jnp.asarray(action, jnp.int32),
        jnp.asarray(reward, float),
        jnp.asarray(following, jnp.int32),
        jnp.asarray(ended),
        jnp.asarray(cut),
    )


def learned(algorithm: Any, state: Any, rows: Transition, look: Any = lambda state: state.q) -> Any:
    """(state after all calls of `learn`, what `look(state)` returned after each)."""

    def call(at: tuple[Any, Any], row: Transition) -> Any:
        clock, state = at
        clock = clock._replace(env_steps=clock.env_steps + 1)
        state, _ = algorithm.learn(clock, state, row)
        return (clock, state), look(state)

    (_, state), seen = jax.lax.scan(call, (clock_at(0), state), rows)
    return state, seen


def planning_numbers(key: Any, steps: int, shape: tuple[int, ...]) -> Any:
    """The uniform numbers [steps, ...] with which a method plans, whose state had `key` at first."""

    def split(key: Any, _: None) -> Any:
        key, planning_key = jax.random.split(key)
        return key, jax.random.uniform(planning_key, (1, *shape))[0]

    return jax.lax.scan(split, key, None, steps)[1]


class Table:
    """Action values, and Q-learning's update."""

    def __init__(self, rate: float, discount: float = DISCOUNT) -> None:
        self.q, self.rate, self.discount = np.zeros((STATES, ACTIONS)), rate, discount

    def error(self, state: int, action: int, reward: float, following: int, ended: bool) -> float:
        value = 0.0 if ended else self.discount * self.q[following].max()
        return reward + value - self.q[state, action]

    def update(self, state: int, action: int, reward: float, following: int, ended: bool) -> None:
        self.q[state, action] += self.rate * self.error(state, action, reward, following, ended)
