"""Action repeat: each step of a task applies the same action several times."""

from __future__ import annotations

import math
import numbers
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

from jaxmbrl import envs
from jaxmbrl.core.config import UserError
from jaxmbrl.core.types import Action, Carry, Env, HostEnv, HostStep, Key, PyTree, Task, Transition, World
from jaxmbrl.envs.base import typed


def repeat(task: Task, times: int) -> Task:
    """`task` with each action applied `times` times in a row. If `times` is 1, `task` itself.

    The reward of a step is the sum of the rewards of its inner steps. A step ends early if the task terminates, and its
    next state is then the terminal state. It also ends early at the time limit, which stays at the same inner step. So an
    episode has ceil(episode_length / times) steps, and the last one may be shorter. All step counts are of these steps.

    If `times` is above 1, the known `reward` function is dropped: the sum depends on inner states that no row stores, and
    on the number of inner steps before a termination. `terminated` is kept: a row stores the terminal state as its next
    state.

    `Task.env` repeats actions too, without the time limit, which an environment does not have.

    By name, `repeated/2/TASK`. Other names may stand before it: `stacked/3/pixels/repeated/2/TASK` stacks one picture of
    each repeated step, and `stacked/3/pixels/TASK`, whose actions are repeated from outside, the last three inner ones.

    Raises UserError if `times` is not a whole number from 1 to the length of an episode.

    >>> from jaxmbrl import envs
    >>> envs.make("repeated/2/pendulum").episode_length
    100
    """
    whole = isinstance(times, numbers.Integral) and not isinstance(times, bool)
    if not whole or not 1 <= times <= task.episode_length:
        raise UserError(
            f"action_repeat must be a whole number between 1 and the {task.episode_length} steps of an episode of "
            f"{task.name}, got {times!r}"
        )
    if times == 1:
        return task
    times = int(times)
    inner, steps = task.world, -(-task.episode_length // times)

    def step(state: tuple[Carry, Int[Array, ""]], action: Action, key: Key) -> tuple[Any, Transition]:
        carry, elapsed = state

        def once(carry: Carry, i: Int[Array, ""]) -> tuple[Carry, Float[Array, ""], Bool[Array, ""]]:
            carry, row = inner.step(carry, action, jax.random.fold_in(key, i))
            return carry, row.reward, row.terminated

        left = task.episode_length - times * elapsed
        # Plans may reach beyond the time limit; steps there are of full length.
        after, reward, terminated = _fold(once, carry, times, jnp.where(left > 0, left, times))
        transition = Transition(
            observation=inner.observe(carry),
            action=action,
            reward=reward,
            next_observation=inner.observe(after),
            terminated=terminated,
            truncated=(elapsed + 1 >= steps) & ~terminated,
        )
        return (after, elapsed + 1), transition

    following = inner.next_episode
    world = World(
        reset=lambda key: (inner.reset(key), jnp.zeros((), jnp.int32)),
        start=lambda origin, key: (inner.start(origin, key), jnp.zeros((), jnp.int32)),
        observe=lambda state: inner.observe(state[0]),
        step=step,
        next_episode=following and (lambda state, key: (following(state[0], key), jnp.zeros((), jnp.int32))),
    )
    return task._replace(
        env=RepeatedEnv(task.env, times),
        world=world if task.host is None else task.world,
        episode_length=steps,
        reward=None,
        saturating=None,
        action_repeat=times * task.action_repeat,
        host=None if task.host is None else partial(_repeated_host, task.host, times),
        filmed=None if task.filmed is None else partial(_repeated_host, task.filmed, times),
    )


def repeated_by_name(name: str) -> Task:
    """The task `repeated/NAME`."""
    times, _, rest = name.partition("/")
    if not re.fullmatch(r"\d+", times) or not rest:
        raise UserError(
            f"a task with repeated actions is named repeated/TIMES/TASK, such as repeated/2/pendulum, got 'repeated/{name}'"
        )
    task = repeat(envs.make(rest), int(times))
    return task._replace(name=f"repeated/{times}/{rest}")


def _repeated_host(make: Callable[[], HostEnv], times: int) -> HostEnv:
    return RepeatedHost(make(), times)


class RepeatedHost:
    """`host` with each action applied `times` times, or until the episode ends. Rewards are summed."""

    def __init__(self, host: HostEnv, times: int) -> None:
        self._host, self._times = host, times

    def reset(self, seed: int) -> PyTree:
        """Start an episode; returns its first observation."""
        return self._host.reset(seed)

    def step(self, action: Shaped[np.ndarray, "..."]) -> HostStep:
        """Take up to `times` steps with the same action."""
        total = 0.0
        for _ in range(self._times):
            result = self._host.step(action)
            total += result.reward
            if result.terminated or result.truncated:
                break
        return result._replace(reward=total)

    def render(self) -> Any:
        """The picture of the environment, if it makes pictures."""
        host: Any = self._host
        return host.render()

    @property
    def dt(self) -> float | None:
        """Seconds of an inner step, if the environment knows them."""
        return getattr(self._host, "dt", None)

    def close(self) -> None:
        """Close the environment."""
        self._host.close()


class RepeatedEnv:
    """`env` with each action applied `times` times, or until it is done. Rewards are summed; all else in the state is from
    the last inner step."""

    def __init__(self, env: Env, times: int) -> None:
        self.env: Any = env
        self.times = times

    @property
    def observation_size(self) -> int:
        """Length of `State.obs`."""
        return self.env.observation_size

    @property
    def action_size(self) -> int:
        """Length of the action."""
        return self.env.action_size

    def reset(self, rng: Key) -> Any:
        """The first state of an episode."""
        return self.env.reset(rng)

    def step(self, state: Any, action: Action) -> Any:
        """The state after `times` control steps."""

        def once(state: Any, i: Int[Array, ""]) -> tuple[Any, Float[Array, ""], Bool[Array, ""]]:
            state = jax.tree.map(typed, self.env.step(state, action))
            return state, state.reward, state.done > 0

        after, reward, _ = _fold(once, jax.tree.map(typed, state), self.times, jnp.asarray(self.times))
        return after.replace(reward=reward)


def times_in(name: str) -> int:
    """Times that the task called `name` applies each action by its name, as `stacked/3/repeated/2/pendulum`.

    >>> from jaxmbrl.envs.action_repeat import times_in
    >>> times_in("stacked/3/repeated/2/pendulum"), times_in("pendulum")
    (2, 1)
    """
    return math.prod(map(int, re.findall(r"(?:^|/)repeated/(\d+)(?=/)", name)))


def unrepeated(env: Any) -> Any:
    """The environment inside all `RepeatedEnv` wrappers, or `env` itself without one."""
    while isinstance(env, RepeatedEnv):
        env = env.env
    return env


def _fold(
    once: Callable[[PyTree, Int[Array, ""]], tuple[PyTree, Float[Array, ""], Bool[Array, ""]]],
    state: PyTree,
    times: int,
    limit: Int[Array, ""],
) -> tuple[PyTree, Float[Array, ""], Bool[Array, ""]]:
    """Apply `once` up to `times` times, until it ends or `limit` is reached. Returns (state, sum of rewards, ended)."""

    def body(i: Int[Array, ""], loop: tuple[PyTree, Array, Array]) -> tuple[PyTree, Array, Array]:
        state, total, ended = loop
        goes_on = ~ended & (i < limit)
        after, reward, over = once(state, i)
        state = jax.tree.map(lambda new, old: jnp.where(goes_on, new, old), after, state)
        return state, jnp.where(goes_on, total + reward, total), ended | (goes_on & over)

    # A loop of fixed length can be differentiated in reverse mode; a `while_loop` cannot.
    return jax.lax.fori_loop(0, times, body, (state, jnp.zeros(()), jnp.zeros((), bool)))
