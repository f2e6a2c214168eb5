"""The cross-entropy method over action sequences, as PETS uses it (Chua et al., arXiv 1805.12114).

    maximise score(a_0 .. a_{H-1}):

    start from mean = the last plan, shifted by one step; variance = (high - low)^2 / 16
    repeat while the largest variance exceeds a threshold, at most `iterations` times:
        sample a population from the normal distribution truncated at two standard deviations; the standard deviation is
            at most half the distance to the nearer action bound
        mean     <- momentum mean     + (1 - momentum) mean of the elites
        variance <- momentum variance + (1 - momentum) population variance of the elites
    return the mean

The constrained variance is only used for sampling; the stored variance is not constrained. Actions are within the bounds
`low` and `high` of their box. Proposals are candidates of every iteration, after the population.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
from annotated_types import Ge, Le, Lt
from jaxtyping import Array, Float, Int

from jaxmbrl.core.spaces import Box, Space
from jaxmbrl.core.types import Key, Planner, Problem, PyTree
from jaxmbrl.planning import search


@dataclass(frozen=True)
class CEMConfig:
    """Settings of the search."""

    horizon: Annotated[int, Ge(1)] = 25
    """Planning horizon in steps."""
    population: Annotated[int, Ge(1)] = 400
    """Action sequences evaluated in each iteration."""
    elites: Annotated[int, Ge(1)] = 40
    """Number of best sequences to which the distribution is refitted."""
    iterations: Annotated[int, Ge(1)] = 5
    """Largest number of iterations."""
    momentum: Annotated[float, Ge(0), Lt(1)] = 0.1
    """Weight of the old mean and variance in the new ones."""
    min_variance: Annotated[float, Ge(0), Le(1)] = 1e-3
    """The search stops when all variances are at most this, in units of the squared half action range."""

    def problem(self) -> tuple[str, str] | None:
        """(field, message) of the first violated rule that involves several fields, or None."""
        if self.elites > self.population:
            return "elites", f"must be at most population ({self.population}), got {self.elites}"
        return None


class PlanState(NamedTuple):
    """State that one plan passes to the next."""

    mean: Float[Array, "H A"]
    """Mean of the next search's first population."""


def make(config: CEMConfig, action: Space) -> Planner:
    """CEM over sequences [H, A] of actions in a bounded box. Its statistics: `nonfinite`, the number of candidates of this
    plan whose return was not finite. Raises UserError for another space."""
    box = search.bounded_box(action, "cem")
    shape, min_variance = (config.horizon, box.shape[0]), config.min_variance * search.half_range(box) ** 2

    def init() -> PlanState:
        return PlanState(search.default_plan(config.horizon, box))

    def plan(
        problem: Problem, state: PlanState, key: Key, proposals: Float[Array, "P H A"] | None = None
    ) -> tuple[Float[Array, "H A"], PlanState, PyTree]:
        search.check_space(problem, box)
        offered = search.admit(proposals, config.horizon, box)

        def unfinished(found: tuple[Array, Array, Array, Array]) -> Array:
            i, _, variance, _ = found
            return (i < config.iterations) & (jnp.max(variance) > min_variance)

        def iteration(found: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
            i, mean, variance, nonfinite = found
            population_key, objective_key = jax.random.split(jax.random.fold_in(key, i))
            population = sample(population_key, mean, variance, config.population, box)
            population, returns, bad = search.evaluate(problem.score, population, objective_key, offered)
            mean, variance = refit(mean, variance, population, returns, config.elites, config.momentum)
            return i + 1, mean, variance, nonfinite + bad

        zero: Int[Array, ""] = jnp.zeros((), jnp.int32)
        variance = jnp.full(shape, (box.high - box.low) ** 2 / 16, float)
        _, mean, _, nonfinite = jax.lax.while_loop(unfinished, iteration, (zero, state.mean, variance, zero))
        # Only rounding can exceed the bounds.
        mean = search.clip(mean, box)
        rest = jnp.full_like(mean[0], search.middle(box))
        return mean, PlanState(search.shift(mean, rest)), {"nonfinite": nonfinite}

    return Planner(init, plan)


def sample(
    key: Key, mean: Float[Array, "H A"], variance: Float[Array, "H A"], population: int, box: Box
) -> Float[Array, "P H A"]:
    """A population from the truncated normal of constrained variance; every action is within the bounds."""
    room = jnp.minimum(mean - box.low, box.high - mean) / 2
    deviation = jnp.sqrt(jnp.minimum(variance, room**2))
    noise = jax.random.truncated_normal(key, -2.0, 2.0, (population, *mean.shape), mean.dtype)
    # Only rounding can exceed the bounds.
    return search.clip(mean + deviation * noise, box)


def refit(
    mean: Float[Array, "H A"],
    variance: Float[Array, "H A"],
    population: Float[Array, "P H A"],
    returns: Float[Array, "P"],
    elites: int,
    momentum: float,
) -> tuple[Float[Array, "H A"], Float[Array, "H A"]]:
    """Mean and variance after one iteration. Elites whose return is not finite have no weight."""
    middle, spread = search.moments(mean, variance, *search.best(population, returns, elites))
    return momentum * mean + (1 - momentum) * middle, momentum * variance + (1 - momentum) * spread
