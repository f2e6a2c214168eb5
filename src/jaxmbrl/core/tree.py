"""Functions of whole pytrees that several parts need."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

PyTree = Any


def where(condition: Bool[Array, ""], yes: PyTree, no: PyTree) -> PyTree:
    """`yes` where the one `condition` is true, else `no`, leaf by leaf. It reads and writes every leaf."""
    return jax.tree.map(partial(jnp.where, condition), yes, no)


def zeros_like_shapes(shapes: PyTree) -> PyTree:
    """Zeros of the shapes and dtypes of `shapes`, as `jax.eval_shape` returns them."""
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)


def gate(healthy: Bool[Array, ""], new: PyTree, old: PyTree) -> PyTree:
    """`new` where `healthy`, else what behaves as `old`: types with a method `gate` (`core.types.Gated`) decide themselves,
    so that what is large is not copied; of all else the leaves are selected."""

    def choose(new: Any, old: Any) -> Any:
        return new.gate(healthy, old) if is_gated(new) else jnp.where(healthy, new, old)

    return jax.tree.map(choose, new, old, is_leaf=is_gated)


def is_gated(x: Any) -> bool:
    """Whether the type of `x` has a method `gate`."""
    return callable(getattr(type(x), "gate", None))
