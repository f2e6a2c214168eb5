"""The process that `rendering.ModelDrawer` starts. It renders frames of a MuJoCo model at given positions.

In a loop, until the input ends, it reads nq float64 numbers from standard input and writes a frame of height x width x 3
bytes to standard output. It is run as a file, so that only MuJoCo is imported.
"""

from __future__ import annotations

import os
import sys
from typing import Any

ELEVATION, DOWN = -15.0, -45.0  # degrees


def camera(mujoco: Any, model: Any, fixed: int = -1) -> Any:
    """The camera for the frames (`mujoco.MjvCamera`): that with the index `fixed` in the model, if it is not negative.

    Otherwise it is the model's first camera that follows a body. Without one, and if the first joint lets its body slide
    or float in the world, it is a camera at the side that follows this body, 1.5 times the model's extent away. Otherwise
    it looks down on everything except planes.
    """
    # MuJoCo's enum members do not compare equal to NumPy numbers.
    following = (int(mujoco.mjtCamLight.mjCAMLIGHT_TRACK), int(mujoco.mjtCamLight.mjCAMLIGHT_TRACKCOM))
    found = mujoco.MjvCamera()
    for index in range(model.ncam):
        if index == fixed or (fixed < 0 and model.cam_mode[index] in following):
            found.type, found.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED, index
            return found
    mujoco.mjv_defaultFreeCamera(model, found)
    found.azimuth, found.elevation = 90.0, ELEVATION
    moving = (int(mujoco.mjtJoint.mjJNT_FREE), int(mujoco.mjtJoint.mjJNT_SLIDE))
    if model.njnt and model.jnt_type[0] in moving and model.body_parentid[model.jnt_bodyid[0]] == 0:
        found.type, found.trackbodyid = mujoco.mjtCamera.mjCAMERA_TRACKING, model.jnt_bodyid[0]
        return found
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    solid = model.geom_type != int(mujoco.mjtGeom.mjGEOM_PLANE)
    if solid.any():
        places, radii = data.geom_xpos[solid], model.geom_rbound[solid][:, None]
        low, high = (places - radii).min(axis=0), (places + radii).max(axis=0)
        found.lookat[:], found.distance = (low + high) / 2, max(high - low)
        found.elevation = DOWN
    return found


def main(file: str, width: int, height: int, fixed: int) -> None:
    """Draw frames of the model in `file`, in MuJoCo's binary format, until the input ends. `fixed` is as in `camera`."""
    # Output that a library prints must not be read as a frame.
    frames = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)

    import mujoco
    import numpy as np

    model = mujoco.MjModel.from_binary_path(file)
    data = mujoco.MjData(model)
    with mujoco.Renderer(model, height, width) as renderer:
        seen = camera(mujoco, model, fixed)
        size = 8 * model.nq
        while len(received := sys.stdin.buffer.read(size)) == size:
            data.qpos[:] = np.frombuffer(received)
            mujoco.mj_forward(model, data)
            renderer.update_scene(data, seen)
            frames.write(renderer.render().tobytes())
            frames.flush()


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:5]))
