"""Tasks with another observation: parts of it removed, or the last few stacked. All else is that of the plain task.

A policy without memory cannot tell apart states that look the same. Frame stacking gives it the last few observations; a
policy with memory remembers what it needs.
"""

from __future__ import annotations

import numbers
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Shaped

from jaxmbrl import envs
from jaxmbrl.core.config import UserError, closest
from jaxmbrl.core.spaces import Box, Space
from jaxmbrl.core.types import Action, Carry, Env, HostEnv, HostStep, Key, Observation, PyTree, Task, Transition, World
from jaxmbrl.envs.action_repeat import RepeatedEnv, unrepeated
from jaxmbrl.envs.base import State
from jaxmbrl.envs.kicks import KickedEnv

VELOCITIES = "velocities"
"""Stands for all entries with "velocity" in their names."""


class Observed(NamedTuple):
    """Carry of a World with another observation."""

    carry: Carry
    """Of the plain World."""
    shown: Observation
    """What is observed; () if it is computed from the carry."""


First = Callable[[Observation], Observation]
Following = Callable[[Observation, Observation], Observation]


def masked(task: Task | str, drop: str | int | Sequence[int | str] = VELOCITIES) -> Task:
    """`task`, or the task with this name, without the entries `drop` of its observation.

    `drop` are indices or names of entries, or "velocities". The environment names its entries (`observation_names`); those
    of the classic tasks do. The known functions of the observation (`reward`, `terminated`, `features`) are left out,
    because they need the whole. The full state is still in the carry of the world, for planning in the true simulator.

    By name, `masked/TASK` is the task without velocities, `masked/0,2/TASK` that without entries 0 and 2.

    Raises UserError if observations are not vectors, if the environment does not name its entries, if there is no such
    entry, or if none or all are removed.

    >>> from jaxmbrl import envs
    >>> envs.masked("pendulum", drop="velocities").observation.shape
    (2,)
    >>> envs.masked("Hopper-v5", drop=range(5, 11)).name
    'masked/5,6,7,8,9,10/Hopper-v5'
    """
    task = envs.make(task) if isinstance(task, str) else task
    box = _box(task, "masked")
    if not box.is_vector:
        raise UserError(f"masked needs vector observations, and those of task '{task.name}' are {box}: take another task")
    dropped = _indices(task, drop)
    kept = np.setdiff1d(np.arange(box.shape[0]), dropped)
    if not dropped or not kept.size:
        raise UserError(f"drop must name some of the {box.shape[0]} entries of {task.name}'s observation, and not all")

    def visible(observation: Observation) -> Observation:
        return observation[..., kept]

    which = "" if isinstance(drop, str) and drop == VELOCITIES else f"{','.join(map(str, dropped))}/"
    return observed(
        task._replace(reward=None, terminated=None, features=None, saturating=None),
        f"masked/{which}{task.name}",
        box._replace(shape=(len(kept),)),
        visible,
        lambda shown, observation: visible(observation),
    )


def stacked(task: Task | str, frames: int) -> Task:
    """`task`, or the task with this name, whose observation is its last `frames` observations, the oldest first, joined
    along the last axis: [frames O] for vectors, [H, W, frames C] for images. If `frames` is 1, the task itself.

    At the start of an episode the first observation is repeated. A step's next observation ends with the true successor,
    also at the end of an episode. The known functions of the observation are given the newest one; `features`, which encode
    the observation for a model, are left out. If actions are repeated too, repeat first:
    `envs.stacked(envs.repeat(task, 4), 3)`.

    By name, `stacked/3/TASK`. Raises UserError if `frames` is not a whole number of at least 1, or if observations are
    choices.

    >>> from jaxmbrl import envs
    >>> envs.make("stacked/3/masked/pendulum").observation.shape
    (6,)
    """
    if isinstance(frames, bool) or not isinstance(frames, numbers.Integral) or frames < 1:
        raise UserError(f"frames must be a whole number of at least 1, got {frames!r}")
    task = envs.make(task) if isinstance(task, str) else task
    box = _box(task, "stacked")
    if frames == 1:
        return task
    size = box.shape[-1]

    def repeated(observation: Observation) -> Observation:
        return _joined([observation] * int(frames))

    def moved(shown: Observation, observation: Observation) -> Observation:
        return _joined([shown[..., size:], observation])

    reward, terminated = task.reward, task.terminated
    return observed(
        task._replace(
            reward=reward and (lambda before, action, after: reward(before[..., -size:], action, after[..., -size:])),
            terminated=terminated and (lambda after: terminated(after[..., -size:])),
            features=None,
            saturating=None,
        ),
        f"stacked/{frames}/{task.name}",
        box._replace(shape=(*box.shape[:-1], int(frames) * size)),
        repeated,
        moved,
    )


