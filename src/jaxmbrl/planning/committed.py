"""Planning without looking again: what model-predictive control is measured against."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxmbrl.core.types import Action, Key, Observation, Planner, Policy, PyTree, World
from jaxmbrl.planning import return_of


class Playing(NamedTuple):
    """A plan, and how far it is played."""

    actions: Float[Array, "H A"]
    played: Int[Array, ""]


def open_loop_policy(planner: Planner, world: World, origin: Callable[[Observation], Any]) -> Policy:
    """Plan from the observation seen, play all H actions whatever happens, then plan anew, from scratch.

    `world` and `origin` are as for `planning_policy`; the statistics of a plan come with its first action, the others have
    zeros. Batched over environments and seeds, nothing is searched in the steps in which none of them needs a plan.
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
        # A loop of no or one turn: where batched, a `lax.cond` would search always.
        _, actions, statistics = jax.lax.while_loop(
            lambda loop: loop[0],
            lambda loop: (jnp.zeros((), bool), *search(return_of(world, origin(observation)), key)),
            (over, memory.actions, blank()[1]),
        )
        step = jnp.where(over, 0, memory.played)
        return actions[step], statistics, Playing(actions, step + 1)

    return Policy(init, act)
