"""What critics that regress on a target share, whatever the target is."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxmbrl.core.types import Average, Metrics, PyTree
from jaxmbrl.nn import optimizer
from jaxmbrl.nn.optimizer import Trainable


def regress(
    critic: Trainable,
    values: Callable[[PyTree], Float[Array, "N B"]],
    target: Float[Array, "B"],
    weight: Float[Array, "B"] | None = None,
) -> tuple[Trainable, Metrics]:
    """One step down the sum over N critics of mean weight (value - target)^2, where `values(parameters)` are the critics'.
    No gradient flows into the target, and the target copy stays."""
    target = jax.lax.stop_gradient(target)

    def loss(params: PyTree) -> tuple[Array, Array]:
        found = values(params)
        error = (found - target) ** 2
        return jnp.sum(jnp.mean(error if weight is None else weight * error, axis=-1)), jnp.mean(found)

    (value, mean), gradient = jax.value_and_grad(loss, has_aux=True)(critic.params)
    critic, norm = optimizer.step(critic, gradient)
    return critic, {
        "agent/critic_loss": Average.of(value),
        "agent/q": Average.of(mean),
        "agent/critic_gradient_norm": Average.of(norm),
    }
