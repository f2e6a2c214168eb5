"""Agents without an actor network: the policy is greedy with respect to the values. Deep Q-learning for discrete actions
(`agents.q_learning`), and for continuous ones QT-Opt (`agents.qt_opt`) and NAF (`agents.naf`).

Such an agent is an `ActorCritic` whose actor is the greedy policy: the update of its actor moves the target network.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxmbrl.agents.actor_critic.critics import next_discount, td_target
from jaxmbrl.agents.actor_critic.updates import in_turn
from jaxmbrl.core.spaces import Space
from jaxmbrl.core.types import Action, ActorCritic, Key, Memory, Metrics, Observation, Policy, PyTree, Transition
from jaxmbrl.data.n_step import NStep
from jaxmbrl.nn import optimizer
from jaxmbrl.nn.optimizer import Trainable


class QState(NamedTuple):
    """Parameters and optimiser state of an agent without an actor."""

    critic: Trainable
    """Its `target` is the target network, or the target networks."""
    discount: Float[Array, ""]

    @property
    def actor(self) -> Trainable:
        """The critic: the policy is greedy with respect to its values."""
        return self.critic


def target_of(agent: Any, state: QState, batch: Transition | NStep, key: Key) -> Float[Array, "B"]:
    """The TD target of each row, r + discount (1 - terminated) V(s'), with the agent's `target_value`."""
    next_value = agent.target_value(state, batch.next_observation, key)
    return td_target(batch.reward, next_discount(batch, state.discount), batch.terminated, next_value)


def without_actor(agent: Any, polyak: float, action: Space) -> ActorCritic:
    """The interface of an agent whose policy is greedy. `agent` has the other functions of an `ActorCritic` as methods;
    `polyak` is the share by which its targets move at each update, and `action` the space of one action."""

    def policy_with_entropy(state: QState) -> Policy:
        greedy = agent.policy(state, False)

        def act(memory: Memory, observation: Observation, key: Key) -> tuple[Action, PyTree, Memory]:
            chosen, _, memory = greedy.act(memory, observation, key)
            return chosen, jnp.zeros(chosen.shape[: chosen.ndim - len(action.shape)], state.discount.dtype), memory

        return greedy._replace(act=act)

    def update_actor(state: QState, batch: Transition | NStep, key: Key, *, loss: Any = None) -> tuple[QState, Metrics]:
        if loss is not None:
            raise TypeError("a greedy policy has no parameters of its own: another actor loss is not possible")
        return state._replace(critic=optimizer.move_target(state.critic, polyak)), {}

    def apply_actor_gradient(
        state: QState, value: Float[Array, ""], gradient: PyTree, bonus: Float[Array, ""]
    ) -> tuple[QState, Metrics]:
        raise TypeError("a greedy policy has no parameters of its own: it has no gradient")

    return ActorCritic(
        init=agent.init,
        policy=agent.policy,
        policy_with_entropy=policy_with_entropy,
        target_value=agent.target_value,
        target_values=agent.target_values,
        action_value=agent.action_value,
        update_critic=agent.update_critic,
        update_actor=update_actor,
        apply_actor_gradient=apply_actor_gradient,
        update=in_turn(agent.update_critic, update_actor),
    )
