"""Gradient ascent on action sequences through a differentiable World.

    maximise score(a_0 .. a_{H-1}):

    start from the last plan, shifted by one step, and, with `cem_iterations`, from the elites of a search by CEM
    repeat `iterations` times, for all starts in parallel:
        Adam:    a <- clip(a + step along d score / da)
        L-BFGS:  z <- z + step along d score / dz,    where a = middle + half range tanh(z)
    return the sequence of largest score among all that were evaluated

The last action is repeated at the end of the shifted plan. Gradient steps after a search by sampling are proposed by
Bharadhwaj, Xie and Shkurti (Model-predictive control via cross-entropy and gradient-based optimization, arXiv 2004.08763).
A gradient that is not finite counts as 0. Unlike `ilqr`, the planner needs only first derivatives of the score, so that it
takes any number of particles, and every measure of risk.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from annotated_types import Ge, Gt
from jaxtyping import Array, Float, Shaped

from jaxmbrl.core.spaces import Box, Space
from jaxmbrl.core.types import Key, Planner, Problem, PyTree
from jaxmbrl.planning import cem, search
from jaxmbrl.planning.cem import CEMConfig

EDGE = 0.999
"""Largest action, in half ranges around the middle, from which L-BFGS starts: at a bound, z is infinite."""

Score = Callable[[Float[Array, "H A"]], Float[Array, ""]]


@dataclass(frozen=True)
class GradientConfig:
    """Settings of the optimisation."""

    horizon: Annotated[int, Ge(1)] = 25
    """Planning horizon in steps."""
    optimizer: Literal["adam", "lbfgs"] = "adam"
    """Adam with projection to the bounds, or L-BFGS with a line search."""
    iterations: Annotated[int, Ge(1)] = 20
    """Gradient steps."""
    learning_rate: Annotated[float, Gt(0)] = 0.1
    """Step size of Adam, in half action ranges."""
    cem_iterations: Annotated[int, Ge(0)] = 0
    """Iterations of the cross-entropy method before; 0 for none."""
    population: Annotated[int, Ge(1)] = 100
    """Action sequences that it evaluates in each iteration."""
    elites: Annotated[int, Ge(1)] = 10
    """Number of best sequences of its last iteration that are starts."""

    def problem(self) -> tuple[str, str] | None:
        """(field, message) of the first violated rule that involves several fields, or None."""
        if self.elites > self.population:
            return "elites", f"must be at most population ({self.population}), got {self.elites}"
        return None


class PlanState(NamedTuple):
    """State that one plan passes to the next."""

    mean: Float[Array, "H A"]
    """First start of the next plan, and mean of its search by CEM."""


def make(config: GradientConfig, action: Space) -> Planner:
    """Gradient ascent over sequences [H, A] of actions in a bounded box. Its statistics: `nonfinite`, the number of
    candidates of CEM and of optimised sequences whose return is not finite. Proposals are further starts. Raises UserError
    for another space."""
    box = search.bounded_box(action, "gradient")
    sampled = CEMConfig(config.horizon, config.population, config.elites, iterations=max(1, config.cem_iterations))
    ascend = {"adam": by_adam, "lbfgs": by_lbfgs}[config.optimizer]

    def plan(
        problem: Problem, state: PlanState, key: Key, proposals: Shaped[Array, "P H ..."] | None = None
    ) -> tuple[Float[Array, "H A"], PlanState, PyTree]:
        search.check_space(problem, action)
        offered = search.admit(proposals, config.horizon, action)
        search_key, objective_key = jax.random.split(key)
        starts, nonfinite = state.mean[None], jnp.zeros((), jnp.int32)
        if config.cem_iterations:
            elites, nonfinite = elites_of_cem(sampled, box, problem, state.mean, search_key)
            starts = jnp.concatenate([starts, elites])
        if offered is not None:
            starts = jnp.concatenate([starts, offered.actions])
        score = lambda actions: problem.score(actions, objective_key)  # noqa: E731
        found, scores = jax.vmap(lambda start: ascend(config, box, score, start))(starts)
        best = search.best_or(state.mean, *search.best(found, scores, 1))
        bad = jnp.sum(~jnp.isfinite(scores), dtype=jnp.int32)
        return best, PlanState(search.shift(best, best[-1])), {"nonfinite": nonfinite + bad}

    return Planner(lambda: PlanState(search.default_plan(config.horizon, box)), plan, config.horizon)


def elites_of_cem(
    config: CEMConfig, box: Box, problem: Problem, mean: Float[Array, "H A"], key: Key
) -> tuple[Float[Array, "K H A"], Array]:
    """(elites of the last iteration of CEM from `mean`, number of returns that are not finite)."""
    fitted = cem.gaussian(config, box)

    def iteration(parameters: Any, key: Key) -> tuple[Any, tuple[Array, Array]]:
        population_key, objective_key = jax.random.split(key)
        population = fitted.sample(population_key, parameters)
        population, returns, bad = search.evaluate(problem.score, population, objective_key)
        elites, _ = search.best(population, returns, config.elites)
        return fitted.refit(parameters, population, returns), (elites, bad)

    start = fitted.start(cem.PlanState(mean))
    _, (elites, bad) = jax.lax.scan(iteration, start, jax.random.split(key, config.iterations))
    return elites[-1], jnp.sum(bad, dtype=jnp.int32)


def by_adam(
    config: GradientConfig, box: Box, score: Score, start: Float[Array, "H A"]
) -> tuple[Float[Array, "H A"], Float[Array, ""]]:
    """(the best sequence on the way from `start`, its score) by Adam, projected to the bounds at each step."""
    optimizer = optax.adam(config.learning_rate * search.half_range(box))

    def step(at: tuple[Any, ...], _: None) -> tuple[tuple[Any, ...], None]:
        actions, memory, best, top = at
        value, gradient = jax.value_and_grad(score)(actions)
        best, top = better(best, top, actions, value)
        update, memory = optimizer.update(finite_or_zero(-gradient), memory)
        return (search.clip(actions + update, box), memory, best, top), None

    first = (start, optimizer.init(start), start, jnp.full((), -jnp.inf, start.dtype))
    (actions, _, best, top), _ = jax.lax.scan(step, first, None, config.iterations)
    return better(best, top, actions, score(actions))


def by_lbfgs(
    config: GradientConfig, box: Box, score: Score, start: Float[Array, "H A"]
) -> tuple[Float[Array, "H A"], Float[Array, ""]]:
    """(the best sequence on the way from `start`, its score) by L-BFGS with the line search of optax."""
    optimizer, middle, unit = optax.lbfgs(), search.middle(box), search.half_range(box)

    def squashed(z: Float[Array, "H A"]) -> Float[Array, "H A"]:
        return search.clip(middle + unit * jnp.tanh(z), box)

    def loss(z: Float[Array, "H A"]) -> Float[Array, ""]:
        return -score(squashed(z))

    def step(at: tuple[Any, ...], _: None) -> tuple[tuple[Any, ...], None]:
        z, memory, best, top = at
        value, gradient = optax.value_and_grad_from_state(loss)(z, state=memory)
        best, top = better(best, top, squashed(z), -value)
        gradient = finite_or_zero(gradient)
        update, memory = optimizer.update(gradient, memory, z, value=value, grad=gradient, value_fn=loss)
        return (z + finite_or_zero(update), memory, best, top), None

    z = jnp.arctanh(jnp.clip((start - middle) / unit, -EDGE, EDGE))
    first = (z, optimizer.init(z), start, jnp.full((), -jnp.inf, start.dtype))
    (z, _, best, top), _ = jax.lax.scan(step, first, None, config.iterations)
    return better(best, top, squashed(z), score(squashed(z)))


def better(
    best: Float[Array, "H A"], top: Float[Array, ""], actions: Float[Array, "H A"], value: Float[Array, ""]
) -> tuple[Float[Array, "H A"], Float[Array, ""]]:
    """(`actions`, `value`) if its value is larger than `top` and finite, else (`best`, `top`)."""
    improves = jnp.isfinite(value) & (value > top)
    return jnp.where(improves, actions, best), jnp.where(improves, value, top)


def finite_or_zero(gradient: Float[Array, "H A"]) -> Float[Array, "H A"]:
    """`gradient`, or zeros if an entry is not finite."""
    return jnp.where(jnp.all(jnp.isfinite(gradient)), gradient, 0.0)
