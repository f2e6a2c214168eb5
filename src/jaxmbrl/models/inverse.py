"""An inverse dynamics model: the action that led from one observation to the next.

    continuous  minimise  mean over rows of -log N(a; mu(x), diag exp l(x))
    discrete    minimise  mean over rows of -log softmax(z(x))[a],      x = [features(s), s' - s]

The change s' - s is an input, and not s': where a step changes little, a network would have to find the difference of
two large numbers. l is clamped softly between fixed bounds.

An action is not identifiable where it does not act: an actuator that saturates, a speed that is clipped, contact that
holds. There the variance is that of the actions in the data. Where two different actions lead to the same s', their mean
may lead elsewhere; the variance is large there as well.

`relabelled` gives transitions without actions the most probable ones, from which a policy can be cloned (behavioural
cloning from observation: Torabi et al., arXiv 1805.01954).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
from annotated_types import Ge, Gt
from jaxtyping import Array, Float, Int

from jaxmbrl.core.spaces import Discrete, Space, encoded_size
from jaxmbrl.core.types import Average, Features, Hyper, Key, Metrics, PyTree, Transition
from jaxmbrl.data import replay
from jaxmbrl.data.replay import Replay
from jaxmbrl.distributions import Categorical, Gaussian, soft_clamp
from jaxmbrl.models.normalizer import Normalizer, identity, measure, normalize
from jaxmbrl.nn import optimizer
from jaxmbrl.nn.networks import MLP
from jaxmbrl.nn.optimizer import Trainable


@dataclass(frozen=True)
class InverseConfig:
    """Settings of the model."""

    hidden: tuple[Annotated[int, Ge(1)], ...] = (64, 64)
    """Units of each hidden layer (ReLU)."""
    learning_rate: Annotated[float, Gt(0)] = 1e-3
    """Adam learning rate."""
    fit_steps: Annotated[int, Ge(1)] = 5000
    """Gradient steps of each fit, which continues from the last one."""
    batch_size: Annotated[int, Ge(1)] = 128
    """Rows of each gradient step."""
    low: float = -10.0
    """Lower bound of the log-variance of an action."""
    high: float = 1.0
    """Upper bound of the log-variance, above `low`."""

    def problem(self) -> tuple[str, str] | None:
        """(field, message) of the first violated rule that involves several fields, or None."""
        if self.high <= self.low:
            return "high", f"must be above low ({self.low}), got {self.high}"
        return None


class InverseState(NamedTuple):
    """Parameters and statistics of the model."""

    network: Trainable
    inputs: Normalizer
    """Of [features, change of the observation]."""
    fits: Int[Array, ""]
    """Fits so far."""


class InverseModel(NamedTuple):
    """An inverse dynamics model."""

    init: Callable[[Key, Hyper], InverseState]
    fit: Callable[[InverseState, Replay, Key], tuple[InverseState, Metrics]]
    """(state, replay buffer, key) -> (state, metrics): fits the first `size` rows of the buffer."""
    predict: Callable[[InverseState, Float[Array, "N O"], Float[Array, "N O"]], Gaussian | Categorical]
    """(state, observation, next observation) -> the distribution of the action, [N, A] or over n choices [N]."""


def make(config: InverseConfig, observation_size: int, action: Space, features: Features | None = None) -> InverseModel:
    """The model for observations [O] and actions of the space `action`. `features` are the task's; only their encoding is
    used. The next observation of each row must be the true successor, not that of a reset."""
    size, discrete = encoded_size(action), isinstance(action, Discrete)
    network = MLP(config.hidden, size if discrete else 2 * size)
    encode = Features().encode if features is None else features.encode

    def inputs_of(observation: Float[Array, "*n O"], next_observation: Float[Array, "*n O"]) -> Float[Array, "*n I"]:
        return jnp.concatenate([encode(observation), next_observation - observation], axis=-1)

    def init(key: Key, hyper: Hyper) -> InverseState:
        zeros = jnp.zeros(observation_size)
        width = jax.eval_shape(lambda: inputs_of(zeros, zeros)).shape[0]
        params = network.init(key, jnp.zeros(width))
        trainable = optimizer.init(params, hyper.get("learning_rate", config.learning_rate))
        return InverseState(trainable, identity(width), jnp.zeros((), jnp.int32))

    def distribution(params: PyTree, inputs: Float[Array, "*n I"]) -> Gaussian | Categorical:
        output = network.apply(params, inputs)
        if discrete:
            return Categorical(output)
        mean, raw = jnp.split(output, 2, axis=-1)
        return Gaussian(mean, 0.5 * soft_clamp(raw, jnp.full(size, config.low), jnp.full(size, config.high)))

    @jax.named_scope("fit")
    def fit(state: InverseState, buffer: Replay, key: Key) -> tuple[InverseState, Metrics]:
        data = buffer.data
        mask = jnp.arange(data.reward.shape[0]) < buffer.size
        inputs = measure(inputs_of(data.observation, data.next_observation), mask)

        def step(trained: Trainable, key: Key) -> tuple[Trainable, Float[Array, ""]]:
            rows = replay.sample(buffer, key, config.batch_size)
            seen = normalize(inputs, inputs_of(rows.observation, rows.next_observation))
            value, gradient = jax.value_and_grad(
                lambda params: negative_log_likelihood(distribution(params, seen), rows.action)
            )(trained.params)
            return optimizer.step(trained, gradient)[0], value

        trained, losses = jax.lax.scan(step, state.network, jax.random.split(key, config.fit_steps))
        found = {"inverse/loss": Average.of(jnp.mean(losses)), "inverse/last_loss": Average.of(losses[-1])}
        return InverseState(trained, inputs, state.fits + 1), found

    def predict(
        state: InverseState, observation: Float[Array, "N O"], next_observation: Float[Array, "N O"]
    ) -> Gaussian | Categorical:
        return distribution(state.network.params, normalize(state.inputs, inputs_of(observation, next_observation)))

    return InverseModel(init, fit, predict)


def negative_log_likelihood(predicted: Gaussian | Categorical, action: Array) -> Float[Array, ""]:
    """The mean over rows of -log p(action), in nats: of a density, or of a probability for choices."""
    return -jnp.mean(predicted.log_probability(action))


def relabelled(model: InverseModel, state: InverseState, rows: Transition) -> Transition:
    """The rows [N, ...] with their actions replaced by the most probable ones, clipped to [-1, 1]. The recorded actions are
    not read."""
    found = model.predict(state, rows.observation, rows.next_observation).mode()
    return rows._replace(action=found if jnp.issubdtype(found.dtype, jnp.integer) else jnp.clip(found, -1.0, 1.0))
