"""A fitted ensemble's predictions, and the `World` that imagines with its elites."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from jaxmbrl.core.types import Key, Transition, World
from jaxmbrl.distributions import GaussianMixture
from jaxmbrl.envs.shapes import of_rows
from jaxmbrl.models import propagation
from jaxmbrl.models.ensemble.layout import Layout, base_of, delta_mask, features_of_next, inputs_of, zero_constant_dims
from jaxmbrl.models.ensemble.network import EnsembleState, Output, forward, termination_logit
from jaxmbrl.models.normalizer import denormalize, normalize


def predict(
    layout: Layout, state: EnsembleState, observation: Float[Array, "N O"], action: Shaped[Array, "N *A"]
) -> tuple[Float[Array, "E N D"], Float[Array, "E N D"]]:
    """Mean and variance of [next observation, reward] by every member, in the task's units. Actions are [N, A], or int32
    [N] of a discrete space."""
    with jax.default_matmul_precision("highest"):
        x = normalize(state.inputs, inputs_of(layout, observation, action))
        output = forward(layout, state.members.params, jnp.broadcast_to(x, (layout.config.members, *x.shape)))
    mean, variance = output.moments()
    mean = zero_constant_dims(layout, denormalize(state.targets, mean)) + base_of(layout, observation)
    return mean, zero_constant_dims(layout, variance * state.targets.std**2)


def mixtures(
    layout: Layout, state: EnsembleState, observation: Float[Array, "N O"], action: Shaped[Array, "N *A"]
) -> GaussianMixture:
    """The mixtures [E, N, K, D] of [next observation, reward] by every member, in the task's units. The standard deviation
    of what does not vary is 0."""
    with jax.default_matmul_precision("highest"):
        x = normalize(state.inputs, inputs_of(layout, observation, action))
        output = forward(layout, state.members.params, jnp.broadcast_to(x, (layout.config.members, *x.shape)))
    mean = zero_constant_dims(layout, denormalize(state.targets, output.mean)) + base_of(layout, observation)[:, None]
    std = zero_constant_dims(layout, jnp.exp(0.5 * output.log_variance) * state.targets.std)
    return output.mixture()._replace(mean=mean, log_std=jnp.log(std))


def learned_world(
    layout: Layout, reward: Callable[..., Any] | None, terminated: Callable[..., Any] | None, state: EnsembleState
) -> World:
    """The `World` that steps a block of N observation rows [N, O] with the elites and the rule `config.propagation`.

    `reward(observation, action, next_observation)` and `terminated(next_observation)` are the task's known functions on
    rows; without them both are predicted, the termination as a probability.
    """
    config, size = layout.config, layout.observation_size
    params = state.members.params
    chosen = partial(jax.tree.map, lambda leaf: leaf[state.elites])
    elites = params._replace(network=chosen(params.network), termination=chosen(params.termination))
    mask = delta_mask(layout)

    def reset(key: Key) -> Float[Array, "N O"]:
        raise NotImplementedError("a learned model has no initial states: call start with observation rows [N, O]")

    def start(origin: Float[Array, "N O"], key: Key) -> Float[Array, "N O"]:
        return origin

    def termination(
        next_observation: Float[Array, "N O"], shift: Int[Array, ""] | int, uncertain: Bool[Array, "N"]
    ) -> Bool[Array, "N"] | Float[Array, "N"]:
        if terminated is not None:
            return of_rows("terminated", terminated, next_observation) | uncertain

        def probabilities(x: Float[Array, "E M F"]) -> tuple[Float[Array, "E M 1"]]:
            return (jax.nn.sigmoid(termination_logit(layout, elites, x) - jnp.log(state.termination_weight))[..., None],)

        x = features_of_next(layout, state.inputs, next_observation)
        (probability,) = propagation.evaluate(config.propagation, config.elites, shift, probabilities, x)
        return jnp.where(uncertain, 1.0, jnp.mean(probability, axis=0)[:, 0])

    def outputs(x: Float[Array, "E M I"]) -> tuple[Float[Array, "E M _"], ...]:
        """(mean, variance), and of a mixture (means, log-variances, logits) of its components."""
        output = forward(layout, elites, x)
        moments = tuple(zero_constant_dims(layout, part) for part in output.moments())
        if output.logits is None:
            return moments
        return *moments, *(part.reshape(*x.shape[:2], -1) for part in (output.mean, output.log_variance)), output.logits

    def drawn_component(
        means: Float[Array, "1 N _"], log_variances: Float[Array, "1 N _"], logits: Float[Array, "1 N K"], key: Key
    ) -> tuple[Float[Array, "1 N D"], Float[Array, "1 N D"]]:
        """(mean, variance) of a component of each row's mixture, drawn by its weight."""
        shape = (*logits.shape, layout.target_size)
        component = Output(means.reshape(shape), log_variances.reshape(shape), logits).mixture().component(key)
        return zero_constant_dims(layout, component.mean), zero_constant_dims(layout, jnp.exp(2 * component.log_std))

    def step(
        observation: Float[Array, "N O"], action: Shaped[Array, "..."], key: Key
    ) -> tuple[Float[Array, "N O"], Transition]:
        # The first key is for the shift of rows or for moment matching, the last for the components of a mixture; the noise
        # is the same under all propagations.
        other_key, noise_key, component_key = jax.random.split(key, 3)
        shift = jax.random.randint(other_key, (), 0, config.elites) if config.propagation == "ts1" else 0
        action = jnp.broadcast_to(action, (observation.shape[0], *layout.action.shape))
        inputs = normalize(state.inputs, inputs_of(layout, observation, action))
        means, variances, *mixture = propagation.evaluate(config.propagation, config.elites, shift, outputs, inputs)
        uncertain = propagation.uncertain(means, variances, config.halt_above)
        if mixture and config.propagation in ("ts1", "tsinf"):
            each_mean, each_log_variance, logits = mixture
            means, variances = drawn_component(each_mean, each_log_variance, logits, component_key)
        mean, std = propagation.gaussian(config.propagation, means, variances)
        noise = std * state.targets.std * jax.random.normal(noise_key, std.shape, std.dtype)
        if not config.reward_noise:
            noise = noise.at[:, size:].set(0.0)
        drawn = zero_constant_dims(layout, denormalize(state.targets, mean) + noise)
        next_observation = mask * observation + drawn[:, :size]
        if config.propagation == "moment_matching":
            next_observation = propagation.match_moments(next_observation, other_key)
        ended = termination(next_observation, shift, uncertain)
        return next_observation, Transition(
            observation=observation,
            action=action,
            reward=drawn[:, size] if reward is None else of_rows("reward", reward, observation, action, next_observation),
            next_observation=next_observation,
            terminated=ended,
            truncated=jnp.zeros(ended.shape, bool),
        )

    return World(reset=reset, start=start, observe=lambda observation: observation, step=step)
