"""Functions on whole pytrees."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

PyTree = Any


def where(condition: Bool[Array, ""], yes: PyTree, no: PyTree) -> PyTree:
    """`yes` if the scalar `condition` is true, else `no`, leaf by leaf. It reads and writes every leaf."""
    return jax.tree.map(partial(jnp.where, condition), yes, no)


def gate(healthy: Bool[Array, ""], new: PyTree, old: PyTree) -> PyTree:
    """`new` if `healthy`, else state that behaves as `old`.

    Types with a method `gate` (`core.types.Gated`) choose for themselves, so that large arrays are not copied. All other
    leaves are selected by `where`.
    """

    def choose(new: Any, old: Any) -> Any:
        return new.gate(healthy, old) if is_gated(new) else jnp.where(healthy, new, old)

    return jax.tree.map(choose, new, old, is_leaf=is_gated)


def is_gated(x: Any) -> bool:
    """Whether the type of `x` has a method `gate`."""
    return callable(getattr(type(x), "gate", None))
