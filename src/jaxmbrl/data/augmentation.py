"""Augmentation of batches of images: random shifts, for learners that sample images from a replay buffer.

Each image is moved by up to `pad` pixels in both directions, as if it had been padded by `pad` repeated pixels of its edge
and a part of its old size had been cut out at a random place (DrQ: Kostrikov et al., arXiv 2004.13649; DrQ-v2: Yarats et
al., arXiv 2107.09645). A stack of frames is one image with more channels, so its frames are moved together. The observation
and the successor of a row are moved independently.

DrQ-v2's code shifts by bilinear interpolation at whole pixels, which is the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, TypeVar

import jax
import jax.numpy as jnp
from annotated_types import Ge
from jaxtyping import Array, Int, Shaped

from jaxmbrl.core.config import UserError
from jaxmbrl.core.spaces import Box, Space
from jaxmbrl.core.types import Key, Transition
from jaxmbrl.data.n_step import NStep

Rows = TypeVar("Rows", Transition, NStep)


@dataclass(frozen=True)
class AugmentationSettings:
    """Settings of methods that can learn from augmented images."""

    augment: Literal["none", "shift"] = "none"
    """Whether the images of each batch are moved at random by up to `shift_pixels`. Stored images and those that the policy
    acts on stay as they are."""
    shift_pixels: Annotated[int, Ge(0)] = 4
    """Largest shift in each direction, in pixels; it has no effect unless `augment` is shift."""


def check_images(settings: AugmentationSettings, space: Space) -> None:
    """Raise UserError if observations are to be augmented that are not images."""
    if settings.augment != "none" and not (isinstance(space, Box) and space.is_image):
        raise UserError(f"augment shift needs images, and observations are {space}: set it to none")


def augmented(settings: AugmentationSettings, rows: Rows, key: Key) -> Rows:
    """The rows [B, ...] with the augmentation of the settings; without one, the rows themselves."""
    if settings.augment == "none":
        return rows
    keys = jax.random.split(key)
    images = rows.observation, rows.next_observation
    first, second = (shifted(image, key, settings.shift_pixels) for image, key in zip(images, keys, strict=True))
    return rows._replace(observation=first, next_observation=second)


def shifted(images: Shaped[Array, "B H W C"], key: Key, pad: int) -> Shaped[Array, "B H W C"]:
    """Each image moved by its own random number of pixels, uniform in -pad .. pad, down and across. With a pad of 0 the
    images are returned unchanged."""
    offsets = jax.random.randint(key, (images.shape[0], 2), -pad, pad + 1)
    return jax.vmap(lambda image, offset: moved(image, offset, pad))(images, offsets)


def moved(image: Shaped[Array, "H W C"], offset: Int[Array, "2"], pad: int) -> Shaped[Array, "H W C"]:
    """The image whose pixel (i, j) is the given one's at (i, j) + `offset`, or at its edge where that is outside. `pad` is
    at least the largest entry of the offset.

    >>> import jax.numpy as jnp
    >>> from jaxmbrl.data import augmentation
    >>> image = jnp.arange(1, 10).reshape(3, 3, 1)
    >>> augmentation.moved(image, jnp.array([1, -1]), pad=1)[..., 0].tolist()
    [[4, 4, 5], [7, 7, 8], [7, 7, 8]]
    """
    padded = jnp.pad(image, [(pad, pad), (pad, pad), (0, 0)], mode="edge")
    return jax.lax.dynamic_slice(padded, (offset[0] + pad, offset[1] + pad, 0), image.shape)
