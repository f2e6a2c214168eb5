"""Parts of MuJoCo's equations that the written-out tasks need: a capsule's inertia, the force of a joint's limit.

The limit is MuJoCo's soft constraint of one row (Todorov, Convex and analytically-invertible dynamics with contacts and
constraints, 2014; MuJoCo's documentation, chapter Computation, section Solver parameters), with the default impedance: its
force has a closed form.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

DENSITY = 1000.0  # kg / m^3, MuJoCo's default
MIN_IMPEDANCE, MAX_IMPEDANCE, WIDTH = 0.9, 0.95, 0.001  # MuJoCo's default solimp; the width in m or rad


def capsule_mass(radius: float, length: float) -> float:
    """Mass in kg of a capsule of density 1,000 kg/m^3 with cylinder of `length` between its half spheres, in m."""
    return DENSITY * math.pi * radius**2 * (length + 4 / 3 * radius)


def capsule_inertia(mass: float, radius: float, length: float) -> float:
    """Moment of inertia in kg m^2 of a uniform capsule about an axis across it through its centre."""
    spheres = mass * 4 * radius / (4 * radius + 3 * length)
    cylinder = mass - spheres
    ends = spheres * (2 / 5 * radius**2 + length * (3 * radius + 2 * length) / 8)
    return cylinder * (3 * radius**2 + length**2) / 12 + ends


class Limit(NamedTuple):
    """A joint's limit at +-`bound`."""

    bound: float
    """m or rad."""
    time_constant: float
    """In s, of the return to the bound."""
    inverse_inertia: float
    """The joint's diagonal entry of the inverse mass matrix in the model's reference position, in 1/kg or 1/(kg m^2)."""

    def force(
        self,
        position: Float[Array, ""],
        velocity: Float[Array, ""],
        acceleration: Float[Array, ""],
        inverse_inertia: Float[Array, ""],
    ) -> Float[Array, ""]:
        """The limit's force on the joint, N or N m. `acceleration` is that without the limit, `inverse_inertia` the joint's
        diagonal entry of the inverse mass matrix at this position."""
        inward = -jnp.sign(position)
        distance = self.bound - jnp.abs(position)
        deep = jnp.clip(-distance / WIDTH, 0.0, 1.0)
        rise = jnp.where(deep <= 0.5, 2 * deep**2, 1 - 2 * (1 - deep) ** 2)
        impedance = MIN_IMPEDANCE + (MAX_IMPEDANCE - MIN_IMPEDANCE) * rise
        scale = MAX_IMPEDANCE * self.time_constant
        wanted = -2 / scale * inward * velocity - impedance / scale**2 * distance
        softness = self.inverse_inertia * (1 - impedance) / impedance
        push = jnp.maximum(wanted - inward * acceleration, 0.0) / (inverse_inertia + softness)
        return jnp.where(distance < 0, inward * push, 0.0)
