"""Drawings that an environment gives itself, by a method `draw(state, action) -> uint8 [H, W, 3]`."""

from __future__ import annotations

from types import TracebackType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Shaped, UInt8

from jaxmbrl.core.config import UserError
from jaxmbrl.core.types import PyTree, Task
from jaxmbrl.envs.drawing.interface import STEP_SECONDS, Drawing, NoPicture, state_of
from jaxmbrl.envs.observed import plain


def own_drawing(task: Task) -> Drawing | None:
    """The drawing by the `draw` method of the task's environment; None if it has none.

    `draw(state, action)` is given the environment's `State`, with NumPy arrays as leaves, and the action of the step that
    led to it, None at the start of an episode. Every `env.dt` seconds there is a step; without `dt` a step is shown for 0.1
    s. Raises NoPicture if `dt` is not a positive number.
    """
    env: Any = plain(task.env)
    if not callable(getattr(env, "draw", None)):
        return None
    return Drawing(step_seconds(task, getattr(env, "dt", None)), state_of, _finite, lambda width, height: OwnDrawer(task))


def step_seconds(task: Task, dt: Any) -> float:
    """Seconds of a step of `task`, in which an action is applied for `dt` seconds, by default 0.1, as often as the task
    repeats it. Raises NoPicture if `dt` is not a positive number."""
    if dt is None:
        return STEP_SECONDS * task.action_repeat
    try:
        seconds = float(dt)
    except (TypeError, ValueError):
        seconds = np.nan
    if not 0 < seconds < np.inf:
        raise NoPicture(f"no picture of {task.name}: dt of its environment must be the seconds of a step, got {dt!r:.40}")
    return seconds * task.action_repeat


def _finite(state: Any) -> Bool[Array, ""]:
    """Whether the state's observation is finite. Other parts of a state may be infinite or NaN on purpose."""
    leaves = [leaf for leaf in jax.tree.leaves(getattr(state, "obs", ())) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return jnp.all(jnp.asarray([True, *(jnp.isfinite(leaf).all() for leaf in leaves)]))


class OwnDrawer:
    """Calls `env.draw` and checks what it returns."""

    def __init__(self, task: Task) -> None:
        self._name, self._env = task.name, plain(task.env)
        self._shape: tuple[int, ...] | None = None

    def frame(self, shown: PyTree, action: Shaped[np.ndarray, "..."] | None = None) -> UInt8[np.ndarray, "H W 3"]:
        """The picture of the state `shown`. Raises NoPicture if `draw` fails, or if its result is not uint8 [H, W, 3] of
        one size."""
        try:
            picture = self._env.draw(shown, action)
        except UserError:
            raise
        except Exception as error:
            message = " ".join(str(error).split()) or "no message"
            raise NoPicture(f"no picture of {self._name}: its draw fails with {type(error).__name__}: {message}") from error
        picture, self._shape = checked(self._name, "draw", picture, self._shape)
        return picture

    def close(self) -> None:
        """Nothing is held."""

    def __enter__(self) -> OwnDrawer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def checked(
    name: str, method: str, picture: Any, shape: tuple[int, ...] | None
) -> tuple[UInt8[np.ndarray, "H W 3"], tuple[int, ...]]:
    """(`picture` as an array, its shape). `shape` is that of the pictures before; None for the first. Raises NoPicture if
    it is not uint8 [H, W, 3] or not of that shape."""
    array = np.asarray(picture)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or not array.size:
        raise NoPicture(
            f"no picture of {name}: {method} of its environment must return uint8 [height, width, 3], got "
            f"{array.dtype} {list(array.shape)}"
        )
    if shape not in (None, array.shape):
        raise NoPicture(
            f"no picture of {name}: {method} of its environment must return pictures of one size, got {list(array.shape)} "
            f"after {list(shape or ())}"
        )
    return array, array.shape
