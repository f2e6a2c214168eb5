"""A policy fitted to recorded actions by maximum likelihood: behaviour cloning, and BMPO's backward policy.

    minimise  mean over rows of -log N(a; mu(s), diag exp l(s))

mu is the tanh of a network's output, and l is clamped softly between fixed bounds (Lai et al., BMPO, arXiv 2007.01995, and
its code). An action is sampled within two standard deviations of mu and clipped to [-1, 1]. Of discrete actions the network
gives the logits, and the loss is the cross-entropy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
from annotated_types import Ge, Gt
from jaxtyping import Array, Float

from jaxmbrl.core.config import Traced
from jaxmbrl.core.spaces import Discrete, Space
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
from jaxmbrl.distributions import Categorical, gaussian_log_density, soft_clamp
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
    learning_rate: Annotated[float, Gt(0), Traced] = 3e-4
    """Adam learning rate."""
    low: float = -10.0
    """Lower bound of the log-variance of continuous actions."""
    high: float = 1.0
    """Upper bound of it, above `low`."""
    sample_variance: Annotated[float, Ge(0)] | None = None
    """Variance with which continuous actions are sampled; None for the fitted one."""

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


def make(config: CloningConfig, observation_size: int, action: Space | int) -> Learner:
    """The policy as a `Learner` for observations [O]; its state is a `Trainable`. `action` is the space of an action,
    vectors or choices; a number n means vectors of n numbers in [-1, 1]. `update` reads only the rows' observations and
    actions; its error is the distance of each action from the mean, or 1 minus the probability of a choice. `hyper` may
    hold `learning_rate`, traced."""
    if isinstance(action, Discrete):
        return _learner(config, observation_size, _Choices(MLP(config.hidden, action.n)))
    size = action if isinstance(action, int) else action.shape[0]
    return _learner(config, observation_size, _Vectors(config, MLP(config.hidden, 2 * size), size))


class _Vectors(NamedTuple):
    """A Gaussian policy over vectors."""

    config: CloningConfig
    network: MLP
    size: int

    def gaussian(self, params: PyTree, observation: Observation) -> tuple[Array, Array]:
        """(mean, log-variance)."""
        config = self.config
        raw_mean, raw_log_variance = jnp.split(self.network.apply(params, observation), 2, axis=-1)
        low, high = jnp.full(self.size, config.low), jnp.full(self.size, config.high)
        return jnp.tanh(raw_mean), soft_clamp(raw_log_variance, low, high)

    def act(self, params: PyTree, observation: Observation, key: Key, explore: bool) -> Action:
        mean, log_variance = self.gaussian(params, observation)
        if not explore:
            return mean
        fitted, variance = jnp.exp(0.5 * log_variance), self.config.sample_variance
        std = fitted if variance is None else jnp.full_like(fitted, variance**0.5)
        noise = jax.random.truncated_normal(key, -DEVIATIONS, DEVIATIONS, mean.shape, mean.dtype)
        return jnp.clip(mean + std * noise, -1.0, 1.0)

    def loss(self, params: PyTree, batch: Transition) -> tuple[Float[Array, ""], Float[Array, "B"]]:
        """(loss, error of each row)."""
        mean, log_variance = self.gaussian(params, batch.observation)
        loss = negative_log_likelihood(mean, log_variance, batch.action)
        return loss, jnp.linalg.norm(batch.action - jax.lax.stop_gradient(mean), axis=-1)


class _Choices(NamedTuple):
    """A categorical policy over choices."""

    network: MLP

    def act(self, params: PyTree, observation: Observation, key: Key, explore: bool) -> Action:
        policy = Categorical(self.network.apply(params, observation))
        return policy.sample(key) if explore else policy.mode()

    def loss(self, params: PyTree, batch: Transition) -> tuple[Float[Array, ""], Float[Array, "B"]]:
        """(loss, error of each row)."""
        log_probability = Categorical(self.network.apply(params, batch.observation)).log_probability(batch.action)
        return -jnp.mean(log_probability), 1 - jnp.exp(jax.lax.stop_gradient(log_probability))


def _learner(config: CloningConfig, observation_size: int, fitted: _Vectors | _Choices) -> Learner:
    def init(key: Key, hyper: Hyper) -> Trainable:
        learning_rate = hyper.get("learning_rate", config.learning_rate)
        return optimizer.init(fitted.network.init(key, jnp.zeros(observation_size)), learning_rate)

    def policy(state: Trainable, explore: bool) -> Policy:
        def act(memory: Memory, observation: Observation, key: Key) -> tuple[Action, PyTree, Memory]:
            return fitted.act(state.params, observation, key, explore), (), memory

        return Policy(lambda key: (), act)

    def update(
        state: Trainable, batch: Transition, key: Key, weight: Any = None
    ) -> tuple[Trainable, Metrics, Float[Array, "B"]]:
        (value, error), gradient = jax.value_and_grad(fitted.loss, has_aux=True)(state.params, batch)
        return optimizer.step(state, gradient)[0], {"cloning/loss": Average.of(value)}, error

    return Learner(init, policy, update)
