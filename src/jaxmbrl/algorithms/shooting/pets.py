"""PETS: probabilistic ensembles with trajectory sampling (Chua et al., arXiv 1805.12114).

    argmax over a_t..a_{t+H-1} of  E over particles of  sum of r(s_tau, a_tau),    s_{tau+1} ~ a member of the ensemble

    for each trial:
        fit the ensemble to all data so far
        for each step: plan by CEM through the ensemble from the observation, take the first action, store the transition

Differs from the paper: the model is refitted every `refit_every` steps, which need not be an episode; a particle receives
no reward after a predicted termination; the candidates of a CEM iteration share their noise (common random numbers), and
under TS1 they also share the cyclic shift that draws new members (`models.ensemble`); a candidate with a particle that is
not finite ranks last.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
from annotated_types import Ge

from jaxmbrl import planning
from jaxmbrl.algorithms import shared
from jaxmbrl.algorithms.registry import Goal, Method
from jaxmbrl.algorithms.shared import DynamicsChoice, LoopSettings, ModelChoice
from jaxmbrl.core import metrics, xla
from jaxmbrl.core.types import (
    Algorithm,
    Average,
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
from jaxmbrl.models.ensemble import EnsembleConfig
from jaxmbrl.planning import PlannerConfig, RiskConfig, open_loop_policy, planning_policy
from jaxmbrl.rollout import with_full_state


@dataclass(frozen=True)
class Config(DynamicsChoice, ModelChoice, LoopSettings):
    """Settings of a run of PETS."""

    ensemble: EnsembleConfig = field(default_factory=EnsembleConfig)
    """The ensemble."""
    planner: PlannerConfig = field(default_factory=PlannerConfig)
    """The optimiser of action sequences."""
    open_loop: bool = False
    """Execute each plan to its end without feedback, instead of replanning at every step."""
    refit: bool = True
    """Refit the model as new data arrive. Otherwise it is only fitted to the data of the random warm-up."""
    particles: Annotated[int, Ge(1)] = 20
    """Imagined trajectories of each action sequence. The true simulator uses one."""
    risk: RiskConfig = field(default_factory=RiskConfig)
    """How the score of an action sequence is computed from the returns of its particles."""
    learn_reward: bool = False
    """Learn the reward even if the task provides it."""
    learn_termination: bool = False
    """Learn the termination even if the task provides it."""
    refit_every: Annotated[int, Ge(1)] = 200
    """Environment steps between two fits of the model."""
    replay_capacity: Annotated[int, Ge(2)] = 100_000
    """Transitions in the replay buffer; the oldest are overwritten first."""
    warmup_steps: Annotated[int, Ge(2)] = 200
    """Environment steps of uniformly random actions at the start, rounded up to whole refits."""
    eval_every: Annotated[int, Ge(0)] = 0
    """Epochs between two evaluations; 0 for none. The collected trials already measure a planner."""

    def problem(self) -> tuple[str, str] | None:
        """(field, message) of the first violated rule that involves several fields, or None."""
        if self.refit_every % self.num_envs:
            return "refit_every", f"must be a multiple of num_envs ({self.num_envs}), got {self.refit_every}"
        by_members = self.dynamics == "ensemble"
        propagation = self.ensemble.propagation if by_members else self.gp.propagation if self.dynamics == "gp" else None
        if propagation == "expectation" and self.particles > 1:
            return "particles", f"must be 1 with propagation 'expectation', where all are equal, got {self.particles}"
        if by_members and self.particles % self.ensemble.elites and propagation in ("ts1", "tsinf"):
            return "particles", f"must be a multiple of ensemble.elites ({self.ensemble.elites}), got {self.particles}"
        if self.planner.method == "ilqr" and by_members and self.ensemble.precision == "bfloat16":
            return "ensemble.precision", "must be float32 for planner.method ilqr, which needs second derivatives"
        return None


class State(NamedTuple):
    """The whole state of a run."""

    model: PyTree
    """`EnsembleState`, or the state of another model."""
    replay: Replay
    key: Key


def make(config: Config, task: Task) -> Algorithm:
    """PETS on `task`. Reward and termination are the task's if it provides them and the settings do not learn them."""
    vectors_and_actions(task, "pets")
    model = shared.model_for(config, task)
    planner = planning.make(config.planner, task.action)
    learns, plan = not config.uses_true_model(), open_loop_policy if config.open_loop else planning_policy

    def init(key: Key, hyper: Hyper, data: Transition | None = None) -> State:
        shared.no_data(data, "pets")
        model_key, key = jax.random.split(key)
        return State(model.init(model_key, hyper), replay.init(row_like(task), config.replay_capacity), key)

    def policy(state: State, clock: Clock, explore: bool) -> Policy:
        def particles(observation: jax.Array) -> jax.Array:
            return jnp.broadcast_to(observation, (config.particles, *observation.shape))

        if learns:
            acting = plan(planner, model.world(state.model), particles, task.action, risk=config.risk)
        else:
            acting = plan(planner, with_full_state(task.world), lambda carry: carry, task.action, risk=config.risk)
        return shared.collector(acting, task, config, clock, shared.no_search) if explore else acting

    def learn(clock: Clock, state: State, transitions: Transition) -> tuple[State, Metrics]:
        key, fit_key = jax.random.split(state.key)
        real = replay.add(state.replay, flatten(transitions))
        # The environment steps before those that this call is given, which the clock already counts.
        before = clock.env_steps - transitions.reward.size
        due = (clock.env_steps >= config.warmup_steps) & learns
        if not config.refit:
            due &= before < config.warmup_steps

        def fit(model_state: PyTree) -> tuple[PyTree, Metrics]:
            return model.fit(model_state, shared.rows_to_fit(real, clock, config.replay_capacity), fit_key)

        model_state, found = metrics.cond_update(due, fit, state.model)
        # Transitions from a file have no statistics of a plan.
        if transitions.extras:
            nonfinite = jnp.mean(transitions.extras["nonfinite"])
            found |= {"plan/nonfinite": Average.of(nonfinite, before >= config.warmup_steps)}
        return State(model_state, real, key), found

    def views(state: State) -> Views:
        return Views(state.replay, shared.model_view(config, task, model, state.model) if learns else None)

    return Algorithm(
        init,
        policy,
        learn,
        period=config.refit_every // config.num_envs,
        views=views,
        observes_full_state=not learns,
        compiler_options=xla.for_ensembles(config.ensemble.precision),
    )


