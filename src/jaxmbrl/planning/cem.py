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

Other uses of the method, as the maximisation of a value function (`agents.qt_opt`), sample from normal distributions and
clip the samples (`truncated`), begin with another variance (`deviation`), or return the best sample of the last iteration
(`best`): a mean between two maxima may be a minimum.

Of n discrete actions, each step has a categorical distribution p_t (`planning.categorical`):

    start from p = the last plan's, shifted by one step, uniform in its last step; uniform in an episode's first plan
    repeat `iterations` times:
        sample a population from p
        p <- momentum p + (1 - momentum) frequencies of the choices among the elites
        p <- (1 - floor) p + floor / n, so that no choice dies out
    return the best sample of the last iteration, or if no return is finite, the most probable choices

Returns are often equal, as if each step before the end of the episode earns 1. The elites are all candidates whose return
reaches that of the last of `elites`, as in Rubinstein and Kroese's book (The Cross-Entropy Method, 2004, algorithm 4.2.1),
so that p is not fitted to an arbitrary choice of equal ones. Of equal best samples the one that was most probable is
returned, and of equally probable ones the first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
from annotated_types import Ge, Gt, Le, Lt
from jaxtyping import Array, Bool, Float, Int, Shaped

from jaxmbrl.core.spaces import Box, Discrete, Space
from jaxmbrl.core.types import Key, Planner, Problem, PyTree
from jaxmbrl.planning import categorical, search


@dataclass(frozen=True)
class CEMConfig:
    """Settings of the search."""

    horizon: Annotated[int, Ge(1)] = 25
    """Planning horizon in steps."""
    population: Annotated[int, Ge(1)] = 400
    """Action sequences evaluated in each iteration."""
    elites: Annotated[int, Ge(1)] = 40
    """Number of best sequences to which the distribution is refitted. Of discrete ones, those with the same return as the
    last of them count too."""
    iterations: Annotated[int, Ge(1)] = 5
    """Largest number of iterations."""
    momentum: Annotated[float, Ge(0), Lt(1)] = 0.1
    """Weight of the old mean and variance, or of the old probabilities, in the new ones."""
    min_variance: Annotated[float, Ge(0), Le(1)] = 1e-3
    """The search stops when all variances are at most this, in units of the squared half action range. With 0, and for
    discrete actions, which have none, all iterations are made."""
    deviation: Annotated[float, Gt(0)] = 0.5
    """Standard deviation of the first population, in half action ranges."""
    truncated: bool = True
    """Whether the distributions are truncated at two standard deviations, of which each is at most half the distance to the
    nearer bound. Otherwise they are normal, and samples are clipped to the bounds."""
    best: bool = False
    """Whether the plan is the best sample of the last iteration instead of the mean. Of discrete actions it always is."""
    floor: Annotated[float, Ge(0), Le(1)] = 0.05
    """Share of the uniform distribution in the probabilities of each step, for discrete actions."""

    def problem(self) -> tuple[str, str] | None:
        """(field, message) of the first violated rule that involves several fields, or None."""
        if self.elites > self.population:
            return "elites", f"must be at most population ({self.population}), got {self.elites}"
        return None


class PlanState(NamedTuple):
    """State that one plan passes to the next."""

    mean: Float[Array, "H A"]
    """Mean of the next search's first population."""


class Distribution(NamedTuple):
    """The distribution of action sequences that the search fits. Its parameters are a pytree."""

    init: Callable[[], Any]
    """Plan state of the first plan."""
    start: Callable[[Any], Any]
    """plan state -> parameters before the first iteration."""
    sample: Callable[[Key, Any], Shaped[Array, "P H ..."]]
    """(key, parameters) -> a population."""
    refit: Callable[[Any, Shaped[Array, "Q H ..."], Float[Array, "Q"]], Any]
    """(parameters, candidates, their returns) -> parameters."""
    unsettled: Callable[[Any], Bool[Array, ""] | bool]
    """parameters -> whether a further iteration may change the plan."""
    plan: Callable[[Any], tuple[Shaped[Array, "H ..."], Any]]
    """parameters -> (actions, next plan state)."""


def make(config: CEMConfig, action: Space) -> Planner:
    """CEM over sequences: [H, A] of actions in a bounded box, int32 [H] of a discrete space. Its statistics: `nonfinite`,
    the number of candidates of this plan whose return was not finite. Raises UserError for another space."""
    fitted = choices(config, action.n) if isinstance(action, Discrete) else gaussian(config, action)

    def plan(
        problem: Problem, state: Any, key: Key, proposals: Shaped[Array, "P H ..."] | None = None
    ) -> tuple[Shaped[Array, "H ..."], Any, PyTree]:
        search.check_space(problem, action)
        offered = search.admit(proposals, config.horizon, action)

        def unfinished(found: tuple[Array, Any, Array]) -> Array:
            i, parameters, _ = found
            return (i < config.iterations) & fitted.unsettled(parameters)

        def iteration(found: tuple[Array, Any, Array]) -> tuple[Array, Any, Array]:
            i, parameters, nonfinite = found
            population_key, objective_key = jax.random.split(jax.random.fold_in(key, i))
            population = fitted.sample(population_key, parameters)
            population, returns, bad = search.evaluate(problem.score, population, objective_key, offered)
            return i + 1, fitted.refit(parameters, population, returns), nonfinite + bad

        zero: Int[Array, ""] = jnp.zeros((), jnp.int32)
        _, parameters, nonfinite = jax.lax.while_loop(unfinished, iteration, (zero, fitted.start(state), zero))
        actions, after = fitted.plan(parameters)
        return actions, after, {"nonfinite": nonfinite}

    return Planner(fitted.init, plan, config.horizon)


