"""Fitting Gaussian processes to the rows of a replay buffer: rows, hyperparameters, basis."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxmbrl.core import tree
from jaxmbrl.core.cholesky import one_at_a_time
from jaxmbrl.core.types import Average, Hyper, Key, Metrics
from jaxmbrl.data.replay import Replay
from jaxmbrl.models.gaussian_process.regression import (
    Hyperparameters,
    Posterior,
    exact,
    negative_evidence,
    negative_sparse_evidence,
    penalty,
    sparse,
)
from jaxmbrl.models.layout import Layout, delta_mask, inputs_of, targets_of
from jaxmbrl.nn.quasi_newton import minimize

# The matrices of several outputs and seeds are solved with one at a time (`core.cholesky`).
_evidence = one_at_a_time(lambda hyper, rows: negative_evidence(hyper, *rows))
_sparse_evidence = one_at_a_time(lambda point, rows: negative_sparse_evidence(*point, *rows))
_exact, _sparse = jax.custom_batching.sequential_vmap(exact), jax.custom_batching.sequential_vmap(sparse)

SILENT = 1e-8
"""Signal of an output that has nothing to learn, in its units."""


class GaussianProcessState(NamedTuple):
    """State of a fitted Gaussian process. Once `active` is false, fits change nothing."""

    posterior: Posterior
    fits: Int[Array, ""]
    """Fits so far."""
    active: Bool[Array, ""]

    @property
    def checks(self) -> str:
        """What `active` says is finite."""
        return "Gaussian process"

    def gate(self, healthy: Bool[Array, ""], old: GaussianProcessState) -> GaussianProcessState:
        """This state, with `active` false unless `healthy`."""
        return self._replace(active=self.active & healthy)


class Rows(NamedTuple):
    """The data of a fit, padded to C rows."""

    inputs: Float[Array, "C I"]
    targets: Float[Array, "C D"]
    """Without the offset."""
    mask: Bool[Array, "C"]
    """Which rows are data."""


def init_state(layout: Layout, key: Key, hyper: Hyper) -> GaussianProcessState:
    """The process before its first fit: the prior with all parameters 1, of which nothing is learned yet."""
    size, outputs, inputs = layout.config.basis, layout.target_size, layout.input_size
    parameters = Hyperparameters(jnp.zeros((outputs, inputs)), jnp.zeros(outputs), jnp.zeros(outputs))
    posterior = Posterior(
        basis=jnp.zeros((size, inputs)),
        hyper=parameters,
        weights=jnp.zeros((outputs, size)),
        precision=jnp.zeros((outputs, size, size)),
        offset=jnp.zeros(outputs),
    )
    return GaussianProcessState(posterior, jnp.zeros((), jnp.int32), jnp.ones((), bool))


@jax.named_scope("fit")
def fit_processes(
    layout: Layout, state: GaussianProcessState, replay: Replay, key: Key
) -> tuple[GaussianProcessState, Metrics]:
    """Fit the processes to the first `replay.size` of the buffer's rows (see `models.gaussian_process.make`)."""
    config = layout.config
    rows, offset = rows_of(layout, replay)
    number = jnp.sum(rows.mask)
    before = state.posterior.hyper

    def by_all(key: Key) -> tuple[Posterior, Float[Array, "D"]]:
        within = Rows(rows.inputs[: config.basis], rows.targets[: config.basis], rows.mask[: config.basis])
        return fit_exact(config.evaluations, within, offset, before, state.fits)

    def by_inducing(key: Key) -> tuple[Posterior, Float[Array, "D"]]:
        return fit_sparse(config.evaluations, config.basis, rows, offset, before, state.fits, key)

    if config.basis < config.capacity:
        # The number of rows is that of the buffer, which all seeds share.
        size = jnp.minimum(replay.size, config.capacity)
        posterior, cost = jax.lax.cond(size > config.basis, by_inducing, by_all, key)
    else:
        posterior, cost = by_all(key)
    finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(posterior)]))
    active = state.active & finite
    ratio = jnp.exp(posterior.hyper.signal - posterior.hyper.noise)
    learned = jnp.sum(has_signal(rows, offset))
    found = {
        "model/evidence": Average.of(jnp.sum(-cost) / jnp.maximum(learned * number, 1)),
        "model/signal_to_noise": Average.of(jnp.max(ratio)),
        "model/rows": Average.of(number),
    }
    fitted = GaussianProcessState(tree.where(active, posterior, state.posterior), state.fits + active, active)
    return fitted, {name: Average.of(x.total, finite) for name, x in found.items()}


def rows_of(layout: Layout, replay: Replay) -> tuple[Rows, Float[Array, "D"]]:
    """(the data, the prior mean of each output). The mean is that of the targets for outputs that are no changes, and 0,
    no change, for the others."""
    config = layout.config
    size = jnp.minimum(replay.size, config.capacity)
    place, mask = jnp.arange(config.capacity), jnp.arange(config.capacity) < size
    # Rows at equal distances; all of them if there are no more than fit. 64-bit products do not overflow.
    slots = jnp.minimum((place * (replay.size / jnp.maximum(size, 1))).astype(jnp.int32), replay.data.reward.shape[0] - 1)

    def take(leaf: Array) -> Array:
        """The rows, with floats of a file in float64."""
        return leaf[slots].astype(float) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf[slots]

    taken = jax.tree.map(take, replay.data._replace(extras=()))
    targets = targets_of(layout, taken)
    changes = jnp.pad(delta_mask(layout), (0, int(layout.learns_reward)))
    mean = jnp.sum(jnp.where(mask[:, None], targets, 0.0), axis=0) / jnp.maximum(size, 1)
    offset = jnp.where(changes > 0, 0.0, mean)
    return Rows(inputs_of(layout, taken.observation, taken.action), targets - offset, mask), offset


