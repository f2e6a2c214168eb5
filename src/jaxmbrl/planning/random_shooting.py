"""Random shooting: the best of many uniform action sequences, as in Nagabandi et al. (arXiv 1708.02596).

    A_1, ..., A_N ~ uniform over the action space, H times;    return the A_i of largest score

There is no state between plans. Among equal returns the first is chosen. If no return is finite, the plan repeats the
middle of the bounds, or choice 0. Proposals are added to the N candidates.

Published: N 2000 on PETS's cart-pole and reacher, 2500 on half-cheetah and pusher
(kchua/handful-of-trials: dmbrl/config).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import jax
import jax.numpy as jnp
from annotated_types import Ge
from jaxtyping import Array, Shaped

from jaxmbrl.core.spaces import Discrete, Space
from jaxmbrl.core.types import Key, Planner, Problem, PyTree
from jaxmbrl.planning import search


@dataclass(frozen=True)
class RandomShootingConfig:
    """Settings of the search."""

    horizon: Annotated[int, Ge(1)] = 25
    """Planning horizon in steps."""
    population: Annotated[int, Ge(1)] = 2000
    """Action sequences evaluated."""


def make(config: RandomShootingConfig, action: Space) -> Planner:
    """Random shooting over sequences: [H, A] of actions in a bounded box, int32 [H] of a discrete space. Its statistics:
    `nonfinite`, the number of candidates whose return was not finite. Raises UserError for another space."""
    if not isinstance(action, Discrete):
        action = search.bounded_box(action, "random-shooting")

    def plan(
        problem: Problem, state: tuple[()], key: Key, proposals: Shaped[Array, "P H ..."] | None = None
    ) -> tuple[Shaped[Array, "H ..."], tuple[()], PyTree]:
        search.check_space(problem, action)
        offered = search.admit(proposals, config.horizon, action)
        population_key, objective_key = jax.random.split(key)
        drawn = sample(population_key, config.population, config.horizon, action)
        population, returns, nonfinite = search.evaluate(problem.score, drawn, objective_key, offered)
        first, value = search.best(population, returns, 1)
        return search.best_or(search.default_plan(config.horizon, action), first, value), (), {"nonfinite": nonfinite}

    return Planner(lambda: (), plan, config.horizon)


def sample(key: Key, population: int, horizon: int, action: Space) -> Shaped[Array, "P H ..."]:
    """Uniform action sequences [P, H, A], or int32 [P, H] of a discrete space."""
    shape = (population, horizon, *action.shape)
    if isinstance(action, Discrete):
        return jax.random.randint(key, shape, 0, action.n, jnp.int32)
    return jax.random.uniform(key, shape, float, action.low, action.high)
