"""Common functions of critics: the one-step TD target, the loss and its gradient step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxmbrl.core.types import Average, Metrics, PyTree
from jaxmbrl.nn import optimizer
from jaxmbrl.nn.optimizer import Trainable


def td_target(
    reward: Float[Array, "*n"], discount: Any, terminated: Bool[Array, "*n"], next_value: Float[Array, "*n"]
) -> Float[Array, "*n"]:
    """The one-step TD target r + discount (1 - terminated) V(s'). The value after a termination is ignored."""
    return reward + discount * jnp.where(terminated, 0.0, next_value)


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
) -> tuple[Trainable, Metrics, Float[Array, "B"]]:
    """One gradient step on `critic_loss`, where `values(parameters)` are the critics' values. Returns (critics, metrics,
    mean absolute error of each row before the step). No gradient flows into the target; the target critics are
    unchanged."""
    target = jax.lax.stop_gradient(target)

    def loss(params: PyTree) -> tuple[Array, Array]:
        found = values(params)
        return critic_loss(found, target, weight), found

    (value, found), gradient = jax.value_and_grad(loss, has_aux=True)(critic.params)
    critic, norm = optimizer.step(critic, gradient)
    measured = {
        "agent/critic_loss": Average.of(value),
        "agent/q": Average.of(jnp.mean(found)),
        "agent/critic_gradient_norm": Average.of(norm),
    }
    return critic, measured, jnp.mean(jnp.abs(found - target), axis=0)
