"""MBPO: model-based policy optimisation (Janner et al., When to trust your model, arXiv 1906.08253, algorithm 2).

    Objective: that of the policy learner (SAC, MPO or NAF; of discrete actions SAC or DQN), on transitions (s, a, r, s')
    imagined by a learned model, where s is a real state or a state on a branch of at most k steps from one, a ~ pi(.|s),
    (s', r) ~ a member of the ensemble

    for each environment step:
        act by the stochastic policy (uniformly at random for the first `warmup_steps`), store the transition
        every `refit_every` steps: fit the ensemble to all real data; imagine branches of k steps under the policy from
            `rollout_rows` real states, with a newly drawn elite at each step, and store them in a separate buffer
        `updates_per_step` times: update the agent on a batch with a share `real_ratio` of real rows; the rest is imagined

k grows linearly in environment steps from `first` to `last` (`RolloutLength`). The capacity of the imagined buffer grows
with it, so that the buffer stores the rows of the last `retain_steps` steps. Real ratio, interval between fits, updates per
step and k may each be a table over environment steps (`schedule`), such as one learned by AutoMBPO; branches are imagined
every `refit_every` steps also where the model is fitted less often. Dyna (Sutton, 1990) is the case k = 1 throughout.

The reward and its noise are the model's; the termination is the task's if the task provides it. Imagined rows may be
filtered by the disagreement of the members: MACURA and M2AC are rules of `models.disagreement`.

Differs from the paper: k also grows within an epoch, and steps are counted from the end of the warm-up, as epochs are in
its code; the start rows, which are sampled at random, are distributed over the members by one random shift in each
imagined step (`models.ensemble`); rows with a number that is not finite are dropped and counted; as long as the imagined
buffer is empty, batches are real. MACURA's pink noise is left out, and so is its number of updates that depends on how full
the buffer is.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import jax
from jaxtyping import Array, Float

from jaxmbrl import agents
from jaxmbrl.agents import naf, q_learning
from jaxmbrl.agents.actor_critic.mpo import MPOConfig
from jaxmbrl.agents.naf import NAFConfig
from jaxmbrl.agents.q_learning import QLearningConfig
from jaxmbrl.algorithms import shared
from jaxmbrl.algorithms.registry import TINY_BRANCHES, TINY_ENSEMBLE, TINY_RUN, Goal, Method
from jaxmbrl.algorithms.shared import DynamicsChoice, DynaSettings
from jaxmbrl.core import metrics
from jaxmbrl.core.config import UserError
from jaxmbrl.core.types import (
    Algorithm,
    Clock,
    DynamicsModel,
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
from jaxmbrl.envs.base import number_of_actions, vector_sizes, vectors_and_actions
from jaxmbrl.models import branching, disagreement
from jaxmbrl.models.branching import Imagined


@dataclass(frozen=True)
class Config(DynamicsChoice, DynaSettings):
    """Settings of a run of MBPO."""

    learner: Literal["sac", "mpo", "naf", "dqn"] = "sac"
    """The policy learner: `agent`, for continuous actions also `mpo` and `naf`, for discrete ones `q_learning`."""
    mpo: MPOConfig = field(default_factory=MPOConfig)
    """The settings of `mpo`."""
    q_learning: QLearningConfig = field(default_factory=QLearningConfig)
    """The settings of `dqn`. Its actions are epsilon-greedy, also in imagined branches."""
    naf: NAFConfig = field(default_factory=NAFConfig)
    """The settings of `naf`. Its actions have exploration noise, also in imagined branches."""


class State(NamedTuple):
    """The whole state of a run."""

    agent: PyTree
    model: PyTree
    """`EnsembleState`, or the state of another model."""
    replay: Replay
    """Real transitions."""
    imagined: Imagined
    """Imagined transitions."""
    real_ratio: Float[Array, ""]
    key: Key


def make(config: Config, task: Task, model: DynamicsModel | None = None) -> Algorithm:
    """MBPO on `task`; `model` overrides the default ensemble. `hyper` may hold `real_ratio`, traced, and the
    learner's. Raises UserError for a learner that does not take the task's actions."""
    size, action = vectors_and_actions(task, "mbpo")
    if config.learner == "dqn":
        agent = q_learning.make(config.q_learning, task.observation, number_of_actions(task, "mbpo with the learner dqn"))
    elif config.learner == "naf":
        agent = naf.make(config.naf, *vector_sizes(task, "mbpo with the learner naf"))
    else:
        agent = agents.make(config.mpo if config.learner == "mpo" else config.agent, size, action)
    model = model or shared.model_for(config, task)
    rule = disagreement.make(config.trust)

    def init(key: Key, hyper: Hyper, data: Transition | None = None) -> State:
        shared.no_data(data, "mbpo")
        if config.learner != "sac" and "initial_temperature" in hyper:
            raise UserError(f"initial_temperature has no effect with the learner {config.learner}")
        agent_key, key, model_key = jax.random.split(key, 3)
        return State(
            agent=agent.init(agent_key, hyper),
            model=model.init(model_key, {}),
            replay=replay.init(row_like(task), config.replay_capacity),
            imagined=branching.init(row_like(task), config.imagined_capacity, config.rounds_kept, config.trust),
            real_ratio=shared.first_real_ratio(config, hyper),
            key=key,
        )

    def policy(state: State, clock: Clock, explore: bool) -> Policy:
        acting = agent.policy(state.agent, explore)
        return shared.collector(acting, task, config, clock) if explore else acting

    def learn(clock: Clock, state: State, transitions: Transition) -> tuple[State, Metrics]:
        key, update_key, refit_key = jax.random.split(state.key, 3)
        real = replay.add(state.replay, flatten(transitions))
        now, scheduled = shared.current(config, clock, state.real_ratio)

        def fit_and_imagine(learned: tuple[PyTree, Imagined]) -> tuple[tuple[PyTree, Imagined], Metrics]:
            model_state, imagined = learned
            fit_key, imagine_key = jax.random.split(refit_key)
            rows = shared.rows_to_fit(real, clock, config.replay_capacity)
            model_state, fitted = shared.fit_when(now.fits, lambda state: model.fit(state, rows, fit_key), model_state)
            acting = branching.with_disagreement(agent.policy(state.agent, True), rule, model, model_state)
            imagined, found = shared.branch_from_replay(
                config, rule, model.world(model_state), acting, real, imagined, now.rollout_length, imagine_key
            )
            return (model_state, imagined), fitted | found

        (model_state, imagined), fitted = metrics.cond_update(
            shared.refit_due(config, clock), fit_and_imagine, (state.model, state.imagined)
        )

        draw, number = shared.mixed_batches(config, now.real_ratio, real, imagined), now.updates_per_step
        agent_state, updated = shared.update_agent(
            config, agent, state.agent, clock, draw, update_key, updates_per_step=number
        )
        return State(agent_state, model_state, real, imagined, state.real_ratio, key), scheduled | fitted | updated

    def views(state: State) -> Views:
        return Views(
            replay=state.replay,
            model=shared.model_view(config, task, model, state.model),
            critic=shared.critic_view(agent, state.agent),
            reproducible=state.imagined.buffer,
        )

    return Algorithm(init, policy, learn, period=1, views=views, schedule=shared.schedule_of(config))


METHOD = Method(
    make,
    Config,
    family="dyna",
    paper="1906.08253",
    summary="soft actor-critic on short rollouts imagined by a probabilistic ensemble",
    takes=("continuous actions", "discrete actions"),
    tiny={
        **TINY_RUN,
        **TINY_ENSEMBLE,
        **TINY_BRANCHES,
        "agent.hidden": (16, 16),
    },
    goals=(
        Goal("mbpo-pendulum", "pendulum", 2000, -170.0, about="small preset, reward learned"),
        Goal(
            "mbpo-pendulum-bfloat16",
            "pendulum",
            2000,
            -170.0,
            settings={"ensemble.precision": "bfloat16", "agent.precision": "bfloat16"},
            about="small preset, reward learned, products in bfloat16",
        ),
        Goal(
            "mbpo-mpo-pendulum",
            "pendulum",
            2000,
            -200.0,
            seeds_at_goal=3,
            settings={"learner": "mpo"},
            about="small preset, by MPO, 2 x 64 units",
        ),
        Goal(
            "mbpo-mpo-pendulum-128",
            "pendulum",
            2000,
            -200.0,
            seeds_at_goal=0,
            settings={"learner": "mpo", "mpo.hidden": (128, 128)},
            about="small preset, by MPO, 2 x 128 units",
        ),
        Goal(
            "mbpo-pendulum-64",
            "pendulum",
            2000,
            -170.0,
            seeds_at_goal=0,
            settings={"agent.hidden": (64, 64)},
            about="small preset, by SAC, 2 x 64 units",
        ),
        Goal("mbpo-cartpole-v1", "CartPole-v1", 5000, 450.0, episodes=20),
        # The policy of DQN gets better and worse again on this task, also without a model.
        Goal(
            "mbpo-dqn-cartpole-v1",
            "CartPole-v1",
            5000,
            450.0,
            seeds_at_goal=0,
            episodes=20,
            settings={"learner": "dqn"},
            about="its preset, by DQN",
        ),
        Goal(
            "mbpo-naf-pendulum",
            "pendulum",
            6000,
            -250.0,
            settings={"learner": "naf"},
            about="small preset, by NAF",
        ),
        Goal(
            "mbpo-mountain-car-explore",
            "mountain-car-continuous",
            3000,
            90.0,
            seeds=2,
            seeds_at_goal=2,
            settings={"trust.rule": "explore", "trust.bonus": 0.1},
            about="small preset, bonus for disagreement",
        ),
        Goal("mbpo-inverted-pendulum", "InvertedPendulum-v5", 4000, 1000.0, episodes=10, about="the paper's preset"),
        Goal(
            "mbpo-inverted-pendulum-bfloat16",
            "InvertedPendulum-v5",
            4000,
            1000.0,
            episodes=10,
            settings={"ensemble.precision": "bfloat16", "agent.precision": "bfloat16"},
            about="the paper's preset, products in bfloat16",
        ),
        # Within these steps neither buffer is ever full, and imagined rollouts have one step.
        Goal(
            "mbpo-hopper",
            "Hopper-v5",
            15_000,
            300.0,
            episodes=10,
            settings={"rollout_length.last": 1, "replay_capacity": 25_000},
            about="the paper's preset, a beginning",
        ),
    ),
)
