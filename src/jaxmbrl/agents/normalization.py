"""Running normalisation of observations and rewards, as settings of a method with an actor-critic.

Observation     (s - mean) / deviation, of all observations so far, clipped to [-10, 10]
Reward          r / deviation of the discounted returns so far, R <- discount R + r in each environment, from 0 at the
                start of an episode

The statistics are part of the agent's state, so exported and evaluated policies have them. Stored rows stay as they were:
they are normalised at each use, by the statistics of that time. `earned` changes those of the rewards. Call it before the
updates: else the first reward of a task that had paid nothing is divided by the deviation of zeros. `seen` changes those of
the observations. Call it after the updates: they are then those with which the newest actions were chosen.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxmbrl import returns
from jaxmbrl.agents.actor_critic.updates import actor_critic
from jaxmbrl.core.config import UserError
from jaxmbrl.core.spaces import Box, Space, encode, encoded_size
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
    flatten,
)
from jaxmbrl.models.normalizer import Normalizer, RunningNormalizer, merge, running
from jaxmbrl.nn.optimizer import Trainable

LIMIT = 10.0
"""Normalised observations are clipped to [-LIMIT, LIMIT]."""
S = TypeVar("S")


@dataclass(frozen=True)
class NormalizationSettings:
    """Settings of methods whose agent can see normalised observations and rewards."""

    normalize_observations: bool = False
    """Whether observations are normalised by their running mean and standard deviation, and clipped to [-10, 10]."""
    normalize_rewards: bool = False
    """Whether rewards are divided by the running standard deviation of the discounted return."""


class NormalizedState(NamedTuple):
    """State of an agent with running statistics."""

    agent: Any
    observations: RunningNormalizer
    """Of encoded observations."""
    returns: RunningNormalizer
    """Of the discounted returns so far, one column."""
    running_return: Float[Array, "num_envs"]
    """Discounted return so far of the episode in progress in each environment."""

    def interrupted(self, num_envs: int) -> NormalizedState:
        """The same where the rows that come next do not continue the newest ones."""
        return self._replace(running_return=jnp.zeros_like(self.running_return))

    @property
    def actor(self) -> Trainable:
        """That of the agent."""
        return self.agent.actor

    @property
    def critic(self) -> Trainable:
        """That of the agent."""
        return self.agent.critic

    @property
    def discount(self) -> Float[Array, ""]:
        """That of the agent."""
        return self.agent.discount


class Normalized(NamedTuple):
    """An agent with running normalisation."""

    agent: ActorCritic
    """Its functions take and return observations, rewards, targets and values in the task's units."""
    earned: Callable[[Any, Transition], Any]
    """(state, transitions [period, num_envs]) -> the state with their rewards in its statistics."""
    seen: Callable[[Any, Transition], Any]
    """The same with their observations."""


def normalized(
    settings: NormalizationSettings,
    num_envs: int,
    observation: Space,
    make: Callable[[Normalizer | None], ActorCritic],
) -> Normalized:
    """The agents `make(normalizer)` for observations in the space `observation` of `num_envs` environments, with the
    normalisation that `settings` ask for: the plain agent if they ask for none, else one with a `NormalizedState`. Raises
    UserError if images are to be normalised."""
    if not (settings.normalize_observations or settings.normalize_rewards):
        return Normalized(make(None), unchanged, unchanged)
    if settings.normalize_observations and isinstance(observation, Box) and len(observation.shape) > 1:
        raise UserError(f"normalize_observations needs vectors, and observations are {observation}: set it to false")
    functions = _Normalized(settings, num_envs, observation, make)
    return Normalized(actor_critic(functions), functions.earned, functions.seen)


def with_returns(state: S, transitions: Transition) -> S:
    """A state with `running_return`, `returns` and `discount`, and with the discounted returns of `transitions` [T,
    num_envs] in its statistics."""
    of: Any = state
    ended = transitions.terminated | transitions.truncated
    last, totals = returns.discounted_so_far(of.running_return, transitions.reward, ended, of.discount)
    return of._replace(running_return=last, returns=merge(of.returns, totals.reshape(-1, 1), LIMIT))


