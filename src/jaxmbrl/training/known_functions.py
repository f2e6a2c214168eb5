"""Functions that a task knows, its reward and its termination, compared with recorded transitions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from jaxmbrl.core.types import Task, Transition
from jaxmbrl.envs.shapes import ON_ROWS

CLOSE, FAR = 1e-3, 0.1
"""Errors of a known reward, relative to 1 + its size: rounding causes smaller ones than `CLOSE` in most rows, and never one
of `FAR`."""
OFTEN = 0.01


def known_functions(task: Task, rows: Transition) -> list[str]:
    """Messages about the task's known functions of the observation, `reward` and `terminated`, that differ from the `rows`
    [N, ...]. A planner would plan for another task than the one that is stepped."""
    found = []
    for what, known, took, due in _known(task, rows):
        try:
            given = np.asarray(jax.jit(known)(*took), np.float64)
        except Exception as error:
            # The run may not use the function at all.
            reason = (str(error).strip() or "no message").splitlines()[0]
            found.append(f"its {what} function fails on rows [N] with {type(error).__name__}: {reason}")
            continue
        if given.shape != due.shape:
            found.append(
                f"its {what} function must return [N] for rows [N], got {list(given.shape)} for N = {len(due)}: {ON_ROWS}"
            )
            continue
        differs = _difference(given, due)
        if differs is not None:
            number, row = differs
            found.append(
                f"its {what} function differs from its steps in {number} of {len(due)} rows, most in row {row}: "
                f"{given[row]:.6g} instead of {due[row]:.6g}; correct the function, or leave it out and the model learns "
                "it (envs.check examines both)"
            )
    return found


def of_another_task(task: Task, rows: Transition) -> str | None:
    """What shows that the `rows` [N, ...] are of another task, or of this one in other units: rewards or terminations that
    the functions which `task` knows do not give."""
    for what, known, took, due in _known(task, rows):
        given = np.asarray(jax.jit(known)(*took), np.float64)
        differs = _difference(given, due)
        if differs is not None:
            number, row = differs
            return (
                f"'{what}' differs from that of {task.name} in {number} of {len(due)} rows, most in row {row}: "
                f"{due[row]:.6g} instead of {given[row]:.6g}"
            )
    return None


def _known(task: Task, rows: Transition) -> Iterator[tuple[str, Callable[..., Any], tuple[Any, ...], np.ndarray]]:
    """(field of `rows`, the task's function of it, its arguments, what the rows have) of each function that it knows."""
    for what, took in (
        ("reward", (rows.observation, rows.action, rows.next_observation)),
        ("terminated", (rows.next_observation,)),
    ):
        known = getattr(task, what)
        if known is not None:
            yield what, known, took, np.asarray(getattr(rows, what), np.float64)


def _difference(given: Float[np.ndarray, "N"], due: Float[np.ndarray, "N"]) -> tuple[int, int] | None:
    """(number of rows that differ, row that differs most), unless the difference is that of rounding."""
    off = np.where(np.isnan(given - due), np.inf, np.abs(given - due)) / (1 + np.abs(due))
    wrong = off > CLOSE
    return (int(wrong.sum()), int(off.argmax())) if wrong.mean() >= OFTEN or (off > FAR).any() else None
