"""TD3, twin delayed deep deterministic policy gradient (Fujimoto et al., arXiv 1802.09477), and DDPG (Lillicrap et al.,
arXiv 1509.02971), which is TD3 with one critic, no noise in its target and an actor that is not delayed.

Critic target   y = r + discount (1 - terminated) min Q'(s', a'),
                a' = clip(pi'(s') + clip(N(0, target_noise), -target_noise_clip, target_noise_clip), -1, 1)
Critic loss     sum over critics of mean (Q(s, a) - y)^2
Actor loss      -mean Q_1(s, pi(s)), pi = tanh of a network
Exploration     clip(pi(s) + N(0, exploration_noise), -1, 1)

The targets pi' and Q' move when the actor is updated, and only then: whoever updates it at every second update of the
critics has TD3's delay. Noise is in units of the action, whose range is [-1, 1].

Differs from the papers: DDPG's noise has no memory, its critic sees the action from the first layer on and has no weight
decay, as in the retuned DDPG of TD3's authors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
from annotated_types import Ge, Gt, Le
from jaxtyping import Array, Float

from jaxmbrl.agents.actor_critic.critics import regress
from jaxmbrl.agents.actor_critic.updates import in_turn
from jaxmbrl.core.config import Traced
from jaxmbrl.core.types import Action, Agent, Average, Hyper, Key, Memory, Metrics, Observation, Policy, PyTree, Transition
from jaxmbrl.nn import optimizer
from jaxmbrl.nn.networks import MLP, Precision
from jaxmbrl.nn.optimizer import Trainable


@dataclass(frozen=True)
class TD3Config:
    """Settings of the agent."""

    hidden: tuple[Annotated[int, Ge(1)], ...] = (256, 256)
    """Units of each hidden layer of actor and critics."""
    precision: Precision = "default"
    """Of the products between hidden layers: JAX's default, or bfloat16, faster where a device has matrix units for it."""
    critics: Annotated[int, Ge(1)] = 2
    """Number of critics N; targets take their minimum, the actor the first."""
    learning_rate: Annotated[float, Gt(0), Traced] = 3e-4
    """Adam's, for actor and critics."""
    discount: Annotated[float, Ge(0), Le(1), Traced] = 0.99
    """Discount a step."""
    polyak: Annotated[float, Gt(0), Le(1)] = 0.005
    """Share by which the targets of actor and critics move at each update of the actor."""
    exploration_noise: Annotated[float, Ge(0)] = 0.1
    """Standard deviation of what is added to an action that explores."""
    target_noise: Annotated[float, Ge(0)] = 0.2
    """Standard deviation of what is added to the target actor's action, before it is clipped."""
    target_noise_clip: Annotated[float, Ge(0)] = 0.5
    """The most that is added to the target actor's action."""


DDPG = TD3Config(critics=1, target_noise=0.0)
"""DDPG, with the sizes and rates of TD3's code."""


class TD3State(NamedTuple):
    """Everything that learns."""

    actor: Trainable
    """Its target copy is the target actor."""
    critic: Trainable
    """Leaves lead with [critics]; its target copy is the target critics."""
    discount: Float[Array, ""]


ActorLoss = Callable[[PyTree, TD3State, Transition, Key], tuple[Float[Array, ""], Float[Array, ""]]]


