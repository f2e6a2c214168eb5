"""Positions and velocities in bodies that move in the plane of x and z, as functions of the bodies' directions.

Every hinge is across the plane, so a body's direction is a sum of joint angles, and a point of a body is the root's place
plus vectors that turn with the directions of the bodies up to it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

HINGE = 3
"""`mujoco.mjtJoint.mjJNT_HINGE`."""


class Planar(NamedTuple):
    """A planar model with B moving bodies, of which the first is the root of all, and J joints."""

    signs: Float[np.ndarray, "B J"]
    """A body's direction, in rad about y, is the sum of joint angles with these signs."""
    centres: Float[np.ndarray, "B B 2"]
    """A body's centre of mass is the root's place plus the sum of these vectors (x, z in m), each turned by the direction
    of the body of the second axis."""
    centre: Float[np.ndarray, "B 2"]
    """The same of the centre of mass of all."""

    def directions(self, joints: Float[Array, "*n J"]) -> Float[Array, "*n B"]:
        """Directions (or, of their velocities, angular velocities) of the bodies."""
        return joints @ jnp.asarray(self.signs.T, joints.dtype)

    def height_above(
        self, body: int, other: int, cos: Float[Array, "*n B"], sin: Float[Array, "*n B"]
    ) -> Float[Array, "*n"]:
        """Height in m of the centre of mass of `body` above that of `other`, of the bodies' directions."""
        x, z = jnp.asarray((self.centres[body] - self.centres[other]).T, cos.dtype)
        return jnp.sum(z * cos - x * sin, axis=-1)

    def speed(
        self, root: Float[Array, "*n"], cos: Float[Array, "*n B"], sin: Float[Array, "*n B"], spin: Float[Array, "*n B"]
    ) -> Float[Array, "*n"]:
        """Velocity in m/s along x of the centre of mass, of the root's velocity along x, and directions and angular
        velocities of the bodies."""
        x, z = jnp.asarray(self.centre.T, cos.dtype)
        return root + jnp.sum((z * cos - x * sin) * spin, axis=-1)


def planar(model: Any) -> Planar:
    """The planar model of a MuJoCo model whose joints are slides of the root and hinges along y or against it, each with
    zero at zero."""
    bodies = model.nbody - 1
    signs, points = np.zeros((bodies, model.njnt)), np.zeros((bodies, bodies, 2))
    for body in range(bodies):
        parent = model.body_parentid[body + 1] - 1
        if parent >= 0:
            signs[body], points[body] = signs[parent], points[parent]
            points[body, parent] += model.body_pos[body + 1, ::2]
        first = model.body_jntadr[body + 1]
        for joint in range(first, first + model.body_jntnum[body + 1]):
            if model.jnt_type[joint] == HINGE:
                signs[body, joint] = model.jnt_axis[joint, 1]
                # The body turns about the joint, which may be away from the body's origin.
                if parent >= 0:
                    points[body, parent] += model.jnt_pos[joint, ::2]
                points[body, body] -= model.jnt_pos[joint, ::2]
    centres = points + np.eye(bodies)[..., None] * model.body_ipos[1:, None, ::2]
    mass = model.body_mass[1:]
    return Planar(signs, centres, np.einsum("b,bkx->kx", mass, centres) / mass.sum())