METHOD = Method(
    make,
    Config,
    family="shooting",
    paper="1805.12114",
    summary="model-predictive control through a probabilistic ensemble, by CEM or another planner",
    takes=("continuous actions", "discrete actions"),
    tiny={
        "ensemble.hidden": (16,),
        "ensemble.max_epochs": 3,
        "planner.cem.population": 20,
        "planner.cem.elites": 4,
        "planner.cem.horizon": 4,
        "planner.cem.iterations": 2,
        "particles": 5,
        "refit_every": 50,
        "warmup_steps": 100,
        "epoch_steps": 100,
        "replay_capacity": 997,
    },
    goals=(
        Goal(
            "pets-cartpole",
            "cartpole-continuous",
            1000,
            195.0,
            seeds=5,
            episodes=10,
            about="small preset",
        ),
        Goal(
            "icem-cartpole",
            "cartpole-continuous",
            1000,
            195.0,
            seeds=5,
            episodes=10,
            preset="small-icem",
            about="planned by iCEM, 114 candidates a plan and not 400",
        ),
        Goal(
            "pets-cartpole-learned",
            "cartpole-continuous",
            1000,
            195.0,
            seeds=5,
            seeds_at_goal=3,
            episodes=10,
            settings={"learn_reward": True, "learn_termination": True},
            about="small preset, reward and termination learned",
        ),
        Goal(
            "pets-cartpole-bfloat16",
            "cartpole-continuous",
            1000,
            195.0,
            seeds=5,
            episodes=10,
            settings={"ensemble.precision": "bfloat16"},
            about="small preset, products in bfloat16",
        ),
        Goal(
            "pets-pendulum-learned",
            "pendulum",
            2000,
            -200.0,
            seeds_at_goal=3,
            episodes=20,
            settings={"learn_reward": True},
            about="small preset, reward learned",
        ),
        Goal(
            "pets-gp-cartpole",
            "cartpole-continuous",
            1000,
            195.0,
            seeds=4,
            seeds_at_goal=3,
            episodes=10,
            preset="small-gp",
            float64=True,
            about="Gaussian processes",
        ),
        Goal("pets-cartpole-v1", "CartPole-v1", 2000, 450.0, seeds_at_goal=3, episodes=10),
        Goal(
            "oracle-cartpole-v1",
            "CartPole-v1",
            400,
            480.0,
            seeds=1,
            seeds_at_goal=1,
            episodes=16,
            settings={"model": "true"},
            about="the true simulator",
        ),
        Goal("pets-pendulum", "pendulum", 2000, None),
        Goal("icem-pendulum", "pendulum", 2000, None, preset="small-icem", about="planned by iCEM, reward known"),
        Goal("pets-swingup", "cartpole-swingup", 1000, None),
        # 90% of the way from a random policy, which falls after 5 steps, to the largest possible return, 1000. The planner
        # in the true simulator cannot exceed that, and would take hours.
        Goal("pets-inverted-pendulum", "InvertedPendulum-v5", 2000, 901.0, episodes=20),
    ),
)
