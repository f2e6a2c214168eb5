"""Contacts as in C MuJoCo, for pairs of geoms for which MJX computes different ones.

- A capsule on a plane: C MuJoCo aligns the contact's tangents with the axis of the capsule at every orientation. MJX does
  not within 30 degrees of upright, which turns the friction pyramid
  (https://github.com/google-deepmind/mujoco/issues/2774).
- Capsules and spheres with capsules: MJX adds 1e-6 to denominators, which moves the nearest points by up to 1e-5 of the
  length of a capsule.
- A capsule and a cylinder: MJX takes ten gradient steps and returns two contacts. C MuJoCo returns one, to its tolerance
  (1e-6 by default). Ours is that one, in closed form except for a bisection: the signed distance to a cylinder is convex,
  so its minimum along the axis of the capsule is where its slope changes sign. This is valid while the axis is outside of
  the cylinder, that is, until they overlap by the radius of the capsule. Beyond that, we take the depth of the deepest
  point of the axis as the overlap, and C MuJoCo returns a different contact. For a capsule that lies along a face,
  C MuJoCo returns two contacts.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def capsule_cylinder(
    place: Float[Array, "3"],
    turn: Float[Array, "3 3"],
    size: Float[Array, "2"],
    to_place: Float[Array, "3"],
    to_turn: Float[Array, "3 3"],
    to_size: Float[Array, "2"],
) -> tuple[Float[Array, ""], Float[Array, "3"], Float[Array, "3"]]:
    """(distance, midpoint, normal from the capsule to the cylinder) of a capsule and a cylinder, in m. The capsule is at
    `place`, with axis `turn[:, 2]` and `size` [radius, half of the length of the axis]. The cylinder is at `to_place`, with
    axis `to_turn[:, 2]` and `to_size` [radius, half of the height]."""
    start, along = to_turn.T @ (place - to_place), to_turn.T @ turn[:, 2]
    low, high = -size[1], size[1]

    def halve(i: Any, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        middle = (low + high) / 2
        rises = _signed_distance(start + middle * along, to_size)[1] @ along > 0
        return jnp.where(rises, low, middle), jnp.where(rises, middle, high)

    low, high = jax.lax.fori_loop(0, jnp.finfo(start.dtype).nmant + 2, halve, (low, high))
    nearest = start + jax.lax.stop_gradient((low + high) / 2) * along
    distance, outward = _signed_distance(nearest, to_size)
    middle = nearest - outward * (distance + size[0]) / 2
    return distance - size[0], to_turn @ middle + to_place, -(to_turn @ outward)


def _signed_distance(point: Float[Array, "3"], size: Float[Array, "2"]) -> tuple[Float[Array, ""], Float[Array, "3"]]:
    """(signed distance, its gradient) from a point to an upright cylinder at the origin."""
    from_axis = jnp.sqrt(point[0] ** 2 + point[1] ** 2)
    sideways = jnp.stack([point[0], point[1], jnp.zeros_like(from_axis)]) / jnp.where(from_axis == 0, 1.0, from_axis)
    upwards = jnp.stack([jnp.zeros_like(from_axis), jnp.zeros_like(from_axis), jnp.where(point[2] < 0, -1.0, 1.0)])
    side, top = from_axis - size[0], jnp.abs(point[2]) - size[1]
    past_side, past_top = jnp.maximum(side, 0.0), jnp.maximum(top, 0.0)
    outside = jnp.sqrt(past_side**2 + past_top**2)
    inside = outside == 0
    gradient = (past_side * sideways + past_top * upwards) / jnp.where(inside, 1.0, outside)
    return (
        jnp.where(inside, jnp.maximum(side, top), outside),
        jnp.where(inside, jnp.where(side > top, sideways, upwards), gradient),
    )


def plane_capsule_tangents(
    normal: Float[Array, "3"], axis: Float[Array, "3"], otherwise: Float[Array, "2 3"]
) -> Float[Array, "2 3"]:
    """The tangents of the contact of a plane with a capsule along `axis`. The first is the projection of the axis onto the
    plane. `otherwise` are the tangents for a capsule that is upright up to rounding."""
    seen = axis - normal * (normal @ axis)
    length = jnp.linalg.norm(seen)
    upright = length < jnp.finfo(seen.dtype).eps
    first = seen / jnp.where(upright, 1.0, length)
    return jnp.where(upright, otherwise, jnp.stack([first, jnp.cross(normal, first)]))


def nearest_on_segment(start: Float[Array, "3"], end: Float[Array, "3"], point: Float[Array, "3"]) -> Float[Array, "3"]:
    """The point of a segment of nonzero length that is nearest to `point`."""
    along = end - start
    return start + jnp.clip((point - start) @ along / (along @ along), 0.0, 1.0) * along


def nearest_of_segments(
    start: Float[Array, "3"], end: Float[Array, "3"], other_start: Float[Array, "3"], other_end: Float[Array, "3"]
) -> tuple[Float[Array, "3"], Float[Array, "3"]]:
    """The points of two segments of nonzero length that are nearest to each other. For parallel segments, one such pair."""
    along, other_along = end - start, other_end - other_start
    between = start - other_start
    normal = jnp.cross(along, other_along)
    lengths = (along @ along) * (other_along @ other_along)
    parallel = normal @ normal <= jnp.finfo(start.dtype).eps ** 2 * lengths
    # Take the nearest point of the infinite lines, clamp it to its segment, then project onto the other segment and back.
    share = jnp.where(parallel, 0.5, normal @ jnp.cross(other_along, between) / jnp.where(parallel, 1.0, normal @ normal))
    other = nearest_on_segment(other_start, other_end, start + jnp.clip(share, 0.0, 1.0) * along)
    return nearest_on_segment(start, end, other), other


Collider = Callable[[Any, Any, Any, Any], tuple[Array, Array, Array]]
"""MJX's interface: (model, data, key, pairs [n, 2] of geoms) -> (distances [m], positions [m, 3], frames [m, 3, 3])."""


