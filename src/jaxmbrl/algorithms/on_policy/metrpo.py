"""ME-TRPO: model-ensemble trust region policy optimisation (Kurutach et al., arXiv 1802.10592, algorithm 2).

    eta_e(pi) = the mean return of the policy's mean actions in member e of the ensemble, from fixed start states

for each round:
    collect T steps of N environments by the stochastic policy, store them, fit the ensemble to all of them
    reset the standard deviation of the policy to its first value; accept the policy
    repeat:
        `check_every` times: imagine rows, each step of each by a random member; one step of TRPO on them
        accept the policy if eta_e is below that of the last accepted policy for at most the share `worse_share` of members
    until `patience` steps have passed without an acceptance, or `updates` steps in all
    restore the policy that was accepted last

Each member is a deterministic network with its own weights and its own sample of the data; a policy that exploits the
errors of one of them gets worse in others. The reset keeps the noise with which the policy explores.

Differs from the paper: rows are imagined, and policies judged, from stored states of all kinds instead of initial states,
so that tasks outside of the compiled program need no further resets; the value function is a network instead of a linear
fit; data are collected by the stochastic policy itself, without noise in its weights; the ensemble is fitted from the
weights of the last round and ends by the errors on a random holdout; rows are distributed evenly over the members at each
step (`models.ensemble`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
from annotated_types import Ge, Le
from jaxtyping import Array, Bool, Float, Int

from jaxmbrl.agents import trust_region
from jaxmbrl.agents.on_policy import OnPolicyState
from jaxmbrl.algorithms import shared
from jaxmbrl.algorithms.registry import TINY_ENSEMBLE, TINY_RUN, Goal, Method
from jaxmbrl.algorithms.shared import ImaginedTRPOSettings
from jaxmbrl.core import metrics
from jaxmbrl.core.schedules import rounded_down
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
    World,
    flatten,
    row_like,
)
from jaxmbrl.data import replay
from jaxmbrl.data.replay import Replay
from jaxmbrl.envs.base import vectors_and_actions
from jaxmbrl.models import ensemble
from jaxmbrl.models.ensemble import EnsembleConfig
from jaxmbrl.nn.optimizer import Trainable
from jaxmbrl.rollout import Return, planned_return, rollout


@dataclass(frozen=True)
class Config(ImaginedTRPOSettings):
    """Settings of a run of ME-TRPO."""

    ensemble: EnsembleConfig = field(default_factory=lambda: EnsembleConfig(probabilistic=False))
    """The dynamics model."""
    learn_reward: bool = True
    """Learn the reward even if the task provides it."""
    learn_termination: bool = False
    """Learn the termination even if the task provides it."""
    updates: Annotated[int, Ge(1)] = 400
    """Largest number of updates of the policy in a round."""
    check_every: Annotated[int, Ge(1)] = 5
    """Updates between two comparisons of the policy with the last accepted one."""
    patience: Annotated[int, Ge(1)] = 25
    """Updates without an acceptance that end a round."""
    worse_share: Annotated[float, Ge(0), Le(1)] = 0.3
    """Largest share of members in which an accepted policy may be worse than the last accepted one. 1 accepts all."""
    judged_rows: Annotated[int, Ge(1)] = 50
    """Imagined trajectories of each member in a comparison."""
    reset_log_std: bool = True
    """Whether the policy's standard deviation is reset in each round."""

    def problem(self) -> tuple[str, str] | None:
        """(field, message) of the first violated rule that involves several fields, or None."""
        if self.updates % self.check_every:
            return "updates", f"must be a multiple of check_every ({self.check_every}), got {self.updates}"
        return shared.no_moment_matching(self.ensemble) or shared.all_members(self.ensemble) or super().problem()


class State(NamedTuple):
    """The whole state of a run."""

    agent: OnPolicyState
    model: PyTree
    """`EnsembleState`."""
    replay: Replay
    """Real transitions."""
    key: Key


class Search(NamedTuple):
    """The improvement of a policy in the model."""

    agent: OnPolicyState
    accepted: Trainable
    """The actor that was accepted last."""
    returns: Float[Array, "E"]
    """Its returns in the members."""
    updates: Int[Array, ""]
    stale: Int[Array, ""]
    """Updates since the last acceptance."""
    found: Metrics


