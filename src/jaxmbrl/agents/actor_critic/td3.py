"""TD3, twin delayed deep deterministic policy gradient (Fujimoto et al., arXiv 1802.09477), and DDPG (Lillicrap et al.,
arXiv 1509.02971), which is TD3 with one critic, no noise in its target and an actor that is not delayed.

Critic target   y = r + discount (1 - terminated) min Q'(s', a'),
                a' = clip(pi'(s') + clip(N(0, target_noise), -target_noise_clip, target_noise_clip), -1, 1)
Critic loss     sum over critics of mean (Q(s, a) - y)^2
Actor loss      -mean Q_1(s, pi(s)), pi = tanh of a network
Exploration     clip(pi(s) + N(0, exploration_noise), -1, 1)

The targets pi' and Q' move only when the actor is updated: TD3's delay is one actor update for two critic updates. Noise is
in units of the action, whose range is [-1, 1].

Differs from the papers: as in the retuned DDPG of TD3's authors, DDPG's noise is uncorrelated in time, its critic receives
the action in the first layer and has no weight decay.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
from annotated_types import Ge, Gt, Le
from jaxtyping import Array, Float

from jaxmbrl.agents.actor_critic.critics import next_discount, regress, td_target
from jaxmbrl.agents.actor_critic.updates import actor_critic
from jaxmbrl.agents.exploration import with_gaussian_noise
from jaxmbrl.core.config import Traced
from jaxmbrl.core.types import (
    Action,
    ActorCritic,
    Average,
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
from jaxmbrl.nn.optimizer import Trainable


@dataclass(frozen=True)
class TD3Config:
    """Settings of the agent."""

    hidden: tuple[Annotated[int, Ge(1)], ...] = (256, 256)
    """Units of each hidden layer of actor and critics."""
    precision: Precision = "default"
    """Precision of the products between hidden layers: JAX's default, or bfloat16 for devices with matrix units for it."""
    critics: Annotated[int, Ge(1)] = 2
    """Number of critics N. Targets use their minimum, the actor the first."""
    learning_rate: Annotated[float, Gt(0), Traced] = 3e-4
    """Adam learning rate of actor and critics."""
    discount: Annotated[float, Ge(0), Le(1), Traced] = 0.99
    """Discount factor per step."""
    polyak: Annotated[float, Gt(0), Le(1)] = 0.005
    """Polyak factor: the share by which the targets of actor and critics move at each actor update."""
    exploration_noise: Annotated[float, Ge(0)] = 0.1
    """Standard deviation of the noise that is added to actions for exploration."""
    target_noise: Annotated[float, Ge(0)] = 0.2
    """Standard deviation of the noise that is added to the target actor's action, before clipping."""
    target_noise_clip: Annotated[float, Ge(0)] = 0.5
    """Bound to which the noise of the target actor's action is clipped."""


DDPG = TD3Config(critics=1, target_noise=0.0)
"""DDPG with the layer sizes and learning rates of TD3's code."""


class TD3State(NamedTuple):
    """Parameters and optimiser states of the agent."""

    actor: Trainable
    """Its `target` is the target actor."""
    critic: Trainable
    """Leaves have the leading axis [critics]. Its `target` are the target critics."""
    discount: Float[Array, ""]


ActorLoss = Callable[[PyTree, TD3State, Transition, Key], tuple[Float[Array, ""], Float[Array, ""]]]


def smoothed(action: Float[Array, "*n A"], key: Key, deviation: Any, most: float) -> Float[Array, "*n A"]:
    """Target policy smoothing: clip(action + clip(N(0, deviation), -most, most), -1, 1)."""
    noise = deviation * jax.random.normal(key, action.shape, action.dtype)
    return jnp.clip(action + jnp.clip(noise, -most, most), -1.0, 1.0)


def make(config: TD3Config, observation_size: int, action_size: int, normalizer: Normalizer | None = None) -> ActorCritic:
    """The agent for flat observations [O] and actions [A] in [-1, 1]; its state is a `TD3State`. With a `normalizer` the
    networks receive normalised observations; the arguments of the agent's functions are always in the task's units.

    `hyper` may hold `learning_rate` and `discount`, traced.
    """
    actor, critic = (MLP(config.hidden, size, precision=config.precision) for size in (action_size, 1))
    return actor_critic(_TD3(config, actor, critic, observation_size, action_size, normalizer))


