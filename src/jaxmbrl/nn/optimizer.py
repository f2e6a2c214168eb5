"""Parameters with their optimiser state, learning rate and target network.

The update is Adam's (Kingma and Ba, arXiv 1412.6980) unless another chain of `optax` transformations is given, such as

    optax.chain(optax.clip_by_global_norm(1.0), optax.scale_by_adam(), optax.add_decayed_weights(1e-4))

A chain does not contain the learning rate: `step` multiplies by it, because it may be traced and differ between seeds. A
learning-rate schedule is part of the chain (`optax.scale_by_schedule`). Pass the same chain to `init` and to `step`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from jaxmbrl.core import tree
from jaxmbrl.core.types import PyTree

_FIRST, _SECOND, _EPSILON = 0.9, 0.999, 1e-8
_adam = optax.scale_by_adam(_FIRST, _SECOND, _EPSILON)


class Trainable(NamedTuple):
    """Parameters and the state of their updates. Once `active` is false, updates change nothing.

    The check of `active` is part of the update itself, where it costs nothing: selecting between old and new parameters
    afterwards would read and write them again. `active` becomes false at a gradient that is not finite; the training loop
    also sets it to false when any other value of the seed is not finite.
    """

    params: PyTree
    target: PyTree
    """Target network: a slowly moving copy of `params`, or `()`."""
    moments: Any
    """State of the optax chain: Adam's moments unless another chain is given."""
    learning_rate: Float[Array, ""]
    active: Bool[Array, ""]

    def gate(self, healthy: Bool[Array, ""], old: Trainable) -> Trainable:
        """This state, with `active` false unless `healthy`."""
        return self._replace(active=self.active & healthy)


def init(
    params: PyTree, learning_rate: Any, with_target: bool = False, chain: optax.GradientTransformation | None = None
) -> Trainable:
    """The initial state for `params`; `learning_rate` may be traced. Without a `chain` the optimiser is Adam."""
    return Trainable(
        params=params,
        target=jax.tree.map(jnp.copy, params) if with_target else (),
        moments=(_adam if chain is None else chain).init(params),
        learning_rate=jnp.asarray(learning_rate, float),
        active=jnp.ones((), bool),
    )


def step(
    trainable: Trainable,
    gradient: PyTree,
    scale: Float[Array, ""] | float = 1.0,
    chain: optax.GradientTransformation | None = None,
    decay: PyTree = None,
) -> tuple[Trainable, Float[Array, ""]]:
    """(state after one descent step, norm of `gradient`). The step is that of the `chain`, by default Adam, with `scale`
    times the learning rate.

    `decay` has a number for each leaf of the parameters: besides the step of Adam, a leaf p loses learning rate x number x
    p (decoupled weight decay, AdamW; Loshchilov and Hutter, arXiv 1711.05101, algorithm 2, with both steps scaled by the
    learning rate, as in PyTorch and Optax). None: no decay.

    A gradient that is not finite changes no parameter, and sets `active` to false.
    """
    norm = optax.tree.norm(gradient)
    active = trainable.active & jnp.isfinite(norm)
    update = _adam_step if chain is None else _chain_step(chain)
    rate = scale * trainable.learning_rate
    params, moments = update(trainable, gradient, rate, active)
    if decay is not None:
        params = jax.tree.map(lambda new, old, number: new - rate * number * old, params, trainable.params, decay)
    return trainable._replace(params=tree.where(active, params, trainable.params), moments=moments, active=active), norm


def _adam_step(trainable: Trainable, gradient: PyTree, rate: Any, moves: Bool[Array, ""]) -> tuple[PyTree, Any]:
    moments = tree.where(moves, _adam.update(gradient, trainable.moments)[1], trainable.moments)
    # The barrier makes XLA compute the parameters from the new moments. Otherwise, as with Optax, it computes them from the
    # gradient and copies of the old moments, and a step takes up to twice as long.
    moments = jax.lax.optimization_barrier(moments)
    mean = optax.tree.bias_correction(moments.mu, _FIRST, moments.count)
    square = optax.tree.bias_correction(moments.nu, _SECOND, moments.count)
    return jax.tree.map(lambda p, m, v: p - rate * m / (jnp.sqrt(v) + _EPSILON), trainable.params, mean, square), moments


