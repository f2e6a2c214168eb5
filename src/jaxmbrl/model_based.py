"""What methods share whose model improves the policy learner itself: its critic's target, or its actor's gradient.

    for each step of the environment:
        act by the stochastic policy (uniformly at random for the first `warmup_steps`), store the transition
        each `refit_every` steps: fit the model to all real data
        update the agent, improved by the fitted model, on batches of real transitions (`agents.off_policy`)

What is improved is an agent's `update`; the rest of it stays as it is (`types.Agent`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
from annotated_types import Ge
from jaxtyping import Array, Bool, Float

from jaxmbrl import agents, metrics, replay, returns
from jaxmbrl.agents import AgentConfig, off_policy
from jaxmbrl.agents.off_policy import OffPolicyConfig
from jaxmbrl.envs.base import vector_sizes
from jaxmbrl.models import ensemble
from jaxmbrl.models.ensemble import EnsembleConfig
from jaxmbrl.models.normalizer import Normalizer, normalize
from jaxmbrl.replay import Replay
from jaxmbrl.rollout import rollout
from jaxmbrl.types import (
    Action,
    Agent,
    Algorithm,
    Clock,
    DynamicsModel,
    Hyper,
    Key,
    Memory,
    Metrics,
    Observation,
    Policy,
    PyTree,
    Task,
    Transition,
    World,
    flatten,
    row_like,
)


@dataclass(frozen=True)
class ModelBasedConfig(OffPolicyConfig):
    """Settings that these methods share."""

    agent: AgentConfig = field(default_factory=AgentConfig)
    """The policy learner."""
    ensemble: EnsembleConfig = field(default_factory=EnsembleConfig)
    """The dynamics model."""
    refit_every: Annotated[int, Ge(1)] = 250
    """Environment steps between two fits of the model."""
    learn_reward: bool = True
    """Learn the reward even where the task's is known."""
    learn_termination: bool = False
    """Learn the termination even where the task's is known."""
    replay_capacity: Annotated[int, Ge(2)] = 1_000_000
    """Transitions kept, the oldest giving way."""
    warmup_steps: Annotated[int, Ge(2)] = 1000
    """Environment steps of uniformly random actions, without updates, at the start."""
    eval_every: Annotated[int, Ge(0)] = 5
    """Epochs between two evaluations; 0 for none."""

    def problem(self) -> tuple[str, str] | None:
        """A rule between fields that is broken."""
        for name in ("refit_every", "warmup_steps"):
            if getattr(self, name) % self.num_envs:
                return name, f"must be a multiple of num_envs ({self.num_envs}), got {getattr(self, name)}"
        if self.ensemble.propagation == "moment_matching":
            return "ensemble.propagation", "must not be moment_matching: the rows of a batch are not one belief"
        return None


class State(NamedTuple):
    """Everything that a run holds."""

    agent: Any
    model: PyTree
    """The `EnsembleState`, or another model's state."""
    replay: Replay
    key: Key


Improve = Callable[[Agent, DynamicsModel, PyTree], Agent]
"""(agent, model, the model's state) -> the agent with other updates."""


def learner(
    config: ModelBasedConfig, task: Task, name: str, improve: Improve, model: DynamicsModel | None = None
) -> Algorithm:
    """The algorithm of the module's first lines; `model` stands for the ensemble where it is given."""
    sizes = vector_sizes(task, name)
    agent = agents.make(config.agent, *sizes)
    if model is None:
        model = ensemble_of(config.ensemble, task, config.learn_reward, config.learn_termination)

    def init(key: Key, hyper: Hyper) -> State:
        agent_key, key, model_key = jax.random.split(key, 3)
        buffer = replay.init(row_like(task), config.replay_capacity)
        return State(agent.init(agent_key, hyper), model.init(model_key, {}), buffer, key)

    def policy(state: State, explore: bool) -> Policy:
        return agent.policy(state.agent, explore)

    def learn(clock: Clock, state: State, transitions: Transition) -> tuple[State, Metrics]:
        key, update_key, fit_key = jax.random.split(state.key, 3)
        real = replay.add(state.replay, flatten(transitions))
        # By the clock and not by `real.size`: a count that is batched over seeds would batch the loops of the fit.
        count = jnp.minimum(clock.env_steps, config.replay_capacity)
        steps = clock.env_steps - config.warmup_steps
        model_state, fitted = metrics.when(
            (steps >= 0) & (steps % config.refit_every == 0),
            lambda model_state: model.fit(model_state, real.data, count, fit_key),
            state.model,
        )
        improved = improve(agent, model, model_state)
        agent_state, updated = off_policy.improve(config, improved, clock, state.agent, real, update_key)
        return State(agent_state, model_state, real, key), fitted | updated

    return Algorithm(init, policy, learn, period=1)


