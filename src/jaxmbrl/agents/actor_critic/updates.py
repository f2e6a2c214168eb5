"""Updates of an actor-critic: critics then actor, replacement of either update, and many updates in one scan, also those
whose errors determine the next batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxmbrl.core import metrics
from jaxmbrl.core.types import ActorCritic, Key, Learner, Metrics, PyTree, Transition

UpdateCritic = Callable[..., tuple[Any, Metrics, Float[Array, "B"]]]
"""(state, batch, key) -> (state, metrics, absolute error of each row); `weight` [B] is optional."""
UpdateActor = Callable[[Any, Any, Key], tuple[Any, Metrics]]
"""(state, batch, key) -> (state, metrics)."""


class Drawn(NamedTuple):
    """A batch for one update."""

    rows: Any
    """[B, ...]."""
    given: dict[str, Any]
    """Further arguments of the critics' update, such as `weight` [B]."""
    origin: Any
    """What `settle` needs to know of the batch, such as the slots of its rows."""
    metrics: Metrics


def updates(
    agent: ActorCritic | Learner,
    state: Any,
    draw: Callable[[Key], Transition],
    key: Key,
    number: Int[Array, ""] | int,
    actor_delay: int = 1,
    before: Int[Array, ""] | int = 0,
) -> tuple[Any, Metrics]:
    """`number` updates of `agent` in one loop, each on a batch [B] sampled by `draw(key)`. The number may be traced, but
    must not be batched over seeds.

    Every update trains the critics, every `actor_delay`-th also the actor (TD3, arXiv 1802.09477, algorithm 1; REDQ, arXiv
    2101.05982, algorithm 1, where the delay is the number of updates for each environment step). `before` is the number of
    earlier updates, possibly modulo the delay; it must be the same for all seeds.
    """
    (state, _), found = updates_with_errors(
        agent,
        state,
        (),
        lambda _, key: Drawn(draw(key), {}, (), {}),
        lambda priorities, *_: priorities,
        key,
        number,
        actor_delay,
        before,
    )
    return state, found


@jax.named_scope("update")
def updates_with_errors(
    agent: ActorCritic | Learner,
    state: Any,
    priorities: PyTree,
    draw: Callable[[PyTree, Key], Drawn],
    settle: Callable[[PyTree, Any, Float[Array, "B"]], PyTree],
    key: Key,
    number: Int[Array, ""] | int,
    actor_delay: int = 1,
    before: Int[Array, ""] | int = 0,
) -> tuple[tuple[Any, PyTree], Metrics]:
    """`updates` on batches `draw(priorities, key)`. After each update `settle(priorities, origin, error)`, with the origin
    of the batch and the absolute error of each of its rows, returns the next priorities. Returns ((state, priorities),
    metrics)."""

    def update(loop: tuple[Any, PyTree], step: tuple[Int[Array, ""], Key]) -> tuple[tuple[Any, PyTree], Metrics]:
        (state, priorities), (i, key) = loop, step
        sample_key, agent_key = jax.random.split(key)
        batch = draw(priorities, sample_key)
        if actor_delay == 1:
            state, found, error = agent.update(state, batch.rows, agent_key, **batch.given)
            return (state, settle(priorities, batch.origin, error)), found | batch.metrics
        assert isinstance(agent, ActorCritic), "a learner without critics has no actor_delay"
        critic_key, actor_key = jax.random.split(agent_key)
        state, of_critic, error = agent.update_critic(state, batch.rows, critic_key, **batch.given)
        # The index is not batched over seeds, so only one branch runs.
        last = (before + i + 1) % actor_delay == 0
        state, of_actor = metrics.cond_update(last, lambda state: agent.update_actor(state, batch.rows, actor_key), state)
        return (state, settle(priorities, batch.origin, error)), of_critic | of_actor | batch.metrics

    if isinstance(number, int):
        loop, found = jax.lax.scan(update, (state, priorities), (jnp.arange(number), jax.random.split(key, number)))
        return loop, metrics.total(found)

    def counted(loop: tuple[Any, Int[Array, ""]], key: Key) -> tuple[tuple[Any, Int[Array, ""]], Metrics]:
        state, i = loop
        state, found = update(state, (i, key))
        return (state, i + 1), found

    # The keys of `repeat` are those of the split.
    (loop, _), found = metrics.repeat(number, counted, ((state, priorities), jnp.zeros((), jnp.int32)), key)
    return loop, found


def in_turn(update_critic: UpdateCritic, update_actor: UpdateActor) -> UpdateCritic:
    """An update of the critics, then of the actor, on the same batch."""

    def update(state: Any, batch: Any, key: Key, **given: Any) -> tuple[Any, Metrics, Float[Array, "B"]]:
        critic_key, actor_key = jax.random.split(key)
        state, of_critic, error = update_critic(state, batch, critic_key, **given)
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
