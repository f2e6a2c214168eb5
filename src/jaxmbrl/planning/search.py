"""What the planners share: the bounds of actions, how candidates are valued and ranked, and the shift of a plan in time."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxmbrl.core.types import Key, Objective

LOW, HIGH = -1.0, 1.0
MIDDLE = (LOW + HIGH) / 2


def clip(actions: Float[Array, "*n A"]) -> Float[Array, "*n A"]:
    """Actions at the nearest point within the bounds."""
    return jnp.clip(actions, LOW, HIGH)


def evaluate(objective: Objective, population: Float[Array, "P H A"], key: Key) -> tuple[Float[Array, "P"], Int[Array, ""]]:
    """Returns of all candidates under the same key, -inf where not finite; and how many those are."""
    returns = jax.vmap(objective, in_axes=(0, None))(population, key)
    return finite_or_worst(returns), jnp.sum(~jnp.isfinite(returns), dtype=jnp.int32)


def finite_or_worst(returns: Float[Array, "P"]) -> Float[Array, "P"]:
    """NaN and +inf become -inf: what is not finite must not win."""
    return jnp.where(jnp.isfinite(returns), returns, -jnp.inf)


def best(
    population: Float[Array, "P H A"], returns: Float[Array, "P"], count: int
) -> tuple[Float[Array, "K H A"], Float[Array, "K"]]:
    """The `count` candidates of largest return and their returns, best first; of equal ones the first in order."""
    returns, chosen = jax.lax.top_k(finite_or_worst(returns), count)
    return population[chosen], returns


def moments(
    mean: Float[Array, "H A"],
    variance: Float[Array, "H A"],
    elites: Float[Array, "K H A"],
    returns: Float[Array, "K"],
) -> tuple[Float[Array, "H A"], Float[Array, "H A"]]:
    """Mean and population variance of those elites whose return is finite; `mean` and `variance` where there is none."""
    finite = jnp.isfinite(returns)
    count = jnp.maximum(jnp.sum(finite), 1)
    weight = jnp.where(finite, 1.0, 0.0)[:, None, None]
    middle = jnp.sum(weight * elites, axis=0) / count
    spread = jnp.sum(weight * (elites - middle) ** 2, axis=0) / count
    some = jnp.any(finite)
    return jnp.where(some, middle, mean), jnp.where(some, spread, variance)


def best_or(default: Float[Array, "H A"], elites: Float[Array, "K H A"], returns: Float[Array, "K"]) -> Float[Array, "H A"]:
    """The first of the elites; `default` where not even its return is finite."""
    return jnp.where(jnp.isfinite(returns[0]), elites[0], default)


def shift(plan: Float[Array, "H A"], last: Float[Array, "A"]) -> Float[Array, "H A"]:
    """The plan one step later: its first action is gone, and `last` comes at its end."""
    return jnp.concatenate([plan[1:], last[None]])


def resting(horizon: int, action_size: int) -> Float[Array, "H A"]:
    """The plan of always playing the middle of the bounds."""
    return jnp.full((horizon, action_size), MIDDLE, float)
