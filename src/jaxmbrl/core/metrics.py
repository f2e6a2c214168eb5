"""Metrics add up on the device as totals and weights (`types.Average`), and become plain numbers on the host."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from jaxmbrl.core.types import Average, Key, Metrics, PyTree


def add(a: Metrics, b: Metrics) -> Metrics:
    """The averages over both."""
    return jax.tree.map(jnp.add, a, b)


def total(metrics: Metrics) -> Metrics:
    """The averages over a leading axis, as `lax.scan` stacks it."""
    return jax.tree.map(lambda x: jnp.sum(x, axis=0), metrics)


def none_like(function: Callable[..., tuple[Any, Metrics]], *args: Any) -> Metrics:
    """The metrics that `function(*args) -> (_, metrics)` would give, all unknown."""
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(function, *args)[1])


def cond_update(
    predicate: Bool[Array, ""], update: Callable[[PyTree], tuple[PyTree, Metrics]], state: PyTree
) -> tuple[PyTree, Metrics]:
    """`update(state)` where `predicate` holds, else the state as it is and unknown metrics.

    Give it only the state that `update` changes, or buffers are copied. The predicate must not be batched over seeds.
    """
    return jax.lax.cond(predicate, update, lambda state: (state, none_like(update, state)), state)


def repeat(
    number: Int[Array, ""], update: Callable[[PyTree, Key], tuple[PyTree, Metrics]], state: PyTree, key: Key
) -> tuple[PyTree, Metrics]:
    """`update(state, key)` a `number` of times that is traced, each with a key of its own, and the averages over all.

    The number must not be batched over seeds.
    """

    def body(i: Int[Array, ""], loop: tuple[PyTree, Metrics]) -> tuple[PyTree, Metrics]:
        state, found = loop
        state, more = update(state, jax.random.fold_in(key, i))
        return state, add(found, more)

    return jax.lax.fori_loop(0, number, body, (state, none_like(update, state, key)))


def known(metrics: Mapping[str, Average]) -> dict[str, float]:
    """Plain numbers, on the host: those that have a weight."""
    return {name: float(x.total) / float(x.weight) for name, x in metrics.items() if float(x.weight) > 0}
