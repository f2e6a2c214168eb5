"""QT-Opt (Kalashnikov et al., arXiv 1806.10293): Q-learning for continuous actions without an actor. The cross-entropy
method maximises Q over actions. The agent is `agents.qt_opt`, which states the objectives.

for each environment step:
    act by a search on the first critic, with noise (uniformly at random for the first `warmup_steps`), store the transition
    `updates_per_step` times: sample a batch from the replay buffer, and update the critics
        a* = the action that the search finds for each next observation, on the first target critic
        y = r + discount (1 - terminated) min of the target critics at (s', a*)
        move the target critics by Polyak averaging

Differs from the paper: one process collects and learns in turn, with the settings of other off-policy methods here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import jax

from jaxmbrl.agents import count_bonus, qt_opt
from jaxmbrl.agents.count_bonus import CountBonusConfig, Counts
from jaxmbrl.agents.greedy import QState
from jaxmbrl.agents.qt_opt import QTOptConfig
from jaxmbrl.algorithms.registry import TINY_RUN, Goal, Method
from jaxmbrl.algorithms.shared import OffPolicySettings, collector, critic_view, new_replay, update_agent
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
from jaxmbrl.data import replay
from jaxmbrl.data.replay import Replay
from jaxmbrl.envs.base import vector_sizes


@dataclass(frozen=True)
class Config(OffPolicySettings):
    """Settings of a run of QT-Opt."""

    agent: QTOptConfig = field(default_factory=QTOptConfig)
    """The value learner."""
    count_bonus: CountBonusConfig = field(default_factory=CountBonusConfig)
    """Exploration bonus of states that were seldom visited."""


class State(NamedTuple):
    """The whole state of a run."""

    agent: QState
    replay: Replay
    counts: Counts | None
    """Of the exploration bonus, if there is one."""
    key: Key


def make(config: Config, task: Task) -> Algorithm:
    """QT-Opt on `task`."""
    agent = qt_opt.make(config.agent, *vector_sizes(task, "qt-opt"))

    def init(key: Key, hyper: Hyper, data: Transition | None = None) -> State:
        agent_key, key = jax.random.split(key)
        counts = count_bonus.init(config.count_bonus, task.observation, jax.random.fold_in(agent_key, 1))
        buffer = new_replay(row_like(task), config.replay_capacity, data)
        return State(agent.init(agent_key, hyper), buffer, counts, key)

    def policy(state: State, clock: Clock, explore: bool) -> Policy:
        acting = agent.policy(state.agent, explore)
        return collector(acting, task, config, clock) if explore else acting

    def learn(clock: Clock, state: State, transitions: Transition) -> tuple[State, Metrics]:
        key, update_key = jax.random.split(state.key)
        rows = flatten(transitions)
        buffer, counts = replay.add(state.replay, rows), count_bonus.add(state.counts, task.observation, rows.observation)
        learner = count_bonus.rewarded(agent, counts, config.count_bonus, task.observation)

        def draw(key: Key) -> Transition:
            return replay.sample(buffer, key, config.batch_size)

        agent_state, found = update_agent(config, learner, state.agent, clock, draw, update_key)
        return State(agent_state, buffer, counts, key), found

    def views(state: State) -> Views:
        return Views(state.replay, critic=critic_view(agent, state.agent))

    return Algorithm(init, policy, learn, period=1, views=views)


METHOD = Method(
    make,
    Config,
    family="model_free",
    paper="1806.10293",
    summary="Q-learning for continuous actions, with a search by the cross-entropy method in place of an actor",
    tiny={**TINY_RUN, "agent.hidden": (16, 16), "agent.samples": 8, "agent.elites": 2},
    goals=(Goal("qt-opt-pendulum", "pendulum", 10_000, -200.0),),
)
