"""Metrics are summed on the device as totals and weights (`types.Average`) and become plain numbers on the host."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from jaxmbrl.core.types import Average, Key, Metrics, PyTree


def add(a: Metrics, b: Metrics) -> Metrics:
    """The averages over `a` and `b` together."""
    return jax.tree.map(jnp.add, a, b)


def total(metrics: Metrics) -> Metrics:
    """The averages over the leading axis, such as the one that `lax.scan` adds."""
    return jax.tree.map(lambda x: jnp.sum(x, axis=0), metrics)


def none_like(function: Callable[..., tuple[Any, Metrics]], *args: Any) -> Metrics:
    """Empty averages with the names of the metrics that `function(*args) -> (_, metrics)` returns."""
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(function, *args)[1])


def cond_update(
    predicate: Bool[Array, ""], update: Callable[[PyTree], tuple[PyTree, Metrics]], state: PyTree
) -> tuple[PyTree, Metrics]:
    """`update(state)` if `predicate` is true, else the unchanged state and empty metrics.

    Pass only the state that `update` changes; otherwise buffers are copied. The predicate must not be batched over seeds.
    """
    update = _traced_once(update)
    return jax.lax.cond(predicate, update, lambda state: (state, none_like(update, state)), state)


def repeat(
    number: Int[Array, ""], update: Callable[[PyTree, Key], tuple[PyTree, Metrics]], state: PyTree, key: Key
) -> tuple[PyTree, Metrics]:
    """Apply `update(state, key)` `number` times, each with its own key. Returns the state and the averages over all calls.

    The number may be traced, but must not be batched over seeds.
    """

    update = _traced_once(update)

    def body(i: Int[Array, ""], loop: tuple[PyTree, Metrics]) -> tuple[PyTree, Metrics]:
        state, found = loop
        state, more = update(state, jax.random.fold_in(key, i))
        return state, add(found, more)

    return jax.lax.fori_loop(0, number, body, (state, none_like(update, state, key)))


def _traced_once(update: Callable[..., Any]) -> Callable[..., Any]:
    """`update` with one trace, for the names of its metrics and for the program."""
    return jax.jit(update, inline=True)


def known(metrics: Mapping[str, Average]) -> dict[str, float]:
    """The means as plain numbers, on the host, without those of weight zero."""
    return {name: float(x.total) / float(x.weight) for name, x in metrics.items() if float(x.weight) > 0}
