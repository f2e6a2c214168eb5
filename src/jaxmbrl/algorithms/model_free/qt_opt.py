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
from jaxmbrl.algorithms.shared import ReplaySettings, collector, critic_view, learn_from_experience, new_experience
from jaxmbrl.core.keys import beside
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
)
from jaxmbrl.data.experience import Experience
from jaxmbrl.envs.base import vector_sizes


@dataclass(frozen=True)
class Config(ReplaySettings):
    """Settings of a run of QT-Opt."""

    agent: QTOptConfig = field(default_factory=QTOptConfig)
    """The value learner."""
    count_bonus: CountBonusConfig = field(default_factory=CountBonusConfig)
    """Exploration bonus of states that were seldom visited."""


class State(NamedTuple):
    """The whole state of a run."""

    agent: QState
    experience: Experience
    counts: Counts | None
    """Of the exploration bonus, if there is one."""
    key: Key


def make(config: Config, task: Task) -> Algorithm:
    """QT-Opt on `task`."""
    agent = qt_opt.make(config.agent, *vector_sizes(task, "qt-opt"))

    def init(key: Key, hyper: Hyper, data: Transition | None = None) -> State:
        agent_key, key = jax.random.split(key)
        counts = count_bonus.init(config.count_bonus, task.observation, beside(agent_key, 2))
        return State(agent.init(agent_key, hyper), new_experience(config, task, data), counts, key)

    def policy(state: State, clock: Clock, explore: bool) -> Policy:
        acting = agent.policy(state.agent, explore)
        return collector(acting, task, config, clock) if explore else acting

    def learn(clock: Clock, state: State, transitions: Transition) -> tuple[State, Metrics]:
        key, update_key = jax.random.split(state.key)
        counts = count_bonus.add(state.counts, task.observation, flatten(transitions).observation)
        learner = count_bonus.rewarded(agent, counts, config.count_bonus, task.observation)
        agent_state, experience, found = learn_from_experience(
            config, learner, state.agent, state.experience, clock, transitions, update_key
        )
        return State(agent_state, experience, counts, key), found

    def views(state: State) -> Views:
        return Views(state.experience.own, critic=critic_view(agent, state.agent))

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
