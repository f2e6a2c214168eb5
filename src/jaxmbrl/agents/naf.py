"""NAF, normalised advantage functions (Gu et al., arXiv 1603.00748): Q-learning for continuous actions, in which Q is
quadratic in the action, so that its maximum is known.

Values          Q(s, a) = V(s) - (a - mu(s))^T P(s) (a - mu(s)) / 2,    max_a Q(s, a) = Q(s, mu(s)) = V(s)
                V = k v, P = k L L^T, L lower triangular with diagonal exp(clip(l, -5, 5)), mu = tanh of an output
Target          y = r + discount (1 - terminated) V'(s')
Loss            mean (Q(s, a) - y)^2
Policy          mu(s)
Exploration     clip(mu(s) + N(0, exploration_noise), -1, 1)

One network has the outputs v, L and that of mu; k is the setting `value_scale`. No gradient flows through the target. The
target network moves by Polyak averaging at each update.

Differs from the paper: the bound of the diagonal's logarithm, without which P overflows, and the factor 1 - terminated,
which the paper omits. Noise is independent in time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import jax.numpy as jnp
from annotated_types import Ge, Gt, Le
from jaxtyping import Array, Float

from jaxmbrl.agents.actor_critic.critics import regress
from jaxmbrl.agents.exploration import with_gaussian_noise
from jaxmbrl.agents.greedy import QState, target_of, without_actor
from jaxmbrl.core.config import Traced
from jaxmbrl.core.types import (
    Action,
    ActorCritic,
    Hyper,
    Key,
    Memory,
    Metrics,
    Observation,
    Policy,
    PyTree,
    Transition,
)
from jaxmbrl.data.n_step import NStep
from jaxmbrl.models.normalizer import Normalizer, normalize
from jaxmbrl.nn import optimizer
from jaxmbrl.nn.networks import MLP, Precision
from jaxmbrl.planning.problem import unit_box

LOG_BOUND = 5.0
"""Bound of the logarithm of L's diagonal."""


@dataclass(frozen=True)
class NAFConfig:
    """Settings of the agent."""

    hidden: tuple[Annotated[int, Ge(1)], ...] = (256, 256)
    """Units of each hidden layer."""
    precision: Precision = "default"
    """Precision of the products between hidden layers: JAX's default, or bfloat16 for devices with matrix units for it."""
    learning_rate: Annotated[float, Gt(0), Traced] = 3e-4
    """Adam learning rate."""
    discount: Annotated[float, Ge(0), Le(1), Traced] = 0.99
    """Discount factor per step."""
    polyak: Annotated[float, Gt(0), Le(1)] = 0.005
    """Polyak factor: the share by which the target network moves at each update."""
    value_scale: Annotated[float, Gt(0)] = 1.0
    """k: the unit of the network's values. With Adam, which does not depend on the scale of the loss, it has the effect of
    rewards divided by k; values are in the task's units for every k. If values are far larger than k, mu saturates and
    L vanishes while V is learned."""
    exploration_noise: Annotated[float, Ge(0)] = 0.2
    """Standard deviation of the noise that is added to actions for exploration."""


class Quadratic(NamedTuple):
    """Q(s, .) of each row."""

    value: Float[Array, "*n"]
    """V, the largest value of an action."""
    mean: Float[Array, "*n A"]
    """mu, the action with this value."""
    lower: Float[Array, "*n A A"]
    """The Cholesky factor of P."""


def lower_triangular(entries: Float[Array, "*n T"], size: int) -> Float[Array, "*n A A"]:
    """L of A = `size` rows from its T = A (A + 1) / 2 entries, row by row. Those of the diagonal are logarithms, clipped to
    [-5, 5]."""
    rows, columns = jnp.tril_indices(size)
    bounded = jnp.exp(jnp.clip(entries, -LOG_BOUND, LOG_BOUND))
    filled = jnp.where(rows == columns, bounded, entries)
    return jnp.zeros((*entries.shape[:-1], size, size), entries.dtype).at[..., rows, columns].set(filled)


