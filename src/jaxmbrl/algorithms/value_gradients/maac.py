"""MAAC: model-augmented actor-critic (Clavera et al., arXiv 2005.08068).

The actor maximises its return over n model steps, bootstrapped by the critics; the gradient is back-propagated through the
model:

    J = E[sum_{t<n} discount^t m_t r_t + discount^n m_n min Q(s_n, a_n)] - alpha log pi(a_0|s_0)

with reparameterised a_t ~ pi, each s_{t+1} sampled from a member of the ensemble that changes at every step, and m_t the
probability that no step before t ended the episode. Only the first action has an entropy bonus; in SVG every action has
one. The critics learn one-step targets on real and imagined transitions, as in MBPO, and the actor learns on the states of
the same batches. n = 0 is the actor of MBPO, which is that of SAC.

Differs from the paper's code: imagined transitions are branches of `rollout_length` steps instead of single steps, m_t is
the product over all earlier steps, and the minimum over critics is taken at one action sampled from the policy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
from annotated_types import Ge
from jaxtyping import Array, Float

from jaxmbrl.agents.actor_critic import sac
from jaxmbrl.agents.actor_critic.value_gradients import ValueGradientConfig, with_value_gradient
from jaxmbrl.algorithms import shared
from jaxmbrl.algorithms.registry import TINY_ENSEMBLE, TINY_RUN, Goal, Method
from jaxmbrl.algorithms.shared import BranchedSettings, DynamicsChoice
from jaxmbrl.core import metrics
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
from jaxmbrl.envs.base import vector_sizes
from jaxmbrl.models import branching, disagreement
from jaxmbrl.models.branching import Imagined


@dataclass(frozen=True)
class Config(DynamicsChoice, BranchedSettings):
    """Settings of a run of MAAC."""

    horizon: Annotated[int, Ge(0)] = 4
    """Model steps n of the actor's objective."""
    rematerialize: bool = False
    """Whether the actor's backward pass recomputes each model step, so that only the n states are stored."""
    updates_per_step: Annotated[int, Ge(1)] = 8
    """Agent updates for each environment step: the replay ratio (UTD)."""
    warmup_steps: Annotated[int, Ge(2)] = 5000
    """Environment steps of uniformly random actions, without updates, at the start."""


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
    """MAAC on `task`; `model` overrides the default ensemble. `hyper` may hold `real_ratio`, traced, and SAC's."""
    agent = sac.make(config.agent, *vector_sizes(task, "maac"))
    model = model or shared.model_for(config, task)
    rule = disagreement.make(config.trust)
    gradient = ValueGradientConfig(config.horizon, entropy_at_every_step=False, rematerialize=config.rematerialize)

    def init(key: Key, hyper: Hyper, data: Transition | None = None) -> State:
        shared.no_data(data, "maac")
        agent_key, key, model_key = jax.random.split(key, 3)
        return State(
            agent=agent.init(agent_key, hyper),
            model=model.init(model_key, {}),
            replay=replay.init(row_like(task), config.replay_capacity),
            imagined=branching.init(row_like(task), config.imagined_capacity, config.rounds_kept, config.trust),
            real_ratio=jnp.asarray(hyper.get("real_ratio", config.real_ratio), float),
            key=key,
        )

    def policy(state: State, clock: Clock, explore: bool) -> Policy:
        acting = agent.policy(state.agent, explore)
        return shared.collector(acting, task, config, clock) if explore else acting

    def learn(clock: Clock, state: State, transitions: Transition) -> tuple[State, Metrics]:
        key, update_key, refit_key = jax.random.split(state.key, 3)
        real = replay.add(state.replay, flatten(transitions))

        def fit_and_imagine(learned: tuple[PyTree, Imagined]) -> tuple[tuple[PyTree, Imagined], Metrics]:
            model_state, imagined = learned
            fit_key, imagine_key = jax.random.split(refit_key)
            rows = shared.rows_to_fit(real, clock, config.replay_capacity)
            model_state, fitted = model.fit(model_state, rows, fit_key)
            acting = branching.with_disagreement(agent.policy(state.agent, True), rule, model, model_state)
            length = config.rollout_length.at(shared.steps_after_warmup(config, clock))
            imagined, found = shared.branch_from_replay(
                config, rule, model.world(model_state), acting, real, imagined, length, imagine_key
            )
            return (model_state, imagined), fitted | found

        (model_state, imagined), fitted = metrics.cond_update(
            shared.refit_due(config, clock), fit_and_imagine, (state.model, state.imagined)
        )

        draw = shared.mixed_batches(config, state.real_ratio, real, imagined)
        through_model = with_value_gradient(agent, model.world(model_state), gradient)
        agent_state, updated = shared.update_agent(config, through_model, state.agent, clock, draw, update_key)
        return State(agent_state, model_state, real, imagined, state.real_ratio, key), fitted | updated

    def views(state: State) -> Views:
        return Views(
            replay=state.replay,
            model=shared.model_view(config, task, model, state.model),
            critic=shared.critic_view(agent, state.agent),
            reproducible=state.imagined.buffer,
        )

    return Algorithm(init, policy, learn, period=1, views=views)


METHOD = Method(
    make,
    Config,
    family="value_gradients",
    paper="2005.08068",
    summary="soft actor-critic whose actor ascends imagined n-step returns, differentiated through an ensemble",
    tiny={
        **TINY_RUN,
        **TINY_ENSEMBLE,
        "agent.hidden": (16, 16),
        "refit_every": 50,
        "horizon": 2,
        "rollout_rows": 83,
        "retain_steps": 100,
        "updates_per_step": 2,
        "rematerialize": True,
    },
    goals=(
        Goal("maac-pendulum", "pendulum", 5000, -200.0, about="small preset"),
        Goal("maac-inverted-pendulum", "InvertedPendulum-v5", 5000, 1000.0, episodes=10),
    ),
)
