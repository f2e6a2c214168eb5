"""Derivatives of MJX's constraint solver: those of the accelerations that it looks for, whatever it did to find them.

The solver minimises a convex cost over the accelerations q (Todorov, Convex and analytically-invertible dynamics with
contacts and constraints, 2014). At the minimum the cost's slope g(q, theta) is 0, so by the implicit function theorem

    dq/dtheta = -H^{-1} dg/dtheta,    H the cost's curvature by q

which is the derivative of one Newton step from there. MJX's own loops know no derivative in reverse mode. Where a contact
opens or closes, a derivative on one side does not tell of the other.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
from jaxtyping import Array


@contextlib.contextmanager
def differentiable() -> Iterator[None]:
    """Let MJX's steps traced meanwhile have these derivatives; their solver must be Newton's. Numbers stay the same."""
    from mujoco.mjx._src import solver

    theirs = solver.solve

    @jax.custom_jvp
    def solution(model: Any, data: Any) -> tuple[Array, Array, Array]:
        return _found(theirs(model, data))

    @solution.defjvp
    def derivative(primals: tuple[Any, Any], tangents: tuple[Any, Any]) -> tuple[Any, Any]:
        found = solution(*primals)
        acceleration = found[0]

        def newton(model: Any, data: Any) -> tuple[Array, Array, Array]:
            # With this solver `Mgrad` is the slope times the inverse of the curvature.
            step = solver.Context.create(model, data.replace(qacc=acceleration)).Mgrad
            after = solver.Context.create(model, data.replace(qacc=acceleration - step), grad=False)
            return after.qacc, after.qfrc_constraint, after.efc_force

        return found, jax.jvp(newton, primals, tangents)[1]

    def solve(model: Any, data: Any) -> Any:
        acceleration, generalized, forces = solution(model, data)
        return data.tree_replace({"qacc": acceleration, "qfrc_constraint": generalized, "_impl.efc_force": forces})

    solver.solve = solve
    try:
        yield
    finally:
        solver.solve = theirs


def _found(data: Any) -> tuple[Array, Array, Array]:
    return data.qacc, data.qfrc_constraint, data._impl.efc_force
