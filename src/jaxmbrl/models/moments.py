"""Exact moments of functions of Gaussian variables, by which PILCO propagates a belief (Deisenroth and Rasmussen, ICML
2011; derivations in Deisenroth, Efficient Reinforcement Learning using Gaussian Processes, 2010, section 2.3 and appendix
A).

For x ~ N(mean, covariance) a function f is described by `Moments`: the mean and covariance of f(x), and a matrix `gain`
with cov(x, f(x)) = covariance @ gain. The gain stays finite as the covariance goes to 0, where it is the Jacobian of f. A
belief is then continued by the Gaussian with these moments. Everything needs float64.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import cho_solve
from jaxtyping import Array, Float

from jaxmbrl.core.cholesky import cholesky
from jaxmbrl.core.types import SaturatingReward
from jaxmbrl.models.gaussian_process.regression import Hyperparameters, Posterior


class Gaussian(NamedTuple):
    """A belief."""

    mean: Float[Array, "n"]
    covariance: Float[Array, "n n"]


class Moments(NamedTuple):
    """Moments of f(x) for a Gaussian x [n]."""

    mean: Float[Array, "d"]
    covariance: Float[Array, "d d"]
    gain: Float[Array, "n d"]
    """covariance(x)^-1 cov(x, f(x))."""

    @property
    def belief(self) -> Gaussian:
        """The Gaussian with the mean and the covariance of f(x)."""
        return Gaussian(self.mean, self.covariance)


def symmetric(matrix: Float[Array, "n n"]) -> Float[Array, "n n"]:
    """The symmetric part."""
    return 0.5 * (matrix + matrix.T)


def linear(x: Gaussian, matrix: Float[Array, "d n"], offset: Float[Array, "d"]) -> Moments:
    """The moments of matrix @ x + offset."""
    covariance = symmetric(matrix @ x.covariance @ matrix.T)
    return Moments(matrix @ x.mean + offset, covariance, matrix.T)


def joined(x: Gaussian, first: Moments, second: Moments) -> Moments:
    """The moments of [f(x), g(f(x))], given those of f(x) and of g at the belief of f(x)."""
    between = first.covariance @ second.gain
    covariance = jnp.block([[first.covariance, between], [between.T, second.covariance]])
    mean = jnp.concatenate([first.mean, second.mean])
    return Moments(mean, covariance, jnp.concatenate([first.gain, first.gain @ second.gain], axis=1))


def changed(x: Gaussian, inputs: Moments, change: Moments) -> Gaussian:
    """The belief of x + g(f(x)), given the moments of the `inputs` f(x) and of the `change` g at the belief of f(x)."""
    between = x.covariance @ inputs.gain @ change.gain
    return Gaussian(x.mean + change.mean, symmetric(x.covariance + change.covariance + between + between.T))


def sines(x: Gaussian, amplitude: Float[Array, "n"]) -> Moments:
    """The moments of amplitude * sin(x), entry by entry."""
    mean, variance = x.mean, jnp.diag(x.covariance)
    return Moments(
        amplitude * jnp.exp(-variance / 2) * jnp.sin(mean),
        jnp.outer(amplitude, amplitude) * _product_of_sines(x),
        jnp.diag(amplitude * jnp.exp(-variance / 2) * jnp.cos(mean)),
    )


def _product_of_sines(x: Gaussian) -> Float[Array, "n n"]:
    """cov(sin x_i, sin x_j) = (E cos(x_i - x_j) - E cos(x_i + x_j)) / 2 - E sin x_i E sin x_j. Each difference of
    exponentials is written with expm1 of a negative number, so that it is exact for small variances and finite for large
    ones."""
    mean, variance = x.mean, jnp.diag(x.covariance)
    average = 0.5 * (variance[:, None] + variance[None, :])
    plus, minus = mean[:, None] + mean[None, :], mean[:, None] - mean[None, :]

    def difference(covariance: Float[Array, "n n"]) -> Float[Array, "n n"]:
        """exp(covariance - average) - exp(-average). One of the terms is 0."""
        above, below = jnp.maximum(covariance, 0.0), jnp.minimum(covariance, 0.0)
        return jnp.exp(-average) * jnp.expm1(below) - jnp.exp(above - average) * jnp.expm1(-above)

    return 0.5 * (difference(x.covariance) * jnp.cos(minus) - difference(-x.covariance) * jnp.cos(plus))


def with_angles(x: Gaussian, angles: tuple[int, ...]) -> Moments:
    """The moments of the features of `envs.base.angle_features`: [entries that are no angles, sines, cosines]."""
    size, count = x.mean.shape[0], len(angles)
    others = [i for i in range(size) if i not in angles]
    if not count:
        return Moments(x.mean, x.covariance, jnp.eye(size))
    # cos(x) = sin(x + pi / 2).
    twice = [*angles, *angles]
    shift = np.repeat([0.0, np.pi / 2], count)
    of_angles = Gaussian(x.mean[np.array(twice)] + shift, x.covariance[np.ix_(twice, twice)])
    waves = sines(of_angles, jnp.ones(2 * count))
    chosen = np.zeros((size, 2 * count))
    chosen[twice, np.arange(2 * count)] = 1.0
    of_waves = jnp.asarray(chosen) @ waves.gain
    of_others = np.eye(size)[:, others]
    between = (x.covariance @ of_waves)[np.array(others, int), :]
    covariance = jnp.block([[x.covariance[np.ix_(others, others)], between], [between.T, waves.covariance]])
    mean = jnp.concatenate([x.mean[np.array(others, int)], waves.mean])
    return Moments(mean, covariance, jnp.concatenate([jnp.asarray(of_others), of_waves], axis=1))


def squashed(x: Gaussian) -> Moments:
    """The moments of (9 sin x + sin 3 x) / 8, entry by entry, which is within [-1, 1] and nearly linear around 0."""
    size = x.mean.shape[0]
    twice = linear(x, jnp.concatenate([jnp.eye(size), 3 * jnp.eye(size)]), jnp.zeros(2 * size))
    waves = sines(twice.belief, jnp.repeat(jnp.array([9.0, 1.0]) / 8, size))
    summed = linear(waves.belief, jnp.concatenate([jnp.eye(size), jnp.eye(size)], axis=1), jnp.zeros(size))
    return Moments(summed.mean, summed.covariance, twice.gain @ waves.gain @ summed.gain)


def squash(x: Float[Array, "*n A"]) -> Float[Array, "*n A"]:
    """(9 sin x + sin 3 x) / 8."""
    return (9 * jnp.sin(x) + jnp.sin(3 * x)) / 8


def through_process(x: Gaussian, process: Posterior) -> Moments:
    """The moments of the D functions of Gaussian processes, uncertain ones, without the noise. Integrals over x are exact;
    the covariance includes the variance of the functions themselves."""
    return _through_basis(x, process, uncertain=True)


def through_basis_functions(x: Gaussian, process: Posterior) -> Moments:
    """The moments of the mean function of `process`, k(x, basis) @ weights: a network of radial basis functions."""
    return _through_basis(x, process, uncertain=False)


def mean_of_process(x: Gaussian, process: Posterior) -> Float[Array, "D"]:
    """The mean of `through_process` alone."""
    return _means(x, process)[0]


def _means(x: Gaussian, process: Posterior) -> tuple[Float[Array, "D"], Float[Array, "n D"]]:
    """(mean, gain)."""
    size, away = x.mean.shape[0], process.basis - x.mean

    def one(hyper: Hyperparameters, weights: Array) -> tuple[Array, Array]:
        scale = jnp.exp(-hyper.lengthscale)
        scaled = away * scale
        factor = cholesky(scale[:, None] * x.covariance * scale[None, :] + jnp.eye(size))
        solved = cho_solve((factor, True), scaled.T).T
        height = jnp.exp(2 * hyper.signal - jnp.sum(jnp.log(jnp.diag(factor))))
        weighted = weights * jnp.exp(-0.5 * jnp.sum(scaled * solved, axis=1))
        return height * jnp.sum(weighted), height * scale * (solved.T @ weighted)

    mean, gain = jax.vmap(one, out_axes=(0, 1))(process.hyper, process.weights)
    return mean + process.offset, gain


def _through_basis(x: Gaussian, process: Posterior, uncertain: bool) -> Moments:
    size, outputs = x.mean.shape[0], process.weights.shape[0]
    mean, gain = _means(x, process)
    away = process.basis - x.mean
    scales = jnp.exp(-2 * process.hyper.lengthscale)
    scaled = away[None] * scales[:, None, :]
    # log k(x_i, mean) of each output.
    heights = 2 * process.hyper.signal[:, None] - 0.5 * jnp.sum(away[None] * scaled, axis=2)

    def products(a: Array, b: Array) -> Array:
        """Q_ij = E k_a(x_i, x) k_b(x_j, x) [N, N]. With P = 1/l_a^2 + 1/l_b^2 and B = P^1/2 covariance P^1/2 + I, the
        matrix R of the papers has the determinant of B, and R^-1 covariance = P^-1/2 (I - B^-1) P^-1/2."""
        root = jnp.sqrt(scales[a] + scales[b])
        inner = root[:, None] * x.covariance * root[None, :]
        factor = cholesky(inner + jnp.eye(size))
        middle = symmetric(cho_solve((factor, True), inner)) / root[:, None] / root[None, :]
        of_a, of_b = scaled[a] @ middle, scaled[b] @ middle
        left = heights[a] + 0.5 * jnp.sum(of_a * scaled[a], axis=1) - jnp.sum(jnp.log(jnp.diag(factor)))
        right = heights[b] + 0.5 * jnp.sum(of_b * scaled[b], axis=1)
        return jnp.exp(left[:, None] + right[None, :] + of_a @ scaled[b].T)

    def own(a: Array) -> Array:
        q, weights = products(a, a), process.weights[a]
        if not uncertain:
            return weights @ q @ weights
        # One sum, so that the two large terms cancel entry by entry.
        of_function = jnp.sum((jnp.outer(weights, weights) - process.precision[a]) * q)
        return of_function + jnp.exp(2 * process.hyper.signal[a])

    def other(a: Array, b: Array) -> Array:
        return process.weights[a] @ products(a, b) @ process.weights[b]

    centred = mean - process.offset
    second = jnp.diag(jax.vmap(own)(jnp.arange(outputs)))
    pairs = np.array([*itertools.combinations(range(outputs), 2)], int).reshape(-1, 2)
    if len(pairs):
        found = jax.vmap(other)(jnp.asarray(pairs[:, 0]), jnp.asarray(pairs[:, 1]))
        second = second.at[pairs[:, 0], pairs[:, 1]].set(found).at[pairs[:, 1], pairs[:, 0]].set(found)
    return Moments(mean, second - jnp.outer(centred, centred), gain)


def saturating(x: Gaussian, reward: SaturatingReward) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """(mean, variance) of exp(-||matrix (x - target)||^2 / 2). The variance is also that of the cost, 1 minus it."""
    error = linear(x, jnp.asarray(reward.matrix, float), -jnp.asarray(reward.matrix @ reward.target, float))
    identity = jnp.eye(error.mean.shape[0])

    def expected(factor: float) -> Array:
        """E exp(-factor ||e||^2 / 2) of the error e."""
        inner = cholesky(factor * error.covariance + identity)
        exponent = factor * error.mean @ cho_solve((inner, True), error.mean)
        return jnp.exp(-0.5 * exponent - jnp.sum(jnp.log(jnp.diag(inner))))

    mean = expected(1.0)
    return mean, expected(2.0) - mean**2
