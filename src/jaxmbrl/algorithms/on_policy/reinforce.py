"""REINFORCE with a baseline (Williams, Machine Learning 8, 1992), also called vanilla policy gradient. The agent is
`agents.on_policy`.

    grad J = sum_t grad log pi(a_t|s_t) (sum_{t' >= t} discount^{t' - t} r_{t'} - V(s_t))

for each update:
    collect T steps of N environments by the stochastic policy; episodes continue across updates
    update the statistics that scale rewards
    advantages A: the return of the steps that remain, bootstrapped at the end of the batch and at time limits, minus V
    one Adam step of the policy along mean grad log pi(a|s) A + c_H grad mean H, with A standardised
    fit V to the returns by several epochs of Adam
    update the statistics that normalise observations

With `entropy_in_return` the objective is that of maximum-entropy reinforcement learning: c_H H(pi(.|s_t')) is also added to
each reward in the return (Levine, arXiv 1805.00909, section 5.1). Where advantages are standardised, both terms are divided
by their standard deviation; without `entropy_in_return` the second is not, as in PPO.

Differs from the paper: a batch has a fixed number of steps instead of whole episodes, so that all seeds compile into one
program; lambda below 1 trades bias for variance (arXiv 1506.02438).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
from annotated_types import Ge, Gt, Le
from jaxtyping import Array, Float

from jaxmbrl.agents import on_policy
from jaxmbrl.agents.on_policy import (
    ActorParameters,
    Batch,
    OnPolicy,
    OnPolicyConfig,
    OnPolicyState,
    deviation,
    policy_gradient_loss,
    standardized,
    weighted_mean,
)
from jaxmbrl.algorithms import shared
from jaxmbrl.algorithms.registry import Goal, Method
from jaxmbrl.algorithms.shared import OnPolicySettings
from jaxmbrl.core.config import Traced
from jaxmbrl.core.types import Algorithm, Average, Clock, Hyper, Key, Metrics, Policy, Task, Transition
from jaxmbrl.envs.base import vectors_and_actions
from jaxmbrl.nn import optimizer


@dataclass(frozen=True)
class ReinforceConfig(OnPolicyConfig):
    """Settings of the agent."""

    gae_lambda: Annotated[float, Ge(0), Le(1)] = 1.0
    """Lambda of the advantages: 0 for TD errors, 1 for returns minus values."""
    normalize_advantages: bool = True
    """Whether advantages are standardised over the rows of an update."""
    entropy_in_return: bool = False
    """Whether the entropy of later states is part of the return."""
    value_learning_rate: Annotated[float, Gt(0), Traced] = 1e-3
    """Adam learning rate of the value function."""
    value_epochs: Annotated[int, Ge(1)] = 10
    """Passes over the rows in which the value function is fitted after each step."""
    value_batch_size: Annotated[int, Ge(1)] = 64
    """Rows of a minibatch of the value function."""


@dataclass(frozen=True)
class Config(OnPolicySettings):
    """Settings of a run of REINFORCE."""

    agent: ReinforceConfig = field(default_factory=ReinforceConfig)
    """Policy and value function."""


class State(NamedTuple):
    """The whole state of a run."""

    agent: OnPolicyState
    key: Key


def make(config: Config, task: Task) -> Algorithm:
    """REINFORCE on `task`. `hyper` may hold `learning_rate`, `value_learning_rate` and `discount`, traced."""
    agent = on_policy.make(config.agent, *vectors_and_actions(task, "reinforce"), on_policy.adam())
    settings = config.agent

    def init(key: Key, hyper: Hyper, data: Transition | None = None) -> State:
        shared.no_data(data, "reinforce", on_policy=True)
        agent_key, key = jax.random.split(key)
        state = agent.init(agent_key, hyper, config.num_envs)
        rate = hyper.get("value_learning_rate", config.agent.value_learning_rate)
        critic = state.critic._replace(learning_rate=jnp.asarray(rate, float))
        return State(state._replace(critic=critic), key)

    def policy(state: State, clock: Clock, explore: bool) -> Policy:
        return agent.policy(state.agent, explore)

    def learn(clock: Clock, state: State, transitions: Transition) -> tuple[State, Metrics]:
        key, fit_key = jax.random.split(state.key)
        learner = agent.measure_returns(state.agent, transitions)
        rows = agent.estimate(learner, with_entropy(agent, learner, transitions, settings))
        explained = on_policy.explained(rows)
        gradient, found = jax.grad(policy_loss, has_aux=True, argnums=2)(agent, settings, learner.actor.params, rows)
        actor, norm = optimizer.step(learner.actor, gradient, chain=agent.actor_chain)
        actor = actor._replace(params=agent.bounded(actor.params))
        critic, fitted = agent.fit_critic(learner.critic, rows, fit_key, settings.value_epochs, settings.value_batch_size)
        learner = learner._replace(actor=actor, critic=critic)
        found |= fitted | {"agent/actor_gradient_norm": Average.of(norm)}
        found |= explained | on_policy.spread(learner)
        return State(agent.measure_observations(learner, transitions), key), found

    return Algorithm(
        init, policy, learn, period=config.collect_steps, views=lambda state: agent.views(state.agent), on_policy=True
    )


def with_entropy(agent: OnPolicy, state: OnPolicyState, trajectory: Transition, settings: ReinforceConfig) -> Transition:
    """The trajectory with c_H times the policy's entropy added to each reward, if it is part of the return: to the reward
    that is learned from, which is normalised if `normalize_rewards`."""
    if not settings.entropy_in_return:
        return trajectory
    entropy = agent.distribution(state.actor.params, agent.inputs(state, trajectory.observation)).entropy()
    unit = state.returns.normalizer.std[0] if settings.normalize_rewards else 1.0
    return trajectory._replace(reward=trajectory.reward + unit * settings.entropy_weight * entropy)


def policy_loss(
    agent: OnPolicy, settings: ReinforceConfig, params: ActorParameters, rows: Batch
) -> tuple[Float[Array, ""], Metrics]:
    """-mean log pi(a|s) A - c_H mean H. With standardised advantages and the entropy in the return, which is a part of A,
    c_H is divided by their standard deviation too: the gradient keeps its direction."""
    distribution = agent.distribution(params, rows.inputs)
    entropy = weighted_mean(distribution.entropy(), rows.weight)
    advantage, entropy_weight = rows.advantage, jnp.asarray(settings.entropy_weight)
    if settings.normalize_advantages:
        advantage = standardized(advantage, rows.weight)
        if settings.entropy_in_return:
            entropy_weight /= deviation(rows.advantage, rows.weight)
    loss = policy_gradient_loss(distribution.log_probability(rows.raw), advantage, rows.weight)
    found = {"agent/actor_loss": Average.of(loss), "agent/entropy": Average.of(entropy)}
    return loss - entropy_weight * entropy, found


METHOD = Method(
    make,
    Config,
    family="on_policy",
    paper="",
    summary="policy gradient with a value function as baseline",
    takes=("continuous actions", "discrete actions"),
    tiny={
        "agent.hidden": (16, 16),
        "agent.entropy_weight": 0.01,
        "agent.entropy_in_return": True,
        "agent.value_epochs": 2,
        "agent.value_batch_size": 5,
        "num_envs": 1,
        "collect_steps": 25,
        "epoch_steps": 100,
    },
    goals=(Goal("reinforce-cartpole", "cartpole-continuous", 100_000, 199.0, seeds=8, seeds_at_goal=7),),
)
