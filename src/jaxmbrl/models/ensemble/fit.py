"""Fitting an ensemble to the rows of a replay buffer: holdout, bootstraps, epochs of Adam, early stopping, elites."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxmbrl.core.types import Average, Key, Metrics, Transition
from jaxmbrl.data.replay import Replay
from jaxmbrl.data.shuffling import draw_shuffles
from jaxmbrl.models import epochs
from jaxmbrl.models.ensemble.layout import Layout, features_of_next, inputs_of, targets_of
from jaxmbrl.models.ensemble.loss import Batch, decoupled_decay, fit_loss, mixture_loss, variational_loss
from jaxmbrl.models.ensemble.network import EnsembleState, Parameters, forward, with_draws
from jaxmbrl.models.normalizer import Normalizer, identity, measure, normalize
from jaxmbrl.nn import optimizer
from jaxmbrl.nn.optimizer import Trainable

HOLDOUT_CHUNK = 512
"""Rows of the holdout that are evaluated at once."""


@jax.named_scope("fit")
def fit_members(
    layout: Layout,
    on_epoch: Callable[[Int[Array, ""]], None] | None,
    state: EnsembleState,
    replay: Replay,
    key: Key,
) -> tuple[EnsembleState, Metrics]:
    """Fit the ensemble to the first `replay.size` of the buffer's C rows (see `models.ensemble.make`)."""
    config, rows = layout.config, replay.data
    capacity = rows.reward.shape[0]
    split_key, weights_key, shuffle_key = jax.random.split(key, 3)
    split = epochs.split_rows(split_key, capacity, replay.size, config.holdout_fraction, config.holdout_cap)
    if layout.posterior is None:
        own_rows = epochs.bootstrap(weights_key, split, config.members)
    else:
        own_rows = epochs.each_once(split)
        weights_key, draw_key = jax.random.split(weights_key)
    batches = (split.train + config.batch_size - 1) // config.batch_size
    trained = epochs.training_mask(split)
    inputs, targets = measure_rows(layout, rows, trained)
    # What did not vary is predicted as a constant, so weights cannot lower its error on the holdout. A value that is not
    # finite must still reach the loss.
    constant = jnp.where(jnp.isfinite(targets.mean), 0.0, jnp.nan)
    ends = jnp.sum(trained & rows.terminated)
    termination_weight = jnp.where(ends > 0, jnp.maximum((split.train - ends) / jnp.maximum(ends, 1), 1.0), 1.0)

    def gather(index: Int[Array, "*n"]) -> Batch:
        taken = jax.tree.map(lambda leaf: leaf[index], rows._replace(extras=()))
        return Batch(
            inputs=normalize(inputs, inputs_of(layout, taken.observation, taken.action)),
            targets=jnp.where(targets.std > 0, normalize(targets, targets_of(layout, taken)), constant),
            next_features=features_of_next(layout, inputs, taken.next_observation),
            terminated=taken.terminated,
        )

    begun = first_of_fit(layout, state)
    decay = decoupled_decay(layout, begun.params) if layout.posterior is None else None

    def gradient(parameters: Parameters, batch: Batch, valid: Bool[Array, "B"], number: Int[Array, ""]) -> Parameters:
        if layout.posterior is None:
            return jax.grad(partial(fit_loss, layout))(parameters, batch, valid, termination_weight)
        sample_key = jax.random.fold_in(weights_key, number)
        loss = partial(variational_loss, layout)
        return jax.grad(loss)(parameters, batch, valid, split.train, sample_key, termination_weight)

    def epoch(fitted: Trainable, number: Int[Array, ""]) -> Trainable:
        epoch_key = jax.random.fold_in(shuffle_key, number)
        shuffles = draw_shuffles(epoch_key, layout.fitted_networks, capacity, split.train)
        scale = (1 + jnp.cos(jnp.pi * number / config.max_epochs)) / 2 if config.annealing else 1.0

        def step(i: Int[Array, ""], fitted: Trainable) -> Trainable:
            index, valid = epochs.minibatch(shuffles, own_rows, split.train, i, config.batch_size)
            found = gradient(fitted.params, gather(index), valid, number * batches + i)
            return optimizer.step(fitted, found, scale, decay=decay)[0]

        return jax.lax.fori_loop(0, batches, step, fitted)

    def on_holdout(parameters: Parameters) -> dict[str, Float[Array, "E"]]:
        return holdout_statistics(layout, parameters, gather, split)

    has_holdout = split.holdout > 0
    search = epochs.train_with_early_stopping(
        epoch,
        score=lambda fitted: _score(layout, on_holdout(fitted.params)),
        weights=lambda fitted: fitted.params.network,
        training=begun,
        members=layout.fitted_networks,
        has_holdout=has_holdout,
        patience=config.patience,
        max_epochs=config.max_epochs,
        on_epoch=on_epoch,
        logarithmic=layout.components is not None,
    )
    fitted = search.training._replace(params=search.training.params._replace(network=search.best))
    if layout.posterior is None:
        state = state._replace(members=fitted)
        ranked = jnp.argsort(search.score)[: config.elites].astype(jnp.int32)
        elites = jnp.where(has_holdout, ranked, state.elites)
        described = {}
    else:
        state = with_draws(layout, state, fitted, draw_key)
        # The draws have no order.
        elites = state.elites
        described = layout.posterior.describe(fitted.params.network)
    steps = search.epochs * batches
    found = on_holdout(state.members.params)
    means = {f"model/holdout_{name}": found[name][elites] for name in ("error", "likelihood") if name in found}
    means |= {f"model/{name}": found[name] for name in ("aleatoric", "epistemic") if name in found}
    metrics = {name: Average.of(jnp.mean(value), has_holdout) for name, value in means.items()} | {
        "model/fit_steps": Average.of(steps),
        "model/fit_epochs": Average.of(search.epochs),
    }
    metrics |= {f"model/{name}": Average.of(value) for name, value in described.items()}
    return state._replace(
        inputs=inputs,
        targets=targets,
        termination_weight=termination_weight,
        elites=elites,
        fits=state.fits + 1,
        steps=state.steps + steps,
    ), metrics


