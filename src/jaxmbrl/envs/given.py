"""Tasks from what a user gives in the place of a name: a `Task`, a function that makes one, or a Gymnasium environment."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jaxmbrl import envs
from jaxmbrl.core.config import UserError
from jaxmbrl.core.types import Task
from jaxmbrl.core.warning import warn_user
from jaxmbrl.envs.bridges.changes import changes
from jaxmbrl.envs.bridges.gymnasium_task import from_gymnasium, import_gymnasium, make_registered
from jaxmbrl.envs.signatures import calling

MADE = (
    "envs.make_task(name, env, episode_length) makes a task of an environment in JAX, envs.from_gymnasium(function, name) "
    "of a function that makes Gymnasium environments"
)
INTERFACE = ("observation_space", "action_space", "reset", "step")
"""Attributes of a Gymnasium environment."""


@dataclass(frozen=True)
class Given:
    """The factory of a task that was registered because it was given in the place of a name."""

    source: Any
    """What was given."""
    make: Callable[[], Task]

    def __call__(self) -> Task:
        """The task."""
        return self.make()


def registration(name: str) -> str | None:
    """The Python call with which another process registers the task `name`; None if it was not given to a run in the place
    of a name, but is registered by the user's program or published."""
    known = envs.TASKS.get(name)
    if not isinstance(known, Given):
        return None
    called = getattr(known.source, "__name__", "")
    function = called if called.isidentifier() else "function"
    if isinstance(known.source, Task):
        factory = "lambda: task"
    elif known.make is known.source:
        factory = function
    else:
        factory = f"lambda: envs.from_gymnasium({function}, name={name!r})"
    return f"envs.register({name!r}, {factory})"


def resolve(given: Any, keep: bool = False) -> tuple[str, Task | None]:
    """(name, task) of what a user gave as a task; the task is None if it is known by the name alone.

    A `Task` is itself. A function without arguments, or a class, is what it returns: a `Task`, or an environment with
    Gymnasium's interface, and then its own name is that of the task. What `gymnasium.make(ID)` returned without further
    settings, or its spec, is the task `gymnasium/ID`: a run makes its environments anew from the spec. A warning names
    attributes of the given one that differ from a new one's and may be the state of an episode.

    With `keep`, for a run that will be resumed and evaluated by the name of its task, a task with a name that is not
    registered is registered in this process. Another process must register it itself.

    Raises UserError if it is anything else, if the environment was changed after it was made (a method that was replaced, a
    setting), or if `keep` is true and another task has the name.
    """
    if isinstance(given, str):
        return given, None
    if isinstance(given, Task):
        return given.name, _kept(given, lambda: given, given) if keep else given
    if type(given).__name__ == "EnvSpec":
        return _by_spec(given), None
    if not isinstance(given, type) and all(hasattr(given, name) for name in ("reset", "step")):
        return _by_environment(given), None
    if callable(given):
        make = _factory(given)
        task = make()
        return task.name, _kept(task, make, given) if keep else task
    raise UserError(f"a task must be a name, a Task or a function that makes one, got {_called(given)}; {MADE}")


def _factory(given: Callable[[], Any]) -> Callable[[], Task]:
    """A function that makes the task that the user's function `given` stands for."""
    name = getattr(given, "__name__", type(given).__name__)
    with calling(name, "making the environment"):
        made = given()
    if isinstance(made, Task):
        return given
    if not all(hasattr(made, attribute) for attribute in INTERFACE):
        raise UserError(f"{name}() must return a Task, got {_called(made)}; {MADE}")
    with calling(name, "close"):
        getattr(made, "close", lambda: None)()
    if not hasattr(given, "__name__") or not name.isidentifier():
        raise UserError("a function without a name makes the environments: give envs.from_gymnasium(function, name='mine')")
    return lambda: from_gymnasium(given, name)


