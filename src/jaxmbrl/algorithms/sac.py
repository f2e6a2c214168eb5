"""Soft Actor-Critic (Haarnoja et al., arXiv 1812.05905): the model-free baseline. The agent is `agents.sac`.

for each environment step:
    act by the stochastic policy (uniformly at random for the first `warmup_steps`), store the transition
    `updates_per_step` times: update critics, actor and temperature on a batch drawn from the replay buffer
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, NamedTuple

import jax
from annotated_types import Ge

from jaxmbrl import metrics, replay
from jaxmbrl.agents import sac
from jaxmbrl.agents.sac import SACConfig, SACState
from jaxmbrl.agents.updates import updates
from jaxmbrl.envs.base import vector_sizes
from jaxmbrl.presets import Preset
from jaxmbrl.replay import Replay
from jaxmbrl.types import Algorithm, Clock, Hyper, Key, Metrics, Policy, Task, Transition, flatten, row_like


@dataclass(frozen=True)
class Config:
    """Settings of a run of SAC."""

    agent: SACConfig = field(default_factory=SACConfig)
    """The policy learner."""
    batch_size: Annotated[int, Ge(1)] = 256
    """Transitions in each update."""
    updates_per_step: Annotated[int, Ge(1)] = 1
    """Updates for each environment step."""
    replay_capacity: Annotated[int, Ge(1)] = 1_000_000
    """Transitions kept, the oldest giving way."""
    warmup_steps: Annotated[int, Ge(0)] = 5000
    """Environment steps of uniformly random actions, without updates, at the start."""
    num_envs: Annotated[int, Ge(1)] = 1
    """Environments that each seed steps side by side."""
    epoch_steps: Annotated[int, Ge(1)] = 1000
    """Environment steps between two rows of metrics."""
    eval_every: Annotated[int, Ge(0)] = 10
    """Epochs between two evaluations; 0 for none."""


class State(NamedTuple):
    """Everything that a run of SAC holds."""

    agent: SACState
    replay: Replay
    key: Key


def make(config: Config, task: Task) -> Algorithm:
    """SAC on `task`."""
    agent = sac.make(config.agent, *vector_sizes(task, "sac"))

    def init(key: Key, hyper: Hyper) -> State:
        agent_key, key = jax.random.split(key)
        return State(agent.init(agent_key, hyper), replay.init(row_like(task), config.replay_capacity), key)

    def policy(state: State, explore: bool) -> Policy:
        return agent.policy(state.agent, explore)

    def learn(clock: Clock, state: State, transitions: Transition) -> tuple[State, Metrics]:
        key, update_key = jax.random.split(state.key)
        buffer = replay.add(state.replay, flatten(transitions))

        def draw(key: Key) -> Transition:
            return replay.sample(buffer, key, config.batch_size)

        agent_state, found = metrics.when(
            clock.env_steps >= config.warmup_steps,
            lambda agent_state: updates(agent, agent_state, draw, update_key, config.updates_per_step * config.num_envs),
            state.agent,
        )
        return State(agent_state, buffer, key), found

    return Algorithm(init, policy, learn, period=1)


PRESETS = {
    "default": Preset(
        Config(),
        "2 x 256, Adam 3e-4, batch 256, polyak 0.005, discount 0.99, target entropy -A: arXiv 1812.05905, appendix D;"
        " 5,000 random steps: jannerm/mbpo",
        steps=100_000,
    ),
    "pendulum": Preset(
        Config(warmup_steps=1000, replay_capacity=100_000),
        "as default, with fewer random steps and a smaller buffer for a task learned in 20,000 steps",
        steps=20_000,
        tasks=("pendulum", "cartpole-continuous"),
    ),
}