def advantage(lower: Float[Array, "*n A A"], difference: Float[Array, "*n A"]) -> Float[Array, "*n"]:
    """-(a - mu)^T L L^T (a - mu) / 2 for `difference` a - mu (arXiv 1603.00748, equation 4)."""
    return -0.5 * jnp.sum(jnp.einsum("...ij,...i->...j", lower, difference) ** 2, axis=-1)


def action_value(quadratic: Quadratic, action: Float[Array, "*n A"]) -> Float[Array, "*n"]:
    """Q(s, a)."""
    return quadratic.value + advantage(quadratic.lower, action - quadratic.mean)


def make(config: NAFConfig, observation_size: int, action_size: int, normalizer: Normalizer | None = None) -> ActorCritic:
    """The agent for flat observations [O] and actions [A] in [-1, 1]; its state is a `QState`. With a `normalizer` the
    network receives normalised observations; the arguments of the agent's functions are always in the task's units.

    `hyper` may hold `learning_rate` and `discount`, traced.
    """
    outputs = 1 + action_size + action_size * (action_size + 1) // 2
    network = MLP(config.hidden, outputs, precision=config.precision)
    agent = _NAF(config, network, observation_size, action_size, normalizer)
    return without_actor(agent, config.polyak, unit_box(action_size))


class _NAF(NamedTuple):
    """The functions of the agent; each takes observations in the task's units."""

    config: NAFConfig
    network: MLP
    observation_size: int
    action_size: int
    normalizer: Normalizer | None

    def init(self, key: Key, hyper: Hyper) -> QState:
        params = self.network.init(key, jnp.zeros(self.observation_size))
        learning_rate = hyper.get("learning_rate", self.config.learning_rate)
        return QState(
            critic=optimizer.init(params, learning_rate, with_target=True),
            discount=jnp.asarray(hyper.get("discount", self.config.discount), float),
        )

    def quadratic(self, params: PyTree, observation: Observation) -> Quadratic:
        """Q(s, .) of each row."""
        if self.normalizer is not None:
            observation = normalize(self.normalizer, observation)
        output, size = self.network.apply(params, observation), self.action_size
        scale, lower = self.config.value_scale, lower_triangular(output[..., 1 + size :], size)
        return Quadratic(scale * output[..., 0], jnp.tanh(output[..., 1 : 1 + size]), math.sqrt(scale) * lower)

    def policy(self, state: QState, explore: bool) -> Policy:
        def act(memory: Memory, observation: Observation, key: Key) -> tuple[Action, PyTree, Memory]:
            return self.quadratic(state.critic.params, observation).mean, (), memory

        policy = Policy(init=lambda key: (), act=act)
        return with_gaussian_noise(policy, self.config.exploration_noise) if explore else policy

    def target_value(self, state: QState, observation: Observation, key: Key) -> Float[Array, "N"]:
        return self.quadratic(state.critic.target, observation).value

    def target_values(self, state: QState, observation: Observation, key: Key) -> Float[Array, "1 N"]:
        return self.target_value(state, observation, key)[None]

    def action_value(self, state: QState, observation: Observation, action: Action, key: Key) -> Float[Array, "N"]:
        return action_value(self.quadratic(state.critic.params, observation), action)

    def update_critic(
        self,
        state: QState,
        batch: Transition | NStep,
        key: Key,
        *,
        target: Float[Array, "B"] | None = None,
        weight: Float[Array, "B"] | None = None,
    ) -> tuple[QState, Metrics, Float[Array, "B"]]:
        if target is None:
            target = target_of(self, state, batch, key)

        def values(params: PyTree) -> Float[Array, "1 B"]:
            return action_value(self.quadratic(params, batch.observation), batch.action)[None]

        trained, found, error = regress(state.critic, values, target, weight)
        return state._replace(critic=trained), found, error
