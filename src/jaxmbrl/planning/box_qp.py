"""Quadratic programs in a box, by projected Newton (Bertsekas, Projected Newton methods for optimization problems with
simple constraints, 1982), as control-limited DDP uses it (Tassa, Mansard and Todorov, 2014).

    minimise  x'Hx / 2 + g'x    subject to  low <= x <= high

    repeat:
        clamped <- entries at a bound where the gradient Hx + g points out of the box; free <- the others
        stop if the gradient of the free entries is 0
        x_free <- the minimum over the free entries, by Newton's step, with the clamped ones as they are
        x <- the first of clip(x + s (step)), s = 1, 0.6, 0.36, ..., that decreases the objective enough (Armijo's rule)

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
DECREASE = 0.1
STEPS = tuple(0.6**i for i in range(20))


class Minimum(NamedTuple):
    """What `box_qp` returns. It is not finite if H is not positive definite in the free entries."""

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

    def at(x: Float[Array, "m"]) -> tuple[Minimum, Array]:
        gradient = H @ x + g
        free = ~(((x <= low) & (gradient > 0)) | ((x >= high) & (gradient < 0)))
        both = free[:, None] & free[None, :]
        return Minimum(x, free, cholesky(jnp.where(both, H, jnp.eye(x.shape[0], dtype=H.dtype)))), gradient

    def unfinished(loop: tuple[Minimum, Array, Array, Array]) -> Bool[Array, ""]:
        found, gradient, improved, i = loop
        scale = jnp.max(jnp.abs(H)) * jnp.max(jnp.abs(found.x)) + jnp.max(jnp.abs(g))
        left = jnp.max(jnp.where(found.free, jnp.abs(gradient), 0.0))
        return improved & (left > jnp.maximum(TOLERANCE, rounding * scale)) & (i < ITERATIONS)

    def newton(loop: tuple[Minimum, Array, Array, Array]) -> tuple[Minimum, Array, Array, Array]:
        found, gradient, _, i = loop
        direction = -found.solve(gradient[:, None])[:, 0]
        steps = jnp.asarray(STEPS, g.dtype)
        candidates = jnp.clip(found.x + steps[:, None] * direction, low, high)
        enough = jax.vmap(value)(candidates) - value(found.x) <= DECREASE * steps * (direction @ gradient)
        improved = jnp.any(enough)
        x = jnp.where(improved, candidates[jnp.argmax(enough)], found.x)
        return *at(x), improved, i + 1

    start = jnp.clip(start, low, high)
    loop = (*at(start), jnp.ones((), bool), jnp.zeros((), jnp.int32))
    found, _, _, _ = jax.lax.while_loop(unfinished, newton, loop)
    return found._replace(x=jnp.where(jnp.all(jnp.isfinite(found.factor)), found.x, jnp.nan))


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
