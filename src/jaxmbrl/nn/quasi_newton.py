"""Minimisation of smooth functions by L-BFGS (Nocedal and Wright, Numerical Optimization, algorithm 7.5).

The directions are those of `optax.scale_by_lbfgs`. A step t along a direction d must satisfy the weak Wolfe conditions

    f(x + t d) <= f(x) + 1e-4 t f'(x) d,        f'(x + t d) d >= 0.9 f'(x) d

and is searched for as by Lewis and Overton (Nonsmooth optimization via quasi-Newton methods, Mathematical Programming 141,
2013): a step that is too long bounds the next ones from above, one that is too short from below. Optax's own line searches
are not used, because they choose between computations by `lax.cond`: under `vmap` over seeds both are made. Here each
iteration evaluates the function and its gradient once, whatever else it does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int

from jaxmbrl.core import tree
from jaxmbrl.core.types import PyTree

DECREASE, CURVATURE = 1e-4, 0.9
"""Constants of the two conditions."""
MOST_TRIALS = 20
"""Trials of one line search. Then the best one that satisfies the first condition is accepted, and the memory is empty. If
there is none, or its decrease may be a rounding error, the search is over."""
ROUNDING = 4
"""Units of rounding of a value, of which a decrease may consist."""


class Minimum(NamedTuple):
    """The best point that was found."""

    point: PyTree
    value: Float[Array, ""]
    steps: Int[Array, ""]
    """Accepted steps."""
    evaluations: Int[Array, ""]
    """Evaluations of the function and its gradient."""


class _Evaluated(NamedTuple):
    """A point with the function there."""

    point: Float[Array, "P"]
    value: Float[Array, ""]
    gradient: Float[Array, "P"]


class _Search(NamedTuple):
    """A point, and the search along a direction from it."""

    at: _Evaluated
    lowest: _Evaluated
    """The trial of least value that satisfies the first condition; before there is one, the point itself."""
    direction: Float[Array, "P"]
    memory: Any
    """State of `optax.scale_by_lbfgs`."""
    length: Float[Array, ""]
    """t of the next trial."""
    low: Float[Array, ""]
    high: Float[Array, ""]
    """Bounds of t; the upper one is infinite at first."""
    trials: Int[Array, ""]
    steps: Int[Array, ""]
    evaluations: Int[Array, ""]
    active: Bool[Array, ""]


@jax.named_scope("minimize")
def minimize(
    function: Callable[[PyTree], Float[Array, ""]],
    start: PyTree,
    evaluations: int,
    memory: int = 10,
    tolerance: float = 1e-8,
) -> Minimum:
    """Minimise `function` from the point `start`, a pytree of floats, with at most `evaluations` evaluations besides the
    first. It ends earlier where no entry of the gradient exceeds `tolerance` times max(1, |value|), or where a line search
    finds no decrease. No trial that satisfies the first condition is lower than the point returned.

    Trial points at which the value or the gradient is not finite count as too far. If the value at `start` is not finite,
    `start` is returned.
    """
    flat, restored = ravel_pytree(start)
    lbfgs = optax.scale_by_lbfgs(memory)
    evaluate = jax.value_and_grad(lambda point: function(restored(point)))

    def going(search: _Search) -> Bool[Array, ""]:
        return search.active & (search.evaluations < evaluations)

    def trial(search: _Search) -> _Search:
        """One evaluation."""
        at = search.at
        point = at.point + search.length * search.direction
        tried = _Evaluated(point, *evaluate(point))
        slope, slope_there = jnp.vdot(at.gradient, search.direction), jnp.vdot(tried.gradient, search.direction)
        finite = jnp.isfinite(tried.value) & jnp.all(jnp.isfinite(tried.gradient))
        low_enough = finite & (tried.value <= at.value + DECREASE * search.length * slope)
        accepted = low_enough & (slope_there >= CURVATURE * slope)
        lowest = tree.where(low_enough & (tried.value < search.lowest.value), tried, search.lowest)
        low = jnp.where(low_enough, search.length, search.low)
        high = jnp.where(low_enough, search.high, search.length)
        # The minimum of the parabola with the value and slope at 0 and the value at t, within the middle of the bounds.
        bend = tried.value - at.value - search.length * slope
        parabola = jnp.where(finite & (bend > 0), -0.5 * slope * search.length**2 / bend, 0.5 * (low + high))
        inside = jnp.clip(parabola, low + 0.1 * (high - low), high - 0.3 * (high - low))
        ended = search.trials + 1 >= MOST_TRIALS
        rounding = ROUNDING * jnp.finfo(flat.dtype).eps * jnp.abs(at.value)
        settled = ended & (at.value - lowest.value > rounding)
        failed = search._replace(
            lowest=lowest,
            length=jnp.where(jnp.isinf(high), 2 * search.length, inside),
            low=low,
            high=high,
            trials=search.trials + 1,
            evaluations=search.evaluations + 1,
            active=~ended & jnp.isfinite(at.value),
        )
        # Without the second condition, the memory would not have positive curvature.
        remembered = tree.where(accepted, search.memory, lbfgs.init(flat))
        following = moved(search, tree.where(accepted, tried, lowest), remembered)
        return tree.where(accepted | settled, following, failed)

    def moved(search: _Search, to: _Evaluated, remembered: Any) -> _Search:
        """The search along the next direction, from the point `to`."""
        direction, state = lbfgs.update(to.gradient, remembered, to.point)
        small = jnp.max(jnp.abs(to.gradient)) <= tolerance * jnp.maximum(1.0, jnp.abs(to.value))
        return _Search(
            at=to,
            lowest=to,
            direction=-direction,
            memory=state,
            length=jnp.ones_like(search.length),
            low=jnp.zeros_like(search.low),
            high=jnp.full_like(search.high, jnp.inf),
            trials=jnp.zeros_like(search.trials),
            steps=search.steps + 1,
            evaluations=search.evaluations + 1,
            active=~small,
        )

    # The first trial is a step of length 0, which any finite value passes.
    zero, none = jnp.zeros((), jnp.int32), jnp.zeros((), flat.dtype)
    nothing, worst = jnp.zeros_like(flat), jnp.full((), jnp.inf, flat.dtype)
    counts = {"trials": zero, "steps": zero - 1, "evaluations": zero - 1, "active": jnp.ones((), bool)}
    start_at = _Evaluated(flat, worst, nothing)
    first = _Search(start_at, start_at, nothing, lbfgs.init(flat), none, none, worst, **counts)
    last = jax.lax.while_loop(going, trial, first)
    steps = jnp.maximum(last.steps, 0) + (last.lowest.value < last.at.value)
    return Minimum(restored(last.lowest.point), last.lowest.value, steps, jnp.maximum(last.evaluations, 0))
