"""The policy prior and the Q-functions of TD-MPC2 (Hansen et al., arXiv 2310.16828, section 3.1), on latent codes z.

    prior      a = tanh(u),  u ~ N(mean(z), std(z)^2)
    target     y = r + gamma (1 - terminated) min over two random target Q of Q(z', a'),  a' ~ prior
    values     mean over all Q of the cross-entropy of Q(z, a) with the two-hot code of y
    actor      -mean over t of decay^t (Q(z_t, a) / S + eta H),  Q the mean of two random Q
    scale      S <- S + rate (max(1, P95 - P5) - S),  P the percentiles of Q(z_0, a) over the batch
    entropy    H = -A log N(u; mean, std^2)

H is that of the code of the paper, where the derivative of tanh cancels: it is the entropy before tanh, times the number A
of action entries.

Differs from that code: dropout is used in all hidden layers of a Q-function, not in the first alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
from annotated_types import Ge, Gt, Le, Lt
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from jaxmbrl.agents.actor_critic.critics import td_target
from jaxmbrl.core.types import Action, Average, Key, Memory, Metrics, Observation, Policy, PyTree
from jaxmbrl.distributions import ScalarHead, SymlogHead
from jaxmbrl.models.latent.coders import Activation, Norm, layers

sg = jax.lax.stop_gradient

LOG_STD = (-10.0, 2.0)
"""Bounds of the prior's log standard deviation."""
TARGET_SUBSET = 2
"""Number of randomly chosen Q-functions in targets and in the actor's loss."""


@dataclass(frozen=True)
class PriorConfig:
    """Settings of policy prior and Q-functions."""

    units: Annotated[int, Ge(1)] = 512
    """Units of each hidden layer."""
    layers: Annotated[int, Ge(1)] = 2
    """Hidden layers of the prior, and of each Q-function."""
    activation: Activation = "mish"
    """Activation of all hidden layers."""
    norm: Norm = "layer"
    """Norm of all hidden layers."""
    critics: Annotated[int, Ge(2)] = 5
    """Number of Q-functions."""
    bins: Annotated[int, Ge(0)] = 101
    """Bins of a Q-function's output, evenly spaced in its symlog from -10 to 10; 0 for a number with squared error."""
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.01
    """Dropout rate of the Q-functions' hidden units in losses."""
    value_scale: Annotated[float, Gt(0)] = 0.1
    """Weight of the Q-functions' loss."""
    entropy: Annotated[float, Ge(0)] = 1e-4
    """eta: weight of the entropy."""
    target_rate: Annotated[float, Gt(0), Le(1)] = 0.01
    """Share by which the target Q-functions move towards the Q-functions in each update, and S towards the spread of their
    values."""

    def problem(self) -> tuple[str, str] | None:
        """(field, message) of the first violated rule that involves several fields, or None."""
        if self.bins and (self.bins < 3 or self.bins % 2 == 0):
            return "bins", f"must be 0, or odd and at least 3, got {self.bins}"
        return None


class PolicyPrior(NamedTuple):
    """Policy prior and Q-functions as functions of their parameters."""

    config: PriorConfig
    init_actor: Callable[[Key], PyTree]
    init_critics: Callable[[Key], PyTree]
    """key -> parameters with the leading axis [critics]."""
    gaussian: Callable[[PyTree, Float[Array, "*n Z"]], tuple[Float[Array, "*n A"], Float[Array, "*n A"]]]
    """(actor's parameters, z) -> (mean, log standard deviation) before tanh."""
    outputs: Callable[[PyTree, Float[Array, "*n Z"], Action, Key | None], Float[Array, "E *n S"]]
    """(critics' parameters, z, action, key or None for no dropout) -> their outputs."""
    number: ScalarHead | SymlogHead
    """How an output represents a number."""

    def sample(self, actor: PyTree, z: Float[Array, "*n Z"], key: Key) -> tuple[Action, Float[Array, "*n"]]:
        """(action, H): a reparameterised sample of the prior, and its entropy term. The expectation of H is A times the
        entropy before tanh."""
        mean, log_std = self.gaussian(actor, z)
        noise = jax.random.normal(key, mean.shape, mean.dtype)
        log_density = jnp.sum(-0.5 * noise**2 - log_std - 0.5 * math.log(2 * math.pi), axis=-1)
        return jnp.tanh(mean + jnp.exp(log_std) * noise), -mean.shape[-1] * log_density

    def mode(self, actor: PyTree, z: Float[Array, "*n Z"]) -> Action:
        """The action without noise."""
        return jnp.tanh(self.gaussian(actor, z)[0])

    def policy(self, actor: PyTree, explore: bool) -> Policy:
        """The policy of codes z, sampled if it explores. Its extras are empty."""

        def act(memory: Memory, z: Observation, key: Key) -> tuple[Action, PyTree, Memory]:
            return self.sample(actor, z, key)[0] if explore else self.mode(actor, z), (), memory

        return Policy(lambda key: (), act)

    def values(
        self, critics: PyTree, z: Float[Array, "*n Z"], action: Action, key: Key | None = None
    ) -> Float[Array, "E *n"]:
        """The values by all Q-functions, with dropout if a key is given."""
        return self.number.mean(self.outputs(critics, z, action, key))

    def value(self, actor: PyTree, critics: PyTree, z: Float[Array, "*n Z"]) -> Float[Array, "*n"]:
        """The mean over all Q-functions at the prior's action without noise."""
        return jnp.mean(self.values(critics, z, self.mode(actor, z)), axis=0)


