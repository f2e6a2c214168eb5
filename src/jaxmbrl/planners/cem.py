"""The cross-entropy method over action sequences, as PETS uses it (Chua et al., arXiv 1805.12114).

    start from mean = what is left of the last plan, variance = (high - low)^2 / 16
    repeat while the largest variance exceeds a threshold, at most `iterations` times:
        draw a population from the normal distribution cut off at two standard deviations, whose standard deviation is no
            larger than half the distance to the nearer action bound
        mean     <- momentum mean     + (1 - momentum) mean of the elites
        variance <- momentum variance + (1 - momentum) population variance of the elites
    return the mean

The constrained variance serves only for sampling; the stored one is not constrained. Actions are in [-1, 1].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
from annotated_types import Ge, Le, Lt
from jaxtyping import Array, Float, Int

from jaxmbrl.types import Key, Objective, Planner, PyTree

LOW, HIGH = -1.0, 1.0


@dataclass(frozen=True)
class CEMConfig:
    """Settings of the search."""

    horizon: Annotated[int, Ge(1)] = 25
    """Steps planned ahead."""
    population: Annotated[int, Ge(1)] = 400
    """Action sequences tried in each iteration."""
    elites: Annotated[int, Ge(1)] = 40
    """Best sequences that the distribution is refitted to."""
    iterations: Annotated[int, Ge(1)] = 5
    """Iterations at most."""
    momentum: Annotated[float, Ge(0), Lt(1)] = 0.1
    """Share of the old mean and variance that stays."""
    min_variance: Annotated[float, Ge(0), Le(1)] = 1e-3
    """The search stops when no variance is above this."""

    def problem(self) -> tuple[str, str] | None:
        """A rule between fields that is broken."""
        if self.elites > self.population:
            return "elites", f"must be at most population ({self.population}), got {self.elites}"
        return None


class PlanState(NamedTuple):
    """What one plan hands to the next."""

    mean: Float[Array, "H A"]


def make(config: CEMConfig, action_size: int) -> Planner:
    """CEM over sequences [H, A]. Its statistics: `nonfinite`, candidates of this plan whose return was not finite."""
    shape = (config.horizon, action_size)

    def init() -> PlanState:
        return PlanState(jnp.full(shape, (LOW + HIGH) / 2, float))

    def plan(objective: Objective, state: PlanState, key: Key) -> tuple[Float[Array, "H A"], PlanState, PyTree]:
        def unfinished(search: tuple[Array, Array, Array, Array]) -> Array:
            i, _, variance, _ = search
            return (i < config.iterations) & (jnp.max(variance) > config.min_variance)

        def iteration(search: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
            i, mean, variance, nonfinite = search
            population_key, objective_key = jax.random.split(jax.random.fold_in(key, i))
            population = sample(population_key, mean, variance, config.population)
            returns = jax.vmap(objective, in_axes=(0, None))(population, objective_key)
            mean, variance = refit(mean, variance, population, returns, config.elites, config.momentum)
            return i + 1, mean, variance, nonfinite + jnp.sum(~jnp.isfinite(returns), dtype=jnp.int32)

        zero: Int[Array, ""] = jnp.zeros((), jnp.int32)
        variance = jnp.full(shape, (HIGH - LOW) ** 2 / 16, float)
        _, mean, _, nonfinite = jax.lax.while_loop(unfinished, iteration, (zero, state.mean, variance, zero))
        padding = jnp.full((1, action_size), (LOW + HIGH) / 2, float)
        return mean, PlanState(jnp.concatenate([mean[1:], padding])), {"nonfinite": nonfinite}

    return Planner(init, plan)


def sample(key: Key, mean: Float[Array, "H A"], variance: Float[Array, "H A"], population: int) -> Float[Array, "P H A"]:
    """A population from the truncated normal of constrained variance; every action is within the bounds."""
    room = jnp.minimum(mean - LOW, HIGH - mean) / 2
    deviation = jnp.sqrt(jnp.minimum(variance, room**2))
    noise = jax.random.truncated_normal(key, -2.0, 2.0, (population, *mean.shape), mean.dtype)
    # Within the bounds but for rounding.
    return jnp.clip(mean + deviation * noise, LOW, HIGH)


def refit(
    mean: Float[Array, "H A"],
    variance: Float[Array, "H A"],
    population: Float[Array, "P H A"],
    returns: Float[Array, "P"],
    elites: int,
    momentum: float,
) -> tuple[Float[Array, "H A"], Float[Array, "H A"]]:
    """Mean and variance after one iteration. Returns that are not finite rank worst."""
    returns = jnp.where(jnp.isfinite(returns), returns, -jnp.inf)
    best = population[jax.lax.top_k(returns, elites)[1]]
    return (
        momentum * mean + (1 - momentum) * jnp.mean(best, axis=0),
        momentum * variance + (1 - momentum) * jnp.var(best, axis=0),
    )
