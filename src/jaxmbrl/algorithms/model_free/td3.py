"""TD3 (Fujimoto et al., arXiv 1802.09477) and DDPG (Lillicrap et al., arXiv 1509.02971), deterministic policy gradients.
The agent is `agents.actor_critic.td3`, which states the objectives.

for each environment step:
    act by the policy with noise (uniformly at random for the first `warmup_steps`), store the transition
    `updates_per_step` times: update the critics on a batch from the replay buffer and demonstrations (`data.experience`);
        at every `actor_delay`-th update, counted across steps, also update the actor, on the same batch, and all targets

DDPG: one critic, no noise in its target, and no delay. DDPGfD (Vecerik et al., arXiv 1707.08817), DDPG from
demonstrations, is its preset `ddpgfd`.

Differs from the papers: the settings are those of the current code of TD3's authors, which differs from both papers; with
several parallel environments, `updates_per_step` counts for the step of each.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, NamedTuple

import jax
from annotated_types import Ge

from jaxmbrl.agents import count_bonus
from jaxmbrl.agents.actor_critic import td3
from jaxmbrl.agents.actor_critic.target_error import with_target_error
from jaxmbrl.agents.actor_critic.td3 import TD3Config
from jaxmbrl.agents.count_bonus import CountBonusConfig, Counts
from jaxmbrl.agents.normalization import NormalizationSettings, normalized
from jaxmbrl.algorithms.registry import TINY_RUN, Goal, Method
from jaxmbrl.algorithms.shared import ReplaySettings, collector, critic_view, learn_from_experience, new_experience
from jaxmbrl.core.keys import beside
from jaxmbrl.core.types import (
    ActorCritic,
    Algorithm,
    Clock,
    Hyper,
    Key,
    Metrics,
    Policy,
    PyTree,
    Task,
    Transition,
    Views,
    flatten,
)
from jaxmbrl.data.experience import Experience
from jaxmbrl.envs.base import vector_sizes
from jaxmbrl.models.normalizer import Normalizer


@dataclass(frozen=True)
class Config(ReplaySettings, NormalizationSettings):
    """Settings of a run of TD3 or DDPG."""

    agent: TD3Config = field(default_factory=TD3Config)
    """The policy learner."""
    target_error: bool = False
    """Whether rows are weighted by a learned error of their targets (DisCor, `agents.actor_critic.target_error`)."""
    count_bonus: CountBonusConfig = field(default_factory=CountBonusConfig)
    """Exploration bonus of states that were seldom visited."""
    actor_delay: Annotated[int, Ge(1)] = 2
    """Critic updates for each update of the actor and of all targets."""
    warmup_steps: Annotated[int, Ge(0)] = 25_000
    """Environment steps of uniformly random actions, without updates, at the start."""


class State(NamedTuple):
    """The whole state of a run."""

    agent: PyTree
    experience: Experience
    counts: Counts | None
    """Of the exploration bonus, if there is one."""
    key: Key


def make(config: Config, task: Task, name: str = "td3") -> Algorithm:
    """TD3 or DDPG on `task`, depending on the settings; `name` is for errors."""
    sizes = vector_sizes(task, name)

    def agent_with(normalizer: Normalizer | None) -> ActorCritic:
        made, of = td3.make(config.agent, *sizes, normalizer), config.agent
        if not config.target_error:
            return made
        return with_target_error(made, *sizes, of.hidden, of.learning_rate, of.polyak, normalizer)

    agent, earned, seen = normalized(config, config.num_envs, task.observation, agent_with)

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
            config, learner, earned(state.agent, transitions), state.experience, clock, transitions, update_key
        )
        return State(seen(agent_state, transitions), experience, counts, key), found

    def views(state: State) -> Views:
        return Views(state.experience.own, critic=critic_view(agent, state.agent))

    return Algorithm(init, policy, learn, period=1, views=views)


METHOD = Method(
    make,
    Config,
    family="model_free",
    paper="1802.09477",
    summary="deterministic policy gradient with twin critics, a delayed actor and smoothed targets",
    tiny={**TINY_RUN, "agent.hidden": (16, 16)},
    goals=(
        Goal("td3-pendulum", "pendulum", 5000, -170.0),
        Goal(
            "td3-pendulum-prioritized",
            "pendulum",
            5000,
            -170.0,
            settings={"replay.kind": "prioritized", "replay.beta_steps": 5000, "n_step": 3},
            about="prioritised replay, 3-step targets",
        ),
        Goal(
            "td3-pendulum-target-error",
            "pendulum",
            5000,
            -170.0,
            settings={"target_error": True},
            about="rows weighted by the error of their targets",
        ),
        Goal(
            "td3-normalised-pendulum",
            "pendulum",
            5000,
            -170.0,
            settings={"normalize_observations": True},
            about="normalised observations",
        ),
        Goal(
            "td3-normalised-rewards-pendulum",
            "pendulum",
            5000,
            -170.0,
            seeds_at_goal=0,
            settings={"normalize_observations": True, "normalize_rewards": True},
            about="normalised observations and rewards",
        ),
    ),
)
DDPG = Method(
    partial(make, name="ddpg"),
    Config,
    family="model_free",
    paper="1509.02971",
    summary="deep deterministic policy gradient: one critic and a deterministic actor",
    tiny={
        **TINY_RUN,
        "agent.hidden": (16, 16),
        "updates_per_step": 2,
        "n_step": 3,
        "replay.kind": "prioritized",
        "target_error": True,
    },
    goals=(Goal("ddpg-pendulum", "pendulum", 5000, -170.0),),
)
