"""An agent's updates: critics and actor in turn, either by other means, and many in a row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from jaxmbrl.core import metrics
from jaxmbrl.core.types import Agent, Key, Metrics, Transition


@jax.named_scope("update")
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
        state, of_actor = metrics.cond_update(last, lambda state: agent.update_actor(state, batch, actor_key), state)
        return state, of_critic | of_actor

    state, found = jax.lax.scan(update, state, (jnp.arange(number), jax.random.split(key, number)))
    return state, metrics.total(found)


Update = Callable[[Any, Any, Key], tuple[Any, Metrics]]
"""(state, batch, key) -> (state, metrics)."""


def in_turn(update_critic: Update, update_actor: Update) -> Update:
    """The critics' update, then the actor's, on the same batch."""

    def update(state: Any, batch: Any, key: Key) -> tuple[Any, Metrics]:
        critic_key, actor_key = jax.random.split(key)
        state, of_critic = update_critic(state, batch, critic_key)
        state, of_actor = update_actor(state, batch, actor_key)
        return state, of_critic | of_actor

    return update


def with_updates(agent: Agent, *, critic: Update | None = None, actor: Update | None = None) -> Agent:
    """`agent` whose critics, or actor, or both are updated by what is given."""
    critic = agent.update_critic if critic is None else critic
    actor = agent.update_actor if actor is None else actor
    return agent._replace(update_critic=critic, update_actor=actor, update=in_turn(critic, actor))