def make(config: TD3Config, observation_size: int, action_size: int) -> Agent:
    """The agent for flat observations [O] and actions [A] in [-1, 1].

    `hyper` may hold `learning_rate` and `discount`, traced.
    """
    actor, critic = (MLP(config.hidden, size, precision=config.precision) for size in (action_size, 1))

    def action_of(params: PyTree, observation: Observation) -> Float[Array, "*n A"]:
        return jnp.tanh(actor.apply(params, observation))

    def q(params: PyTree, observation: Observation, action: Action) -> Float[Array, "*n"]:
        """The value by one critic."""
        return critic.apply(params, jnp.concatenate([observation, action], axis=-1))[..., 0]

    every_q = jax.vmap(q, in_axes=(0, None, None))

    def init(key: Key, hyper: Hyper) -> TD3State:
        actor_key, critic_key = jax.random.split(key)
        observation, pair = jnp.zeros(observation_size), jnp.zeros(observation_size + action_size)
        critic_params = jax.vmap(lambda k: critic.init(k, pair))(jax.random.split(critic_key, config.critics))
        learning_rate = hyper.get("learning_rate", config.learning_rate)
        return TD3State(
            actor=optimizer.init(actor.init(actor_key, observation), learning_rate, with_target=True),
            critic=optimizer.init(critic_params, learning_rate, with_target=True),
            discount=jnp.asarray(hyper.get("discount", config.discount), float),
        )

    def policy(state: TD3State, explore: bool) -> Policy:
        def act(memory: Memory, observation: Observation, key: Key) -> tuple[Action, PyTree, Memory]:
            action = action_of(state.actor.params, observation)
            if explore:
                noise = config.exploration_noise * jax.random.normal(key, action.shape, action.dtype)
                action = jnp.clip(action + noise, -1.0, 1.0)
            return action, (), memory

        return Policy(init=lambda key: (), act=act)

    def policy_with_entropy(state: TD3State) -> Policy:
        def act(memory: Memory, observation: Observation, key: Key) -> tuple[Action, PyTree, Memory]:
            action = action_of(state.actor.params, observation)
            return action, jnp.zeros(action.shape[:-1], action.dtype), memory

        return Policy(init=lambda key: (), act=act)

    def target_value(state: TD3State, observation: Observation, key: Key) -> Float[Array, "N"]:
        return target_values(state, observation, key).min(axis=0)

    def target_values(state: TD3State, observation: Observation, key: Key) -> Float[Array, "L N"]:
        action = action_of(state.actor.target, observation)
        noise = config.target_noise * jax.random.normal(key, action.shape, action.dtype)
        noise = jnp.clip(noise, -config.target_noise_clip, config.target_noise_clip)
        return every_q(state.critic.target, observation, jnp.clip(action + noise, -1.0, 1.0))

    def critic_target(state: TD3State, batch: Transition, key: Key) -> Float[Array, "B"]:
        next_value = target_value(state, batch.next_observation, key)
        return batch.reward + state.discount * jnp.where(batch.terminated, 0.0, next_value)

    def update_critic(
        state: TD3State,
        batch: Transition,
        key: Key,
        *,
        target: Float[Array, "B"] | None = None,
        weight: Float[Array, "B"] | None = None,
    ) -> tuple[TD3State, Metrics]:
        y = critic_target(state, batch, key) if target is None else target
        trained, found = regress(state.critic, lambda params: every_q(params, batch.observation, batch.action), y, weight)
        return state._replace(critic=trained), found

    def action_value(state: TD3State, observation: Observation, action: Action, key: Key) -> Float[Array, "N"]:
        first = jax.tree.map(lambda leaf: leaf[0], state.critic.params)
        return q(first, observation, action)

    def actor_loss(params: PyTree, state: TD3State, batch: Transition, key: Key) -> tuple[Array, Array]:
        action = action_of(params, batch.observation)
        # A deterministic actor earns no bonus; nothing here looks at it.
        return -jnp.mean(action_value(state, batch.observation, action, key)), jnp.zeros(())

    def update_actor(
        state: TD3State, batch: Transition, key: Key, *, loss: ActorLoss | None = None
    ) -> tuple[TD3State, Metrics]:
        gradient_of = jax.value_and_grad(actor_loss if loss is None else loss, has_aux=True)
        (value, _), gradient = gradient_of(state.actor.params, state, batch, key)
        trained, norm = optimizer.step(state.actor, gradient)
        moved = [optimizer.move_target(part, config.polyak) for part in (trained, state.critic)]
        return state._replace(actor=moved[0], critic=moved[1]), {
            "agent/actor_loss": Average.of(value),
            "agent/actor_gradient_norm": Average.of(norm),
        }

    return Agent(
        init=init,
        policy=policy,
        actor=policy_with_entropy,
        target_value=target_value,
        target_values=target_values,
        action_value=action_value,
        critic_target=critic_target,
        update_critic=update_critic,
        update_actor=update_actor,
        update=in_turn(update_critic, update_actor),
    )
