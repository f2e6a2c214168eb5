"""Independent categorical distributions over the discrete actions of each step, which `cem` and `mppi` fit."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxmbrl.core.types import Key
from jaxmbrl.planning import search


class PlanState(NamedTuple):
    """State that one plan passes to the next."""

    probability: Float[Array, "H n"]
    """Probabilities of the next search's first population; each row sums to 1."""


def uniform(horizon: int, n: int) -> Float[Array, "H n"]:
    """Equal probabilities."""
    return jnp.full((horizon, n), 1 / n, float)


def sample(key: Key, probability: Float[Array, "H n"], population: int) -> Int[Array, "P H"]:
    """A population of action sequences, independent at each step. A choice of probability 0 is never sampled."""
    drawn = jax.random.categorical(key, jnp.log(probability), shape=(population, probability.shape[0]))
    return drawn.astype(jnp.int32)


def log_probability(probability: Float[Array, "H n"], sequences: Int[Array, "K H"]) -> Float[Array, "K"]:
    """Log-probability of each sequence. A choice of probability 0 counts as one of the least positive number, so that the
    result is finite."""
    log = jnp.log(jnp.maximum(probability, jnp.finfo(probability.dtype).tiny))
    chosen = sequences[..., None] == jnp.arange(probability.shape[1])
    return jnp.sum(jnp.where(chosen, log, 0.0), axis=(1, 2))


def weighted(
    probability: Float[Array, "H n"], sequences: Int[Array, "K H"], weight: Float[Array, "K"]
) -> Float[Array, "H n"]:
    """Frequencies of the choices among `sequences`, each counted `weight` times; `probability` if all weights are 0."""
    total = jnp.sum(weight)
    chosen = jax.nn.one_hot(sequences, probability.shape[1], dtype=probability.dtype)
    frequency = jnp.sum(weight[:, None, None] * chosen, axis=0) / jnp.where(total > 0, total, 1.0)
    return jnp.where(total > 0, frequency, probability)


def floored(probability: Float[Array, "H n"], floor: float) -> Float[Array, "H n"]:
    """The mixture with the share `floor` of the uniform distribution, so that each probability is at least floor / n."""
    return (1 - floor) * probability + floor / probability.shape[1]


def mode(probability: Float[Array, "H n"]) -> Int[Array, "H"]:
    """The most probable choice of each step, the first of equal ones."""
    return jnp.argmax(probability, axis=1).astype(jnp.int32)


def shifted(probability: Float[Array, "H n"]) -> PlanState:
    """The state for the next plan: one step later, with equal probabilities in the last step."""
    return PlanState(search.shift(probability, jnp.full_like(probability[0], 1 / probability.shape[1])))
