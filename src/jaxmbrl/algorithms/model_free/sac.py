"""Soft Actor-Critic (Haarnoja et al., arXiv 1812.05905), the model-free baseline, and REDQ and DroQ, settings of it that
learn from fewer environment steps. The agent is `agents.actor_critic.sac`, which states the objectives.

for each environment step:
    act by the stochastic policy (uniformly at random for the first `warmup_steps`), store the transition
    `updates_per_step` times: update the critics on a batch drawn from the replay buffer;
        at every `actor_delay`-th of these updates then the actor and the temperature, on the same batch

REDQ (Chen et al., arXiv 2101.05982, algorithm 1): 20 updates a step and the actor's on the last of them; 10 critics, of
which a random two make a target's minimum; the actor maximises the mean of all. DroQ (Hiraoka et al., arXiv 2110.02034,
algorithm 2): the same with two critics, which have dropout and layer norm.

Differs from the papers: of several environments side by side each adds its own updates.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import NamedTuple

import jax

from jaxmbrl.agents.actor_critic import sac
from jaxmbrl.agents.actor_critic.sac import SACConfig
from jaxmbrl.algorithms.presets import Preset
from jaxmbrl.algorithms.shared import OffPolicySettings, collector, critic_view, new_replay, update_agent
from jaxmbrl.core.types import (
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
    row_like,
)
from jaxmbrl.data import replay
from jaxmbrl.data.replay import Replay
from jaxmbrl.envs.base import vector_sizes


@dataclass(frozen=True)
class Config(OffPolicySettings):
    """Settings of a run of SAC, REDQ or DroQ."""

    agent: SACConfig = field(default_factory=SACConfig)
    """The policy learner."""


class State(NamedTuple):
    """The whole state of a run."""

    agent: PyTree
    replay: Replay
    key: Key


def make(config: Config, task: Task) -> Algorithm:
    """SAC, REDQ or DroQ on `task`, as the settings say."""
    agent = sac.make(config.agent, *vector_sizes(task, "sac"))

    def init(key: Key, hyper: Hyper, data: Transition | None = None) -> State:
        agent_key, key = jax.random.split(key)
        return State(agent.init(agent_key, hyper), new_replay(row_like(task), config.replay_capacity, data), key)

    def policy(state: State, clock: Clock, explore: bool) -> Policy:
        acting = agent.policy(state.agent, explore)
        return collector(acting, task, config, clock) if explore else acting

    def learn(clock: Clock, state: State, transitions: Transition) -> tuple[State, Metrics]:
        key, update_key = jax.random.split(state.key)
        buffer = replay.add(state.replay, flatten(transitions))

        def draw(key: Key) -> Transition:
            return replay.sample(buffer, key, config.batch_size)

        agent_state, found = update_agent(config, agent, state.agent, clock, draw, update_key)
        return State(agent_state, buffer, key), found

    def views(state: State) -> Views:
        return Views(state.replay, critic=critic_view(agent, state.agent))

    return Algorithm(init, policy, learn, period=1, views=views)


_SMALL = ("pendulum", "cartpole-continuous")

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
        tasks=_SMALL,
    ),
}

REDQ = Config(
    agent=SACConfig(critics=10, critic_subset=2, actor_value="mean"), updates_per_step=20, actor_delay=20, warmup_steps=5000
)
"""arXiv 2101.05982 where its tasks do not differ."""
DROQ = replace(REDQ, agent=SACConfig(dropout=0.01, layer_norm=True, actor_value="mean"))
"""arXiv 2110.02034 where its tasks do not differ; the dropout is that of its code for all tasks."""


def _small(config: Config, critics: int) -> Config:
    agent = replace(config.agent, hidden=(64, 64), critics=critics, learning_rate=1e-3)
    return replace(
        config,
        agent=agent,
        batch_size=128,
        updates_per_step=10,
        actor_delay=10,
        replay_capacity=20_000,
        warmup_steps=200,
        epoch_steps=200,
    )


class _Published(NamedTuple):
    """What differs between the tasks of the papers."""

    tasks: tuple[str, ...]
    target_entropy: float
    dropout: float
    steps: int


_TASKS = {
    "hopper": _Published(("Hopper-v5",), -1.0, 0.0001, 125_000),
    "halfcheetah": _Published(("HalfCheetah-v5",), -3.0, 0.01, 400_000),
    "walker2d": _Published(("Walker2d-v5",), -3.0, 0.005, 300_000),
    "ant": _Published(("Ant-v5", "Ant-v5/truncated"), -4.0, 0.01, 300_000),
    "humanoid": _Published(("Humanoid-v5", "Humanoid-v5/truncated"), -2.0, 0.1, 300_000),
}

_REDQ_SOURCE = "arXiv 2101.05982; watchernyu/REDQ: redq/algos/redq_sac.py, redq/algos/core.py"
_DROQ_SOURCE = "arXiv 2110.02034; its code on REDQ's: OriginalREDQCodebase, README.md"

REDQ_PRESETS = {
    "default": Preset(REDQ, f"{_REDQ_SOURCE}; target entropy -A", steps=100_000),
    "pendulum": Preset(
        _small(REDQ, critics=5),
        "our own, sized for a CPU: 5 critics of 2 x 64, 10 updates a step",
        steps=3000,
        tasks=_SMALL,
    ),
    **{
        f"paper-{name}": Preset(
            replace(REDQ, agent=replace(REDQ.agent, target_entropy=of.target_entropy)), _REDQ_SOURCE, of.steps, of.tasks
        )
        for name, of in _TASKS.items()
    },
}
DROQ_PRESETS = {
    "default": Preset(DROQ, f"{_DROQ_SOURCE}; dropout of its KUCodebase, target entropy -A", steps=100_000),
    "pendulum": Preset(
        _small(DROQ, critics=2),
        "our own, sized for a CPU: critics of 2 x 64, 10 updates a step",
        steps=3000,
        tasks=_SMALL,
    ),
    **{
        f"paper-{name}": Preset(
            replace(DROQ, agent=replace(DROQ.agent, target_entropy=of.target_entropy, dropout=of.dropout)),
            _DROQ_SOURCE + ("; not a task of the paper: dropout of its KUCodebase" if name == "halfcheetah" else ""),
            of.steps,
            of.tasks,
        )
        for name, of in _TASKS.items()
    },
}
