"""The stochastic part of a belief: one-hot vectors or Gaussian numbers, with their divergence and its floor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxmbrl.core.extremes import greater
from jaxmbrl.core.types import Key
from jaxmbrl.distributions import Categorical, Gaussian, mixed, straight_through


class Latent(NamedTuple):
    """A kind of stochastic latent, as functions of a network's outputs."""

    size: int
    """Z: length of a sample."""
    outputs: int
    """Length of the outputs."""
    sample: Callable[[Key, Float[Array, "*n K"]], Float[Array, "*n Z"]]
    """(key, outputs) -> a sample of each row, differentiable in the outputs."""
    divergence: Callable[[Float[Array, "*n K"], Float[Array, "*n K"]], Float[Array, "*n"]]
    """(outputs of q, of p) -> KL(q || p) in nats, summed over all latents."""


def categorical(groups: int, classes: int, share: float) -> Latent:
    """`groups` one-hot vectors of `classes`, whose distributions contain the uniform one with the weight `share`. Samples
    have the gradient of the probabilities (DreamerV2, arXiv 2010.02193, algorithm 1)."""

    def log_probabilities(outputs: Array) -> Array:
        return mixed(outputs.reshape(*outputs.shape[:-1], groups, classes), share)

    def sample(key: Key, outputs: Float[Array, "*n K"]) -> Float[Array, "*n Z"]:
        return straight_through(key, log_probabilities(outputs)).reshape(outputs.shape)

    def divergence(q: Float[Array, "*n K"], p: Float[Array, "*n K"]) -> Float[Array, "*n"]:
        return jnp.sum(Categorical(log_probabilities(q)).divergence(Categorical(log_probabilities(p))), axis=-1)

    return Latent(groups * classes, groups * classes, sample, divergence)


LEAST_STD = 0.1
"""Smallest standard deviation of a Gaussian latent."""


def gaussian(size: int) -> Latent:
    """`size` Gaussian numbers with standard deviations softplus(.) + 0.1 (PlaNet, arXiv 1811.04551)."""

    def of(outputs: Array) -> Gaussian:
        mean, raw = jnp.split(outputs, 2, axis=-1)
        return Gaussian(mean, jnp.log(jax.nn.softplus(raw) + LEAST_STD))

    return Latent(
        size,
        2 * size,
        sample=lambda key, outputs: of(outputs).sample(key),
        divergence=lambda q, p: of(q).divergence(of(p)),
    )


def floored(divergence: Float[Array, "*n"], free: float, floor: Literal["each", "mean"]) -> Float[Array, ""]:
    """The mean divergence, without gradient below `free` nats: of each position, mean(max(KL, free)), as in PlaNet and
    DreamerV3, or of their mean, max(mean KL, free), as in Dreamer V1 and V2.

    >>> from jaxmbrl.models.latent import floored
    >>> divergence = jnp.array([0.5, 5.0])
    >>> [float(floored(divergence, 1.0, floor)) for floor in ("each", "mean")]
    [3.0, 2.75]
    """
    if floor == "each":
        return jnp.mean(greater(divergence, free))
    return greater(jnp.mean(divergence), free)
