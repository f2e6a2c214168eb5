"""Random shifts of images: by hand, against bilinear interpolation as in DrQ-v2's code, and their identities."""

import jax
import numpy as np
import pytest

from jaxmbrl.core.config import UserError
from jaxmbrl.core.spaces import Box, Discrete
from jaxmbrl.core.types import Transition
from jaxmbrl.data import augmentation
from jaxmbrl.data.augmentation import AugmentationSettings

PAD, H, W = 2, 5, 7
shifted = jax.jit(augmentation.shifted, static_argnums=2)
moved = jax.jit(jax.vmap(augmentation.moved, in_axes=(None, 0, None)), static_argnums=2)


def images(rows=1, height=H, width=W, channels=3):
    return np.random.default_rng(0).integers(0, 256, (rows, height, width, channels)).astype(np.uint8)


def offsets_of(image, pad=PAD):
    """All offsets (down, across), and the image moved by each."""
    offsets = np.stack(np.meshgrid(*[np.arange(-pad, pad + 1)] * 2, indexing="ij"), axis=-1).reshape(-1, 2)
    return offsets, np.asarray(moved(image, offsets, pad))


def interpolated(image, offset, pad=PAD):
    """The image [S, S, C] shifted as by RandomShiftsAug of facebookresearch/drqv2, in float64: a regular grid in
    [-1, 1] on the padded image, moved by whole pixels, at whose points the image is interpolated bilinearly."""
    padded = np.pad(image.astype(float), [(pad, pad), (pad, pad), (0, 0)], mode="edge")
    size, side = image.shape[0], padded.shape[0]
    grid = np.linspace(-1 + 1 / side, 1 - 1 / side, side)[:size]
    # Without aligned corners, -1 and 1 are the outer edges of the first and the last pixel.
    rows, columns = (((grid + 2 * (o + pad) / side + 1) * side - 1) / 2 for o in offset)

    def weights(places):
        return np.maximum(0, 1 - np.abs(places[:, None] - np.arange(side)))

    return np.einsum("is,jt,stc->ijc", weights(rows), weights(columns), padded)


def test_offsets_by_hand():
    """[[1, 2], [3, 4]] moved by (1, 0) has the lower row twice; by (0, -1) the left column twice."""
    image = np.uint8([[1, 2], [3, 4]])[..., None]
    found = np.asarray(moved(image, np.array([[0, 0], [1, 0], [0, -1], [-1, 1]]), 1))[..., 0].tolist()
    assert found == [[[1, 2], [3, 4]], [[3, 4], [3, 4]], [[1, 1], [3, 3]], [[2, 2], [2, 2]]]


def test_every_shift_is_bilinear_interpolation_at_whole_pixels():
    image = images(height=H, width=H)[0]
    for offset, found in zip(*offsets_of(image), strict=True):
        np.testing.assert_allclose(found, interpolated(image, offset), rtol=0, atol=1e-9)


def test_images_that_are_not_square_are_indexed_at_their_edges():
    image = images()[0]
    for (down, across), found in zip(*offsets_of(image), strict=True):
        rows, columns = (np.clip(np.arange(n) + o, 0, n - 1) for n, o in ((H, down), (W, across)))
        np.testing.assert_array_equal(found, image[rows][:, columns])


def test_all_shifts_are_equally_likely_and_independent_of_the_others():
    image, rows = images()[0], 20_000
    offsets, candidates = offsets_of(image)
    found = np.asarray(shifted(np.repeat(image[None], rows, axis=0), jax.random.key(3), PAD))
    same = (found[:, None] == candidates[None]).all(axis=(2, 3, 4))
    assert same.sum(axis=1).tolist() == [1] * rows
    counts = same.sum(axis=0)
    # 25 shifts; five standard deviations of a count are 5 sqrt(20,000 x 0.04 x 0.96) = 139.
    assert len(offsets) == 25 and np.abs(counts - 800).max() < 139
    # The frames of a stack are moved together.
    stack = np.repeat(images(50, channels=1), 3, axis=-1)
    moved_stack = np.asarray(shifted(stack, jax.random.key(0), PAD))
    np.testing.assert_array_equal(moved_stack, moved_stack[..., :1].repeat(3, axis=-1))


def test_a_pad_of_zero_and_a_constant_image_change_nothing():
    some = images(4)
    np.testing.assert_array_equal(shifted(some, jax.random.key(0), 0), some)
    constant = np.full((4, H, W, 3), 7, np.uint8)
    found = shifted(constant, jax.random.key(0), PAD)
    np.testing.assert_array_equal(found, constant)
    assert found.dtype == np.uint8


def test_observation_and_successor_are_shifted_independently():
    same = images(64)
    rows = Transition(same, np.zeros(64), np.arange(64.0), same, np.zeros(64, bool), np.zeros(64, bool))
    augmented = jax.jit(augmentation.augmented, static_argnums=0)
    found = augmented(AugmentationSettings("shift", PAD), rows, jax.random.key(0))
    assert (np.asarray(found.observation) != same).any() and (np.asarray(found.next_observation) != same).any()
    equal = (np.asarray(found.observation) == found.next_observation).all(axis=(1, 2, 3))
    assert equal.sum() < 16
    np.testing.assert_array_equal(found.reward, rows.reward)
    assert augmentation.augmented(AugmentationSettings(), rows, jax.random.key(0)) is rows


@pytest.mark.parametrize("space", [Box((3,)), Discrete(4), Box((8, 8, 1))])
def test_only_images_are_augmented(space):
    with pytest.raises(UserError, match=r"^augment shift needs images, and observations are .*: set it to none$"):
        augmentation.check_images(AugmentationSettings("shift"), space)
    augmentation.check_images(AugmentationSettings(), space)
    augmentation.check_images(AugmentationSettings("shift"), Box((8, 8, 1), 0, 255, "uint8"))
