"""Common functions of sampling planners: action spaces, evaluation and ranking of candidates, proposals, the time shift.

An action sequence is [H, A] for a box of vectors and [H] for a discrete space, written `H ...` in the annotations.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from jaxmbrl.core.config import UserError
from jaxmbrl.core.spaces import Box, Discrete, Space
from jaxmbrl.core.types import Key, Objective, Problem


def bounded_box(action: Space, planner: str) -> Box:
    """`action` itself, for planners that only search boxes of real vectors. Raises UserError for any other space."""
    if isinstance(action, Discrete):
        raise UserError(
            f"{planner} needs continuous actions, got {action.n} choices: use cem, mppi or random-shooting, which plan both"
        )
    if not action.is_vector:
        raise UserError(f"{planner} needs vectors of real numbers as actions, got {action.dtype} {list(action.shape)}")
    if not math.isfinite(action.high - action.low):
        raise UserError(f"{planner} needs bounded actions, got bounds [{action.low}, {action.high}]")
    return action


def check_space(problem: Problem, action: Space) -> None:
    """Raise ValueError if the planner was made for another action space than the problem's."""
    if problem.action != action:
        raise ValueError(f"the planner was made for actions in {action}, but the problem's are in {problem.action}")


def middle(box: Box) -> float:
    """The midpoint between the bounds."""
    return (box.low + box.high) / 2


def half_range(box: Box) -> float:
    """Half the distance between the bounds, the unit of a planner's standard deviations."""
    return (box.high - box.low) / 2


def clip(actions: Float[Array, "*n A"], box: Box) -> Float[Array, "*n A"]:
    """Actions clipped to the bounds."""
    return jnp.clip(actions, box.low, box.high)


def default_plan(horizon: int, action: Space) -> Shaped[Array, "H ..."]:
    """The plan that repeats the middle of the bounds; for a discrete space, choice 0."""
    if isinstance(action, Discrete):
        return jnp.zeros(horizon, jnp.int32)
    return jnp.full((horizon, *action.shape), middle(action), float)


class Proposals(NamedTuple):
    """Checked candidate sequences from outside of the search."""

    actions: Shaped[Array, "P H ..."]
    """Within the bounds; a sequence that was not valid is replaced by the default plan."""
    valid: Bool[Array, "P"]
    """Whether all actions of the sequence were finite or, in a discrete space, existing choices."""


def admit(proposals: Shaped[Array, "P H ..."] | None, horizon: int, action: Space) -> Proposals | None:
    """`proposals` clipped to the bounds; None if there are none.

    A sequence with an action that is not finite, or that is not a choice of a discrete space, counts as one whose return is
    not finite. Raises AssertionError if the shape is not [P, horizon, *action.shape], or if choices are not integers.
    """
    if proposals is None:
        return None
    chex.assert_shape(proposals, (None, horizon, *action.shape))
    chex.assert_type(proposals, int if isinstance(action, Discrete) else float)
    rest = default_plan(horizon, action)
    if isinstance(action, Discrete):
        valid = jnp.all((proposals >= 0) & (proposals < action.n), axis=1)
        return Proposals(jnp.where(valid[:, None], proposals.astype(rest.dtype), rest), valid)
    valid = jnp.all(jnp.isfinite(proposals), axis=(1, 2))
    return Proposals(jnp.where(valid[:, None, None], clip(proposals.astype(rest.dtype), action), rest), valid)


def evaluate(
    score: Objective, population: Shaped[Array, "P H ..."], key: Key, proposals: Proposals | None = None
) -> tuple[Shaped[Array, "Q H ..."], Float[Array, "Q"], Int[Array, ""]]:
    """(candidates, returns, nonfinite): the Q candidates, first the population, then the proposals; their returns with the
    same key, -inf if not finite; the number of returns that are not finite."""
    if proposals is not None:
        population = jnp.concatenate([population, proposals.actions])
    returns = jax.vmap(score, in_axes=(0, None))(population, key)
    if proposals is not None:
        own = jnp.ones(population.shape[0] - proposals.valid.shape[0], bool)
        returns = jnp.where(jnp.concatenate([own, proposals.valid]), returns, -jnp.inf)
    return population, finite_or_worst(returns), jnp.sum(~jnp.isfinite(returns), dtype=jnp.int32)


def finite_or_worst(returns: Float[Array, "P"]) -> Float[Array, "P"]:
    """`returns` with NaN and +inf replaced by -inf, so that such a candidate is never chosen."""
    return jnp.where(jnp.isfinite(returns), returns, -jnp.inf)


def best(
    population: Shaped[Array, "P H ..."], returns: Float[Array, "P"], count: int
) -> tuple[Shaped[Array, "K H ..."], Float[Array, "K"]]:
    """The `count` candidates with the largest returns, and their returns, best first; equal ones in their order."""
    returns, chosen = jax.lax.top_k(finite_or_worst(returns), count)
    return population[chosen], returns


def moments(
    mean: Float[Array, "H A"],
    variance: Float[Array, "H A"],
    elites: Float[Array, "K H A"],
    returns: Float[Array, "K"],
) -> tuple[Float[Array, "H A"], Float[Array, "H A"]]:
    """Mean and population variance of the elites whose return is finite; `mean` and `variance` if there are none."""
    finite = jnp.isfinite(returns)
    count = jnp.maximum(jnp.sum(finite), 1)
    weight = jnp.where(finite, 1.0, 0.0)[:, None, None]
    centre = jnp.sum(weight * elites, axis=0) / count
    spread = jnp.sum(weight * (elites - centre) ** 2, axis=0) / count
    some = jnp.any(finite)
    return jnp.where(some, centre, mean), jnp.where(some, spread, variance)


def best_or(
    default: Shaped[Array, "H ..."], elites: Shaped[Array, "K H ..."], returns: Float[Array, "K"]
) -> Shaped[Array, "H ..."]:
    """The first of the elites; `default` if its return is not finite."""
    return jnp.where(jnp.isfinite(returns[0]), elites[0], default)


def shift(plan: Float[Array, "H A"], last: Float[Array, "A"]) -> Float[Array, "H A"]:
    """The plan one step later: the first action is dropped and `last` is appended."""
    return jnp.concatenate([plan[1:], last[None]])
