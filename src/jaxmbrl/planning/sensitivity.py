"""Which numbers of a World's carry a planner differentiates by."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Literal
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from jaxmbrl.core.types import Carry


def coordinates_of(
    step: Callable[[Carry, Any], tuple[Carry, Any]], carry: Carry, action: Any
) -> tuple[Callable[[Carry], Float[Array, "n"]], Callable[[Carry, Float[Array, "n"]], Carry]]:
    """(coordinates, moved): `coordinates(carry)` are the floating-point numbers of a carry that affect what later steps
    return besides the carry, one after the other; `moved(carry, x)` is the carry with the coordinates x.

    An environment's state also contains numbers that no step reads, such as the last observation and reward. To
    differentiate by them would cost as much as by the others, and give zeros.
    """
    used = leaves_used(step, carry, action)
    treedef = jax.tree.structure(carry)

    def chosen(carry: Carry) -> list[Array]:
        return [leaf for leaf, keep in zip(jax.tree.leaves(carry), used, strict=True) if keep]

    def moved(carry: Carry, x: Float[Array, "n"]) -> Carry:
        replaced = iter(ravel_pytree(chosen(carry))[1](x))
        leaves = [next(replaced) if keep else leaf for leaf, keep in zip(jax.tree.leaves(carry), used, strict=True)]
        return jax.tree.unflatten(treedef, leaves)

    return lambda carry: ravel_pytree(chosen(carry))[0], moved


def leaves_used(step: Callable[[Carry, Any], tuple[Carry, Any]], carry: Carry, action: Any) -> list[bool]:
    """For each leaf of the carry, whether it is of floating point and affects what this step or a later one returns besides
    the carry. An operation that contains others, such as a loop, counts as if all its results depended on all its
    arguments."""
    leaves = jax.tree.leaves(carry)
    jaxpr = jax.make_jaxpr(step)(carry, action).jaxpr
    carried, returned = jaxpr.outvars[: len(leaves)], jaxpr.outvars[len(leaves) :]
    used = [False] * len(leaves)
    while True:
        needed = _variables([*returned, *(after for after, keep in zip(carried, used, strict=True) if keep)])
        for equation in reversed(jaxpr.eqns):
            if not needed.isdisjoint(equation.outvars):
                needed |= _variables(equation.invars)
        before, used = used, [variable in needed for variable in jaxpr.invars[: len(leaves)]]
        if used == before:
            return [
                keep and jnp.issubdtype(jnp.asarray(leaf).dtype, jnp.inexact)
                for leaf, keep in zip(leaves, used, strict=True)
            ]


def _variables(atoms: Any) -> set[Any]:
    return {atom for atom in atoms if not isinstance(atom, Literal)}
