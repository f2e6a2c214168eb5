"""NAF, normalised advantage functions (Gu et al., arXiv 1603.00748): Q-learning for continuous actions without an actor. Q
is quadratic in the action. The agent is `agents.naf`, which states the objectives.

for each environment step:
    act by mu(s) with noise (uniformly at random for the first `warmup_steps`), store the transition
    `updates_per_step` times: sample a batch from the replay buffer, and update the network
        y = r + discount (1 - terminated) V'(s')
        move the target network by Polyak averaging

The paper's acceleration by imagination rollouts is `mbpo` with the learner NAF.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import jax

from jaxmbrl.agents import count_bonus, naf
from jaxmbrl.agents.count_bonus import CountBonusConfig, Counts
from jaxmbrl.agents.greedy import QState
from jaxmbrl.agents.naf import NAFConfig
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
    """Settings of a run of NAF."""

    agent: NAFConfig = field(default_factory=NAFConfig)
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
    """NAF on `task`."""
    agent = naf.make(config.agent, *vector_sizes(task, "naf"))

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
    paper="1603.00748",
    summary="Q-learning for continuous actions, with values that are quadratic in the action",
    tiny={**TINY_RUN, "agent.hidden": (16, 16)},
    goals=(Goal("naf-pendulum", "pendulum", 10_000, -250.0),),
)