def make(config: PriorConfig, size: int, actions: int) -> PolicyPrior:
    """The functions for codes of length `size` and actions [A] in [-1, 1] of length `actions`."""
    number = SymlogHead(config.bins) if config.bins else ScalarHead()
    network = partial(layers, (config.units,) * config.layers, activation=config.activation, norm=config.norm)
    last = nn.initializers.zeros_init() if config.bins else None
    actor, critic = network(2 * actions), network(number.size, dropout=config.dropout, last_init=last)

    def init_critics(key: Key) -> PyTree:
        pair = jnp.zeros(size + actions)
        return jax.vmap(lambda key: critic.init(key, pair))(jax.random.split(key, config.critics))

    def gaussian(params: PyTree, z: Float[Array, "*n Z"]) -> tuple[Float[Array, "*n A"], Float[Array, "*n A"]]:
        mean, raw = jnp.split(actor.apply(params, z), 2, axis=-1)
        low, high = LOG_STD
        return mean, low + 0.5 * (high - low) * (jnp.tanh(raw) + 1)

    def outputs(params: PyTree, z: Float[Array, "*n Z"], action: Action, key: Key | None) -> Float[Array, "E *n S"]:
        x = jnp.concatenate([z, action], axis=-1)
        if key is None or config.dropout == 0:
            return jax.vmap(lambda member: critic.apply(member, x))(params)
        keys = jax.random.split(key, config.critics)
        return jax.vmap(lambda member, key: critic.apply(member, x, key))(params, keys)

    return PolicyPrior(config, lambda key: actor.init(key, jnp.zeros(size)), init_critics, gaussian, outputs, number)


def subset(values: Float[Array, "E *n"], key: Key) -> Float[Array, "2 *n"]:
    """Two of the values, the same ones for all rows, chosen at random without replacement."""
    return values[jax.random.choice(key, values.shape[0], (TARGET_SUBSET,), replace=False)]


def target(
    prior: PolicyPrior,
    actor: PyTree,
    target_critics: PyTree,
    discount: float,
    reward: Float[Array, "*n"],
    terminated: Bool[Array, "*n"],
    next_z: Float[Array, "*n Z"],
    key: Key,
) -> Float[Array, "*n"]:
    """y of each row. No gradient flows through it."""
    act_key, choice_key = jax.random.split(key)
    action, _ = prior.sample(actor, next_z, act_key)
    least = jnp.min(subset(prior.values(target_critics, next_z, action), choice_key), axis=0)
    return sg(td_target(reward, discount, terminated, least))


def value_loss(
    prior: PolicyPrior,
    critics: PyTree,
    z: Float[Array, "*n Z"],
    action: Action,
    target: Float[Array, "*n"],
    key: Key,
) -> Float[Array, "*n"]:
    """The mean over the Q-functions of their loss for the numbers `target`. It is differentiable in z."""
    return jnp.mean(jax.vmap(prior.number.loss, (0, None))(prior.outputs(critics, z, action, key), target), axis=0)


def actor_loss(
    prior: PolicyPrior,
    decay: float,
    actor: PyTree,
    critics: PyTree,
    scale: Float[Array, ""],
    z: Float[Array, "B T Z"],
    valid: Bool[Array, "B T"],
    key: Key,
) -> tuple[Float[Array, ""], tuple[Float[Array, ""], Metrics]]:
    """(loss, (S after this batch, metrics)). Only positions that are `valid` count; those at t = 0 must be."""
    act_key, drop_key, choice_key = jax.random.split(key, 3)
    action, entropy = prior.sample(actor, z, act_key)
    q = jnp.mean(subset(prior.values(critics, z, action, drop_key), choice_key), axis=0)
    scale = moved_scale(scale, q[:, 0], prior.config.target_rate)
    weight = valid * decay ** jnp.arange(q.shape[1])
    loss = -jnp.sum(weight * (q / scale + prior.config.entropy * entropy)) / jnp.sum(valid)
    found = {"actor": loss, "q": jnp.mean(q[:, 0]), "scale": scale, "entropy": jnp.mean(entropy)}
    return loss, (scale, {f"agent/{name}": Average.of(sg(x)) for name, x in found.items()})


def moved_scale(scale: Float[Array, ""], values: Float[Array, "B"], rate: float) -> Float[Array, ""]:
    """S after a batch with these values."""
    low, high = jnp.quantile(sg(values), jnp.array([0.05, 0.95]))
    return scale + rate * (jnp.maximum(1.0, high - low) - scale)
