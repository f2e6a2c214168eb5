"""Policy shooting: the best of many trajectories of a policy in the model, as BMPO refines its actions (Lai et al., arXiv
2007.01995, section 4.4).

    a_0^n ~ pi(.|s_0),    a_t^n = mean action of pi at s_t^n for 0 < t < H
    return the actions of the n with the largest  sum_{t<H} discount^t m_t r_t  +  discount^H m_H V(s_H)

where m_t is the probability of no termination before. The candidates are the rows of one rollout of a learned `World`:
give the problem an origin of N equal rows. Unlike the candidates of other planners, they react to the states that they
reach, and each has noise and members of its own. There is no state between plans. If no return is finite, the plan repeats
the middle of the bounds.

Difference from the paper: only the first action is sampled, as in its code; with `stochastic_tail` all are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import jax
import jax.numpy as jnp
from annotated_types import Ge
from jaxtyping import Array, Float, Shaped

from jaxmbrl import returns
from jaxmbrl.core.spaces import Space
from jaxmbrl.core.types import Key, Planner, Policy, Problem, PyTree
from jaxmbrl.planning import search
from jaxmbrl.planning.problem import Discount
from jaxmbrl.rollout import rollout


@dataclass(frozen=True)
class PolicyShootingConfig:
    """Settings of policy shooting."""

    horizon: Annotated[int, Ge(1)] = 6
    """Planning horizon H, in steps."""
    stochastic_tail: bool = False
    """Whether the actions after the first are sampled, too."""


def make(config: PolicyShootingConfig, action: Space, sampled: Policy, greedy: Policy, discount: Discount = 1.0) -> Planner:
    """Policy shooting with the policy `sampled` and its version without exploration, `greedy`, both without memory and on
    blocks of observations. `discount`, which may be traced, replaces that of the problem's score, which is not used.

    Its statistics: `nonfinite`, the number of candidates whose return was not finite. `plan` raises ValueError if it is
    given proposals, because candidates are trajectories of the policy.
    """
    later = sampled if config.stochastic_tail else greedy

    def plan(
        problem: Problem, state: tuple[()], key: Key, proposals: Shaped[Array, "P H ..."] | None = None
    ) -> tuple[Shaped[Array, "H ..."], tuple[()], PyTree]:
        search.check_space(problem, action)
        if proposals is not None:
            raise ValueError("policy shooting takes no proposals: its candidates are trajectories of the policy")
        start_key, key = jax.random.split(key)
        at, first = rollout(problem.world, sampled, (problem.world.start(problem.origin, start_key), ()), key, 1)
        at, others = rollout(problem.world, later, at, key, config.horizon - 1, first=1)
        rows = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), first, others)
        last = jnp.zeros(rows.reward.shape[1:]) if problem.terminal_value is None else problem.terminal_value(at[0])
        found = jax.vmap(total_return, in_axes=(1, 1, 0, None))(rows.reward, rows.terminated, last, discount)
        best, value = search.best(jnp.moveaxis(rows.action, 1, 0), found, 1)
        plan = search.best_or(search.default_plan(config.horizon, action), best, value)
        return plan, (), {"nonfinite": jnp.sum(~jnp.isfinite(found), dtype=jnp.int32)}

    return Planner(lambda: (), plan, config.horizon)


def total_return(
    rewards: Float[Array, "H"], terminated: returns.Ends, last: Float[Array, ""], discount: Discount
) -> Float[Array, ""]:
    """The discounted return of a trajectory with the value `last` of its last state."""
    return returns.n_step_returns(rewards, terminated, last, discount)[0]
