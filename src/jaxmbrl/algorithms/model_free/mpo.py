"""MPO: maximum a posteriori policy optimisation (Abdolmaleki et al., arXiv 1806.06920 and 1812.02256). The agent is
`agents.actor_critic.mpo`, which states the objectives.

for each environment step:
    act by a sample of the target policy (uniformly at random for the first `warmup_steps`), store the transition
    at every `train_every`-th step, `updates_per_step` times, on a batch from the replay buffer:
        update the critics by the n-step target
            y = sum_{i < m} discount^i r_i + discount^m (1 - terminated) V(s_m),  m <= `n_step` (`data.n_step`)
        E-step: sample actions of the target policy, and weight them by their values at the temperature eta
        M-step: fit the policy to the weighted actions within bounds of the KL divergence
        step of the duals: eta and the multipliers
        after every `agent.copy_every`-th update, copy actor and critics to their targets

Differs from the papers: the critic's target is that of n steps instead of Retrace. With several parallel environments, each
has its own step, and there are `updates_per_step` updates for the step of each.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, NamedTuple

import jax
from annotated_types import Ge

from jaxmbrl.agents.actor_critic import mpo
from jaxmbrl.agents.actor_critic.mpo import MPOConfig, MPOState
from jaxmbrl.algorithms.registry import TINY_RUN, Goal, Method
from jaxmbrl.algorithms.shared import ReplaySettings, collector, critic_view, learn_from_experience, new_experience
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
)
from jaxmbrl.data.experience import Experience
from jaxmbrl.envs.base import vector_sizes


@dataclass(frozen=True)
class Config(ReplaySettings):
    """Settings of a run of MPO."""

    agent: MPOConfig = field(default_factory=MPOConfig)
    """The policy learner."""
    n_step: Annotated[int, Ge(1)] = 5
    """Steps of the critic's target before it bootstraps."""
    train_every: Annotated[int, Ge(1)] = 8
    """Steps of each environment between updates; there are `updates_per_step` updates then."""


class State(NamedTuple):
    """The whole state of a run."""

    agent: MPOState
    experience: Experience
    key: Key


def make(config: Config, task: Task) -> Algorithm:
    """MPO on `task`."""
    agent = mpo.make(config.agent, *vector_sizes(task, "mpo"))

    def init(key: Key, hyper: Hyper, data: Transition | None = None) -> State:
        agent_key, key = jax.random.split(key)
        return State(agent.init(agent_key, hyper), new_experience(config, task, data), key)

    def policy(state: State, clock: Clock, explore: bool) -> Policy:
        acting = agent.policy(state.agent, explore)
        return collector(acting, task, config, clock) if explore else acting

    def learn(clock: Clock, state: State, transitions: Transition) -> tuple[State, Metrics]:
        key, update_key = jax.random.split(state.key)
        agent_state, experience, found = learn_from_experience(
            config, agent, state.agent, state.experience, clock, transitions, update_key
        )
        return State(agent_state, experience, key), found

    def views(state: State) -> Views:
        return Views(state.experience.own, critic=critic_view(agent, state.agent))

    return Algorithm(init, policy, learn, period=config.train_every, views=views)


METHOD = Method(
    make,
    Config,
    family="model_free",
    paper="1806.06920",
    summary="maximum a posteriori policy optimisation: a policy fitted to weighted actions, within KL bounds",
    tiny={
        **TINY_RUN,
        "agent.hidden": (16, 16),
        "agent.critic_hidden": (16, 16),
        "agent.samples": 5,
        "agent.copy_every": 20,
        "n_step": 3,
        "train_every": 2,
    },
    goals=(Goal("mpo-pendulum", "pendulum", 20_000, -200.0, seeds_at_goal=3),),
)
