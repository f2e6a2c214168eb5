"""Disagreement of one-step predictions as a reward for exploration (Sekar et al., Plan2Explore, arXiv 2005.05960).

K networks predict the next latent from features and action, with the squared error as loss. They begin with different
weights and agree where they were trained. The reward of a step is how much they disagree: the mean over entries of the
standard deviation over networks, or of the variance. They see actions limited to [-1, 1], as the RSSM does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

import jax
import jax.numpy as jnp
from annotated_types import Ge
from flax import linen as nn
from jaxtyping import Array, Float, Shaped

from jaxmbrl.core.roots import root
from jaxmbrl.core.spaces import Space, encode, encoded_size
from jaxmbrl.core.types import Key, PyTree, Transition, World
from jaxmbrl.models.latent.interface import Belief, LatentModel, Window, limited
from jaxmbrl.nn.networks import MLP

sg = jax.lax.stop_gradient


@dataclass(frozen=True)
class OneStepConfig:
    """Settings of the networks."""

    heads: Annotated[int, Ge(2)] = 5
    """K: number of networks."""
    units: Annotated[int, Ge(1)] = 32
    """Units of each hidden layer."""
    layers: Annotated[int, Ge(1)] = 2
    """Hidden layers."""
    measure: Literal["deviation", "variance"] = "deviation"
    """What is averaged over the entries of the prediction."""


class OneStep(NamedTuple):
    """The networks."""

    init: Callable[[Key], PyTree]
    loss: Callable[[PyTree, Belief, Window], Float[Array, ""]]
    """(parameters, beliefs of a window, window) -> loss. Beliefs receive no gradient."""
    disagreement: Callable[[PyTree, Float[Array, "*n F"], Float[Array, "*n A"]], Float[Array, "*n"]]
    """(parameters, features, actions as vectors) -> disagreement."""


def make(config: OneStepConfig, model: LatentModel, action: Space) -> OneStep:
    """Networks for the latents of `model`."""
    target = model.initial().stoch.size
    network = MLP((config.units,) * config.layers, target, activation=nn.silu, rms_norm=True)

    def init(key: Key) -> PyTree:
        example = jnp.zeros(model.feature_size + encoded_size(action))
        return jax.vmap(lambda key: network.init(key, example))(jax.random.split(key, config.heads))

    def predict(params: PyTree, features: Float[Array, "*n F"], taken: Float[Array, "*n A"]) -> Float[Array, "K *n Z"]:
        x = jnp.concatenate([features, limited(taken)], axis=-1)
        return jax.vmap(lambda member: network.apply(member, x))(params)

    def loss(params: PyTree, beliefs: Belief, window: Window) -> Float[Array, ""]:
        features = sg(model.features(beliefs))
        found = predict(params, features[:, :-1], window.action[:, 1:])
        # No step leads to the first position of an episode.
        follows = 1.0 - window.first[:, 1:, None]
        return jnp.sum(jnp.mean(follows * (found - sg(beliefs.stoch[:, 1:])) ** 2, axis=(1, 2, 3)))

    def disagreement(params: PyTree, features: Float[Array, "*n F"], taken: Float[Array, "*n A"]) -> Float[Array, "*n"]:
        return spread(predict(params, features, taken), config.measure)

    return OneStep(init, loss, disagreement)


def spread(predictions: Float[Array, "K *n Z"], measure: Literal["deviation", "variance"]) -> Float[Array, "*n"]:
    """The mean over entries of the population variance or standard deviation over K predictions. Its derivative is 0 where
    all are equal.

    >>> from jaxmbrl.models.latent import one_step
    >>> predictions = jnp.array([[1.0], [2.0], [4.0]])
    >>> [round(float(one_step.spread(predictions, measure)), 4) for measure in ("variance", "deviation")]
    [1.5556, 1.2472]
    """
    # The differences to the first are exactly 0 where all are equal.
    variance = jnp.var(predictions - predictions[:1], axis=0)
    if measure == "variance":
        return jnp.mean(variance, axis=-1)
    return jnp.mean(root(variance), axis=-1)


def curious(world: World, networks: OneStep, params: PyTree, action: Space, intrinsic: float, extrinsic: float) -> World:
    """`world` with the reward `intrinsic` times the disagreement plus `extrinsic` times its own reward."""

    def step(carry: Belief, taken: Shaped[Array, "..."], key: Key) -> tuple[Belief, Transition]:
        after, made = world.step(carry, taken, key)
        taken = jnp.broadcast_to(taken, made.action.shape)
        bonus = networks.disagreement(params, made.observation, encode(action, taken))
        return after, made._replace(reward=intrinsic * bonus + extrinsic * made.reward)

    return world._replace(step=step)
