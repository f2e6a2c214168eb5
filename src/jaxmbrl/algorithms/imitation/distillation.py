"""Distillation of a policy into a small network, with DAgger (Ross et al., arXiv 1011.0686; Rusu et al., 1511.06295).

    minimise over theta  E_{s ~ d} [ KL(expert(s) || student_theta(s)) ],    d: the states of the aggregated rows

    for round i = 0, 1, ...:
        act for `round_steps` steps, each by the expert with probability beta_i, else by the student
        label every state with the expert's deterministic action, or with its preferences for discrete actions
        add the rows to those of all earlier rounds
        fit the student to all of them

With beta = 1 in all rounds the states are the expert's: behaviour cloning. From a file of transitions the student clones
the recorded actions. The expert may see more than the student, such as the state behind images
(`agents.distillation.privileged`). Differs from DAgger: the fit of a round continues that of the last, and the last student
is returned, not the best of all rounds on held-out rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
from annotated_types import Ge
from jaxtyping import Array, Int

from jaxmbrl.agents import distillation
from jaxmbrl.agents.distillation import Expert, StudentConfig, StudentState
from jaxmbrl.algorithms import shared
from jaxmbrl.algorithms.registry import Goal, Method
from jaxmbrl.algorithms.shared import EpochSettings
from jaxmbrl.core.types import (
    Algorithm,
    Average,
    Clock,
    Hyper,
    Key,
    Metrics,
    Observation,
    Policy,
    Task,
    Transition,
    Views,
    flatten,
    row_like,
)
from jaxmbrl.data import replay
from jaxmbrl.data.replay import Replay


@dataclass(frozen=True)
class Config(StudentConfig, EpochSettings):
    """Settings of a distillation."""

    round_steps: Annotated[int, Ge(1)] = 1000
    """Environment steps of a round, after which the student is fitted."""
    beta_rounds: Annotated[int, Ge(1)] | None = 1
    """Rounds in which beta falls linearly from 1 to 0; 1 for the expert in the first round and the student afterwards, None
    for the expert in all rounds."""
    replay_capacity: Annotated[int, Ge(1)] = 100_000
    """Labelled rows that are kept; the oldest are overwritten first."""
    epoch_steps: Annotated[int, Ge(1)] = 1000
    """Environment steps between two rows of metrics."""
    eval_every: Annotated[int, Ge(0)] = 1
    """Epochs between two evaluations; 0 for none."""

    def problem(self) -> tuple[str, str] | None:
        """(field, message) of the first violated rule that involves several fields, or None."""
        if self.round_steps % self.num_envs:
            return "round_steps", f"must be a multiple of num_envs ({self.num_envs}), got {self.round_steps}"
        return None


class State(NamedTuple):
    """The whole state of a run. It does not contain the expert."""

    student: StudentState
    replay: Replay
    """The aggregated rows. Their extras are the labels."""
    expert_seed: Int[Array, ""]
    """Number of the expert's seed that this seed imitates."""
    key: Key


def make(config: Config, task: Task, expert: Expert | None = None) -> Algorithm:
    """The distillation of `expert` on `task`. Without an expert the labels are the actions of the transitions that `learn`
    receives. `hyper` may hold `learning_rate` and `expert_seed`, traced."""
    student = distillation.make(config, task.observation, task.action)
    full_state = expert is not None and expert.observes_full_state

    def observe(seen: Any) -> Observation:
        return task.world.observe(seen) if full_state else seen

    def init(key: Key, hyper: Hyper, data: Transition | None = None) -> State:
        shared.no_data(data, "distillation")
        student_key, key = jax.random.split(key)
        row = row_like(task, distillation.label_like(task.action))
        seed = jnp.asarray(hyper.get("expert_seed", 0), jnp.int32)
        return State(student.init(student_key, hyper), replay.init(row, config.replay_capacity), seed, key)

    def policy(state: State, clock: Clock, explore: bool) -> Policy:
        own = student.policy(state.student)
        if not explore or expert is None:
            return own._replace(act=lambda memory, seen, key: own.act(memory, observe(seen), key))
        share = distillation.beta(config.beta_rounds, clock.env_steps // config.round_steps)
        return distillation.asked(expert.policy(state.expert_seed), own, observe, share)

    def learn(clock: Clock, state: State, transitions: Transition) -> tuple[State, Metrics]:
        key, fit_key = jax.random.split(state.key)
        if not jax.tree.leaves(transitions.extras):
            labels = distillation.label_of_action(task.action, transitions.action)
            transitions = transitions._replace(extras=labels)
        new = flatten(transitions, with_extras=True)
        before = student.loss(state.student, new)
        buffer = replay.add(state.replay, new)
        fitted, found = student.fit(state.student, shared.rows_to_fit(buffer, clock, config.replay_capacity), fit_key)
        return State(fitted, buffer, state.expert_seed, key), found | {"student/loss_before": Average.of(before)}

    def views(state: State) -> Views:
        return Views(state.replay)

    return Algorithm(
        init,
        policy,
        learn,
        period=config.round_steps // config.num_envs,
        views=views,
        observes_full_state=full_state,
    )


METHOD = Method(
    make,
    Config,
    family="imitation",
    paper="1011.0686",
    summary="a small network that imitates the policy of a run, by DAgger; 'jaxmbrl distill RUN' starts it",
    takes=("continuous actions", "discrete actions", "tables", "images"),
    imitates=make,
    tiny={
        "hidden": (8,),
        "updates": 5,
        "batch_size": 16,
        "round_steps": 50,
        "epoch_steps": 100,
        "replay_capacity": 997,
    },
    goals=(
        Goal(
            "distillation-sac",
            "pendulum",
            5000,
            -160.0,
            expert="sac-pendulum-small",
            about="2 x 16 units, of `sac`, 5 rounds of 1,000 labels",
        ),
        Goal(
            "distillation-pets",
            "cartpole-continuous",
            2500,
            190.0,
            settings={"round_steps": 500, "epoch_steps": 500},
            expert="icem-cartpole",
            about="2 x 16 units, of `pets` planned by iCEM, 5 rounds of 500 labels",
        ),
    ),
)