def first_of_fit(layout: Layout, state: EnsembleState) -> Trainable:
    """What is fitted, with the optimiser's state at the beginning of a fit."""
    begun = state.members if layout.posterior is None else state.posterior
    return optimizer.reset_moments(begun) if layout.config.restart_optimizer else begun


def measure_rows(layout: Layout, rows: Transition, mask: Bool[Array, "C"]) -> tuple[Normalizer, Normalizer]:
    """The normalisers of inputs and targets over the rows where `mask` is true."""
    inputs = measure(inputs_of(layout, rows.observation, rows.action), mask, layout.config.input_margin)
    if not layout.config.normalize_targets:
        return inputs, identity(layout.target_size)
    return inputs, measure(targets_of(layout, rows), mask)


def _score(layout: Layout, statistics: dict[str, Float[Array, "E"]]) -> Float[Array, "E"]:
    """What early stopping compares and elites are ranked by, smaller if better: the squared error, or of a mixture, whose
    mean does not tell its modes apart, -2 log-density for each dimension. Of a Gaussian with the squared error as variance
    the latter is the logarithm of the squared error, up to a constant."""
    return statistics["error"] if layout.components is None else -2 * statistics["likelihood"]


def holdout_statistics(
    layout: Layout, parameters: Parameters, gather: Callable[[Int[Array, "*n"]], Batch], split: epochs.Split
) -> dict[str, Float[Array, "E"]]:
    """For each of E networks, means over the holdout's rows and dimensions, in the space of the fitted targets; zeros if
    the holdout is empty. Of a distribution over weights the network is its centre.

    - error: squared error.
    - epistemic: squared distance from the members' mean.
    - likelihood (probabilistic members): log-density in nats.
    - aleatoric (probabilistic members): predicted variance.
    """
    members, place = parameters.network["params"]["Dense_0"]["bias"].shape[0], jnp.arange(HOLDOUT_CHUNK)

    def add(i: Int[Array, ""], sums: dict[str, Array]) -> dict[str, Array]:
        here = i * HOLDOUT_CHUNK + place
        rows = gather(split.order[jnp.minimum(here, split.order.shape[0] - 1)])
        output = forward(layout, parameters, jnp.broadcast_to(rows.inputs, (members, *rows.inputs.shape)))
        mean, variance = output.moments()
        found = {"error": (mean - rows.targets) ** 2, "epistemic": (mean - jnp.mean(mean, axis=0)) ** 2}
        if layout.config.probabilistic:
            found["aleatoric"] = jnp.broadcast_to(variance, mean.shape)
            if output.logits is None:
                scaled = found["error"] * jnp.exp(-output.log_variance)
                found["likelihood"] = -0.5 * (scaled + output.log_variance + math.log(2 * math.pi))
            else:
                targets = jnp.broadcast_to(rows.targets, mean.shape)
                loss = mixture_loss(output.logits, output.mean, output.log_variance, targets)
                # The density is one of all dimensions, of which each is given an equal share.
                found["likelihood"] = jnp.broadcast_to(-0.5 * (loss + math.log(2 * math.pi))[..., None], mean.shape)
        valid = (here < split.holdout)[:, None]
        return {name: sums[name] + jnp.sum(jnp.where(valid, value, 0.0), axis=(1, 2)) for name, value in found.items()}

    chunks = (split.holdout + HOLDOUT_CHUNK - 1) // HOLDOUT_CHUNK
    names = ("error", "epistemic", *(("likelihood", "aleatoric") if layout.config.probabilistic else ()))
    sums = jax.lax.fori_loop(0, chunks, add, {name: jnp.zeros(members) for name in names})
    return jax.tree.map(lambda total: total / (jnp.maximum(split.holdout, 1) * layout.target_size), sums)
