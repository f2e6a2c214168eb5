"""DQN (Mnih et al., Nature 518, 2015, and arXiv 1312.5602): deep Q-learning for discrete actions, with double DQN (van
Hasselt et al., arXiv 1509.06461), the dueling network (Wang et al., arXiv 1511.06581) and n-step targets as settings. The
agent is `agents.q_learning`, which states the objectives.

for each environment step:
    act uniformly at random with probability epsilon (always for the first `warmup_steps`), else greedily
    store the transition
    at every `train_every`-th step: sample a batch from the replay buffer and demonstrations, and update the network
        y = sum_{i < m} discount^i r_i + discount^m (1 - terminated) V(s_m),  m <= `n_step` (`data.n_step`)
        move the target network by Polyak averaging, or copy it at every `copy_every`-th environment step

Epsilon falls linearly from `epsilon_first` to `agent.epsilon` within the first `epsilon_steps` environment steps.

Replay may be prioritised, and demonstrations are sampled besides the collected rows (`data.experience`). DQfD (Hester et
al., arXiv 1704.03732), with its imitation loss, is the preset `dqfd`.

Differs from the papers: the default is double DQN. Rewards are not clipped, and the target network moves by Polyak
averaging unless `copy_every` is set. Windows of n steps are sampled from the buffer, also those that began before a
time limit. With several parallel environments, each has its own step, and there is an update for the step of each;
`copy_every` counts the steps of all.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, NamedTuple

import jax
from annotated_types import Ge, Le
from jaxtyping import Array

from jaxmbrl.agents import count_bonus, q_learning
from jaxmbrl.agents.actor_critic.updates import with_updates
from jaxmbrl.agents.count_bonus import CountBonusConfig, Counts
from jaxmbrl.agents.exploration import with_epsilon
from jaxmbrl.agents.greedy import QState
from jaxmbrl.agents.normalization import NormalizationSettings, NormalizedState, inside, normalized
from jaxmbrl.agents.q_learning import QLearningConfig
from jaxmbrl.algorithms.registry import TINY_RUN, Goal, Method
from jaxmbrl.algorithms.shared import (
    ReplaySettings,
    collector,
    critic_view,
    learn_from_experience,
    new_experience,
    passes,
)
from jaxmbrl.core import metrics
from jaxmbrl.core.keys import beside
from jaxmbrl.core.schedules import linear
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
    flatten,
)
from jaxmbrl.data.experience import Batch, Experience
from jaxmbrl.envs.base import number_of_actions


@dataclass(frozen=True)
class Config(ReplaySettings, NormalizationSettings):
    """Settings of a run of DQN."""

    agent: QLearningConfig = field(default_factory=QLearningConfig)
    """The value learner: double, dueling, network and optimiser."""
    train_every: Annotated[int, Ge(1)] = 1
    """Steps of each environment between updates; there are `updates_per_step` updates then."""
    copy_every: Annotated[int, Ge(0)] = 0
    """Environment steps between two copies of the network to the target network; `agent.polyak` has no effect then. 0 for
    Polyak averaging at each update."""
    epsilon_first: Annotated[float, Ge(0), Le(1)] = 1.0
    """Probability of a random action at the start. It falls linearly to `agent.epsilon`."""
    epsilon_steps: Annotated[int, Ge(1)] = 10_000
    """Environment steps within which it falls."""
    margin_weight: Annotated[float, Ge(0)] = 0.0
    """Weight of the imitation loss of demonstrations, with the margin `agent.margin` (DQfD); 0 for none."""
    count_bonus: CountBonusConfig = field(default_factory=CountBonusConfig)
    """Exploration bonus of states that were seldom visited."""


class State(NamedTuple):
    """The whole state of a run."""

    agent: QState | NormalizedState
    experience: Experience
    counts: Counts | None
    """Of the exploration bonus, if there is one."""
    key: Key


def make(config: Config, task: Task) -> Algorithm:
    """DQN on `task`, with the extensions that the settings choose."""
    space, actions = task.observation, number_of_actions(task, "dqn", images=True)
    agent, earned, seen = normalized(
        config, config.num_envs, space, lambda normalizer: q_learning.make(config.agent, space, actions, normalizer)
    )
    learner = with_updates(agent, actor=lambda state, batch, key: (state, {})) if config.copy_every else agent
    steps_per_call = config.train_every * config.num_envs

    def init(key: Key, hyper: Hyper, data: Transition | None = None) -> State:
        agent_key, key = jax.random.split(key)
        counts = count_bonus.init(config.count_bonus, task.observation, beside(agent_key, 2))
        return State(agent.init(agent_key, hyper), new_experience(config, task, data), counts, key)

    def policy(state: State, clock: Clock, explore: bool) -> Policy:
        acting = agent.policy(state.agent, False)
        if not explore:
            return acting
        epsilon = linear(config.epsilon_first, config.agent.epsilon, config.epsilon_steps, clock.env_steps)
        return collector(with_epsilon(acting, task.action, epsilon), task, config, clock)

    def learn(clock: Clock, state: State, transitions: Transition) -> tuple[State, Metrics]:
        key, update_key = jax.random.split(state.key)
        counts = count_bonus.add(state.counts, task.observation, flatten(transitions).observation)
        rewarded = count_bonus.rewarded(learner, counts, config.count_bonus, task.observation)

        def imitation(batch: Batch) -> dict[str, Array]:
            imitates = config.margin_weight > 0 and state.experience.demonstrations is not None
            return {"imitation": config.margin_weight * batch.is_demonstration} if imitates else {}

        agent_state, experience, found = learn_from_experience(
            config, rewarded, earned(state.agent, transitions), state.experience, clock, transitions, update_key, imitation
        )
        if config.copy_every:
            due = passes(clock, config.copy_every, steps_per_call)
            copied = partial(inside, q_learning.copy_target)
            agent_state, _ = metrics.cond_update(due, lambda state: (copied(state), {}), agent_state)
        return State(seen(agent_state, transitions), experience, counts, key), found

    def views(state: State) -> Views:
        return Views(state.experience.own, critic=critic_view(agent, state.agent))

    return Algorithm(init, policy, learn, period=config.train_every, views=views)


METHOD = Method(
    make,
    Config,
    family="model_free",
    paper="1312.5602",
    summary="deep Q-learning: double DQN, with dueling networks and n-step targets as settings",
    takes=("discrete actions", "tables", "images"),
    tiny={**TINY_RUN, "agent.hidden": (16, 16), "agent.dueling": True, "n_step": 3, "train_every": 2, "copy_every": 100},
    goals=(
        Goal("dqn-catch", "bsuite/Catch", 6000, 1.0, seeds=8, seeds_at_goal=8, about="double DQN"),
        Goal(
            "dqn-pixels-catch",
            "stacked/2/pixels/16,grey/bsuite/Catch",
            10_000,
            1.0,
            seeds=8,
            seeds_at_goal=7,
            settings={"agent.convolutions": ((16, 4, 4),)},
            about="images of 16 x 16 pixels, the last two",
        ),
        Goal(
            "dqn-pixels-cartpole",
            "stacked/4/pixels/40,grey/CartPole-v1",
            30_000,
            200.0,
            seeds=2,
            seeds_at_goal=2,
            about="images of 40 x 40 pixels, the last four",
            best=True,
        ),
        Goal(
            "dqn-cartpole",
            "CartPole-v1",
            30_000,
            200.0,
            seeds=8,
            seeds_at_goal=6,
            settings={"agent.double": False, "n_step": 1, "batch_size": 32},
            about="DQN, batches of 32",
            best=True,
        ),
        Goal(
            "dqn-cartpole-double",
            "CartPole-v1",
            30_000,
            200.0,
            seeds=8,
            seeds_at_goal=8,
            settings={"n_step": 1},
            about="double DQN",
            best=True,
        ),
        Goal(
            "dqn-cartpole-3-step",
            "CartPole-v1",
            30_000,
            200.0,
            seeds=8,
            seeds_at_goal=8,
            about="double DQN, 3-step targets",
            best=True,
        ),
        Goal(
            "dqn-cartpole-prioritized",
            "CartPole-v1",
            30_000,
            200.0,
            seeds=8,
            seeds_at_goal=6,
            settings={
                "n_step": 1,
                "batch_size": 32,
                "replay.kind": "prioritized",
                "replay.beta_steps": 30_000,
                "agent.learning_rate": 2.5e-4,
            },
            about="double DQN, batches of 32, prioritised replay, a quarter of the learning rate",
            best=True,
        ),
        Goal(
            "dqn-normalised-cartpole",
            "CartPole-v1",
            30_000,
            200.0,
            seeds_at_goal=3,
            settings={"n_step": 1, "batch_size": 32, "normalize_observations": True, "normalize_rewards": True},
            about="double DQN, batches of 32, normalised observations and rewards",
            best=True,
        ),
        Goal("dqn-deep-sea", "bsuite/DeepSea/8", 10_000, 0.9, seeds=8, seeds_at_goal=0, about="double DQN"),
        Goal("dqn-deep-sea-16", "bsuite/DeepSea/16", 20_000, 0.9, seeds_at_goal=0, about="double DQN"),
        Goal(
            "dqn-deep-sea-16-counts",
            "bsuite/DeepSea/16",
            20_000,
            0.9,
            settings={"count_bonus.weight": 0.1},
            about="double DQN, count bonus 0.1",
        ),
    ),
)
