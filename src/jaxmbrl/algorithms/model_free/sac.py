"""Soft Actor-Critic (Haarnoja et al., arXiv 1812.05905), the model-free baseline, with REDQ and DroQ, two of its settings
that learn from fewer environment steps. The agent is `agents.actor_critic.sac`, which states the objectives, or for
discrete actions `agents.actor_critic.discrete_sac`.

for each environment step:
    act by the stochastic policy (uniformly at random for the first `warmup_steps`), store the transition
    `updates_per_step` times: update the critics on a batch from the replay buffer and demonstrations (`data.experience`);
        at every `actor_delay`-th update, also update the actor and the temperature, on the same batch

REDQ (Chen et al., arXiv 2101.05982, algorithm 1): 20 updates per step, the last of which also updates the actor; 10
critics; a target takes the minimum over a random two of them; the actor maximises the mean of all. DroQ (Hiraoka et al.,
arXiv 2110.02034, algorithm 2): the same with two critics, which have dropout and layer norm.

From images the agent has an encoder, which its critics train (`nn.encoder`); `augment: shift` is DrQ's augmentation
(Kostrikov et al., arXiv 2004.13649) with one shift of each image.

RLPD (Ball et al., arXiv 2302.02948) is this with `--demonstrations`, of which half of each batch are sampled, many
critics with layer norm, and 20 updates per step.

Differs from the papers: with several parallel environments, `updates_per_step` counts for the step of each.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import jax

from jaxmbrl import agents
from jaxmbrl.agents import count_bonus
from jaxmbrl.agents.actor_critic.sac import SACConfig
from jaxmbrl.agents.actor_critic.target_error import with_target_error
from jaxmbrl.agents.count_bonus import CountBonusConfig, Counts
from jaxmbrl.agents.normalization import NormalizationSettings, normalized
from jaxmbrl.algorithms.registry import TINY_RUN, Goal, Method
from jaxmbrl.algorithms.shared import ReplaySettings, collector, critic_view, learn_from_experience, new_experience
from jaxmbrl.core.config import UserError
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
from jaxmbrl.envs.base import vectors_and_actions
from jaxmbrl.models.normalizer import Normalizer
from jaxmbrl.nn import encoder
from jaxmbrl.nn.encoder import EncoderConfig


@dataclass(frozen=True)
class Config(ReplaySettings, NormalizationSettings):
    """Settings of a run of SAC, REDQ or DroQ."""

    agent: SACConfig = field(default_factory=SACConfig)
    """The policy learner."""
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    """Of images, if observations are images: the common first part of actor and critics."""
    target_error: bool = False
    """Whether rows are weighted by a learned error of their targets (DisCor, `agents.actor_critic.target_error`)."""
    count_bonus: CountBonusConfig = field(default_factory=CountBonusConfig)
    """Exploration bonus of states that were seldom visited."""


class State(NamedTuple):
    """The whole state of a run."""

    agent: PyTree
    experience: Experience
    counts: Counts | None
    """Of the exploration bonus, if there is one."""
    key: Key


def make(config: Config, task: Task, name: str = "sac") -> Algorithm:
    """SAC, REDQ or DroQ on `task`, depending on the settings; `name` is for errors."""
    size, action = vectors_and_actions(task, name, images=True)
    coder = encoder.of_images(config.encoder, task.observation)
    if coder is not None and config.target_error:
        raise UserError(f"target_error needs vectors, and observations are {task.observation}: set it to false")

    def agent_with(normalizer: Normalizer | None) -> ActorCritic:
        of = config.agent
        if coder is not None:
            return agents.make(of, coder.size, action, encoder=coder)
        made = agents.make(of, size, action, normalizer)
        if not config.target_error:
            return made
        return with_target_error(made, size, action, of.hidden, of.learning_rate, of.polyak, normalizer)

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
    paper="1812.05905",
    summary="soft actor-critic, the model-free baseline",
    takes=("continuous actions", "discrete actions", "images"),
    tiny={**TINY_RUN, "agent.hidden": (16, 16)},
    goals=(
        Goal("sac-pendulum", "pendulum", 20_000, -170.0),
        Goal(
            "sac-pendulum-bfloat16",
            "pendulum",
            20_000,
            -170.0,
            settings={"agent.precision": "bfloat16"},
            about="products in bfloat16",
        ),
        Goal("sac-cartpole-v1", "CartPole-v1", 20_000, 450.0, seeds_at_goal=0, episodes=20),
        Goal("sac-pendulum-small", "pendulum", 15_000, -170.0, preset="small", about="small preset"),
        Goal("sac-pendulum-5000", "pendulum", 5000, -200.0, seeds_at_goal=0),
        Goal(
            "sac-normalised-pendulum",
            "pendulum",
            10_000,
            -170.0,
            preset="pendulum",
            settings={
                "agent.hidden": (64, 64),
                "agent.learning_rate": 1e-3,
                "batch_size": 128,
                "normalize_observations": True,
            },
            about="normalised observations, 2 x 64 units",
        ),
        Goal(
            "sac-normalised-rewards-pendulum",
            "pendulum",
            20_000,
            -170.0,
            seeds_at_goal=3,
            preset="pendulum",
            settings={
                "agent.hidden": (64, 64),
                "agent.learning_rate": 1e-3,
                "batch_size": 128,
                "normalize_observations": True,
                "normalize_rewards": True,
            },
            about="normalised observations and rewards, 2 x 64 units",
        ),
        Goal(
            "sac-masked-pendulum",
            "masked/pendulum",
            30_000,
            -300.0,
            seeds_at_goal=0,
            preset="pendulum",
            settings={"agent.hidden": (64, 64), "agent.learning_rate": 1e-3, "batch_size": 128},
            about="without memory",
        ),
        Goal(
            "sac-stacked-pendulum",
            "stacked/3/masked/pendulum",
            30_000,
            -300.0,
            seeds_at_goal=3,
            preset="pendulum",
            settings={"agent.hidden": (64, 64), "agent.learning_rate": 1e-3, "batch_size": 128},
            about="last 3 observations",
        ),
        Goal(
            "sac-pixels-pendulum",
            "stacked/3/pixels/32,grey/pendulum",
            10_000,
            -250.0,
            seeds_at_goal=3,
            about="images of 32 x 32 pixels, the last three",
        ),
        Goal(
            "sac-pixels-shift-pendulum",
            "stacked/3/pixels/32,grey/pendulum",
            10_000,
            -250.0,
            seeds_at_goal=3,
            settings={"augment": "shift", "shift_pixels": 2},
            about="images of 32 x 32 pixels, the last three, shifted by up to 2 pixels",
        ),
        Goal(
            "sac-mountain-car-counts",
            "mountain-car-continuous",
            20_000,
            90.0,
            seeds_at_goal=0,
            settings={"count_bonus.weight": 1.0, "count_bonus.scales": (1.0, 0.07)},
            about="small preset, count bonus 1",
        ),
        Goal(
            "sac-hopper",
            "Hopper-v5",
            5000,
            0.0,
            seeds_at_goal=0,
            episodes=10,
            settings={"warmup_steps": 1000, "eval_every": 0},
            about="1,000 random steps",
        ),
        Goal(
            "sac-half-cheetah",
            "HalfCheetah-v5",
            20_000,
            0.0,
            seeds=2,
            seeds_at_goal=0,
            episodes=10,
            settings={"replay_capacity": 20_000, "epoch_steps": 2000, "eval_every": 0},
            about="default preset, two seeds",
        ),
    ),
)
REDQ = Method(
    partial(make, name="redq"),
    Config,
    family="model_free",
    paper="2101.05982",
    summary="soft actor-critic with a high replay ratio and an ensemble of critics",
    takes=("continuous actions", "discrete actions", "images"),
    tiny={**TINY_RUN, "agent.hidden": (16, 16), "agent.critics": 3, "updates_per_step": 4, "actor_delay": 2},
    goals=(Goal("redq-pendulum", "pendulum", 1600, -170.0),),
)
DROQ = Method(
    partial(make, name="droq"),
    Config,
    family="model_free",
    paper="2110.02034",
    summary="soft actor-critic with a high replay ratio and critics with dropout and layer norm",
    takes=("continuous actions", "discrete actions", "images"),
    tiny={**TINY_RUN, "agent.hidden": (16, 16), "agent.dropout": 0.1, "updates_per_step": 4, "actor_delay": 4},
    goals=(Goal("droq-pendulum", "pendulum", 1600, -170.0),),
)
