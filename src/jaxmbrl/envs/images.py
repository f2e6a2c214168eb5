"""Tasks that are observed as images: the simulator's state is not in the observation.

Images of tasks in JAX are drawn in JAX; the method `scene(state)` of an environment says what they show
(`envs.drawing.scene`). Those of tasks on the host are the pictures that the environment renders. A task with a MuJoCo
model can also be rendered by MuJoCo, to which the compiled program then passes the positions.
"""

from __future__ import annotations

import numbers
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped, UInt8

from jaxmbrl import envs
from jaxmbrl.core.config import UserError
from jaxmbrl.core.spaces import Box
from jaxmbrl.core.types import Action, Carry, HostStep, Key, Task, Transition, World
from jaxmbrl.envs.action_repeat import unrepeated
from jaxmbrl.envs.drawing.interface import state_of
from jaxmbrl.envs.drawing.rendering import model_drawing
from jaxmbrl.envs.drawing.scene import render
from jaxmbrl.envs.observed import Observed, ObservedEnv, observed, plain

SIZE = 64
"""Side of an image in pixels, by default, as in PlaNet and Dreamer."""
LEAST, LARGEST = 8, 512
FORMAT = (
    "a task of images is named pixels/TASK, pixels/32/TASK, pixels/grey/TASK, pixels/32,grey/TASK or pixels/rendered/TASK"
)
RECENT = 1024
"""Rendered pictures that are kept, since a program observes a state more than once: as successor, by the policy, as row."""


def pixels(task: Task | str, size: int = SIZE, grey: bool = False, rendered: bool = False) -> Task:
    """`task`, or the task with this name, whose observation is its picture: uint8 [size, size, 3], or [size, size, 1] in
    grey.

    The picture shows no velocities: `envs.stacked` shows the last few pictures, and a method with a memory remembers them.
    Rewards, ends and the carry of the world are those of the plain task, so that a planner in the true simulator has its
    full state. The known functions of the observation (`reward`, `terminated`, `features`) are left out. If actions are
    repeated, only the last inner step is drawn.

    A task on the host, such as `gymnasium/Hopper-v5`, renders the pictures of its videos, which are then reduced to
    `size` x `size` pixels; images that it observes anyway are reduced themselves.

    With `rendered`, a task in JAX with a MuJoCo model is rendered by MuJoCo: the compiled program calls a process on the
    host, which draws the pictures of one call one after the other, of tasks of DeepMind Control through dm_control's camera
    0. A state that is not finite is black.

    By name, `pixels/TASK`, `pixels/32/TASK` of another size, `pixels/32,grey/TASK` in grey, `pixels/64,rendered/TASK`.

    Raises UserError if the environment has no method `scene(state)`, or on the host makes no pictures, if its observation
    was changed before (draw first, then stack), or if `size` is not a whole number from 8 to 512. With `rendered`, if the
    task has no MuJoCo model, or NoPicture if no renderer of MuJoCo works on this machine.

    >>> from jaxmbrl import envs
    >>> envs.pixels("pendulum").observation.shape
    (64, 64, 3)
    >>> envs.make("stacked/3/pixels/32,grey/pendulum").observation.shape
    (32, 32, 3)
    """
    if isinstance(size, bool) or not isinstance(size, numbers.Integral) or not LEAST <= size <= LARGEST:
        raise UserError(f"size must be a whole number of pixels from {LEAST} to {LARGEST}, got {size!r:.60}")
    task = envs.make(task) if isinstance(task, str) else task
    if isinstance(unrepeated(task.env), ObservedEnv):
        raise UserError(
            f"pixels needs a task with its own observation, and that of '{task.name}' was changed: draw first, as in "
            "stacked/3/pixels/pendulum"
        )
    words = {"grey": grey, "rendered": rendered and task.host is None}
    which = ",".join([*([str(int(size))] if size != SIZE else []), *(word for word, given in words.items() if given)])
    name = f"pixels/{which}/{task.name}" if which else f"pixels/{task.name}"
    if task.host is not None:
        return _on_host(task, name, int(size), grey)
    if rendered:
        return _rendered(task, name, int(size), grey)
    env: Any = plain(task.env)
    if not callable(getattr(env, "scene", None)):
        raise UserError(
            f"task '{task.name}' cannot be observed as images, because its environment has no method scene(state) "
            "(envs.drawing.scene): give it one, or take another task, such as pendulum"
        )
    size, space = int(size), _space(int(size), grey)

    def draw(state: Any) -> UInt8[Array, "size size C"]:
        return render(env.scene(state), size, grey)

    return _drawn(task, name, space, draw)


def _rendered(task: Task, name: str, size: int, grey: bool) -> Task:
    """`task`, which is in JAX, as `name` with images by MuJoCo."""
    drawing = model_drawing(task)
    if drawing is None:
        raise UserError(
            f"task '{task.name}' cannot be rendered, because its environment has no MuJoCo model: without rendered, its "
            f"images are drawn in JAX, as in pixels/{task.name}"
        )
    # Started here, so that a missing renderer is reported when the task is made, and not from inside of a program.
    drawer = drawing.drawer(size, size)
    space, lock = _space(size, grey), threading.Lock()
    images: OrderedDict[bytes, UInt8[np.ndarray, "size size C"]] = OrderedDict()

    def image(positions: Float[np.ndarray, "nq"]) -> UInt8[np.ndarray, "size size C"]:
        known = positions.tobytes()
        if known not in images:
            finite = np.isfinite(positions).all()
            images[known] = reduce(drawer.frame(positions), size, grey) if finite else np.zeros(space.shape, np.uint8)
            if len(images) > RECENT:
                images.popitem(last=False)
        return images[known]

    def several(positions: Float[Array, "*B nq"]) -> UInt8[np.ndarray, "*B size size C"]:
        rows = np.asarray(positions)
        with lock:
            seen = [image(row) for row in rows.reshape(-1, rows.shape[-1])]
        return np.stack(seen).reshape(*rows.shape[:-1], *space.shape)

    result = jax.ShapeDtypeStruct(space.shape, jnp.uint8)

    def draw(state: Any) -> UInt8[Array, "size size C"]:
        return jax.pure_callback(several, result, drawing.shown(state), vmap_method="expand_dims")

    weakref.finalize(draw, drawer.close)
    return _drawn(task, name, space, draw)


