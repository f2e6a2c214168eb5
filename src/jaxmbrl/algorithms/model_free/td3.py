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

from dataclasses import dataclass, field
from typing import Annotated

from annotated_types import Ge

from jaxmbrl.agents.actor_critic import td3
from jaxmbrl.agents.actor_critic.td3 import TD3Config
from jaxmbrl.algorithms import off_policy
from jaxmbrl.algorithms.off_policy import OffPolicyConfig
from jaxmbrl.algorithms.registry import TINY_RUN, Goal, Method
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


METHOD = Method(
    make,
    Config,
    family="model_free",
    paper="1802.09477",
    summary="deterministic policy gradient with twin critics, a delayed actor and smoothed targets",
    tiny={**TINY_RUN, "agent.hidden": (16, 16)},
    goals=(Goal("td3-pendulum", "pendulum", 5000, -170.0),),
)
DDPG = Method(
    make,
    Config,
    family="model_free",
    paper="1509.02971",
    summary="deep deterministic policy gradient: one critic and a deterministic actor",
    tiny={**TINY_RUN, "agent.hidden": (16, 16), "updates_per_step": 2},
    goals=(Goal("ddpg-pendulum", "pendulum", 5000, -170.0),),
)