def masked_by_name(name: str) -> Task:
    """The task `masked/NAME`."""
    which, _, rest = name.partition("/")
    if re.fullmatch(r"\d+(,\d+)*", which) and rest:
        return masked(rest, [int(index) for index in which.split(",")])
    return masked(name)


def stacked_by_name(name: str) -> Task:
    """The task `stacked/NAME`."""
    frames, _, rest = name.partition("/")
    if not re.fullmatch(r"\d+", frames) or not rest:
        raise UserError(f"a stacked task is named stacked/FRAMES/TASK, such as stacked/3/pendulum, got 'stacked/{name}'")
    return stacked(rest, int(frames))


def observed(task: Task, name: str, space: Space, first: First, following: Following) -> Task:
    """`task` as `name`, which shows other observations, in `space`: `first(observation)` at the start of an episode, then
    `following(shown before, observation)`. The carry of its World is an `Observed`."""
    inner = task.world

    def begin(carry: Carry) -> Observed:
        return Observed(carry, first(inner.observe(carry)))

    def step(state: Observed, action: Action, key: Key) -> tuple[Observed, Transition]:
        carry, row = inner.step(state.carry, action, key)
        shown = following(state.shown, row.next_observation)
        return Observed(carry, shown), row._replace(observation=state.shown, next_observation=shown)

    again = inner.next_episode
    world = World(
        reset=lambda key: begin(inner.reset(key)),
        start=lambda origin, key: Observed(inner.start(origin.pipeline_state, key), origin.obs),
        observe=lambda state: state.shown,
        step=step,
        next_episode=again and (lambda state, key: begin(again(state.carry, key))),
    )

    def on_host(make: Callable[[], HostEnv] | None) -> Callable[[], HostEnv] | None:
        return make and (lambda: ObservedHost(make(), first, following))

    return task._replace(
        name=name,
        env=ObservedEnv(task.env, space, lambda state: first(state.obs), lambda shown, state: following(shown, state.obs)),
        world=world if task.host is None else task.world,
        observation=space,
        host=on_host(task.host),
        filmed=on_host(task.filmed),
    )


class ObservedEnv:
    """`env` with other observations, in `space`: `first(state)` at the start of an episode, then `following(before, state)`
    of the observation before. `State.pipeline_state` is the whole state of `env`."""

    def __init__(
        self,
        env: Env,
        space: Space,
        first: Callable[[Any], Observation],
        following: Callable[[Observation, Any], Observation],
    ) -> None:
        self.env: Any = env
        self._space, self._first, self._following = space, first, following

    @property
    def observation_size(self) -> int:
        """Length of `State.obs`, if it is a vector."""
        return self._space.shape[0]

    @property
    def action_size(self) -> int:
        """Length of the action."""
        return self.env.action_size

    def reset(self, rng: Key) -> State:
        """The first state of an episode."""
        state = self.env.reset(rng)
        return _around(state, self._first(state))

    def step(self, state: State, action: Action) -> State:
        """The state one control step later."""
        after = self.env.step(state.pipeline_state, action)
        return _around(after, self._following(state.obs, after))


class ObservedHost:
    """`host` with other observations."""

    def __init__(self, host: HostEnv, first: First, following: Following) -> None:
        self._host, self._first, self._following = host, first, following
        self._shown: PyTree = None

    def reset(self, seed: int) -> PyTree:
        """Start an episode; returns its first observation."""
        self._shown = self._first(self._host.reset(seed))
        return self._shown

    def step(self, action: Shaped[np.ndarray, "..."]) -> HostStep:
        """Take one step."""
        result = self._host.step(action)
        self._shown = self._following(self._shown, result.observation)
        return result._replace(observation=self._shown)

    def render(self) -> Any:
        """The picture of the environment, if it makes pictures."""
        host: Any = self._host
        return host.render()

    @property
    def dt(self) -> float | None:
        """Seconds of a step, if the environment knows them."""
        return getattr(self._host, "dt", None)

    def close(self) -> None:
        """Close the environment."""
        self._host.close()


