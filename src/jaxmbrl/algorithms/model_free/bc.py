"""Behaviour cloning: a policy fitted to recorded actions by maximum likelihood (Pomerleau, 1991). It is the baseline of
learning from logged data, beside `mopo`.

    maximise  mean over rows of log pi(a | s)

    `updates_per_step` times in each step: update the policy on a batch of rows

The policy is `agents.behaviour_cloning`: Gaussian for continuous actions, categorical for discrete ones. Rewards and
successors are not read. With a file a step is one call of the updates, nothing is collected, and the environment is used
for evaluation only.

A run needs a file. In a loop without one, which the contract tests use, the collected rows are imitated: random actions at
first, and then those of the policy itself.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import NamedTuple

import jax

from jaxmbrl.agents import behaviour_cloning
from jaxmbrl.agents.behaviour_cloning import CloningConfig
from jaxmbrl.algorithms import shared
from jaxmbrl.algorithms.registry import TINY_RUN, Goal, Method
from jaxmbrl.algorithms.shared import OffPolicySettings
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


@dataclass(frozen=True)
class Config(OffPolicySettings):
    """Settings of a run of behaviour cloning."""

    agent: CloningConfig = field(default_factory=CloningConfig)
    """The policy."""

    def problem(self) -> tuple[str, str] | None:
        """(field, message) of the first violated rule that involves several fields, or None."""
        return None if self.actor_delay == 1 else ("actor_delay", "must be 1: there are no critics")


class State(NamedTuple):
    """The whole state of a run."""

    agent: PyTree
    replay: Replay | tuple[()]
    """Collected transitions; `()` with a file, which the state does not contain."""
    key: Key


def make(config: Config, task: Task, data: Transition | None = None) -> Algorithm:
    """Behaviour cloning on `task` from the rows `data` [N, ...], or without any on collected rows."""
    agent = behaviour_cloning.make(config.agent, *vectors_and_actions(task, "bc"))
    logged = None if data is None else replay.of_rows(data._replace(extras=()))
    config = config if data is None else replace(config, warmup_steps=0)

    def init(key: Key, hyper: Hyper, data: Transition | None = None) -> State:
        shared.no_data(data, "bc")
        agent_key, key = jax.random.split(key)
        buffer = replay.init(row_like(task), config.replay_capacity) if logged is None else ()
        return State(agent.init(agent_key, hyper), buffer, key)

    def policy(state: State, clock: Clock, explore: bool) -> Policy:
        acting = agent.policy(state.agent, explore)
        return shared.collector(acting, task, config, clock) if explore else acting

    def learn(clock: Clock, state: State, transitions: Transition) -> tuple[State, Metrics]:
        key, update_key = jax.random.split(state.key)
        collected: Replay | tuple[()] = ()
        if isinstance(state.replay, Replay):
            collected = rows = replay.add(state.replay, flatten(transitions))
        else:
            assert logged is not None
            rows = logged

        def draw(key: Key) -> Transition:
            return replay.sample(rows, key, config.batch_size)

        agent_state, found = shared.update_agent(config, agent, state.agent, clock, draw, update_key)
        return State(agent_state, collected, key), found

    return Algorithm(init, policy, learn, period=1, views=lambda state: Views(state.replay if logged is None else None))


METHOD = Method(
    make,
    Config,
    family="model_free",
    summary="behaviour cloning: imitates the actions of logged data",
    takes=("continuous actions", "discrete actions"),
    requires=("a file of transitions (`--data`)",),
    offline=make,
    needs_data=True,
    tiny={**TINY_RUN, "agent.hidden": (16, 16)},
    goals=(
        Goal(
            "bc-pendulum",
            "pendulum",
            3000,
            -200.0,
            data=4000,
            behaviour="td3",
            about="small preset, from 4,000 transitions of TD3's policy",
        ),
    ),
)
