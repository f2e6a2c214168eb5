"""Soft Actor-Critic with memory, for partial observation (Ni et al., arXiv 2110.05038): actor and critics depend on the
history of the episode, summarised by a gated recurrent unit (`nn.recurrent`), beside the observation.

Summary     g_t = GRU(g_{t-1}, (o_t, a_{t-1})), with g and a zero before the first step of an episode
Features    f_t = (o_t, g_t), in place of the state in all networks: pi(a | f_t), Q(f_t, a)
Successor   f'_t = (o'_t, GRU(g_t, (o'_t, a_t))), where o'_t is the true successor, also at the end of an episode

All losses are those of `sac`, as means over the steps of windows. The actor and each critic have a unit of their own, which
their own loss trains through time: a shared one would receive gradients of different size. The first `burn_in` steps of a
window compute g only, without loss and without gradient (Kapturowski et al., R2D2, ICLR 2019), because g is unknown at the
first step of a window that begins within an episode, and is zero there.

Differs from the paper: rewards are not part of the history, observations and actions enter the unit without an embedding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from annotated_types import Ge
from jaxtyping import Array, Bool, Float, Shaped

from jaxmbrl.agents.actor_critic import sac
from jaxmbrl.agents.actor_critic.sac import Actor, SACConfig, SACFunctions, SACState
from jaxmbrl.core.types import Action, ActorCritic, Key, Observation, Policy, PyTree, Transition
from jaxmbrl.nn import recurrent
from jaxmbrl.nn.networks import MLP


@dataclass(frozen=True)
class RecurrentSACConfig(SACConfig):
    """Settings of the agent."""

    memory: Literal["gru", "none"] = "gru"
    """What summarises the history: a gated recurrent unit, or nothing, which leaves SAC on the same windows."""
    units: Annotated[int, Ge(1)] = 128
    """Hidden numbers of the recurrent unit."""
    burn_in: Annotated[int, Ge(0)] = 0
    """Steps at the start of a window that compute the summary only."""


class Histories(NamedTuple):
    """The steps of B windows with what came before each."""

    observation: Float[Array, "B L O"]
    previous_action: Float[Array, "B L A"]
    """Zero at the first step of an episode and of a window."""
    is_first: Bool[Array, "B L"]
    """Whether the summary begins anew: at the first step of an episode and of a window."""


class Successors(NamedTuple):
    """The true successors of the steps of B windows."""

    histories: Histories
    action: Float[Array, "B L A"]
    observation: Float[Array, "B L O"]


class Memory(NamedTuple):
    """Memory of the policy within an episode."""

    hidden: Float[Array, "H"]
    """g; of length 0 without a recurrent unit."""
    previous_action: Float[Array, "A"]


def batch_of(config: RecurrentSACConfig, rows: Transition, is_first: Bool[Array, "B L"]) -> Transition:
    """A batch for the agent's updates from windows [B, L, ...] of consecutive rows (`data.sequences.sample`).

    It has N = B (L - burn_in) rows, but its observations are `Histories`, its next observations `Successors`, of whole
    windows.
    """
    before = jnp.concatenate([jnp.zeros_like(rows.action[:, :1]), rows.action[:, :-1]], axis=1)
    histories = Histories(rows.observation, jnp.where(is_first[..., None], 0.0, before), is_first)
    used = jax.tree.map(partial(_used, config), rows._replace(observation=(), next_observation=(), extras=()))
    return used._replace(observation=histories, next_observation=Successors(histories, rows.action, rows.next_observation))


def make(config: RecurrentSACConfig, observation_size: int, action_size: int) -> ActorCritic:
    """The agent for flat observations [O] and actions [A] in [-1, 1]; its state is a `SACState`. Its updates take batches
    of `batch_of`, and its functions of observations take `Histories` or `Successors`. Its policies take one observation
    and remember the rest. `hyper` is as in `sac.make`."""
    agent = sac.assemble(config, functions(config, observation_size, action_size), observation_size, action_size)
    size = config.units if config.memory == "gru" else 0

    def policy(state: SACState, explore: bool) -> Policy:
        head, params = sac.functions(config, action_size).actor, state.actor.params

        def summary(memory: Memory, observation: Observation) -> Float[Array, "H"]:
            if config.memory == "none":
                return memory.hidden
            entered = jnp.concatenate([observation, memory.previous_action], axis=-1)
            return recurrent.step(params["encoder"], memory.hidden, entered)

        def act(memory: Memory, observation: Observation, key: Key) -> tuple[Action, PyTree, Memory]:
            hidden = summary(memory, observation)
            observation = jnp.concatenate([observation, hidden], axis=-1)
            if explore:
                action, _ = head.sample(params["head"], observation, key)
            else:
                action = head.greedy(params["head"], observation)
            return action, (), Memory(hidden, action)

        def remember(memory: Memory, observation: Observation, action: Action, key: Key) -> Memory:
            return Memory(summary(memory, observation), action)

        return Policy(lambda key: Memory(jnp.zeros(size), jnp.zeros(action_size)), act, remember=remember)

    return agent._replace(policy=policy)


def functions(config: RecurrentSACConfig, observation_size: int, action_size: int) -> SACFunctions:
    """The networks as functions of `Histories` or `Successors`; `sac` has them as functions of observations."""
    head = sac.functions(config, action_size).actor
    critic = MLP(config.hidden, 1, precision=config.precision, layer_norm=config.layer_norm, dropout=config.dropout)

    def with_encoder(init: Callable[[Key, Array], PyTree]) -> Callable[[Key, Array], PyTree]:
        """The parameters of a network [O] or [O+A] that also receives the summary."""

        def both(key: Key, example: Float[Array, "..."]) -> PyTree:
            if config.memory == "none":
                return {"encoder": (), "head": init(key, example)}
            encoder_key, head_key = jax.random.split(key)
            encoder = recurrent.init(encoder_key, observation_size + action_size, config.units)
            return {"encoder": encoder, "head": init(head_key, jnp.zeros(example.shape[0] + config.units))}

        return both

    def of_history(function: Callable[..., Any]) -> Callable[..., Any]:
        """`function(parameters, features, ...)` as a function of histories."""
        return lambda params, given, *rest: function(params["head"], features(config, params["encoder"], given), *rest)

    def q(params: PyTree, given: Any, action: Action, key: Key | None = None) -> Float[Array, "N *n"]:
        def value(member: PyTree, key: Key | None = None) -> Float[Array, "*n"]:
            x = jnp.concatenate([features(config, member["encoder"], given), action], axis=-1)
            return critic.apply(member["head"], x, key)[..., 0]

        if key is None:
            return jax.vmap(value)(params)
        return jax.vmap(value)(params, jax.random.split(key, jax.tree.leaves(params)[0].shape[0]))

    actor = Actor(with_encoder(head.init), *(of_history(function) for function in head[1:]))
    return SACFunctions(actor, with_encoder(critic.init), q, target_q=q)


def features(config: RecurrentSACConfig, encoder: Any, given: Histories | Successors) -> Float[Array, "N F"]:
    """f of each step after the burn-in, or f' of `Successors`, in one row each."""
    histories = given.histories if isinstance(given, Successors) else given
    found = _used(config, given.observation)
    if config.memory == "none":
        return found
    burn_in = config.burn_in
    entered = jnp.concatenate([histories.observation, histories.previous_action], axis=-1)
    hidden = jnp.zeros((entered.shape[0], config.units), entered.dtype)
    if burn_in:
        burned = recurrent.unroll(encoder, hidden, entered[:, :burn_in], histories.is_first[:, :burn_in])
        hidden = jax.lax.stop_gradient(burned[:, -1])
    states = recurrent.unroll(encoder, hidden, entered[:, burn_in:], histories.is_first[:, burn_in:])
    summary = states.reshape(-1, config.units)
    if isinstance(given, Successors):
        summary = recurrent.step(encoder, summary, jnp.concatenate([found, _used(config, given.action)], axis=-1))
    return jnp.concatenate([found, summary], axis=-1)


def _used(config: RecurrentSACConfig, x: Shaped[Array, "B L ..."]) -> Shaped[Array, "N ..."]:
    """The steps after the burn-in, in one row each."""
    kept = x[:, config.burn_in :]
    return kept.reshape(-1, *kept.shape[2:])