def plain(env: Any) -> Any:
    """The environment inside all wrappers that repeat or kick its actions or change its observation."""
    while isinstance(env, RepeatedEnv | ObservedEnv | KickedEnv):
        env = env.env
    return env


def shows(task: str, of: str) -> bool:
    """Whether the task named `task` is the one named `of`, or this one with another observation.

    >>> from jaxmbrl.envs import observed
    >>> observed.shows("stacked/3/pixels/pendulum", "pendulum"), observed.shows("pendulum", "masked/pendulum")
    (True, False)
    """
    prefix = task.removesuffix(of)
    return task.endswith(of) and re.fullmatch(r"((masked|stacked|pixels)/((\d+|grey|rendered|,)+/)?)*", prefix) is not None


def beneath(task: Task, of: Task) -> Callable[[Carry], Carry]:
    """Carry of the world of `task` -> the carry of the world of `of`, which is the same task with its own observation
    (`shows`). Raises UserError for a task on the host, which has no carry."""
    if task.host is not None:
        raise UserError(f"task '{task.name}' runs on the host, where the state behind an observation is not known")
    above, below = (_layers(jax.eval_shape(made.world.reset, jax.random.key(0))) for made in (task, of))

    def inside(carry: Carry, layers: int) -> Carry:
        if layers == 0:
            return carry
        if isinstance(carry, Observed):
            return inside(carry.carry, layers - 1)
        repeated, elapsed = carry
        return inside(repeated, layers), elapsed

    return lambda carry: inside(carry, above - below)


def _layers(carry: Carry) -> int:
    """How often the observation was changed. A world whose actions are repeated has a pair as its carry."""
    if isinstance(carry, Observed):
        return 1 + _layers(carry.carry)
    return _layers(carry[0]) if type(carry) is tuple and len(carry) == 2 else 0


def _around(state: Any, shown: Observation) -> State:
    info, metrics = (getattr(state, name, None) or {} for name in ("info", "metrics"))
    return State(state, shown, state.reward, state.done, metrics, info)


def _joined(parts: Sequence[Observation]) -> Observation:
    """The parts along the last axis, in NumPy if they are NumPy arrays."""
    numpy = all(isinstance(part, np.ndarray) for part in parts)
    return np.concatenate(parts, axis=-1) if numpy else jnp.concatenate(parts, axis=-1)


def _box(task: Task, what: str) -> Box:
    if not isinstance(task.observation, Box):
        raise UserError(
            f"{what} needs vectors or images, and the observations of task '{task.name}' are {task.observation}: take "
            "another task"
        )
    return task.observation


def _indices(task: Task, drop: str | int | Sequence[int | str]) -> list[int]:
    """The entries `drop` of the task's observation, in order. Raises UserError if there is no such entry."""
    size = task.observation.shape[0]
    given: list[int | str] = [drop] if isinstance(drop, str | int) else list(drop)
    found: set[int] = set()
    for entry in given:
        if isinstance(entry, str):
            found |= _named(task, entry)
        elif isinstance(entry, numbers.Integral) and not isinstance(entry, bool) and 0 <= entry < size:
            found.add(int(entry))
        else:
            raise UserError(f"drop must be entries from 0 to {size - 1} of {task.name}'s observation, got {entry!r}")
    return sorted(found)


def _named(task: Task, entry: str) -> set[int]:
    env: Any = unrepeated(task.env)
    names = tuple(getattr(env, "observation_names", ()))
    if len(names) != task.observation.shape[0]:
        raise UserError(f"the entries of {task.name}'s observation have no names: give drop as indices")
    if entry == VELOCITIES:
        return {i for i, name in enumerate(names) if "velocity" in name}
    if entry not in names:
        raise UserError(f"{task.name}'s observation has no entry '{entry}'; {closest(entry, [*names, VELOCITIES])}")
    return {i for i, name in enumerate(names) if name == entry}
