"""The model of World Models (Ha and Schmidhuber, arXiv 1803.10122): a variational autoencoder of single observations, and a
recurrent network that predicts the next code by mixtures of Gaussians (MDN-RNN).

    vision      z_t ~ q(z | o_t) = N(mean, std^2),  o_t from z_t;  KL to N(0, 1)
    memory      h_t, c_t = LSTM(h_{t-1}, c_{t-1}, [z_{t-1}, a_{t-1}])
    prediction  of each entry of z_t a mixture of K Gaussians, the reward and the end of the step, from h_t

    loss of vision   mean of  decoder_scale ||o_t - decoder(z_t)||^2 + max(KL, free |z|)
    loss of memory   mean of  -log p(z_t | h_t) / |z| + (reward - r_t)^2 + the cross-entropy of the end

The two are trained one after the other: the memory learns from codes, which do not change meanwhile, so each observation is
encoded once. The error of an observation is a *sum* over its entries or pixels: with a mean the divergence outweighs it,
and codes contain nothing.

At the first position of an episode h, c, z and the last action are zero and the LSTM makes its step, as in the other
recurrent models here; in the paper's code it does not. h_0 is a constant in both.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
from annotated_types import Ge, Gt
from flax import linen as nn
from jaxtyping import Array, Float, Shaped

from jaxmbrl.core.spaces import Space, encode, encoded_size
from jaxmbrl.core.types import Average, Key, Metrics, Observation, PyTree, Transition, World
from jaxmbrl.distributions import Gaussian, GaussianMixture
from jaxmbrl.models.latent import coders
from jaxmbrl.models.latent.coders import Activation, Coder, CoderConfig
from jaxmbrl.models.latent.interface import Belief, LatentModel, Window
from jaxmbrl.nn import recurrent


@dataclass(frozen=True)
class MDNConfig:
    """Settings of the model."""

    size: Annotated[int, Ge(1)] = 32
    """Entries of the code z."""
    coder: CoderConfig = field(default_factory=lambda: CoderConfig(symlog=False))
    """Hidden layers of encoder and decoder."""
    activation: Activation = "relu"
    """Their activation."""
    free_nats: Annotated[float, Ge(0)] = 0.5
    """Divergence of each entry of the code, on average, below which it has no gradient."""
    decoder_scale: Annotated[float, Gt(0)] = 1.0
    """Weight of the observations' error. A vector has few numbers, which are small if they are measured in large units: it
    needs a larger weight than an image."""
    units: Annotated[int, Ge(1)] = 256
    """Hidden numbers of the LSTM, and as many cells."""
    components: Annotated[int, Ge(1)] = 5
    """K: components of each mixture."""
    termination_weight: Annotated[float, Gt(0)] = 10.0
    """Weight of a termination in the cross-entropy; that of a step without one is 1."""
    cell: bool = False
    """Whether policies also see the cell c."""


class Predicted(NamedTuple):
    """What the memory predicts of a position."""

    code: GaussianMixture
    """Of z, with a mixture of each entry."""
    reward: Float[Array, "*n"]
    ends: Float[Array, "*n"]
    """The logit of a termination."""


class Parts(NamedTuple):
    """The parts of the model as functions of the parameters of vision, or of those of the memory."""

    init_vision: Callable[[Key], PyTree]
    init_memory: Callable[[Key], PyTree]
    code: Callable[[PyTree, Observation], Float[Array, "*n M"]]
    """(vision, observation) -> mean of z, then its log-variance; M is twice the length of z."""
    recur: Callable[[PyTree, Float[Array, "*n D"], Float[Array, "*n Z"], Float[Array, "*n A"]], Float[Array, "*n D"]]
    """(memory, [h, c], z, action) -> the next [h, c]."""
    predict: Callable[[PyTree, Float[Array, "*n D"]], Predicted]
    """(memory, [h, c]) -> what is expected there."""
    coder: Coder
    action: Space


def of_code(code: Float[Array, "*n M"]) -> Gaussian:
    """q(z | o) of a code as it is stored."""
    mean, log_variance = jnp.split(code, 2, axis=-1)
    return Gaussian(mean, log_variance / 2)


def vision_loss(
    config: MDNConfig, parts: Parts, params: PyTree, observation: Shaped[Array, "B ..."], key: Key
) -> tuple[Float[Array, ""], Metrics]:
    """(the loss of the variational autoencoder, metrics) of a batch of observations."""
    posterior = of_code(parts.code(params, observation))
    error = parts.coder.loss(params["decoder"], posterior.sample(key), observation)
    divergence = posterior.divergence(Gaussian(jnp.zeros_like(posterior.mean), jnp.zeros_like(posterior.log_std)))
    loss = jnp.mean(config.decoder_scale * error + jnp.maximum(divergence, config.free_nats * config.size))
    found = {"vision": loss, "decoder": jnp.mean(error), "divergence": jnp.mean(divergence)}
    return loss, {f"model/{name}": Average.of(x) for name, x in found.items()}


def memory_loss(
    config: MDNConfig, parts: Parts, params: PyTree, window: Window, key: Key
) -> tuple[Float[Array, ""], tuple[Belief, Metrics]]:
    """(the loss of the memory, (the belief at each position [B, T], metrics)) of a window whose observations are codes, as
    `Parts.code` returns them. z is sampled from them anew. Positions of which nothing is known before have no weight."""
    z = of_code(window.observation).sample(key)
    deter = unrolled(config, parts, params, z, window)
    expected = parts.predict(params, deter)
    weight = window.known * ~window.first
    ends = window.terminated
    of_end = jnp.where(ends, config.termination_weight * jax.nn.softplus(-expected.ends), jax.nn.softplus(expected.ends))
    by_position = {
        "memory": -expected.code.log_probability(z) / config.size,
        "reward": (expected.reward - window.reward) ** 2,
        "termination": of_end,
    }
    losses = {name: jnp.sum(weight * error) / jnp.maximum(jnp.sum(weight), 1.0) for name, error in by_position.items()}
    found = {f"model/{name}": Average.of(x) for name, x in losses.items()}
    return sum(losses.values(), start=jnp.zeros(())), (Belief(deter, z, window.action), found)


def unrolled(
    config: MDNConfig, parts: Parts, params: PyTree, z: Float[Array, "B T Z"], window: Window
) -> Float[Array, "B T D"]:
    """[h, c] at each position of a window."""

    def step(before: tuple[Array, Array], given: tuple[Array, ...]) -> tuple[tuple[Array, Array], Array]:
        z, action, first = given
        deter, last, action = (jnp.where(first[:, None], 0.0, x) for x in (*before, action))
        deter = parts.recur(params, deter, last, action)
        return (deter, z), deter

    start = jnp.zeros((z.shape[0], 2 * config.units), z.dtype), jnp.zeros_like(z[:, 0])
    by_time = tuple(jnp.swapaxes(x, 0, 1) for x in (z, window.action, window.first))
    return jnp.swapaxes(jax.lax.scan(step, start, by_time)[1], 0, 1)


def make(config: MDNConfig, parts: Parts) -> LatentModel:
    """The model with parameters `{"vision": ..., "memory": ...}`. Its loss is that of both. Its World has temperature 1 and
    the predicted reward."""

    def observe(params: PyTree, belief: Belief, observation: Observation, key: Key) -> Belief:
        return observed(parts, params["memory"], belief, parts.code(params["vision"], observation), key)

    def loss(params: PyTree, window: Window, key: Key) -> tuple[Float[Array, ""], tuple[Belief, Metrics]]:
        vision_key, memory_key = jax.random.split(key)
        images = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), window.observation)
        of_vision, seen = vision_loss(config, parts, params["vision"], images, vision_key)
        codes = window._replace(observation=parts.code(params["vision"], window.observation))
        of_memory, (beliefs, found) = memory_loss(config, parts, params["memory"], codes, memory_key)
        return of_vision + of_memory, (beliefs, seen | found)

    keys = {"vision": parts.init_vision, "memory": parts.init_memory}
    return LatentModel(
        init=lambda key: {name: init(k) for (name, init), k in zip(keys.items(), jax.random.split(key), strict=True)},
        initial=lambda: Belief(jnp.zeros(2 * config.units), jnp.zeros(config.size), jnp.zeros(encoded_size(parts.action))),
        observe=observe,
        acted=lambda belief, taken: belief._replace(action=encode(parts.action, taken)),
        features=partial(features, config),
        feature_size=config.size + (2 if config.cell else 1) * config.units,
        loss=loss,
        world=lambda params: dream(config, parts, params["memory"]),
        decode=lambda params, features: parts.coder.decode(params["vision"]["decoder"], features[..., : config.size]),
    )


def observed(parts: Parts, memory: PyTree, belief: Belief, code: Float[Array, "*n M"], key: Key) -> Belief:
    """The belief after its action led to an observation with this code."""
    deter = parts.recur(memory, belief.deter, belief.stoch, belief.action)
    return Belief(deter, of_code(code).sample(key), belief.action)


def features(config: MDNConfig, belief: Belief) -> Float[Array, "*n F"]:
    """[z, h], or [z, h, c]."""
    seen = belief.deter if config.cell else belief.deter[..., : config.units]
    return jnp.concatenate([belief.stoch, seen], axis=-1)


def dream(
    config: MDNConfig,
    parts: Parts,
    memory: PyTree,
    temperature: Float[Array, ""] | float = 1.0,
    constant_reward: float | None = None,
) -> World:
    """The World that steps beliefs [N] by the memory alone. Mixtures have the `temperature`: above 1 the dream is less
    certain than the data. A step terminates if that is more likely than not, in the weighted cross-entropy. The reward is
    predicted, or the same in each step if `constant_reward` is given."""
    shown = partial(features, config)

    def reset(key: Key) -> Belief:
        raise NotImplementedError("a latent model has no initial states: call start with beliefs [N]")

    def step(belief: Belief, action: Shaped[Array, "..."], key: Key) -> tuple[Belief, Transition]:
        action = jnp.broadcast_to(action, (belief.deter.shape[0], *parts.action.shape))
        entered = encode(parts.action, action)
        deter = parts.recur(memory, belief.deter, belief.stoch, entered)
        expected = parts.predict(memory, deter)
        after = Belief(deter, expected.code.tempered(temperature).sample(key), entered)
        reward = expected.reward if constant_reward is None else jnp.full_like(expected.reward, constant_reward)
        return after, Transition(
            observation=shown(belief),
            action=action,
            reward=reward,
            next_observation=shown(after),
            terminated=expected.ends > 0,
            truncated=jnp.zeros(expected.ends.shape, bool),
        )

    return World(reset=reset, start=lambda origin, key: origin, observe=shown, step=step)


def parts(config: MDNConfig, observation: Space, action: Space) -> Parts:
    """The networks that the settings choose. Raises UserError for observations that are neither vectors nor images."""
    coder = coders.make(config.coder, observation, config.activation, "none")
    actions, z, k = encoded_size(action), config.size, config.components
    to_code, heads = (nn.Dense(size, param_dtype=jnp.result_type(float)) for size in (2 * z, 3 * k * z + 2))

    def init_vision(key: Key) -> PyTree:
        encoder_key, code_key, decoder_key = jax.random.split(key, 3)
        return {
            "encoder": coder.init_encoder(encoder_key),
            "code": to_code.init(code_key, jnp.zeros(coder.size)),
            "decoder": coder.init_decoder(decoder_key, z),
        }

    def init_memory(key: Key) -> PyTree:
        unit_key, heads_key = jax.random.split(key)
        unit = recurrent.init_lstm(unit_key, z + actions, config.units)
        return {"unit": unit, "heads": heads.init(heads_key, jnp.zeros(config.units))}

    def recur(
        params: PyTree, deter: Float[Array, "*n D"], z: Float[Array, "*n Z"], action: Float[Array, "*n A"]
    ) -> Float[Array, "*n D"]:
        hidden, cell = jnp.split(deter, 2, axis=-1)
        after = recurrent.step_lstm(params["unit"], hidden, cell, jnp.concatenate([z, action], axis=-1))
        return jnp.concatenate(after, axis=-1)

    def predict(params: PyTree, deter: Float[Array, "*n D"]) -> Predicted:
        output: Any = heads.apply(params["heads"], deter[..., : config.units])
        shape = (*output.shape[:-1], k, z)
        logits, mean, log_std = (part.reshape(shape) for part in jnp.split(output[..., : 3 * k * z], 3, axis=-1))
        return Predicted(GaussianMixture(logits, mean, log_std), output[..., -2], output[..., -1])

    return Parts(
        init_vision,
        init_memory,
        code=lambda params, observation: to_code.apply(params["code"], coder.encode(params["encoder"], observation)),
        recur=recur,
        predict=predict,
        coder=coder,
        action=action,
    )
