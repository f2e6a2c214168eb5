"""Several updates of an agent in a row, each on a batch of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from jaxmbrl import metrics
from jaxmbrl.types import Agent, Key, Metrics, Transition


def updates(
    agent: Agent,
    state: Any,
    draw: Callable[[Key], Transition],
    key: Key,
    number: int,
    actor_delay: int = 1,
    before: Int[Array, ""] | int = 0,
) -> tuple[Any, Metrics]:
    """`number` updates of `agent` in one scan, each with a batch [B] that `draw(key)` makes.

    Every `actor_delay`-th update is whole; the others leave the actor as it is (TD3, arXiv 1802.09477, algorithm 1; REDQ,
    arXiv 2101.05982, algorithm 1, where the delay is the number of updates for each environment step). `before` is how many
    updates there were already, or that modulo the delay, the same for all seeds.
    """

    def update(state: Any, step: tuple[Int[Array, ""], Key]) -> tuple[Any, Metrics]:
        i, key = step
        sample_key, agent_key = jax.random.split(key)
        batch = draw(sample_key)
        if actor_delay == 1:
            return agent.update(state, batch, agent_key)
        critic_key, actor_key = jax.random.split(agent_key)
        state, of_critic = agent.update_critic(state, batch, critic_key)
        # The index is the same for all seeds, so only one side of this runs.
        last = (before + i + 1) % actor_delay == 0
        state, of_actor = metrics.when(last, lambda state: agent.update_actor(state, batch, actor_key), state)
        return state, of_critic | of_actor

    state, found = jax.lax.scan(update, state, (jnp.arange(number), jax.random.split(key, number)))
    return state, metrics.total(found)
