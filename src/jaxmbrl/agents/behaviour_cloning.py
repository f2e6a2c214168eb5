"""A policy fitted to recorded actions by maximum likelihood: behaviour cloning, and BMPO's backward policy.

    minimise  mean over rows of -log N(a; mu(s), diag exp l(s))

mu is the tanh of a network's output, and l is clamped softly between fixed bounds (Lai et al., BMPO, arXiv 2007.01995, and
its code). An action is sampled within two standard deviations of mu and clipped to [-1, 1].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import jax
import jax.numpy as jnp
from annotated_types import Ge, Gt
from jaxtyping import Array, Float

from jaxmbrl.core.types import (
    Action,
    Average,
    Hyper,
    Key,
    Learner,
    Memory,
    Metrics,
    Observation,
    Policy,
    PyTree,
    Transition,
)
from jaxmbrl.distributions import gaussian_log_density, soft_clamp
from jaxmbrl.nn import optimizer
from jaxmbrl.nn.networks import MLP
from jaxmbrl.nn.optimizer import Trainable

DEVIATIONS = 2.0
"""Largest distance of a sampled action from the mean, in standard deviations."""


@dataclass(frozen=True)
class CloningConfig:
    """Settings of the policy."""

    hidden: tuple[Annotated[int, Ge(1)], ...] = (256, 256)
    """Units of each hidden layer (ReLU)."""
    learning_rate: Annotated[float, Gt(0)] = 3e-4
    """Adam learning rate."""
    low: float = -10.0
    """Lower bound of the log-variance."""
    high: float = 1.0
    """Upper bound of the log-variance, above `low`."""
    sample_variance: Annotated[float, Ge(0)] | None = None
    """Variance with which actions are sampled; None for the fitted one."""

    def problem(self) -> tuple[str, str] | None:
        """(field, message) of the first violated rule that involves several fields, or None."""
        if self.high <= self.low:
            return "high", f"must be above low ({self.low}), got {self.high}"
        return None


def negative_log_likelihood(
    mean: Float[Array, "B A"], log_variance: Float[Array, "B A"], action: Float[Array, "B A"]
) -> Float[Array, ""]:
    """The mean over rows of -log N(action; mean, diag exp log_variance), in nats."""
    return -jnp.mean(gaussian_log_density(action, mean, 0.5 * log_variance))


def make(config: CloningConfig, observation_size: int, action_size: int) -> Learner:
    """The policy as a `Learner` for observations [O] and actions [A] in [-1, 1]; its state is a `Trainable`. `update` reads
    only the rows' observations and actions; its error is the distance of each action from the mean."""
    network = MLP(config.hidden, 2 * action_size)

    def gaussian(params: PyTree, observation: Observation) -> tuple[Array, Array]:
        raw_mean, raw_log_variance = jnp.split(network.apply(params, observation), 2, axis=-1)
        low, high = jnp.full(action_size, config.low), jnp.full(action_size, config.high)
        return jnp.tanh(raw_mean), soft_clamp(raw_log_variance, low, high)

    def init(key: Key, hyper: Hyper) -> Trainable:
        return optimizer.init(network.init(key, jnp.zeros(observation_size)), config.learning_rate)

    def policy(state: Trainable, explore: bool) -> Policy:
        def act(memory: Memory, observation: Observation, key: Key) -> tuple[Action, PyTree, Memory]:
            mean, log_variance = gaussian(state.params, observation)
            if not explore:
                return mean, (), memory
            fitted = jnp.exp(0.5 * log_variance)
            std = fitted if config.sample_variance is None else jnp.full_like(fitted, config.sample_variance**0.5)
            noise = jax.random.truncated_normal(key, -DEVIATIONS, DEVIATIONS, mean.shape, mean.dtype)
            return jnp.clip(mean + std * noise, -1.0, 1.0), (), memory

        return Policy(lambda key: (), act)

    def update(
        state: Trainable, batch: Transition, key: Key, weight: Any = None
    ) -> tuple[Trainable, Metrics, Float[Array, "B"]]:
        def loss(params: PyTree) -> tuple[Float[Array, ""], Float[Array, "B A"]]:
            mean, log_variance = gaussian(params, batch.observation)
            return negative_log_likelihood(mean, log_variance, batch.action), mean

        (value, mean), gradient = jax.value_and_grad(loss, has_aux=True)(state.params)
        error = jnp.linalg.norm(batch.action - mean, axis=-1)
        return optimizer.step(state, gradient)[0], {"cloning/loss": Average.of(value)}, error

    return Learner(init, policy, update)
