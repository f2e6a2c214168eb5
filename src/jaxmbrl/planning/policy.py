"""Model-predictive control (MPC): the policy that replans at every step.

At each step: solve the planning problem from the observation, take the first action of the solution, and start the next
search from the rest of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Shaped

from jaxmbrl.core.spaces import Space
from jaxmbrl.core.types import Action, Key, Memory, Observation, Planner, Policy, PyTree, World
from jaxmbrl.planning.problem import Discount, RiskConfig, TerminalValue, make_problem
from jaxmbrl.rollout import rollout

Propose = Callable[[Observation, Key], Shaped[Array, "P H ..."]]


def planning_policy(
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
    """Model-predictive control: plan from each observation and take the plan's first action. The memory is the planner's
    state, the extras are the statistics of the search.

    `origin(observation)` is the argument of `world.start`: the rows of a learned World, or a simulator's state. `action` is
    the space for which the planner was made; `risk`, `discount` and `terminal_value` are those of `make_problem`.
    `proposals(observation, key)` returns further candidate sequences [P, H, ...]. All candidates of an iteration share the
    random numbers of noise and ensemble members (common random numbers).
    """

    @jax.named_scope("plan")
    def act(memory: Memory, observation: Observation, key: Key) -> tuple[Action, PyTree, Memory]:
        problem = make_problem(
            world, origin(observation), action, risk=risk, discount=discount, terminal_value=terminal_value
        )
        offered, key = propose(proposals, observation, key)
        actions, memory, statistics = planner.plan(problem, memory, key, offered)
        return actions[0], statistics, memory

    return Policy(init=lambda key: planner.init(), act=act)


def proposals_of(world: World, policy: Policy, origin: Callable[[Observation], Any], horizon: int) -> Propose:
    """Proposals for `planning_policy`: the action sequences [P, H, ...] of a `policy` without memory in a learned `world`,
    one for each of the P rows of `origin(observation)` (TD-MPC2, arXiv 2310.16828, section 3.3)."""

    def proposed(observation: Observation, key: Key) -> Shaped[Array, "P H ..."]:
        start_key, rollout_key = jax.random.split(key)
        start = (world.start(origin(observation), start_key), ())
        return jnp.swapaxes(rollout(world, policy, start, rollout_key, horizon)[1].action, 0, 1)

    return proposed


def propose(proposals: Propose | None, observation: Observation, key: Key) -> tuple[Shaped[Array, "P H ..."] | None, Key]:
    """(proposals for `observation`, key for the search). Without a proposer: None and `key` itself."""
    if proposals is None:
        return None, key
    search_key, proposal_key = jax.random.split(key)
    return proposals(observation, proposal_key), search_key
