"""What methods share that put a fitted model beside a policy learner: its batches are imagined, or the model improves the
learner itself, its critic's target or its actor's gradient.

    for each step of the environment:
        act by the stochastic policy (uniformly at random for the first `warmup_steps`), store the transition
        each `refit_every` steps: fit the model to all real data; then let the `Supply` imagine, where it does
        update the agent, improved by the fitted model, on batches of the `Supply` (`agents.off_policy`)

What is improved is an agent's `update`; the rest of it stays as it is (`types.Agent`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
from annotated_types import Ge
from jaxtyping import Array, Int

from jaxmbrl import agents
from jaxmbrl.algorithms import off_policy
from jaxmbrl.algorithms.off_policy import OffPolicyConfig
from jaxmbrl.core import metrics
from jaxmbrl.core.types import (
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
    flatten,
    row_like,
)
from jaxmbrl.data import replay
from jaxmbrl.data.replay import Replay
from jaxmbrl.envs.base import vector_sizes
from jaxmbrl.models import ensemble
from jaxmbrl.models.ensemble import EnsembleConfig
from jaxmbrl.models.normalizer import Normalizer, normalize


@dataclass(frozen=True)
class ModelBasedConfig(OffPolicyConfig):
    """Settings that these methods share."""

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
    """Real transitions."""
    supply: PyTree
    """What the `Supply` holds; () where batches are drawn from the replay alone."""
    key: Key


Improve = Callable[[Agent, DynamicsModel, PyTree], Agent]
"""(agent, model, the model's state) -> the agent with other updates."""


class Supply(NamedTuple):
    """Where batches come from."""

    init: Callable[[Hyper], PyTree]
    """What is held at the start."""
    refresh: Callable[[PyTree, DynamicsModel, PyTree, Policy, Replay, Int[Array, ""], Key], tuple[PyTree, Metrics]]
    """(held, model, the model's state, policy that explores, real transitions, environment steps after the warm-up, key) ->
    (held, metrics), after each fit."""
    draw: Callable[[PyTree, Replay, Key], Any]
    """(held, real transitions, key) -> the batch of one update."""


class Recall(NamedTuple):
    """How a method acts and stores that recalls how its real transitions were acted."""

    policy: Callable[[Any], Policy]
    """The agent's state -> the policy that explores."""
    extras: Callable[[Transition], PyTree]
    """(rows [R], their extras what the policy left) -> what is stored as their extras, leaves [R, ...]."""
    blank: PyTree
    """One row of it, of zeros."""


def from_replay(draw: Callable[[Replay, Key], Any]) -> Supply:
    """Batches drawn from the real transitions alone, by `draw(real transitions, key)`."""
    return Supply(lambda hyper: (), lambda held, *_: (held, {}), lambda held, real, key: draw(real, key))


def learner(
    config: ModelBasedConfig,
    task: Task,
    name: str,
    improve: Improve,
    model: DynamicsModel | None = None,
    supply: Supply | None = None,
    recall: Recall | None = None,
) -> Algorithm:
    """The algorithm of the module's first lines; `model` stands for the ensemble where it is given. Without `supply`
    batches are single real transitions; without `recall` the agent explores by itself, and nothing of that is stored."""
    agent = agents.make(config.agent, *vector_sizes(task, name))
    if model is None:
        model = ensemble_of(config.ensemble, task, config.learn_reward, config.learn_termination)
    if supply is None:
        supply = from_replay(lambda real, key: replay.sample(real, key, config.batch_size))

    def init(key: Key, hyper: Hyper) -> State:
        agent_key, key, model_key = jax.random.split(key, 3)
        row = row_like(task)._replace(extras=() if recall is None else recall.blank)
        return State(
            agent=agent.init(agent_key, hyper),
            model=model.init(model_key, {}),
            replay=replay.init(row, config.replay_capacity),
            supply=supply.init(hyper),
            key=key,
        )

    def policy(state: State, explore: bool) -> Policy:
        return agent.policy(state.agent, explore) if recall is None or not explore else recall.policy(state.agent)

    def rows_of(transitions: Transition) -> Transition:
        rows = flatten(transitions)
        if recall is None:
            return rows
        left = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), transitions.extras)
        return rows._replace(extras=recall.extras(rows._replace(extras=left)))

    def learn(clock: Clock, state: State, transitions: Transition) -> tuple[State, Metrics]:
        key, update_key, refit_key = jax.random.split(state.key, 3)
        real = replay.add(state.replay, rows_of(transitions))
        # By the clock and not by `real.size`: a count that is batched over seeds would batch the loops of the fit.
        count = jnp.minimum(clock.env_steps, config.replay_capacity)
        steps = clock.env_steps - config.warmup_steps

        def refit(learned: tuple[PyTree, PyTree]) -> tuple[tuple[PyTree, PyTree], Metrics]:
            model_state, held = learned
            fit_key, supply_key = jax.random.split(refit_key)
            model_state, fitted = model.fit(model_state, real.data, count, fit_key)
            held, made = supply.refresh(held, model, model_state, policy(state, True), real, steps, supply_key)
            return (model_state, held), fitted | made

        (model_state, held), fitted = metrics.cond_update(
            (steps >= 0) & (steps % config.refit_every == 0), refit, (state.model, state.supply)
        )
        agent_state, updated = off_policy.improve(
            config,
            improve(agent, model, model_state),
            clock,
            state.agent,
            lambda key: supply.draw(held, real, key),
            update_key,
        )
        return State(agent_state, model_state, real, held, key), fitted | updated

    return Algorithm(init, policy, learn, period=1)


def ensemble_of(config: EnsembleConfig, task: Task, learn_reward: bool, learn_termination: bool) -> DynamicsModel:
    """The ensemble for `task`, which learns what the task does not tell, or what is wanted learned."""
    return ensemble.make(
        config,
        *vector_sizes(task, "a dynamics model"),
        reward=None if learn_reward else task.reward,
        terminated=None if learn_termination else task.terminated,
        features=task.features,
    )


def with_normalizer(agent: Agent, by: Normalizer) -> Agent:
    """`agent` that sees observations normalised; what is given to it is in the task's units."""

    def shown(policy: Policy) -> Policy:
        def act(memory: Memory, observation: Observation, key: Key) -> tuple[Action, PyTree, Memory]:
            return policy.act(memory, normalize(by, observation), key)

        return Policy(policy.init, act)

    def batch_of(batch: Transition) -> Transition:
        next_observation = normalize(by, batch.next_observation)
        return batch._replace(observation=normalize(by, batch.observation), next_observation=next_observation)

    def update_actor(state: PyTree, batch: Transition, key: Key, *, loss: Any = None) -> tuple[PyTree, Metrics]:
        # A loss of another's is given what its maker sees.
        return agent.update_actor(state, batch_of(batch) if loss is None else batch, key, loss=loss)

    return Agent(
        init=agent.init,
        policy=lambda state, explore: shown(agent.policy(state, explore)),
        actor=lambda state: shown(agent.actor(state)),
        target_value=lambda state, observation, key: agent.target_value(state, normalize(by, observation), key),
        target_values=lambda state, observation, key: agent.target_values(state, normalize(by, observation), key),
        action_value=lambda state, observation, action, key: agent.action_value(
            state, normalize(by, observation), action, key
        ),
        critic_target=lambda state, batch, key: agent.critic_target(state, batch_of(batch), key),
        update_critic=lambda state, batch, key, **more: agent.update_critic(state, batch_of(batch), key, **more),
        update_actor=update_actor,
        update=lambda state, batch, key: agent.update(state, batch_of(batch), key),
    )
