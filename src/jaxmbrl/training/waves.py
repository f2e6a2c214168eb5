"""How many episodes an evaluation runs side by side.

On an accelerator, as many as fit. On a CPU, as many as keep the arrays of a step in the processor's cache: a planner
evaluates thousands of rows for each episode, and more episodes at once only make their arrays slower to read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
from jax.extend.core import Var

CPU_BYTES = 2**18
"""Largest size of an array of a step, over all episodes that run side by side, on a CPU."""
DEVICE_BYTES = 2**28
"""The same on an accelerator."""


def side_by_side(step: Callable[..., Any], shared: int, arguments: tuple[Any, ...], seeds: int, episodes: int) -> int:
    """Number of episodes of each of `seeds` seeds that run at once, of `episodes` of equal rank. `step(*arguments)` is a
    step of one episode; the first `shared` arguments, such as the weights of its policy, are the same for all episodes of a
    seed. The arguments may be shapes.

    >>> import jax.numpy as jnp
    >>> from jaxmbrl.training.waves import side_by_side
    >>> weights, row = jax.ShapeDtypeStruct((1000, 1000), jnp.float32), jax.ShapeDtypeStruct((1000,), jnp.float32)
    >>> side_by_side(lambda weights, row: weights @ row, 1, (weights, row), seeds=2, episodes=1000)
    32
    """
    largest = largest_array(step, shared, arguments)
    bound = CPU_BYTES if jax.default_backend() == "cpu" else DEVICE_BYTES
    most = min(max(1, bound // max(1, largest * seeds)), episodes)
    # As many waves as with `most`, of equal size.
    return -(-episodes // -(-episodes // most))


def largest_array(step: Callable[..., Any], shared: int, arguments: tuple[Any, ...]) -> int:
    """Bytes of the largest array that `step(*arguments)` computes, without those that depend on its first `shared`
    arguments alone."""
    jaxpr = jax.make_jaxpr(step)(*arguments).jaxpr
    first = len(jax.tree.leaves(arguments[:shared]))
    return _largest(jaxpr, set(jaxpr.invars[first:]))


def _largest(jaxpr: Any, varying: set[Var]) -> int:
    found = 0
    for equation in jaxpr.eqns:
        given = [isinstance(x, Var) and x in varying for x in equation.invars]
        if not any(given):
            continue
        varying.update(equation.outvars)
        found = max(found, *(_bytes(x.aval) for x in equation.outvars), 0)
        for inner in _called(equation.params):
            # A branch lacks the index, and the body of a loop the constants of its condition, which come first.
            own = given[len(given) - len(inner.invars) :]
            constants = equation.params.get("num_consts", equation.params.get("body_nconsts", len(own)))
            # What a loop changes may depend on any of its inputs.
            own = [varies or i >= constants for i, varies in enumerate(own)]
            found = max(found, _largest(inner, {x for x, varies in zip(inner.invars, own, strict=True) if varies}))
    return found


def _called(params: Mapping[str, Any]) -> Iterator[Any]:
    """The jaxprs in the parameters of an equation."""
    for leaf in jax.tree.leaves(dict(params), is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")):
        if hasattr(leaf, "eqns") or hasattr(leaf, "jaxpr"):
            yield getattr(leaf, "jaxpr", leaf)


def _bytes(aval: Any) -> int:
    size = getattr(aval.dtype, "itemsize", 0) if hasattr(aval, "dtype") else 0
    return math.prod(aval.shape) * size if size else 0
