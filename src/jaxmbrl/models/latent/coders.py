"""Encoders and decoders of a latent model, for vectors and for images.

A vector is encoded by a multilayer perceptron after `symlog`, and decoded with the loss sum (output - symlog o)^2. An image
of pixels 0 .. 255 is encoded as x / 255 - 1/2, and decoded by a sigmoid with the loss sum (output - x / 255)^2 (DreamerV3,
arXiv 2301.04104, and its code). For images there are two architectures: `dense` flattens the image, and `patches` halves
height and width in each layer, which multiplies the 2 x 2 pixels of a patch by one matrix. Both cost less on a CPU than
convolutions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from annotated_types import Ge
from flax import linen as nn
from jaxtyping import Array, Float, Shaped

from jaxmbrl.core.config import UserError
from jaxmbrl.core.spaces import Box, Space
from jaxmbrl.core.types import Key, Observation, PyTree
from jaxmbrl.distributions import symexp, symlog
from jaxmbrl.nn.networks import MLP, RMS_EPSILON

Activation = Literal["silu", "elu", "relu", "mish"]
"""Name of a function of `jax.nn`."""
Norm = Literal["none", "rms", "layer"]
"""Norm of hidden layers: of the root mean square, or layer norm."""
SMALLEST = 4
"""Height and width of the smallest layer of patches."""
WHITE = 255.0


@dataclass(frozen=True)
class CoderConfig:
    """Settings of encoder and decoder."""

    units: Annotated[int, Ge(1)] = 64
    """Units of each hidden layer."""
    layers: Annotated[int, Ge(1)] = 1
    """Hidden layers of dense networks."""
    symlog: bool = True
    """Whether vectors are compressed by `symlog`, in the encoder and as the decoder's target."""
    images: Literal["dense", "patches"] = "dense"
    """Architecture for images."""
    depth: Annotated[int, Ge(1)] = 16
    """Channels of the first layer of patches. Each further layer has twice as many."""


class Coder(NamedTuple):
    """An encoder and a decoder for one space of observations."""

    size: int
    """E: length of a code."""
    init_encoder: Callable[[Key], PyTree]
    encode: Callable[[PyTree, Shaped[Array, "..."]], Float[Array, "*n E"]]
    """(parameters, observations [*n, ...]) -> codes."""
    init_decoder: Callable[[Key, int], PyTree]
    """(key, length F of the features) -> parameters."""
    loss: Callable[[PyTree, Float[Array, "*n F"], Shaped[Array, "..."]], Float[Array, "*n"]]
    """(parameters, features, observations [*n, ...]) -> the decoder's loss of each row, a sum over entries or pixels."""
    decode: Callable[[PyTree, Float[Array, "*n F"]], Observation]
    """(parameters, features) -> observations in the task's units; images as floats in 0 .. 255."""


def make(config: CoderConfig, space: Space, activation: Activation = "silu", norm: Norm = "rms") -> Coder:
    """Encoder and decoder for observations in `space`, vectors or images [H, W, C]. Raises UserError for another space, and
    for an image that `patches` cannot halve."""
    if isinstance(space, Box) and space.is_vector:
        return _of_vectors(config, space.shape[0], activation, norm)
    if isinstance(space, Box) and space.is_image:
        return _of_images(config, space.shape, activation, norm)
    raise UserError(
        f"a latent model takes vectors and images as observations, and these are {space}: take another task; "
        "images are integers from 0 to 255"
    )


def layers(hidden: tuple[int, ...], out: int | None, activation: Activation, norm: Norm, **settings: Any) -> MLP:
    """The multilayer perceptron with this activation and norm of its hidden layers, and further `settings` of `MLP`."""
    normed = {"rms_norm": norm == "rms", "layer_norm": norm == "layer"}
    return MLP(hidden, out, activation=getattr(jax.nn, activation), **normed, **settings)


def _of_vectors(config: CoderConfig, size: int, activation: Activation, norm: Norm) -> Coder:
    network = partial(layers, (config.units,) * config.layers, activation=activation, norm=norm)
    encoder, decoder = network(None), network(size)

    def compressed(observation: Array) -> Array:
        return symlog(observation) if config.symlog else observation

    def loss(params: PyTree, features: Float[Array, "*n F"], observation: Float[Array, "*n O"]) -> Float[Array, "*n"]:
        return jnp.sum((decoder.apply(params, features) - compressed(observation)) ** 2, axis=-1)

    def decode(params: PyTree, features: Float[Array, "*n F"]) -> Float[Array, "*n O"]:
        output = decoder.apply(params, features)
        return symexp(output) if config.symlog else output

    return Coder(
        config.units,
        init_encoder=lambda key: encoder.init(key, jnp.zeros(size)),
        encode=lambda params, observation: encoder.apply(params, compressed(observation)),
        init_decoder=lambda key, features: decoder.init(key, jnp.zeros(features)),
        loss=loss,
        decode=decode,
    )


