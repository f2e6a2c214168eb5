"""The mass matrix of two links in a plane, the second at the end of the first; the reacher and the acrobot have it."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float


class TwoLinks(NamedTuple):
    """Two links in a plane. With q2 the angle of the second relative to the first,

    M = [ first + second + 2 coupling cos q2,  second + coupling cos q2 ]
        [ second + coupling cos q2,            second                   ]
    """

    first: float
    """kg m^2: the first link's inertia about its joint, plus the second's mass times the squared distance of the joints."""
    second: float
    """kg m^2: the second link's inertia about its joint."""
    coupling: float
    """kg m^2: distance of the joints times the second's mass times the distance of its centre from its joint."""

    def mass(self, angle: Float[Array, ""], added: float = 0.0) -> tuple[Float[Array, ""], ...]:
        """(M_11, M_12, M_22, determinant) at the second joint's `angle`, in rad, with `added` on the diagonal."""
        coupling = self.coupling * jnp.cos(angle)
        m11, m12, m22 = self.first + self.second + 2 * coupling + added, self.second + coupling, self.second + added
        return m11, m12, jnp.asarray(m22, m11.dtype), m11 * m22 - m12**2

    def accelerations(self, angle: Float[Array, ""], torque: Float[Array, "2"], added: float = 0.0) -> Float[Array, "2"]:
        """M^-1 torque, in rad/s^2."""
        m11, m12, m22, determinant = self.mass(angle, added)
        return jnp.stack([m22 * torque[0] - m12 * torque[1], m11 * torque[1] - m12 * torque[0]]) / determinant

    def centrifugal(self, angle: Float[Array, ""], rates: Float[Array, "2"]) -> Float[Array, "2"]:
        """The torques, N m, that centrifugal and Coriolis forces need to be balanced."""
        rate, relative = rates
        return self.coupling * jnp.sin(angle) * jnp.stack([-relative * (2 * rate + relative), rate**2])
