"""Soft Actor-Critic (Haarnoja et al., arXiv 1812.05905), the model-free baseline, and REDQ and DroQ, settings of it that
learn from fewer environment steps. The agent is `agents.sac`, which states the objectives; the loop `agents.off_policy`.

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

from jaxmbrl.agents.actor_critic import sac
from jaxmbrl.agents.actor_critic.sac import SACConfig
from jaxmbrl.algorithms import off_policy
from jaxmbrl.algorithms.off_policy import OffPolicyConfig
from jaxmbrl.algorithms.presets import Preset
from jaxmbrl.core.types import Algorithm, Task
from jaxmbrl.envs.base import vector_sizes


@dataclass(frozen=True)
class Config(OffPolicyConfig):
    """Settings of a run of SAC, REDQ or DroQ."""

    agent: SACConfig = field(default_factory=SACConfig)
    """The policy learner."""


def make(config: Config, task: Task) -> Algorithm:
    """SAC, REDQ or DroQ on `task`, as the settings say."""
    return off_policy.learner(config, sac.make(config.agent, *vector_sizes(task, "sac")), task)


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
