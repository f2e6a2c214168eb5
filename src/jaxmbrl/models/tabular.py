"""Models of finite tasks as tables: what was observed after each action in each state.

For each pair of a state and an action a model has up to K different outcomes (next state, reward, whether the task
terminated) with their counts. `remember` keeps the last outcome of a pair, for deterministic tasks (K = 1); `count` counts
outcomes, for stochastic ones.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxmbrl.core.types import Transition
from jaxmbrl.envs.tabular.tables import TabularMDP, visited


class TabularModel(NamedTuple):
    """Outcomes of pairs. S states, A actions, K outcomes of a pair. A pair that has not been tried leads back to its state,
    with reward 0."""

    successor: Int[Array, "S A K"]
    reward: Float[Array, "S A K"]
    """Mean reward of the outcome."""
    terminated: Bool[Array, "S A K"]
    counts: Float[Array, "S A K"]
    """How often the outcome was observed; 0 for places that are not in use, which follow those in use."""
    last_visit: Int[Array, "S A"]
    """Environment step at which the pair was tried last; 1 for pairs that have not been tried."""
    states: Int[Array, "S"]
    """The visited states in the order of their first visits, then zeros."""
    visited: Int[Array, ""]
    """Number of visited states."""
    dropped: Int[Array, ""]
    """Number of observations that were not counted because K other outcomes of the pair are known."""


class Outcome(NamedTuple):
    """What follows a pair; the fields have the same names as in `Transition`."""

    reward: Float[Array, ""]
    next_observation: Int[Array, ""]
    terminated: Bool[Array, ""]


def init(states: int, actions: int, outcomes: int = 1) -> TabularModel:
    """A model without observations. `outcomes` is K."""
    shape = (states, actions, outcomes)
    return TabularModel(
        successor=jnp.broadcast_to(jnp.arange(states, dtype=jnp.int32)[:, None, None], shape),
        reward=jnp.zeros(shape),
        terminated=jnp.zeros(shape, bool),
        counts=jnp.zeros(shape),
        last_visit=jnp.ones((states, actions), jnp.int32),
        states=jnp.zeros(states, jnp.int32),
        visited=jnp.zeros((), jnp.int32),
        dropped=jnp.zeros((), jnp.int32),
    )


def remember(model: TabularModel, row: Transition, time: Int[Array, ""]) -> TabularModel:
    """The model after the transition `row` at environment step `time`, whose outcome replaces the last one of the pair.
    Raises ValueError if the model has several outcomes of a pair."""
    if model.counts.shape[-1] != 1:
        raise ValueError(f"only a model with one outcome remembers the last one, got {model.counts.shape[-1]}")
    outcome = Outcome(row.reward, row.next_observation, row.terminated)
    return _write(model, row, time, jnp.zeros((), jnp.int32), outcome, jnp.ones(()))


def count(model: TabularModel, row: Transition, time: Int[Array, ""]) -> TabularModel:
    """The model after the transition `row` at environment step `time`, whose outcome is counted. An outcome is one next
    state, with or without termination; rewards are averaged. If all K places of the pair are taken by other outcomes, the
    observation is dropped, and counted in `dropped`."""
    at = (row.observation, row.action)
    counts, successors, ended = model.counts[at], model.successor[at], model.terminated[at]
    same = (counts > 0) & (successors == row.next_observation) & (ended == row.terminated)
    fits = same | (counts == 0)
    fit = jnp.any(fits)
    # The outcome's own place comes before the free ones, which follow all places in use.
    place = jnp.argmax(fits).astype(jnp.int32)
    number = counts[place] + fit
    before = model.reward[at][place]
    outcome = Outcome(
        reward=before + jnp.where(fit, (row.reward - before) / number, 0.0),
        next_observation=jnp.where(fit, row.next_observation, successors[place]),
        terminated=jnp.where(fit, row.terminated, ended[place]),
    )
    return _write(model, row, time, place, outcome, number)._replace(dropped=model.dropped + ~fit)


def _write(
    model: TabularModel,
    row: Transition,
    time: Int[Array, ""],
    place: Int[Array, ""],
    outcome: Outcome,
    number: Float[Array, ""],
) -> TabularModel:
    """The model with an outcome of the pair of `row`, counted `number` times, in a place of the pair."""
    state, action = row.observation, row.action
    at = (state, action, place)
    first = ~jnp.any(model.counts[state] > 0)
    # A state that is not new is written where it changes nothing: over the entry of the first visited state.
    slot = jnp.where(first, model.visited, 0)
    return model._replace(
        successor=model.successor.at[at].set(outcome.next_observation),
        reward=model.reward.at[at].set(outcome.reward),
        terminated=model.terminated.at[at].set(outcome.terminated),
        counts=model.counts.at[at].set(number),
        last_visit=model.last_visit.at[state, action].set(time),
        states=model.states.at[slot].set(jnp.where(first, state, model.states[0])),
        visited=model.visited + first,
    )


def tried(model: TabularModel) -> Bool[Array, "S A"]:
    """Which pairs have been observed."""
    return model.counts[..., 0] > 0


def draw_pair(model: TabularModel, numbers: Float[Array, "2"], untried: bool = False) -> tuple[Any, Any]:
    """(state, action): the state uniform among the visited ones, then the action uniform among those tried in it, or with
    `untried` among all actions. `numbers` are two uniform samples of [0, 1). The model must not be empty."""
    state = model.states[(numbers[0] * model.visited).astype(jnp.int32)]
    actions = model.counts.shape[1]
    if untried:
        return state, (numbers[1] * actions).astype(jnp.int32)
    known = model.counts[state, :, 0] > 0
    rank = (numbers[1] * jnp.sum(known)).astype(jnp.int32)
    return state, jnp.argmax(jnp.cumsum(known) > rank).astype(jnp.int32)


def last(model: TabularModel, state: Int[Array, ""], action: Int[Array, ""]) -> Outcome:
    """The outcome of a pair in a model with one outcome."""
    at = (state, action, 0)
    return Outcome(model.reward[at], model.successor[at], model.terminated[at])


def draw_outcome(model: TabularModel, state: Int[Array, ""], action: Int[Array, ""], number: Float[Array, ""]) -> Outcome:
    """An outcome of a pair, sampled in proportion to the counts. `number` is a uniform sample of [0, 1). A pair without
    observations leads back to its state."""
    below = jnp.cumsum(model.counts[state, action])
    # Strictly above, so that a place without observations is never taken; rounding must not lead beyond the last place.
    place = jnp.minimum(jnp.argmax(below > number * below[-1]), model.counts.shape[-1] - 1)
    at = (state, action, place)
    return Outcome(model.reward[at], model.successor[at], model.terminated[at])


def targets(model: TabularModel, values: Float[Array, "S"], discount: Any) -> Float[Array, "S A"]:
    """Expected one-step returns of all pairs, sum_k P_k (r_k + discount (1 - d_k) V(s_k)); 0 for a pair that has not been
    tried."""
    value = jnp.where(model.terminated, 0.0, values[model.successor])
    return _expected(model.counts, model.reward + discount * value)


def target(
    model: TabularModel, q: Float[Array, "S A"], discount: Any, state: Int[Array, ""], action: Int[Array, ""]
) -> Float[Array, ""]:
    """The same of one pair, with V(s) = max_a Q(s, a)."""
    at = (state, action)
    value = jnp.where(model.terminated[at], 0.0, jnp.max(q[model.successor[at]], axis=-1))
    return _expected(model.counts[at], model.reward[at] + discount * value)


def _expected(count: Float[Array, "*n K"], value: Float[Array, "*n K"]) -> Float[Array, "*n"]:
    """The mean of `value`, weighted by `count`; 0 if nothing was counted."""
    if count.shape[-1] == 1:  # exact, without a division
        return jnp.where(count[..., 0] > 0, value[..., 0], 0.0)
    total = jnp.sum(count, axis=-1)
    return jnp.sum(count * value, axis=-1) / jnp.where(total > 0, total, 1.0)


def predecessors(model: TabularModel, state: Int[Array, ""]) -> Bool[Array, "S A"]:
    """Which pairs have been observed to lead to `state`, without termination there."""
    return jnp.any((model.successor == state) & (model.counts > 0) & ~model.terminated, axis=-1)


def known(mdp: TabularMDP) -> TabularModel:
    """The model of a task of which all outcomes are known. Its visited states are those in which an episode can be before a
    step, in the order of their numbers; counts are the probabilities."""
    reached = visited(mdp)
    found = np.flatnonzero(reached)
    # Outcomes of probability 0 come last.
    order = np.argsort(-mdp.probabilities, axis=-1, kind="stable")
    successor, probability, reward, ended = (np.take_along_axis(table, order, axis=-1) for table in mdp[:4])
    return init(*mdp.successors.shape)._replace(
        successor=jnp.asarray(successor, jnp.int32),
        reward=jnp.asarray(reward, float),
        terminated=jnp.asarray(ended, bool),
        counts=jnp.asarray(np.where(reached[:, None, None], probability, 0.0), float),
        states=jnp.zeros(mdp.states, jnp.int32).at[: len(found)].set(found),
        visited=jnp.asarray(len(found), jnp.int32),
    )
