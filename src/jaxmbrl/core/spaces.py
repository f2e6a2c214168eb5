"""Spaces of observations and actions: boxes of real numbers, integers or pixels, and finite sets."""

from __future__ import annotations

import math
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped


class Box(NamedTuple):
    """Bounded arrays of one shape and dtype. Actions of every continuous task are in [-1, 1].

    An image is `Box((H, W, C), 0, 255, "uint8")`.
    """

    shape: tuple[int, ...]
    low: float = -float("inf")
    high: float = float("inf")
    dtype: str = "float"
    """Name of the dtype; "float" is JAX's default float."""

    def sample(self, key: jax.Array) -> Shaped[Array, "*shape"]:
        """A uniform sample; for integers both bounds are included. Raises ValueError if a bound is infinite."""
        if not math.isfinite(self.high - self.low):
            raise ValueError(f"cannot sample from an unbounded space: {self}")
        if jnp.issubdtype(self._dtype, jnp.floating):
            return jax.random.uniform(key, self.shape, self._dtype, self.low, self.high)
        return jax.random.randint(key, self.shape, int(self.low), int(self.high) + 1, jnp.int32).astype(self._dtype)

    def zeros(self) -> Shaped[Array, "*shape"]:
        """Zeros of the space's shape and dtype, for building buffers."""
        return jnp.zeros(self.shape, self._dtype)

    @property
    def is_vector(self) -> bool:
        """Whether an element is a vector of real numbers, [n]."""
        return len(self.shape) == 1 and bool(jnp.issubdtype(self._dtype, jnp.floating))

    @property
    def is_image(self) -> bool:
        """Whether an element is an image, integers [H, W, C]."""
        return len(self.shape) == 3 and bool(jnp.issubdtype(self._dtype, jnp.integer))

    @property
    def _dtype(self) -> Any:
        return jnp.result_type(float) if self.dtype == "float" else jnp.dtype(self.dtype)


class Discrete(NamedTuple):
    """A set of `n` choices, numbered from 0; an element is an int32."""

    n: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one element."""
        return ()

    def sample(self, key: jax.Array) -> Int[Array, ""]:
        """A uniform sample."""
        return jax.random.randint(key, (), 0, self.n, jnp.int32)

    def zeros(self) -> Int[Array, ""]:
        """Choice 0, for building buffers."""
        return jnp.zeros((), jnp.int32)


Space: TypeAlias = Box | Discrete


def encoded_size(space: Space) -> int:
    """Length F of the vectors that `encode` returns."""
    return space.n if isinstance(space, Discrete) else math.prod(space.shape)


def encode(space: Space, value: Shaped[Array, "..."]) -> Float[Array, "*n F"]:
    """Elements [*n, ...] of `space` as vectors of floats: the one-hot code of a choice, the entries of a box in one row.
    Bytes of images are divided by 255.

    >>> from jaxmbrl.core.spaces import Box, Discrete, encode
    >>> encode(Discrete(3), jnp.array([0, 2])).tolist()
    [[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]
    >>> encode(Box((2, 2), 0, 255, "uint8"), jnp.ones((5, 2, 2), jnp.uint8)).shape
    (5, 4)
    """
    if isinstance(space, Discrete):
        return jax.nn.one_hot(value, space.n, dtype=jnp.result_type(float))
    flat = value.reshape(*value.shape[: value.ndim - len(space.shape)], -1)
    numbers = flat if jnp.issubdtype(flat.dtype, jnp.floating) else flat.astype(jnp.result_type(float))
    return numbers / 255 if space.is_image and space.dtype == "uint8" else numbers
