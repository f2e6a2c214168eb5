"""TD3 (Fujimoto et al., arXiv 1802.09477) and DDPG (Lillicrap et al., arXiv 1509.02971), deterministic policy gradients.
The agent is `agents.td3`, which states the objectives; the loop `agents.off_policy`.

for each environment step:
    act by the policy and noise (uniformly at random for the first `warmup_steps`), store the transition
    `updates_per_step` times: update the critics on a batch drawn from the replay buffer;
        at every `actor_delay`-th update, counted across steps, then the actor on the same batch, and all targets

DDPG: one critic, no noise in its target, and no delay.

Differs from the papers: settings are those of the code of TD3's authors, which has moved on from both; of several
environments side by side each adds its own updates.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Annotated

from annotated_types import Ge

from jaxmbrl.agents.actor_critic import td3
from jaxmbrl.agents.actor_critic.td3 import TD3Config
from jaxmbrl.algorithms import off_policy
from jaxmbrl.algorithms.off_policy import OffPolicyConfig
from jaxmbrl.algorithms.presets import Preset
from jaxmbrl.core.types import Algorithm, Task
from jaxmbrl.envs.base import vector_sizes


@dataclass(frozen=True)
class Config(OffPolicyConfig):
    """Settings of a run of TD3 or DDPG."""

    agent: TD3Config = field(default_factory=TD3Config)
    """The policy learner."""
    actor_delay: Annotated[int, Ge(1)] = 2
    """Updates of the critics for each of the actor and of all targets."""
    warmup_steps: Annotated[int, Ge(0)] = 25_000
    """Environment steps of uniformly random actions, without updates, at the start."""


def make(config: Config, task: Task) -> Algorithm:
    """TD3 or DDPG on `task`, as the settings say."""
    return off_policy.learner(config, td3.make(config.agent, *vector_sizes(task, "td3")), task)


DDPG = Config(agent=td3.DDPG, actor_delay=1)
"""The retuned DDPG of TD3's authors."""

_SHARED = "2 x 256, Adam 3e-4, batch 256, polyak 0.005, noise 0.1, 25,000 random steps"


def _small(config: Config, learning_rate: float) -> Preset:
    agent = replace(config.agent, hidden=(64, 64), learning_rate=learning_rate)
    small = replace(
        config,
        agent=agent,
        batch_size=128,
        updates_per_step=4,
        replay_capacity=20_000,
        warmup_steps=500,
        epoch_steps=500,
    )
    source = f"our own, sized for a CPU: 2 x 64, Adam {learning_rate:g}, 4 updates a step"
    return Preset(small, source, steps=5000, tasks=("pendulum", "cartpole-continuous"))


PRESETS = {
    "default": Preset(Config(), f"{_SHARED}, delay 2: sfujim/TD3: main.py, TD3.py", steps=1_000_000),
    "pendulum": _small(Config(), 5e-4),
}
DDPG_PRESETS = {
    "default": Preset(DDPG, f"{_SHARED}: sfujim/TD3: main.py, OurDDPG.py", steps=1_000_000),
    "pendulum": _small(DDPG, 1e-3),
}
