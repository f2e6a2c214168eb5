"""A look at the first transitions that a run collects, for mistakes of its environment that no error shows."""

from __future__ import annotations

import jax
import numpy as np

from jaxmbrl.core.types import PyTree, Transition
from jaxmbrl.data import examining, sequences
from jaxmbrl.data.prioritized import Prioritized
from jaxmbrl.data.replay import Replay
from jaxmbrl.data.sequences import Sequences
from jaxmbrl.training.known_functions import known_functions
from jaxmbrl.training.programs import Program

ROWS = 1000
"""Steps of an environment after which its transitions are examined, at the end of the epoch."""
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
    replay = replay.replay if isinstance(replay, Prioritized) else replay
    if isinstance(replay, Sequences):
        held, capacity = replay.rows, replay.number[0].size
    elif isinstance(replay, Replay) and isinstance(replay.data, Transition):
        held, capacity = replay.data, replay.data.reward.shape[1]
    else:
        return []
    # Rows that the buffer had before, such as demonstrations, are not the task's.
    slots = stride if isinstance(replay, Sequences) else 1
    size, position = (int(np.asarray(x)[0]) * slots for x in (replay.size, replay.position))
    had = size - env_steps
    if had < 0 or position != size % capacity:
        # The first rows of the run may have been overwritten.
        return []
    if isinstance(replay, Sequences):
        of_seed = jax.tree.map(lambda leaf: leaf[0], replay._replace(rows=held._replace(extras=())))
        rows = sequences.take(of_seed, had + stride * np.arange(ROWS))
    else:
        rows = jax.tree.map(lambda leaf: leaf[0, had : had + count : stride], held._replace(extras=()))
    rows = jax.tree.map(np.asarray, jax.device_get(rows))
    lost = examining.coarse_reward(rows, SOONER)
    if program.task.host is None:
        # Those of a host environment are examined before their conversion (`hosted`).
        lost = [*examining.coarse_columns(rows, SOONER), *lost]
    found = [*lost, *examining.hardly_varying(rows), *examining.examine(rows), *known_functions(program.task, rows)]
    return [f"task '{program.task.name}': {message}" for message in found]
