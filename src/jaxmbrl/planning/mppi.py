"""MPPI: model predictive path integral control, in its generic form (Williams et al., arXiv 1707.02342).

    repeat `iterations` times:
        draw candidates a_t = clip(smoothing (mean_t + noise_t) + (1 - smoothing) a_{t-1}), noise ~ N(0, deviation^2)
        mean <- sum over candidates of softmax(returns / temperature) times the candidate
    return the mean

The candidates are averaged as they were played, clipped. a_{-1} is the action played last, at an episode's start the
middle of the bounds. The next plan starts from the mean, shifted by one step, with the middle of the bounds at its end.
The paper's control cost, temperature mean' inverse(covariance) noise, is left out, as in vincekurtz/hydrax
(hydrax/algs/mppi.py).

Published settings: facebookresearch/mbrl-lib on half-cheetah (pets_mppi_halfcheetah.yaml): 5 iterations, population 350,
horizon 30, temperature 1 / 0.9, deviation 1 (which had no effect there), smoothing 0.9.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
from annotated_types import Ge, Gt, Le
from jaxtyping import Array, Float

from jaxmbrl.core.types import Key, Objective, Planner, PyTree
from jaxmbrl.planning import search


@dataclass(frozen=True)
class MPPIConfig:
    """Settings of the search."""

    horizon: Annotated[int, Ge(1)] = 30
    """Steps planned ahead."""
    population: Annotated[int, Ge(1)] = 350
    """Action sequences tried in each iteration."""
    iterations: Annotated[int, Ge(1)] = 5
    """Refinements of the mean."""
    temperature: Annotated[float, Gt(0)] = 1.1
    """Difference of returns that changes a weight by the factor e, in units of the return."""
    deviation: Annotated[float, Gt(0)] = 1.0
    """Standard deviation of the noise, in units of half the action range."""
    smoothing: Annotated[float, Gt(0), Le(1)] = 0.9
    """Share of a new action that is not taken over from the one before; 1 does not smooth."""


class PlanState(NamedTuple):
    """What one plan hands to the next."""

    mean: Float[Array, "H A"]
    played: Float[Array, "A"]
    """The action played last."""


def make(config: MPPIConfig, action_size: int) -> Planner:
    """MPPI over sequences [H, A]. Its statistics: `nonfinite`, candidates of this plan whose return was not finite."""

    def init() -> PlanState:
        rest = search.resting(config.horizon, action_size)
        return PlanState(rest, rest[0])

    def plan(objective: Objective, state: PlanState, key: Key) -> tuple[Float[Array, "H A"], PlanState, PyTree]:
        def iteration(found: tuple[Array, Array], key: Key) -> tuple[tuple[Array, Array], None]:
            mean, nonfinite = found
            noise_key, objective_key = jax.random.split(key)
            noise = config.deviation * jax.random.normal(noise_key, (config.population, *mean.shape), mean.dtype)
            population = candidates(mean, state.played, noise, config.smoothing)
            returns, bad = search.evaluate(objective, population, objective_key)
            return (average(mean, population, returns, config.temperature), nonfinite + bad), None

        start = (state.mean, jnp.zeros((), jnp.int32))
        (mean, nonfinite), _ = jax.lax.scan(iteration, start, jax.random.split(key, config.iterations))
        rest = jnp.full_like(mean[0], search.MIDDLE)
        return mean, PlanState(search.shift(mean, rest), mean[0]), {"nonfinite": nonfinite}

    return Planner(init, plan)


def candidates(
    mean: Float[Array, "H A"], played: Float[Array, "A"], noise: Float[Array, "P H A"], smoothing: float
) -> Float[Array, "P H A"]:
    """Action sequences around `mean`: each action leans towards the one before it, the first towards `played`."""

    def follow(before: Float[Array, "A"], target: Float[Array, "A"]) -> tuple[Array, Array]:
        action = search.clip(smoothing * target + (1 - smoothing) * before)
        return action, action

    return jax.vmap(lambda sequence: jax.lax.scan(follow, played, sequence)[1])(mean + noise)


def average(
    mean: Float[Array, "H A"], population: Float[Array, "P H A"], returns: Float[Array, "P"], temperature: float
) -> Float[Array, "H A"]:
    """The mean of the population by softmax(returns / temperature). Returns that are not finite have no weight; where
    none is finite `mean` stays."""
    returns = search.finite_or_worst(returns)
    finite = jnp.isfinite(returns)
    # Before the division, which may overflow.
    weight = jax.nn.softmax((returns - jnp.max(returns)) / temperature, where=finite)
    # Within the bounds but for rounding.
    middle = search.clip(jnp.sum(weight[:, None, None] * population, axis=0))
    return jnp.where(jnp.any(finite), middle, mean)
