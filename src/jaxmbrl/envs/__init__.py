"""Tasks by name: `envs.make("pendulum")`, `envs.names()`."""

from __future__ import annotations

from collections.abc import Callable

from jaxmbrl.config import UserError, closest
from jaxmbrl.envs.base import State, make_task
from jaxmbrl.envs.cartpole import cartpole_continuous
from jaxmbrl.envs.hopper import hopper
from jaxmbrl.envs.inverted_pendulum import inverted_pendulum
from jaxmbrl.envs.pendulum import pendulum
from jaxmbrl.types import Task

TASKS: dict[str, Callable[[], Task]] = {
    "Hopper-v5": hopper,
    "InvertedPendulum-v5": inverted_pendulum,
    "cartpole-continuous": cartpole_continuous,
    "pendulum": pendulum,
}


def names() -> list[str]:
    """The names that `make` knows."""
    return sorted(TASKS)


def make(name: str) -> Task:
    """The task called `name`. Raises UserError with the nearest name where there is none."""
    if name not in TASKS:
        raise UserError(f"unknown task '{name}'; {closest(name, TASKS)}")
    return TASKS[name]()


__all__ = ["TASKS", "State", "Task", "make", "make_task", "names"]
