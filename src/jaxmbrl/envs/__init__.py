"""Tasks by name: `envs.make("pendulum")`, `envs.names()`.

For your own tasks: `envs.make_task`, `envs.check`, `envs.register`, and `envs.from_gymnasium` for environments that a
compiled program cannot step. To use a task in other packages: `envs.as_gymnasium`, `envs.as_gymnasium_vector`.

Importing this package imports no simulator: a task's module is imported when the task is made.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from jaxmbrl.core import hints
from jaxmbrl.core.config import UserError, closest
from jaxmbrl.core.warning import warn_user

if TYPE_CHECKING:
    from jaxmbrl.core.types import Task
    from jaxmbrl.envs.action_repeat import repeat
    from jaxmbrl.envs.base import State, make_task
    from jaxmbrl.envs.bridges.as_gymnasium import as_gymnasium, as_gymnasium_vector
    from jaxmbrl.envs.bridges.gymnasium_task import from_gymnasium
    from jaxmbrl.envs.checking import check
    from jaxmbrl.envs.images import pixels
    from jaxmbrl.envs.kicks import kicked
    from jaxmbrl.envs.observed import masked, stacked

TASKS: dict[str, str | Callable[[], Task]] = {
    "Acrobot-v1": "classic.acrobot:acrobot",
    "Ant-v5": "mujoco.ant:ant",
    "Ant-v5/truncated": "mujoco.ant:ant_truncated",
    "CartPole-v1": "classic.cartpole:cartpole_v1",
    "CliffWalking": "tabular.cliff_walking:cliff_walking",
    "FrozenLake": "tabular.frozen_lake:frozen_lake",
    "FrozenLake/deterministic": "tabular.frozen_lake:frozen_lake_deterministic",
    "FrozenLake8x8": "tabular.frozen_lake:frozen_lake_8x8",
    "FrozenLake8x8/deterministic": "tabular.frozen_lake:frozen_lake_8x8_deterministic",
    "HalfCheetah-v5": "mujoco.half_cheetah:half_cheetah",
    "Hopper-v5": "mujoco.hopper:hopper",
    "Humanoid-v5": "mujoco.humanoid:humanoid",
    "Humanoid-v5/truncated": "mujoco.humanoid:humanoid_truncated",
    "HumanoidStandup-v5": "mujoco.humanoid_standup:humanoid_standup",
    "InvertedDoublePendulum-v5": "mujoco.inverted_double_pendulum:inverted_double_pendulum",
    "InvertedPendulum-v5": "mujoco.inverted_pendulum:inverted_pendulum",
    "MountainCar-v0": "classic.mountain_car:mountain_car_v0",
    "Pusher-v5": "mujoco.pusher:pusher",
    "Reacher-v5": "mujoco.reacher:reacher",
    "Swimmer-v5": "mujoco.swimmer:swimmer",
    "Walker2d-v5": "mujoco.walker2d:walker2d",
    "blocking-maze": "tabular.mazes:blocking_maze",
    "bsuite/Catch": "tabular.catch:catch",
    "bsuite/DeepSea": "tabular.deep_sea:registered",
    "bsuite/DeepSea/tabular": "tabular.deep_sea:registered_tabular",
    "car-parking": "classic.car_parking:car_parking",
    "cartpole-continuous": "classic.cartpole:cartpole_continuous",
    "cartpole-swingup": "classic.cartpole_swingup:cartpole_swingup",
    "dmc/acrobot-swingup": "dmc.acrobot:swingup",
    "dmc/acrobot-swingup-sparse": "dmc.acrobot:swingup_sparse",
    "dmc/ball_in_cup-catch": "mujoco.dmc_ball_in_cup:catch",
    "dmc/cartpole-balance": "dmc.cartpole:balance",
    "dmc/cartpole-balance-sparse": "dmc.cartpole:balance_sparse",
    "dmc/cartpole-swingup": "dmc.cartpole:swingup",
    "dmc/cartpole-swingup-sparse": "dmc.cartpole:swingup_sparse",
    "dmc/cheetah-run": "mujoco.dmc_cheetah:run",
    "dmc/finger-spin": "mujoco.dmc_finger:spin",
    "dmc/finger-turn-easy": "mujoco.dmc_finger:turn_easy",
    "dmc/finger-turn-hard": "mujoco.dmc_finger:turn_hard",
    "dmc/hopper-hop": "mujoco.dmc_hopper:hop",
    "dmc/hopper-stand": "mujoco.dmc_hopper:stand",
    "dmc/humanoid-run": "mujoco.dmc_humanoid:run",
    "dmc/humanoid-stand": "mujoco.dmc_humanoid:stand",
    "dmc/humanoid-walk": "mujoco.dmc_humanoid:walk",
    "dmc/pendulum-swingup": "dmc.pendulum:swingup",
    "dmc/point_mass-easy": "dmc.point_mass:easy",
    "dmc/point_mass-hard": "dmc.point_mass:hard",
    "dmc/reacher-easy": "dmc.reacher:easy",
    "dmc/reacher-hard": "dmc.reacher:hard",
    "dmc/walker-run": "mujoco.dmc_walker:run",
    "dmc/walker-stand": "mujoco.dmc_walker:stand",
    "dmc/walker-walk": "mujoco.dmc_walker:walk",
    "double-integrator": "classic.double_integrator:double_integrator",
    "cartpole-swingup/angle": "classic.cartpole_swingup:cartpole_swingup_angle",
    "dyna-maze": "tabular.mazes:dyna_maze",
    "dyna-maze-216": "tabular.mazes:dyna_maze_216",
    "dyna-maze-486": "tabular.mazes:dyna_maze_486",
    "mountain-car-continuous": "classic.mountain_car:mountain_car_continuous",
    "pendulum": "classic.pendulum:pendulum",
    "pendulum-reach": "classic.pendulum_reach:pendulum_reach",
    "pets/HalfCheetah": "mujoco.pets_half_cheetah:pets_half_cheetah",
    "pets/Pusher": "mujoco.pets_pusher:pets_pusher",
    "pets/Reacher3D": "mujoco.pets_reacher_3d:pets_reacher_3d",
    "pilco-pendulum": "classic.pilco_pendulum:pilco_pendulum",
    "reacher-2d": "classic.reacher_2d:reacher_2d",
    "shortcut-maze": "tabular.mazes:shortcut_maze",
    "spread-2": "classic.spread:spread_2",
}
"""Task name -> a function without arguments that makes the task, or the place of one in this package, `module:function`."""

PUBLISHED = frozenset(TASKS)
"""Names of the tasks of this package, which are not replaced."""

FAMILIES: dict[str, str | Callable[[str], Task]] = {
    "brax": "bridges.brax_playground:brax_task",
    "bsuite": "tabular.deep_sea:bsuite_task",
    "gymnasium": "bridges.gymnasium_task:registered",
    "kicked": "kicks:kicked_by_name",
    "masked": "observed:masked_by_name",
    "pixels": "images:pixels_by_name",
    "playground": "bridges.brax_playground:playground_task",
    "repeated": "action_repeat:repeated_by_name",
    "stacked": "observed:stacked_by_name",
}
"""Families of tasks that are made by name: those of other packages, those with a size in their name, tasks with another
observation (`envs.masked`, `envs.stacked`, `envs.pixels`), with repeated actions (`envs.repeat`), and with noise
(`envs.kicked`). `make("family/name")` calls the function of the family with the name."""

_LAZY = {
    "Task": "jaxmbrl.core.types",
    "State": "jaxmbrl.envs.base",
    "make_task": "jaxmbrl.envs.base",
    "repeat": "jaxmbrl.envs.action_repeat",
    "masked": "jaxmbrl.envs.observed",
    "stacked": "jaxmbrl.envs.observed",
    "pixels": "jaxmbrl.envs.images",
    "kicked": "jaxmbrl.envs.kicks",
    "check": "jaxmbrl.envs.checking",
    "as_gymnasium": "jaxmbrl.envs.bridges.as_gymnasium",
    "as_gymnasium_vector": "jaxmbrl.envs.bridges.as_gymnasium",
    "from_gymnasium": "jaxmbrl.envs.bridges.gymnasium_task",
}
"""Public name -> the module that defines it, imported on first use. No module of this package may have one of these
names."""


def __getattr__(name: str) -> Any:
    """Import a name in `_LAZY` on first use."""
    if name not in _LAZY:
        raise AttributeError(f"module 'jaxmbrl.envs' has no attribute '{name}'")
    return getattr(importlib.import_module(_LAZY[name]), name)


def names() -> list[str]:
    """The names of all tasks that `make` accepts, except the tasks of other packages (`FAMILIES`)."""
    return sorted(TASKS)


def family(name: str) -> str:
    """The family of a task in `TASKS`: the folder of its module, such as `mujoco`, or `user` if it was registered."""
    place = TASKS[name]
    return place.partition(".")[0] if isinstance(place, str) else "user"


def check_name(name: str) -> None:
    """Raise UserError, with the nearest name, if `name` is not the name of a task and does not begin with a family."""
    if name not in TASKS and _prefix(name) not in FAMILIES:
        control, absent = hints.control_task(name, TASKS), hints.no_control_task(name)
        near = absent or closest(name, [*TASKS, *(f"{prefix}/NAME" for prefix in FAMILIES)])
        if control is not None:
            other = name.replace("_", "-")
            near = f"did you mean '{control}'" + (f" or '{other}'?" if other in TASKS else "?")
        if _in_gymnasium(name):
            own = f"gymnasium/{name}"
            near = near.replace("?", f" or '{own}'?") if near.startswith("did you mean") else f"did you mean '{own}'?"
        raise UserError(f"unknown task '{name}'; {near}")


def _in_gymnasium(name: str) -> bool:
    """Whether Gymnasium, if it is installed, has an environment of this name."""
    if not re.fullmatch(r"[\w.-]+-v\d+", name):
        return False
    try:
        import gymnasium
    except ImportError:
        return False
    return name in gymnasium.registry


def make(name: str, action_repeat: int = 1) -> Task:
    """The task called `name`, with each action applied `action_repeat` times (see `envs.repeat` for episode lengths and
    rewards). Raises UserError, with the nearest name, if there is no such task, and if `action_repeat` is longer than an
    episode.

    >>> from jaxmbrl import envs
    >>> task = envs.make("pendulum")
    >>> task.observation.shape, task.action.shape, task.episode_length
    ((3,), (1,), 200)
    >>> envs.make("pendulm")
    Traceback (most recent call last):
    jaxmbrl.core.config.UserError: unknown task 'pendulm'; did you mean 'pendulum'?
    """
    from jaxmbrl.core.types import Task
    from jaxmbrl.envs.action_repeat import repeat

    check_name(name)
    task = _found(TASKS[name])() if name in TASKS else _found(FAMILIES[_prefix(name)])(name.partition("/")[2])
    if not isinstance(task, Task):
        raise UserError(
            f"the factory of task '{name}' must return a Task, as envs.make_task does, got {type(task).__name__}"
        )
    return repeat(task, action_repeat)


def _found(place: str | Callable[..., Task]) -> Callable[..., Task]:
    """The function that an entry of `TASKS` or `FAMILIES` refers to."""
    if not isinstance(place, str):
        return place
    module, _, function = place.partition(":")
    return getattr(importlib.import_module(f"{__name__}.{module}"), function)


def _prefix(name: str) -> str:
    return name.partition("/")[0] if "/" in name else ""


def register(name: str, factory: Callable[[], Task]) -> None:
    """Register `factory` under `name`, for `make` and `names` in this process.

        envs.register("mine", lambda: envs.make_task("mine", MyEnv(), episode_length=200))

    A task of one's own that has this name already, as when a notebook's cell is run again, is replaced with a warning.
    Raises UserError if the name is that of a published task, or is not a letter followed by letters, digits, `-`, `_` and
    `.`.
    """
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9._-]*", name):
        raise UserError(f"a task's name must be a letter, then letters, digits, '-', '_' or '.', got '{name}'")
    if name in TASKS and name in PUBLISHED:
        raise UserError(f"there is a task '{name}' already: choose another name")
    if not callable(factory):
        raise UserError(
            f"the factory of task '{name}' must be a function that returns a Task, got {type(factory).__name__}"
        )
    if name in TASKS:
        warn_user(f"the task '{name}' was registered before and is replaced")
    TASKS[name] = factory


def unregister(name: str) -> None:
    """Forget the task that was registered as `name`. Raises UserError if there is none, or if it is a published one."""
    if name in PUBLISHED:
        raise UserError(f"'{name}' is a task of jaxmbrl: only tasks that were registered can be unregistered")
    if name not in TASKS:
        known = TASKS.keys() - PUBLISHED
        raise UserError(f"no task '{name}' was registered; {closest(name, known) if known else 'nor was any other'}")
    del TASKS[name]


__all__ = [
    "FAMILIES",
    "TASKS",
    "State",
    "Task",
    "as_gymnasium",
    "as_gymnasium_vector",
    "check",
    "check_name",
    "family",
    "from_gymnasium",
    "kicked",
    "make",
    "make_task",
    "masked",
    "names",
    "pixels",
    "register",
    "repeat",
    "stacked",
    "unregister",
]
