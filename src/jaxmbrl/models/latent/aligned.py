"""The parts of an aligned latent model (ALM, Ghugare et al., arXiv 2209.08466): a Gaussian encoder and a Gaussian model of
codes, without a decoder, and on codes a reward and a classifier.

    encoder     e(z | s),  model  m(z' | z, a):  mean 30 tanh(x / 30), standard deviations softly in [0.1, 10]
    reward      r(z, a)
    classifier  C(z, a, z'): whether z' is a code of the real successor or was predicted by the model

The classifier's logit log C - log(1 - C) estimates log e(z' | s') - log m(z' | z, a), so its mean under the model is minus
the divergence of the model from the encoder: as a bonus it keeps a policy where codes are predicted well.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
from annotated_types import Ge
from flax import linen as nn
from jaxtyping import Array, Float

from jaxmbrl.core.spaces import Space
from jaxmbrl.core.types import Action, Key, Observation, PyTree, Transition, World
from jaxmbrl.distributions import Gaussian, soft_clamp
from jaxmbrl.models.latent import coders
from jaxmbrl.models.latent.coders import CoderConfig
from jaxmbrl.nn.networks import MLP

sg = jax.lax.stop_gradient

LARGEST_MEAN = 30.0
"""Bound of the means of codes."""
STD = (0.1, 10.0)
"""Bounds of their standard deviations."""


@dataclass(frozen=True)
class AlignedConfig:
    """Settings of encoder, model and heads."""

    size: Annotated[int, Ge(1)] = 50
    """Entries of a code z."""
    coder: CoderConfig = field(default_factory=lambda: CoderConfig(units=512, layers=2, symlog=False))
    """The encoder's hidden layers."""
    model_units: Annotated[int, Ge(1)] = 1024
    """Units of each of the model's two hidden layers."""
    head_units: Annotated[int, Ge(1)] = 512
    """Units of each of the two hidden layers of reward and classifier, of which the first has layer norm and tanh."""


class Parts(NamedTuple):
    """Encoder, model and heads as functions of their parameters."""

    init_encoder: Callable[[Key], PyTree]
    init_model: Callable[[Key], PyTree]
    init_heads: Callable[[Key], PyTree]
    encode: Callable[[PyTree, Observation], Gaussian]
    """(encoder's parameters, observation) -> the distribution of its code."""
    predict: Callable[[PyTree, Float[Array, "*n Z"], Float[Array, "*n A"]], Gaussian]
    """(model's parameters, z, action) -> the distribution of the next code."""
    reward: Callable[[PyTree, Float[Array, "*n Z"], Float[Array, "*n A"]], Float[Array, "*n"]]
    """(heads' parameters, z, action) -> the reward."""
    realness: Callable[[PyTree, Float[Array, "*n Z"], Float[Array, "*n A"], Float[Array, "*n Z"]], Float[Array, "*n"]]
    """(heads' parameters, z, action, z') -> the classifier's logit."""


def make(config: AlignedConfig, observation: Space, actions: int) -> Parts:
    """The networks for observations that are vectors or images, and actions of length `actions`. Raises UserError for other
    observations."""
    coder, pair = coders.make(config.coder, observation, "elu", "none"), config.size + actions
    to_code = nn.Dense(2 * config.size, param_dtype=jnp.result_type(float))
    model = MLP((config.model_units,) * 2, 2 * config.size, activation=nn.elu)
    head = MLP((config.head_units,) * 2, 1, activation=nn.elu, first_norm=True)

    def init_encoder(key: Key) -> PyTree:
        hidden_key, code_key = jax.random.split(key)
        return {"hidden": coder.init_encoder(hidden_key), "code": to_code.init(code_key, jnp.zeros(coder.size))}

    def init_heads(key: Key) -> PyTree:
        reward_key, classifier_key = jax.random.split(key)
        classifier = head.init(classifier_key, jnp.zeros(pair + config.size))
        return {"reward": head.init(reward_key, jnp.zeros(pair)), "classifier": classifier}

    def encode(params: PyTree, seen: Observation) -> Gaussian:
        return bounded(to_code.apply(params["code"], coder.encode(params["hidden"], seen)))

    def predict(params: PyTree, z: Float[Array, "*n Z"], action: Float[Array, "*n A"]) -> Gaussian:
        return bounded(model.apply(params, jnp.concatenate([z, action], axis=-1)))

    def reward(params: PyTree, z: Float[Array, "*n Z"], action: Float[Array, "*n A"]) -> Float[Array, "*n"]:
        return head.apply(params["reward"], jnp.concatenate([z, action], axis=-1))[..., 0]

    def realness(
        params: PyTree, z: Float[Array, "*n Z"], action: Float[Array, "*n A"], after: Float[Array, "*n Z"]
    ) -> Float[Array, "*n"]:
        return head.apply(params["classifier"], jnp.concatenate([z, action, after], axis=-1))[..., 0]

    def init_model(key: Key) -> PyTree:
        return model.init(key, jnp.zeros(pair))

    return Parts(init_encoder, init_model, init_heads, encode, predict, reward, realness)


def bounded(output: Float[Array, "*n K"]) -> Gaussian:
    """The distribution of a code from a network's output: mean, then standard deviation, each before its bounds."""
    mean, raw = jnp.split(output, 2, axis=-1)
    low, high = (jnp.full(raw.shape[-1:], bound, raw.dtype) for bound in STD)
    return Gaussian(LARGEST_MEAN * jnp.tanh(mean / LARGEST_MEAN), jnp.log(soft_clamp(raw, low, high)))


def world(parts: Parts, model: PyTree, heads: PyTree, bonus: float) -> World:
    """The World whose carry and observation are codes [N, Z]. Its reward is the predicted one plus `bonus` times the
    classifier's logit, in which the next code is a constant. It never terminates."""

    def reset(key: Key) -> Float[Array, "N Z"]:
        raise NotImplementedError("a latent model has no initial states: call start with codes [N, Z]")

    def step(z: Float[Array, "N Z"], action: Action, key: Key) -> tuple[Float[Array, "N Z"], Transition]:
        action = jnp.broadcast_to(action, (*z.shape[:-1], action.shape[-1]))
        after = parts.predict(model, z, action).sample(key)
        reward = parts.reward(heads, z, action) + bonus * parts.realness(heads, z, action, sg(after))
        never = jnp.zeros(reward.shape, bool)
        return after, Transition(z, action, reward, after, never, never)

    return World(reset=reset, start=lambda origin, key: origin, observe=lambda z: z, step=step)