def unchanged(state: Any, transitions: Transition) -> Any:
    """`Normalized.earned` and `seen` of a plain agent."""
    return state


def inside(change: Callable[[Any], Any], state: Any) -> Any:
    """`state` with the agent's state changed, with or without normalisation."""
    return state._replace(agent=change(state.agent)) if isinstance(state, NormalizedState) else change(state)


class _Normalized(NamedTuple):
    """The functions of the agent, those of `make(normalizer)` for the statistics in the state."""

    settings: NormalizationSettings
    num_envs: int
    observation: Space
    make: Callable[[Normalizer | None], ActorCritic]

    def init(self, key: Key, hyper: Hyper) -> NormalizedState:
        return NormalizedState(
            agent=self.make(None).init(key, hyper),
            observations=running(encoded_size(self.observation) if self.settings.normalize_observations else 1),
            returns=running(1),
            running_return=jnp.zeros(self.num_envs),
        )

    def earned(self, state: NormalizedState, transitions: Transition) -> NormalizedState:
        """`Normalized.earned`."""
        return with_returns(state, transitions) if self.settings.normalize_rewards else state

    def seen(self, state: NormalizedState, transitions: Transition) -> NormalizedState:
        """`Normalized.seen`."""
        if not self.settings.normalize_observations:
            return state
        rows = encode(self.observation, flatten(transitions).observation)
        return state._replace(observations=merge(state.observations, rows, LIMIT))

    def of(self, state: NormalizedState) -> ActorCritic:
        """The agent with the statistics of the state."""
        return self.make(state.observations.normalizer if self.settings.normalize_observations else None)

    def scale(self, state: NormalizedState) -> Any:
        """What rewards are divided by."""
        return state.returns.normalizer.std[0] if self.settings.normalize_rewards else 1.0

    def policy(self, state: NormalizedState, explore: bool) -> Policy:
        return self.of(state).policy(state.agent, explore)

    def policy_with_entropy(self, state: NormalizedState) -> Policy:
        policy, scale = self.of(state).policy_with_entropy(state.agent), self.scale(state)

        def act(memory: Memory, observation: Observation, key: Key) -> tuple[Action, PyTree, Memory]:
            action, bonus, memory = policy.act(memory, observation, key)
            return action, scale * bonus, memory

        return Policy(policy.init, act)

    def target_value(self, state: NormalizedState, observation: Observation, key: Key) -> Float[Array, "N"]:
        return self.scale(state) * self.of(state).target_value(state.agent, observation, key)

    def target_values(self, state: NormalizedState, observation: Observation, key: Key) -> Float[Array, "L N"]:
        return self.scale(state) * self.of(state).target_values(state.agent, observation, key)

    def action_value(self, state: NormalizedState, observation: Observation, action: Action, key: Key) -> Float[Array, "N"]:
        return self.scale(state) * self.of(state).action_value(state.agent, observation, action, key)

    def update_critic(
        self, state: NormalizedState, batch: Any, key: Key, *, target: Float[Array, "B"] | None = None, **given: Any
    ) -> tuple[NormalizedState, Metrics, Float[Array, "B"]]:
        scale = self.scale(state)
        given |= {} if target is None else {"target": target / scale}
        batch = batch._replace(reward=batch.reward / scale)
        agent_state, found, error = self.of(state).update_critic(state.agent, batch, key, **given)
        return state._replace(agent=agent_state), found, scale * error

    def update_actor(self, state: NormalizedState, batch: Any, key: Key, *, loss: Any = None) -> tuple[Any, Metrics]:
        if loss is not None:
            raise TypeError("another actor loss is not possible with running normalisation")
        agent_state, found = self.of(state).update_actor(state.agent, batch, key)
        return state._replace(agent=agent_state), found

    def apply_actor_gradient(
        self, state: NormalizedState, value: Float[Array, ""], gradient: PyTree, bonus: Float[Array, ""]
    ) -> tuple[NormalizedState, Metrics]:
        raise TypeError("another actor gradient is not possible with running normalisation")
