"""MOPO: model-based offline policy optimisation (Yu et al., arXiv 2005.13239, algorithm 2).

    Objective: that of SAC on transitions (s, a, r - lambda u(s, a), s') imagined by an ensemble, which is fitted to logged
    transitions, where s is a logged state or a state on a branch of at most k steps from one, a ~ pi(.|s), and

        u(s, a) = max over members e of ||std_e(s, a)||

    fit the ensemble to the data
    every `refit_every` steps: imagine branches of k steps under the policy from `rollout_rows` logged states, lower their
        rewards by lambda u, and store them in a separate buffer
    `updates_per_step` times in each step: update the agent on a batch with a share `real_ratio` of logged rows

lambda is `penalty`. The norm is that of the standard deviations which a member predicts for the next observation and
a learned reward, in the task's units. Nothing is collected, and the environment is used for evaluation only. A step is one
call of the updates; there is no warm-up. With lambda 0 this is MBPO on a buffer that does not change
(`algorithms.dyna.mbpo`), with a `real_ratio` of 1 SAC on the data alone.

With `halts` it learns in the pessimistic decision process of MOReL (Kidambi et al., arXiv 2005.05951;
`models.pessimistic`): where the members disagree about a step by more than `halt_above` times the largest disagreement on
logged rows, the step leads to an absorbing state with the reward `halt_reward`, and its branch ends. MOReL itself is this
with lambda 0. It plans by natural policy gradient on trajectories of several hundred steps; here SAC learns on branches.

Without a file the rows are collected, and this is MBPO with a penalty: the model is refitted to the rows so far each time.

Differs from the paper: branches also grow with `rollout_length`; the members have no spectral norm, and predict mean and
variance by one network.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
from annotated_types import Ge, Gt
from jaxtyping import Array, Float

from jaxmbrl import agents
from jaxmbrl.algorithms import shared
from jaxmbrl.algorithms.registry import TINY_BRANCHES, TINY_ENSEMBLE, TINY_RUN, Goal, Method
from jaxmbrl.algorithms.shared import BranchedSettings
from jaxmbrl.core import metrics
from jaxmbrl.core.config import Traced
from jaxmbrl.core.types import (
    Algorithm,
    Average,
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
from jaxmbrl.envs.base import vectors_and_actions
from jaxmbrl.models import branching, disagreement, pessimistic
from jaxmbrl.models.branching import Imagined
from jaxmbrl.models.disagreement import TrustConfig


@dataclass(frozen=True)
class Config(BranchedSettings):
    """Settings of a run of MOPO."""

    penalty: Annotated[float, Ge(0), Traced] = 1.0
    """lambda: subtracted from an imagined reward for each unit of the largest member's standard deviation."""
    trust: TrustConfig = field(default_factory=lambda: TrustConfig("mopo"))
    """The rule that filters imagined rows, `mopo` for this penalty; its own `penalty` has no effect."""
    halts: bool = False
    """Whether imagined steps halt where the members disagree (MOReL)."""
    halt_above: Annotated[float, Gt(0), Traced] = 1.0
    """The threshold, as a multiple of the largest disagreement on all logged rows."""
    halt_reward: float | None = None
    """-kappa, the reward at every step after a halt; None for the smallest reward of all logged rows."""
    refit: bool = False
    """With a file, whether the model is fitted again every `refit_every` steps, and not only once."""

    def problem(self) -> tuple[str, str] | None:
        """(field, message) of the first violated rule that involves several fields, or None."""
        if self.halts and self.ensemble.members == 1:
            return "halts", "must be False with one member, which does not disagree with another"
        if self.halts and self.agent.discount == 1 and self.halt_reward != 0:
            return "halt_reward", "must be 0 with agent.discount 1: the reward at every step after a halt has no sum"
        return super().problem()


class State(NamedTuple):
    """The whole state of a run."""

    agent: PyTree
    model: PyTree
    replay: Replay | tuple[()]
    """Collected transitions; `()` with a file, which the state does not contain."""
    imagined: Imagined
    """Imagined transitions, with lowered rewards."""
    real_ratio: Float[Array, ""]
    penalty: Float[Array, ""]
    halt_above: Float[Array, ""]
    largest: Float[Array, ""]
    """Largest disagreement on real rows after the last fit, for halts."""
    key: Key


