"""PPO: proximal policy optimisation (Schulman et al., arXiv 1707.06347, algorithm 1, with the clipped objective). The
agent is `agents.on_policy`, which states the losses.

for each update:
    collect T steps of N environments by the stochastic policy; episodes continue across updates
    update the statistics that scale rewards
    advantages A by GAE, with the values of true successors
    K times: for each of M shuffled minibatches, one Adam step along the gradient, clipped by its norm, of
        -mean min(rho A, clip(rho, 1 - c, 1 + c) A) - c_H mean H + c_V 1/2 mean (V - y)^2,   A standardised in the minibatch
    update the statistics that normalise observations

Differs from the paper: policy and value function share no parameters. Time limits are bootstrapped, where many
implementations treat them as terminations. The value function's loss is not clipped. Learning rates may fall to 0
(`anneal_steps`), the clip range is constant.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, NamedTuple

import jax
from annotated_types import Ge

from jaxmbrl.agents import on_policy
from jaxmbrl.agents.on_policy import OnPolicyState, PPOConfig
from jaxmbrl.algorithms import shared
from jaxmbrl.algorithms.registry import Goal, Method
from jaxmbrl.algorithms.shared import AnnealedSettings
from jaxmbrl.core.types import Algorithm, Clock, Hyper, Key, Metrics, Policy, Task, Transition
from jaxmbrl.envs.base import vectors_and_actions


@dataclass(frozen=True)
class Config(AnnealedSettings):
    """Settings of a run of PPO."""

    agent: PPOConfig = field(default_factory=PPOConfig)
    """Policy and value function."""
    collect_steps: Annotated[int, Ge(1)] = 256
    """T: steps of each environment between two updates. Episodes continue across updates."""
    epoch_steps: Annotated[int, Ge(1)] = 2048
    """Environment steps between two rows of metrics."""

    def problem(self) -> tuple[str, str] | None:
        """(field, message) of the first violated rule that involves several fields, or None."""
        rows, minibatches = self.num_envs * self.collect_steps, self.agent.minibatches
        if rows % minibatches:
            return "agent.minibatches", f"must divide num_envs x collect_steps ({rows}), got {minibatches}"
        return None


class State(NamedTuple):
    """The whole state of a run."""

    agent: OnPolicyState
    key: Key


def make(config: Config, task: Task) -> Algorithm:
    """PPO on `task`. `hyper` may hold `learning_rate` and `discount`, traced."""
    agent = on_policy.make(config.agent, *vectors_and_actions(task, "ppo"), on_policy.adam())

    def init(key: Key, hyper: Hyper, data: Transition | None = None) -> State:
        shared.no_data(data, "ppo", on_policy=True)
        agent_key, key = jax.random.split(key)
        return State(agent.init(agent_key, hyper, config.num_envs), key)

    def policy(state: State, clock: Clock, explore: bool) -> Policy:
        return agent.policy(state.agent, explore)

    def learn(clock: Clock, state: State, transitions: Transition) -> tuple[State, Metrics]:
        key, update_key = jax.random.split(state.key)
        scale = config.learning_scale(clock)
        learner = agent.measure_returns(state.agent, transitions)
        learner, found = on_policy.update(agent, config.agent, learner, transitions, update_key, scale=scale)
        return State(agent.measure_observations(learner, transitions), key), found

    return Algorithm(
        init, policy, learn, period=config.collect_steps, views=lambda state: agent.views(state.agent), on_policy=True
    )


METHOD = Method(
    make,
    Config,
    family="on_policy",
    paper="1707.06347",
    summary="proximal policy optimisation: several epochs of a clipped objective",
    takes=("continuous actions", "discrete actions"),
    tiny={
        "agent.hidden": (16, 16),
        "agent.epochs": 2,
        "agent.minibatches": 5,
        "agent.target_divergence": 0.5,
        "num_envs": 1,
        "collect_steps": 25,
        "epoch_steps": 100,
        "anneal_steps": 1000,
    },
    goals=(
        Goal("ppo-pendulum", "pendulum", 100_000, -170.0, seeds=8, seeds_at_goal=8),
        Goal("ppo-pendulum-2000", "pendulum", 2000, -170.0, seeds_at_goal=0, about="its preset, for comparison"),
        Goal("ppo-pendulum-4000", "pendulum", 4000, -170.0, seeds_at_goal=0, about="its preset, for comparison"),
        Goal("ppo-cartpole", "cartpole-continuous", 25_000, 200.0, seeds=8, seeds_at_goal=8),
        Goal("ppo-cartpole-v1", "CartPole-v1", 50_000, 500.0, seeds=8, seeds_at_goal=8),
        Goal("ppo-hopper", "Hopper-v5", 999_424, 0.0, seeds_at_goal=0),
        Goal(
            "ppo-many-cartpole",
            "cartpole-continuous",
            819_200,
            200.0,
            seeds=2,
            seeds_at_goal=0,
            preset="many-environments",
            settings={"epoch_steps": 102_400, "eval_every": 1},
            about="preset `many-environments`",
        ),
        Goal(
            "ppo-many-pendulum",
            "pendulum",
            2_048_000,
            -170.0,
            seeds=2,
            seeds_at_goal=0,
            preset="many-environments",
            settings={"epoch_steps": 204_800, "eval_every": 1},
            about="preset `many-environments`",
        ),
    ),
)
