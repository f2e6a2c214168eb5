"""A deterministic actor with clipped noise and its critics on latent codes z, of ALM (Ghugare et al., arXiv 2209.08466).

    policy   a = clip(tanh(f(z)) + clip(N(0, std^2), -c, c), -1, 1);  gradients ignore the outer bounds
    values   min_i Q_i(z, a)
    actor    -mean over t of discount^t R_t,  the lambda returns of trajectories that are imagined in a World of codes

The actor's gradient goes through the rewards and through the codes that actions lead to. The actions at which a value is
computed are constants.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from jaxmbrl import returns
from jaxmbrl.core.extremes import smallest
from jaxmbrl.core.types import Action, Average, Key, Memory, Metrics, Observation, Policy, PyTree, World
from jaxmbrl.models.imagination import imagine
from jaxmbrl.nn.networks import MLP

sg = jax.lax.stop_gradient


class NoisyActor(NamedTuple):
    """Actor and critics as functions of their parameters."""

    actor: MLP
    critic: MLP
    noise_clip: float

    def mean(self, params: PyTree, z: Float[Array, "*n Z"]) -> Action:
        """The action without noise."""
        return jnp.tanh(self.actor.apply(params, z))

    def sample(self, params: PyTree, z: Float[Array, "*n Z"], std: Float[Array, ""], key: Key) -> Action:
        """The action with clipped noise, differentiable also where the sum is beyond the bounds."""
        mean = self.mean(params, z)
        noise = std * jax.random.normal(key, mean.shape, mean.dtype)
        action = mean + jnp.clip(noise, -self.noise_clip, self.noise_clip)
        return action + sg(jnp.clip(action, -1.0, 1.0) - action)

    def values(self, critics: PyTree, z: Float[Array, "*n Z"], action: Action) -> Float[Array, "E *n"]:
        """The values by all critics."""
        x = jnp.concatenate([z, action], axis=-1)
        return jax.vmap(lambda member: self.critic.apply(member, x)[..., 0])(critics)

    def value(self, critics: PyTree, z: Float[Array, "*n Z"], action: Action) -> Float[Array, "*n"]:
        """Their minimum."""
        return smallest(self.values(critics, z, action))


def make(hidden: tuple[int, ...], actions: int, noise_clip: float) -> NoisyActor:
    """The functions for actions of length `actions`. The critics' first layer has layer norm and tanh."""
    actor, critic = MLP(hidden, actions, activation=nn.elu), MLP(hidden, 1, activation=nn.elu, first_norm=True)
    return NoisyActor(actor, critic, noise_clip)


def actor_loss(
    agent: NoisyActor,
    horizon: int,
    mix: float,
    actor: PyTree,
    critics: PyTree,
    dream: World,
    z: Float[Array, "B Z"],
    std: Float[Array, ""],
    discount: Float[Array, ""],
    key: Key,
) -> tuple[Float[Array, ""], Metrics]:
    """(the actor's loss on trajectories that are imagined in the World `dream` from codes z, metrics)."""
    dream_key, act_key = jax.random.split(key)

    def act(memory: Memory, z: Observation, key: Key) -> tuple[Action, Any, Memory]:
        return agent.sample(actor, sg(z), std, key), jnp.zeros(z.shape[:-1]), memory

    path = imagine(dream, Policy(lambda key: (), act), z, dream_key, horizon)
    last = agent.sample(actor, sg(path.next_observation[-1]), std, act_key)
    taken = jnp.concatenate([path.action[1:], last[None]])
    values = agent.value(critics, path.next_observation, sg(taken))
    by_row = jax.vmap(returns.lambda_returns, in_axes=(1, 1, 1, None, None), out_axes=1)
    found = by_row(path.reward, path.terminated, values, discount, mix)
    powers = discount ** jnp.arange(horizon)
    loss = -jnp.mean(powers[:, None] * found)
    return loss, {"agent/actor": Average.of(loss), "agent/imagined_reward": Average.of(jnp.mean(path.reward))}