def _by_environment(given: Any) -> str:
    """The name of the task of one environment, if there is one."""
    if not all(hasattr(given, attribute) for attribute in INTERFACE):
        raise UserError(f"a task must be a name or a Task, got {_called(given)}; {MADE}")
    if getattr(given, "num_envs", None) is not None:
        raise UserError("give a single environment and not a vector of them; num_envs makes more of it")
    if getattr(given, "spec", None) is None:
        raise UserError(
            f"training makes several environments, got one, {_called(given)}: give a function that makes them, or "
            "envs.from_gymnasium(function, name)"
        )
    name = _by_spec(given.spec)
    _compare(given)
    return name


def _compare(given: Any) -> None:
    """Raise UserError if an environment, of whose spec others are made, was changed after it was made; warn of attributes
    that differ and may be the state of an episode."""
    mode: Any = getattr(given, "render_mode", None)
    options = {} if mode in (None, "human") else {"render_mode": mode}
    with calling(f"gymnasium/{given.spec.id}", "making the environment"):
        found = changes(given, lambda: make_registered(given.spec.id, **options))
    anew, instead = "a run makes its environments anew from the spec", "envs.from_gymnasium(function, name='mine')"
    if found.certain:
        raise UserError(
            f"the environment '{given.spec.id}' was changed after it was made ({', '.join(found.certain)}), and {anew}, "
            f"without the changes: give a function that makes one, changes it and returns it, {instead}"
        )
    if found.possible:
        warn_user(
            f"{anew}, and the given '{given.spec.id}' differs from a new one ({', '.join(found.possible)}): if that is not "
            f"the state of an episode, give a function that makes such environments, {instead}"
        )


def _by_spec(spec: Any) -> str:
    """The name of the task of the environment that `gymnasium.make(spec)` makes. Raises UserError, with what differs, if it
    has other settings than the registered one."""
    registered, called = import_gymnasium().registry.get(spec.id), f"the environment '{spec.id}'"
    make = f"give a function that makes it, envs.from_gymnasium(lambda: gymnasium.make('{spec.id}'"
    if registered is None or spec.entry_point != registered.entry_point:
        raise UserError(f"{called} is not the one that Gymnasium makes by this name: {make}), name='mine')")
    limit, usual = spec.max_episode_steps, registered.max_episode_steps
    wrappers = [wrapper.name for wrapper in spec.additional_wrappers[len(registered.additional_wrappers) :]]
    if wrappers or spec.additional_wrappers != registered.additional_wrappers:
        raise UserError(f"{called} has wrappers of its own ({', '.join(wrappers) or 'others'}): {make}, ...), name='mine')")
    before, now = ({k: v for k, v in of.kwargs.items() if k != "render_mode"} for of in (registered, spec))
    changed = {name: value for name, value in now.items() if name not in before or before[name] != value}
    if changed or before.keys() - now.keys():
        words = ", ".join(f"{name}={value!r:.40}" for name, value in changed.items()) or "..."
        raise UserError(f"{called} has settings of its own ({words}): {make}, {words}), name='mine')")
    if limit is None and usual is not None:
        raise UserError(
            f"{called} has no time limit, as env.unwrapped has none: give 'gymnasium/{spec.id}', or, for other episodes "
            f"than its {usual} steps, {make.removeprefix('give ')}).unwrapped, name='mine', episode_length=N)"
        )
    if limit != usual:
        raise UserError(f"{called} has a time limit of its own: {make}, max_episode_steps={limit}), name='mine')")
    return f"gymnasium/{spec.id}"


def _kept(task: Task, make: Callable[[], Task], source: Any) -> Task:
    """`task`, which can be made by its name from now on. Raises UserError if another task has the name."""
    known = envs.TASKS.get(task.name)
    if known is source:
        return task
    if task.name in envs.PUBLISHED or "/" in task.name or not isinstance(known, Given | None):
        raise UserError(
            f"the run is to be found again by the name of its task, and '{task.name}' is the name of a task that is known: "
            f"with out, give '{task.name}', or a task with another name, task._replace(name='mine')"
        )
    if known is None or known.source is not source:
        envs.register(task.name, Given(source, make))
    return task


def _called(value: Any) -> str:
    return f"{value.__name__} itself" if isinstance(value, type) else f"an object of type {type(value).__name__}"
