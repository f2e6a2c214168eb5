"""Random-sample one-step tabular Q-planning (Sutton and Barto, Reinforcement Learning, 2nd edition, section 8.1).

for each environment step:
    act epsilon-greedily with respect to Q; ties are broken at random
    count the outcome (r, s', d) of (s, a) in the model
    n times:
        s: a uniformly random visited state; a: a uniformly random action that was tried in s
        r, s', d: a sample of the model, in proportion to the counts
        Q(s, a) <- Q(s, a) + alpha [r + gamma (1 - d) max_a' Q(s', a') - Q(s, a)]

Q is updated with samples of the model only, never with a real step. With the true model all pairs that can be reached are
known from the beginning; epsilon = 1 learns the model from random actions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from annotated_types import Ge
from jaxtyping import Array, Float, Int

from jaxmbrl.agents import tables
from jaxmbrl.algorithms.registry import Goal, Method
from jaxmbrl.algorithms.shared import TabularSettings, no_data, traced_values
from jaxmbrl.core.config import UserError
from jaxmbrl.core.types import Algorithm, Average, Clock, Hyper, Key, Metrics, Policy, Task, Transition, flatten
from jaxmbrl.envs.base import discrete_sizes
from jaxmbrl.models import tabular
from jaxmbrl.models.tabular import TabularModel


@dataclass(frozen=True)
class Config(TabularSettings):
    """Settings of a run of Q-planning."""

    planning_updates: Annotated[int, Ge(1)] = 10
    """n: updates for each environment step."""
    outcomes: Annotated[int, Ge(1)] = 4
    """K: largest number of different outcomes of a pair in the learned model."""
    model: Literal["learned", "true"] = "learned"
    """The model: counts of what was observed, or the task's own table."""


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
    """Q-planning on `task`. Raises UserError if the true model is asked for and the task has no table."""
    sizes, n, learned = discrete_sizes(task, "q-planning"), config.planning_updates, config.model == "learned"
    first = tabular.init(*sizes, config.outcomes) if learned else tables.model_of(task)
    if first is None:
        raise UserError(f"model must be learned: the environment of task '{task.name}' has no table of its outcomes")

    def init(key: Key, hyper: Hyper, data: Transition | None = None) -> State:
        no_data(data, "q-planning")
        return State(jnp.zeros(sizes), first, key, jnp.zeros((), jnp.int32), **traced_values(config, hyper))

    def policy(state: State, clock: Clock, explore: bool) -> Policy:
        return tables.epsilon_greedy(state.q, task, state.epsilon, explore)

    def learn(clock: Clock, state: State, transitions: Transition) -> tuple[State, Metrics]:
        key, planning_key = jax.random.split(state.key)

        def step(carried: tuple[Any, TabularModel], given: tuple[Transition, Any]) -> tuple[Any, Any]:
            (q, model), (row, numbers) = carried, given
            if learned:
                model = tabular.count(model, row, clock.env_steps)

            def plan(q: Any, numbers: Any) -> tuple[Any, Any]:
                at, action = tabular.draw_pair(model, numbers[:2])
                outcome = tabular.draw_outcome(model, at, action, numbers[2])
                error = tables.td_error(q, state.discount, at, action, outcome)
                return tables.moved(q, state.learning_rate, at, action, error), error

            q, errors = jax.lax.scan(plan, q, numbers)
            return (q, model), errors

        rows = flatten(transitions)
        numbers = jax.random.uniform(planning_key, (len(rows.reward), n, 3))
        (q, model), errors = jax.lax.scan(step, (state.q, state.model), (rows, numbers))
        found = tables.measures("planning", errors, state.learning_rate) | {"model/dropped": Average.of(model.dropped)}
        updates = state.updates + len(rows.reward) * n
        return state._replace(q=q, model=model, key=key, updates=updates), found

    def probes(state: State) -> Metrics:
        return tables.probes(task, state.q, state.updates, state.discount)

    return Algorithm(init, policy, learn, period=1, probes=probes)


METHOD = Method(
    make,
    Config,
    family="tabular",
    summary="Q-learning on samples of a learned or given model alone, which may be stochastic",
    tiny={"epoch_steps": 100},
    goals=(
        Goal("q-planning-cliff", "CliffWalking", 10_000, -13.0),
        Goal("q-planning-frozen-lake", "FrozenLake", 10_000, 0.65, seeds_at_goal=0, about="the model of random actions"),
    ),
    takes=("tables",),
)