def _of_images(config: CoderConfig, shape: tuple[int, ...], activation: Activation, norm: Norm) -> Coder:
    dense = config.images == "dense"
    if dense:
        network = partial(layers, (config.units,) * config.layers, activation=activation, norm=norm)
        encoder, decoder, size = network(None), network(math.prod(shape)), config.units
    else:
        halvings = _halvings(shape)
        channels = tuple(config.depth * 2**i for i in range(halvings))
        small = tuple(side // 2**halvings for side in shape[:2])
        encoder = PatchEncoder(channels, activation, norm)
        decoder = PatchDecoder((*channels[-2::-1], shape[2]), (*small, channels[-1]), activation, norm)
        size = math.prod(small) * channels[-1]

    def entered(image: Shaped[Array, "*n H W C"]) -> Float[Array, "..."]:
        x = image.astype(jnp.result_type(float)) / WHITE - 0.5
        return x.reshape(*x.shape[:-3], -1) if dense else x

    def brightness(params: PyTree, features: Float[Array, "*n F"]) -> Float[Array, "*n H W C"]:
        return jax.nn.sigmoid(decoder.apply(params, features)).reshape(*features.shape[:-1], *shape)

    def loss(params: PyTree, features: Float[Array, "*n F"], image: Shaped[Array, "*n H W C"]) -> Float[Array, "*n"]:
        error = brightness(params, features) - image.astype(features.dtype) / WHITE
        return jnp.sum(error**2, axis=(-3, -2, -1))

    return Coder(
        size,
        init_encoder=lambda key: encoder.init(key, entered(jnp.zeros(shape))),
        encode=lambda params, image: encoder.apply(params, entered(image)),
        init_decoder=lambda key, features: decoder.init(key, jnp.zeros(features)),
        loss=loss,
        decode=lambda params, features: WHITE * brightness(params, features),
    )


def _halvings(shape: tuple[int, ...]) -> int:
    """How often height and width of an image are halved. Raises UserError if that is not possible."""
    number, sides = 0, shape[:2]
    while min(sides) > SMALLEST and not any(side % 2 for side in sides):
        sides, number = tuple(side // 2 for side in sides), number + 1
    if number == 0 or min(sides) > SMALLEST:
        raise UserError(
            f"coder.images patches takes images whose sides can be halved until the smaller one is at most {SMALLEST}, got "
            f"{shape[0]} x {shape[1]} pixels: take dense"
        )
    return number


class PatchEncoder(nn.Module):
    """Layers that multiply each patch of 2 x 2 pixels by a matrix: an image [H, W, C] -> a code in one row."""

    channels: tuple[int, ...]
    activation: Activation = "silu"
    norm: Norm = "rms"

    @nn.compact
    def __call__(self, x: Float[Array, "*n H W C"]) -> Float[Array, "*n E"]:
        """The codes of images."""
        for channels in self.channels:
            x = _hidden(channels, self.activation, self.norm, _patches(x))
        return x.reshape(*x.shape[:-3], -1)


class PatchDecoder(nn.Module):
    """The reverse: features [F] -> an image of `smallest` height, width and channels, whose pixels each layer replaces by
    2 x 2 pixels. The last layer has no activation."""

    channels: tuple[int, ...]
    smallest: tuple[int, int, int]
    activation: Activation = "silu"
    norm: Norm = "rms"

    @nn.compact
    def __call__(self, features: Float[Array, "*n F"]) -> Float[Array, "*n H W C"]:
        """The images of features."""
        height, width, channels = self.smallest
        x = _dense(height * width * channels)(features).reshape(*features.shape[:-1], height, width, channels)
        for channels in self.channels[:-1]:
            x = _hidden(4 * channels, self.activation, self.norm, x)
            x = _unpatched(x)
        return _unpatched(_dense(4 * self.channels[-1])(x))


def _dense(units: int) -> Any:
    return nn.Dense(units, param_dtype=jnp.result_type(float))


def _hidden(units: int, activation: Activation, norm: Norm, x: Array) -> Array:
    x = _dense(units)(x)
    if norm == "rms":
        x = nn.RMSNorm(epsilon=RMS_EPSILON, param_dtype=jnp.result_type(float))(x)
    if norm == "layer":
        x = nn.LayerNorm(param_dtype=jnp.result_type(float))(x)
    return getattr(jax.nn, activation)(x)


def _patches(x: Float[Array, "*n H W C"]) -> Float[Array, "*n h w P"]:
    """Patches of 2 x 2 pixels in one row each."""
    *n, height, width, channels = x.shape
    x = x.reshape(*n, height // 2, 2, width // 2, 2, channels)
    return jnp.swapaxes(x, -4, -3).reshape(*n, height // 2, width // 2, 4 * channels)


def _unpatched(x: Float[Array, "*n h w P"]) -> Float[Array, "*n H W C"]:
    """The inverse of `_patches`."""
    *n, height, width, channels = x.shape
    x = x.reshape(*n, height, width, 2, 2, channels // 4)
    return jnp.swapaxes(x, -4, -3).reshape(*n, 2 * height, 2 * width, channels // 4)
