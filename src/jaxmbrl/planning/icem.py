"""iCEM: the cross-entropy method with few samples (Pinneri et al., arXiv 2008.06389).

    maximise score(a_0 .. a_{H-1}):

    start from mean = the last search's mean, shifted by one step; std = `deviation`
    for i in 0 .. iterations - 1, with N_0 = population and N_i = max(2 elites, floor(N_{i-1} / decay)):
        draw N_i sequences clip(mean + std * c), where c is noise of unit variance, coloured in time
        i = 0: add the best elites of the last environment step, shifted, with a newly sampled last action
        i > 0: add the best elites of the previous iteration with their earlier returns
        last i: replace the first sampled sequence by the mean
        mean <- momentum mean + (1 - momentum) mean of the elites
        std  <- momentum std  + (1 - momentum) population standard deviation of the elites
    return the best sequence of the last iteration

The next plan starts from the mean, shifted by one step, its last entry repeated; std is reset. The elites are part of the
plan state, which is reset with the episode; without elites, newly sampled sequences replace them. Actions are clipped to
the bounds of their box.

The kept elites' returns were computed with the random numbers of the iteration that sampled them, not with those of the
iteration in which they are compared: with a stochastic model, a lucky elite remains.

Proposals are candidates of the first iteration; a good one remains among the kept elites. If no elites are kept, proposals
are candidates of every iteration.

Published settings (martius-lab/iCEM: icem/settings): population 40, decay 1.25, horizon 30, 3 iterations, 10 elites, 0.3 of
them kept, momentum 0.1, deviation 0.5, noise_beta 0.25 on half-cheetah, 2 on humanoid stand-up, 2.5 on door, 3 on fetch,
3.5 on relocate. facebookresearch/mbrl-lib on its cart-pole: population 200, a tenth of them elites, decay 1.3,
5 iterations, noise_beta 2, horizon 10. Unlike here, it returns the mean, applies momentum to the variance and never
discards elites.

Our own settings for quick searches in small tasks: population 60, 20 elites, 2 iterations, deviation 0.7, horizon 20, which
are 114 candidates per plan. In the true cart-pole and pendulum they are not worse than the cross-entropy method with 400.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from annotated_types import Ge, Gt, Le, Lt
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from jaxmbrl.core.schedules import rounded_down
from jaxmbrl.core.spaces import Space
from jaxmbrl.core.types import Key, Planner, Problem, PyTree
from jaxmbrl.planning import search


@dataclass(frozen=True)
class ICEMConfig:
    """Settings of the search."""

    horizon: Annotated[int, Ge(1)] = 30
    """Planning horizon in steps."""
    population: Annotated[int, Ge(2)] = 40
    """Action sequences sampled in the first iteration."""
    elites: Annotated[int, Ge(1)] = 10
    """Number of best sequences to which the distribution is refitted."""
    iterations: Annotated[int, Ge(1)] = 3
    """Number of iterations."""
    momentum: Annotated[float, Ge(0), Lt(1)] = 0.1
    """Weight of the old mean and standard deviation in the new ones."""
    noise_beta: Annotated[float, Ge(0)] = 0.25
    """Exponent of the noise: its power decreases with frequency f as f^-noise_beta; 0 is white noise."""
    kept: Annotated[float, Ge(0), Le(1)] = 0.3
    """Share of the elites that remain candidates in the next iteration and the next environment step, rounded down."""
    decay: Annotated[float, Ge(1)] = 1.25
    """Factor by which the number of sampled sequences decreases in each iteration."""
    deviation: Annotated[float, Gt(0)] = 0.5
    """Standard deviation at the start, in units of half the action range."""

    def problem(self) -> tuple[str, str] | None:
        """(field, message) of the first violated rule that involves several fields, or None."""
        if 2 * self.elites > self.population:
            return "elites", f"must be at most half of population ({self.population}), got {self.elites}"
        if self.kept > 0 and not self.kept_elites:
            return "kept", f"must be 0 or keep at least one of the {self.elites} elites, got {self.kept}"
        return None

    @property
    def kept_elites(self) -> int:
        """Number of elites that are kept."""
        return rounded_down(self.kept, self.elites)

    @property
    def populations(self) -> tuple[int, ...]:
        """Number of sequences sampled in each iteration. A plan evaluates `kept_elites` more than their sum."""
        sizes = [self.population]
        while len(sizes) < self.iterations:
            sizes.append(max(2 * self.elites, rounded_down(1 / self.decay, sizes[-1])))
        return tuple(sizes)


class PlanState(NamedTuple):
    """State that one plan passes to the next."""

    mean: Float[Array, "H A"]
    """Mean of the next search's first population."""
    elites: Float[Array, "K H A"]
    """The best sequences of the last plan, not yet shifted."""
    known: Bool[Array, "K"]
    """Whether the entry is an elite: False before an episode's first plan, and if its return was not finite."""


