"""Environments in the Brax interface, and how one becomes a `Task`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int

from jaxmbrl.types import Action, Box, Env, Key, PyTree, Spec, Task, Transition, World


class State(struct.PyTreeNode):
    """State of an environment, with the fields of Brax's. Leaves are arrays, or what stands for them in tree functions
    (`jax.eval_shape`, axes of a vmap), so no field's annotation asks for an array."""

    pipeline_state: PyTree
    """The simulator's state."""
    obs: PyTree
    """[O]."""
    reward: PyTree
    """[]."""
    done: PyTree
    """[]; 1.0 where the task terminated, never for a time limit."""
    metrics: dict[str, Any]
    info: dict[str, Any]


def initial_state(pipeline_state: PyTree, obs: Float[Array, "O"], metrics: dict[str, Any] | None = None) -> State:
    """An episode's first state: nothing earned, not done."""
    return State(
        pipeline_state=pipeline_state, obs=obs, reward=jnp.zeros(()), done=jnp.zeros(()), metrics=metrics or {}, info={}
    )


def make_task(
    name: str,
    env: Env,
    episode_length: int,
    reward: Callable[..., Any] | None = None,
    terminated: Callable[..., Any] | None = None,
    action: Spec | None = None,
) -> Task:
    """A `Task` from an environment. Its World's carry is (State, steps since the start); its origin is a `State`.

    `reward(obs, action, next_obs)` and `terminated(next_obs)` are given where the observation determines them.
    """

    def step(carry: tuple[Any, Int[Array, ""]], action: Action, key: Key) -> tuple[Any, Transition]:
        state, elapsed = carry
        successor = env.step(state, action)
        ended = successor.done > 0
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
        reset=lambda key: (env.reset(key), jnp.zeros((), jnp.int32)),
        start=lambda origin, key: (origin, jnp.zeros((), jnp.int32)),
        observe=lambda carry: carry[0].obs,
        step=step,
    )
    return Task(
        name=name,
        env=env,
        world=world,
        observation=Box((env.observation_size,)),
        action=action or Box((env.action_size,), -1.0, 1.0),
        episode_length=episode_length,
        reward=reward,
        terminated=terminated,
    )
