"""Prioritized sweeping (Moore and Atkeson 1993; Sutton and Barto, Reinforcement Learning, 2nd edition, section 8.4).

for each environment step:
    act epsilon-greedily with respect to Q; ties are broken at random
    write the outcome (r, s', d) of (s, a) into the model
    P <- |E(s, a) - Q(s, a)|, where E(s, a) is the model's mean of r + gamma (1 - d) max_a' Q(s', a')
    if P > theta, insert (s, a) into the queue with priority P
    n times, while the queue is not empty:
        s, a <- the first pair of the queue
        Q(s, a) <- Q(s, a) + alpha [E(s, a) - Q(s, a)]
        for all pairs that the model has seen leading to s: insert them likewise

Q is updated from the queue only, never with a real step. The model remembers the last outcome of a pair (the box of the
book), or counts outcomes, for stochastic tasks: then E is an expectation over them, and a predecessor is every pair that
led to s at least once. A pair that is in the queue already keeps the larger of both priorities.

The queue is an array of the priorities of all pairs; a pop reads all of it, O(S A). Differs from Moore and Atkeson: the
priority of a predecessor is the size of its own update, not that of the successor weighted by the transition's probability.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from annotated_types import Ge, Gt, Le
from jaxtyping import Array, Float, Int

from jaxmbrl.agents import tables
from jaxmbrl.algorithms.registry import Goal, Method
from jaxmbrl.algorithms.shared import TabularSettings, no_data, traced_values
from jaxmbrl.core.config import Traced
from jaxmbrl.core.types import Algorithm, Average, Clock, Hyper, Key, Metrics, Policy, Task, Transition, flatten
from jaxmbrl.data import priority_queue
from jaxmbrl.data.priority_queue import PriorityQueue
from jaxmbrl.envs.base import discrete_sizes
from jaxmbrl.models import tabular
from jaxmbrl.models.tabular import TabularModel


@dataclass(frozen=True)
class Config(TabularSettings):
    """Settings of a run of prioritized sweeping."""

    learning_rate: Annotated[float, Gt(0), Le(1), Traced] = 0.5
    """Step size alpha of an update; 1 replaces the old value by the model's expectation."""
    planning_updates: Annotated[int, Ge(1)] = 5
    """n: largest number of updates for each environment step."""
    threshold: Annotated[float, Ge(0), Traced] = 1e-4
    """theta: pairs whose value would change by no more than this are not queued."""
    model: Literal["last", "counts"] = "last"
    """The model: the last outcome of a pair, for deterministic tasks, or the counts of its outcomes."""
    outcomes: Annotated[int, Ge(1)] = 4
    """K: largest number of different outcomes of a pair that are counted."""


class State(NamedTuple):
    """The whole state of a run."""

    q: Float[Array, "S A"]
    model: TabularModel
    queue: PriorityQueue
    updates: Int[Array, ""]
    learning_rate: Float[Array, ""]
    discount: Float[Array, ""]
    epsilon: Float[Array, ""]
    threshold: Float[Array, ""]


def make(config: Config, task: Task) -> Algorithm:
    """Prioritized sweeping on `task`."""
    sizes, n, counts = discrete_sizes(task, "prioritized-sweeping"), config.planning_updates, config.model == "counts"
    observe = tabular.count if counts else tabular.remember

    def init(key: Key, hyper: Hyper, data: Transition | None = None) -> State:
        no_data(data, "prioritized-sweeping")
        return State(
            q=jnp.zeros(sizes),
            model=tabular.init(*sizes, config.outcomes if counts else 1),
            queue=priority_queue.init(sizes),
            updates=jnp.zeros((), jnp.int32),
            **traced_values(config, hyper),
        )

    def policy(state: State, clock: Clock, explore: bool) -> Policy:
        return tables.epsilon_greedy(state.q, task, state.epsilon, explore)

    def learn(clock: Clock, state: State, transitions: Transition) -> tuple[State, Metrics]:
        def error(q: Any, model: TabularModel, at: Any, action: Any) -> Any:
            return tabular.target(model, q, state.discount, at, action) - q[at, action]

        def step(learned: tuple[Any, TabularModel, PriorityQueue], row: Transition) -> tuple[Any, Any]:
            q, model, queue = learned
            pair = (row.observation, row.action)
            model = observe(model, row, clock.env_steps)
            surprise = error(q, model, *pair)
            queue = priority_queue.push(queue, pair, jnp.abs(surprise), state.threshold)

            def sweep(learned: tuple[Any, PriorityQueue], _: None) -> tuple[Any, Any]:
                q, queue = learned
                queue, first, present = priority_queue.pop(queue)
                at, action = first // sizes[1], first % sizes[1]
                size = jnp.where(present, error(q, model, at, action), 0.0)
                q = tables.moved(q, state.learning_rate, at, action, size)
                errors = jnp.abs(tabular.targets(model, jnp.max(q, axis=1), state.discount) - q)
                changed = tabular.predecessors(model, at) & present
                queue = priority_queue.push_all(queue, jnp.where(changed, errors, 0.0), state.threshold)
                return (q, queue), (size, present)

            (q, queue), swept = jax.lax.scan(sweep, (q, queue), None, n)
            return (q, model, queue), (surprise, *swept)

        learned = (state.q, state.model, state.queue)
        (q, model, queue), (surprises, errors, made) = jax.lax.scan(step, learned, flatten(transitions))
        number = jnp.sum(made, dtype=jnp.int32)
        after = state._replace(q=q, model=model, queue=queue, updates=state.updates + number)
        found = {
            "planning/updates": Average.of(number / surprises.size),
            "model/td_error": Average.of(jnp.mean(jnp.abs(surprises))),
            "model/dropped": Average.of(model.dropped),
        }
        return after, found | tables.measures("planning", errors, state.learning_rate, number)

    def probes(state: State) -> Metrics:
        return tables.probes(task, state.q, state.updates, state.discount)

    return Algorithm(init, policy, learn, period=1, probes=probes)


METHOD = Method(
    make,
    Config,
    family="tabular",
    summary="updates with a model in the order of their size, backwards from what changed",
    tiny={"epoch_steps": 100},
    goals=(Goal("prioritized-sweeping-frozen-lake", "FrozenLake", 10_000, 0.65),),
    takes=("tables",),
)
