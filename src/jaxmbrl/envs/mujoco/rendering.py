"""Rendering of tasks that have a MuJoCo model.

MuJoCo chooses its graphics library once, when it is imported, and a broken library may crash the process or hang. So frames
are drawn in a separate process, `draw.py`. It uses the library that the environment variable MUJOCO_GL names, or else the
first of `RENDERERS` that works.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, UInt8

from jaxmbrl.core.config import UserError
from jaxmbrl.core.types import Carry, Task
from jaxmbrl.envs import draw
from jaxmbrl.envs.action_repeat import unrepeated

RENDERERS = ("egl", "osmesa", "glfw")
SECONDS = 60.0
"""Timeout for a frame; for the first one, it includes the start of the process."""


class NoPicture(UserError):
    """Nothing can be drawn: the task has no MuJoCo model, or the machine has no renderer."""


class Scene(NamedTuple):
    """The MuJoCo model of a task, for drawing."""

    model: Any
    """`mujoco.MjModel`."""
    dt: float
    """Seconds of a control step."""


def scene(task: Task) -> Scene:
    """The scene of `task`: its `env.mj_model`, to be drawn at the positions `State.pipeline_state.qpos` every `env.dt`
    seconds. Action repeat is taken into account. Raises NoPicture if one of the three is missing."""
    model, dt = (getattr(unrepeated(task.env), name, None) for name in ("mj_model", "dt"))
    if model is None or dt is None:
        raise NoPicture(f"no picture of {task.name}: it has no MuJoCo model")
    try:
        shape = jax.eval_shape(lambda: positions(task.world.reset(jax.random.key(0)))).shape
    except (AttributeError, TypeError, IndexError):
        shape = None
    if shape != (model.nq,):
        raise NoPicture(f"no picture of {task.name}: its states have no positions of the model, pipeline_state.qpos")
    return Scene(model, float(dt) * task.action_repeat)


def positions(carry: Carry) -> Float[Array, "nq"]:
    """The positions (m, rad) in the carry of a task's World."""
    # The carry is (State, steps), nested in one more tuple for each action repeat.
    while isinstance(carry, tuple):
        carry = carry[0]
    return carry.pipeline_state.qpos


class Drawer:
    """Draws a MuJoCo model; close it after use. Raises NoPicture if no renderer works."""

    def __init__(self, model: Any, width: int, height: int) -> None:
        import mujoco

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
            [sys.executable, "-P", draw.__file__, str(file), str(width), str(height)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=self._folder.name,
            env=os.environ | {"MUJOCO_GL": renderer},
        )

    def frame(self, qpos: Float[np.ndarray, "nq"]) -> UInt8[np.ndarray, "H W 3"]:
        """The picture of the model at positions (m, rad). Raises NoPicture if the renderer fails or takes a minute."""
        if self._process is None:
            raise NoPicture("no picture: the drawer is closed")
        assert self._process.stdin is not None and self._process.stdout is not None
        clock = threading.Timer(SECONDS, self._process.kill)
        clock.start()
        try:
            self._process.stdin.write(np.asarray(qpos, np.float64).tobytes())
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

    def __enter__(self) -> Drawer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
