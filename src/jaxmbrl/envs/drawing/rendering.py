"""Rendering of tasks that have a MuJoCo model: those on MJX, of Brax and of MuJoCo Playground, and a user's own.

MuJoCo chooses its graphics library once, when it is imported, and a broken library may crash the process or hang. So frames
are drawn in a separate process, `rendering_process.py`. It uses the library that the environment variable MUJOCO_GL names,
or else the first of `RENDERERS` that works.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Shaped, UInt8

from jaxmbrl.core.types import Carry, Task
from jaxmbrl.envs.drawing import rendering_process
from jaxmbrl.envs.drawing.interface import Drawing, NoPicture, state_of
from jaxmbrl.envs.drawing.own import step_seconds
from jaxmbrl.envs.observed import plain

RENDERERS = ("egl", "osmesa", "glfw")
SECONDS = 60.0
"""Timeout for a frame; for the first one, it includes the start of the process."""


def model_drawing(task: Task) -> Drawing | None:
    """The drawing of the task's MuJoCo model (`env.mj_model`, or of a Brax environment `env.sys.mj_model`) at the positions
    in its states; None if it has no model.

    Positions are `qpos`, or `q` of Brax's own simulators, of `State.pipeline_state` or of Playground's `State.data`. Raises
    NoPicture if the states have no positions of the model, or if `env.dt` is not a positive number.
    """
    env: Any = plain(task.env)
    model = getattr(env, "mj_model", getattr(getattr(env, "sys", None), "mj_model", None))
    if model is None:
        return None
    try:
        shape = jax.eval_shape(lambda: positions(task.world.reset(jax.random.key(0)))).shape
    except (AttributeError, TypeError, IndexError):
        shape = None
    if shape != (model.nq,):
        raise NoPicture(f"no picture of {task.name}: its states have no positions of the model, pipeline_state.qpos")
    return Drawing(
        dt=step_seconds(task, getattr(env, "dt", None)),
        shown=positions,
        finite=_finite,
        drawer=lambda width, height: ModelDrawer(model, width, height, getattr(env, "rendered_by", -1)),
    )


def positions(carry: Carry) -> Float[Array, "nq"]:
    """The positions (m, rad) in the carry of a task's World."""
    state = state_of(carry)
    simulation = state.pipeline_state if hasattr(state, "pipeline_state") else state.data
    return simulation.qpos if hasattr(simulation, "qpos") else simulation.q


def _finite(positions: Float[Array, "nq"]) -> Bool[Array, ""]:
    return jnp.all(jnp.isfinite(positions))


class ModelDrawer:
    """Draws a MuJoCo model; close it after use. Raises NoPicture if no renderer works.

    `camera` is the index of a camera of the model; of a negative one, `rendering_process.camera` chooses.
    """

    def __init__(self, model: Any, width: int, height: int, camera: int = -1) -> None:
        import mujoco

        self._camera = camera
        self._shape = (height, width, 3)
        self._folder = tempfile.TemporaryDirectory(prefix="jaxmbrl-")
        self._process: subprocess.Popen[bytes] | None = None
        file = Path(self._folder.name) / "model.mjb"
        mujoco.mj_saveModel(model, str(file), None)
        chosen = os.environ.get("MUJOCO_GL")
        for name in (chosen,) if chosen else RENDERERS:
            self._start(file, name)
            try:
                self.frame(model.qpos0)
            except NoPicture:
                self._stop()
            else:
                return
        self.close()
        tried = f"MUJOCO_GL={chosen} does not work" if chosen else f"none of {', '.join(RENDERERS)} works"
        raise NoPicture(f"no picture: {tried} on this machine; install EGL or OSMesa, and name it in MUJOCO_GL")

    def _start(self, file: Path, renderer: str) -> None:
        height, width, _ = self._shape
        # Run in the temporary folder, because MuJoCo may write a log file to the working folder.
        self._process = subprocess.Popen(
            [sys.executable, "-P", rendering_process.__file__, str(file), *map(str, (width, height, self._camera))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=self._folder.name,
            env=os.environ | {"MUJOCO_GL": renderer},
        )

    def frame(
        self, shown: Float[np.ndarray, "nq"], action: Shaped[np.ndarray, "..."] | None = None
    ) -> UInt8[np.ndarray, "H W 3"]:
        """The picture of the model at the positions `shown` (m, rad). Raises NoPicture if the renderer fails or takes a
        minute."""
        if self._process is None:
            raise NoPicture("no picture: the drawer is closed")
        assert self._process.stdin is not None and self._process.stdout is not None
        clock = threading.Timer(SECONDS, self._process.kill)
        clock.start()
        try:
            self._process.stdin.write(np.asarray(shown, np.float64).tobytes())
            self._process.stdin.flush()
            seen = self._process.stdout.read(int(np.prod(self._shape)))
        except BrokenPipeError:
            seen = b""
        finally:
            clock.cancel()
        if len(seen) < np.prod(self._shape):
            raise NoPicture("no picture: the renderer failed")
        return np.frombuffer(seen, np.uint8).reshape(self._shape).copy()

    def _stop(self) -> None:
        """End the process. Its remaining output is ignored, because all frames have been received."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def close(self) -> None:
        """End the process and remove its files. A second call does nothing."""
        self._stop()
        self._folder.cleanup()

    def __enter__(self) -> ModelDrawer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
