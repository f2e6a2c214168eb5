"""Planning without looking again: what model-predictive control is measured against."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxmbrl.planners import return_of
from jaxmbrl.types import Action, Key, Observation, Planner, Policy, PyTree, World


class Playing(NamedTuple):
    """A plan, and how far it is played."""

    actions: Float[Array, "H A"]
    played: Int[Array, ""]


def open_loop_policy(planner: Planner, world: World, origin: Callable[[Observation], Any]) -> Policy:
    """Plan from the observation seen, play all H actions whatever happens, then plan anew, from scratch.

    `world` and `origin` are as for `planning_policy`; the statistics of a plan come with its first action, the others have
    zeros. Batched over environments or seeds, the search costs its time at every step: `lax.cond` then runs both branches.
    """

    def search(objective: Any, key: Key) -> tuple[Float[Array, "H A"], PyTree]:
        actions, _, statistics = planner.plan(objective, planner.init(), key)
        return actions, statistics

    def blank() -> tuple[Float[Array, "H A"], PyTree]:
        shapes = jax.eval_shape(lambda key: search(lambda actions, key: jnp.zeros(()), key), jax.random.key(0))
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

    def init(key: Key) -> Playing:
        actions = blank()[0]
        return Playing(actions, jnp.full((), actions.shape[0], jnp.int32))

    def act(memory: Playing, observation: Observation, key: Key) -> tuple[Action, PyTree, Playing]:
        over = memory.played >= memory.actions.shape[0]
        actions, statistics = jax.lax.cond(
            over, lambda: search(return_of(world, origin(observation)), key), lambda: (memory.actions, blank()[1])
        )
        step = jnp.where(over, 0, memory.played)
        return actions[step], statistics, Playing(actions, step + 1)

    return Policy(init, act)
