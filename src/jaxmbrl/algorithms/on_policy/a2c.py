"""A2C: advantage actor-critic, the synchronous form of A3C (Mnih et al., arXiv 1602.01783, algorithm S3, with N
environments in step instead of asynchronous workers). The agent is `agents.on_policy`.

for each update:
    collect T steps of N environments by the stochastic policy; episodes continue across updates
    update the statistics that scale rewards
    advantages A: returns of the steps that remain, bootstrapped with V of the last successor, minus V (lambda 1)
    one step along the gradient, clipped by its norm, of
        -mean log pi(a|s) A - c_H mean H + c_V 1/2 mean (V - y)^2
    update the statistics that normalise observations

Differs from the paper: policy and value function share no parameters. PPO with one epoch of one minibatch has the same
gradient, if its advantages are not standardised.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, NamedTuple

import jax
import optax
from annotated_types import Ge, Gt, Le
from jaxtyping import Array, Float

from jaxmbrl.agents import on_policy
from jaxmbrl.agents.on_policy import Batch, DescentConfig, OnPolicyState, policy_gradient_loss
from jaxmbrl.algorithms import shared
from jaxmbrl.algorithms.registry import Goal, Method
from jaxmbrl.algorithms.shared import AnnealedSettings
from jaxmbrl.core.config import Traced
from jaxmbrl.core.types import Algorithm, Clock, Hyper, Key, Metrics, Policy, Task, Transition
from jaxmbrl.envs.base import vectors_and_actions


@dataclass(frozen=True)
class A2CConfig(DescentConfig):
    """Settings of the agent."""

    optimizer: Literal["rmsprop", "adam"] = "rmsprop"
    """RMSProp with decay 0.99, or Adam; epsilon 1e-5. As in TensorFlow, the mean square of RMSProp starts at 1, and its
    epsilon is inside the root."""
    learning_rate: Annotated[float, Gt(0), Traced] = 7e-4
    """Learning rate."""
    gae_lambda: Annotated[float, Ge(0), Le(1)] = 1.0
    """Lambda of the advantages: 0 for TD errors, 1 for returns minus values."""
    entropy_weight: Annotated[float, Ge(0)] = 0.01
    """Weight of the policy's entropy in the objective."""
    value_weight: Annotated[float, Ge(0)] = 1.0
    """Weight of the value function's loss, half the mean squared error."""


@dataclass(frozen=True)
class Config(AnnealedSettings):
    """Settings of a run of A2C."""

    agent: A2CConfig = field(default_factory=A2CConfig)
    """Policy and value function."""
    num_envs: Annotated[int, Ge(1)] = 16
    """Environments that each seed steps in parallel."""
    collect_steps: Annotated[int, Ge(1)] = 5
    """T: steps of each environment between two updates. Episodes continue across updates."""
    epoch_steps: Annotated[int, Ge(1)] = 2000
    """Environment steps between two rows of metrics."""


class State(NamedTuple):
    """The whole state of a run."""

    agent: OnPolicyState
    key: Key


def make(config: Config, task: Task) -> Algorithm:
    """A2C on `task`. `hyper` may hold `learning_rate` and `discount`, traced."""
    rmsprop = optax.scale_by_rms(decay=0.99, eps=1e-5, initial_scale=1.0)
    chain = rmsprop if config.agent.optimizer == "rmsprop" else on_policy.adam()
    agent = on_policy.make(config.agent, *vectors_and_actions(task, "a2c"), chain)

    def init(key: Key, hyper: Hyper, data: Transition | None = None) -> State:
        shared.no_data(data, "a2c", on_policy=True)
        agent_key, key = jax.random.split(key)
        return State(agent.init(agent_key, hyper, config.num_envs), key)

    def policy(state: State, clock: Clock, explore: bool) -> Policy:
        return agent.policy(state.agent, explore)

    def policy_loss(distribution: Any, rows: Batch) -> tuple[Float[Array, ""], Metrics]:
        return policy_gradient_loss(distribution.log_probability(rows.raw), rows.advantage, rows.weight), {}

    def learn(clock: Clock, state: State, transitions: Transition) -> tuple[State, Metrics]:
        learner = agent.measure_returns(state.agent, transitions)
        rows = agent.estimate(learner, transitions)
        loss = on_policy.descent_loss(agent, config.agent, policy_loss)
        scale = config.learning_scale(clock)
        learner, found = agent.descend(learner, rows, loss, config.agent.max_gradient_norm, scale)
        found |= on_policy.explained(rows) | on_policy.spread(learner)
        return State(agent.measure_observations(learner, transitions), state.key), found

    return Algorithm(
        init, policy, learn, period=config.collect_steps, views=lambda state: agent.views(state.agent), on_policy=True
    )


METHOD = Method(
    make,
    Config,
    family="on_policy",
    paper="1602.01783",
    summary="advantage actor-critic: policy gradients of short trajectories with a value function",
    takes=("continuous actions", "discrete actions"),
    tiny={
        "agent.hidden": (16, 16),
        "num_envs": 1,
        "collect_steps": 25,
        "epoch_steps": 100,
        "anneal_steps": 1000,
    },
    goals=(
        Goal("a2c-cartpole", "cartpole-continuous", 100_000, 199.0, seeds=8, seeds_at_goal=7),
        Goal(
            "a2c-baselines-cartpole",
            "cartpole-continuous",
            1_000_000,
            199.0,
            seeds_at_goal=0,
            preset="baselines",
            about="preset `baselines`, with RMSProp",
        ),
    ),
)
