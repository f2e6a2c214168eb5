"""Epochs of training an ensemble: holdout, bootstraps, shuffled minibatches, early stopping.

The number of valid rows is traced throughout. The cost of an epoch grows with this number, not with the buffer's capacity.
Nothing here depends on the kind of model.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxmbrl.core.types import Key, PyTree
from jaxmbrl.data.shuffling import shuffled

IMPROVEMENT = 0.01
"""Relative decrease of a member's best holdout error that counts as an improvement."""


class Split(NamedTuple):
    """A random split of the valid rows of a buffer with C rows."""

    order: Int[Array, "C"]
    """Row numbers: first the holdout, then the training rows, then the rows that are not valid."""
    holdout: Int[Array, ""]
    """Rows in the holdout."""
    train: Int[Array, ""]
    """Rows for training."""


def split_rows(key: Key, capacity: int, count: Int[Array, ""], fraction: float, cap: int) -> Split:
    """Split the first `count` of `capacity` rows at random; min(floor(fraction * count), cap) of them are the holdout."""
    number = jnp.arange(capacity, dtype=jnp.int32)
    unused = (number >= count).astype(jnp.int32)
    order = jax.lax.sort((unused, jax.random.bits(key, (capacity,), jnp.uint32), number), num_keys=2)[2]
    holdout = jnp.minimum(jnp.floor(fraction * count.astype(float)).astype(jnp.int32), cap)
    return Split(order, holdout, count.astype(jnp.int32) - holdout)


def training_mask(split: Split) -> Bool[Array, "C"]:
    """Which rows are training rows."""
    place = jnp.arange(split.order.shape[0])
    return (
        jnp.zeros(place.shape, bool)
        .at[split.order]
        .set((place >= split.holdout) & (place < split.holdout + split.train), unique_indices=True)
    )


def bootstrap(key: Key, split: Split, members: int) -> Int[Array, "E C"]:
    """For each member, row numbers drawn with replacement from the training rows; the first `split.train` are its data."""
    place = jax.random.randint(key, (members, split.order.shape[0]), 0, jnp.maximum(split.train, 1))
    return split.order[split.holdout + place]


def each_once(split: Split) -> Int[Array, "1 C"]:
    """The same for one network that is fitted to each training row once."""
    return jnp.roll(split.order, -split.holdout)[None]


def minibatch(
    shuffles: Int[Array, "E rounds side"], rows: Int[Array, "E C"], count: Int[Array, ""], number: Int[Array, ""], size: int
) -> tuple[Int[Array, "E B"], Bool[Array, "B"]]:
    """(row numbers, mask of valid ones) of an epoch's minibatch `number` for each member, from the first `count` of its
    `rows`.

    The last minibatch of an epoch may be partial: its surplus entries repeat a row and are not valid.
    """
    count = jnp.maximum(count, 1)
    position = (number * size + jnp.arange(size)).astype(jnp.int32)
    place = jax.vmap(lambda table: shuffled(table, jnp.minimum(position, count - 1), count))(shuffles)
    return jnp.take_along_axis(rows, place, axis=1), position < count


class EarlyStopping(NamedTuple):
    """State of training with early stopping."""

    training: PyTree
    """State that an epoch updates."""
    best: PyTree
    """Leaves [E, ...]: each member's weights at its best score."""
    score: Float[Array, "E"]
    """Each member's best score; infinite before the first."""
    epochs: Int[Array, ""]
    """Epochs so far."""
    stale: Int[Array, ""]
    """Consecutive epochs without improvement of any member."""


def train_with_early_stopping(
    epoch: Callable[[PyTree, Int[Array, ""]], PyTree],
    score: Callable[[PyTree], Float[Array, "E"]],
    weights: Callable[[PyTree], PyTree],
    training: PyTree,
    members: int,
    has_holdout: Bool[Array, ""],
    patience: int,
    max_epochs: int,
    on_epoch: Callable[[Int[Array, ""]], None] | None = None,
    logarithmic: bool = False,
) -> EarlyStopping:
    """Repeat `epoch(training, number)` at most `max_epochs` times, until more than `patience` epochs in a row improve no
    member.

    After each epoch `score(training)` [E] is compared with each member's best score: a member more than 1 % below it has
    improved, and its `weights(training)` [E, ...] are kept. With patience 5, training stops after the sixth consecutive
    epoch without improvement, as in MBPO's code. A score that is not finite is no improvement. If `has_holdout` is false,
    scores are ignored: all epochs are run and the last weights are kept. Scores are above 0, or their logarithms if
    `logarithmic`.
    `on_epoch` is called on the host with the number of epochs so far.
    """

    def unfinished(search: EarlyStopping) -> Bool[Array, ""]:
        return (search.epochs < max_epochs) & (search.stale <= patience)

    def body(search: EarlyStopping) -> EarlyStopping:
        training = epoch(search.training, search.epochs)
        now = score(training)
        bound = search.score + math.log1p(-IMPROVEMENT) if logarithmic else (1 - IMPROVEMENT) * search.score
        improved = (now < bound) | ~has_holdout
        if on_epoch is not None:
            jax.debug.callback(on_epoch, search.epochs + 1)
        return EarlyStopping(
            training=training,
            best=jax.tree.map(lambda new, old: _per_member(improved, new, old), weights(training), search.best),
            score=jnp.where(improved, now, search.score),
            epochs=search.epochs + 1,
            stale=jnp.where(jnp.any(improved), 0, search.stale + 1),
        )

    zero = jnp.zeros((), jnp.int32)
    start = EarlyStopping(training, weights(training), jnp.full(members, jnp.inf), zero, zero)
    return jax.lax.while_loop(unfinished, body, start)


def _per_member(chosen: Bool[Array, "E"], yes: Array, no: Array) -> Array:
    return jnp.where(chosen.reshape((-1,) + (1,) * (yes.ndim - 1)), yes, no)
