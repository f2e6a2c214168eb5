"""UCT: Monte Carlo tree search with upper confidence bounds, in the simulator or in a learned model (Kocsis and Szepesvari,
Bandit based Monte-Carlo planning, ECML 2006). The search is `planning.tree_search.uct`, which states the score.

    for each step:
        repeat `search.simulations` times:
            select children by the score down to a new node;  play random actions from it;  add the return to the path
        take the most visited action, store the transition
    with a learned model, every `refit_every` steps: fit the ensemble to all data so far

With `model` "true" the search steps the simulator from its own state, and nothing is learned. With "learned" it steps
`particles` rows of the ensemble, and returns are means over the rows whose episodes go on.

Differs from the paper: returns are rescaled to [0, 1] by settings; of the random step of a model one outcome is sampled for
each action of a node, in which the particles differ.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal, NamedTuple

import jax
import jax.numpy as jnp
from annotated_types import Ge, Gt, Le

from jaxmbrl.algorithms import shared
from jaxmbrl.algorithms.registry import TINY_ENSEMBLE, Goal, Method
from jaxmbrl.algorithms.shared import DynamicsChoice, LoopSettings, ModelChoice
from jaxmbrl.core import metrics, xla
from jaxmbrl.core.types import (
    Action,
    Algorithm,
    Average,
    Clock,
    Hyper,
    Key,
    Metrics,
    Observation,
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
from jaxmbrl.envs.base import number_of_actions
from jaxmbrl.models.ensemble import EnsembleConfig
from jaxmbrl.planning import tree_search
from jaxmbrl.planning.tree_search import Played, Statistics, UCTConfig, begin, in_world, no_evaluation
from jaxmbrl.rollout import with_full_state


@dataclass(frozen=True)
class Config(DynamicsChoice, ModelChoice, LoopSettings):
    """Settings of a run of UCT."""

    model: Literal["learned", "true"] = "true"
    """The model: the true simulator started from its own state, or the learned ensemble."""
    search: UCTConfig = field(default_factory=UCTConfig)
    """The search."""
    discount: Annotated[float, Gt(0), Le(1)] = 1.0
    """Discount factor."""
    ensemble: EnsembleConfig = field(default_factory=EnsembleConfig)
    """The dynamics model."""
    particles: Annotated[int, Ge(1)] = 5
    """Imagined rows of each node. The true simulator uses one."""
    learn_reward: bool = False
    """Learn the reward even if the task provides it."""
    learn_termination: bool = False
    """Learn the termination even if the task provides it."""
    refit_every: Annotated[int, Ge(1)] = 200
    """Environment steps between two calls of `learn`, which fit a learned model."""
    replay_capacity: Annotated[int, Ge(2)] = 100_000
    """Transitions in the replay buffer; the oldest are overwritten first."""
    warmup_steps: Annotated[int, Ge(0)] = 200
    """Environment steps of uniformly random actions before the first fit, rounded up to whole refits. The true simulator
    has none."""
    eval_every: Annotated[int, Ge(0)] = 0
    """Epochs between two evaluations; 0 for none. The collected episodes already measure a planner."""

    def problem(self) -> tuple[str, str] | None:
        """(field, message) of the first violated rule that involves several fields, or None."""
        if self.refit_every % self.num_envs:
            return "refit_every", f"must be a multiple of num_envs ({self.num_envs}), got {self.refit_every}"
        return shared.no_moment_matching(self.ensemble)


class State(NamedTuple):
    """The whole state of a run."""

    model: PyTree
    """`EnsembleState` or `GaussianProcessState`; `()` without a learned model."""
    replay: Replay
    key: Key


def make(config: Config, task: Task) -> Algorithm:
    """UCT on `task`, which has discrete actions. Raises UserError if mctx is missing."""
    actions = number_of_actions(task, "uct", images=True)
    learns = not config.uses_true_model()
    search = tree_search.uct.make(config.search, actions)
    # An ensemble predicts vectors; a simulator has observations of any kind, and is not learned.
    model = shared.model_for(config, task) if learns else None

    def init(key: Key, hyper: Hyper, data: Transition | None = None) -> State:
        shared.no_data(data, "uct")
        model_key, key = jax.random.split(key)
        fitted = model.init(model_key, hyper) if model else ()
        return State(fitted, replay.init(row_like(task), config.replay_capacity), key)

    def policy(state: State, clock: Clock, explore: bool) -> Policy:
        world = model.world(state.model) if model else with_full_state(task.world)
        rows = (config.particles,) if model else ()

        def root(observation: Observation, key: Key) -> Played:
            origin = jnp.broadcast_to(observation, (*rows, *observation.shape)) if model else observation
            return begin(world, origin, key, rows)

        searching = tree_search.searching_policy(search, in_world(world, no_evaluation, config.discount), root, explore)
        if not (explore and learns):
            return searching
        return shared.collector(searching, task, config, clock, lambda action: no_search(actions, action))

    def learn(clock: Clock, state: State, transitions: Transition) -> tuple[State, Metrics]:
        key, fit_key = jax.random.split(state.key)
        real, fitted = replay.add(state.replay, flatten(transitions)), state.model
        found: Metrics = {}
        if model:

            def fit(fitted: PyTree) -> tuple[PyTree, Metrics]:
                return model.fit(fitted, shared.rows_to_fit(real, clock, config.replay_capacity), fit_key)

            fitted, found = metrics.cond_update(clock.env_steps >= config.warmup_steps, fit, fitted)
        # Transitions from a file have no statistics of a search.
        if transitions.extras:
            searched = jnp.sum(transitions.extras.visits, axis=-1) > 0
            value = jnp.sum(jnp.where(searched, transitions.extras.value, 0.0))
            number = jnp.sum(searched).astype(value.dtype)
            found = found | {"search/value": Average(value, number)}
        return State(fitted, real, key), found

    def views(state: State) -> Views:
        return Views(state.replay, shared.model_view(config, task, model, state.model) if model else None)

    return Algorithm(
        init,
        policy,
        learn,
        period=config.refit_every // config.num_envs,
        views=views,
        observes_full_state=not learns,
        compiler_options=xla.for_ensembles(config.ensemble.precision) if learns else {},
    )


def no_search(actions: int, action: Action) -> PyTree:
    """The statistics of a search for an action that was not searched."""
    weights = jax.nn.one_hot(action, actions)
    return Statistics(weights, jnp.zeros(actions, jnp.int32), jnp.zeros(()))


METHOD = Method(
    make,
    Config,
    family="search",
    summary="Monte Carlo tree search with upper confidence bounds and random playouts",
    takes=("discrete actions",),
    requires=("the extra `search`",),
    tiny={
        **TINY_ENSEMBLE,
        "model": "learned",
        "search.simulations": 3,
        "search.playout": 3,
        "particles": 2,
        "refit_every": 50,
        "warmup_steps": 100,
        "epoch_steps": 100,
        "replay_capacity": 997,
    },
    goals=(Goal("uct-cartpole", "CartPole-v1", 1000, 475.0, episodes=5, about="the true simulator, 64 simulations"),),
)
