"""Exploration: a warm-up with random actions, and noise added to a policy.

Random actions have extras too, so that the stored extras describe how the action of every step was sampled.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxmbrl.core.spaces import Space
from jaxmbrl.core.types import Action, Key, Memory, Observation, Policy, PyTree


def no_extras(action: Action) -> PyTree:
    """Empty extras."""
    return ()


def uniform(space: Space, extras: Callable[[Action], PyTree] = no_extras) -> Policy:
    """Actions sampled uniformly from `space`, with `extras(action)`. The memory is returned unchanged, so this policy can
    replace a policy with any memory."""

    def act(memory: Memory, observation: Observation, key: Key) -> tuple[Action, PyTree, Memory]:
        action = space.sample(key)
        return action, extras(action), memory

    return Policy(init=lambda key: (), act=act)


def with_warmup(policy: Policy, random: Policy, warm: Bool[Array, ""]) -> Policy:
    """`policy`, with actions of `random` while `warm` is true. All seeds must share `warm`, so that only one of the two
    policies is computed.

    Both must return extras of the same structure. `random` receives the memory of `policy`.
    """

    def act(memory: Memory, observation: Observation, key: Key) -> tuple[Action, PyTree, Memory]:
        return jax.lax.cond(
            warm,
            lambda memory: random.act(memory, observation, key),
            lambda memory: policy.act(memory, observation, key),
            memory,
        )

    return Policy(policy.init, act)


def with_gaussian_noise(policy: Policy, deviation: Any) -> Policy:
    """`policy` with added Gaussian noise of standard deviation `deviation`, in units of the action; the sum is clipped to
    [-1, 1]. It may be a function of the policy's memory after the action, such as the deviation of a plan."""

    def act(memory: Memory, observation: Observation, key: Key) -> tuple[Action, PyTree, Memory]:
        # The policy has its own key, in case it is stochastic.
        action, extras, memory = policy.act(memory, observation, jax.random.fold_in(key, 0))
        scale = deviation(memory) if callable(deviation) else deviation
        noise = scale * jax.random.normal(key, action.shape, action.dtype)
        return jnp.clip(action + noise, -1.0, 1.0), extras, memory

    return Policy(policy.init, act)


def with_ou_noise(policy: Policy, shape: tuple[int, ...], decay: float, deviation: float) -> Policy:
    """`policy` with added Ornstein-Uhlenbeck noise, x' = (1 - decay) x + deviation N(0, 1), in units of the action
    [*shape]; the sum is clipped to [-1, 1]. An episode begins with a sample of the stationary distribution. The memory is
    that of `policy` and x. Without `decay` the noise is a random walk from 0."""
    stationary = deviation / math.sqrt(1 - (1 - decay) ** 2) if decay > 0 else 0.0

    def init(key: Key) -> Memory:
        return policy.init(jax.random.fold_in(key, 0)), stationary * jax.random.normal(key, shape)

    def act(memory: Memory, observation: Observation, key: Key) -> tuple[Action, PyTree, Memory]:
        inner, noise = memory
        action, extras, inner = policy.act(inner, observation, jax.random.fold_in(key, 0))
        noise = (1 - decay) * noise + deviation * jax.random.normal(key, shape, noise.dtype)
        return jnp.clip(action + noise, -1.0, 1.0), extras, (inner, noise)

    return Policy(init, act)


def with_epsilon(policy: Policy, space: Space, epsilon: Float[Array, ""] | float) -> Policy:
    """Epsilon-greedy: a uniform sample of `space` with probability `epsilon`, else the action of `policy`. For a block of
    observations, each action is chosen independently."""

    def act(memory: Memory, observation: Observation, key: Key) -> tuple[Action, PyTree, Memory]:
        act_key, choice_key, random_key = jax.random.split(key, 3)
        action, extras, memory = policy.act(memory, observation, act_key)
        block = action.shape[: action.ndim - len(space.shape)]
        explores = jax.random.uniform(choice_key, block) < epsilon
        if block:
            sampled = jax.vmap(space.sample)(jax.random.split(random_key, math.prod(block))).reshape(action.shape)
        else:
            sampled = space.sample(random_key)
        explores = explores.reshape(*block, *[1] * len(space.shape))
        return jnp.where(explores, sampled, action), extras, memory

    return Policy(policy.init, act)
