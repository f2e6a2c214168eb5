"""Tasks by name: `envs.make("pendulum")`, `envs.names()`. Your own: `envs.make_task`, `envs.check`, `envs.register`;
`envs.from_gymnasium` for what a compiled program cannot step. For learners of other packages: `envs.as_gymnasium`,
`envs.as_gymnasium_vector`."""

from __future__ import annotations

import re
from collections.abc import Callable

from jaxmbrl.core.config import UserError, closest
from jaxmbrl.core.types import Task
from jaxmbrl.envs.base import State, make_task
from jaxmbrl.envs.bridges.as_gymnasium import as_gymnasium, as_gymnasium_vector
from jaxmbrl.envs.bridges.brax_playground import brax_task, playground_task
from jaxmbrl.envs.bridges.gymnasium_task import from_gymnasium, registered
from jaxmbrl.envs.check import check
from jaxmbrl.envs.classic.cartpole import cartpole_continuous
from jaxmbrl.envs.classic.cartpole_swingup import cartpole_swingup
from jaxmbrl.envs.classic.mountain_car import mountain_car_continuous
from jaxmbrl.envs.classic.pendulum import pendulum
from jaxmbrl.envs.classic.reacher_2d import reacher_2d
from jaxmbrl.envs.mujoco.ant import ant, ant_truncated
from jaxmbrl.envs.mujoco.half_cheetah import half_cheetah
from jaxmbrl.envs.mujoco.hopper import hopper
from jaxmbrl.envs.mujoco.humanoid import humanoid, humanoid_truncated
from jaxmbrl.envs.mujoco.humanoid_standup import humanoid_standup
from jaxmbrl.envs.mujoco.inverted_double_pendulum import inverted_double_pendulum
from jaxmbrl.envs.mujoco.inverted_pendulum import inverted_pendulum
from jaxmbrl.envs.mujoco.pets_half_cheetah import pets_half_cheetah
from jaxmbrl.envs.mujoco.pets_pusher import pets_pusher
from jaxmbrl.envs.mujoco.pets_reacher_3d import pets_reacher_3d
from jaxmbrl.envs.mujoco.pusher import pusher
from jaxmbrl.envs.mujoco.reacher import reacher
from jaxmbrl.envs.mujoco.swimmer import swimmer
from jaxmbrl.envs.mujoco.walker2d import walker2d
from jaxmbrl.envs.repeat import repeat

TASKS: dict[str, Callable[[], Task]] = {
    "Ant-v5": ant,
    "Ant-v5/truncated": ant_truncated,
    "HalfCheetah-v5": half_cheetah,
    "Hopper-v5": hopper,
    "Humanoid-v5": humanoid,
    "Humanoid-v5/truncated": humanoid_truncated,
    "HumanoidStandup-v5": humanoid_standup,
    "InvertedDoublePendulum-v5": inverted_double_pendulum,
    "InvertedPendulum-v5": inverted_pendulum,
    "Pusher-v5": pusher,
    "Reacher-v5": reacher,
    "Swimmer-v5": swimmer,
    "Walker2d-v5": walker2d,
    "cartpole-continuous": cartpole_continuous,
    "cartpole-swingup": cartpole_swingup,
    "mountain-car-continuous": mountain_car_continuous,
    "pendulum": pendulum,
    "pets/HalfCheetah": pets_half_cheetah,
    "pets/Pusher": pets_pusher,
    "pets/Reacher3D": pets_reacher_3d,
    "reacher-2d": reacher_2d,
}

FAMILIES: dict[str, Callable[[str], Task]] = {
    "brax": brax_task,
    "gymnasium": registered,
    "playground": playground_task,
}
"""Tasks of other packages: `make("family/name")` calls the family's maker with the name."""


def names() -> list[str]:
    """The names that `make` knows, but for those of families."""
    return sorted(TASKS)


def check_name(name: str) -> None:
    """Raise UserError, with the nearest name, where `name` is neither a task's nor begins with a family's."""
    if name not in TASKS and _family(name) not in FAMILIES:
        raise UserError(f"unknown task '{name}'; {closest(name, [*TASKS, *(f'{family}/NAME' for family in FAMILIES)])}")


def make(name: str, action_repeat: int = 1) -> Task:
    """The task called `name`, each action applied `action_repeat` times (`envs.repeat` says how episodes and rewards then
    count). Raises UserError with the nearest name where there is none, and for a repeat that no episode holds.

    >>> from jaxmbrl import envs
    >>> task = envs.make("pendulum")
    >>> task.observation.shape, task.action.shape, task.episode_length
    ((3,), (1,), 200)
    >>> envs.make("pendulm")
    Traceback (most recent call last):
    jaxmbrl.core.config.UserError: unknown task 'pendulm'; did you mean 'pendulum'?
    """
    check_name(name)
    task = TASKS[name]() if name in TASKS else FAMILIES[_family(name)](name.partition("/")[2])
    if not isinstance(task, Task):
        raise UserError(
            f"the factory of task '{name}' must return a Task, as envs.make_task does, got {type(task).__name__}"
        )
    return repeat(task, action_repeat)


def _family(name: str) -> str:
    return name.partition("/")[0] if "/" in name else ""


def register(name: str, factory: Callable[[], Task]) -> None:
    """Make `factory()` known to `make` and `names` as `name`, in this process.

        envs.register("mine", lambda: envs.make_task("mine", MyEnv(), episode_length=200))

    Raises UserError where the name is taken, or is not made of letters, digits, `-`, `_` and `.` after a first letter.
    """
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9._-]*", name):
        raise UserError(f"a task's name must be a letter, then letters, digits, '-', '_' or '.', got '{name}'")
    if name in TASKS:
        raise UserError(f"there is a task '{name}' already: choose another name")
    if not callable(factory):
        raise UserError(
            f"the factory of task '{name}' must be a function that returns a Task, got {type(factory).__name__}"
        )
    TASKS[name] = factory


__all__ = [
    "FAMILIES",
    "TASKS",
    "State",
    "Task",
    "as_gymnasium",
    "as_gymnasium_vector",
    "check",
    "check_name",
    "from_gymnasium",
    "make",
    "make_task",
    "names",
    "register",
    "repeat",
]
