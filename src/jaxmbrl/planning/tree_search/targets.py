"""Targets of MuZero and AlphaZero from the steps of searches (arXiv 1911.08265, section 3 and appendix G)."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Shaped

from jaxmbrl.core.types import Transition


class Targets(NamedTuple):
    """Targets of the states 0 .. K of an unrolled model, and of the rewards of the K steps between them."""

    value: Float[Array, "K+1"]
    policy: Float[Array, "K+1 A"]
    known: Float[Array, "K+1"]
    """Weight of value and policy: 0 for states of which nothing is known, after a time limit or after the newest row."""
    reward: Float[Array, "K"]
    reward_known: Float[Array, "K"]


def targets(
    rows: Transition, valid: Bool[Array, "W"], unroll: int, steps: int, discount: Float[Array, ""] | float
) -> Targets:
    """The targets along the first K = `unroll` of the W >= `unroll` + `steps` + 1 rows of one environment, whose extras are
    `Statistics`. Rows that are not `valid` do not exist; the first one does.

    The value of a state is its n-step return, n = `steps`: the rewards of the next n rows, and from there the value that
    the search found. At the end of an episode by termination nothing follows. Where a time limit or the newest row cuts the
    rows off before, the return ends with the search's value of the last state in which there was one.

    After a termination the state is absorbing: value and reward are 0, the policy is uniform.
    """
    found, ended = rows.extras, (rows.terminated | rows.truncated) & valid
    number, at = jnp.arange(unroll + 1), jnp.arange(valid.shape[0])
    # Rows of the same episode from each state on.
    ends_before = jnp.cumsum(ended) - ended
    same = (at >= number[:, None]) & (ends_before == ends_before[number][:, None]) & valid
    until = jnp.max(jnp.where(same & (at <= number[:, None] + steps), at, 0), axis=1)
    distance = until - number
    finishes = rows.terminated[until] & (distance < steps)
    last = jnp.where(finishes, rows.reward[until], found.value[until])
    powers = _powers(discount, at - number[:, None])
    before = jnp.sum(jnp.where(same & (at < until[:, None]), powers * rows.reward, 0.0), axis=1)
    value = before + _powers(discount, distance) * last

    over = ends_before[number] > ends_before[0]
    first_end = jnp.argmax(ended)
    absorbed = over & rows.terminated[first_end]
    known = valid[number] & ~over | absorbed
    uniform = jnp.full_like(found.weights[number], 1 / found.weights.shape[-1])
    return Targets(
        value=jnp.where(absorbed, 0.0, value),
        policy=jnp.where(absorbed[:, None], uniform, found.weights[number]),
        known=known.astype(value.dtype),
        reward=jnp.where(absorbed[:-1], 0.0, rows.reward[:unroll]),
        reward_known=known[:-1].astype(value.dtype),
    )


def _powers(discount: Float[Array, ""] | float, exponent: Shaped[Array, "*n"]) -> Float[Array, "*n"]:
    return jnp.asarray(discount, float) ** jnp.maximum(exponent, 0)
