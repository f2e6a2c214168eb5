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

Of n discrete actions, each step has a categorical distribution p_t (`planning.categorical`), at first uniform:

    repeat `iterations` times:
        sample candidates from p
        p <- sum over candidates of softmax(returns / temperature) times the candidate, one-hot encoded
        p <- (1 - floor) p + floor / n, so that no choice dies out
    return the most probable choices

The next plan starts from p, shifted by one step, uniform in its last step.

Published settings: facebookresearch/mbrl-lib on half-cheetah (pets_mppi_halfcheetah.yaml): 5 iterations, population 350,
horizon 30, temperature 1 / 0.9, deviation 1 (which had no effect there), smoothing 0.9.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
from annotated_types import Ge, Gt, Le
from jaxtyping import Array, Float, Shaped

from jaxmbrl.core.spaces import Box, Discrete, Space
from jaxmbrl.core.types import Key, Planner, Problem, PyTree
from jaxmbrl.planning import categorical, search


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
    """Standard deviation of the noise, in units of half the action range. It has no effect on discrete actions."""
    smoothing: Annotated[float, Gt(0), Le(1)] = 0.9
    """Weight of a new action relative to the previous action; 1 for no smoothing. It has no effect on discrete actions."""
    floor: Annotated[float, Ge(0), Le(1)] = 0.05
    """Share of the uniform distribution in the probabilities of each step, for discrete actions."""


class PlanState(NamedTuple):
    """State that one plan passes to the next."""

    mean: Float[Array, "H A"]
    """Mean of the next search's first population."""
    played: Float[Array, "A"]
    """The last action taken."""


class Distribution(NamedTuple):
    """The distribution of action sequences that the search moves, with its parameters as an array."""

    init: Callable[[], Any]
    """Plan state of the first plan."""
    start: Callable[[Any], Array]
    """plan state -> parameters before the first iteration."""
    sample: Callable[[Key, Any, Array], Shaped[Array, "P H ..."]]
    """(key, plan state, parameters) -> candidates."""
    average: Callable[[Array, Shaped[Array, "Q H ..."], Float[Array, "Q"]], Array]
    """(parameters, candidates, their returns) -> parameters."""
    plan: Callable[[Array], tuple[Shaped[Array, "H ..."], Any]]
    """parameters -> (actions, next plan state)."""


def make(config: MPPIConfig, action: Space) -> Planner:
    """MPPI over sequences: [H, A] of actions in a bounded box, int32 [H] of a discrete space. Its statistics: `nonfinite`,
    the number of candidates of this plan whose return was not finite. Raises UserError for another space."""
    moved = choices(config, action.n) if isinstance(action, Discrete) else gaussian(config, action)

    def plan(
        problem: Problem, state: Any, key: Key, proposals: Shaped[Array, "P H ..."] | None = None
    ) -> tuple[Shaped[Array, "H ..."], Any, PyTree]:
        search.check_space(problem, action)
        offered = search.admit(proposals, config.horizon, action)

        def iteration(found: tuple[Array, Array], key: Key) -> tuple[tuple[Array, Array], None]:
            parameters, nonfinite = found
            noise_key, objective_key = jax.random.split(key)
            population = moved.sample(noise_key, state, parameters)
            population, returns, bad = search.evaluate(problem.score, population, objective_key, offered)
            return (moved.average(parameters, population, returns), nonfinite + bad), None

        start = (moved.start(state), jnp.zeros((), jnp.int32))
        (parameters, nonfinite), _ = jax.lax.scan(iteration, start, jax.random.split(key, config.iterations))
        actions, after = moved.plan(parameters)
        return actions, after, {"nonfinite": nonfinite}

    return Planner(moved.init, plan, config.horizon)


def gaussian(config: MPPIConfig, action: Box) -> Distribution:
    """Normal noise around a mean [H, A]. Raises UserError if `action` is not a bounded box of vectors."""
    box = search.bounded_box(action, "mppi")
    deviation = config.deviation * search.half_range(box)

    def init() -> PlanState:
        rest = search.default_plan(config.horizon, box)
        return PlanState(rest, rest[0])

    def sample(key: Key, state: PlanState, mean: Float[Array, "H A"]) -> Float[Array, "P H A"]:
        noise = deviation * jax.random.normal(key, (config.population, *mean.shape), mean.dtype)
        return candidates(mean, state.played, noise, config.smoothing, box)

    def plan(mean: Float[Array, "H A"]) -> tuple[Float[Array, "H A"], PlanState]:
        return mean, PlanState(search.shift(mean, jnp.full_like(mean[0], search.middle(box))), mean[0])

    return Distribution(
        init=init,
        start=lambda state: state.mean,
        sample=sample,
        average=lambda mean, population, returns: average(mean, population, returns, config.temperature, box),
        plan=plan,
    )


def choices(config: MPPIConfig, n: int) -> Distribution:
    """Categorical distributions [H, n] over n choices."""

    def average(probability: Array, population: Array, returns: Array) -> Array:
        weight = weights(returns, config.temperature)
        return categorical.floored(categorical.weighted(probability, population, weight), config.floor)

    return Distribution(
        init=lambda: categorical.PlanState(categorical.uniform(config.horizon, n)),
        start=lambda state: state.probability,
        sample=lambda key, state, probability: categorical.sample(key, probability, config.population),
        average=average,
        plan=lambda probability: (categorical.mode(probability), categorical.shifted(probability)),
    )


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
    weight = weights(returns, temperature)
    # Only rounding can exceed the bounds.
    found = search.clip(jnp.sum(weight[:, None, None] * population, axis=0), box)
    return jnp.where(jnp.any(jnp.isfinite(returns)), found, mean)


def weights(returns: Float[Array, "P"], temperature: float) -> Float[Array, "P"]:
    """softmax(returns / temperature), with weight 0 for returns that are not finite; all 0 if none is finite."""
    returns = search.finite_or_worst(returns)
    finite = jnp.isfinite(returns)
    # Subtract first, because the division may overflow.
    weight = jax.nn.softmax((returns - jnp.max(returns)) / temperature, where=finite)
    return jnp.where(finite, weight, 0.0)
