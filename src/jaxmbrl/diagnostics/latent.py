"""Predictions of a latent world model, compared with recorded episodes.

At the positions before `context` the model sees the observations: these are its reconstructions. From there on it sees only
the recorded actions. This is the comparison of Dreamer's papers, with 5 images of context and 45 of prediction.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int, Shaped, UInt8

from jaxmbrl.core.config import UserError
from jaxmbrl.core.types import Key, Transition
from jaxmbrl.diagnostics.open_loop import steps_left
from jaxmbrl.models.latent import LatentView, by_successor

WINDOWS = 4
CONTEXT = 5
LENGTH = 50
ACTIVE = 0.01
"""Smallest standard deviation of an entry of z, over recorded positions, that counts as used."""
SHOWN = 12
"""Images in a row of a strip."""
HEIGHT = 64
"""Least height of an image in a strip, in pixels."""
GAP = 4
WHITE = 255


class LatentPredictions(NamedTuple):
    """Observations and rewards at the T positions of B windows. NumPy arrays in the task's units, images in 0 .. 255."""

    observed: Shaped[np.ndarray, "B T ..."]
    reconstructed: Shaped[np.ndarray, "B T ..."]
    """The decoded belief that has seen the observations so far."""
    predicted: Shaped[np.ndarray, "B T-context ..."]
    """The decoded belief that has seen the first `context` observations and then the actions alone."""
    reward: Float[np.ndarray, "B T-context"]
    """Rewards of the steps to these positions."""
    predicted_reward: Float[np.ndarray, "B T-context"]
    context: int
    starts: Int[np.ndarray, "B"]
    """Indices of the rows that windows begin with."""
    spread: Float[np.ndarray, "Z"]
    """Standard deviation of each entry of the stochastic part of the belief over all positions, in descending order."""

    def active(self) -> int:
        """Number of entries of the stochastic part that vary."""
        return int(np.sum(self.spread > ACTIVE))


def latent_predictions(
    view: LatentView,
    episodes: Transition,
    key: Key,
    *,
    context: int = CONTEXT,
    length: int = LENGTH,
    windows: int = WINDOWS,
) -> LatentPredictions:
    """Reconstructions and open-loop predictions of a latent model along recorded `episodes`, rows [N, ...] in time order.

    Up to `windows` windows of at most `length` steps are taken, evenly spaced; none goes across the end of an episode. Each
    begins with an empty belief. `Algorithm.views(state).latent` is the `view` of a method with a latent model.

    Raises UserError if no recorded episode is longer than `context`.
    """
    if context < 1 or length < 1 or windows < 1:
        raise UserError(f"context, length and windows must be at least 1, got {context}, {length} and {windows}")
    left = steps_left(episodes)
    steps = int(min(length, left.max()))
    if steps + 1 <= context:
        raise UserError(f"context must be at most {steps}, the longest recorded sequence, got {context}")
    fit = np.flatnonzero(left >= steps)
    starts = fit[np.unique(np.linspace(0, len(fit) - 1, windows).round().astype(int))]
    at = starts[:, None] + np.arange(steps)
    rows = jax.tree.map(lambda x: jnp.asarray(np.asarray(x)[at]), episodes._replace(extras=()))
    is_first = jnp.zeros(at.shape, bool).at[:, 0].set(True)
    made = jax.jit(lambda params: _predict(view._replace(params=params), rows, is_first, context, key))(view.params)
    observed, reconstructed, predicted, rewards, spread = jax.device_get(made)
    reward = np.asarray(rows.reward)[:, context - 1 :]
    return LatentPredictions(observed, reconstructed, predicted, reward, rewards, context, starts, np.sort(spread)[::-1])


def _predict(view: LatentView, rows: Transition, is_first: Bool[Any, "B L"], context: int, key: Key) -> Any:
    model, params = view.model, view.params
    filter_key, *keys = jax.random.split(key, 2 + rows.reward.shape[1] - context)
    window = by_successor(rows, is_first, view.action)
    beliefs = model.loss(params, window, filter_key)[1][0]
    world = model.world(params)

    def step(belief: Any, given: tuple[Any, Key]) -> tuple[Any, tuple[Any, Any]]:
        action, key = given
        belief, made = world.step(belief, action, key)
        return belief, (made.next_observation, made.reward)

    origin = world.start(jax.tree.map(lambda x: x[:, context - 1], beliefs), filter_key)
    actions = jnp.swapaxes(rows.action[:, context - 1 :], 0, 1)
    _, (features, rewards) = jax.lax.scan(step, origin, (actions, jnp.stack(keys)))
    predicted = model.decode(params, jnp.swapaxes(features, 0, 1))
    spread = jnp.std(beliefs.stoch, axis=(0, 1))
    return window.observation, model.decode(params, model.features(beliefs)), predicted, rewards.T, spread


def prediction_strip(found: LatentPredictions, window: int = 0) -> UInt8[np.ndarray, "H W 3"]:
    """Images of one window in three rows: observed, reconstructed, and predicted after the context, whose images are the
    reconstructions. Of more than 12 positions, 12 are shown, evenly spaced; a dark line separates the context.

    Raises UserError if the observations are not images of one or three channels.
    """
    observed = found.observed[window]
    if observed.ndim != 4 or observed.shape[-1] not in (1, 3):
        raise UserError(f"observations must be images [H, W, 1] or [H, W, 3] for a strip, got {list(observed.shape[1:])}")
    continued = np.concatenate([found.reconstructed[window, : found.context], found.predicted[window]])
    positions = np.unique(np.linspace(0, len(observed) - 1, SHOWN).round().astype(int))
    before = int(np.sum(positions < found.context))
    factor = max(1, -(-HEIGHT // observed.shape[1]))

    def row(images: Shaped[np.ndarray, "T H W C"]) -> UInt8[np.ndarray, "h W 3"]:
        shown = np.clip(np.round(np.asarray(images, float)), 0, WHITE).astype(np.uint8)[positions]
        shown = enlarged(shown, factor)
        gap = np.full((shown.shape[1], GAP, 3), WHITE, np.uint8)
        parts = []
        for i, image in enumerate(shown):
            parts += [np.zeros_like(gap) if i == before else gap, image]
        return np.concatenate(parts[1:], axis=1)

    rows = [row(images) for images in (observed, found.reconstructed[window], continued)]
    between = np.full((GAP, rows[0].shape[1], 3), WHITE, np.uint8)
    return np.concatenate([rows[0], between, rows[1], between, rows[2]])


def enlarged(images: UInt8[np.ndarray, "*N H W C"], factor: int) -> UInt8[np.ndarray, "*N h w 3"]:
    """Images of one or three channels in colour, each pixel as a square of `factor` x `factor`."""
    return images.repeat(factor, axis=-3).repeat(factor, axis=-2).repeat(3 // images.shape[-1], axis=-1)
