"""Soft Actor-Critic for discrete actions (Christodoulou, arXiv 1910.07207): expectations over actions are sums.

Soft value      V(s) = sum_a pi(a|s) (min Q(s, a) - alpha log pi(a|s))
Critic target   y = r + discount (1 - terminated) V'(s'), with the target critics
Critic loss     sum over critics of mean (Q(s, a) - y)^2
Actor loss      -mean V(s), where the critics are constants
Temperature     minimise -log alpha (sum_a pi log pi + target entropy), with target entropy 0.89 log n

Actor and critics take the observation alone; the actor has n logits, each critic n values. Settings, state and updates are
those of `sac`, so that REDQ's subsets and means of critics, and DroQ's dropout, are settings here too.

Where an episode can end early, the bonus of all later actions is a reward for survival that grows with alpha, as fast as
the bonus of the present action. If a policy that survives cannot have the target entropy, alpha then grows without bound.
On CartPole-v1, with n = 2, the default target does this; one of 0.2 nats does not.

Differs from the paper: losses have no factor 1/2, the target entropy is that of vwxyzjn/cleanrl (sac_atari.py) instead of
0.98 log n, and the minimum over critics is taken before the sum over actions in the target as well.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxmbrl.agents.actor_critic import sac
from jaxmbrl.agents.actor_critic.sac import Actor, Pool, SACConfig, SACFunctions, Values
from jaxmbrl.core.config import UserError
from jaxmbrl.core.types import Action, ActorCritic, Key, Observation, PyTree
from jaxmbrl.models.normalizer import Normalizer
from jaxmbrl.nn.encoder import Encoder
from jaxmbrl.nn.networks import MLP

ENTROPY_SHARE = 0.89
"""Target entropy in units of the uniform distribution's, log n (vwxyzjn/cleanrl: cleanrl/sac_atari.py)."""


def soft_value(log_probability: Float[Array, "*n n"], values: Float[Array, "*m n"], temperature: Any) -> Float[Array, "*m"]:
    """sum_a pi_a (values_a - temperature log pi_a)."""
    return jnp.sum(jnp.exp(log_probability) * (values - temperature * log_probability), axis=-1)


def mean_log_probability(log_probability: Float[Array, "*n n"]) -> Float[Array, "*n"]:
    """sum_a pi_a log pi_a, minus the entropy in nats."""
    return -soft_value(log_probability, jnp.zeros_like(log_probability), 1.0)


def actor_loss(
    log_probability: Float[Array, "B n"], values: Float[Array, "N B n"], temperature: Any, pool: Pool = "min"
) -> Float[Array, ""]:
    """mean_b sum_a pi_ba (temperature log pi_ba - Q_ba), where Q is the minimum or the mean of the N critics' values."""
    return -jnp.mean(soft_value(log_probability, sac.pooled(values, pool), temperature))


def make(
    config: SACConfig,
    observation_size: int,
    n: int,
    normalizer: Normalizer | None = None,
    encoder: Encoder | None = None,
) -> ActorCritic:
    """The agent for flat observations [O] and n discrete actions; its state is a `SACState`. `normalizer`, `encoder` and
    `hyper` are as in `sac.make`. Raises UserError if no policy has the target entropy."""
    target_entropy = ENTROPY_SHARE * math.log(n) if config.target_entropy is None else config.target_entropy
    if not 0 <= target_entropy <= math.log(n):
        raise UserError(f"target_entropy must be from 0 to log {n} = {math.log(n):.3g}, got {target_entropy:g}")
    # The critics' inputs contain no action.
    return sac.assemble(
        replace(config, target_entropy=target_entropy), functions(config, n), observation_size, 0, normalizer, encoder
    )


def functions(config: SACConfig, n: int) -> SACFunctions:
    """The networks as pure functions."""
    network = partial(MLP, config.hidden, n, precision=config.precision)
    actor, critic = network(), network(layer_norm=config.layer_norm, dropout=config.dropout)

    def q(params: PyTree, observation: Observation, action: Action, key: Key | None = None) -> Float[Array, "N *n"]:
        if key is None:
            values = jax.vmap(lambda member: critic.apply(member, observation))(params)
        else:
            keys = jax.random.split(key, jax.tree.leaves(params)[0].shape[0])
            values = jax.vmap(lambda member, key: critic.apply(member, observation, key))(params, keys)
        return of_choice(values, action)

    return SACFunctions(categorical(actor, n), critic.init, q, target_q=q)


def categorical(network: MLP, n: int) -> Actor:
    """The actor whose n logits are computed by `network`."""

    def distribution(params: PyTree, observation: Observation) -> Float[Array, "*n n"]:
        return jax.nn.log_softmax(network.apply(params, observation))

    def greedy(params: PyTree, observation: Observation) -> Int[Array, "*n"]:
        return jnp.argmax(network.apply(params, observation), axis=-1).astype(jnp.int32)

    def sample(params: PyTree, observation: Observation, key: Key) -> tuple[Int[Array, "*n"], Float[Array, "*n"]]:
        log_probability = distribution(params, observation)
        action = jax.random.categorical(key, log_probability).astype(jnp.int32)
        return action, of_choice(log_probability, action)

    def of_all(values: Values, log_probability: Float[Array, "*n n"]) -> Float[Array, "*m n"]:
        """`values` of every choice. The networks do not depend on the choice, so they are evaluated once."""
        choices = jnp.broadcast_to(jnp.arange(n, dtype=jnp.int32), log_probability.shape)
        return jax.vmap(values, in_axes=-1, out_axes=-1)(choices)

    def soft_values(params: PyTree, observation: Observation, values: Values, temperature: Any, key: Key) -> Array:
        log_probability = distribution(params, observation)
        return soft_value(log_probability, of_all(values, log_probability), temperature)

    def loss(
        params: PyTree, observation: Observation, values: Values, temperature: Any, pool: Pool, key: Key
    ) -> tuple[Array, Array]:
        log_probability = distribution(params, observation)
        found = actor_loss(log_probability, of_all(values, log_probability), temperature, pool)
        return found, jnp.mean(mean_log_probability(log_probability))

    return Actor(network.init, distribution, greedy, sample, soft_values, loss)


def of_choice(values: Float[Array, "*n n"], action: Int[Array, "..."]) -> Float[Array, "*n"]:
    """The entry of each row's choice. It is a masked sum, which is faster than a gather and exact."""
    chosen = jnp.arange(values.shape[-1]) == action[..., None]
    return jnp.sum(jnp.where(chosen, values, 0.0), axis=-1)
