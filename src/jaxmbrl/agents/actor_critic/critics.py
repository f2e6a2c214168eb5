"""Common functions of critics: the TD target, the loss and its gradient step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float

from jaxmbrl.core.types import Average, Metrics, PyTree, Transition
from jaxmbrl.data.n_step import NStep
from jaxmbrl.nn import optimizer
from jaxmbrl.nn.optimizer import Trainable


def td_target(
    reward: Float[Array, "*n"], discount: Any, terminated: Bool[Array, "*n"], next_value: Float[Array, "*n"]
) -> Float[Array, "*n"]:
    """The one-step TD target r + discount (1 - terminated) V(s'). The value after a termination is ignored."""
    return reward + discount * jnp.where(terminated, 0.0, next_value)


def next_discount(batch: Transition | NStep, discount: Float[Array, ""]) -> Float[Array, "*n"]:
    """The discount of the value of `batch.next_observation`: discount^m for rows of m steps, else `discount`."""
    return batch.discount if isinstance(batch, NStep) else discount


def critic_loss(
    values: Float[Array, "N B"], target: Float[Array, "B"], weight: Float[Array, "B"] | None = None
) -> Float[Array, ""]:
    """The sum over N critics of mean_b weight_b (values_nb - target_b)^2."""
    error = (values - target) ** 2
    return jnp.sum(jnp.mean(error if weight is None else weight * error, axis=-1))


def regress(
    critic: Trainable,
    values: Callable[[PyTree], Float[Array, "N B"]],
    target: Float[Array, "B"],
    weight: Float[Array, "B"] | None = None,
    loss: Callable[..., Float[Array, ""]] = critic_loss,
    chain: optax.GradientTransformation | None = None,
    penalty: Callable[[PyTree], Float[Array, ""]] | None = None,
) -> tuple[Trainable, Metrics, Float[Array, "B"]]:
    """One gradient step on `loss`, where `values(parameters)` are the critics' values. Returns (critics, metrics, mean
    absolute error of each row before the step). No gradient flows into the target; the target critics are unchanged.

    `loss` has the arguments of `critic_loss`; `chain` is the optimiser (`nn.optimizer`); `penalty(parameters)` is added to
    the loss."""
    target = jax.lax.stop_gradient(target)

    def loss_of(params: PyTree) -> tuple[Array, Array]:
        found = values(params)
        value = loss(found, target, weight)
        return value if penalty is None else value + penalty(params), found

    (value, found), gradient = jax.value_and_grad(loss_of, has_aux=True)(critic.params)
    critic, norm = optimizer.step(critic, gradient, chain=chain)
    measured = {
        "agent/critic_loss": Average.of(value),
        "agent/q": Average.of(jnp.mean(found)),
        "agent/critic_gradient_norm": Average.of(norm),
    }
    return critic, measured, jnp.mean(jnp.abs(found - target), axis=0)
