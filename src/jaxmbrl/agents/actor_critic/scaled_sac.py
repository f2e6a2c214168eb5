"""Soft Actor-Critic as in DHMBPO (Kubo et al., Double Horizon Model-Based Policy Optimization): the critics are scaled to
the range of possible returns, so that one setting works for tasks of any reward scale.

Critic          Q(s, a) = w network(s, a) + c with w = (high - low) / 2, c = (high + low) / 2; the last layer starts at 0
Bounds          low and high follow the 1 % and 99 % quantiles of reward plus entropy bonus, divided by (1 - discount); the
                first call sets them, each later call moves them by the share `bounds_rate`
Target's value  clip(min over a random subset Q', low, high) - alpha log pi
Actor's value   mean of all Q - alpha log pi

Hidden layers have swish activations, and those of the critics are normalised, without learned scale and shift. The actor's
standard deviation is the softplus of its output. Dropout is used in losses but not in targets.

Differs from the published code: the gradient of the temperature is SAC's, with respect to its logarithm, and biases are
initialised to 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Annotated

import jax
import jax.numpy as jnp
from annotated_types import Ge, Gt, Le, Lt
from flax import linen as nn
from jaxtyping import Array, Float

from jaxmbrl.agents.actor_critic import sac
from jaxmbrl.agents.actor_critic.sac import SACConfig, SACFunctions, SACState
from jaxmbrl.core.config import Traced
from jaxmbrl.core.types import Action, ActorCritic, Key, Observation, PyTree
from jaxmbrl.models.normalizer import Normalizer
from jaxmbrl.nn.networks import MLP, Precision, orthogonal

CRITIC_NORM = 1e-5
LEAST_STD = 1e-5
QUANTILES = (0.01, 0.99)


@dataclass(frozen=True)
class ScaledSACConfig:
    """Settings of the agent."""

    hidden: tuple[Annotated[int, Ge(1)], ...] = (256, 256, 256)
    """Units of each hidden layer of actor and critics."""
    precision: Precision = "default"
    """Precision of the products between hidden layers: JAX's default, or bfloat16 for devices with matrix units for it."""
    critics: Annotated[int, Ge(1)] = 5
    """Number of critics N."""
    critic_subset: Annotated[int, Ge(1)] = 2
    """Number of randomly chosen critics whose minimum a target uses."""
    dropout: Annotated[float, Ge(0), Lt(1)] = 1e-3
    """Dropout rate of the critics' hidden units in losses."""
    learning_rate: Annotated[float, Gt(0), Traced] = 3e-4
    """Adam learning rate of actor, critics and temperature."""
    discount: Annotated[float, Ge(0), Lt(1), Traced] = 0.995
    """Discount factor per step."""
    polyak: Annotated[float, Gt(0), Le(1)] = 0.005
    """Polyak factor: the share by which the target critics move at each update."""
    initial_temperature: Annotated[float, Gt(0), Traced] = 0.1
    """Temperature alpha at the start."""
    target_entropy: float | None = None
    """Target entropy in nats; None for minus the action's size."""
    bounds_rate: Annotated[float, Ge(0), Le(1)] = 3e-4
    """Share by which the bounds of the return move at each update of the critics."""

    def problem(self) -> tuple[str, str] | None:
        """(field, message) of the first violated rule that involves several fields, or None."""
        return self.as_sac.problem()

    @property
    def as_sac(self) -> SACConfig:
        """The corresponding settings of SAC."""
        names = (
            "precision",
            "critics",
            "critic_subset",
            "dropout",
            "learning_rate",
            "discount",
            "polyak",
            "initial_temperature",
        )
        shared = {name: getattr(self, name) for name in names}
        return SACConfig(hidden=self.hidden, actor_value="mean", target_entropy=self.target_entropy, **shared)


def make(
    config: ScaledSACConfig, observation_size: int, action_size: int, normalizer: Normalizer | None = None
) -> ActorCritic:
    """The agent for flat observations [O] and actions [A] in [-1, 1]; its state is a `SACState`. `update_bounds` moves the
    bounds. `normalizer` and `hyper` are as in `sac.make`."""
    return sac.assemble(config.as_sac, functions(config, action_size), observation_size, action_size, normalizer)


def functions(config: ScaledSACConfig, action_size: int) -> SACFunctions:
    """The networks as pure functions. The parameters of a critic are its `network` and its `bounds` [2]."""
    norms = (CRITIC_NORM,) * len(config.hidden)
    network = partial(MLP, config.hidden, activation=nn.swish, precision=config.precision)
    actor = network(2 * action_size, kernel_init=orthogonal())
    critic = network(
        1, kernel_init=nn.initializers.he_normal(), dropout=config.dropout, norms=norms, last_init=nn.initializers.zeros
    )
    network_q = sac.each_critic(critic)

    def init_critic(key: Key, pair: Array) -> PyTree:
        return {"network": critic.init(key, pair), "bounds": jnp.zeros(2)}

    def gaussian(params: PyTree, observation: Observation) -> tuple[Array, Array]:
        mean, raw = jnp.split(actor.apply(params, observation), 2, axis=-1)
        return mean, jnp.log(jax.nn.softplus(raw) + LEAST_STD)

    def q(params: PyTree, observation: Observation, action: Action, key: Key | None = None) -> Float[Array, "N *n"]:
        values = network_q(params["network"], observation, action, key)
        low, high = _ends(params, values.ndim)
        return (high - low) / 2 * values + (high + low) / 2

    def target_q(params: PyTree, observation: Observation, action: Action, key: Key) -> Float[Array, "N *n"]:
        values = q(params, observation, action)
        return jnp.clip(values, *_ends(params, values.ndim))

    return SACFunctions(sac.squashed(actor.init, gaussian), init_critic, q, target_q)


def _ends(params: PyTree, dimensions: int) -> tuple[Array, Array]:
    # Without a gradient, Adam does not change the bounds; only `update_bounds` does.
    low, high = jax.lax.stop_gradient(params["bounds"]).T
    shape = (-1, *[1] * (dimensions - 1))
    return low.reshape(shape), high.reshape(shape)


def update_bounds(config: ScaledSACConfig, state: SACState, earned: Float[Array, "*n"]) -> SACState:
    """`state` with the bounds moved towards the quantiles of `earned`, reward plus entropy bonus of steps. NaN entries are
    ignored."""
    quantiles = jnp.nanquantile(earned, jnp.array(QUANTILES)) / (1 - state.discount)
    critic = state.critic
    bounds = critic.params["bounds"]
    first = bounds[:, :1] == bounds[:, 1:]
    moved = jnp.where(first, quantiles, bounds + config.bounds_rate * (quantiles - bounds))
    moved = jnp.where(critic.active, moved, bounds)
    params, target = ({**part, "bounds": moved} for part in (critic.params, critic.target))
    return state._replace(critic=critic._replace(params=params, target=target))
