"""TRPO: trust region policy optimisation (Schulman et al., arXiv 1502.05477, algorithm 1 with the sampled objective of
section 5). The step is `agents.trust_region`, which states it.

for each update:
    collect T steps of N environments by the stochastic policy; episodes continue across updates
    update the statistics that scale rewards
    advantages A by GAE, with the values of true successors, standardised over all rows
    one natural-gradient step of the policy, of KL divergence at most `radius`, along the gradient of mean rho A
    fit the value function to its targets by several epochs of Adam
    update the statistics that normalise observations

Differs from the paper: advantages are estimated by GAE (arXiv 1506.02438) instead of from returns, and the Fisher matrix is
damped, as in openai/baselines. A step must satisfy the bound itself; baselines accepts 1.5 times the bound.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import jax

from jaxmbrl.agents import trust_region
from jaxmbrl.agents.on_policy import OnPolicyState
from jaxmbrl.agents.trust_region import TRPOConfig
from jaxmbrl.algorithms import shared
from jaxmbrl.algorithms.registry import Goal, Method
from jaxmbrl.algorithms.shared import OnPolicySettings
from jaxmbrl.core.types import Algorithm, Clock, Hyper, Key, Metrics, Policy, Task, Transition
from jaxmbrl.envs.base import vectors_and_actions


@dataclass(frozen=True)
class Config(OnPolicySettings):
    """Settings of a run of TRPO."""

    agent: TRPOConfig = field(default_factory=TRPOConfig)
    """Policy and value function."""


class State(NamedTuple):
    """The whole state of a run."""

    agent: OnPolicyState
    key: Key


def make(config: Config, task: Task) -> Algorithm:
    """TRPO on `task`. `hyper` may hold `learning_rate` and `discount`, traced."""
    agent = trust_region.make_agent(config.agent, *vectors_and_actions(task, "trpo"))

    def init(key: Key, hyper: Hyper, data: Transition | None = None) -> State:
        shared.no_data(data, "trpo", on_policy=True)
        agent_key, key = jax.random.split(key)
        return State(agent.init(agent_key, hyper, config.num_envs), key)

    def policy(state: State, clock: Clock, explore: bool) -> Policy:
        return agent.policy(state.agent, explore)

    def learn(clock: Clock, state: State, transitions: Transition) -> tuple[State, Metrics]:
        key, update_key = jax.random.split(state.key)
        learner = agent.measure_returns(state.agent, transitions)
        learner, found = trust_region.update(agent, config.agent, learner, transitions, update_key)
        return State(agent.measure_observations(learner, transitions), key), found

    return Algorithm(
        init, policy, learn, period=config.collect_steps, views=lambda state: agent.views(state.agent), on_policy=True
    )


METHOD = Method(
    make,
    Config,
    family="on_policy",
    paper="1502.05477",
    summary="trust region policy optimisation: natural-gradient steps of bounded KL divergence",
    takes=("continuous actions", "discrete actions"),
    tiny={
        "agent.hidden": (16, 16),
        "agent.cg_iterations": 3,
        "agent.value_epochs": 2,
        "agent.value_batch_size": 5,
        "num_envs": 1,
        "collect_steps": 25,
        "epoch_steps": 100,
    },
    goals=(Goal("trpo-pendulum", "pendulum", 100_000, -170.0, seeds=8, seeds_at_goal=8),),
)
