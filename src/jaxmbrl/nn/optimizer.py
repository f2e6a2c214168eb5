"""Parameters with their Adam moments, learning rate and target copy, updated as one."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float

from jaxmbrl.core.types import PyTree

_FIRST, _SECOND, _EPSILON = 0.9, 0.999, 1e-8
_adam = optax.scale_by_adam(_FIRST, _SECOND, _EPSILON)


class Trainable(NamedTuple):
    """Parameters and all that their updates need. While `active` is false nothing in it changes any more.

    The gate sits in the update itself, where it costs nothing: to choose between old and new parameters afterwards would
    read and write them once more. It closes by itself at a gradient that is not finite, and the training loop closes it
    when anything else of the seed is not finite.
    """

    params: PyTree
    target: PyTree
    """Slowly moving copy of `params`, or `()`."""
    moments: Any
    """Adam's."""
    learning_rate: Float[Array, ""]
    active: Bool[Array, ""]


def init(params: PyTree, learning_rate: Any, with_target: bool = False) -> Trainable:
    """A fresh optimiser for `params`; `learning_rate` may be traced."""
    return Trainable(
        params=params,
        target=jax.tree.map(jnp.copy, params) if with_target else (),
        moments=_adam.init(params),
        learning_rate=jnp.asarray(learning_rate, float),
        active=jnp.ones((), bool),
    )


def step(
    trainable: Trainable, gradient: PyTree, scale: Float[Array, ""] | float = 1.0
) -> tuple[Trainable, Float[Array, ""]]:
    """One Adam step (arXiv 1412.6980) down `gradient`, `scale` times the learning rate; returns the gradient's norm too."""
    norm = optax.tree.norm(gradient)
    active = trainable.active & jnp.isfinite(norm)
    moments = _where(active, _adam.update(gradient, trainable.moments)[1], trainable.moments)
    # The parameters are computed from these, behind a barrier: from the gradient and the old moments, as Optax would, XLA
    # keeps copies of those while the new ones are written over them, and a step takes up to twice as long.
    moments = jax.lax.optimization_barrier(moments)
    mean = optax.tree.bias_correction(moments.mu, _FIRST, moments.count)
    square = optax.tree.bias_correction(moments.nu, _SECOND, moments.count)
    rate = scale * trainable.learning_rate
    params = jax.tree.map(lambda p, m, v: p - rate * m / (jnp.sqrt(v) + _EPSILON), trainable.params, mean, square)
    return trainable._replace(params=_where(active, params, trainable.params), moments=moments, active=active), norm


def reset_moments(trainable: Trainable) -> Trainable:
    """The same parameters with Adam's moments as at the start."""
    return trainable._replace(moments=_where(trainable.active, _adam.init(trainable.params), trainable.moments))


def move_target(trainable: Trainable, rate: float) -> Trainable:
    """Move the target copy towards the parameters by the share `rate` (Polyak averaging)."""
    target = jax.tree.map(lambda t, p: t + rate * (p - t), trainable.target, trainable.params)
    return trainable._replace(target=_where(trainable.active, target, trainable.target))


def _where(condition: Bool[Array, ""], yes: PyTree, no: PyTree) -> PyTree:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), yes, no)