def has_signal(rows: Rows, offset: Float[Array, "D"]) -> Bool[Array, "D"]:
    """Which outputs are learned. The others are equal to their prior mean in all rows, but for rounding. The evidence of
    such an output has no maximum: it rises as the signal goes to 0."""
    return ~(jnp.max(jnp.abs(jnp.where(rows.mask[:, None], rows.targets, 0.0)), axis=0) <= 1e-10 * jnp.abs(offset))


def first_guess(rows: Rows, learned: Bool[Array, "D"]) -> tuple[Hyperparameters, Float[Array, "I"]]:
    """(hyperparameters by the spread of the data: noise a tenth of the signal; standard deviations of the inputs). A column
    that does not vary has 1 in the place of its standard deviation, and an output that is not `learned` has `SILENT`."""
    spread, of_targets = deviations(rows.inputs, rows.mask), deviations(rows.targets, rows.mask)
    signal = jnp.log(jnp.where(learned, of_targets, SILENT))
    scales = jnp.broadcast_to(jnp.log(spread), (rows.targets.shape[1], spread.shape[0]))
    return Hyperparameters(scales, signal, signal - jnp.log(10.0)), spread


def deviations(values: Float[Array, "C d"], mask: Bool[Array, "C"]) -> Float[Array, "d"]:
    """Standard deviation of each column over the rows where `mask` is true; 1 for a column that varies by rounding only."""
    number = jnp.maximum(jnp.sum(mask), 1)
    masked = jnp.where(mask[:, None], values, 0.0)
    mean = jnp.sum(masked, axis=0) / number
    found = jnp.sqrt(jnp.sum(jnp.where(mask[:, None], values - mean, 0.0) ** 2, axis=0) / number)
    least = 1e-10 * jnp.max(jnp.abs(masked), axis=0)
    return jnp.where(found > least, found, 1.0)


def fit_exact(
    evaluations: int, rows: Rows, offset: Float[Array, "D"], before: Hyperparameters, fits: Int[Array, ""]
) -> tuple[Posterior, Float[Array, "D"]]:
    """(exact processes, the negative evidence of each; 0 if it is not learned). Each output has its own hyperparameters,
    found from those of the last fit or from the first guess, whichever is better. An output that is not learned has the
    first guess."""
    learned = has_signal(rows, offset)
    guess, spread = first_guess(rows, learned)

    def one(
        guess: Hyperparameters, before: Hyperparameters, target: Array, learned: Array
    ) -> tuple[Hyperparameters, Array, Array, Array]:
        def cost(hyper: Hyperparameters) -> Float[Array, ""]:
            return jnp.where(learned, _evidence(hyper, (rows.inputs, target, rows.mask)) + penalty(hyper, spread), 0.0)

        better = (fits > 0) & (cost(before) < cost(guess))
        found = minimize(cost, tree.where(better, before, guess), evaluations)
        weights, precision = _exact(found.point, rows.inputs, target, rows.mask)
        return found.point, weights, precision, found.value - jnp.where(learned, penalty(found.point, spread), 0.0)

    hyper, weights, precision, cost = jax.vmap(one, in_axes=(0, 0, 1, 0))(guess, before, rows.targets, learned)
    return Posterior(rows.inputs, hyper, weights, precision, offset), cost


def fit_sparse(
    evaluations: int,
    size: int,
    rows: Rows,
    offset: Float[Array, "D"],
    before: Hyperparameters,
    fits: Int[Array, ""],
    key: Key,
) -> tuple[Posterior, Float[Array, "D"]]:
    """(FITC with `size` inducing inputs that all outputs share, the negative evidence of each; 0 if it is not learned).
    Inducing inputs, which start at different random rows, and hyperparameters are found together, by the sum of the
    evidence of the outputs that are learned, from those of the last fit or from the first guess, whichever is better. An
    output that is not learned has the first guess."""
    learned = has_signal(rows, offset)
    guess, spread = first_guess(rows, learned)
    before = jax.vmap(tree.where)(learned, before, guess)
    # Rows that are missing come last.
    order = jnp.argsort(jnp.where(rows.mask, jax.random.uniform(key, rows.mask.shape), 2.0))
    inducing = rows.inputs[order[:size]]

    def costs(point: tuple[Hyperparameters, Array]) -> Float[Array, "D"]:
        hyper, inducing = point

        def one(hyper: Hyperparameters, target: Array) -> Float[Array, ""]:
            return _sparse_evidence((hyper, inducing), (rows.inputs, target, rows.mask))

        return jnp.where(learned, jax.vmap(one, in_axes=(0, 1))(hyper, rows.targets), 0.0)

    def cost(point: tuple[Hyperparameters, Array]) -> Float[Array, ""]:
        penalties = jax.vmap(penalty, in_axes=(0, None))(point[0], spread)
        return jnp.sum(costs(point)) + jnp.sum(jnp.where(learned, penalties, 0.0))

    better = (fits > 0) & (cost((before, inducing)) < cost((guess, inducing)))
    hyper, inducing = minimize(cost, (tree.where(better, before, guess), inducing), evaluations).point

    def fitted(hyper: Hyperparameters, target: Array) -> tuple[Array, Array]:
        return _sparse(hyper, inducing, rows.inputs, target, rows.mask)

    weights, precision = jax.vmap(fitted, in_axes=(0, 1))(hyper, rows.targets)
    return Posterior(inducing, hyper, weights, precision, offset), costs((hyper, inducing))