def _chain_step(chain: optax.GradientTransformation) -> Any:
    def update(trainable: Trainable, gradient: PyTree, rate: Any, moves: Bool[Array, ""]) -> tuple[PyTree, Any]:
        direction, moments = chain.update(gradient, trainable.moments, trainable.params)
        params = jax.tree.map(lambda p, d: (p - rate * d).astype(p.dtype), trainable.params, direction)
        return params, tree.where(moves, moments, trainable.moments)

    return update


def assign(trainable: Trainable, params: PyTree, norm: Float[Array, ""]) -> Trainable:
    """The state with parameters that were found without this optimiser. Nothing changes, and `active` becomes false, if
    `norm`, that of the gradient that led to them, or one of them is not finite."""
    active = trainable.active & jnp.isfinite(norm) & jnp.isfinite(optax.tree.norm(params))
    return trainable._replace(params=tree.where(active, params, trainable.params), active=active)


def reset_moments(trainable: Trainable, chain: optax.GradientTransformation | None = None) -> Trainable:
    """The same parameters with the optimiser's initial state."""
    new = (_adam if chain is None else chain).init(trainable.params)
    return trainable._replace(moments=tree.where(trainable.active, new, trainable.moments))


def move_target(trainable: Trainable, rate: float) -> Trainable:
    """Move the target network towards the parameters by the share `rate` (Polyak averaging; 1 copies them)."""
    moved = jax.tree.map(lambda t, p: t + rate * (p - t), trainable.target, trainable.params)
    target = trainable.params if rate == 1 else moved
    return trainable._replace(target=tree.where(trainable.active, target, trainable.target))


def copy_target_every(trainable: Trainable, period: int) -> Trainable:
    """Copy the parameters to the target network after every `period`-th step of the optimiser, whose state must have the
    count of its steps, as Adam's does. Seeds may have different counts, so the copy is a selection."""
    due = trainable.active & (optax.tree.get(trainable.moments, "count") % period == 0)
    return trainable._replace(target=tree.where(due, trainable.params, trainable.target))


class LaPropState(NamedTuple):
    """State of `scale_by_laprop`."""

    steps: Int[Array, ""]
    mu: PyTree
    """Moving average of the normalised gradients."""
    nu: PyTree
    """Moving average of the squared gradients."""


def scale_by_laprop(first: float = 0.9, second: float = 0.999, epsilon: float = 1e-15) -> optax.GradientTransformation:
    """LaProp (Ziyin et al., arXiv 2002.04839, algorithm 1): the gradient is divided by its root mean square before it
    enters the momentum, where Adam divides the momentum.

        v = second v + (1 - second) g^2,    m = first m + (1 - first) g / (sqrt(v / (1 - second^t)) + epsilon)

    and the direction is m / (1 - first^t).
    """

    def init_state(params: PyTree) -> LaPropState:
        zeros = jax.tree.map(jnp.zeros_like, params)
        return LaPropState(jnp.zeros((), jnp.int32), zeros, zeros)

    def update(gradient: PyTree, state: LaPropState, params: PyTree = None) -> tuple[PyTree, LaPropState]:
        steps = state.steps + 1
        nu = jax.tree.map(lambda v, g: second * v + (1 - second) * g**2, state.nu, gradient)
        unbiased = optax.tree.bias_correction(nu, second, steps)
        normalised = jax.tree.map(lambda g, v: g / (jnp.sqrt(v) + epsilon), gradient, unbiased)
        mu = jax.tree.map(lambda m, g: first * m + (1 - first) * g, state.mu, normalised)
        return optax.tree.bias_correction(mu, first, steps), LaPropState(steps, mu, nu)

    return optax.GradientTransformation(init_state, update)


def clip_by_parameter_norm(factor: float = 0.3, least_norm: float = 1e-3) -> optax.GradientTransformation:
    """Adaptive gradient clipping (AGC) of each tensor: g / max(1, ||g|| / (factor max(least_norm, ||p||))).

    As in DreamerV3, this is the rule of Brock et al. (arXiv 2102.06171, equation 3) with the norm of a whole tensor instead
    of that of each unit; `optax.adaptive_grad_clip` uses the norms of units.
    """

    def update(gradient: PyTree, state: optax.EmptyState, params: PyTree = None) -> tuple[PyTree, optax.EmptyState]:
        def clip(g: Array, p: Array) -> Array:
            bound = factor * jnp.maximum(least_norm, optax.safe_norm(p, 0.0))
            return g / jnp.maximum(1.0, optax.safe_norm(g, 0.0) / bound)

        return jax.tree.map(clip, gradient, params), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)