def make(config: Config, task: Task, data: Transition | None = None, model: DynamicsModel | None = None) -> Algorithm:
    """MOPO on `task` from the rows `data` [N, ...], or without any on collected rows. `model` overrides the default
    ensemble. `hyper` may hold `real_ratio`, `penalty` and `halt_above`, traced, and the agent's."""
    agent = agents.make(config.agent, *vectors_and_actions(task, "mopo"))
    model = model or shared.ensemble_for(config, task)
    # With a file there is nothing to wait for: the first call fits the model.
    config = config if data is None else replace(config, warmup_steps=1)
    logged = None if data is None else replay.of_rows(data._replace(extras=()))

    def init(key: Key, hyper: Hyper, data: Transition | None = None) -> State:
        shared.no_data(data, "mopo")
        agent_key, key, model_key = jax.random.split(key, 3)
        return State(
            agent=agent.init(agent_key, hyper),
            model=model.init(model_key, {}),
            replay=replay.init(row_like(task), config.replay_capacity) if logged is None else (),
            imagined=branching.init(row_like(task), config.imagined_capacity, config.rounds_kept, config.trust),
            real_ratio=jnp.asarray(hyper.get("real_ratio", config.real_ratio), float),
            penalty=jnp.asarray(hyper.get("penalty", config.penalty), float),
            halt_above=jnp.asarray(hyper.get("halt_above", config.halt_above), float),
            largest=jnp.zeros(()),
            key=key,
        )

    def policy(state: State, clock: Clock, explore: bool) -> Policy:
        acting = agent.policy(state.agent, explore)
        return shared.collector(acting, task, config, clock) if explore else acting

    def learn(clock: Clock, state: State, transitions: Transition) -> tuple[State, Metrics]:
        key, update_key, refit_key = jax.random.split(state.key, 3)
        collected: Replay | tuple[()] = ()
        if isinstance(state.replay, Replay):
            collected = real = replay.add(state.replay, flatten(transitions))
            rows = shared.rows_to_fit(real, clock, config.replay_capacity)
        else:
            assert logged is not None
            real = rows = logged
        rule = disagreement.make(config.trust, state.penalty)
        # With a file the first round is the only one that fits.
        fits = jnp.asarray(logged is None or config.refit) | (shared.steps_after_warmup(config, clock) == 0)

        def fit_and_imagine(learned: tuple[PyTree, Any, Imagined]) -> tuple[tuple[PyTree, Any, Imagined], Metrics]:
            model_state, largest, imagined = learned
            fit_key, imagine_key = jax.random.split(refit_key)

            def fit(known: tuple[PyTree, Any]) -> tuple[tuple[PyTree, Any], Metrics]:
                model_state, found = model.fit(known[0], rows, fit_key)
                largest = pessimistic.largest_discrepancy(model, model_state, rows) if config.halts else known[1]
                return (model_state, largest), found

            (model_state, largest), fitted = metrics.cond_update(fits, fit, (model_state, largest))
            acting = branching.with_disagreement(agent.policy(state.agent, True), rule, model, model_state)
            length, world = config.rollout_length.at(shared.steps_after_warmup(config, clock)), model.world(model_state)
            if config.halts:
                threshold = state.halt_above * largest
                reward = pessimistic.smallest_reward(real) if config.halt_reward is None else config.halt_reward
                halted = pessimistic.halt_value(reward, state.agent.discount)
                world = pessimistic.pessimistic(world, model, model_state, threshold, halted)
                fitted |= {"imagine/halt_above": Average.of(threshold), "imagine/halt_value": Average.of(halted)}
            imagined, found = shared.branch_from_replay(config, rule, world, acting, real, imagined, length, imagine_key)
            return (model_state, largest, imagined), fitted | found

        (model_state, largest, imagined), fitted = metrics.cond_update(
            shared.refit_due(config, clock), fit_and_imagine, (state.model, state.largest, state.imagined)
        )

        draw = shared.mixed_batches(config, state.real_ratio, real, imagined)
        agent_state, updated = shared.update_agent(config, agent, state.agent, clock, draw, update_key)
        state = state._replace(agent=agent_state, model=model_state, largest=largest, imagined=imagined)
        return state._replace(replay=collected, key=key), fitted | updated

    def views(state: State) -> Views:
        return Views(
            replay=state.replay if logged is None else None,
            model=shared.model_view(config, task, model, state.model),
            critic=shared.critic_view(agent, state.agent),
            reproducible=state.imagined.buffer,
        )

    return Algorithm(init, policy, learn, period=1, views=views)


METHOD = Method(
    make,
    Config,
    family="dyna",
    paper="2005.13239",
    summary="MBPO on logged data, with a penalty for the model's uncertainty",
    offline=make,
    tiny={
        **TINY_RUN,
        **TINY_ENSEMBLE,
        **TINY_BRANCHES,
        "agent.hidden": (16, 16),
        "rollout_length.first": 1,
    },
    goals=(
        Goal("mopo-pendulum", "pendulum", 2000, -200.0, data=4000, about="small preset, from 4,000 random transitions"),
    ),
)
