"""Windows of a latent model from stored rows."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxmbrl.core.spaces import Space, encode
from jaxmbrl.core.types import Transition
from jaxmbrl.models.latent.interface import Window


def by_successor(rows: Transition, is_first: Bool[Array, "B L"], action: Space) -> Window:
    """L + 1 positions from windows [B, L, ...] of rows (`data.sequences.sample`, `data.replay.sample_sequences`): the first
    row's observation, then the successor of each row.

    With observations alone no terminal state would occur: the model could not learn that episodes end, or the reward of
    their last step. Of an episode that begins within a window, the first observation is left out; its belief begins at the
    second one.
    """

    def after(first: Array, rest: Array) -> Array:
        return jnp.concatenate([first, rest], axis=1)

    def behind_zero(x: Array) -> Array:
        return after(jnp.zeros_like(x[:, :1]), x)

    begins = jnp.zeros_like(is_first[:, :1])
    return Window(
        observation=after(rows.observation[:, :1], rows.next_observation),
        action=behind_zero(encode(action, rows.action)),
        reward=behind_zero(rows.reward),
        terminated=behind_zero(rows.terminated),
        first=jnp.concatenate([~begins, begins, is_first[:, 1:]], axis=1),
        last=behind_zero(rows.terminated | rows.truncated),
        known=behind_zero(jnp.ones_like(rows.reward)),
    )


def step_weights(window: Window, decay: float = 1.0) -> Float[Array, "B K"]:
    """The weight decay^t of each of the K = T - 1 steps of a window that is unrolled from its first position; 0 after the
    first end of an episode."""
    before = jnp.cumsum(window.last[:, :-1], axis=1)
    return (before == 0) * decay ** jnp.arange(before.shape[1])


def continued(window: Window) -> Bool[Array, "B T"]:
    """The positions of a window from which its first episode could continue: up to its end, but not if it terminated."""
    return (jnp.cumsum(window.last, axis=1) - window.last == 0) & ~window.terminated
