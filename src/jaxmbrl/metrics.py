"""Metrics add up on the device as totals and weights (`types.Average`), and become plain numbers on the host."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from jaxmbrl.types import Average, Metrics, PyTree


def add(a: Metrics, b: Metrics) -> Metrics:
    """The averages over both."""
    return jax.tree.map(jnp.add, a, b)


def total(metrics: Metrics) -> Metrics:
    """The averages over a leading axis, as `lax.scan` stacks it."""
    return jax.tree.map(lambda x: jnp.sum(x, axis=0), metrics)


def unknown_like(function: Callable[..., tuple[Any, Metrics]], *args: Any) -> Metrics:
    """The metrics that `function(*args) -> (_, metrics)` would give, all unknown."""
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(function, *args)[1])


def when(
    predicate: Bool[Array, ""], update: Callable[[PyTree], tuple[PyTree, Metrics]], state: PyTree
) -> tuple[PyTree, Metrics]:
    """`update(state)` where `predicate` holds, else the state as it is and unknown metrics.

    Give it only the state that `update` changes, or buffers are copied. The predicate must not be batched over seeds.
    """
    return jax.lax.cond(predicate, update, lambda state: (state, unknown_like(update, state)), state)


def known(metrics: Mapping[str, Average]) -> dict[str, float]:
    """Plain numbers, on the host: those that have a weight."""
    return {name: float(x.total) / float(x.weight) for name, x in metrics.items() if float(x.weight) > 0}
