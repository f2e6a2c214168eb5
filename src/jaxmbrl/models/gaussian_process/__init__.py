"""Gaussian-process dynamics: for each output one process with a squared-exponential covariance function and a lengthscale
for each input (automatic relevance determination, ARD), as in PILCO (Deisenroth and Rasmussen, ICML 2011).

The hyperparameters maximise the evidence log p(y | X), with penalties that keep the signal-to-noise ratio below about 1000
and the lengthscales within a factor 100 of the inputs' spread, by L-BFGS (`nn.quasi_newton`). The process is exact up to
`inducing` rows, and beyond by FITC, whose inducing inputs maximise its evidence, too (`regression`). `models.moments`
propagates Gaussian beliefs through it.

Float64 is needed: with 120 rows and a signal-to-noise ratio of 100, variances in float32 are wrong by half.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from jaxmbrl.core.precision import require_float64
from jaxmbrl.core.roots import root
from jaxmbrl.core.spaces import Space
from jaxmbrl.core.types import DynamicsModel, Features, Key, Transition, World
from jaxmbrl.envs.shapes import of_rows
from jaxmbrl.models import layout as layouts
from jaxmbrl.models.gaussian_process import regression
from jaxmbrl.models.gaussian_process.config import GaussianProcessConfig
from jaxmbrl.models.gaussian_process.fit import GaussianProcessState, fit_processes, init_state
from jaxmbrl.models.gaussian_process.regression import Hyperparameters, Posterior
from jaxmbrl.models.layout import Layout, base_of, inputs_of, zero_constant_dims

__all__ = ["GaussianProcessConfig", "GaussianProcessState", "Hyperparameters", "Posterior", "make"]


def make(
    config: GaussianProcessConfig,
    observation: Space | int,
    action: Space | int,
    reward: Callable[..., Any] | None = None,
    terminated: Callable[..., Any] | None = None,
    features: Features | None = None,
) -> DynamicsModel:
    """Gaussian processes as a `DynamicsModel` whose state is a `GaussianProcessState`. Spaces, known functions and features
    are those of `models.ensemble.make`; without a known `reward`, one more process predicts it.

    - init(key, hyper): no hyperparameter is traced.
    - fit(state, replay, key): fits the first `replay.size` of the buffer's rows, or `config.capacity` of them at equal
      distances. The size may be traced. Hyperparameters continue from the last fit if they explain the data better than the
      first guess. An output that is equal to its prior mean in all rows, such as a constant reward, is not learned: its
      signal is 1e-8. Metrics: `model/evidence` (log-likelihood in nats per row, mean over the outputs that are learned),
      `model/signal_to_noise` (the largest) and `model/rows`.
    - predict(state, observation, action): mean and variance [1, N, D] of [next observation, reward] in the task's units.
      There is one member, so the variance is that of the noise and of the function together.
    - world(state): steps a block of N rows by the rule `config.propagation`. Each step of a row draws from the Gaussian of
      its prediction, independently of all others: no function is drawn for a whole trajectory.

    Raises UserError without float64 (`jax_enable_x64`), if the termination is not known, and as `models.ensemble.make`
    does.
    """
    require_float64("a Gaussian process")
    known = layouts.known_termination("a Gaussian process", terminated)
    layout = layouts.layout_of(Layout, "a Gaussian process", config, observation, action, reward, terminated, features)
    return DynamicsModel(
        init=partial(init_state, layout),
        fit=partial(fit_processes, layout),
        predict=partial(predict, layout),
        world=partial(learned_world, layout, reward, known),
    )


def predict(
    layout: Layout, state: GaussianProcessState, observation: Float[Array, "N O"], action: Shaped[Array, "N *A"]
) -> tuple[Float[Array, "1 N D"], Float[Array, "1 N D"]]:
    """Mean and variance of [next observation, reward], in the task's units."""
    with jax.default_matmul_precision("highest"):
        mean, variance = regression.predict(state.posterior, inputs_of(layout, observation, action))
    variance = variance + regression.noise_variance(state.posterior)
    mean = zero_constant_dims(layout, mean) + base_of(layout, observation)
    return mean[None], zero_constant_dims(layout, variance)[None]


def learned_world(
    layout: Layout, reward: Callable[..., Any] | None, terminated: Callable[..., Any], state: GaussianProcessState
) -> World:
    """The `World` that steps a block of N observation rows [N, O] by the rule `config.propagation`."""
    size, sampled = layout.observation_size, layout.config.propagation == "distribution"

    def reset(key: Key) -> Float[Array, "N O"]:
        raise NotImplementedError("a learned model has no initial states: call start with observation rows [N, O]")

    def drawn(observation: Float[Array, "N O"], action: Shaped[Array, "N *A"], key: Key) -> Float[Array, "N D"]:
        if sampled:
            mean, variance = (part[0] for part in predict(layout, state, observation, action))
            return mean + root(variance) * jax.random.normal(key, mean.shape, mean.dtype)
        with jax.default_matmul_precision("highest"):
            mean = regression.predict_mean(state.posterior, inputs_of(layout, observation, action))
        return zero_constant_dims(layout, mean) + base_of(layout, observation)

    def step(
        observation: Float[Array, "N O"], action: Shaped[Array, "..."], key: Key
    ) -> tuple[Float[Array, "N O"], Transition]:
        action = jnp.broadcast_to(action, (observation.shape[0], *layout.action.shape))
        predicted = drawn(observation, action, key)
        following = predicted[:, :size]
        earned = predicted[:, size] if reward is None else of_rows("reward", reward, observation, action, following)
        ended = of_rows("terminated", terminated, following)
        return following, Transition(observation, action, earned, following, ended, jnp.zeros(ended.shape, bool))

    return World(reset=reset, start=lambda origin, key: origin, observe=lambda rows: rows, step=step)
