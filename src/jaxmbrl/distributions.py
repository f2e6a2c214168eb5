"""Diagonal Gaussian, tanh-squashed Gaussian, and soft bounds on a log-variance. Sizes are on the last axis."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxmbrl.core.types import Key


def gaussian_log_density(
    x: Float[Array, "*n d"], mean: Float[Array, "*n d"], log_std: Float[Array, "*n d"]
) -> Float[Array, "*n"]:
    """Log-density of a diagonal Gaussian, in nats.

    >>> from jaxmbrl.distributions import gaussian_log_density
    >>> round(float(gaussian_log_density(jnp.zeros(2), jnp.zeros(2), jnp.zeros(2))), 4)  # -log(2 pi)
    -1.8379
    """
    standard = (x - mean) * jnp.exp(-log_std)
    return jnp.sum(-0.5 * standard**2 - log_std - 0.5 * math.log(2 * math.pi), axis=-1)


def tanh_log_det(pre_tanh: Float[Array, "*n d"]) -> Float[Array, "*n"]:
    """Log-determinant of the Jacobian of tanh, the sum of log(1 - tanh(u)^2). It is accurate even where tanh saturates.

    Soft Actor-Critic (arXiv 1812.05905), appendix C, in the form 2 (log 2 - u - softplus(-2u)).
    """
    return jnp.sum(2 * (math.log(2) - pre_tanh - jax.nn.softplus(-2 * pre_tanh)), axis=-1)


def squashed_log_density(
    pre_tanh: Float[Array, "*n d"], mean: Float[Array, "*n d"], log_std: Float[Array, "*n d"]
) -> Float[Array, "*n"]:
    """Log-density of a = tanh(u) for Gaussian u, given u, because a does not determine u where tanh saturates."""
    return gaussian_log_density(pre_tanh, mean, log_std) - tanh_log_det(pre_tanh)


def sample_squashed(
    key: Key, mean: Float[Array, "*n d"], log_std: Float[Array, "*n d"]
) -> tuple[Float[Array, "*n d"], Float[Array, "*n"]]:
    """(action, log-density): a reparameterised action in (-1, 1), or equal to -1 or 1 by rounding."""
    pre_tanh = mean + jnp.exp(log_std) * jax.random.normal(key, mean.shape, mean.dtype)
    return jnp.tanh(pre_tanh), squashed_log_density(pre_tanh, mean, log_std)


def soft_clamp(value: Float[Array, "*n d"], low: Float[Array, "d"], high: Float[Array, "d"]) -> Float[Array, "*n d"]:
    """`value` clamped smoothly, first below `high`, then above `low`, so that value and bounds both receive gradients.

    PETS clamps log-variances in this order (arXiv 1805.12114, appendix A.1).
    """
    below = high - jax.nn.softplus(high - value)
    return low + jax.nn.softplus(below - low)
