"""Policy learners: SAC, also for discrete actions, TD3 and MPO. Each is an `ActorCritic` with a critic target that can be
replaced; SAC and TD3 have an actor loss that can be replaced, too."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from jaxmbrl.agents.actor_critic import discrete_sac, mpo, sac, td3
from jaxmbrl.agents.actor_critic.mpo import MPOConfig
from jaxmbrl.agents.actor_critic.sac import SACConfig
from jaxmbrl.agents.actor_critic.td3 import TD3Config
from jaxmbrl.core.config import UserError
from jaxmbrl.core.spaces import Discrete, Space
from jaxmbrl.core.types import ActorCritic
from jaxmbrl.models.normalizer import Normalizer
from jaxmbrl.nn.encoder import Encoder

Chosen = SACConfig | TD3Config | MPOConfig
"""The settings of one agent."""


@dataclass(frozen=True)
class AgentConfig:
    """Choice of an agent, with the settings of each, for methods that work with any."""

    method: Literal["sac", "td3", "mpo"] = "sac"
    """The agent. The settings of the others have no effect."""
    sac: SACConfig = field(default_factory=SACConfig)
    """Soft Actor-Critic."""
    td3: TD3Config = field(default_factory=TD3Config)
    """Twin delayed deep deterministic policy gradient, or DDPG."""
    mpo: MPOConfig = field(default_factory=MPOConfig)
    """Maximum a posteriori policy optimisation."""

    @property
    def chosen(self) -> Chosen:
        """The settings of `method`."""
        return getattr(self, self.method)


def make(
    config: AgentConfig | Chosen,
    observation_size: int,
    action: Space | int,
    normalizer: Normalizer | None = None,
    encoder: Encoder | None = None,
) -> ActorCritic:
    """The agent with the settings `config`, or the one that an `AgentConfig` chooses, for vectors of observations, or for
    those that an `encoder` takes, which only SAC may have (`actor_critic.sac`).

    `action` is the space of an action, vectors or choices; a number n means vectors of n numbers in [-1, 1]. With a
    `normalizer` the networks receive normalised observations. Raises UserError if the agent does not take the space.
    """
    chosen = config.chosen if isinstance(config, AgentConfig) else config
    if isinstance(action, Discrete):
        if not isinstance(chosen, SACConfig):
            name = "td3" if isinstance(chosen, TD3Config) else "mpo"
            raise UserError(f"{name} needs continuous actions, got {action.n} choices: use sac, which takes both")
        return discrete_sac.make(chosen, observation_size, action.n, normalizer, encoder)
    action_size = action if isinstance(action, int) else action.shape[0]
    if isinstance(chosen, SACConfig):
        return sac.make(chosen, observation_size, action_size, normalizer, encoder)
    if encoder is not None:
        raise ValueError(f"an encoder needs SAC, got {type(chosen).__name__}")
    if isinstance(chosen, MPOConfig):
        return mpo.make(chosen, observation_size, action_size, normalizer)
    return td3.make(chosen, observation_size, action_size, normalizer)
