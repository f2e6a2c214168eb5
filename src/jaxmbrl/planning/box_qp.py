"""Quadratic programs in a box, by projected Newton (Bertsekas, Projected Newton methods for optimization problems with
simple constraints, 1982), as control-limited DDP uses it (Tassa, Mansard and Todorov, 2014).

    minimise  x'Hx / 2 + g'x    subject to  low <= x <= high

    repeat:
        clamped <- entries at a bound where the gradient Hx + g points out of the box; free <- the others
        stop if the gradient of the free entries is 0
        step <- Newton's, to the minimum over the free entries, with the clamped ones as they are; without the entries at a
                bound that it would move out of the box, the same again
        x <- the minimum of the objective along clip(x + s step), s >= 0

If H is badly conditioned, a step without that repetition, or a search for s = 1, 0.6, 0.36, ..., may take very many
iterations: past the first bound that the path meets, the objective may rise.

To clip the unconstrained minimum is not the same: with H = ((2, 1), (1, 2)), g = (-4, -1) and the box [-1, 1] it gives
(1, -2/3) of value -2.56, and the minimum is (1, 0) of value -3.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxmbrl.core.cholesky import cholesky

ITERATIONS = 100
TOLERANCE = 1e-8


class Minimum(NamedTuple):
    """What `box_qp` returns. It is not finite if H is not positive definite in the free entries, or if no minimum was
    found."""

    x: Float[Array, "m"]
    free: Bool[Array, "m"]
    """Entries that no bound holds."""
    factor: Float[Array, "m m"]
    """Cholesky factor of H with the rows and columns of clamped entries replaced by those of the identity."""

    def solve(self, right: Float[Array, "m n"]) -> Float[Array, "m n"]:
        """y with H y = right in the free entries; 0 in the clamped ones."""
        right = jnp.where(self.free[:, None], right, 0.0)
        if len(right) == 1:
            return right / self.factor**2
        return jax.scipy.linalg.cho_solve((self.factor, True), right)


def box_qp(
    H: Float[Array, "m m"],
    g: Float[Array, "m"],
    low: Float[Array, "m"],
    high: Float[Array, "m"],
    start: Float[Array, "m"],
) -> Minimum:
    """The minimum of x'Hx / 2 + g'x with low <= x <= high, from `start` clipped to the bounds. Bounds may be infinite."""
    if len(g) == 1:
        return _on_a_line(H, g, low, high, start)
    rounding = 4 * jnp.finfo(g.dtype).eps

    def value(x: Float[Array, "m"]) -> Float[Array, ""]:
        return (H @ x) @ x / 2 + g @ x

    def within(x: Float[Array, "m"], free: Bool[Array, "m"]) -> Minimum:
        both = free[:, None] & free[None, :]
        return Minimum(x, free, cholesky(jnp.where(both, H, jnp.eye(x.shape[0], dtype=H.dtype))))

    def at(x: Float[Array, "m"]) -> tuple[Minimum, Array]:
        gradient = H @ x + g
        free = ~(((x <= low) & (gradient > 0)) | ((x >= high) & (gradient < 0)))
        return within(x, free), gradient

    def minimal(found: Minimum, gradient: Float[Array, "m"]) -> Bool[Array, ""]:
        scale = jnp.max(jnp.abs(H)) * jnp.max(jnp.abs(found.x)) + jnp.max(jnp.abs(g))
        left = jnp.max(jnp.where(found.free, jnp.abs(gradient), 0.0))
        return left <= jnp.maximum(TOLERANCE, rounding * scale)

    def unfinished(loop: tuple[Minimum, Array, Array, Array]) -> Bool[Array, ""]:
        found, gradient, improved, i = loop
        return improved & ~minimal(found, gradient) & (i < ITERATIONS)

    def along(x: Float[Array, "m"], direction: Float[Array, "m"]) -> Float[Array, "m"]:
        """The minimum of the objective along clip(x + s direction), s >= 0. Between two values of s at which the path meets
        a bound, the objective is a parabola."""
        bound, moves = jnp.where(direction > 0, high, low), direction != 0
        meets = jnp.where(moves, (bound - x) / jnp.where(moves, direction, 1.0), jnp.inf)
        ends = jnp.append(jnp.sort(meets), jnp.inf)
        begins = jnp.where(jnp.isfinite(ends), ends, 0.0)[:-1]

        def lowest(begin: Float[Array, ""], end: Float[Array, ""]) -> Float[Array, "m"]:
            step = jnp.where(meets <= begin, 0.0, direction)
            corner = jnp.where(meets <= begin, bound, x + begin * step)
            curvature, slope = (H @ step) @ step, (H @ corner + g) @ step
            ahead = -slope / jnp.where(curvature > 0, curvature, jnp.inf)
            s = begin + jnp.clip(ahead, 0.0, end - begin)
            there = x + s * direction
            # A rounding error away from its bound, an entry would count as free and stop the next step.
            close = jnp.isfinite(meets) & (jnp.abs(bound - there) <= rounding * (jnp.abs(x) + jnp.abs(bound)))
            return jnp.where((meets <= s) | close, bound, jnp.clip(there, low, high))

        candidates = jax.vmap(lowest)(jnp.concatenate([jnp.zeros(1, x.dtype), begins]), ends)
        return candidates[jnp.argmin(jax.vmap(value)(candidates))]

    def newton(loop: tuple[Minimum, Array, Array, Array]) -> tuple[Minimum, Array, Array, Array]:
        found, gradient, _, i = loop
        step = found.solve(-gradient[:, None])[:, 0]
        out = ((found.x <= low) & (step < 0)) | ((found.x >= high) & (step > 0))
        x = along(found.x, within(found.x, found.free & ~out).solve(-gradient[:, None])[:, 0])
        improved = value(x) < value(found.x)
        return *at(jnp.where(improved, x, found.x)), improved, i + 1

    start = jnp.clip(start, low, high)
    loop = (*at(start), jnp.ones((), bool), jnp.zeros((), jnp.int32))
    found, gradient, _, _ = jax.lax.while_loop(unfinished, newton, loop)
    # The decrease that is left may be below the rounding error of the objective.
    left = gradient @ found.solve(gradient[:, None])[:, 0]
    size = jnp.abs(found.x) @ (jnp.abs(H) @ jnp.abs(found.x)) / 2 + jnp.abs(g) @ jnp.abs(found.x)
    solved = minimal(found, gradient) | (left <= rounding * size)
    return found._replace(x=jnp.where(solved & jnp.all(jnp.isfinite(found.factor)), found.x, jnp.nan))


def _on_a_line(
    H: Float[Array, "1 1"], g: Float[Array, "1"], low: Float[Array, "1"], high: Float[Array, "1"], start: Float[Array, "1"]
) -> Minimum:
    """`box_qp` of one number, without a loop. Where H is not positive, the minimum may still be the start at a bound."""
    curvature = H[0]
    start = jnp.clip(start, low, high)
    x = jnp.where(curvature > 0, jnp.clip(-g / jnp.where(curvature > 0, curvature, 1.0), low, high), start)
    gradient = curvature * x + g
    free = ~(((x <= low) & (gradient > 0)) | ((x >= high) & (gradient < 0)))
    definite = ~free | (curvature > 0)
    factor = jnp.where(free, jnp.sqrt(jnp.where(definite, curvature, jnp.nan)), 1.0)
    return Minimum(jnp.where(definite, x, jnp.nan), free, factor[None])
