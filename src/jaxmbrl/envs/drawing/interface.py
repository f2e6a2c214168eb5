"""The interface of pictures: what of a task is shown, and a drawer of it."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Shaped, UInt8

from jaxmbrl.core.config import UserError
from jaxmbrl.core.types import Carry, PyTree
from jaxmbrl.envs.observed import Observed

STEP_SECONDS = 0.1
"""Seconds that a step is shown if its environment does not give `dt`."""


class NoPicture(UserError):
    """Nothing can be drawn: the task has no drawing, its drawing fails, or the machine has no renderer."""


class Drawer(Protocol):
    """Draws the states of one task. It is a context manager, which closes it."""

    def frame(self, shown: PyTree, action: Shaped[np.ndarray, "..."] | None = None) -> UInt8[np.ndarray, "H W 3"]:
        """The picture of what is `shown`. `action` is that of the step which led to it; None at the start of an episode.
        Raises NoPicture if it cannot be drawn."""

    def close(self) -> None:
        """Release its resources. A second call does nothing."""

    def __enter__(self) -> Drawer: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Drawing(NamedTuple):
    """How a task is drawn."""

    dt: float
    """Seconds of a step."""
    shown: Callable[[Carry], PyTree]
    """The part of a carry of the task's World that a picture shows. It may be called inside a compiled program."""
    finite: Callable[[PyTree], Bool[Array, ""]]
    """Whether what is shown can be drawn, because it is finite. It may be called inside a compiled program."""
    drawer: Callable[[int, int], Drawer]
    """Creates a drawer. A renderer makes pictures of the given width and height in pixels; the `draw` method of an
    environment chooses its own. Raises NoPicture if there is no renderer."""


def state_of(carry: Carry) -> Any:
    """The environment's state in the carry of a task's World."""
    # The carry is (State, steps), nested in one more tuple for each action repeat. A state may be a NamedTuple.
    while isinstance(carry, Observed) or (type(carry) is tuple and carry):
        carry = carry[0]
    return carry


def on_host(tree: PyTree) -> PyTree:
    """The tree with NumPy arrays. Random keys stay as they are, because NumPy has none."""

    def copied(leaf: Any) -> Any:
        return leaf if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else np.asarray(leaf)

    return jax.tree.map(copied, tree)
