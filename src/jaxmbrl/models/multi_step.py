"""A deterministic dynamics model that is fitted to windows of several steps (Luo et al., SLBO, arXiv 1807.03858).

    h_0 = s_0,    h_{i+1} = h_i + g(h_i, a_i)
    loss = mean over windows and i < H of || (g(h_i, a_i) - (s_{i+1} - s_i)) / std ||  + decay / 2 ||theta||^2

The norm is the root mean square over dimensions and is not squared, so that an error that grows along the window does not
outweigh all others; std is the standard deviation of the changes. The gradient flows through the predicted states h_i. A
window is within one episode: windows with an end or a seam of the replay buffer inside have no weight.

Differs from the paper: weights have Flax's initial distribution, not one of standard deviation 1e-5.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from annotated_types import Ge, Gt
from jaxtyping import Array, Bool, Float, Int

from jaxmbrl.core import metrics
from jaxmbrl.core.types import Average, DynamicsModel, Hyper, Key, Metrics, PyTree, Transition, World
from jaxmbrl.data import replay
from jaxmbrl.data.replay import Replay
from jaxmbrl.envs.shapes import of_rows
from jaxmbrl.models.normalizer import Normalizer, denormalize, identity, measure, normalize
from jaxmbrl.nn import optimizer
from jaxmbrl.nn.networks import MLP
from jaxmbrl.nn.optimizer import Trainable


@dataclass(frozen=True)
class MultiStepConfig:
    """Settings of the model."""

    hidden: tuple[Annotated[int, Ge(1)], ...] = (500, 500)
    """Units of each hidden layer (ReLU)."""
    horizon: Annotated[int, Ge(1)] = 2
    """H: steps of a window."""
    fit_steps: Annotated[int, Ge(1)] = 100
    """Gradient steps of each fit, which continues from the last one."""
    learning_rate: Annotated[float, Gt(0)] = 1e-3
    """Adam learning rate."""
    batch_size: Annotated[int, Ge(1)] = 128
    """Windows of each gradient step."""
    max_gradient_norm: Annotated[float, Gt(0)] = 2.0
    """Norm to which gradients are clipped."""
    weight_decay: Annotated[float, Ge(0)] = 1e-5
    """Weight of half the squared parameters in the loss."""


class MultiStepState(NamedTuple):
    """Parameters and statistics of the model."""

    network: Trainable
    inputs: Normalizer
    """Of [observation, action]."""
    changes: Normalizer
    """Of the changes of the observation."""
    fits: Int[Array, ""]
    """Fits so far."""


def multi_step_loss(
    change: Callable[[Float[Array, "B O"], Float[Array, "B A"]], Float[Array, "B O"]],
    observation: Float[Array, "B H O"],
    action: Float[Array, "B H A"],
    next_observation: Float[Array, "B H O"],
    std: Float[Array, "O"],
    weight: Float[Array, "B"],
) -> Float[Array, ""]:
    """The loss of windows, without the weight decay; `change` is g. Means are over the windows with weight."""
    predicted, total = observation[:, 0], jnp.zeros(observation.shape[0], observation.dtype)
    for i in range(observation.shape[1]):
        step = change(predicted, action[:, i])
        error = (step - (next_observation[:, i] - observation[:, i])) / std
        # The root has no derivative at 0.
        total += jnp.sqrt(jnp.mean(error**2, axis=-1) + 1e-12)
        predicted = predicted + step
    return jnp.sum(weight * total) / (observation.shape[1] * jnp.maximum(jnp.sum(weight), 1.0))


def whole(rows: Transition, valid: Bool[Array, "B H"]) -> Bool[Array, "B"]:
    """Which windows [B, H] of a replay buffer are successive steps of one episode: each successor is the next row's
    observation, bit for bit."""
    joined = jnp.all(rows.next_observation[:, :-1] == rows.observation[:, 1:], axis=-1)
    ended = (rows.terminated | rows.truncated)[:, :-1]
    return jnp.all(valid, axis=1) & jnp.all(joined & ~ended, axis=1)


def make(
    config: MultiStepConfig,
    observation_size: int,
    action_size: int,
    reward: Callable[..., Any],
    terminated: Callable[..., Any],
    stride: int = 1,
) -> DynamicsModel:
    """The model for observations [O] and actions [A] with the task's known functions on rows, `reward(observation, action,
    next_observation)` and `terminated(next_observation)`. `stride` is the number of environments whose steps were added to
    the buffer in turn. `predict` has one member, E = 1, and variance 0."""
    network = MLP(config.hidden, observation_size)
    chain = optax.chain(optax.clip_by_global_norm(config.max_gradient_norm), optax.scale_by_adam())

    def init(key: Key, hyper: Hyper) -> MultiStepState:
        params = network.init(key, jnp.zeros(observation_size + action_size))
        return MultiStepState(
            network=optimizer.init(params, hyper.get("learning_rate", config.learning_rate), chain=chain),
            inputs=identity(observation_size + action_size),
            changes=identity(observation_size),
            fits=jnp.zeros((), jnp.int32),
        )

    def change(
        state: MultiStepState, params: PyTree, observation: Float[Array, "N O"], action: Float[Array, "N A"]
    ) -> Float[Array, "N O"]:
        inputs = normalize(state.inputs, jnp.concatenate([observation, action], axis=-1))
        return denormalize(state.changes, network.apply(params, inputs))

    @jax.named_scope("fit")
    def fit(state: MultiStepState, buffer: Replay, key: Key) -> tuple[MultiStepState, Metrics]:
        data = buffer.data
        mask = jnp.arange(data.reward.shape[0]) < buffer.size
        state = state._replace(
            inputs=measure(jnp.concatenate([data.observation, data.action], axis=-1), mask),
            changes=measure(data.next_observation - data.observation, mask),
        )
        std = jnp.where(state.changes.std > 0, state.changes.std, 1.0)

        def step(trained: Trainable, key: Key) -> tuple[Trainable, Metrics]:
            slots = replay.sample_slots(buffer, key, config.batch_size)
            rows, valid = replay.windows(buffer, slots, config.horizon, stride)
            weight = whole(rows, valid).astype(std.dtype)

            def loss(params: PyTree) -> tuple[Float[Array, ""], Float[Array, ""]]:
                of_rows = multi_step_loss(
                    partial(change, state, params), rows.observation, rows.action, rows.next_observation, std, weight
                )
                return of_rows + 0.5 * config.weight_decay * optax.tree.norm(params, squared=True), of_rows

            gradient, of_rows = jax.grad(loss, has_aux=True)(trained.params)
            trained, norm = optimizer.step(trained, gradient, chain=chain)
            return trained, {"model/loss": Average.of(of_rows), "model/gradient_norm": Average.of(norm)}

        trained, found = jax.lax.scan(step, state.network, jax.random.split(key, config.fit_steps))
        return state._replace(network=trained, fits=state.fits + 1), metrics.total(found)

    def predict(
        state: MultiStepState, observation: Float[Array, "N O"], action: Float[Array, "N A"]
    ) -> tuple[Float[Array, "1 N O"], Float[Array, "1 N O"]]:
        mean = (observation + change(state, state.network.params, observation, action))[None]
        return mean, jnp.zeros_like(mean)

    def world(state: MultiStepState) -> World:
        def reset(key: Key) -> Float[Array, "N O"]:
            raise NotImplementedError("a learned model has no initial states: call start with observation rows [N, O]")

        def step(observation: Float[Array, "N O"], action: Array, key: Key) -> tuple[Float[Array, "N O"], Transition]:
            action = jnp.broadcast_to(action, (observation.shape[0], action_size))
            following = predict(state, observation, action)[0][0]
            earned = of_rows("reward", reward, observation, action, following)
            ended = of_rows("terminated", terminated, following)
            return following, Transition(observation, action, earned, following, ended, jnp.zeros(ended.shape, bool))

        return World(reset=reset, start=lambda origin, key: origin, observe=lambda rows: rows, step=step)

    return DynamicsModel(init, fit, predict, world)
