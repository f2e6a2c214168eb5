"""Derivatives of MJX's constraint solver, by the implicit function theorem.

The solver minimises a convex cost over the accelerations q (Todorov, Convex and analytically-invertible dynamics with
contacts and constraints, 2014). At the minimum the gradient g(q, theta) of the cost is 0, so

    dq/dtheta = -H^{-1} dg/dtheta,    where H is the Hessian of the cost with respect to q

This is the derivative of one Newton step from the minimum. It does not depend on how the solver found the minimum. MJX's
own loops cannot be differentiated in reverse mode. Where a contact opens or closes, the derivative is one-sided.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
from jaxtyping import Array


@contextlib.contextmanager
def differentiable() -> Iterator[None]:
    """Context manager: MJX steps traced inside have these derivatives. The model must use the Newton solver. The numbers
    stay the same."""
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
            # With this solver, `Mgrad` is the inverse Hessian times the gradient.
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