def with_critic(agent: Agent, update_critic: Callable[[PyTree, Transition, Key], tuple[PyTree, Metrics]]) -> Agent:
    """`agent` whose critics are updated by `update_critic(state, batch, key)`, and whose actor as before."""

    def update(state: PyTree, batch: Transition, key: Key) -> tuple[PyTree, Metrics]:
        critic_key, actor_key = jax.random.split(key)
        state, of_critic = update_critic(state, batch, critic_key)
        state, of_actor = agent.update_actor(state, batch, actor_key)
        return state, of_critic | of_actor

    return agent._replace(update_critic=update_critic, update=update)


def ensemble_of(config: EnsembleConfig, task: Task, learn_reward: bool, learn_termination: bool) -> DynamicsModel:
    """The ensemble for `task`, which learns what the task does not tell, or what is wanted learned."""
    return ensemble.make(
        config,
        *vector_sizes(task, "a dynamics model"),
        reward=None if learn_reward else task.reward,
        terminated=None if learn_termination else task.terminated,
        features=task.features,
    )


class Stretch(NamedTuple):
    """T successive steps of each of B rows."""

    observation: Float[Array, "T B O"]
    action: Float[Array, "T B A"]
    reward: Float[Array, "T B"]
    bonus: Float[Array, "T B"]
    """What the action earned besides the reward: an entropy bonus."""
    terminated: Bool[Array, "T B"] | Float[Array, "T B"]
    following: Float[Array, "T B O"]
    """Next observations."""

    @property
    def alive(self) -> Float[Array, "T B"]:
        """The probability that no step before ended the episode."""
        return jax.vmap(returns.alive_before, in_axes=1, out_axes=1)(self.terminated)

    def suffixes(self, last: Float[Array, "B"], discount: Float[Array, ""]) -> Float[Array, "S B"]:
        """`returns.suffixes` of the rewards with their bonus, S = T + 1."""
        by_row = jax.vmap(returns.suffixes, in_axes=(1, 1, 0, None), out_axes=1)
        return by_row(self.reward + self.bonus, self.terminated, last, discount)


def imagine(world: World, policy: Policy, origin: Float[Array, "B O"], key: Key, length: int) -> Stretch:
    """`length` steps of a learned `world` from rows `origin`, under a policy whose extras are the bonus (`Agent.actor`).

    Noise and actions are reparameterised: it can be differentiated in the policy's parameters and in `origin`.
    """
    start_key, rollout_key = jax.random.split(key)
    _, rows = rollout(world, policy, (world.start(origin, start_key), ()), rollout_key, length)
    return Stretch(rows.observation, rows.action, rows.reward, rows.extras, rows.terminated, rows.next_observation)


def after(batch: Transition, imagined: Stretch) -> Stretch:
    """The real steps of a `batch` [B], which earn no bonus, and the `imagined` ones that go on from them."""
    first = (batch.observation, batch.action, batch.reward, jnp.zeros_like(batch.reward), batch.terminated)
    real = Stretch(*first, batch.next_observation)
    return jax.tree.map(lambda step, steps: jnp.concatenate([step[None], steps]), real, imagined)


def seen_through(agent: Agent, by: Normalizer) -> Agent:
    """`agent` that sees observations normalised; what is given to it is in the task's units."""

    def shown(policy: Policy) -> Policy:
        def act(memory: Memory, observation: Observation, key: Key) -> tuple[Action, PyTree, Memory]:
            return policy.act(memory, normalize(by, observation), key)

        return Policy(policy.init, act)

    def batch_of(batch: Transition) -> Transition:
        following = normalize(by, batch.next_observation)
        return batch._replace(observation=normalize(by, batch.observation), next_observation=following)

    def update_actor(state: PyTree, batch: Transition, key: Key, *, loss: Any = None) -> tuple[PyTree, Metrics]:
        # A loss of another's is given what its maker sees.
        return agent.update_actor(state, batch_of(batch) if loss is None else batch, key, loss=loss)

    return Agent(
        init=agent.init,
        policy=lambda state, explore: shown(agent.policy(state, explore)),
        actor=lambda state: shown(agent.actor(state)),
        target_value=lambda state, observation, key: agent.target_value(state, normalize(by, observation), key),
        target_values=lambda state, observation, key: agent.target_values(state, normalize(by, observation), key),
        value=lambda state, observation, key: agent.value(state, normalize(by, observation), key),
        critic_target=lambda state, batch, key: agent.critic_target(state, batch_of(batch), key),
        update_critic=lambda state, batch, key, **more: agent.update_critic(state, batch_of(batch), key, **more),
        update_actor=update_actor,
        update=lambda state, batch, key: agent.update(state, batch_of(batch), key),
    )
