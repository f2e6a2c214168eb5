"""Updates of an actor-critic: critics then actor, replacement of either update, and many updates in one scan."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxmbrl.core import metrics
from jaxmbrl.core.types import ActorCritic, Key, Metrics, Transition

UpdateCritic = Callable[..., tuple[Any, Metrics, Float[Array, "B"]]]
"""(state, batch, key) -> (state, metrics, absolute error of each row); `weight` [B] is optional."""
UpdateActor = Callable[[Any, Any, Key], tuple[Any, Metrics]]
"""(state, batch, key) -> (state, metrics)."""


@jax.named_scope("update")
def updates(
    agent: ActorCritic,
    state: Any,
    draw: Callable[[Key], Transition],
    key: Key,
    number: int,
    actor_delay: int = 1,
    before: Int[Array, ""] | int = 0,
) -> tuple[Any, Metrics]:
    """`number` updates of `agent` in one scan, each on a batch [B] sampled by `draw(key)`.

    Every update trains the critics, every `actor_delay`-th also the actor (TD3, arXiv 1802.09477, algorithm 1; REDQ, arXiv
    2101.05982, algorithm 1, where the delay is the number of updates for each environment step). `before` is the number of
    earlier updates, possibly modulo the delay; it must be the same for all seeds.
    """

    def update(state: Any, step: tuple[Int[Array, ""], Key]) -> tuple[Any, Metrics]:
        i, key = step
        sample_key, agent_key = jax.random.split(key)
        batch = draw(sample_key)
        if actor_delay == 1:
            return agent.update(state, batch, agent_key)[:2]
        critic_key, actor_key = jax.random.split(agent_key)
        state, of_critic, _ = agent.update_critic(state, batch, critic_key)
        # The index is not batched over seeds, so only one branch runs.
        last = (before + i + 1) % actor_delay == 0
        state, of_actor = metrics.cond_update(last, lambda state: agent.update_actor(state, batch, actor_key), state)
        return state, of_critic | of_actor

    state, found = jax.lax.scan(update, state, (jnp.arange(number), jax.random.split(key, number)))
    return state, metrics.total(found)


def in_turn(update_critic: UpdateCritic, update_actor: UpdateActor) -> UpdateCritic:
    """An update of the critics, then of the actor, on the same batch."""

    def update(state: Any, batch: Any, key: Key, **weight: Any) -> tuple[Any, Metrics, Float[Array, "B"]]:
        critic_key, actor_key = jax.random.split(key)
        state, of_critic, error = update_critic(state, batch, critic_key, **weight)
        state, of_actor = update_actor(state, batch, actor_key)
        return state, of_critic | of_actor, error

    return update


def actor_critic(agent: Any) -> ActorCritic:
    """The interface of an agent that has its functions as methods; `update` is that of the critics, then of the actor."""
    functions = {name: getattr(agent, name) for name in ActorCritic._fields if name != "update"}
    return ActorCritic(**functions, update=in_turn(agent.update_critic, agent.update_actor))


def with_updates(
    agent: ActorCritic, *, critic: UpdateCritic | None = None, actor: UpdateActor | None = None
) -> ActorCritic:
    """`agent` with the update of its critics, of its actor, or of both replaced."""
    critic = agent.update_critic if critic is None else critic
    actor = agent.update_actor if actor is None else actor
    return agent._replace(update_critic=critic, update_actor=actor, update=in_turn(critic, actor))
