"""Tasks whose steps have noise with two modes: a kick of the action, with an equal probability of either sign."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxmbrl import envs
from jaxmbrl.core.config import UserError
from jaxmbrl.core.spaces import Box
from jaxmbrl.core.types import Action, Carry, Env, Key, Observation, Task, Transition
from jaxmbrl.envs.action_repeat import unrepeated

Reward = Callable[[Observation, Action, Observation], Float[Array, ""]]
FORMAT = "a kicked task is named kicked/SIZE/TASK or kicked/SIZE,SPREAD/TASK, such as kicked/0.4/pendulum"


def kicked(task: Task | str, size: float, spread: float = 0.0) -> Task:
    """`task`, or the task with this name, whose actions a are applied as

        (1 - size) a + s (size + spread n),    s = -1 or 1 with probability 1/2 each,    n ~ N(0, 1)

    with the same s and n for all entries of an action. Actions in [-1, 1] stay there, up to the spread, so that both kicks
    have an effect at any action, and the successor of a state and an action has two modes. Rewards are those of the action
    that was chosen, if the task's `reward` is known.

    A step of the World draws the kick by the key that it is given. In the environment `State.info["kick"]` is the key of
    the next step; around another kicked environment it is `State.info["outer kick"]`.

    By name, `kicked/0.4/TASK`, or `kicked/0.4,0.04/TASK` with a spread. Raises UserError if actions are not vectors, if the
    task is one on the host, if `size` is not above 0 and below 1, or if `spread` is negative.

    >>> from jaxmbrl import envs
    >>> envs.kicked("pendulum", 0.4).name
    'kicked/0.4/pendulum'
    """
    task = envs.make(task) if isinstance(task, str) else task
    if not (isinstance(task.action, Box) and task.action.is_vector):
        raise UserError(f"kicks need actions that are vectors, and those of '{task.name}' are {task.action}")
    if task.host is not None:
        raise UserError(f"kicks need a task in JAX, and '{task.name}' is one on the host: take another task")
    if not 0 < size < 1:
        raise UserError(f"size must be above 0 and below 1, got {size:g}")
    if not spread >= 0:
        raise UserError(f"spread must be at least 0, got {spread:g}")
    inner, reward = task.world, task.reward

    def kick(action: Action, key: Key) -> Action:
        sign_key, spread_key = jax.random.split(key)
        sign = jax.random.rademacher(sign_key, (), action.dtype)
        return (1 - size) * action + sign * (size + spread * jax.random.normal(spread_key, (), action.dtype))

    def step(carry: Carry, action: Action, key: Key) -> tuple[Carry, Transition]:
        kick_key, inner_key = jax.random.split(key)
        carry, row = inner.step(carry, kick(action, kick_key), inner_key)
        row = row._replace(action=action)
        if reward is not None:
            row = row._replace(reward=reward(row.observation, action, row.next_observation))
        return carry, row

    sizes = ",".join(np.format_float_positional(x, trim="-") for x in ((size, spread) if spread else (size,)))
    return task._replace(
        name=f"kicked/{sizes}/{task.name}",
        env=KickedEnv(task.env, kick, reward),
        world=inner._replace(step=step, prepare=None),
    )


def kicked_by_name(name: str) -> Task:
    """The task `kicked/NAME`."""
    sizes, _, rest = name.partition("/")
    if not re.fullmatch(r"\d*\.?\d+(,\d*\.?\d+)?", sizes) or not rest:
        raise UserError(f"{FORMAT}, got 'kicked/{name}'")
    return kicked(rest, *map(float, sizes.split(",")))


class KickedEnv:
    """`env` with actions `kick(action, key)`, and rewards `reward` of the action that was chosen if it is given."""

    def __init__(self, env: Env, kick: Callable[[Action, Key], Action], reward: Reward | None) -> None:
        self.env: Any = env
        self._kick, self._reward = kick, reward
        layers = 0
        inside: Any = self.env
        while inside is not None:
            layers, inside = layers + isinstance(inside, KickedEnv), getattr(inside, "env", None)
        self._entry: str = "outer " * layers + "kick"

    @property
    def observation_size(self) -> int:
        """Length of `State.obs`."""
        return self.env.observation_size

    @property
    def observation_names(self) -> tuple[str, ...]:
        """Names of the entries of the observation, if the environment has them."""
        return tuple(getattr(unrepeated(self.env), "observation_names", ()))

    @property
    def action_size(self) -> int:
        """Length of the action."""
        return self.env.action_size

    def reset(self, rng: Key) -> Any:
        """The first state of an episode."""
        reset_key, kick_key = jax.random.split(rng)
        state = self.env.reset(reset_key)
        return state.replace(info={**state.info, self._entry: kick_key})

    def step(self, state: Any, action: Action) -> Any:
        """The state one control step later."""
        kick_key, next_key = jax.random.split(state.info[self._entry])
        after = self.env.step(state, self._kick(action, kick_key))
        if self._reward is not None:
            after = after.replace(reward=jnp.asarray(self._reward(state.obs, action, after.obs)))
        return after.replace(info={**after.info, self._entry: next_key})
