"""AMPO: MBPO with unsupervised model adaptation (Shen et al., arXiv 2010.09546, algorithm 1).

    Objective: that of MBPO (SAC on branches imagined by an ensemble), whose ensemble is also trained to have features of
    the same distribution for real and for imagined inputs (`models.adaptation`)

    for each environment step:
        act by the stochastic policy, store the transition
        every `refit_every` steps: fit the ensemble to all real data, starting from the adapted layers; imagine branches;
            adapt the layers to the imagined rows for `adaptation.steps` steps, until `adapts_until`
        `updates_per_step` times: update the agent on a batch with a share `real_ratio` of real rows

The adapted layers never imagine: they only start the next fit. With `adaptation.steps` 0 this is MBPO bit for bit.

Differs from the paper's code: those of `models.adaptation`, and the number of steps is constant until `adapts_until`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, NamedTuple

import jax
from annotated_types import Ge
from jaxtyping import Array, Float

from jaxmbrl import agents
from jaxmbrl.algorithms import shared
from jaxmbrl.algorithms.registry import TINY_BRANCHES, TINY_ENSEMBLE, TINY_RUN, Goal, Method
from jaxmbrl.algorithms.shared import DynaSettings
from jaxmbrl.core import metrics
from jaxmbrl.core.keys import beside
from jaxmbrl.core.types import (
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
    row_like,
)
from jaxmbrl.data import replay
from jaxmbrl.data.replay import Replay
from jaxmbrl.envs.base import vectors_and_actions
from jaxmbrl.models import adaptation, branching, disagreement
from jaxmbrl.models.adaptation import Adaptation, AdaptationConfig
from jaxmbrl.models.branching import Imagined
from jaxmbrl.models.ensemble import EnsembleState


@dataclass(frozen=True)
class Config(DynaSettings):
    """Settings of a run of AMPO."""

    adaptation: AdaptationConfig = field(default_factory=AdaptationConfig)
    """The adaptation of the ensemble's features."""
    adapts_until: Annotated[int, Ge(1)] = 40_000
    """Environment steps after the warm-up from which on there is no adaptation."""


class State(NamedTuple):
    """The whole state of a run."""

    agent: PyTree
    model: EnsembleState
    adaptation: Adaptation | tuple[()]
    """`()` if there is none."""
    replay: Replay
    """Real transitions."""
    imagined: Imagined
    """Imagined transitions."""
    real_ratio: Float[Array, ""]
    key: Key


def make(config: Config, task: Task) -> Algorithm:
    """AMPO on `task`. `hyper` may hold `real_ratio`, traced, and the agent's."""
    agent = agents.make(config.agent, *vectors_and_actions(task, "ampo"))
    model, layout = shared.ensemble_for(config, task), shared.layout_for(config, task)
    rule = disagreement.make(config.trust)

    def init(key: Key, hyper: Hyper, data: Transition | None = None) -> State:
        shared.no_data(data, "ampo")
        agent_key, key, model_key = jax.random.split(key, 3)
        model_state = model.init(model_key, {})
        adapted: Adaptation | tuple[()] = ()
        if config.adaptation.steps > 0:
            adapted = adaptation.init(config.adaptation, layout, model_state, beside(model_key))
        return State(
            agent=agent.init(agent_key, hyper),
            model=model_state,
            adaptation=adapted,
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
        steps = shared.steps_after_warmup(config, clock)
        now, scheduled = shared.current(config, clock, state.real_ratio)
        Learned = tuple[EnsembleState, Adaptation | tuple[()], Imagined]

        def fit_imagine_and_adapt(learned: Learned) -> tuple[Learned, Metrics]:
            model_state, adapted, imagined = learned
            fit_key, imagine_key = jax.random.split(refit_key)
            rows = shared.rows_to_fit(real, clock, config.replay_capacity)

            def fit(model_state: EnsembleState) -> tuple[EnsembleState, Metrics]:
                if isinstance(adapted, Adaptation):
                    model_state = adaptation.with_start(layout, adapted, model_state)
                return model.fit(model_state, rows, fit_key)

            model_state, found = shared.fit_when(now.fits, fit, model_state)
            acting = branching.with_disagreement(agent.policy(state.agent, True), rule, model, model_state)
            imagined, of_rows = shared.branch_from_replay(
                config, rule, model.world(model_state), acting, real, imagined, now.rollout_length, imagine_key
            )
            if isinstance(adapted, Adaptation):
                adapt_key = beside(imagine_key)
                adapted, of_steps = metrics.cond_update(
                    steps < config.adapts_until,
                    lambda adapted: adaptation.adapt(
                        config.adaptation, layout, adapted, model_state, real, imagined.buffer, adapt_key
                    ),
                    adaptation.from_fit(layout, adapted, model_state),
                )
                found |= of_steps
            return (model_state, adapted, imagined), found | of_rows

        (model_state, adapted, imagined), fitted = metrics.cond_update(
            shared.refit_due(config, clock), fit_imagine_and_adapt, (state.model, state.adaptation, state.imagined)
        )

        draw, number = shared.mixed_batches(config, now.real_ratio, real, imagined), now.updates_per_step
        agent_state, updated = shared.update_agent(
            config, agent, state.agent, clock, draw, update_key, updates_per_step=number
        )
        return State(agent_state, model_state, adapted, real, imagined, state.real_ratio, key), scheduled | fitted | updated

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
    paper="2010.09546",
    summary="MBPO whose model has features of one distribution for real and imagined inputs",
    takes=("continuous actions", "discrete actions"),
    tiny={
        **TINY_RUN,
        **TINY_ENSEMBLE,
        **TINY_BRANCHES,
        "agent.hidden": (16, 16),
        "adaptation.steps": 2,
        "adaptation.critic_steps": 2,
        "adaptation.hidden": (8,),
        "adaptation.batch_size": 16,
    },
    goals=(
        # As many steps as the study of BMPO has for MBPO, whose policy is not yet good then.
        Goal("ampo-pendulum", "pendulum", 1000, -700.0, seeds_at_goal=0, about="small preset, reward learned"),
    ),
)
