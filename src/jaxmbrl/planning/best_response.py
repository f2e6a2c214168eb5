"""Planning for several agents: each optimises its own actions, and those of the others are fixed.

The joint action [A] is the actions of all agents in a row, and all agents have the same return. In a sweep

    for each agent i in turn:  u_i <- argmax over u_i of score(u_1, .., u_i, .., u_n),  with the latest u_j of the others

which is coordinate ascent: with exact responses no sweep lowers the score. If the agents answered at once, they could
oscillate: each would avoid where the other has just been. `independent` is the plan of agents that know nothing of each
other: each answers to actions 0 of the others.

The plans start from those of the last control step, shifted by one. With one agent and one sweep this is its planner.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxmbrl.core.config import UserError
from jaxmbrl.core.spaces import Box
from jaxmbrl.core.types import Key, Objective, Planner, Problem, PyTree
from jaxmbrl.planning import search
from jaxmbrl.planning.problem import unit_box


class Joint(NamedTuple):
    """State that one plan passes to the next."""

    actions: Float[Array, "H A"]
    """The last plan, shifted by one step."""
    own: tuple[Any, ...]
    """The state of each agent's planner."""


def make(
    make_planner: Callable[[Box], Planner],
    sizes: Sequence[int],
    horizon: int,
    sweeps: int = 1,
    independent: bool = False,
) -> Planner:
    """A planner of joint actions in [-1, 1] for agents with `sizes` numbers each. `make_planner(space)` makes the planner
    of one agent, and all plan for `horizon` steps. Its statistics are the sums of those of all searches. Raises UserError
    if there is no agent or no sweep."""
    if not sizes or sweeps < 1:
        raise UserError(f"best responses need at least one agent and one sweep, got sizes {tuple(sizes)}, sweeps {sweeps}")
    joint = unit_box(sum(sizes))
    spaces = [unit_box(size) for size in sizes]
    planners = [make_planner(space) for space in spaces]
    blocks = [slice(sum(sizes[:i]), sum(sizes[: i + 1])) for i in range(len(sizes))]
    rounds = 1 if independent else sweeps

    def init() -> Joint:
        return Joint(jnp.zeros((horizon, joint.shape[0])), tuple(planner.init() for planner in planners))

    def plan(
        problem: Problem, state: Joint, key: Key, proposals: Float[Array, "P H A"] | None = None
    ) -> tuple[Float[Array, "H A"], Joint, PyTree]:
        actions, own, found = state.actions, list(state.own), []
        searches = rounds * len(planners)
        keys = [key] if searches == 1 else list(jax.random.split(key, searches))
        for _ in range(rounds):
            for i, planner in enumerate(planners):
                others = jnp.zeros_like(actions) if independent else actions
                asked = problem._replace(
                    score=_with_others(problem.score, others, blocks[i]), action=spaces[i], stages=None
                )
                offered = None if proposals is None else proposals[..., blocks[i]]
                # Every sweep searches from the last control step's plan: the state after a search is one step ahead.
                best, own[i], statistics = planner.plan(asked, state.own[i], keys.pop(0), offered)
                actions = actions.at[:, blocks[i]].set(best)
                found.append(statistics)
        total = jax.tree.map(lambda *x: sum(x), *found)
        return actions, Joint(search.shift(actions, jnp.zeros(joint.shape)), tuple(own)), total

    return Planner(init, plan, horizon)


def _with_others(score: Objective, joint: Float[Array, "H A"], block: slice) -> Objective:
    """The score of one agent's actions, with the actions of the others from `joint`."""
    return lambda own, key: score(joint.at[:, block].set(own), key)
