"""Encoders of observations: the shared first part of networks that learn from images.

    image [H, W, C]  ->  pixels / 255 - 1/2  ->  convolutions, each with a ReLU  ->  dense layer, layer norm, tanh

The dense layer with layer norm and tanh is the trunk, which SAC-AE (Yarats et al., arXiv 1910.01741) and DrQ-v2 (arXiv
2107.09645) place between the convolutions and the hidden layers: whatever the size of the image, these receive few numbers
in [-1, 1]. A vector is its own code. Convolutions whose kernels are as large as their strides are matrices that multiply
patches, which cost least on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import jax
from annotated_types import Ge
from flax import linen as nn
from jaxtyping import Array, Float, Shaped

from jaxmbrl.core.config import UserError
from jaxmbrl.core.spaces import Box, Space
from jaxmbrl.core.types import Key, PyTree
from jaxmbrl.nn.networks import MLP, ConvLayer, ConvTorso, smallest_side

DRQ: tuple[ConvLayer, ...] = ((32, 3, 2), (32, 3, 1), (32, 3, 1), (32, 3, 1))
"""The convolutions of SAC-AE, DrQ and DrQ-v2, for images of 84 x 84 pixels."""


@dataclass(frozen=True)
class EncoderConfig:
    """Settings of an encoder of images."""

    convolutions: tuple[ConvLayer, ...] = DRQ
    """(units, kernel size, stride) of each convolution; without any, the dense layer receives the pixels."""
    units: Annotated[int, Ge(1)] = 50
    """Length of a code: units of the dense layer after the convolutions, which has layer norm and tanh."""


class Encoder(NamedTuple):
    """An encoder for one space of observations."""

    size: int
    """E: length of a code."""
    init: Callable[[Key], PyTree]
    apply: Callable[[PyTree, Shaped[Array, "..."]], Float[Array, "*n E"]]
    """(parameters, observations [*n, ...]) -> codes."""


class ImageNetwork(nn.Module):
    """Convolutions and, with `units`, the trunk: images [H, W, C] -> codes."""

    convolutions: tuple[ConvLayer, ...]
    units: int | None = None

    @nn.compact
    def __call__(self, image: Shaped[Array, "*n H W C"]) -> Float[Array, "*n E"]:
        """The codes of images."""
        x = ConvTorso(self.convolutions, middle=0.5)(image)
        return x if self.units is None else MLP((self.units,), None, first_norm=True)(x)


def make(space: Space, convolutions: tuple[ConvLayer, ...], units: int | None = None) -> Encoder:
    """The encoder of images in `space`, with the trunk if `units` is given; vectors are their own codes, and their encoder
    has no parameters. Raises UserError if an image is too small for the convolutions."""
    if not is_image(space):
        return Encoder(space.shape[0], lambda key: (), lambda params, vector: vector)
    check_size(space, convolutions)
    network, example = ImageNetwork(convolutions, units), space.zeros()
    code = jax.eval_shape(lambda key: network.apply(network.init(key, example), example), jax.random.key(0))
    return Encoder(code.shape[-1], lambda key: network.init(key, example), network.apply)


def of_images(config: EncoderConfig, space: Space) -> Encoder | None:
    """The encoder with the settings `config` for images in `space`; None for other observations, which need none."""
    return make(space, config.convolutions, config.units) if is_image(space) else None


def is_image(space: Space) -> bool:
    """Whether observations in `space` are arrays [H, W, C]: pixels, or real numbers."""
    return isinstance(space, Box) and len(space.shape) == 3


def check_size(space: Space, layers: tuple[ConvLayer, ...]) -> None:
    """Raise UserError if the images in `space` are too small for the convolutions `layers`."""
    if min(space.shape[:2]) < (side := smallest_side(layers)):
        size = " x ".join(map(str, space.shape[:2]))
        raise UserError(f"convolutions need images of at least {side} x {side} pixels, got {size}: set other convolutions")
