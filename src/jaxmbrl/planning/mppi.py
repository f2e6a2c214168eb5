"""MPPI: model predictive path integral control, in its generic form (Williams et al., arXiv 1707.02342).

    maximise score(a_0 .. a_{H-1}):

    repeat `iterations` times:
        sample candidates a_t = clip(smoothing (mean_t + noise_t) + (1 - smoothing) a_{t-1}), noise ~ N(0, deviation^2)
        mean <- sum over candidates of softmax(returns / temperature) times the candidate
    return the mean

TD-MPC2 (Hansen et al., arXiv 2310.16828, section 3.3) searches with elites and a deviation that is refitted, by settings:

    repeat `iterations` times:
        sample candidates; the elites are the `elites` best of them
        w = softmax(returns / temperature) of the elites
        mean <- sum w elite,  deviation <- sqrt(sum w (elite - mean)^2) between `min_deviation` and its first value
    return the mean, or with `drawn` an elite of the last iteration, drawn with probabilities w

The average is over the clipped candidates. a_{-1} is the first action of the last plan, as in mbrl-lib, also if another
action was taken, with noise or at random; at the start of an episode it is the middle of the bounds. The next plan starts
from the mean, shifted by one step, with the middle of the bounds at its end.
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
    elites: Annotated[int, Ge(1)] | None = None
    """Number of best candidates over which the average is taken; None for all."""
    min_deviation: Annotated[float, Gt(0)] | None = None
    """If given, the standard deviation of each action is refitted in each iteration, to at least this and at most
    `deviation`, in the same units; each search begins with `deviation`. It has no effect on discrete actions."""
    drawn: bool = False
    """Whether the plan is one of the averaged candidates, drawn by their weights, instead of the mean. It has no effect on
    discrete actions."""
    smoothing: Annotated[float, Gt(0), Le(1)] = 0.9
    """Weight of a new action relative to the previous action; 1 for no smoothing. It has no effect on discrete actions."""
    floor: Annotated[float, Ge(0), Le(1)] = 0.05
    """Share of the uniform distribution in the probabilities of each step, for discrete actions."""

    def problem(self) -> tuple[str, str] | None:
        """(field, message) of the first violated rule that involves several fields, or None."""
        if self.elites is not None and self.elites > self.population:
            return "elites", f"must be at most population ({self.population}), got {self.elites}"
        if self.min_deviation is not None and self.min_deviation > self.deviation:
            return "min_deviation", f"must be at most deviation ({self.deviation}), got {self.min_deviation}"
        return None


class PlanState(NamedTuple):
    """State that one plan passes to the next."""

    mean: Float[Array, "H A"]
    """Mean of the next search's first population."""
    played: Float[Array, "A"]
    """The first action of the last plan."""
    deviation: Float[Array, "A"]
    """The standard deviation of that action at the end of its search, for noise that explores."""


class Moved(NamedTuple):
    """Parameters of the normal distribution."""

    mean: Float[Array, "H A"]
    deviation: Float[Array, "H A"]
    plan: Any
    """A candidate of the last iteration [H, A], drawn by the weights, or () if none is drawn."""


class Distribution(NamedTuple):
    """The distribution of action sequences that the search moves. Its parameters are a pytree."""

    init: Callable[[], Any]
    """Plan state of the first plan."""
    start: Callable[[Any], Any]
    """plan state -> parameters before the first iteration."""
    sample: Callable[[Key, Any, Any], Shaped[Array, "P H ..."]]
    """(key, plan state, parameters) -> candidates."""
    average: Callable[[Any, Shaped[Array, "Q H ..."], Float[Array, "Q"], Key | None], Any]
    """(parameters, candidates, their returns, key or None if no candidate is drawn) -> parameters."""
    plan: Callable[[Any], tuple[Shaped[Array, "H ..."], Any]]
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

        def iteration(found: tuple[Any, Array], key: Key) -> tuple[tuple[Any, Array], None]:
            parameters, nonfinite = found
            noise_key, objective_key, *draw_key = jax.random.split(key, 3 if config.drawn else 2)
            population = moved.sample(noise_key, state, parameters)
            population, returns, bad = search.evaluate(problem.score, population, objective_key, offered)
            if config.elites is not None:
                population, returns = search.best(population, returns, config.elites)
            parameters = moved.average(parameters, population, returns, draw_key[0] if draw_key else None)
            return (parameters, nonfinite + bad), None

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
        return PlanState(rest, rest[0], jnp.full_like(rest[0], deviation))

    def start(state: PlanState) -> Moved:
        return Moved(state.mean, jnp.full_like(state.mean, deviation), state.mean if config.drawn else ())

    def sample(key: Key, state: PlanState, moved: Moved) -> Float[Array, "P H A"]:
        spread = deviation if config.min_deviation is None else moved.deviation
        noise = spread * jax.random.normal(key, (config.population, *moved.mean.shape), moved.mean.dtype)
        return candidates(moved.mean, state.played, noise, config.smoothing, box)

    def averaged(moved: Moved, population: Array, returns: Array, key: Key | None) -> Moved:
        mean, spread, plan = average(moved.mean, population, returns, config.temperature, box), moved.deviation, moved.plan
        if config.min_deviation is not None:
            least = config.min_deviation * search.half_range(box)
            spread = refitted_deviation(spread, mean, population, returns, config.temperature, least, deviation)
        if key is not None:
            plan = draw(key, mean, population, returns, config.temperature)
        return Moved(mean, spread, plan)

    def plan(moved: Moved) -> tuple[Float[Array, "H A"], PlanState]:
        found = moved.plan if config.drawn else moved.mean
        rest = jnp.full_like(moved.mean[0], search.middle(box))
        return found, PlanState(search.shift(moved.mean, rest), found[0], moved.deviation[0])

    return Distribution(init, start, sample, averaged, plan)


def choices(config: MPPIConfig, n: int) -> Distribution:
    """Categorical distributions [H, n] over n choices."""

    def average(probability: Array, population: Array, returns: Array, key: Key | None) -> Array:
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


def refitted_deviation(
    deviation: Float[Array, "H A"],
    mean: Float[Array, "H A"],
    population: Float[Array, "P H A"],
    returns: Float[Array, "P"],
    temperature: float,
    low: float,
    high: float,
) -> Float[Array, "H A"]:
    """The standard deviation of the population around `mean` with the weights of `average`, between `low` and `high`. If no
    return is finite, the result is `deviation`."""
    weight = weights(returns, temperature)
    found = jnp.sqrt(jnp.sum(weight[:, None, None] * (population - mean) ** 2, axis=0))
    return jnp.where(jnp.any(jnp.isfinite(returns)), jnp.clip(found, low, high), deviation)


def draw(
    key: Key, mean: Float[Array, "H A"], population: Float[Array, "P H A"], returns: Float[Array, "P"], temperature: float
) -> Float[Array, "H A"]:
    """A candidate of the population, drawn with the weights of `average`; `mean` if no return is finite."""
    chosen = jax.random.categorical(key, jnp.log(weights(returns, temperature)))
    return jnp.where(jnp.any(jnp.isfinite(returns)), population[chosen], mean)


def weights(returns: Float[Array, "P"], temperature: float) -> Float[Array, "P"]:
    """softmax(returns / temperature), with weight 0 for returns that are not finite; all 0 if none is finite."""
    returns = search.finite_or_worst(returns)
    finite = jnp.isfinite(returns)
    # Subtract first, because the division may overflow.
    weight = jax.nn.softmax((returns - jnp.max(returns)) / temperature, where=finite)
    return jnp.where(finite, weight, 0.0)
