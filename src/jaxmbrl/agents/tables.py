"""Action values in a table: Q-learning's update (Watkins 1989), the greedy policy, and measures of what was learned."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxmbrl.agents.exploration import with_epsilon
from jaxmbrl.core.types import Average, Key, Memory, Metrics, Policy, PyTree, Task
from jaxmbrl.envs.tabular.tables import goal_reward
from jaxmbrl.models import tabular
from jaxmbrl.models.tabular import TabularModel

SWEEPS, TOLERANCE = 10_000, 1e-6
"""Bounds of `optimal_values`."""


def td_error(q: Float[Array, "S A"], discount: Any, state: Any, action: Any, outcome: Any) -> Float[Array, ""]:
    """r + discount (1 - d) max_a Q(s', a) - Q(s, a). `outcome` has the fields `reward`, `next_observation` and
    `terminated`: a `Transition`, or the outcome of a model. A truncated episode bootstraps."""
    value = jnp.where(outcome.terminated, 0.0, jnp.max(q[outcome.next_observation]))
    return outcome.reward + discount * value - q[state, action]


def moved(q: Float[Array, "S A"], rate: Any, state: Any, action: Any, error: Float[Array, ""]) -> Float[Array, "S A"]:
    """Q with Q(s, a) moved by `rate` times `error`."""
    return q.at[state, action].add(rate * error)


def update(
    q: Float[Array, "S A"], rate: Any, discount: Any, state: Any, action: Any, outcome: Any
) -> tuple[Float[Array, "S A"], Float[Array, ""]]:
    """Q-learning's update. Returns (Q with Q(s, a) moved by `rate` times the TD error, the TD error)."""
    error = td_error(q, discount, state, action, outcome)
    return moved(q, rate, state, action, error), error


def measures(prefix: str, errors: Float[Array, "..."], rate: Float[Array, ""], number: Any = None) -> Metrics:
    """`prefix/td_error` and `prefix/change`: mean absolute error of updates, and mean size of the changes. `number` is that
    of the updates, by default that of the errors; others have the error 0."""
    total = jnp.sum(jnp.abs(errors))
    weight = jnp.asarray(errors.size if number is None else number, total.dtype)
    return {f"{prefix}/td_error": Average(total, weight), f"{prefix}/change": Average(jnp.abs(rate) * total, weight)}


def argmax(values: Float[Array, "A"], key: Key) -> Int[Array, ""]:
    """The index of the largest value; a uniform one of several that are equal. All values of a table are equal at first,
    and the first index alone would never try another."""
    tied = jnp.where(values == jnp.max(values), 0.0, -jnp.inf)
    return jax.random.categorical(key, tied).astype(jnp.int32)


def greedy(q: Float[Array, "S A"]) -> Policy:
    """The action of the largest value in the table."""

    def act(memory: Memory, state: Int[Array, ""], key: Key) -> tuple[Any, PyTree, Memory]:
        return argmax(q[state], key), (), memory

    return Policy(lambda key: (), act)


def epsilon_greedy(q: Float[Array, "S A"], task: Task, epsilon: Any, explore: bool) -> Policy:
    """The greedy policy; while exploring, a uniformly random action with probability `epsilon`."""
    return with_epsilon(greedy(q), task.action, epsilon) if explore else greedy(q)


def probes(task: Task, q: Float[Array, "S A"], updates: Int[Array, ""], discount: Any) -> Metrics:
    """Measures of a table: steps of a greedy episode (`steps_to_goal`), updates made, and max_s |max_a Q(s, a) - V*(s)|
    over the states that can be reached, if the environment has its table `mdp` (`envs.tabular.tables.TabularMDP`)."""
    found = steps_to_goal("table", task, greedy(q)) | {"table/updates": Average.of(updates)}
    model = model_of(task)
    if model is not None:
        error = jnp.abs(jnp.max(q, axis=1) - optimal_values(model, discount))
        of_reached = jnp.zeros(len(q), bool).at[model.states].set(True)
        found["table/value_error"] = Average.of(jnp.max(jnp.where(of_reached, error, 0.0)))
    return found


def model_of(task: Task) -> TabularModel | None:
    """The true model of a task whose environment has its table `mdp`; else None, also for repeated actions."""
    mdp = getattr(task.env, "mdp", None)
    return None if mdp is None else tabular.known(mdp)


def optimal_values(model: TabularModel, discount: Any) -> Float[Array, "S"]:
    """V* of a known model by value iteration, until no value changes by more than 1e-6 of the largest one, for at most
    10,000 sweeps."""

    def goes_on(loop: tuple[Any, Any, Any]) -> Any:
        sweeps, values, change = loop
        return (sweeps < SWEEPS) & (change > TOLERANCE * jnp.max(jnp.abs(values)))

    def sweep(loop: tuple[Any, Any, Any]) -> tuple[Any, Any, Any]:
        sweeps, values, _ = loop
        after = jnp.max(tabular.targets(model, values, discount), axis=1)
        return sweeps + 1, after, jnp.max(jnp.abs(after - values))

    start = (jnp.zeros((), jnp.int32), jnp.zeros(model.counts.shape[0]), jnp.full((), jnp.inf))
    return jax.lax.while_loop(goes_on, sweep, start)[1]


class Episode(NamedTuple):
    """Progress of an episode."""

    carry: PyTree
    steps: Int[Array, ""]
    reward: Float[Array, ""]
    """Of the last step."""
    terminated: Any
    truncated: Any


def steps_to_goal(prefix: str, task: Task, policy: Policy) -> Metrics:
    """`prefix/steps_to_goal`: steps of one episode of a `policy` to the goal, of no weight if it does not get there within
    the time limit. The goal is where an episode ends with the largest reward of such a step, so that a hole is none, by the
    environment's table `mdp`. Without a table it is not known what an end means: then this is `prefix/steps_to_end`, steps
    until the task terminates, which may be a failure. The episode and its random numbers are always the same. Nothing for a
    task that continues across episodes, whose first episode says little about the later ones, or that runs on the host."""
    if task.world.next_episode is not None or task.host is not None:
        return {}
    reset_key, key = jax.random.split(jax.random.key(0))
    mdp = getattr(task.env, "mdp", None)

    def goes_on(at: Episode) -> Any:
        return ~(at.terminated | at.truncated)

    def once(at: Episode) -> Episode:
        act_key, step_key = jax.random.split(jax.random.fold_in(key, at.steps))
        action, _, _ = policy.act((), task.world.observe(at.carry), act_key)
        carry, row = task.world.step(at.carry, action, step_key)
        return Episode(carry, at.steps + 1, row.reward, row.terminated, row.truncated)

    none = jnp.zeros((), bool)
    first = Episode(task.world.reset(reset_key), jnp.zeros((), jnp.int32), jnp.zeros(()), none, none)
    end = jax.lax.while_loop(goes_on, once, first)
    if mdp is None:
        return {f"{prefix}/steps_to_end": Average.of(end.steps, end.terminated)}
    reached = end.terminated & (end.reward >= jnp.asarray(goal_reward(mdp), end.reward.dtype))
    return {f"{prefix}/steps_to_goal": Average.of(end.steps, reached)}