def gaussian(config: CEMConfig, action: Box) -> Distribution:
    """Normal distributions; the parameters are (mean, variance, best candidate of the last iteration), each [H, A], or ()
    in place of the candidate if it is not needed. Raises UserError if `action` is not a bounded box of vectors."""
    box = search.bounded_box(action, "cem")
    shape, unit = (config.horizon, box.shape[0]), search.half_range(box)
    min_variance = config.min_variance * unit**2

    def start(state: PlanState) -> tuple[Array, Array, Any]:
        return state.mean, jnp.full(shape, (config.deviation * unit) ** 2, float), state.mean if config.best else ()

    def refitted(parameters: tuple[Array, Array, Any], population: Array, returns: Array) -> tuple[Array, Array, Any]:
        mean, variance, _ = parameters
        found = search.best_or(mean, *search.best(population, returns, 1)) if config.best else ()
        return *refit(mean, variance, population, returns, config.elites, config.momentum), found

    def plan(parameters: tuple[Array, Array, Any]) -> tuple[Array, PlanState]:
        mean, _, found = parameters
        # Only rounding can exceed the bounds.
        mean = search.clip(mean, box)
        rest = jnp.full_like(mean[0], search.middle(box))
        return found if config.best else mean, PlanState(search.shift(mean, rest))

    return Distribution(
        init=lambda: PlanState(search.default_plan(config.horizon, box)),
        start=start,
        sample=lambda key, parameters: sample(key, parameters[0], parameters[1], config.population, box, config.truncated),
        refit=refitted,
        unsettled=lambda parameters: config.min_variance == 0 or jnp.max(parameters[1]) > min_variance,
        plan=plan,
    )


def choices(config: CEMConfig, n: int) -> Distribution:
    """Categorical distributions over n choices; the parameters are (probabilities [H, n], best candidate [H] of the last
    iteration)."""

    def refit(parameters: tuple[Array, Array], population: Array, returns: Array) -> tuple[Array, Array]:
        probability = refit_choices(parameters[0], population, returns, config.elites, config.momentum, config.floor)
        return probability, best_choices(parameters[0], population, returns)

    def plan(parameters: tuple[Array, Array]) -> tuple[Array, categorical.PlanState]:
        probability, best = parameters
        return best, categorical.shifted(probability)

    return Distribution(
        init=lambda: categorical.PlanState(categorical.uniform(config.horizon, n)),
        start=lambda state: (state.probability, categorical.mode(state.probability)),
        sample=lambda key, parameters: categorical.sample(key, parameters[0], config.population),
        refit=refit,
        unsettled=lambda parameters: True,
        plan=plan,
    )


def sample(
    key: Key,
    mean: Float[Array, "H A"],
    variance: Float[Array, "H A"],
    population: int,
    box: Box,
    truncated: bool = True,
) -> Float[Array, "P H A"]:
    """A population from the truncated normal of constrained variance, or else from the normal distribution, clipped; every
    action is within the bounds."""
    if not truncated:
        noise = jax.random.normal(key, (population, *mean.shape), mean.dtype)
        return search.clip(mean + jnp.sqrt(variance) * noise, box)
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


def refit_choices(
    probability: Float[Array, "H n"],
    population: Int[Array, "P H"],
    returns: Float[Array, "P"],
    elites: int,
    momentum: float,
    floor: float,
) -> Float[Array, "H n"]:
    """Probabilities after one iteration. Candidates whose return is not finite are no elites."""
    _, values = search.best(population, returns, elites)
    elite = jnp.isfinite(returns) & (returns >= values[-1])
    fitted = categorical.weighted(probability, population, jnp.where(elite, 1.0, 0.0))
    return categorical.floored(momentum * probability + (1 - momentum) * fitted, floor)


def best_choices(
    probability: Float[Array, "H n"], population: Int[Array, "P H"], returns: Float[Array, "P"]
) -> Int[Array, "H"]:
    """The candidate with the largest return; of several the most probable, then the first. If no return is finite, the most
    probable choices."""
    returns = search.finite_or_worst(returns)
    log_probability = categorical.log_probability(probability, population)
    rank = jnp.where(returns == jnp.max(returns), log_probability, -jnp.inf)
    return jnp.where(jnp.any(jnp.isfinite(returns)), population[jnp.argmax(rank)], categorical.mode(probability))
