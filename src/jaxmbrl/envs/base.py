"""Environments in the Brax interface, and how one becomes a `Task`."""

from __future__ import annotations

import numbers
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int, Shaped

from jaxmbrl.core.config import UserError
from jaxmbrl.core.spaces import Box, Space
from jaxmbrl.core.types import Action, Env, Features, Key, PyTree, Task, Transition, World


class State(struct.PyTreeNode):
    """State of an environment, with the fields of Brax's. Its leaves are arrays, or whatever tree functions put in their
    place (`jax.eval_shape`, axes of a vmap), so no field is annotated as an array."""

    pipeline_state: PyTree
    """The simulator's state."""
    obs: PyTree
    """An element of the observation space: [O], or as `make_task` is given."""
    reward: PyTree
    """[]."""
    done: PyTree
    """[]; 1.0 where the task terminated, never for a time limit."""
    metrics: dict[str, Any]
    info: dict[str, Any]


def initial_state(pipeline_state: PyTree, obs: Shaped[Array, "..."], metrics: dict[str, Any] | None = None) -> State:
    """An episode's first state: reward 0, not done."""
    return State(
        pipeline_state=pipeline_state, obs=obs, reward=jnp.zeros(()), done=jnp.zeros(()), metrics=metrics or {}, info={}
    )


def make_task(
    name: str,
    env: Env,
    episode_length: int,
    reward: Callable[..., Any] | None = None,
    terminated: Callable[..., Any] | None = None,
    action: Space | None = None,
    features: Features | None = None,
    observation: Space | None = None,
) -> Task:
    """A `Task` from an environment. Its World's carry is (State, steps since the start); its origin is a `State`.

    `observation` is the space of `State.obs` where it is not a vector of `env.observation_size` floats: `Discrete(n)` for
    int32 scalars, `Box((H, W, C), 0, 255, "uint8")` for images. `action` is the space of actions where it is not the box
    [-1, 1] of `env.action_size`. `reward(obs, action, next_obs)` and `terminated(next_obs)` are given where the observation
    determines them; `features` says how a dynamics model encodes the observation, where not as it is. `State.done` means
    terminated; a step that Brax marks by `truncation` in `State.info` only ran out of time.

    Raises UserError where a size that is needed is not a number, as for environments with several observations, and, at the
    first reset, where the environment is one of Brax's that resets by itself.
    """
    observation = observation or Box((_size(name, env, "observation_size"),))
    action = action or Box((_size(name, env, "action_size"),), -1.0, 1.0)

    def reset(key: Key) -> tuple[Any, Int[Array, ""]]:
        state = env.reset(key)
        if "first_obs" in _info(state):
            raise UserError(f"task '{name}': the environment resets by itself: give the one inside its auto-reset wrapper")
        return jax.tree.map(typed, state), jnp.zeros((), jnp.int32)

    def step(carry: tuple[Any, Int[Array, ""]], action: Action, key: Key) -> tuple[Any, Transition]:
        state, elapsed = carry
        # A copy of its containers, since Brax's environments update `info` and `metrics` in place.
        successor = jax.tree.map(typed, env.step(jax.tree.map(lambda leaf: leaf, state), action))
        ended = _ended(successor)
        transition = Transition(
            observation=state.obs,
            action=action,
            reward=successor.reward,
            next_observation=successor.obs,
            terminated=ended,
            truncated=(elapsed + 1 >= episode_length) & ~ended,
        )
        return (successor, elapsed + 1), transition

    world = World(
        reset=reset,
        start=lambda origin, key: (origin, jnp.zeros((), jnp.int32)),
        observe=lambda carry: carry[0].obs,
        step=step,
    )
    return Task(
        name=name,
        env=env,
        world=world,
        observation=observation,
        action=action,
        episode_length=episode_length,
        reward=reward,
        terminated=terminated,
        features=features,
    )


def never(next_observation: Float[Array, "*n O"]) -> Bool[Array, "*n"]:
    """The termination function of a task that never terminates."""
    return jnp.zeros(next_observation.shape[:-1], bool)


def vector_sizes(task: Task, method: str) -> tuple[int, int]:
    """(length of an observation, length of an action) for a method that takes vectors of floats. Raises UserError where the
    task has another space."""
    for what, space in (("observations", task.observation), ("actions", task.action)):
        if not isinstance(space, Box) or not space.is_vector:
            raise UserError(f"{method} takes vectors, and the {what} of task '{task.name}' are {space}: take another task")
    return task.observation.shape[0], task.action.shape[0]


def typed(leaf: Any) -> Array:
    """`leaf` as an array without a weak type: a Python number in a state would change its dtype at the first step."""
    array = jnp.asarray(leaf)
    # Arrays of keys have no weak type.
    return jax.lax.convert_element_type(array, array.dtype) if getattr(array, "weak_type", False) else array


def _size(name: str, env: Env, what: str) -> int:
    """The environment's `observation_size` or `action_size`. Raises UserError where it is not the length of a vector."""
    size = getattr(env, what)
    if not isinstance(size, numbers.Integral) or size < 1:
        raise UserError(f"task '{name}': the environment's {what} must be the length of one vector, got {size!r}")
    return int(size)


def _ended(state: Any) -> Bool[Array, ""]:
    ended, info = state.done > 0, _info(state)
    return ended & ~(info["truncation"] > 0) if "truncation" in info else ended


def _info(state: Any) -> Any:
    return getattr(state, "info", None) or {}
