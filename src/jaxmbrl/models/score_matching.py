"""A dynamics model without a parametric density, fitted by conditional denoising score matching (Vincent 2011; Song and
Ermon, arXiv 1907.05600), with the network's scaling of Karras et al. (EDM, arXiv 2206.00364).

With y the normalised target [change of the observation, reward], x the normalised input, noise z ~ N(0, I) and a level s,
a network F gives the mean of y for a noisy y + s z,

    D(x, y + s z, s) = (y + s z) / (1 + s^2) + s / sqrt(1 + s^2) F(x, (y + s z) / sqrt(1 + s^2), log(s) / 4)

and the fit minimises, with log s uniform between the logarithms of `least` and `largest`,

    mean over rows and dimensions of (1 + s^2) / s^2 (D(x, y + s z, s) - y)^2

At the minimum the score of the noisy targets, the gradient of their log-density, is (D(x, v, s) - v) / s^2 at v. A sample
begins with v ~ N(0, (1 + largest^2) I) and passes through a geometric sequence of levels,

    v <- D(x, v, s) + s' / s (v - D(x, v, s))

where s' is the next level, and 0 after the last (DDIM, Song et al., arXiv 2010.02502; Euler's method for the probability
flow). The noise of v is the only one, so that imagined rows are differentiable. F = 0, as before the first fit, is right
for targets from N(0, I).

The model has no density. Diagnostics are given a kernel density: Gaussians around `draws` samples, of which each
dimension's width is the most likely one on rows of the fit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
from annotated_types import Ge, Gt
from flax import linen as nn
from jaxtyping import Array, Float, Int, Shaped

from jaxmbrl.core.spaces import Space
from jaxmbrl.core.types import Average, DynamicsModel, Features, Hyper, Key, Metrics, PyTree, Transition, World
from jaxmbrl.data import replay
from jaxmbrl.data.replay import Replay
from jaxmbrl.distributions import GaussianMixture
from jaxmbrl.envs.shapes import of_rows
from jaxmbrl.models import layout as layouts
from jaxmbrl.models.layout import Layout, base_of, inputs_of, targets_of, zero_constant_dims
from jaxmbrl.models.normalizer import Normalizer, denormalize, identity, measure, normalize
from jaxmbrl.nn import optimizer
from jaxmbrl.nn.networks import MLP
from jaxmbrl.nn.optimizer import Trainable

WIDTHS = 24
"""Kernel widths that are tried, from 0.003 to 1 in units of the normalised targets."""
WIDTH_ROWS = 256
"""Rows on which they are compared."""


@dataclass(frozen=True)
class ScoreConfig:
    """Settings of the model."""

    hidden: tuple[Annotated[int, Ge(1)], ...] = (128, 128, 128)
    """Units of each hidden layer (swish)."""
    learning_rate: Annotated[float, Gt(0)] = 2e-3
    """Adam learning rate at the beginning of a fit; it follows half a cosine to 0."""
    fit_steps: Annotated[int, Ge(1)] = 3000
    """Gradient steps of each fit, which continues from the last one."""
    batch_size: Annotated[int, Ge(1)] = 256
    """Rows of each gradient step."""
    least: Annotated[float, Gt(0)] = 0.01
    """Least level of the noise, in units of the normalised targets."""
    largest: Annotated[float, Gt(0)] = 10.0
    """Largest level."""
    levels: Annotated[int, Ge(2)] = 12
    """Levels of a sample, each of which evaluates the network once."""
    draws: Annotated[int, Ge(2)] = 64
    """Samples of which means, variances and kernel densities are computed."""
    absolute: tuple[Annotated[int, Ge(0)], ...] = ()
    """Observation dimensions that are predicted as absolute values, not as changes, besides those that the task names."""
    features: bool = True
    """Whether the network receives the task's features of the observation (`Task.features`), such as sine and cosine of an
    angle, if the task has any."""

    def problem(self) -> tuple[str, str] | None:
        """(field, message) of the first violated rule that involves several fields, or None."""
        if self.largest <= self.least:
            return "largest", f"must be above least ({self.least:g}), got {self.largest:g}"
        return None


class ScoreState(NamedTuple):
    """Parameters and statistics of the model."""

    network: Trainable
    inputs: Normalizer
    """Of [the observation's features, action], over the rows of the last fit."""
    targets: Normalizer
    """Of [change of the observation, reward], likewise."""
    width: Float[Array, "D"]
    """Standard deviation of the kernels, in units of the normalised targets."""
    fits: Int[Array, ""]
    """Fits so far."""


def make(
    config: ScoreConfig,
    observation: Space | int,
    action: Space | int,
    reward: Callable[..., Any] | None = None,
    terminated: Callable[..., Any] | None = None,
    features: Features | None = None,
) -> DynamicsModel:
    """The model as a `DynamicsModel` whose state is a `ScoreState`. Spaces, known functions and features are those of
    `models.ensemble.make`.

    - fit(state, replay, key): metrics `model/loss` and `model/gradient_norm`, means over the gradient steps.
    - predict(state, observation, action): mean and variance [1, N, D] of `draws` samples of [next observation, reward],
      which have the same noise in all rows and calls.
    - mixtures(state, observation, action): the kernel density around these samples, [1, N, draws, D].
    - world(state): samples each row anew at each step.

    Raises UserError if the termination is not known, and as `models.ensemble.make` does.
    """
    known = layouts.known_termination("a score-matching model", terminated)
    layout = layouts.layout_of(Layout, "a score-matching model", config, observation, action, reward, terminated, features)
    return DynamicsModel(
        init=partial(init_state, layout),
        fit=partial(fit_network, layout),
        predict=partial(predict, layout),
        world=partial(learned_world, layout, reward, known),
        mixtures=partial(kernel_densities, layout),
    )


def network(layout: Layout) -> nn.Module:
    """F, whose last layer begins with weights of 0."""
    return MLP(layout.config.hidden, layout.target_size, nn.swish, last_init=nn.initializers.zeros)


def denoised(
    layout: Layout,
    params: PyTree,
    inputs: Float[Array, "*n I"],
    noisy: Float[Array, "*n D"],
    level: Float[Array, "*n"],
) -> Float[Array, "*n D"]:
    """D: the mean of the target, given the target with noise of standard deviation `level`."""
    level = level[..., None]
    scale = 1 / jnp.sqrt(1 + level**2)
    found = network(layout).apply(params, jnp.concatenate([inputs, scale * noisy, jnp.log(level) / 4], axis=-1))
    return scale**2 * noisy + level * scale * found


def matching_loss(
    layout: Layout,
    params: PyTree,
    inputs: Float[Array, "B I"],
    targets: Float[Array, "B D"],
    noise: Float[Array, "B D"],
    level: Float[Array, "B"],
) -> Float[Array, ""]:
    """The mean of (1 + s^2) / s^2 (D(x, y + s z, s) - y)^2 over rows and dimensions."""
    error = denoised(layout, params, inputs, targets + level[:, None] * noise, level) - targets
    return jnp.mean((1 + level**-2)[:, None] * error**2)


def sampled(
    layout: Layout, params: PyTree, inputs: Float[Array, "*n I"], noise: Float[Array, "*n D"]
) -> Float[Array, "*n D"]:
    """Samples of the normalised targets, each a function of its own standard normal `noise`."""
    config = layout.config
    levels = jnp.geomspace(config.largest, config.least, config.levels)

    def step(noisy: Float[Array, "*n D"], pair: tuple[Array, Array]) -> tuple[Float[Array, "*n D"], None]:
        level, following = pair
        clean = denoised(layout, params, inputs, noisy, jnp.broadcast_to(level, noisy.shape[:-1]))
        return clean + following / level * (noisy - clean), None

    first = jnp.sqrt(1 + levels[0] ** 2) * noise
    with jax.default_matmul_precision("highest"):
        return jax.lax.scan(step, first, (levels, jnp.append(levels[1:], 0.0)))[0]


def init_state(layout: Layout, key: Key, hyper: Hyper) -> ScoreState:
    """The state before the first fit. No hyperparameter is traced."""
    params = network(layout).init(key, jnp.zeros(layout.input_size + layout.target_size + 1))
    return ScoreState(
        network=optimizer.init(params, layout.config.learning_rate),
        inputs=identity(layout.input_size),
        targets=identity(layout.target_size),
        width=jnp.ones(layout.target_size),
        fits=jnp.zeros((), jnp.int32),
    )


@jax.named_scope("fit")
def fit_network(layout: Layout, state: ScoreState, buffer: Replay, key: Key) -> tuple[ScoreState, Metrics]:
    """Fit the network to the rows of the buffer, then the width of the kernels."""
    config, data = layout.config, buffer.data
    mask = jnp.arange(data.reward.shape[0]) < buffer.size
    inputs = measure(inputs_of(layout, data.observation, data.action), mask)
    targets = measure(targets_of(layout, data), mask)

    def batch(key: Key, size: int) -> tuple[Float[Array, "B I"], Float[Array, "B D"]]:
        rows = replay.sample(buffer, key, size)
        x = normalize(inputs, inputs_of(layout, rows.observation, rows.action))
        return x, normalize(targets, targets_of(layout, rows))

    def step(trained: Trainable, given: tuple[Int[Array, ""], Key]) -> tuple[Trainable, Metrics]:
        number, key = given
        rows_key, noise_key, level_key = jax.random.split(key, 3)
        x, y = batch(rows_key, config.batch_size)
        noise = jax.random.normal(noise_key, y.shape, y.dtype)
        ratio = jax.random.uniform(level_key, y.shape[:1], y.dtype)
        level = config.least * (config.largest / config.least) ** ratio
        loss, gradient = jax.value_and_grad(partial(matching_loss, layout))(trained.params, x, y, noise, level)
        trained, norm = optimizer.step(trained, gradient, (1 + jnp.cos(jnp.pi * number / config.fit_steps)) / 2)
        return trained, {"model/loss": Average.of(loss), "model/gradient_norm": Average.of(norm)}

    steps_key, rows_key, draws_key = jax.random.split(key, 3)
    numbers = jnp.arange(config.fit_steps)
    trained, found = jax.lax.scan(step, state.network, (numbers, jax.random.split(steps_key, config.fit_steps)))
    x, y = batch(rows_key, WIDTH_ROWS)
    noise = jax.random.normal(draws_key, (config.draws, *y.shape), y.dtype)
    drawn = sampled(layout, trained.params, jnp.broadcast_to(x, (config.draws, *x.shape)), noise)
    state = ScoreState(trained, inputs, targets, best_width(drawn, y), state.fits + 1)
    return state, jax.tree.map(lambda leaf: jnp.sum(leaf, axis=0), found)


def best_width(drawn: Float[Array, "S N D"], targets: Float[Array, "N D"]) -> Float[Array, "D"]:
    """The width of Gaussian kernels around S samples under which the targets are most likely, of those that are tried, for
    each dimension."""
    widths = jnp.geomspace(0.003, 1.0, WIDTHS)

    def likelihood(width: Float[Array, ""]) -> Float[Array, "D"]:
        density = jax.scipy.stats.norm.logpdf(targets, drawn, width)
        return jnp.mean(jax.nn.logsumexp(density, axis=0), axis=0)

    return widths[jnp.argmax(jax.lax.map(likelihood, widths), axis=0)]


def draws_of(
    layout: Layout, state: ScoreState, observation: Float[Array, "N O"], action: Shaped[Array, "N *A"]
) -> Float[Array, "S N D"]:
    """`draws` samples of [next observation, reward] of each row, with the same noise in all rows, in the task's units."""
    inputs = normalize(state.inputs, inputs_of(layout, observation, action))
    noise = jax.random.normal(jax.random.key(0), (layout.config.draws, 1, layout.target_size))
    shape = (layout.config.draws, inputs.shape[0])
    noise = jnp.broadcast_to(noise, (*shape, layout.target_size)).astype(inputs.dtype)
    drawn = sampled(layout, state.network.params, jnp.broadcast_to(inputs, (*shape, inputs.shape[1])), noise)
    return _in_units(layout, state, observation, drawn)


def predict(
    layout: Layout, state: ScoreState, observation: Float[Array, "N O"], action: Shaped[Array, "N *A"]
) -> tuple[Float[Array, "1 N D"], Float[Array, "1 N D"]]:
    """Mean and variance of the samples of [next observation, reward], in the task's units."""
    drawn = draws_of(layout, state, observation, action)
    return jnp.mean(drawn, axis=0)[None], jnp.var(drawn, axis=0, ddof=1)[None]


def kernel_densities(
    layout: Layout, state: ScoreState, observation: Float[Array, "N O"], action: Shaped[Array, "N *A"]
) -> GaussianMixture:
    """Gaussians around these samples, [1, N, S, D], with the fitted width."""
    drawn = jnp.swapaxes(draws_of(layout, state, observation, action), 0, 1)[None]
    log_std = jnp.log(zero_constant_dims(layout, state.width * state.targets.std))
    return GaussianMixture(jnp.zeros((*drawn.shape[:3], 1)), drawn, jnp.broadcast_to(log_std, drawn.shape))


def learned_world(
    layout: Layout, reward: Callable[..., Any] | None, terminated: Callable[..., Any], state: ScoreState
) -> World:
    """The `World` that steps a block of N observation rows [N, O] by one sample of each."""
    size = layout.observation_size

    def reset(key: Key) -> Float[Array, "N O"]:
        raise NotImplementedError("a learned model has no initial states: call start with observation rows [N, O]")

    def step(
        observation: Float[Array, "N O"], action: Shaped[Array, "..."], key: Key
    ) -> tuple[Float[Array, "N O"], Transition]:
        action = jnp.broadcast_to(action, (observation.shape[0], *layout.action.shape))
        inputs = normalize(state.inputs, inputs_of(layout, observation, action))
        noise = jax.random.normal(key, (observation.shape[0], layout.target_size), inputs.dtype)
        drawn = _in_units(layout, state, observation, sampled(layout, state.network.params, inputs, noise))
        following = drawn[:, :size]
        earned = drawn[:, size] if reward is None else of_rows("reward", reward, observation, action, following)
        ended = of_rows("terminated", terminated, following)
        return following, Transition(observation, action, earned, following, ended, jnp.zeros(ended.shape, bool))

    return World(reset=reset, start=lambda origin, key: origin, observe=lambda rows: rows, step=step)


def _in_units(
    layout: Layout, state: ScoreState, observation: Float[Array, "N O"], drawn: Float[Array, "*s N D"]
) -> Float[Array, "*s N D"]:
    """[next observation, reward] of normalised targets."""
    return zero_constant_dims(layout, denormalize(state.targets, drawn)) + base_of(layout, observation)
