"""MPPI: model predictive path integral control, in its generic form (Williams et al., arXiv 1707.02342).

    maximise score(a_0 .. a_{H-1}):

    repeat `iterations` times:
        sample candidates a_t = clip(smoothing (mean_t + noise_t) + (1 - smoothing) a_{t-1}), noise ~ N(0, deviation^2)
        mean <- sum over candidates of softmax(returns / temperature) times the candidate
    return the mean

The average is over the clipped candidates. a_{-1} is the last action taken; at the start of an episode it is the middle of
the bounds. The next plan starts from the mean, shifted by one step, with the middle of the bounds at its end.
Proposals are candidates of every iteration, clipped and not smoothed.
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

from jaxmbrl.core.spaces import Box, Space
from jaxmbrl.core.types import Key, Planner, Problem, PyTree
from jaxmbrl.planning import search


@dataclass(frozen=True)
class MPPIConfig:
    """Settings of the search."""

    horizon: Annotated[int, Ge(1)] = 30
    """Planning horizon in steps."""
    population: Annotated[int, Ge(1)] = 350
    """Action sequences evaluated in each iteration."""
    iterations: Annotated[int, Ge(1)] = 5
    """Number of updates of the mean."""
    temperature: Annotated[float, Gt(0)] = 1.1
    """Difference of two returns at which their weights differ by the factor e, in units of the return."""
    deviation: Annotated[float, Gt(0)] = 1.0
    """Standard deviation of the noise, in units of half the action range."""
    smoothing: Annotated[float, Gt(0), Le(1)] = 0.9
    """Weight of a new action relative to the previous action; 1 for no smoothing."""


class PlanState(NamedTuple):
    """State that one plan passes to the next."""

    mean: Float[Array, "H A"]
    """Mean of the next search's first population."""
    played: Float[Array, "A"]
    """The last action taken."""


def make(config: MPPIConfig, action: Space) -> Planner:
    """MPPI over sequences [H, A] of actions in a bounded box. Its statistics: `nonfinite`, the number of candidates of this
    plan whose return was not finite. Raises UserError for another space."""
    box = search.bounded_box(action, "mppi")
    deviation = config.deviation * search.half_range(box)

    def init() -> PlanState:
        rest = search.default_plan(config.horizon, box)
        return PlanState(rest, rest[0])

    def plan(
        problem: Problem, state: PlanState, key: Key, proposals: Float[Array, "P H A"] | None = None
    ) -> tuple[Float[Array, "H A"], PlanState, PyTree]:
        search.check_space(problem, box)
        offered = search.admit(proposals, config.horizon, box)

        def iteration(found: tuple[Array, Array], key: Key) -> tuple[tuple[Array, Array], None]:
            mean, nonfinite = found
            noise_key, objective_key = jax.random.split(key)
            noise = deviation * jax.random.normal(noise_key, (config.population, *mean.shape), mean.dtype)
            population = candidates(mean, state.played, noise, config.smoothing, box)
            population, returns, bad = search.evaluate(problem.score, population, objective_key, offered)
            return (average(mean, population, returns, config.temperature, box), nonfinite + bad), None

        start = (state.mean, jnp.zeros((), jnp.int32))
        (mean, nonfinite), _ = jax.lax.scan(iteration, start, jax.random.split(key, config.iterations))
        rest = jnp.full_like(mean[0], search.middle(box))
        return mean, PlanState(search.shift(mean, rest), mean[0]), {"nonfinite": nonfinite}

    return Planner(init, plan)


def candidates(
    mean: Float[Array, "H A"], played: Float[Array, "A"], noise: Float[Array, "P H A"], smoothing: float, box: Box
) -> Float[Array, "P H A"]:
    """Action sequences around `mean`. Each action is smoothed with the previous one, the first with `played`."""

    def follow(before: Float[Array, "A"], target: Float[Array, "A"]) -> tuple[Array, Array]:
        action = search.clip(smoothing * target + (1 - smoothing) * before, box)
        return action, action

    return jax.vmap(lambda sequence: jax.lax.scan(follow, played, sequence)[1])(mean + noise)


def average(
    mean: Float[Array, "H A"], population: Float[Array, "P H A"], returns: Float[Array, "P"], temperature: float, box: Box
) -> Float[Array, "H A"]:
    """The mean of the population weighted by softmax(returns / temperature). Returns that are not finite have no weight; if
    none is finite, the result is `mean`."""
    returns = search.finite_or_worst(returns)
    finite = jnp.isfinite(returns)
    # Subtract first, because the division may overflow.
    weight = jax.nn.softmax((returns - jnp.max(returns)) / temperature, where=finite)
    # Only rounding can exceed the bounds.
    found = search.clip(jnp.sum(weight[:, None, None] * population, axis=0), box)
    return jnp.where(jnp.any(finite), found, mean)
