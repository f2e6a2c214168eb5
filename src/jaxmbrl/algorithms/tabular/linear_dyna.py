"""Linear Dyna with prioritized sweeping (Sutton, Szepesvari, Geramifard and Bowling, arXiv 1206.3285, algorithms 1 to 4).

The value is linear in features phi of d numbers, V = theta^T phi. The model of an action a predicts the next features
F_a phi, and the reward b_a^T phi.

for each environment step:
    act epsilon-greedily with respect to b_a^T phi + gamma theta^T F_a phi
    delta <- r + gamma theta^T phi' - theta^T phi, with phi' = 0 if the task terminated
    theta <- theta + alpha delta phi
    F_a <- F_a + alpha (phi' - F_a phi) phi^T;   b_a <- b_a + alpha (r - b_a^T phi) phi
    n times, with delta_i = max_a {b_a[i] + gamma theta^T F_a[:, i]} - theta[i], the error of the unit feature i:
        random: i is uniformly random; theta[i] <- theta[i] + alpha delta_i
        pwma: i <- the first of the queue; theta[i] <- theta[i] + alpha delta_i;
              each j with F[i, j] != 0 is queued with priority |F[i, j] delta_i|
              (a real step queues j with |F[i, j] delta phi[i]| for all i with phi[i] != 0)
        mg: i <- the first of the queue; for each j with F[i, j] != 0: theta[j] <- theta[j] + alpha delta_j,
            and j is queued with priority |delta_j|
              (a real step queues each i with |delta phi[i]|)

alpha falls with the number t of the episode: alpha_0 (N0 + 1) / (N0 + t^1.1). With one action this evaluates the policy;
the planning then has the fixed point of least-squares TD. Features are the observation, or the one-hot code of a discrete
one.

Differs from the paper: the features j of one sweep of mg are updated at once, from the same theta. F[i, j] of several
actions is the one with the largest absolute value. The model has a step size alpha_0 of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from annotated_types import Ge, Gt, Le
from jaxtyping import Array, Float, Int

from jaxmbrl.agents import tables
from jaxmbrl.agents.exploration import with_epsilon
from jaxmbrl.algorithms.registry import Goal, Method
from jaxmbrl.algorithms.shared import TabularSettings, no_data, traced_values
from jaxmbrl.core import metrics
from jaxmbrl.core.config import Traced
from jaxmbrl.core.spaces import encode, encoded_size
from jaxmbrl.core.types import Algorithm, Average, Clock, Hyper, Key, Metrics, Policy, Task, Transition, flatten
from jaxmbrl.data import priority_queue
from jaxmbrl.data.priority_queue import PriorityQueue
from jaxmbrl.envs.base import number_of_actions


@dataclass(frozen=True)
class Config(TabularSettings):
    """Settings of a run of linear Dyna."""

    model_learning_rate: Annotated[float, Gt(0), Le(1), Traced] = 0.1
    """Step size alpha_0 of F and b."""
    decay: Annotated[float, Gt(0), Traced] = 1e6
    """N0: number of episodes after which the step sizes fall; a large one keeps them constant."""
    planning_updates: Annotated[int, Ge(0)] = 1
    """n: entries of the queue, or random features, for each environment step."""
    sweep: Literal["random", "pwma", "mg"] = "mg"
    """The choice of features in planning: random, or prioritized sweeping as by Peng and Williams and Moore and Atkeson
    (pwma), or as by McMahan and Gordon (mg)."""


class LinearModel(NamedTuple):
    """Next features and rewards that are linear in the d features, for each of A actions."""

    forward: Float[Array, "A d d"]
    """F_a: F_a phi are the next features."""
    reward: Float[Array, "A d"]
    """b_a."""


class State(NamedTuple):
    """The whole state of a run."""

    theta: Float[Array, "d"]
    model: LinearModel
    queue: PriorityQueue
    """Of features, [d]."""
    episodes: Int[Array, ""]
    """Episodes that have ended."""
    key: Key
    updates: Int[Array, ""]
    """Entries of theta that planning has updated."""
    learning_rate: Float[Array, ""]
    discount: Float[Array, ""]
    epsilon: Float[Array, ""]
    model_learning_rate: Float[Array, ""]
    decay: Float[Array, ""]


def fit(model: LinearModel, rate: Any, phi: Any, action: Any, reward: Any, next_phi: Any) -> LinearModel:
    """One gradient step of the model of `action` on its squared errors."""
    missed = next_phi - model.forward[action] @ phi
    return LinearModel(
        forward=model.forward.at[action].add(rate * missed[:, None] * phi),
        reward=model.reward.at[action].add(rate * (reward - model.reward[action] @ phi) * phi),
    )


def returns(model: LinearModel, theta: Float[Array, "d"], discount: Any) -> Float[Array, "A d"]:
    """b_a[i] + gamma theta^T F_a[:, i]: the return of each action for each unit feature. It is linear: times phi it is that
    for the features phi."""
    return model.reward + discount * jnp.einsum("j,aji->ai", theta, model.forward)


def errors(model: LinearModel, theta: Float[Array, "d"], discount: Any) -> Float[Array, "d"]:
    """delta_i of all unit features."""
    return jnp.max(returns(model, theta, discount), axis=0) - theta


def influence(model: LinearModel) -> Float[Array, "d d"]:
    """|F[i, j]|: how much of the feature i follows the feature j, by the action for which this is most."""
    return jnp.max(jnp.abs(model.forward), axis=0)


class Planning(NamedTuple):
    """What planning changes."""

    theta: Float[Array, "d"]
    queue: PriorityQueue


def sweep_random(at: Planning, model: LinearModel, rate: Any, discount: Any, key: Key) -> tuple[Planning, Any]:
    """Update a random feature. Returns (planning, number of updates)."""
    i = jax.random.randint(key, (), 0, len(at.theta))
    return Planning(at.theta.at[i].add(rate * errors(model, at.theta, discount)[i]), at.queue), jnp.ones(())


def sweep_pwma(at: Planning, model: LinearModel, rate: Any, discount: Any, key: Key) -> tuple[Planning, Any]:
    """Update the first feature of the queue, and queue those that lead to it. Returns (planning, number of updates)."""
    queue, i, present = priority_queue.pop(at.queue)
    error = jnp.where(present, errors(model, at.theta, discount)[i], 0.0)
    queue = priority_queue.push_all(queue, influence(model)[i] * jnp.abs(error))
    return Planning(at.theta.at[i].add(rate * error), queue), present.astype(float)


def sweep_mg(at: Planning, model: LinearModel, rate: Any, discount: Any, key: Key) -> tuple[Planning, Any]:
    """Update and queue the features that lead to the first one of the queue. Returns (planning, number of updates)."""
    queue, i, present = priority_queue.pop(at.queue)
    leads = present & (influence(model)[i] != 0)
    error = jnp.where(leads, errors(model, at.theta, discount), 0.0)
    queue = priority_queue.push_all(queue, jnp.abs(error))
    return Planning(at.theta + rate * error, queue), jnp.sum(leads).astype(float)


SWEEPS = {"random": sweep_random, "pwma": sweep_pwma, "mg": sweep_mg}


def make(config: Config, task: Task) -> Algorithm:
    """Linear Dyna on `task`."""
    actions, size = number_of_actions(task, "linear-dyna"), encoded_size(task.observation)
    n, sweep = config.planning_updates, SWEEPS[config.sweep]

    def init(key: Key, hyper: Hyper, data: Transition | None = None) -> State:
        no_data(data, "linear-dyna")
        none = jnp.zeros((), jnp.int32)
        model = LinearModel(jnp.zeros((actions, size, size)), jnp.zeros((actions, size)))
        queue = priority_queue.init((size,))
        return State(jnp.zeros(size), model, queue, none, key, none, **traced_values(config, hyper))

    def policy(state: State, clock: Clock, explore: bool) -> Policy:
        def act(memory: Any, observation: Any, key: Key) -> Any:
            phi = encode(task.observation, observation)
            values = returns(state.model, state.theta, state.discount) @ phi
            return tables.argmax(values, key), (), memory

        greedy = Policy(lambda key: (), act)
        return with_epsilon(greedy, task.action, state.epsilon) if explore else greedy

    def learn(clock: Clock, state: State, transitions: Transition) -> tuple[State, Metrics]:
        key, planning_key = jax.random.split(state.key)

        def step(learned: Any, given: tuple[Transition, Key]) -> tuple[Any, Metrics]:
            (theta, model, queue, episodes), (row, key) = learned, given
            falls = (state.decay + 1) / (state.decay + (episodes + 1.0) ** 1.1)
            rate, model_rate = state.learning_rate * falls, state.model_learning_rate * falls
            phi = encode(task.observation, row.observation)
            next_phi = jnp.where(row.terminated, 0.0, encode(task.observation, row.next_observation))
            error = row.reward + state.discount * next_phi @ theta - phi @ theta
            theta = theta + rate * error * phi
            model = fit(model, model_rate, phi, row.action, row.reward, next_phi)
            if config.sweep == "pwma":
                queue = priority_queue.push_all(queue, jnp.max(influence(model) * jnp.abs(error * phi)[:, None], axis=0))
            elif config.sweep == "mg":
                queue = priority_queue.push_all(queue, jnp.abs(error * phi))

            def plan(at: Any, key: Key) -> tuple[Any, Any]:
                return sweep(at, model, rate, state.discount, key)

            (theta, queue), made = jax.lax.scan(plan, Planning(theta, queue), jax.random.split(key, n))
            ended = row.terminated | row.truncated
            found = {
                "linear/td_error": Average.of(jnp.abs(error)),
                "linear/change": Average.of(jnp.abs(rate * error)),
                "planning/updates": Average.of(jnp.sum(made)),
            }
            return (theta, model, queue, episodes + ended), found

        rows = flatten(transitions)
        given = (rows, jax.random.split(planning_key, len(rows.reward)))
        learned, found = jax.lax.scan(step, (state.theta, state.model, state.queue, state.episodes), given)
        found = metrics.total(found)
        theta, model, queue, episodes = learned
        updates = state.updates + found["planning/updates"].total.astype(jnp.int32)
        after = state._replace(theta=theta, model=model, queue=queue, episodes=episodes, key=key, updates=updates)
        return after, found

    def probes(state: State) -> Metrics:
        greedy = policy(state, Clock(jnp.zeros((), jnp.int32)), False)
        return tables.steps_to_goal("linear", task, greedy) | {"linear/updates": Average.of(state.updates)}

    return Algorithm(init, policy, learn, period=1, probes=probes)


METHOD = Method(
    make,
    Config,
    family="tabular",
    paper="1206.3285",
    summary="Dyna with linear features: a linear model, and planning by random, PWMA or MG sweeps",
    tiny={"epoch_steps": 100},
    goals=(Goal("linear-dyna-cliff", "CliffWalking", 10_000, -15.0),),
    takes=("tables", "discrete actions"),
)
