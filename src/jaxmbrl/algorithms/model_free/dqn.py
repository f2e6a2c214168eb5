"""DQN (Mnih et al., Nature 518, 2015, and arXiv 1312.5602): deep Q-learning for discrete actions, with double DQN (van
Hasselt et al., arXiv 1509.06461), the dueling network (Wang et al., arXiv 1511.06581) and n-step targets as settings. The
agent is `agents.q_learning`, which states the objectives.

for each environment step:
    act uniformly at random with probability epsilon (always for the first `warmup_steps`), else greedily
    store the transition
    at every `train_every`-th step: sample a batch from the replay buffer, and update the network
        y = sum_{i < m} discount^i r_i + discount^m (1 - terminated) V(s_m),  m <= `n_step` (`data.n_step`)
        move the target network by Polyak averaging, or copy it at every `copy_every`-th environment step

Epsilon falls linearly from `epsilon_first` to `agent.epsilon` within the first `epsilon_steps` environment steps.

Differs from the papers: the default is double DQN. Rewards are not clipped, and the target network moves by Polyak
averaging unless `copy_every` is set. Windows of n steps are sampled from the buffer, also those that began before a
time limit. With several parallel environments, each has its own step, and there is an update for the step of each;
`copy_every` counts the steps of all.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, NamedTuple

import jax
from annotated_types import Ge, Le

from jaxmbrl.agents import q_learning
from jaxmbrl.agents.actor_critic.updates import with_updates
from jaxmbrl.agents.exploration import linear, with_epsilon
from jaxmbrl.agents.normalization import NormalizationSettings, NormalizedState, inside, normalized
from jaxmbrl.agents.q_learning import QLearningConfig, QState
from jaxmbrl.algorithms.registry import TINY_RUN, Goal, Method
from jaxmbrl.algorithms.shared import OffPolicySettings, collector, critic_view, new_replay, passes, update_agent
from jaxmbrl.core import metrics
from jaxmbrl.core.config import UserError
from jaxmbrl.core.types import (
    Algorithm,
    Clock,
    Hyper,
    Key,
    Metrics,
    Policy,
    Task,
    Transition,
    Views,
    flatten,
    row_like,
)
from jaxmbrl.data import n_step, replay
from jaxmbrl.data.n_step import NStep
from jaxmbrl.data.replay import Replay
from jaxmbrl.envs.base import number_of_actions


@dataclass(frozen=True)
class Config(OffPolicySettings, NormalizationSettings):
    """Settings of a run of DQN."""

    agent: QLearningConfig = field(default_factory=QLearningConfig)
    """The value learner: double, dueling, network and optimiser."""
    n_step: Annotated[int, Ge(1)] = 1
    """Steps of the target's return before it bootstraps."""
    train_every: Annotated[int, Ge(1)] = 1
    """Steps of each environment between updates; there are `updates_per_step` updates then."""
    copy_every: Annotated[int, Ge(0)] = 0
    """Environment steps between two copies of the network to the target network; `agent.polyak` has no effect then. 0 for
    Polyak averaging at each update."""
    epsilon_first: Annotated[float, Ge(0), Le(1)] = 1.0
    """Probability of a random action at the start. It falls linearly to `agent.epsilon`."""
    epsilon_steps: Annotated[int, Ge(1)] = 10_000
    """Environment steps within which it falls."""


class State(NamedTuple):
    """The whole state of a run."""

    agent: QState | NormalizedState
    replay: Replay
    key: Key


def make(config: Config, task: Task) -> Algorithm:
    """DQN on `task`, with the extensions that the settings choose."""
    space, actions = task.observation, number_of_actions(task, "dqn")
    agent, measure = normalized(
        config, config.num_envs, space, lambda normalizer: q_learning.make(config.agent, space, actions, normalizer)
    )
    learner = with_updates(agent, actor=lambda state, batch, key: (state, {})) if config.copy_every else agent
    steps_per_call = config.train_every * config.num_envs

    def init(key: Key, hyper: Hyper, data: Transition | None = None) -> State:
        if data is not None and config.n_step > 1 and config.num_envs > 1:
            raise UserError("num_envs must be 1 with initial transitions and n_step above 1: their rows are those of one")
        agent_key, key = jax.random.split(key)
        buffer = new_replay(row_like(task), config.replay_capacity, data)
        # The first step of the run does not continue the last row of the data.
        buffer = buffer if data is None else buffer.interrupted(1)
        return State(agent.init(agent_key, hyper), buffer, key)

    def policy(state: State, clock: Clock, explore: bool) -> Policy:
        acting = agent.policy(state.agent, False)
        if not explore:
            return acting
        epsilon = linear(config.epsilon_first, config.agent.epsilon, config.epsilon_steps, clock.env_steps)
        return collector(with_epsilon(acting, task.action, epsilon), task, config, clock)

    def learn(clock: Clock, state: State, transitions: Transition) -> tuple[State, Metrics]:
        key, update_key = jax.random.split(state.key)
        buffer = replay.add(state.replay, flatten(transitions))

        def draw(key: Key) -> NStep:
            return n_step.sample(
                buffer, key, config.batch_size, config.n_step, state.agent.discount, stride=config.num_envs
            )

        agent_state, found = update_agent(config, learner, state.agent, clock, draw, update_key, period=config.train_every)
        if config.copy_every:
            due = passes(clock, config.copy_every, steps_per_call)
            copied = partial(inside, q_learning.copy_target)
            agent_state, _ = metrics.cond_update(due, lambda state: (copied(state), {}), agent_state)
        return State(measure(agent_state, transitions), buffer, key), found

    def views(state: State) -> Views:
        return Views(state.replay, critic=critic_view(agent, state.agent))

    return Algorithm(init, policy, learn, period=config.train_every, views=views)


METHOD = Method(
    make,
    Config,
    family="model_free",
    paper="1312.5602",
    summary="deep Q-learning: double DQN, with dueling networks and n-step targets as settings",
    takes=("discrete actions", "tables"),
    tiny={**TINY_RUN, "agent.hidden": (16, 16), "agent.dueling": True, "n_step": 3, "train_every": 2, "copy_every": 100},
    goals=(
        Goal("dqn-catch", "bsuite/Catch", 6000, 1.0, seeds=8, seeds_at_goal=8, about="double DQN"),
        Goal(
            "dqn-cartpole",
            "CartPole-v1",
            30_000,
            200.0,
            seeds=8,
            seeds_at_goal=6,
            settings={"agent.double": False},
            about="DQN",
            best=True,
        ),
        Goal("dqn-cartpole-double", "CartPole-v1", 30_000, 200.0, seeds=8, seeds_at_goal=6, about="double DQN", best=True),
        Goal(
            "dqn-cartpole-3-step",
            "CartPole-v1",
            30_000,
            200.0,
            seeds=8,
            seeds_at_goal=6,
            settings={"n_step": 3},
            about="double DQN, 3-step targets",
            best=True,
        ),
        Goal(
            "dqn-normalised-cartpole",
            "CartPole-v1",
            30_000,
            200.0,
            seeds_at_goal=3,
            settings={"normalize_observations": True, "normalize_rewards": True},
            about="double DQN, normalised observations and rewards",
            best=True,
        ),
        Goal("dqn-deep-sea", "bsuite/DeepSea/8", 10_000, 0.9, seeds=8, seeds_at_goal=0, about="double DQN"),
    ),
)