def _drawn(task: Task, name: str, space: Box, draw: Callable[[Any], UInt8[Array, "H W C"]]) -> Task:
    """`task` as `name`, whose observation in `space` is `draw(state of its environment)`."""
    inner, again = task.world, task.world.next_episode

    def observe(state: Observed) -> UInt8[Array, "H W C"]:
        return draw(state_of(state))

    def step(state: Observed, action: Action, key: Key) -> tuple[Observed, Transition]:
        carry, row = inner.step(state.carry, action, key)
        after = _unseen(carry)
        return after, row._replace(observation=observe(state), next_observation=observe(after))

    return _unknown(task)._replace(
        name=name,
        env=ObservedEnv(task.env, space, draw, lambda shown, state: draw(state)),
        world=World(
            reset=lambda key: _unseen(inner.reset(key)),
            start=lambda origin, key: _unseen(inner.start(origin.pipeline_state, key)),
            observe=observe,
            step=step,
            next_episode=again and (lambda state, key: _unseen(again(state.carry, key))),
        ),
        observation=space,
    )


def _space(size: int, grey: bool) -> Box:
    return Box((size, size, 1 if grey else 3), 0.0, 255.0, "uint8")


def _on_host(task: Task, name: str, size: int, grey: bool) -> Task:
    """`task`, which is on the host, as `name` with reduced images: those that it observes, or else renders."""
    space, image = _space(size, grey), task.observation

    def reduced(image: UInt8[np.ndarray, "H W C"]) -> UInt8[np.ndarray, "size size D"]:
        return reduce(image, size, grey)

    if isinstance(image, Box) and image.is_image and image.shape[-1] in (1, 3):
        return observed(_unknown(task), name, space, reduced, lambda shown, seen: reduced(seen))
    filmed = task.filmed
    if filmed is None:
        raise UserError(
            f"task '{task.name}' cannot be observed as images, because its environments make no pictures: give "
            "envs.from_gymnasium a function make_env(render_mode=None)"
        )
    return _unknown(task)._replace(
        name=name,
        env=ObservedEnv(task.env, space, lambda state: state, lambda shown, state: state),
        observation=space,
        host=lambda: RenderedHost(filmed(), reduced),
        filmed=lambda: RenderedHost(filmed(), reduced),
    )


def _unknown(task: Task) -> Task:
    """`task` without its known functions of the observation."""
    return task._replace(reward=None, terminated=None, features=None, saturating=None)


def reduce(image: UInt8[np.ndarray, "H W C"], size: int, grey: bool) -> UInt8[np.ndarray, "size size D"]:
    """An image of C = 1 or 3 channels as one of `size` x `size` pixels, each the mean of the area that it covers: D = 1 in
    grey, else 3. The sides are scaled apart, so that all of the image is seen."""
    # Here, because importing a task must not import Pillow.
    from PIL import Image

    picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).convert("L" if grey else "RGB")
    return np.asarray(picture.resize((size, size), Image.Resampling.BOX)).reshape(size, size, -1)


class RenderedHost:
    """An environment on the host whose observations are `reduced(render())`."""

    def __init__(self, host: Any, reduced: Callable[[UInt8[np.ndarray, "H W 3"]], UInt8[np.ndarray, "h w C"]]) -> None:
        self._host, self._reduced = host, reduced

    def reset(self, seed: int) -> UInt8[np.ndarray, "h w C"]:
        """Start an episode; returns its first image."""
        self._host.reset(seed)
        return self._reduced(self.render())

    def step(self, action: Shaped[np.ndarray, "..."]) -> HostStep:
        """Take one step."""
        result = self._host.step(action)
        return result._replace(observation=self._reduced(self.render()))

    def render(self) -> UInt8[np.ndarray, "H W 3"]:
        """The whole picture. Raises NoPicture if the environment or the machine cannot render it."""
        return self._host.render()

    @property
    def dt(self) -> float | None:
        """Seconds of a step, if the environment knows them."""
        return getattr(self._host, "dt", None)

    def close(self) -> None:
        """Close the environment."""
        self._host.close()


def _unseen(carry: Carry) -> Observed:
    """The carry of a world whose images are drawn when they are observed. A program that does not use an image does not
    draw it."""
    return Observed(carry, ())


def pixels_by_name(name: str) -> Task:
    """The task `pixels/NAME`."""
    which, _, rest = name.partition("/")
    words = which.split(",")
    sizes = [word for word in words if word.isdecimal()]
    if {*words} <= {"grey", "rendered", *sizes} and len(words) == len({*words}) and len(sizes) <= 1:
        if not rest:
            raise UserError(f"{FORMAT}, got 'pixels/{name}'")
        return pixels(rest, int(sizes[0]) if sizes else SIZE, "grey" in words, "rendered" in words)
    return pixels(name)
