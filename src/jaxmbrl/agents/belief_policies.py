"""Deterministic policies of which the moments under a Gaussian belief are exact: PILCO's linear and radial-basis-function
policies (Deisenroth, Efficient Reinforcement Learning using Gaussian Processes, 2010, section 3.5).

    linear:  u = squash(matrix f + offset),                          squash(v) = (9 sin v + sin 3 v) / 8, in [-1, 1]
    rbf:     u = squash(sum_i k(f, centre_i) beta_i),                beta = (K + 0.01^2 I)^-1 targets

of features f [F]. The second is the mean of a Gaussian process with signal 1 and noise 0.01 that has seen `targets` at
`centres`, so that its parameters have the units of actions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxmbrl.core.cholesky import cholesky
from jaxmbrl.core.types import Key
from jaxmbrl.models import moments
from jaxmbrl.models.gaussian_process import Hyperparameters, Posterior, regression
from jaxmbrl.models.moments import Gaussian, Moments

NOISE = 0.01
"""Standard deviation of the noise of a policy that is the mean of a Gaussian process."""
LEAST_VARIANCE = 1e-6
"""Added to the variance of that mean, whose two large terms cancel (PILCO's toolbox, version 0.9)."""


class Linear(NamedTuple):
    """Parameters of the linear policy."""

    matrix: Float[Array, "A F"]
    offset: Float[Array, "A"]


class Radial(NamedTuple):
    """Parameters of the policy of radial basis functions."""

    centres: Float[Array, "n F"]
    targets: Float[Array, "n A"]
    lengthscale: Float[Array, "A F"]
    """Natural logarithms."""


Parameters: TypeAlias = Linear | Radial


def init_linear(key: Key, features: int, actions: int) -> Linear:
    """Small random weights."""
    return Linear(0.1 * jax.random.normal(key, (actions, features)), jnp.zeros(actions))


def init_radial(key: Key, start: Gaussian, actions: int, bases: int, angles: int) -> Radial:
    """Centres drawn from the belief `start` of the features, small random targets, and lengthscales of 1, of the last
    2 `angles` features, which are sines and cosines, of 0.7 (the toolbox's values)."""
    centre_key, target_key = jax.random.split(key)
    size = start.mean.shape[0]
    factor = cholesky(start.covariance + 1e-9 * jnp.eye(size))
    centres = start.mean + jax.random.normal(centre_key, (bases, size)) @ factor.T
    scale = jnp.where(jnp.arange(size) >= size - 2 * angles, math.log(0.7), 0.0)
    targets = 0.1 * jax.random.normal(target_key, (bases, actions))
    return Radial(centres, targets, jnp.broadcast_to(scale, (actions, size)))


def process_of(params: Radial) -> Posterior:
    """The Gaussian process of which the policy is the mean, without the variance of its function."""
    actions, bases = params.lengthscale.shape[0], params.centres.shape[0]
    noise = jnp.full(actions, math.log(NOISE))
    hyper = Hyperparameters(params.lengthscale, jnp.zeros(actions), noise)
    known = jnp.ones(bases, bool)
    weights, _ = jax.vmap(regression.exact, in_axes=(0, None, 1, None))(hyper, params.centres, params.targets, known)
    return Posterior(params.centres, hyper, weights, jnp.zeros((actions, bases, bases)), jnp.zeros(actions))


def acting(params: Parameters) -> Callable[[Float[Array, "F"]], Float[Array, "A"]]:
    """The policy: features [F] -> action [A] in [-1, 1]."""
    if isinstance(params, Linear):
        matrix, offset = params
        return lambda features: moments.squash(matrix @ features + offset)
    process = process_of(params)
    return lambda features: moments.squash(regression.predict_mean(process, features[None])[0])


def action_moments(params: Parameters) -> Callable[[Gaussian], Moments]:
    """The moments of the action for a belief of the features."""
    process = None if isinstance(params, Linear) else process_of(params)

    def unsquashed(features: Gaussian) -> Moments:
        if isinstance(params, Linear):
            return moments.linear(features, params.matrix, params.offset)
        assert process is not None
        found = moments.through_basis_functions(features, process)
        return found._replace(covariance=found.covariance + LEAST_VARIANCE * jnp.eye(found.mean.shape[0]))

    def of(features: Gaussian) -> Moments:
        before = unsquashed(features)
        after = moments.squashed(before.belief)
        return Moments(after.mean, after.covariance, before.gain @ after.gain)

    return of
