"""Exploration: a warm-up with random actions, and noise added to a policy.

Random actions have extras too, so that the stored extras describe how the action of every step was sampled. A policy that
remembers the history (`Policy.remember`) remembers the actions that were taken, and not those that it would have taken.
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


def remembered(policy: Policy, memory: Memory, observation: Observation, action: Action, key: Key, after: Memory) -> Memory:
    """The memory of `policy` after `action`, which it need not have chosen: `after` if it does not depend on the action.
    `key` is that with which the policy acts."""
    return after if policy.remember is None else policy.remember(memory, observation, action, key)


def with_key(policy: Policy, own: Callable[[Key], Key]) -> Callable[[Memory, Observation, Action, Key], Memory] | None:
    """`policy.remember` given the key of a policy around it, inside of which it acts with `own(key)`; None without it."""
    remember = policy.remember
    return remember and (lambda memory, observation, action, key: remember(memory, observation, action, own(key)))


def with_warmup(policy: Policy, random: Policy, warm: Bool[Array, ""]) -> Policy:
    """`policy`, with actions of `random` while `warm` is true. All seeds must share `warm`, so that only one of the two
    policies is computed.

    Both must return extras of the same structure. `random` receives the memory of `policy`, and what it returns of it is
    the memory unless `policy` remembers the random actions.
    """

    def act(memory: Memory, observation: Observation, key: Key) -> tuple[Action, PyTree, Memory]:
        def at_random(memory: Memory) -> tuple[Action, PyTree, Memory]:
            action, extras, after = random.act(memory, observation, key)
            return action, extras, remembered(policy, memory, observation, action, key, after)

        return jax.lax.cond(warm, at_random, lambda memory: policy.act(memory, observation, key), memory)

    return Policy(policy.init, act, remember=policy.remember)


def _first_key(key: Key) -> Key:
    """The key of the policy to whose action noise is added."""
    return jax.random.fold_in(key, 0)


def with_gaussian_noise(policy: Policy, deviation: Any) -> Policy:
    """`policy` with added Gaussian noise of standard deviation `deviation`, in units of the action; the sum is clipped to
    [-1, 1]. It may be a function of the policy's memory after the action, such as the deviation of a plan. Discrete
    actions, which are integers, stay as they are."""

    def act(memory: Memory, observation: Observation, key: Key) -> tuple[Action, PyTree, Memory]:
        # The policy has its own key, in case it is stochastic.
        own_key = _first_key(key)
        action, extras, after = policy.act(memory, observation, own_key)
        if not jnp.issubdtype(action.dtype, jnp.floating):
            return action, extras, after
        scale = deviation(after) if callable(deviation) else deviation
        noise = scale * jax.random.normal(key, action.shape, action.dtype)
        action = jnp.clip(action + noise, -1.0, 1.0)
        return action, extras, remembered(policy, memory, observation, action, own_key, after)

    return Policy(policy.init, act, remember=with_key(policy, _first_key))


def with_ou_noise(policy: Policy, shape: tuple[int, ...], decay: float, deviation: float) -> Policy:
    """`policy` with added Ornstein-Uhlenbeck noise, x' = (1 - decay) x + deviation N(0, 1), in units of the action
    [*shape]; the sum is clipped to [-1, 1]. An episode begins with a sample of the stationary distribution. The memory is
    that of `policy` and x. Without `decay` the noise is a random walk from 0."""
    stationary = deviation / math.sqrt(1 - (1 - decay) ** 2) if decay > 0 else 0.0

    def init(key: Key) -> Memory:
        return policy.init(jax.random.fold_in(key, 0)), stationary * jax.random.normal(key, shape)

    def act(memory: Memory, observation: Observation, key: Key) -> tuple[Action, PyTree, Memory]:
        inner, noise = memory
        own_key = _first_key(key)
        action, extras, after = policy.act(inner, observation, own_key)
        noise = (1 - decay) * noise + deviation * jax.random.normal(key, shape, noise.dtype)
        action = jnp.clip(action + noise, -1.0, 1.0)
        return action, extras, (remembered(policy, inner, observation, action, own_key, after), noise)

    of_policy = with_key(policy, _first_key)
    remember = of_policy and (lambda memory, *given: (of_policy(memory[0], *given), memory[1]))
    return Policy(init, act, remember=remember)


def with_epsilon(policy: Policy, space: Space, epsilon: Float[Array, ""] | float) -> Policy:
    """Epsilon-greedy: a uniform sample of `space` with probability `epsilon`, else the action of `policy`. For a block of
    observations, each action is chosen independently."""

    def act(memory: Memory, observation: Observation, key: Key) -> tuple[Action, PyTree, Memory]:
        act_key, choice_key, random_key = jax.random.split(key, 3)
        action, extras, after = policy.act(memory, observation, act_key)
        block = action.shape[: action.ndim - len(space.shape)]
        explores = jax.random.uniform(choice_key, block) < epsilon
        if block:
            sampled = jax.vmap(space.sample)(jax.random.split(random_key, math.prod(block))).reshape(action.shape)
        else:
            sampled = space.sample(random_key)
        explores = explores.reshape(*block, *[1] * len(space.shape))
        action = jnp.where(explores, sampled, action)
        return action, extras, remembered(policy, memory, observation, action, act_key, after)

    return Policy(policy.init, act, remember=with_key(policy, lambda key: jax.random.split(key, 3)[0]))