def make(config: Config, task: Task) -> Algorithm:
    """ME-TRPO on `task`. `hyper` may hold `learning_rate` and `discount` of the agent, traced."""
    agent = trust_region.make_agent(config.agent, *vectors_and_actions(task, "me-trpo"))
    model = shared.ensemble_for(config, task)

    def init(key: Key, hyper: Hyper, data: Transition | None = None) -> State:
        shared.no_data(data, "me-trpo")
        agent_key, model_key, key = jax.random.split(key, 3)
        return State(
            agent=agent.init(agent_key, hyper),
            model=model.init(model_key, {}),
            replay=replay.init(row_like(task), config.replay_capacity),
            key=key,
        )

    def policy(state: State, clock: Clock, explore: bool) -> Policy:
        return agent.policy(state.agent, explore)

    def learn(clock: Clock, state: State, transitions: Transition) -> tuple[State, Metrics]:
        key, fit_key, improve_key = jax.random.split(state.key, 3)
        real = replay.add(state.replay, flatten(transitions))
        model_state, fitted = model.fit(state.model, shared.rows_to_fit(real, clock, config.replay_capacity), fit_key)
        learner = agent.with_first_log_std(state.agent) if config.reset_log_std else state.agent
        learner, found = improve_until_worse(learner, model_state, real, improve_key)
        return State(learner, model_state, real, key), fitted | found

    def improve_until_worse(
        learner: OnPolicyState, model_state: PyTree, real: Replay, key: Key
    ) -> tuple[OnPolicyState, Metrics]:
        judge_key, origin_key, key = jax.random.split(key, 3)
        world = model.world(model_state)
        judged = replay.sample(real, origin_key, config.judged_rows).observation

        def returns_of(learner: OnPolicyState) -> Float[Array, "E"]:
            def in_member(member: Int[Array, ""]) -> Float[Array, ""]:
                world = model.world(ensemble.of_member(model_state, member))
                # The same random numbers in each comparison.
                key = jax.random.fold_in(judge_key, member)
                return imagined_return(world, agent.policy(learner, False), judged, key, config.imagined_steps)

            return jax.lax.map(in_member, jnp.arange(config.ensemble.members))

        def update(learner: OnPolicyState, key: Key) -> tuple[OnPolicyState, Metrics]:
            return shared.improve_in_model(config, agent, learner, world, real, key)

        def unfinished(search: Search) -> Bool[Array, ""]:
            return (search.updates < config.updates) & (search.stale < config.patience)

        def body(search: Search) -> Search:
            keys = jax.random.split(jax.random.fold_in(key, search.updates), config.check_every)
            learner, found = jax.lax.scan(update, search.agent, keys)
            now = returns_of(learner)
            accepted = accepts(now, search.returns, config.worse_share)
            found = metrics.total(found) | {"policy/accepted": Average.of(accepted)}
            return Search(
                agent=learner,
                accepted=jax.tree.map(lambda new, old: jnp.where(accepted, new, old), learner.actor, search.accepted),
                returns=jnp.where(accepted, now, search.returns),
                updates=search.updates + config.check_every,
                stale=jnp.where(accepted, 0, search.stale + config.check_every),
                found=metrics.add(search.found, found),
            )

        zero = jnp.zeros((), jnp.int32)
        of_update = metrics.none_like(update, learner, key)
        none = of_update | {"policy/accepted": Average.empty()}
        search = Search(learner, learner.actor, returns_of(learner), zero, zero, none)
        search = jax.lax.while_loop(unfinished, body, search)
        # A fault that was found after the last acceptance remains one.
        actor = search.accepted._replace(active=search.agent.actor.active)
        found = search.found | {"policy/updates": Average.of(search.updates)}
        return search.agent._replace(actor=actor), found

    def views(state: State) -> Views:
        return Views(state.replay, shared.model_view(config, task, model, state.model))

    return Algorithm(init, policy, learn, period=config.collect_steps, views=views)


def imagined_return(world: World, policy: Policy, origin: Float[Array, "N O"], key: Key, steps: int) -> Float[Array, ""]:
    """The mean return of `steps` steps from the rows `origin`."""
    start_key, rollout_key = jax.random.split(key)
    start = (world.start(origin, start_key), ())
    zero = Return.zero((origin.shape[0],))
    return jnp.mean(rollout(world, policy, start, rollout_key, steps, planned_return, zero)[1].total)


def accepts(now: Float[Array, "E"], before: Float[Array, "E"], worse_share: float) -> Bool[Array, ""]:
    """Whether the share of members in which the return got worse, or is no number, is at most `worse_share`."""
    return jnp.sum(~(now >= before)) <= rounded_down(worse_share, len(now))


METHOD = Method(
    make,
    Config,
    family="on_policy",
    paper="1802.10592",
    summary="TRPO on trajectories of a model ensemble, as long as the policy improves in most members",
    takes=("continuous actions", "discrete actions"),
    tiny={
        **TINY_ENSEMBLE,
        "ensemble.elites": 3,
        "agent.hidden": (16, 16),
        "agent.cg_iterations": 3,
        "agent.value_epochs": 1,
        "replay_capacity": TINY_RUN["replay_capacity"],
        "epoch_steps": 100,
        "num_envs": 1,
        "collect_steps": 50,
        "imagined_rows": 9,
        "imagined_steps": 5,
        "judged_rows": 6,
        "updates": 4,
        "check_every": 2,
        "patience": 2,
        # All policies are accepted, so that the actor of a run of a few steps learns.
        "worse_share": 1.0,
    },
    goals=(
        Goal(
            "me-trpo-pendulum",
            "pendulum",
            2000,
            -170.0,
            settings={"learn_reward": False},
            about="small preset, reward known",
        ),
        Goal(
            "me-trpo-pendulum-reward",
            "pendulum",
            2000,
            -170.0,
            seeds=2,
            seeds_at_goal=0,
            about="small preset, reward learned",
        ),
        Goal(
            "me-trpo-pendulum-no-reset",
            "pendulum",
            2000,
            -170.0,
            seeds=2,
            seeds_at_goal=0,
            settings={"learn_reward": False, "reset_log_std": False},
            about="small preset, reward known, log standard deviation not reset",
        ),
    ),
)
