"""Regression by a Gaussian process with a squared-exponential covariance function (Rasmussen and Williams, Gaussian
Processes for Machine Learning, chapters 2 and 5), exact or by FITC (Snelson and Ghahramani, NIPS 2005).

    k(x, z) = signal^2 exp(-1/2 sum_i ((x_i - z_i) / lengthscale_i)^2),      y = f(x) + noise * N(0, 1)

A fitted process, exact or sparse, is a `Posterior` over a basis Z of N rows with weights beta and a matrix P:

    mean(x) = k(x, Z) beta,      var f(x) = signal^2 - k(x, Z) P k(Z, x)

    exact:  Z = X,  beta = (K + noise^2 I)^-1 y,  P = (K + noise^2 I)^-1
    FITC:   Z inducing inputs, Gamma = 1 + (signal^2 - diag K_nm K_mm^-1 K_mn) / noise^2,
            A = noise^2 K_mm + K_mn Gamma^-1 K_nm,  beta = A^-1 K_mn Gamma^-1 y,  P = K_mm^-1 - noise^2 A^-1

Data are padded to a fixed number of rows with a mask. The matrix of the rows that are missing is the identity, and their
entries of beta and P are 0, so that they count nowhere. These functions are of one output.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.linalg import cho_solve, solve_triangular
from jaxtyping import Array, Bool, Float

from jaxmbrl.core.cholesky import cholesky

JITTER = 1e-6
"""Share of the signal's variance that is added to the diagonal of FITC's K_mm."""
LARGEST_RATIO, LARGEST_SCALE = 1000.0, 100.0
"""Signal-to-noise ratio, and ratio of a lengthscale to the standard deviation of its input, at which the penalties are 1.
They rise with the power 30 of the logarithm."""


class Hyperparameters(NamedTuple):
    """Natural logarithms of the parameters of a process."""

    lengthscale: Float[Array, "*d I"]
    """In the inputs' units."""
    signal: Float[Array, "*d"]
    """Standard deviation of the function, in the target's units."""
    noise: Float[Array, "*d"]
    """Standard deviation of the noise."""


class Posterior(NamedTuple):
    """Fitted processes for D outputs, with a common basis of N rows."""

    basis: Float[Array, "N I"]
    hyper: Hyperparameters
    """[D, ...]."""
    weights: Float[Array, "D N"]
    """beta."""
    precision: Float[Array, "D N N"]
    """P."""
    offset: Float[Array, "D"]
    """Prior mean of each output."""


def kernel(hyper: Hyperparameters, x: Float[Array, "n I"], z: Float[Array, "m I"]) -> Float[Array, "n m"]:
    """k(x, z) of one output."""
    scale = jnp.exp(-hyper.lengthscale)
    difference = (x * scale)[:, None, :] - (z * scale)[None, :, :]
    return jnp.exp(2 * hyper.signal - 0.5 * jnp.sum(difference**2, axis=-1))


def covariance(hyper: Hyperparameters, inputs: Float[Array, "N I"], mask: Bool[Array, "N"]) -> Float[Array, "N N"]:
    """K + noise^2 I of the rows where `mask` is true, and the identity for the others."""
    both = mask[:, None] & mask[None, :]
    diagonal = jnp.where(mask, jnp.exp(2 * hyper.noise), 1.0)
    return jnp.where(both, kernel(hyper, inputs, inputs), 0.0) + jnp.diag(diagonal)


@jax.custom_vjp
def negative_log_density(matrix: Float[Array, "N N"], target: Float[Array, "N"]) -> Float[Array, ""]:
    """-log N(target; 0, matrix) without the term with pi. The gradient is written out, because that of a Cholesky
    factorisation is slow."""
    return _negative_log_density(matrix, target)[0]


def _negative_log_density(
    matrix: Float[Array, "N N"], target: Float[Array, "N"]
) -> tuple[Float[Array, ""], tuple[Float[Array, "N N"], Float[Array, "N"]]]:
    factor = cholesky(matrix)
    solved = cho_solve((factor, True), target)
    return 0.5 * target @ solved + jnp.sum(jnp.log(jnp.diag(factor))), (factor, solved)


def _gradient(
    kept: tuple[Float[Array, "N N"], Float[Array, "N"]], scale: Float[Array, ""]
) -> tuple[Float[Array, "N N"], Float[Array, "N"]]:
    factor, solved = kept
    inverse = cho_solve((factor, True), jnp.eye(factor.shape[0]))
    return 0.5 * scale * (inverse - jnp.outer(solved, solved)), scale * solved


negative_log_density.defvjp(_negative_log_density, _gradient)


def negative_evidence(
    hyper: Hyperparameters, inputs: Float[Array, "N I"], target: Float[Array, "N"], mask: Bool[Array, "N"]
) -> Float[Array, ""]:
    """-log p(y | X) of the exact process, in nats (Rasmussen and Williams, equation 5.8)."""
    number = jnp.sum(mask)
    density = negative_log_density(covariance(hyper, inputs, mask), jnp.where(mask, target, 0.0))
    return density + 0.5 * number * math.log(2 * math.pi)


def penalty(hyper: Hyperparameters, spread: Float[Array, "I"]) -> Float[Array, ""]:
    """What the fit adds to the negative evidence: nearly 0 unless a lengthscale is far from the standard deviation `spread`
    of its input, or the signal-to-noise ratio far from 1 (hypCurb of PILCO's toolbox, version 0.9)."""
    scales = (hyper.lengthscale - jnp.log(spread)) / math.log(LARGEST_SCALE)
    return jnp.sum(scales**30) + ((hyper.signal - hyper.noise) / math.log(LARGEST_RATIO)) ** 30


