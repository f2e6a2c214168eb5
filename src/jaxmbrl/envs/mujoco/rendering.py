"""Pictures of tasks that have a MuJoCo model.

MuJoCo chooses its graphics library once, when it is imported, and a broken one may end the process or hang. So frames are
drawn in a process of their own, `draw.py`: by the library that the variable MUJOCO_GL names, else by the first of
`RENDERERS` that works.
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
"""What a frame may take, the first one with the start of its process."""


class NoPicture(UserError):
    """Nothing can be drawn: the task has no MuJoCo model, or the machine no renderer."""


class Scene(NamedTuple):
    """What there is to draw of a task."""

    model: Any
    """`mujoco.MjModel`."""
    dt: float
    """Seconds of a control step."""


def scene(task: Task) -> Scene:
    """What there is to draw of `task`: its `env.mj_model` at the positions `State.pipeline_state.qpos`, every `env.dt`
    seconds, with action repeat or without. Raises NoPicture where one of the three is missing."""
    model, dt = (getattr(unrepeated(task.env), name, None) for name in ("mj_model", "dt"))
    if model is None or dt is None:
        raise NoPicture(f"no picture of {task.name}: it has no MuJoCo model")
    try:
        shape = jax.eval_shape(lambda: positions(task.world.reset(jax.random.key(0)))).shape
    except (AttributeError, TypeError, IndexError):
        shape = None
    if shape != (model.nq,):
        raise NoPicture(f"no picture of {task.name}: its states do not hold the model's positions, pipeline_state.qpos")
    return Scene(model, float(dt) * task.action_repeat)


def positions(carry: Carry) -> Float[Array, "nq"]:
    """The positions (m, rad) in the carry of a task's World."""
    # (State, steps), in as many more tuples as actions are repeated in one another.
    while isinstance(carry, tuple):
        carry = carry[0]
    return carry.pipeline_state.qpos


class Drawer:
    """Draws a MuJoCo model; to be closed. Raises NoPicture where no renderer works."""

    def __init__(self, model: Any, width: int, height: int) -> None:
        import mujoco

        self._shape = (height, width, 3)
        self._folder = tempfile.TemporaryDirectory(prefix="jaxmbrl-")
        self._process: subprocess.Popen[bytes] | None = None
        file = Path(self._folder.name) / "model.mjb"
        mujoco.mj_saveModel(model, str(file), None)
        asked = os.environ.get("MUJOCO_GL")
        for name in (asked,) if asked else RENDERERS:
            self._start(file, name)
            try:
                self.frame(model.qpos0)
            except NoPicture:
                self._stop()
            else:
                return
        self.close()
        tried = f"MUJOCO_GL={asked} does not work" if asked else f"none of {', '.join(RENDERERS)} works"
        raise NoPicture(f"no picture: {tried} on this machine; install EGL or OSMesa, and name it in MUJOCO_GL")

    def _start(self, file: Path, renderer: str) -> None:
        height, width, _ = self._shape
        # MuJoCo may leave a log in the working folder.
        self._process = subprocess.Popen(
            [sys.executable, "-P", draw.__file__, str(file), str(width), str(height)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=self._folder.name,
            env=os.environ | {"MUJOCO_GL": renderer},
        )

    def frame(self, qpos: Float[np.ndarray, "nq"]) -> UInt8[np.ndarray, "H W 3"]:
        """The picture of the model at positions (m, rad). Raises NoPicture where the renderer fails or takes a minute."""
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
        """End the process; what it says while ending is of no interest, since all its frames are here."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def close(self) -> None:
        """End the process and remove its files; again, it does nothing."""
        self._stop()
        self._folder.cleanup()

    def __enter__(self) -> Drawer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
