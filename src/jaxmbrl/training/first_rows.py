"""A look at the first transitions that a run collects, for mistakes of its environment that no error shows."""

from __future__ import annotations

import jax
import numpy as np

from jaxmbrl.core.types import PyTree, Task, Transition
from jaxmbrl.data import examining
from jaxmbrl.data.replay import Replay
from jaxmbrl.training.programs import Program

ROWS = 1000
"""Steps of an environment after which its transitions are examined, at the end of the epoch."""
CLOSE, FAR = 1e-3, 0.1
"""Errors of a known reward, relative to 1 + its size: rounding causes smaller ones than `CLOSE` in most rows, and never one
of `FAR`."""
OFTEN = 0.01
SOONER = "subtract an offset in the environment"
"""What to do about digits that are lost."""


def examine(program: Program, state: PyTree, env_steps: int) -> list[str]:
    """Messages about the transitions in the buffer of the first seed, at the end of the epoch in which each environment
    has taken `ROWS` steps; otherwise, and for an algorithm without a buffer, there are none.

    `state` is the algorithm's state with a leading axis of seeds. Only one environment is examined, because the rows of
    several alternate in the buffer.
    """
    stride = program.config.settings.num_envs
    count = ROWS * stride
    if program.config.data is not None or not env_steps - program.epoch_steps < count <= env_steps:
        return []
    replay = program.algorithm.views(state).replay
    if not isinstance(replay, Replay) or not isinstance(replay.data, Transition):
        return []
    if env_steps > replay.data.reward.shape[1]:
        # The first rows may have been overwritten.
        return []
    rows = jax.device_get(jax.tree.map(lambda leaf: leaf[0, :count:stride], replay.data._replace(extras=())))
    rows = jax.tree.map(np.asarray, rows)
    lost = examining.coarse_reward(rows, SOONER)
    if program.task.host is None:
        # Those of a host environment are examined before their conversion (`hosted`).
        lost = [*examining.coarse_columns(rows, SOONER), *lost]
    found = [*lost, *examining.hardly_varying(rows), *examining.examine(rows), *known_functions(program.task, rows)]
    return [f"task '{program.task.name}': {message}" for message in found]


def known_functions(task: Task, rows: Transition) -> list[str]:
    """Messages about the task's known functions of the observation, `reward` and `terminated`, that differ from the `rows`
    [N, ...]. A planner would plan for another task than the one that is stepped."""
    found = []
    for what, took in (
        ("reward", (rows.observation, rows.action, rows.next_observation)),
        ("terminated", (rows.next_observation,)),
    ):
        known, due = getattr(task, what), np.asarray(getattr(rows, what), np.float64)
        if known is None:
            continue
        try:
            given = np.asarray(jax.jit(known)(*took), np.float64)
        except Exception as error:
            # The run may not use the function at all.
            reason = (str(error).strip() or "no message").splitlines()[0]
            found.append(f"its {what} function fails on rows [N] with {type(error).__name__}: {reason}")
            continue
        if given.shape != due.shape:
            found.append(f"its {what} function must return [N] for rows [N], got {list(given.shape)} for N = {len(due)}")
            continue
        off = np.where(np.isnan(given - due), np.inf, np.abs(given - due)) / (1 + np.abs(due))
        wrong = off > CLOSE
        if wrong.mean() >= OFTEN or (off > FAR).any():
            row = int(off.argmax())
            found.append(
                f"its {what} function differs from its steps in {wrong.sum()} of {len(due)} rows, most in row {row}: "
                f"{given[row]:.6g} instead of {due[row]:.6g}; correct the function, or leave it out and the model learns "
                "it (envs.check examines both)"
            )
    return found