def exact(
    hyper: Hyperparameters, inputs: Float[Array, "N I"], target: Float[Array, "N"], mask: Bool[Array, "N"]
) -> tuple[Float[Array, "N"], Float[Array, "N N"]]:
    """(beta, P) of the exact process."""
    factor = cholesky(covariance(hyper, inputs, mask)), True
    both = mask[:, None] & mask[None, :]
    inverse = jnp.where(both, cho_solve(factor, jnp.eye(inputs.shape[0])), 0.0)
    return cho_solve(factor, jnp.where(mask, target, 0.0)), inverse


class _Sparse(NamedTuple):
    """Factors of FITC."""

    factor: Float[Array, "M M"]
    """Cholesky factor L of K_mm."""
    gamma: Float[Array, "N"]
    scaled: Float[Array, "M N"]
    """L^-1 K_mn Gamma^-1/2."""
    inner: Float[Array, "M M"]
    """Cholesky factor of noise^2 I + scaled scaled^T, so that A = L inner inner^T L^T."""
    target: Float[Array, "N"]
    """Gamma^-1/2 y."""


def _sparse(
    hyper: Hyperparameters,
    inducing: Float[Array, "M I"],
    inputs: Float[Array, "N I"],
    target: Float[Array, "N"],
    mask: Bool[Array, "N"],
) -> _Sparse:
    size = inducing.shape[0]
    signal, noise = jnp.exp(2 * hyper.signal), jnp.exp(2 * hyper.noise)
    factor = cholesky(kernel(hyper, inducing, inducing) + JITTER * signal * jnp.eye(size))
    crossed = jnp.where(mask[None, :], kernel(hyper, inducing, inputs), 0.0)
    half = solve_triangular(factor, crossed, lower=True)
    gamma = jnp.where(mask, 1 + (signal - jnp.sum(half**2, axis=0)) / noise, 1.0)
    scaled = half / jnp.sqrt(gamma)
    inner = cholesky(noise * jnp.eye(size) + scaled @ scaled.T)
    return _Sparse(factor, gamma, scaled, inner, jnp.where(mask, target, 0.0) / jnp.sqrt(gamma))


def negative_sparse_evidence(
    hyper: Hyperparameters,
    inducing: Float[Array, "M I"],
    inputs: Float[Array, "N I"],
    target: Float[Array, "N"],
    mask: Bool[Array, "N"],
) -> Float[Array, ""]:
    """-log p(y | X, Z) of FITC, in nats: the density of y under K_nm K_mm^-1 K_mn + noise^2 Gamma."""
    parts, number, noise = _sparse(hyper, inducing, inputs, target, mask), jnp.sum(mask), jnp.exp(2 * hyper.noise)
    explained = solve_triangular(parts.inner, parts.scaled @ parts.target, lower=True)
    squares = (parts.target @ parts.target - explained @ explained) / noise
    missing = number - inducing.shape[0]
    logs = 2 * jnp.sum(jnp.log(jnp.diag(parts.inner))) + jnp.sum(jnp.log(parts.gamma)) + 2 * missing * hyper.noise
    return 0.5 * (squares + logs + number * math.log(2 * math.pi))


def sparse(
    hyper: Hyperparameters,
    inducing: Float[Array, "M I"],
    inputs: Float[Array, "N I"],
    target: Float[Array, "N"],
    mask: Bool[Array, "N"],
) -> tuple[Float[Array, "M"], Float[Array, "M M"]]:
    """(beta, P) of FITC with the inducing inputs Z = `inducing`."""
    parts, noise = _sparse(hyper, inducing, inputs, target, mask), jnp.exp(2 * hyper.noise)
    identity = jnp.eye(inducing.shape[0])
    whole = parts.factor @ parts.inner
    weights = cho_solve((whole, True), parts.factor @ (parts.scaled @ parts.target))
    return weights, cho_solve((parts.factor, True), identity) - noise * cho_solve((whole, True), identity)


def predict(posterior: Posterior, x: Float[Array, "n I"]) -> tuple[Float[Array, "n D"], Float[Array, "n D"]]:
    """(mean, variance) of the D functions at rows `x`, without the noise."""

    def one(hyper: Hyperparameters, weights: Array, precision: Array) -> tuple[Array, Array]:
        k = kernel(hyper, x, posterior.basis)
        variance = jnp.exp(2 * hyper.signal) - jnp.sum((k @ precision) * k, axis=1)
        # At rows of the data the difference is 0 but for rounding.
        return k @ weights, jnp.maximum(variance, 0.0)

    mean, variance = jax.vmap(one, out_axes=1)(posterior.hyper, posterior.weights, posterior.precision)
    return mean + posterior.offset, variance


def predict_mean(posterior: Posterior, x: Float[Array, "n I"]) -> Float[Array, "n D"]:
    """The mean of `predict`."""

    def one(hyper: Hyperparameters, weights: Array) -> Array:
        return kernel(hyper, x, posterior.basis) @ weights

    return jax.vmap(one, out_axes=1)(posterior.hyper, posterior.weights) + posterior.offset


def noise_variance(posterior: Posterior) -> Float[Array, "D"]:
    """The variance of the noise of each output."""
    return jnp.exp(2 * posterior.hyper.noise)
