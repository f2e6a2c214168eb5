"""Random shooting: the best of many uniform action sequences, as in Nagabandi et al. (arXiv 1708.02596).

    A_1, ..., A_N ~ uniform over [-1, 1]^(H x A);    return the A_i of largest return

Nothing is carried over from one plan to the next. Of equal returns the first wins. Where no return is finite the plan is to
rest in the middle of the bounds. Published: N 2000 on PETS's cart-pole and reacher, 2500 on half-cheetah and pusher
(kchua/handful-of-trials: dmbrl/config).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import jax
from annotated_types import Ge
from jaxtyping import Array, Float

from jaxmbrl.core.types import Key, Objective, Planner, PyTree
from jaxmbrl.planning import search


@dataclass(frozen=True)
class RandomShootingConfig:
    """Settings of the search."""

    horizon: Annotated[int, Ge(1)] = 25
    """Steps planned ahead."""
    population: Annotated[int, Ge(1)] = 2000
    """Action sequences tried."""


def make(config: RandomShootingConfig, action_size: int) -> Planner:
    """Random shooting over sequences [H, A]. Its statistics: `nonfinite`, candidates whose return was not finite."""
    shape = (config.population, config.horizon, action_size)

    def plan(objective: Objective, state: tuple[()], key: Key) -> tuple[Float[Array, "H A"], tuple[()], PyTree]:
        population_key, objective_key = jax.random.split(key)
        population = jax.random.uniform(population_key, shape, float, search.LOW, search.HIGH)
        returns, nonfinite = search.evaluate(objective, population, objective_key)
        first, value = search.best(population, returns, 1)
        return search.best_or(search.resting(*shape[1:]), first, value), (), {"nonfinite": nonfinite}

    return Planner(lambda: (), plan)
