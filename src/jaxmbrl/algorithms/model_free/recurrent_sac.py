"""Recurrent Soft Actor-Critic for partial observation (Ni et al., arXiv 2110.05038, on Haarnoja et al., arXiv 1812.05905):
actor and critics depend on the history of the episode. The agent is `agents.actor_critic.recurrent_sac`, which states the
objectives.

for each environment step:
    act by the stochastic policy with memory (uniformly at random for the first `warmup_steps`), store the transition
    at every `train_every`-th step, `updates_per_step` times:
        sample `batch_size` windows of `sequence_length` consecutive rows, which may contain ends of episodes
        compute the summaries of the history from the start of each window, anew after the end of an episode
        update the critics, then the actor and the temperature, on all rows after the first `agent.burn_in`

Differs from the papers: with several parallel environments, `updates_per_step` counts for the step of each.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, NamedTuple

import jax
from annotated_types import Ge

from jaxmbrl.agents.actor_critic import recurrent_sac
from jaxmbrl.agents.actor_critic.recurrent_sac import RecurrentSACConfig
from jaxmbrl.agents.actor_critic.sac import SACState
from jaxmbrl.algorithms.registry import TINY_RUN, Goal, Method
from jaxmbrl.algorithms.shared import OffPolicySettings, Windowed, collector, new_sequences, update_agent
from jaxmbrl.core.types import Algorithm, Clock, Hyper, Key, Metrics, Policy, Task, Transition, Views
from jaxmbrl.data import sequences
from jaxmbrl.data.sequences import Sequences
from jaxmbrl.envs.base import vector_sizes


@dataclass(frozen=True)
class Config(Windowed, OffPolicySettings):
    """Settings of a run of recurrent SAC."""

    agent: RecurrentSACConfig = field(default_factory=RecurrentSACConfig)
    """The policy learner."""
    sequence_length: Annotated[int, Ge(1)] = 64
    """Consecutive rows of a window, the burn-in included."""
    batch_size: Annotated[int, Ge(1)] = 32
    """Windows in each update."""
    train_every: Annotated[int, Ge(1)] = 1
    """Steps of each environment between updates; there are `updates_per_step` updates then."""

    def problem(self) -> tuple[str, str] | None:
        """(field, message) of the first violated rule that involves several fields, or None."""
        if self.agent.burn_in >= self.sequence_length:
            return "agent.burn_in", f"must be below sequence_length ({self.sequence_length}), got {self.agent.burn_in}"
        return super().problem()


class State(NamedTuple):
    """The whole state of a run."""

    agent: SACState
    replay: Sequences
    key: Key


def make(config: Config, task: Task) -> Algorithm:
    """Recurrent SAC on `task`."""
    agent = recurrent_sac.make(config.agent, *vector_sizes(task, "recurrent-sac"))

    def init(key: Key, hyper: Hyper, data: Transition | None = None) -> State:
        agent_key, key = jax.random.split(key)
        return State(agent.init(agent_key, hyper), new_sequences(config, task, data), key)

    def policy(state: State, clock: Clock, explore: bool) -> Policy:
        acting = agent.policy(state.agent, explore)
        return collector(acting, task, config, clock) if explore else acting

    def learn(clock: Clock, state: State, transitions: Transition) -> tuple[State, Metrics]:
        key, update_key = jax.random.split(state.key)
        buffer = sequences.add(state.replay, transitions)

        def draw(key: Key) -> Transition:
            rows, is_first, _ = sequences.sample(buffer, key, config.batch_size, config.sequence_length)
            return recurrent_sac.batch_of(config.agent, rows, is_first)

        agent_state, found = update_agent(config, agent, state.agent, clock, draw, update_key, period=config.train_every)
        return State(agent_state, buffer, key), found

    def views(state: State) -> Views:
        # A critic needs the history, which stored rows do not have.
        return Views(state.replay)

    return Algorithm(init, policy, learn, period=config.train_every, views=views)


METHOD = Method(
    make,
    Config,
    family="model_free",
    paper="2110.05038",
    summary="soft actor-critic whose actor and critics have a memory, for partial observation",
    tiny={
        **TINY_RUN,
        "agent.hidden": (16, 16),
        "agent.units": 8,
        "agent.burn_in": 2,
        "sequence_length": 6,
        "batch_size": 8,
        "train_every": 2,
    },
    goals=(
        Goal(
            "recurrent-sac-masked-pendulum",
            "masked/pendulum",
            30_000,
            -300.0,
            seeds_at_goal=3,
            about="gated recurrent units",
        ),
    ),
)
