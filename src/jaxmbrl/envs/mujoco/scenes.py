"""Scenes of MuJoCo models (`envs.drawing.scene`): spheres, capsules and cylinders in parallel projection, and the floor.

Gymnasium's models consist of these. A cylinder is shown as the capsule inside of it, boxes and meshes not at all.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxmbrl.envs.drawing.canvas import BODY, FORCE, GOAL, INK, ROD, TRACK
from jaxmbrl.envs.drawing.scene import Ground, Rods, Scene, Shape, disc

Vector = tuple[float, float, float]
PALETTE = (BODY, ROD, GOAL, FORCE, INK, (128, 96, 160))
"""Colours of the bodies in turn, so that two legs differ."""
FLOOR = (226, 226, 220)
PLANE, SPHERE, CAPSULE, CYLINDER = 0, 2, 3, 5
"""Members of `mujoco.mjtGeom`."""
MARKS = 3
"""Marks on the floor to each side of the middle; they are 1 m apart and show the motion over the floor."""


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
    follows: int = 0
    """Number of the first positions of the model, x or x and y of its root, that are added to the centre. With more than 0
    the floor is shown."""


ABOVE = (0.0, 1.0, 0.0)
"""`Camera.up` of a view from above."""


def oblique(width: float, centre: Vector, azimuth: float, elevation: float, follows: int = 0) -> Camera:
    """A camera that looks in the direction `azimuth` (degrees from x to y), down by `elevation` (degrees)."""
    turn, down = math.radians(azimuth), math.radians(elevation)
    up = (math.sin(down) * math.cos(turn), math.sin(down) * math.sin(turn), math.cos(down))
    return Camera(width, centre, (math.sin(turn), -math.cos(turn), 0.0), up, follows)


def model_scene(
    model: Any, camera: Camera, root: Float[Array, "nq"], places: Float[Array, "G 3"], turns: Float[Array, "G 3 3"]
) -> Scene:
    """The scene of a MuJoCo model whose geoms are at `places` (m), turned by the matrices `turns`. `root` are the positions
    of the model, of which the camera follows the first."""
    shown = np.flatnonzero(np.isin(model.geom_type, (SPHERE, CAPSULE, CYLINDER)))
    kind, radius, half = model.geom_type[shown], model.geom_size[shown, 0], model.geom_size[shown, 1]
    half = np.select([kind == SPHERE, kind == CYLINDER], [0.0, np.maximum(half - radius, 0.0)], half)
    axes = jnp.array([camera.right, camera.up, np.cross(camera.right, camera.up)], jnp.float32)
    moved = jnp.zeros(3).at[: camera.follows].set(root[: camera.follows])

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
    middle = jnp.array(camera.centre) + moved
    floor = _floor(camera, middle, seen) if camera.follows else ()
    return Scene((*floor, *rods), camera.width, seen(middle)[:2])


def _floor(camera: Camera, middle: Float[Array, "3"], seen: Callable[[Array], Array]) -> tuple[Shape, ...]:
    """The floor at z = 0, with marks."""
    count, aside = jnp.arange(-MARKS, MARKS + 1.0), camera.up[2] == 1.0
    across, along = jnp.meshgrid(jnp.round(middle[0]) + count, jnp.zeros(1) if aside else jnp.round(middle[1]) + count)
    below = jnp.full(across.shape, -0.06 * camera.width if aside else 0.0)
    marks = disc(seen(jnp.stack([across, along, below], axis=-1))[..., :2], 0.025 * camera.width, TRACK)
    return (Ground(jnp.zeros_like, FLOOR), marks) if aside else (marks,)
