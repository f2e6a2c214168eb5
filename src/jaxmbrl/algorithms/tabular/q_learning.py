"""Q-learning (Watkins 1989; Sutton and Barto, Reinforcement Learning, 2nd edition, section 6.5).

for each environment step:
    act epsilon-greedily with respect to Q; ties are broken at random
    Q(s, a) <- Q(s, a) + alpha [r + gamma (1 - d) max_a' Q(s', a') - Q(s, a)]

d is 1 if the task terminated. An episode that was cut off by a time limit bootstraps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxmbrl.agents import tables
from jaxmbrl.algorithms.registry import Goal, Method
from jaxmbrl.algorithms.shared import TabularSettings, no_data, traced_values
from jaxmbrl.core.types import Algorithm, Clock, Hyper, Key, Metrics, Policy, Task, Transition, flatten
from jaxmbrl.envs.base import discrete_sizes


@dataclass(frozen=True)
class Config(TabularSettings):
    """Settings of a run of Q-learning."""


class State(NamedTuple):
    """The whole state of a run."""

    q: Float[Array, "S A"]
    updates: Int[Array, ""]
    learning_rate: Float[Array, ""]
    discount: Float[Array, ""]
    epsilon: Float[Array, ""]


def make(config: Config, task: Task) -> Algorithm:
    """Q-learning on `task`."""
    sizes = discrete_sizes(task, "q-learning")

    def init(key: Key, hyper: Hyper, data: Transition | None = None) -> State:
        no_data(data, "q-learning")
        return State(jnp.zeros(sizes), jnp.zeros((), jnp.int32), **traced_values(config, hyper))

    def policy(state: State, clock: Clock, explore: bool) -> Policy:
        return tables.epsilon_greedy(state.q, task, state.epsilon, explore)

    def learn(clock: Clock, state: State, transitions: Transition) -> tuple[State, Metrics]:
        def step(q: Any, row: Transition) -> tuple[Any, Any]:
            pair = (row.observation, row.action)
            error = tables.td_error(q, state.discount, *pair, row)
            return tables.moved(q, state.learning_rate, *pair, error), error

        rows = flatten(transitions)
        q, errors = jax.lax.scan(step, state.q, rows)
        after = state._replace(q=q, updates=state.updates + len(rows.reward))
        return after, tables.measures("q", errors, state.learning_rate)

    def probes(state: State) -> Metrics:
        return tables.probes(task, state.q, state.updates, state.discount)

    return Algorithm(init, policy, learn, period=1, probes=probes)


METHOD = Method(
    make,
    Config,
    family="tabular",
    summary="Q-learning in a table, without a model",
    tiny={"epoch_steps": 100},
    goals=(Goal("q-learning-cliff", "CliffWalking", 20_000, -13.0),),
    takes=("tables",),
)
