"""Dyna-Q (Sutton 1990; Sutton and Barto, Reinforcement Learning, 2nd edition, section 8.2).

for each environment step:
    act epsilon-greedily with respect to Q; ties are broken at random
    Q(s, a) <- Q(s, a) + alpha [r + gamma (1 - d) max_a' Q(s', a') - Q(s, a)]
    model(s, a) <- r, s', d
    n times:
        s: a uniformly random visited state; a: a uniformly random action that was tried in s; r, s', d <- model(s, a)
        the same update of Q(s, a)

With n = 0 this is Q-learning. Differs from the book: whether the task terminated, d, is a part of the model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
from annotated_types import Ge
from jaxtyping import Array, Float, Int

from jaxmbrl.agents import tables
from jaxmbrl.algorithms.registry import Goal, Method
from jaxmbrl.algorithms.shared import TabularSettings, no_data, traced_values
from jaxmbrl.core.types import Algorithm, Clock, Hyper, Key, Metrics, Policy, Task, Transition, flatten
from jaxmbrl.envs.base import discrete_sizes
from jaxmbrl.models import tabular
from jaxmbrl.models.tabular import TabularModel


@dataclass(frozen=True)
class Config(TabularSettings):
    """Settings of a run of Dyna-Q."""

    planning_updates: Annotated[int, Ge(0)] = 5
    """n: updates with the model for each environment step."""


class State(NamedTuple):
    """The whole state of a run."""

    q: Float[Array, "S A"]
    model: TabularModel
    key: Key
    updates: Int[Array, ""]
    learning_rate: Float[Array, ""]
    discount: Float[Array, ""]
    epsilon: Float[Array, ""]


def make(config: Config, task: Task) -> Algorithm:
    """Dyna-Q on `task`."""
    sizes, n = discrete_sizes(task, "dyna-q"), config.planning_updates

    def init(key: Key, hyper: Hyper, data: Transition | None = None) -> State:
        no_data(data, "dyna-q")
        none = jnp.zeros((), jnp.int32)
        return State(jnp.zeros(sizes), tabular.init(*sizes), key, none, **traced_values(config, hyper))

    def policy(state: State, clock: Clock, explore: bool) -> Policy:
        return tables.epsilon_greedy(state.q, task, state.epsilon, explore)

    def learn(clock: Clock, state: State, transitions: Transition) -> tuple[State, Metrics]:
        key, planning_key = jax.random.split(state.key)

        def update(q: Any, at: Any, action: Any, outcome: Any) -> tuple[Any, Any]:
            error = tables.td_error(q, state.discount, at, action, outcome)
            return tables.moved(q, state.learning_rate, at, action, error), error

        def step(learned: tuple[Any, TabularModel], given: tuple[Transition, Any]) -> tuple[Any, tuple[Any, Any]]:
            (q, model), (row, numbers) = learned, given
            q, error = update(q, row.observation, row.action, row)
            model = tabular.remember(model, row, clock.env_steps)

            def plan(q: Any, numbers: Any) -> tuple[Any, Any]:
                at, action = tabular.draw_pair(model, numbers)
                return update(q, at, action, tabular.last(model, at, action))

            q, planned = jax.lax.scan(plan, q, numbers)
            return (q, model), (error, planned)

        rows = flatten(transitions)
        numbers = jax.random.uniform(planning_key, (len(rows.reward), n, 2))
        (q, model), (errors, planned) = jax.lax.scan(step, (state.q, state.model), (rows, numbers))
        updates = state.updates + len(rows.reward) * (1 + n)
        rate = state.learning_rate
        found = tables.measures("q", errors, rate) | tables.measures("planning", planned, rate)
        return state._replace(q=q, model=model, key=key, updates=updates), found

    def probes(state: State) -> Metrics:
        return tables.probes(task, state.q, state.updates, state.discount)

    return Algorithm(init, policy, learn, period=1, probes=probes)


METHOD = Method(
    make,
    Config,
    family="tabular",
    summary="Q-learning that also updates with a model of the last outcomes",
    tiny={"epoch_steps": 100},
    goals=(Goal("dyna-q-cliff", "CliffWalking", 10_000, -13.0),),
    takes=("tables",),
)
