"""Scenes of MuJoCo models (`envs.drawing.scene`): spheres, capsules and cylinders in parallel projection, and the floor.

Gymnasium's models consist of these. A cylinder is shown as the capsule inside of it, boxes and meshes not at all.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxmbrl.envs.drawing.canvas import BODY, FORCE, GOAL, INK, ROD, TRACK
from jaxmbrl.envs.drawing.scene import Dots, Ground, Rods, Scene, Shape

Vector = tuple[float, float, float]
PALETTE = (BODY, ROD, GOAL, FORCE, INK, (128, 96, 160))
"""Colours of the bodies in turn, so that two legs differ."""
FLOOR = (226, 226, 220)
PLANE, SPHERE, CAPSULE, CYLINDER = 0, 2, 3, 5
"""Members of `mujoco.mjtGeom`."""


class Camera(NamedTuple):
    """A parallel projection."""

    width: float
    """Width of the picture in m."""
    centre: Vector
    """The point in the middle of the picture, in m."""
    right: Vector = (1.0, 0.0, 0.0)
    """Unit vector to the right in the picture."""
    up: Vector = (0.0, 0.0, 1.0)
    """Unit vector upwards in the picture."""
    follows: tuple[int, ...] = ()
    """Which of the model's positions are x, or x and y, of its root: they are added to the centre. If there are any, the
    floor is shown."""


ABOVE = (0.0, 1.0, 0.0)
"""`Camera.up` of a view from above."""


def oblique(width: float, centre: Vector, azimuth: float, elevation: float, follows: tuple[int, ...] = ()) -> Camera:
    """A camera that looks in the direction `azimuth` (degrees from x to y), down by `elevation` (degrees)."""
    turn, down = math.radians(azimuth), math.radians(elevation)
    up = (math.sin(down) * math.cos(turn), math.sin(down) * math.sin(turn), math.cos(down))
    return Camera(width, centre, (math.sin(turn), -math.cos(turn), 0.0), up, follows)


def model_scene(
    model: Any, camera: Camera, root: Float[Array, "nq"], places: Float[Array, "G 3"], turns: Float[Array, "G 3 3"]
) -> Scene:
    """The scene of a MuJoCo model whose geoms are at `places` (m), turned by the matrices `turns`. `root` are the positions
    of the model, some of which the camera follows."""
    shown = np.flatnonzero(np.isin(model.geom_type, (SPHERE, CAPSULE, CYLINDER)))
    kind, radius, half = model.geom_type[shown], model.geom_size[shown, 0], model.geom_size[shown, 1]
    half = np.select([kind == SPHERE, kind == CYLINDER], [0.0, np.maximum(half - radius, 0.0)], half)
    axes = jnp.array([camera.right, camera.up, np.cross(camera.right, camera.up)], jnp.float32)
    moved = jnp.zeros(3).at[: len(camera.follows)].set(root[np.array(camera.follows, int)])

    def seen(points: Float[Array, "*n 3"]) -> Float[Array, "*n 3"]:
        """To the right, up, and towards the viewer."""
        # A sum, because products are imprecise on some accelerators.
        return jnp.sum(points[..., None, :] * axes, axis=-1)

    along = seen(turns[shown, :, 2] * half[:, None])
    at = seen(places[shown])
    colors = np.array([PALETTE[body % len(PALETTE)] for body in model.geom_bodyid[shown]], float)
    # Those nearer to the viewer cover those behind.
    order = jnp.argsort(at[:, 2])
    far_first = [jnp.asarray(x)[order] for x in ((at - along)[:, :2], (at + along)[:, :2], radius, colors)]
    rods = [Rods(*of_geom) for of_geom in zip(*far_first, strict=True)]
    middle = seen(jnp.array(camera.centre) + moved)
    return Scene((*(_floor(camera) if camera.follows else ()), *rods), camera.width, middle[:2])


def _floor(camera: Camera) -> tuple[Shape, ...]:
    """The floor at z = 0, with marks that are 1 m apart and show the motion over it."""
    axes = np.array([camera.right, camera.up])
    along_x, along_y = ((float(x), float(y)) for x, y in axes.T[:2])
    radius = 0.025 * camera.width
    if camera.up[2] == 1.0:
        return Ground(jnp.zeros_like, FLOOR), Dots((0.0, -0.06 * camera.width), (along_x,), radius, TRACK)
    return (Dots((0.0, 0.0), (along_x, along_y), radius, TRACK),)