def make(config: ICEMConfig, action: Space) -> Planner:
    """iCEM over sequences [H, A] of actions in a bounded box. Its statistics: `nonfinite`, the number of candidates of this
    plan whose return was not finite. Raises UserError for another space."""
    box = search.bounded_box(action, "icem")
    shape, kept = (config.horizon, box.shape[0]), config.kept_elites

    def init() -> PlanState:
        return PlanState(search.default_plan(config.horizon, box), jnp.zeros((kept, *shape), float), jnp.zeros(kept, bool))

    def plan(
        problem: Problem, state: PlanState, key: Key, proposals: Float[Array, "P H A"] | None = None
    ) -> tuple[Float[Array, "H A"], PlanState, PyTree]:
        search.check_space(problem, box)
        offered = search.admit(proposals, config.horizon, box)
        mean, deviation = state.mean, jnp.full(shape, config.deviation * search.half_range(box), float)
        elites, values = state.elites, jnp.zeros(kept)
        nonfinite = jnp.zeros((), jnp.int32)
        # Unrolled, because each iteration has its own number of candidates.
        for i, size in enumerate(config.populations):
            population_key, objective_key = jax.random.split(jax.random.fold_in(key, i))
            noise = coloured_noise(population_key, (size if i else size + kept, *shape), config.noise_beta, mean.dtype)
            if i == config.iterations - 1:
                noise = noise.at[0].set(0.0)
            population = search.clip(mean + deviation * noise, box)
            if i == 0:
                again = jnp.where(state.known[:, None, None], elites[:, 1:], population[size:, :-1])
                population = population.at[size:, :-1].set(again)
            # In later iterations a kept proposal would be a candidate twice.
            joining = offered if i == 0 or kept == 0 else None
            population, returns, bad = search.evaluate(problem.score, population, objective_key, joining)
            nonfinite = nonfinite + bad
            if i > 0:
                population = jnp.concatenate([population, elites[:kept]])
                returns = jnp.concatenate([returns, values[:kept]])
            elites, values = search.best(population, returns, config.elites)
            mean, deviation = refit(mean, deviation, elites, values, config.momentum)
        after = PlanState(search.shift(mean, mean[-1]), elites[:kept], jnp.isfinite(values[:kept]))
        return search.best_or(search.clip(mean, box), elites, values), after, {"nonfinite": nonfinite}

    return Planner(init, plan, config.horizon)


def refit(
    mean: Float[Array, "H A"],
    deviation: Float[Array, "H A"],
    elites: Float[Array, "K H A"],
    returns: Float[Array, "K"],
    momentum: float,
) -> tuple[Float[Array, "H A"], Float[Array, "H A"]]:
    """Mean and standard deviation after one iteration. Elites whose return is not finite have no weight."""
    middle, spread = search.moments(mean, deviation**2, elites, returns)
    return (
        momentum * mean + (1 - momentum) * middle,
        momentum * deviation + (1 - momentum) * jnp.sqrt(spread),
    )


def coloured_noise(key: Key, shape: tuple[int, int, int], exponent: float, dtype: DTypeLike) -> Float[Array, "P H A"]:
    """Normal noise [P, H, A] of unit variance whose power decreases with the frequency over H as f^-exponent.

    White noise is filtered in the frequency domain, independently for candidates and action dimensions. Frequency 0 has the
    power of the lowest other frequency, 1 / H. The noise is periodic in H, as in Timmer and König (1995).
    """
    steps = shape[1]
    power = np.maximum(np.abs(np.fft.fftfreq(steps)), 1 / steps) ** -exponent
    amplitude = np.sqrt(power / power.mean())[: steps // 2 + 1, None]
    spectrum = jnp.fft.rfft(jax.random.normal(key, shape, dtype), axis=1) * jnp.asarray(amplitude, dtype)
    return jnp.fft.irfft(spectrum, steps, axis=1)
