"""Videos: an evaluation episode as a GIF in real time."""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped, UInt8

from jaxmbrl.core import hints
from jaxmbrl.core.config import UserError
from jaxmbrl.core.places import expanded
from jaxmbrl.core.types import (
    Action,
    Algorithm,
    Clock,
    HostStep,
    Key,
    Memory,
    Observation,
    Policy,
    PyTree,
    Task,
    Transition,
)
from jaxmbrl.envs.drawing import NoPicture, drawing, on_host
from jaxmbrl.envs.drawing.own import step_seconds
from jaxmbrl.rollout import Return, episode_return, rollout
from jaxmbrl.training import evaluation, hosted, loop, runner
from jaxmbrl.training.run_folder import write_file
from jaxmbrl.training.session import Result

WIDTH, HEIGHT = 320, 240
"""Size of a rendered frame, in pixels. Drawings of environments choose their own."""
FRAME_SECONDS = 0.04
MOST_FRAMES = 300
COLORS = 64


class Recording(NamedTuple):
    """A complete episode of T - 1 steps."""

    shown: PyTree
    """[T, ...] what pictures show, at the start and after each step."""
    actions: Shaped[np.ndarray, "T-1 ..."]
    finite: Bool[np.ndarray, "T"]
    """Whether it can be drawn."""
    total: float
    """Undiscounted return."""


class Film(NamedTuple):
    """Pictures of an episode."""

    pictures: list[UInt8[np.ndarray, "H W 3"]]
    durations: Int[np.ndarray, "F"]
    """Milliseconds for which each picture is shown."""
    seconds: float
    """Length of the episode."""
    total: float
    """Undiscounted return."""


def record(algorithm: Algorithm, task: Task, state: PyTree, index: int = 0, clock: Clock | None = None) -> Recording:
    """Record episode `index` of `evaluation.evaluate` under the policy of `state` (of one seed) at `clock`, by default the
    clock at the start of a run. Raises NoPicture if the task has no drawing.

    The start state and the random keys are those of the evaluation. The episode is computed alone and not in a batch, so
    numbers may round differently. Over a long episode of a robot this can lead to another trajectory and return.
    """
    drawn = drawing(task)

    def play(state: PyTree) -> tuple[PyTree, PyTree, Bool[Array, "L"], Int[Array, ""], Float[Array, ""]]:
        world, policy, start, key = evaluation.begin(algorithm, task, state, jnp.asarray(index, jnp.int32), clock)

        def act(memory: Memory, observed: tuple[Observation, PyTree], key: Key) -> tuple[Action, PyTree, Memory]:
            observation, shown = observed
            action, _, memory = policy.act(memory, observation, key)
            return action, shown, memory

        seen = world._replace(observe=lambda carry: (world.observe(carry), drawn.shown(carry)))
        (carry, _), rows = rollout(seen, Policy(policy.init, act), start, key, task.episode_length)
        ended = rows.terminated | rows.truncated
        steps = jnp.where(jnp.any(ended), jnp.argmax(ended) + 1, task.episode_length)

        def earn(acc: Return, row: Transition) -> tuple[Return, None]:
            return episode_return(acc, row, steps), None

        total = jax.lax.scan(earn, Return.zero(), rows)[0].total
        shown = jax.tree.map(lambda x, last: jnp.concatenate([x, last[None]]), rows.extras, drawn.shown(carry))
        return shown, rows.action, jax.vmap(drawn.finite)(shown), steps, total

    shown, actions, finite, steps, total = jax.jit(play)(state)
    length = int(steps) + 1
    shown = jax.tree.map(lambda x: x[:length], on_host(shown))
    return Recording(shown, np.asarray(actions)[: length - 1], np.asarray(finite)[:length], float(total))


