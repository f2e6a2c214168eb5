"""Local linear-Gaussian models: a linear regression at each step of a few trajectories from one start, with a Gaussian
mixture of all steps as its prior (Levine and Abbeel, Learning neural network policies with guided policy search under
unknown dynamics, NIPS 2014, section 3.2; Levine et al., arXiv 1504.00702, appendix A.3).

    model       o_t ~ N(F_t i_t + f_t, W_t)  for inputs i and outputs o;  a row is y = [i; o]
    mixture     sum_k w_k N(mu_k, S_k) of the rows of all steps, by expectation maximisation (EM)
    prior       mean mu_0 and covariance Phi of the mixture whose weights are the mean responsibilities of the N rows of
                step t; it counts as m rows
    fit         S = ( N cov(y) + m Phi + N m / (N + m) (ybar - mu_0)(ybar - mu_0)' ) / (N + m),   ridge added to S_ii
                F = S_oi S_ii^-1,    f = ybar_o - F ybar_i,    W = S_oo - F S_io

The prior changes the covariance, not the mean through which the regression passes. With m = 0 and no ridge it is ordinary
least squares. The inputs are state and action for dynamics, the state for the linearisation of a policy.

Rows are standardised by all kept rows, so that ridge and floor do not depend on units. Differs from the authors' code: the
ridge is added to the diagonal only; a cluster's first covariance is divided by its own rows; EM begins at each fit, from
one cluster for each section of the episode, and has a fixed number of iterations.

Nothing is batched: use `jax.vmap`. Shapes: T steps, N trajectories, D length of a row, K clusters, R rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
from annotated_types import Ge
from jaxtyping import Array, Bool, Float, Int

from jaxmbrl.core.cholesky import cholesky
from jaxmbrl.models import normalizer


@dataclass(frozen=True)
class LocalLinearConfig:
    """Settings of the regressions and of their prior."""

    clusters: Annotated[int, Ge(1)] = 20
    """Largest number of Gaussians in the mixture; 1 for a single Gaussian."""
    rows_per_cluster: Annotated[int, Ge(1)] = 40
    """Rows for each Gaussian: there are fewer Gaussians, but at least two, while there are few rows."""
    trajectories: Annotated[int, Ge(1)] = 20
    """Trajectories from each start that are kept for the mixture, rounded down to whole calls of `learn`, at least one."""
    strength: Annotated[float, Ge(0)] = 1.0
    """Number of rows m that the prior counts as."""
    ridge: Annotated[float, Ge(0)] = 1e-5
    """Added to the variance of each input, in standardised units. (In the authors' code, with double precision, 1e-6 in the
    inputs' own units.)"""
    iterations: Annotated[int, Ge(1)] = 50
    """Iterations of EM in each fit."""

    def clusters_for(self, rows: Int[Array, ""] | int) -> Int[Array, ""]:
        """The number of Gaussians for so many rows."""
        return jnp.minimum(jnp.maximum(rows // self.rows_per_cluster, 2), self.clusters)


class LinearGaussian(NamedTuple):
    """output ~ N(gain input + offset, covariance)."""

    gain: Float[Array, "*T o i"]
    offset: Float[Array, "*T o"]
    covariance: Float[Array, "*T o o"]


class Mixture(NamedTuple):
    """A mixture of Gaussians."""

    log_weight: Float[Array, "K"]
    """-inf for a cluster without rows."""
    mean: Float[Array, "K D"]
    covariance: Float[Array, "K D D"]


class Kept(NamedTuple):
    """Rows of all steps, for the mixture."""

    rows: Float[Array, "R D"]
    valid: Bool[Array, "R"]
    """Whether a row counts."""
    progress: Float[Array, "R"]
    """The step of a row divided by the length of an episode, in [0, 1)."""


FLOOR = 1e-6
"""Added to the variances of a cluster, in standardised units, unless `ROUNDING` gives more."""
ROUNDING = 20
"""The same in units of the rounding error of D variances. Less, and a cluster whose outputs are exact functions of its
inputs may have no Cholesky factor."""


def fit(
    config: LocalLinearConfig, steps: Float[Array, "N T D"], kept: Kept, clusters: Int[Array, ""] | int, inputs: int
) -> LinearGaussian:
    """The regressions of all steps of the trajectories `steps`. The first `inputs` entries of a row are inputs.

    `kept` are the rows from which the mixture is fitted; `clusters` is the number of its Gaussians, at most
    `config.clusters`.

    >>> from jaxmbrl.models import local_linear
    >>> x = jax.random.normal(jax.random.key(0), (30, 4, 2))
    >>> steps = jnp.concatenate([x, 2 * x[..., :1] - x[..., 1:] + 3], axis=-1)  # o = 2 i_1 - i_2 + 3
    >>> kept = local_linear.keep(steps)
    >>> found = local_linear.fit(local_linear.LocalLinearConfig(), steps, kept, 2, inputs=2)
    >>> found.gain.shape, jnp.round(found.gain[0], 2).tolist(), jnp.round(found.offset[0], 2).tolist()
    ((4, 1, 2), [[2.0, -1.0]], [3.0])
    """
    with jax.default_matmul_precision("highest"):
        units = normalizer.measure(kept.rows, kept.valid)
        scale = jnp.where(units.std > 0, units.std, 1.0)
        steps, kept = (steps - units.mean) / scale, kept._replace(rows=(kept.rows - units.mean) / scale)
        mixture = fit_mixture(kept, clusters, config.clusters, config.iterations)

        def of_step(rows: Float[Array, "N D"]) -> LinearGaussian:
            return regress(rows, *moments_near(mixture, rows), config.strength, inputs, config.ridge)

        found = jax.vmap(of_step, in_axes=1)(steps)
        of_inputs, of_outputs = scale[:inputs], scale[inputs:]
        gain = of_outputs[:, None] * found.gain / of_inputs
        offset = of_outputs * found.offset + units.mean[inputs:] - gain @ units.mean[:inputs]
        return LinearGaussian(gain, offset, found.covariance * jnp.outer(of_outputs, of_outputs))


def keep(steps: Float[Array, "N T D"], valid: Bool[Array, "N"] | None = None) -> Kept:
    """The rows of trajectories, of which those count where `valid` is true; all by default."""
    number, length, size = steps.shape
    counts = jnp.ones(number, bool) if valid is None else valid
    progress = jnp.broadcast_to(jnp.arange(length) / length, (number, length))
    return Kept(steps.reshape(-1, size), jnp.repeat(counts, length), progress.reshape(-1))


def fit_mixture(kept: Kept, clusters: Int[Array, ""] | int, most: int, iterations: int) -> Mixture:
    """A mixture of `clusters` <= `most` Gaussians by EM, from one cluster for each section of the episode. The other
    Gaussians have weight 0."""
    section = jnp.minimum((kept.progress * clusters).astype(jnp.int32), most - 1)
    first = _maximised(kept, jax.nn.one_hot(section, most, dtype=kept.rows.dtype))

    def iteration(i: Int[Array, ""], mixture: Mixture) -> Mixture:
        return _maximised(kept, responsibilities(mixture, kept.rows))

    return jax.lax.fori_loop(0, iterations, iteration, first)


def responsibilities(mixture: Mixture, rows: Float[Array, "R D"]) -> Float[Array, "R K"]:
    """The probability of each cluster, given a row."""

    def log_density(mean: Float[Array, "D"], covariance: Float[Array, "D D"]) -> Float[Array, "R"]:
        factor = cholesky(covariance)
        # The inverse of the small factor, and one product for all rows: a solve for all rows takes ten times as long.
        identity = jnp.eye(mean.shape[0], dtype=mean.dtype)
        standard = (rows - mean) @ jax.scipy.linalg.solve_triangular(factor, identity, lower=True).T
        return -0.5 * jnp.sum(standard**2, axis=1) - jnp.sum(jnp.log(jnp.diag(factor)))

    return jax.nn.softmax(mixture.log_weight[:, None] + jax.vmap(log_density)(*mixture[1:]), axis=0).T


def _maximised(kept: Kept, shares: Float[Array, "R K"]) -> Mixture:
    """The mixture of largest likelihood for given responsibilities."""
    shares = jnp.where(kept.valid[:, None], shares, 0.0)
    mass = jnp.sum(shares, axis=0)
    each = shares / jnp.where(mass > 0, mass, 1.0)
    mean = each.T @ kept.rows
    size = kept.rows.shape[1]
    floor = max(FLOOR, ROUNDING * size * float(jnp.finfo(kept.rows.dtype).eps)) * jnp.eye(size, dtype=kept.rows.dtype)

    def covariance(mean: Float[Array, "D"], share: Float[Array, "R"]) -> Float[Array, "D D"]:
        deviation = kept.rows - mean
        return (share[:, None] * deviation).T @ deviation + floor

    return Mixture(jnp.log(mass / jnp.sum(mass)), mean, jax.vmap(covariance)(mean, each.T))


def moments_near(mixture: Mixture, rows: Float[Array, "N D"]) -> tuple[Float[Array, "D"], Float[Array, "D D"]]:
    """(mean, covariance) of the mixture whose weights are the mean responsibilities of `rows`."""
    weight = jnp.mean(responsibilities(mixture, rows), axis=0)
    mean = weight @ mixture.mean
    apart = mixture.mean - mean
    return mean, jnp.einsum("k,kij->ij", weight, mixture.covariance) + (weight[:, None] * apart).T @ apart


def regress(
    rows: Float[Array, "N D"],
    prior_mean: Float[Array, "D"],
    prior_covariance: Float[Array, "D D"],
    strength: float,
    inputs: int,
    ridge: float,
) -> LinearGaussian:
    """The regression of the outputs on the first `inputs` entries of the rows, with a prior that counts as `strength`
    rows."""
    number, mean = rows.shape[0], jnp.mean(rows, axis=0)
    deviation, shift = rows - mean, mean - prior_mean
    total, moved = number + strength, number * strength / (number + strength)
    covariance = (deviation.T @ deviation + strength * prior_covariance + moved * jnp.outer(shift, shift)) / total
    of_inputs = covariance[:inputs, :inputs] + ridge * jnp.eye(inputs, dtype=rows.dtype)
    gain = jax.scipy.linalg.cho_solve((cholesky(of_inputs), True), covariance[:inputs, inputs:]).T

    # W from residuals: as a difference of covariances it would lose its digits where the fit is good.
    def residual(deviation: Float[Array, "*n D"]) -> Float[Array, "*n o"]:
        return deviation[..., inputs:] - deviation[..., :inputs] @ gain.T

    errors, error = residual(deviation), residual(shift)
    of_prior = residual(residual(prior_covariance).T)
    W = (errors.T @ errors + strength * of_prior + moved * jnp.outer(error, error)) / total + ridge * gain @ gain.T
    return LinearGaussian(gain, mean[inputs:] - gain @ mean[:inputs], (W + W.T) / 2)
