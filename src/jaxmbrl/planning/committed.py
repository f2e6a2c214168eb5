"""Open-loop control: a plan is executed to its end without replanning. It is a baseline for model-predictive control."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Shaped

from jaxmbrl.core.spaces import Space
from jaxmbrl.core.types import Action, Key, Observation, Planner, Policy, PyTree, World
from jaxmbrl.planning.policy import Propose, propose
from jaxmbrl.planning.problem import Discount, RiskConfig, TerminalValue, make_problem
from jaxmbrl.planning.search import default_plan


class Playing(NamedTuple):
    """A plan, and the number of its actions that have been taken."""

    actions: Shaped[Array, "H ..."]
    played: Int[Array, ""]


def open_loop_policy(
    planner: Planner,
    world: World,
    origin: Callable[[Observation], Any],
    action: Space,
    *,
    risk: RiskConfig | None = None,
    discount: Discount = 1.0,
    terminal_value: TerminalValue | None = None,
    proposals: Propose | None = None,
) -> Policy:
    """Plan from the observation, take all H actions without feedback, then plan again from scratch.

    The parameters are those of `planning_policy`. The extras of a plan's first action are the statistics of the search,
    those of its other actions are zeros. Batched over environments and seeds, no search runs in a step where none of them
    needs a plan.
    """

    def solve(observation: Observation, key: Key) -> tuple[Shaped[Array, "H ..."], PyTree]:
        problem = make_problem(
            world, origin(observation), action, risk=risk, discount=discount, terminal_value=terminal_value
        )
        offered, key = propose(proposals, observation, key)
        actions, _, statistics = planner.plan(problem, planner.init(), key, offered)
        return actions, statistics

    def init(key: Key) -> Playing:
        actions = default_plan(planner.horizon, action)
        return Playing(actions, jnp.full((), planner.horizon, jnp.int32))

    def act(memory: Playing, observation: Observation, key: Key) -> tuple[Action, PyTree, Playing]:
        over = memory.played >= memory.actions.shape[0]
        none = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(solve, observation, key)[1])
        # A loop of zero or one iterations: a batched `lax.cond` would always search.
        _, actions, statistics = jax.lax.while_loop(
            lambda loop: loop[0],
            lambda loop: (jnp.zeros((), bool), *solve(observation, key)),
            (over, memory.actions, none),
        )
        step = jnp.where(over, 0, memory.played)
        return actions[step], statistics, Playing(actions, step + 1)

    return Policy(init, act)