def frames(finite: Bool[np.ndarray, "T"], dt: float) -> tuple[Int[np.ndarray, "F"], Int[np.ndarray, "F"]]:
    """(indices of the T states to draw, duration of each frame in ms). The states are `dt` seconds apart; `finite`
    says which can be drawn.

    There are at most `MOST_FRAMES` frames, about `FRAME_SECONDS` apart. They end before the first state that is not finite.
    A GIF counts hundredths of a second, so durations are rounded, without accumulating the error.
    """
    length = len(finite) if finite.all() else int(finite.argmin())
    chosen = np.arange(0, length, stride(dt))[:MOST_FRAMES]
    times = np.append(chosen, chosen[-1:] + stride(dt)) * dt
    return chosen, 10 * np.diff(np.rint(100 * times).astype(int))


def stride(dt: float) -> int:
    """Steps of `dt` seconds between two frames."""
    return max(1, round(FRAME_SECONDS / dt))


def gif(pictures: Sequence[UInt8[np.ndarray, "H W 3"]], durations: Sequence[int]) -> bytes:
    """A looping GIF of pictures, each shown for its duration in ms. All pictures share a palette of 64 colours."""
    from PIL import Image

    # One palette, from a few frames, so that parts at rest do not flicker.
    sampled = np.concatenate([pictures[i] for i in np.linspace(0, len(pictures) - 1, 5).astype(int)])
    palette = Image.fromarray(sampled).quantize(COLORS)
    images = [Image.fromarray(x).quantize(palette=palette, dither=Image.Dither.NONE) for x in pictures]
    file = io.BytesIO()
    images[0].save(file, "GIF", save_all=True, append_images=images[1:], duration=list(durations), loop=0)
    return file.getvalue()


def gif_path(file: str | Path) -> Path:
    """The path of a video. Raises UserError if its name does not end with `.gif`."""
    path = expanded(file)
    if path.suffix.lower() != ".gif":
        raise UserError(
            f"a video is written as a GIF: name it {path.name.removesuffix(path.suffix) or 'film'}.gif, got '{file}'"
        )
    return path


@hints.checked_arguments
def film(run: str | Path | Result, file: str | Path, model: str | None = None, backend: str | None = None) -> str:
    """Write a GIF of the first episode of `runner.evaluate` with the first seed of a run to `file`. Returns a description.

    `run` is a run folder, or the result of `jaxmbrl.train` in memory. `model`, if given, is the model to plan in. With the
    `backend` "gymnasium" the episode runs in the task's Gymnasium counterpart. The name of `file` must end with `.gif`.

    Raises NoPicture if the task has no drawing, its drawing fails, or the machine has no renderer (`envs.drawing`), if
    possible before anything is computed; UserError as `runner.evaluate` does.
    """
    path = gif_path(file)
    program, states, env_steps, _ = runner.trained(run, model)
    clock = loop.clock_at(env_steps)
    if program.task.host is not None or backend == "gymnasium":
        made = film_on_host(program.algorithm, program.task, states, clock)
    else:
        of_seed = jax.tree.map(lambda leaf: leaf[0], states)
        made = film_compiled(program.algorithm, program.task, of_seed, clock)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, gif(made.pictures, made.durations.tolist()))
    shown = min(made.seconds, float(made.durations.sum()) / 1000)
    whole = shown + FRAME_SECONDS >= made.seconds
    seconds = f"all {made.seconds:.1f} s" if whole else f"the first {shown:.1f} of {made.seconds:.1f} s"
    total = f"return {made.total:.2f}" if math.isfinite(made.total) else "its return is not finite"
    return f"{seconds} of the first episode of seed {program.config.seed}, {total}"


def film_compiled(algorithm: Algorithm, task: Task, state: PyTree, clock: Clock) -> Film:
    """The first episode of the evaluation with `state` (of one seed), in the compiled program."""
    drawn = drawing(task)
    with drawn.drawer(WIDTH, HEIGHT) as drawer:
        episode = record(algorithm, task, state, clock=clock)
        chosen, durations = frames(episode.finite, drawn.dt)
        _check_any(task, len(chosen))
        pictures = [
            drawer.frame(jax.tree.map(lambda x, i=i: x[i], episode.shown), episode.actions[i - 1] if i else None)
            for i in chosen
        ]
    return Film(pictures, durations, (len(episode.finite) - 1) * drawn.dt, episode.total)


