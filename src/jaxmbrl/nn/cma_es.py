"""CMA-ES, the evolution strategy with covariance matrix adaptation (Hansen, The CMA evolution strategy: a tutorial, arXiv
1604.00772), which minimises a function of n numbers by its values alone.

    ask    x_k ~ N(m, s^2 C),  k = 1 .. population
    tell   y_i = (x_i - m) / s,  x_1 .. x_mu the points with the least values
           m'   = m + s sum_i w_i y_i
           p_s' = (1 - c_s) p_s + sqrt(c_s (2 - c_s) mu_eff) C^(-1/2) sum_i w_i y_i
           p_c' = (1 - c_c) p_c + [p_s' is not long] sqrt(c_c (2 - c_c) mu_eff) sum_i w_i y_i
           C'   = (1 - c_1 - c_mu) C + c_1 (p_c' p_c'^T + [p_s' is long] c_c (2 - c_c) C) + c_mu sum_i w_i y_i y_i^T
           s'   = s exp(c_s / d_s (|p_s'| / E|N(0, I)| - 1))

Half of the population has weights, all positive: there is no active update of the covariance. Points with equal values
share the weights of their ranks: otherwise the mean would follow an arbitrary order of them. Where all values are equal, s
shrinks. The eigenvectors of C are computed in each generation, which takes n^3 operations.

    config = CMAConfig(deviation=0.5)
    state = cma_es.init(config, jnp.zeros(10))
    points = cma_es.ask(config, state, key)
    state = cma_es.tell(config, state, points, jax.vmap(function)(points))
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from annotated_types import Ge, Gt
from jaxtyping import Array, Bool, Float, Int

from jaxmbrl.core import tree
from jaxmbrl.core.types import Key


@dataclass(frozen=True)
class CMAConfig:
    """Settings of the search."""

    population: Annotated[int, Ge(4)] | None = None
    """Points of a generation; None for 4 + floor(3 ln n)."""
    deviation: Annotated[float, Gt(0)] = 0.1
    """First standard deviation s of each number."""


class CMAState(NamedTuple):
    """The distribution of the next points, and the paths of its mean."""

    mean: Float[Array, "n"]
    """m, the best estimate of the minimum."""
    scale: Float[Array, ""]
    """s."""
    covariance: Float[Array, "n n"]
    """C."""
    basis: Float[Array, "n n"]
    """Its eigenvectors, in columns."""
    deviations: Float[Array, "n"]
    """Square roots of its eigenvalues."""
    scale_path: Float[Array, "n"]
    """p_s."""
    covariance_path: Float[Array, "n"]
    """p_c."""
    generations: Int[Array, ""]
    """Generations so far."""


class Constants(NamedTuple):
    """The strategy's constants (arXiv 1604.00772, table 1, for positive weights)."""

    population: int
    weights: np.ndarray
    """w [mu]; their sum is 1."""
    effective: float
    """mu_eff: variance effective selection mass."""
    scale_rate: float
    """c_s."""
    damping: float
    """d_s."""
    path_rate: float
    """c_c."""
    rank_one: float
    """c_1."""
    rank_mu: float
    """c_mu."""
    length: float
    """E|N(0, I)|."""


