"""Weights of rows by the error of their targets (DisCor: Kumar et al., arXiv 2003.07305), for any agent with critics.

The target of a row is wrong where the value of its successor is. A network D learns how wrong, by the recursion of
equation 5 of the paper, and rows with wrong targets get a small weight in the critics' loss:

    D(s, a)  <-  |Q(s, a) - y| + discount (1 - terminated) D'(s', a'),    a' ~ pi
    weight   =   B softmax over the batch of  -discount (1 - terminated) D'(s', a') / tau
    tau      <-  moving average of D

D' is a target network. The weights have the mean 1.

Differs from the paper: one network for all critics, whose |Q - y| is the mean over these; one moving average.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxmbrl.agents.actor_critic.critics import next_discount, regress
from jaxmbrl.agents.actor_critic.updates import in_turn
from jaxmbrl.core.keys import beside
from jaxmbrl.core.spaces import Discrete, Space
from jaxmbrl.core.types import Action, ActorCritic, Average, Hyper, Key, Metrics, Observation, PyTree
from jaxmbrl.models.normalizer import Normalizer, normalize
from jaxmbrl.nn import optimizer
from jaxmbrl.nn.networks import MLP
from jaxmbrl.nn.optimizer import Trainable

FIRST_TEMPERATURE = 10.0
"""tau at the start, in units of return."""


class State(NamedTuple):
    """The state of an agent, and what is known of the errors of its targets."""

    agent: PyTree
    error: Trainable
    """The network D."""
    temperature: Float[Array, ""]
    """tau."""

    @property
    def actor(self) -> Trainable:
        """The agent's actor."""
        return self.agent.actor

    @property
    def critic(self) -> Trainable:
        """The agent's critics."""
        return self.agent.critic

    @property
    def discount(self) -> Float[Array, ""]:
        """The agent's discount."""
        return self.agent.discount


def weights(later: Float[Array, "B"], temperature: Float[Array, ""] | float) -> Float[Array, "B"]:
    """B softmax(-later / temperature): the weights of rows whose targets have the errors `later`."""
    return later.shape[0] * jax.nn.softmax(-later / temperature)


def with_target_error(
    agent: ActorCritic,
    observation_size: int,
    action: Space | int,
    hidden: tuple[int, ...] = (256, 256),
    learning_rate: float = 3e-4,
    polyak: float = 0.005,
    normalizer: Normalizer | None = None,
) -> ActorCritic:
    """`agent` with rows weighted by the error of their targets; its state is a `State`. A weight that is given to
    `update_critic` is multiplied.

    `action` is the space of an action, or the number of numbers of a vector. `hyper` may hold `learning_rate`, which is
    also the agent's. With a `normalizer`, the agent's, the network receives normalised observations.
    """
    network = MLP(hidden, 1)
    choices = action.n if isinstance(action, Discrete) else None
    action_size = choices or (action if isinstance(action, int) else action.shape[0])

    def error_of(params: PyTree, observation: Observation, action: Action) -> Float[Array, "*n"]:
        observation = observation if normalizer is None else normalize(normalizer, observation)
        taken = action if choices is None else jax.nn.one_hot(action, choices, dtype=observation.dtype)
        return network.apply(params, jnp.concatenate([observation, taken], axis=-1))[..., 0]

    def init(key: Key, hyper: Hyper) -> State:
        params = network.init(beside(key), jnp.zeros(observation_size + action_size))
        error = optimizer.init(params, hyper.get("learning_rate", learning_rate), with_target=True)
        return State(agent.init(key, hyper), error, jnp.asarray(FIRST_TEMPERATURE))

    def update_critic(
        state: State, batch: Any, key: Key, *, weight: Float[Array, "B"] | None = None, **given: Any
    ) -> tuple[State, Metrics, Float[Array, "B"]]:
        policy = agent.policy_with_entropy(state.agent)
        # The first key of the agent's own split: with SAC, the action is that of its target.
        action, _, _ = policy.act((), batch.next_observation, jax.random.fold_in(key, 0))
        following = jnp.maximum(error_of(state.error.target, batch.next_observation, action), 0.0)
        later = jax.lax.stop_gradient(next_discount(batch, state.discount) * jnp.where(batch.terminated, 0.0, following))
        own = weights(later, state.temperature)
        weight = own if weight is None else weight * own
        inner, found, error = agent.update_critic(state.agent, batch, key, weight=weight, **given)

        def estimated(params: PyTree) -> Float[Array, "1 B"]:
            return error_of(params, batch.observation, batch.action)[None]

        trained, of_error, _ = regress(state.error, estimated, error + later)
        mean = of_error["agent/q"].total
        temperature = state.temperature + polyak * (jnp.maximum(mean, 0.0) - state.temperature)
        found |= {
            "agent/target_error": Average.of(mean),
            "agent/target_error_loss": of_error["agent/critic_loss"],
            "agent/largest_weight": Average.of(jnp.max(own)),
        }
        return State(inner, optimizer.move_target(trained, polyak), temperature), found, error

    def update_actor(state: State, batch: Any, key: Key, **given: Any) -> tuple[State, Metrics]:
        inner, found = agent.update_actor(state.agent, batch, key, **given)
        return state._replace(agent=inner), found

    def apply_actor_gradient(state: State, *given: Any) -> tuple[State, Metrics]:
        inner, found = agent.apply_actor_gradient(state.agent, *given)
        return state._replace(agent=inner), found

    def of_agent(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda state, *given: function(state.agent, *given)

    return ActorCritic(
        init=init,
        policy=of_agent(agent.policy),
        policy_with_entropy=of_agent(agent.policy_with_entropy),
        target_value=of_agent(agent.target_value),
        target_values=of_agent(agent.target_values),
        action_value=of_agent(agent.action_value),
        update_critic=update_critic,
        update_actor=update_actor,
        apply_actor_gradient=apply_actor_gradient,
        update=in_turn(update_critic, update_actor),
    )
