"""Find the bad elements of an array: those that are not finite, or false in a boolean array. Integers and random keys are
never bad."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

LARGE = 1_000_000
"""An array with at least this many elements is searched on its device instead of being copied to the host."""

SOUND = 0.5
"""Value that replaces an element that is not finite to test its effect on a result. Few operations are undefined there."""


class Place(NamedTuple):
    """One element of one of several arrays."""

    position: int
    """Index of the array."""
    element: int
    """Index into the flattened array."""


def is_inexact(x: Any) -> bool:
    """Whether an array has floating-point or complex elements."""
    return bool(jnp.issubdtype(x.dtype, jnp.inexact))


def bad(x: Any) -> Any:
    """A NumPy mask of the bad elements of `x`, in its shape."""
    if is_inexact(x):
        return ~np.isfinite(np.asarray(x))
    return ~np.asarray(x) if x.dtype == bool else np.zeros(x.shape, bool)


def any_bad(x: Any) -> bool:
    """Whether any element of `x` is bad."""
    if not is_inexact(x) and x.dtype != bool:
        return False
    # A large array stays on its device; a small one is copied, which needs no compilation.
    return bool(_holds_bad(x)) if x.size >= LARGE else bool(bad(x).any())


def element_is_bad(x: Any, element: int) -> bool:
    """Whether one element of the flattened array is bad."""
    return bool(_element_is_bad(x, element))


def sound(x: Any) -> Any:
    """A value of the dtype of `x` that is not bad."""
    return jnp.asarray(True if x.dtype == bool else SOUND, x.dtype)


def has_nan(x: Any) -> bool:
    """Whether any element of `x` is NaN."""
    return is_inexact(x) and bool(np.isnan(np.asarray(x)).any())


def kind(x: Any, element: int) -> str:
    """The kind of one element of the flattened array: 'nan', 'inf', 'false', or '' if it is not bad."""
    if not bad(x).flat[element]:
        return ""
    if x.dtype == bool:
        return "false"
    return "nan" if np.isnan(np.asarray(x).flat[element]) else "inf"


def _bad_traced(x: Any) -> Any:
    if is_inexact(x):
        return ~jnp.isfinite(x)
    return ~x if x.dtype == bool else jnp.zeros(x.shape, bool)


_holds_bad = jax.jit(lambda x: jnp.any(_bad_traced(x)))
_element_is_bad = jax.jit(lambda x, element: _bad_traced(jnp.ravel(x)[element]))