def constants(n: int, population: int | None = None) -> Constants:
    """The constants for `n` numbers.

    >>> from jaxmbrl.nn import cma_es
    >>> found = cma_es.constants(10)
    >>> found.population, [round(float(w), 4) for w in found.weights]
    (10, [0.4563, 0.2708, 0.1622, 0.0852, 0.0255])
    """
    population = population or 4 + math.floor(3 * math.log(n))
    raw = math.log((population + 1) / 2) - np.log(np.arange(1, population // 2 + 1))
    weights = raw / raw.sum()
    effective = float(1 / np.sum(weights**2))
    scale_rate = (effective + 2) / (n + effective + 5)
    rank_one = 2 / ((n + 1.3) ** 2 + effective)
    return Constants(
        population=population,
        weights=weights,
        effective=effective,
        scale_rate=scale_rate,
        damping=1 + 2 * max(0.0, math.sqrt((effective - 1) / (n + 1)) - 1) + scale_rate,
        path_rate=(4 + effective / n) / (n + 4 + 2 * effective / n),
        rank_one=rank_one,
        rank_mu=min(1 - rank_one, 2 * (effective - 2 + 1 / effective) / ((n + 2) ** 2 + effective)),
        length=math.sqrt(n) * (1 - 1 / (4 * n) + 1 / (21 * n**2)),
    )


def init(config: CMAConfig, mean: Float[Array, "n"]) -> CMAState:
    """The state whose points are N(mean, deviation^2 I)."""
    one, zeros = jnp.eye(mean.shape[0], dtype=mean.dtype), jnp.zeros_like(mean)
    scale, none = jnp.asarray(config.deviation, mean.dtype), jnp.zeros((), jnp.int32)
    return CMAState(mean, scale, one, one, jnp.ones_like(mean), zeros, zeros, none)


def ask(config: CMAConfig, state: CMAState, key: Key) -> Float[Array, "population n"]:
    """The points of a generation."""
    n, dtype = state.mean.shape[0], state.mean.dtype
    standard = jax.random.normal(key, (constants(n, config.population).population, n), dtype)
    return state.mean + state.scale * (standard * state.deviations) @ state.basis.T


def tell(
    config: CMAConfig, state: CMAState, points: Float[Array, "population n"], values: Float[Array, "population"]
) -> CMAState:
    """The state after the generation `points`, which have these `values`. Values that are not finite count as the largest.
    If none is finite, or the new state is not, the state does not change."""
    n = state.mean.shape[0]
    c = constants(n, config.population)
    weights = shared_weights(c, jnp.where(jnp.isfinite(values), values, jnp.inf)).astype(points.dtype)
    steps = (points - state.mean) / state.scale
    step = weights @ steps
    white = state.basis @ ((state.basis.T @ step) / state.deviations)
    scale_path = (1 - c.scale_rate) * state.scale_path + math.sqrt(c.scale_rate * (2 - c.scale_rate) * c.effective) * white
    generations = state.generations + 1
    length = jnp.linalg.norm(scale_path)
    # A path that began at 0 is shorter at first.
    usual = jnp.sqrt(1 - (1 - c.scale_rate) ** (2 * generations.astype(points.dtype)))
    short = (length / usual < (1.4 + 2 / (n + 1)) * c.length).astype(points.dtype)
    path_gain = math.sqrt(c.path_rate * (2 - c.path_rate) * c.effective)
    path = (1 - c.path_rate) * state.covariance_path + short * path_gain * step
    lost = (1 - short) * c.path_rate * (2 - c.path_rate)
    covariance = (
        (1 - c.rank_one - c.rank_mu + c.rank_one * lost) * state.covariance
        + c.rank_one * jnp.outer(path, path)
        + c.rank_mu * (weights * steps.T) @ steps
    )
    covariance = (covariance + covariance.T) / 2
    squares, basis = jnp.linalg.eigh(covariance)
    # Rounding may make the least eigenvalues negative.
    least = jnp.finfo(points.dtype).eps * squares[-1]
    new = CMAState(
        mean=state.mean + state.scale * step,
        scale=state.scale * jnp.exp(c.scale_rate / c.damping * (length / c.length - 1)),
        covariance=covariance,
        basis=basis,
        deviations=jnp.sqrt(jnp.maximum(squares, least)),
        scale_path=scale_path,
        covariance_path=path,
        generations=generations,
    )
    return tree.where(jnp.isfinite(values).any() & all_finite(new), new, state)


def shared_weights(c: Constants, values: Float[Array, "population"]) -> Float[Array, "population"]:
    """The weight of each point: that of its rank, or the mean of those of the ranks of all points with the same value.

    >>> from jaxmbrl.nn import cma_es
    >>> four = cma_es.constants(2, population=4)
    >>> [round(float(w), 4) for w in cma_es.shared_weights(four, jnp.array([3.0, 1.0, 2.0, 4.0]))]
    [0.0, 0.8042, 0.1958, 0.0]
    >>> [round(float(w), 4) for w in cma_es.shared_weights(four, jnp.array([3.0, 1.0, 3.0, 3.0]))]
    [0.0653, 0.8042, 0.0653, 0.0653]
    """
    of_rank = jnp.asarray(np.pad(c.weights, (0, c.population - c.weights.shape[0])))
    better = jnp.sum(values[None, :] < values[:, None], axis=1)
    equal = jnp.sum(values[None, :] == values[:, None], axis=1)
    rank = jnp.arange(c.population)
    of_point = (rank >= better[:, None]) & (rank < (better + equal)[:, None])
    return of_point @ of_rank / equal


def all_finite(state: CMAState) -> Bool[Array, ""]:
    """Whether all numbers of the state are finite."""
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(state)]).all()
