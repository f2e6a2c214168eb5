"""SLBO: stochastic lower bound optimisation (Luo et al., arXiv 1807.03858, algorithm 2): a model fitted to several steps
at once and a policy by TRPO in it, improved in turn.

for each stage:
    collect T steps of N environments by the stochastic policy with Ornstein-Uhlenbeck noise, and store them
    `iterations` times:
        fit the model to windows of H steps by some Adam steps (`models.multi_step`, which states the loss)
        `updates` times: imagine rows from stored states; one step of TRPO on them, with an entropy bonus at first

The model's reward and termination are the task's. MB-TRPO, the paper's baseline, is the case of one iteration with as many
steps of each (preset `mb-trpo`).

Differs from the paper: rows are imagined from stored states of all kinds instead of initial states; the noise begins each
episode with a sample of its stationary distribution, where in the paper it continues from the last episode; the paper's
code collects a second set of steps in each stage and does not use it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
from annotated_types import Ge, Le
from jaxtyping import Array, Float

from jaxmbrl.agents import trust_region
from jaxmbrl.agents.exploration import with_ou_noise
from jaxmbrl.agents.on_policy import OnPolicyState
from jaxmbrl.agents.trust_region import TRPOConfig
from jaxmbrl.algorithms import shared
from jaxmbrl.algorithms.registry import TINY_RUN, Goal, Method
from jaxmbrl.algorithms.shared import ImaginedTRPOSettings
from jaxmbrl.core import metrics
from jaxmbrl.core.config import UserError
from jaxmbrl.core.types import (
    Algorithm,
    Clock,
    Hyper,
    Key,
    Metrics,
    ModelView,
    Policy,
    Task,
    Transition,
    Views,
    flatten,
    row_like,
)
from jaxmbrl.data import replay
from jaxmbrl.data.replay import Replay
from jaxmbrl.envs.base import vector_sizes
from jaxmbrl.models import multi_step
from jaxmbrl.models.multi_step import MultiStepConfig, MultiStepState


def trpo_with_entropy() -> TRPOConfig:
    """TRPO with an entropy bonus, and without statistics of real trajectories."""
    return TRPOConfig(gae_lambda=0.95, entropy_weight=0.005, normalize_observations=False, normalize_rewards=False)


@dataclass(frozen=True)
class Config(ImaginedTRPOSettings):
    """Settings of a run of SLBO."""

    agent: TRPOConfig = field(default_factory=trpo_with_entropy)
    """Policy and value function. Nothing is normalised by statistics of real trajectories."""
    dynamics: MultiStepConfig = field(default_factory=MultiStepConfig)
    """The dynamics model."""
    iterations: Annotated[int, Ge(1)] = 20
    """Times in a stage that the model is fitted and the policy improved."""
    updates: Annotated[int, Ge(1)] = 40
    """Updates of the policy in each iteration."""
    entropy_steps: Annotated[int, Ge(0)] = 500_000
    """Environment steps after which the entropy bonus is 0."""
    noise_decay: Annotated[float, Ge(0), Le(1)] = 0.15
    """Share by which the noise returns to 0 in a step."""
    noise_std: Annotated[float, Ge(0)] = 0.3
    """Standard deviation of the noise's steps, in units of the action."""

    def entropy_weight(self, clock: Clock) -> Float[Array, ""]:
        """The weight of the entropy bonus in the stage that `clock` has counted the steps of."""
        return jnp.where(clock.env_steps <= self.entropy_steps, self.agent.entropy_weight, 0.0)


class State(NamedTuple):
    """The whole state of a run."""

    agent: OnPolicyState
    model: MultiStepState
    replay: Replay
    """Real transitions."""
    key: Key


def make(config: Config, task: Task) -> Algorithm:
    """SLBO on `task`. `hyper` may hold `learning_rate` and `discount` of the agent, traced. Raises UserError if the task
    does not provide its reward and termination."""
    observation_size, action_size = vector_sizes(task, "slbo")
    if task.reward is None or task.terminated is None:
        lacks = "reward" if task.reward is None else "termination"
        raise UserError(f"slbo needs a task with a known {lacks}, and '{task.name}' has none: take another task")
    agent = trust_region.make_agent(config.agent, observation_size, task.action)
    model = multi_step.make(
        config.dynamics, observation_size, action_size, task.reward, task.terminated, stride=config.num_envs
    )

    def init(key: Key, hyper: Hyper, data: Transition | None = None) -> State:
        shared.no_data(data, "slbo")
        agent_key, model_key, key = jax.random.split(key, 3)
        return State(
            agent=agent.init(agent_key, hyper),
            model=model.init(model_key, {}),
            replay=replay.init(row_like(task), config.replay_capacity),
            key=key,
        )

    def policy(state: State, clock: Clock, explore: bool) -> Policy:
        acting = agent.policy(state.agent, explore)
        return with_ou_noise(acting, (action_size,), config.noise_decay, config.noise_std) if explore else acting

    def learn(clock: Clock, state: State, transitions: Transition) -> tuple[State, Metrics]:
        key, stage_key = jax.random.split(state.key)
        real = replay.add(state.replay, flatten(transitions))
        rows = shared.rows_to_fit(real, clock, config.replay_capacity)
        bonus = config.entropy_weight(clock)

        def iterate(parts: tuple[OnPolicyState, MultiStepState], key: Key) -> tuple[Any, Metrics]:
            learner, model_state = parts
            fit_key, update_key = jax.random.split(key)
            model_state, fitted = model.fit(model_state, rows, fit_key)
            world = model.world(model_state)

            def update(learner: OnPolicyState, key: Key) -> tuple[OnPolicyState, Metrics]:
                return shared.improve_in_model(config, agent, learner, world, real, key, bonus)

            learner, found = jax.lax.scan(update, learner, jax.random.split(update_key, config.updates))
            return (learner, model_state), fitted | metrics.total(found)

        keys = jax.random.split(stage_key, config.iterations)
        (learner, model_state), found = jax.lax.scan(iterate, (state.agent, state.model), keys)
        return State(learner, model_state, real, key), metrics.total(found)

    def views(state: State) -> Views:
        return Views(state.replay, ModelView(model, state.model, state.model.fits > 0, task.reward))

    return Algorithm(init, policy, learn, period=config.collect_steps, views=views)


METHOD = Method(
    make,
    Config,
    family="on_policy",
    paper="1807.03858",
    summary="TRPO in a model that is fitted to several steps at once, in turn with the fit",
    takes=("continuous actions",),
    requires=("a known reward and termination",),
    tiny={
        "agent.hidden": (16, 16),
        "agent.cg_iterations": 3,
        "agent.value_epochs": 1,
        "dynamics.hidden": (16, 16),
        "dynamics.fit_steps": 5,
        "dynamics.batch_size": 32,
        "replay_capacity": TINY_RUN["replay_capacity"],
        "epoch_steps": 100,
        "num_envs": 1,
        "collect_steps": 50,
        "imagined_rows": 9,
        "imagined_steps": 5,
        "iterations": 2,
        "updates": 2,
    },
    goals=(
        Goal("slbo-pendulum", "pendulum", 4000, -200.0, seeds_at_goal=3, about="small preset"),
        Goal(
            "mb-trpo-pendulum",
            "pendulum",
            4000,
            -200.0,
            seeds_at_goal=0,
            settings={"iterations": 1, "dynamics.fit_steps": 500, "updates": 20},
            about="small preset as MB-TRPO: one iteration of 500 model and 20 policy steps",
        ),
    ),
)
