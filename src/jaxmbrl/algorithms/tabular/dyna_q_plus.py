"""Dyna-Q+ (Sutton and Barto, Reinforcement Learning, 2nd edition, section 8.3): Dyna-Q for tasks that change.

As Dyna-Q, but an update with the model takes the reward

    r + kappa sqrt(t - t_last(s, a))

t is the environment step and t_last(s, a) that at which the pair was tried last. All actions of a visited state are in the
model: one that has not been tried leads back to s with reward 0, and its t_last is 1. The bonus is neither in the model nor
in the reward of a real step. With kappa = 0 and without untried actions this is Dyna-Q.

t counts the steps of a seed over all its episodes and environments.
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
from jaxmbrl.core.config import Traced
from jaxmbrl.core.types import Algorithm, Clock, Hyper, Key, Metrics, Policy, Task, Transition, flatten
from jaxmbrl.envs.base import discrete_sizes
from jaxmbrl.models import tabular
from jaxmbrl.models.tabular import TabularModel


@dataclass(frozen=True)
class Config(TabularSettings):
    """Settings of a run of Dyna-Q+."""

    planning_updates: Annotated[int, Ge(0)] = 10
    """n: updates with the model for each environment step."""
    bonus: Annotated[float, Ge(0), Traced] = 1e-4
    """kappa: weight of the exploration bonus."""
    untried: bool = True
    """Whether untried actions of visited states are in the model."""


class State(NamedTuple):
    """The whole state of a run."""

    q: Float[Array, "S A"]
    model: TabularModel
    key: Key
    updates: Int[Array, ""]
    learning_rate: Float[Array, ""]
    discount: Float[Array, ""]
    epsilon: Float[Array, ""]
    bonus: Float[Array, ""]


def make(config: Config, task: Task) -> Algorithm:
    """Dyna-Q+ on `task`."""
    sizes, n = discrete_sizes(task, "dyna-q-plus"), config.planning_updates

    def init(key: Key, hyper: Hyper, data: Transition | None = None) -> State:
        no_data(data, "dyna-q-plus")
        none = jnp.zeros((), jnp.int32)
        return State(jnp.zeros(sizes), tabular.init(*sizes), key, none, **traced_values(config, hyper))

    def policy(state: State, clock: Clock, explore: bool) -> Policy:
        return tables.epsilon_greedy(state.q, task, state.epsilon, explore)

    def learn(clock: Clock, state: State, transitions: Transition) -> tuple[State, Metrics]:
        key, planning_key = jax.random.split(state.key)
        rate = state.learning_rate

        def step(learned: tuple[Any, TabularModel], given: tuple[Transition, Any]) -> tuple[Any, tuple[Any, Any]]:
            (q, model), (row, numbers) = learned, given
            q, error = tables.update(q, rate, state.discount, row.observation, row.action, row)
            model = tabular.remember(model, row, clock.env_steps)

            def plan(q: Any, numbers: Any) -> tuple[Any, Any]:
                at, action = tabular.draw_pair(model, numbers, config.untried)
                outcome = tabular.last(model, at, action)
                elapsed = clock.env_steps - model.last_visit[at, action]
                reward = outcome.reward + state.bonus * jnp.sqrt(elapsed.astype(float))
                return tables.update(q, rate, state.discount, at, action, outcome._replace(reward=reward))

            q, planned = jax.lax.scan(plan, q, numbers)
            return (q, model), (error, planned)

        rows = flatten(transitions)
        numbers = jax.random.uniform(planning_key, (len(rows.reward), n, 2))
        (q, model), (errors, planned) = jax.lax.scan(step, (state.q, state.model), (rows, numbers))
        updates = state.updates + len(rows.reward) * (1 + n)
        found = tables.measures("q", errors, rate) | tables.measures("planning", planned, rate)
        return state._replace(q=q, model=model, key=key, updates=updates), found

    def probes(state: State) -> Metrics:
        return tables.probes(task, state.q, state.updates, state.discount)

    return Algorithm(init, policy, learn, period=1, probes=probes)


METHOD = Method(
    make,
    Config,
    family="tabular",
    summary="Dyna-Q with a bonus for pairs that have not been tried for long, for tasks that change",
    tiny={"epoch_steps": 100},
    goals=(
        Goal("dyna-q-plus-cliff", "CliffWalking", 10_000, -13.0),
        Goal("dyna-q-plus-deep-sea", "bsuite/DeepSea/8/tabular", 1000, 0.9, seeds=8, seeds_at_goal=8),
    ),
    takes=("tables",),
)