def _of_plane_and_capsule(theirs: Collider) -> Collider:
    def collide(model: Any, data: Any, key: Any, geoms: Any) -> tuple[Array, Array, Array]:
        distance, place, frame = theirs(model, data, key, geoms)
        axis = jnp.repeat(data.geom_xmat[geoms[:, 1], :, 2], 2, axis=0)
        tangents = jax.vmap(plane_capsule_tangents)(frame[:, 0], axis, frame[:, 1:])
        return distance, place, jnp.concatenate([frame[:, :1], tangents], axis=1)

    return _with_contacts(collide, 2)


def _of_capsule_and_cylinder(theirs: Collider) -> Collider:
    from mujoco.mjx._src.math import make_frame

    def collide(model: Any, data: Any, key: Any, geoms: Any) -> tuple[Array, Array, Array]:
        first, second = ((data.geom_xpos[g], data.geom_xmat[g], model.geom_size[g][:, :2]) for g in geoms.T)
        distance, place, normal = jax.vmap(capsule_cylinder)(*first, *second)
        return distance, place, jax.vmap(make_frame)(normal)

    return _with_contacts(collide, 1)


def _with_contacts(collider: Any, number: int) -> Collider:
    collider.ncon = number
    return collider


@contextlib.contextmanager
def in_mjx() -> Iterator[None]:
    """Context manager: models made and steps traced inside use these contacts instead of MJX's."""
    from mujoco.mjx._src import collision_driver, math
    from mujoco.mjx._src.types import GeomType

    table = collision_driver._COLLISION_FUNC
    kept = dict(table)
    kept_points = math.closest_segment_point, math.closest_segment_to_segment_points
    for kinds, ours in (
        ((GeomType.PLANE, GeomType.CAPSULE), _of_plane_and_capsule),
        ((GeomType.CAPSULE, GeomType.CYLINDER), _of_capsule_and_cylinder),
    ):
        table[kinds] = ours(kept[kinds])
    math.closest_segment_point, math.closest_segment_to_segment_points = nearest_on_segment, nearest_of_segments
    try:
        yield
    finally:
        table.update(kept)
        math.closest_segment_point, math.closest_segment_to_segment_points = kept_points