def film_on_host(algorithm: Algorithm, task: Task, states: PyTree, clock: Clock) -> Film:
    """The first episode of the evaluation with the first seed of `states` [K, ...], of a task that runs on the host or
    in the task's Gymnasium counterpart."""
    stage = evaluation.stage(algorithm, task, 1)
    with contextlib.ExitStack() as closing:
        if task.host is not None:
            if task.filmed is None:
                raise NoPicture(
                    f"no picture of {task.name}: its environment does not render; give from_gymnasium a function "
                    "that makes it with render_mode='rgb_array'"
                )
            stage, camera = stage._replace(make=task.filmed), _Camera(task, _rendered)
        else:
            drawn = drawing(task)
            drawer = closing.enter_context(drawn.drawer(WIDTH, HEIGHT))
            camera = _Camera(task, lambda env, seen: drawer.frame(seen.qpos) if np.isfinite(seen.qpos).all() else None)
            camera.dt = drawn.dt

        def make() -> Any:
            return _Watched(stage.make(), camera)

        watched = hosted.Stage(make, _started(stage, camera), stage.observe)
        evaluator = hosted.Evaluator(algorithm, task, watched, evaluation.keys_of, 1, lambda name, function, *of: function)
        closing.callback(evaluator.close)
        total = float(evaluator(clock, jax.tree.map(lambda leaf: leaf[:1], states))[0, 0])
    finite = np.asarray(camera.finite)
    chosen, durations = frames(finite, camera.dt)
    _check_any(task, len(chosen))
    return Film(camera.pictures[: len(chosen)], durations, (len(finite) - 1) * camera.dt, total)


def _check_any(task: Task, count: int) -> None:
    if not count:
        raise NoPicture(f"no picture of {task.name}: the first state of the episode is not finite")


def _rendered(env: Any, seen: PyTree) -> UInt8[np.ndarray, "H W 3"]:
    return env.render()


class _Camera:
    """Takes pictures of an episode on the host, while it runs."""

    def __init__(self, task: Task, picture: Callable[[Any, PyTree], UInt8[np.ndarray, "H W 3"] | None]) -> None:
        """`picture(environment, its observation)` is None if it is not finite."""
        self._task, self._picture = task, picture
        self.pictures: list[UInt8[np.ndarray, "H W 3"]] = []
        self.finite: list[bool] = []
        self.dt = 0.0
        """Seconds of a step; 0 until the first environment gives them."""

    def see(self, env: Any, seen: PyTree) -> None:
        """Take a picture, if this step is one of those of a video."""
        self.dt = self.dt or step_seconds(self._task, getattr(env, "dt", None))
        due = len(self.finite) % stride(self.dt) == 0 and len(self.pictures) < MOST_FRAMES
        picture = self._picture(env, seen) if due else None
        self.finite.append(picture is not None or not due)
        if picture is not None:
            self.pictures.append(picture)


class _Watched:
    """A host environment whose steps a camera sees."""

    def __init__(self, env: Any, camera: _Camera) -> None:
        self.env, self._camera = env, camera

    def step(self, action: Shaped[np.ndarray, "..."]) -> HostStep:
        result = self.env.step(action)
        self._camera.see(self.env, result.observation)
        return result

    def close(self) -> None:
        self.env.close()


def _started(stage: hosted.Stage, camera: _Camera) -> Callable[[Any, int], PyTree]:
    def start(watched: Any, index: int) -> PyTree:
        seen = stage.start(watched.env, index)
        camera.see(watched.env, seen)
        return seen

    return start