class _TD3(NamedTuple):
    """The functions of the agent; each takes observations in the task's units."""

    config: TD3Config
    actor: MLP
    critic: MLP
    observation_size: int
    action_size: int
    normalizer: Normalizer | None

    def init(self, key: Key, hyper: Hyper) -> TD3State:
        config = self.config
        actor_key, critic_key = jax.random.split(key)
        observation, pair = jnp.zeros(self.observation_size), jnp.zeros(self.observation_size + self.action_size)
        critic_params = jax.vmap(lambda k: self.critic.init(k, pair))(jax.random.split(critic_key, config.critics))
        learning_rate = hyper.get("learning_rate", config.learning_rate)
        return TD3State(
            actor=optimizer.init(self.actor.init(actor_key, observation), learning_rate, with_target=True),
            critic=optimizer.init(critic_params, learning_rate, with_target=True),
            discount=jnp.asarray(hyper.get("discount", config.discount), float),
        )

    def normalized(self, observation: Observation) -> Observation:
        """The observation in the networks' input, normalised if there is a normaliser."""
        return observation if self.normalizer is None else normalize(self.normalizer, observation)

    def action_of(self, params: PyTree, observation: Observation) -> Float[Array, "*n A"]:
        """pi(s) = tanh of the actor network."""
        return jnp.tanh(self.actor.apply(params, self.normalized(observation)))

    def q(self, params: PyTree, observation: Observation, action: Action) -> Float[Array, "*n"]:
        """The value by one critic."""
        return self.critic.apply(params, jnp.concatenate([self.normalized(observation), action], axis=-1))[..., 0]

    def every_q(self, params: PyTree, observation: Observation, action: Action) -> Float[Array, "L *n"]:
        """The value by each critic."""
        return jax.vmap(self.q, in_axes=(0, None, None))(params, observation, action)

    def policy(self, state: TD3State, explore: bool) -> Policy:
        def act(memory: Memory, observation: Observation, key: Key) -> tuple[Action, PyTree, Memory]:
            return self.action_of(state.actor.params, observation), (), memory

        policy = Policy(init=lambda key: (), act=act)
        return with_gaussian_noise(policy, self.config.exploration_noise) if explore else policy

    def policy_with_entropy(self, state: TD3State) -> Policy:
        def act(memory: Memory, observation: Observation, key: Key) -> tuple[Action, PyTree, Memory]:
            action = self.action_of(state.actor.params, observation)
            return action, jnp.zeros(action.shape[:-1], action.dtype), memory

        return Policy(init=lambda key: (), act=act)

    def target_value(self, state: TD3State, observation: Observation, key: Key) -> Float[Array, "N"]:
        return self.target_values(state, observation, key).min(axis=0)

    def target_values(self, state: TD3State, observation: Observation, key: Key) -> Float[Array, "L N"]:
        action = self.action_of(state.actor.target, observation)
        action = smoothed(action, key, self.config.target_noise, self.config.target_noise_clip)
        return self.every_q(state.critic.target, observation, action)

    def action_value(self, state: TD3State, observation: Observation, action: Action, key: Key) -> Float[Array, "N"]:
        first = jax.tree.map(lambda leaf: leaf[0], state.critic.params)
        return self.q(first, observation, action)

    def update_critic(
        self,
        state: TD3State,
        batch: Transition | NStep,
        key: Key,
        *,
        target: Float[Array, "B"] | None = None,
        weight: Float[Array, "B"] | None = None,
    ) -> tuple[TD3State, Metrics, Float[Array, "B"]]:
        if target is None:
            next_value = self.target_value(state, batch.next_observation, key)
            target = td_target(batch.reward, next_discount(batch, state.discount), batch.terminated, next_value)
        trained, found, error = regress(
            state.critic, lambda params: self.every_q(params, batch.observation, batch.action), target, weight
        )
        return state._replace(critic=trained), found, error

    def update_actor(
        self, state: TD3State, batch: Transition | NStep, key: Key, *, loss: ActorLoss | None = None
    ) -> tuple[TD3State, Metrics]:
        def own_loss(params: PyTree, *_: Any) -> tuple[Float[Array, ""], Float[Array, ""]]:
            action = self.action_of(params, batch.observation)
            # The entropy bonus of a deterministic actor is 0.
            return actor_loss(self.action_value(state, batch.observation, action, key)), jnp.zeros(())

        gradient_of = jax.value_and_grad(own_loss if loss is None else loss, has_aux=True)
        (value, bonus), gradient = gradient_of(state.actor.params, state, batch, key)
        return self.apply_actor_gradient(state, value, gradient, bonus)

    def apply_actor_gradient(
        self, state: TD3State, value: Float[Array, ""], gradient: PyTree, bonus: Float[Array, ""]
    ) -> tuple[TD3State, Metrics]:
        trained, norm = optimizer.step(state.actor, gradient)
        moved = [optimizer.move_target(part, self.config.polyak) for part in (trained, state.critic)]
        return state._replace(actor=moved[0], critic=moved[1]), {
            "agent/actor_loss": Average.of(value),
            "agent/actor_gradient_norm": Average.of(norm),
        }


def actor_loss(values: Float[Array, "B"]) -> Float[Array, ""]:
    """Minus the mean of `values`, the first critic's values at the actor's actions."""
    return -jnp.mean(values)
