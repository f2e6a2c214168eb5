"""Videos: an evaluation episode as a GIF in real time."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from jaxmbrl.core.types import Action, Algorithm, Clock, Key, Memory, Observation, Policy, PyTree, Task, Transition
from jaxmbrl.envs.mujoco import rendering
from jaxmbrl.rollout import Return, episode_return, rollout
from jaxmbrl.training import evaluation, loop, runner
from jaxmbrl.training.run_folder import write_file

WIDTH, HEIGHT = 320, 240
"""Size of a frame, in pixels."""
FRAME_SECONDS = 0.04
MOST_FRAMES = 300
COLORS = 64


class Recording(NamedTuple):
    """A complete episode."""

    positions: Float[np.ndarray, "T nq"]
    """Positions of the model's joints (m, rad) at the start and after each step."""
    total: float
    """Undiscounted return."""


def record(algorithm: Algorithm, task: Task, state: PyTree, index: int = 0, clock: Clock | None = None) -> Recording:
    """Record episode `index` of `evaluation.evaluate` under the policy of `state` (of one seed) at `clock`, by default the
    clock at the start of a run.

    The start state and the random keys are those of the evaluation. The episode is computed alone and not in a batch, so
    numbers may round differently. Over a long episode of a robot this can lead to another trajectory and return.
    """

    def play(state: PyTree) -> tuple[Float[Array, "L nq"], Int[Array, ""], Float[Array, ""]]:
        world, policy, start, key = evaluation.begin(algorithm, task, state, jnp.asarray(index, jnp.int32), clock)

        def act(
            memory: Memory, observed: tuple[Observation, Float[Array, "nq"]], key: Key
        ) -> tuple[Action, PyTree, Memory]:
            observation, positions = observed
            action, _, memory = policy.act(memory, observation, key)
            return action, positions, memory

        shown = world._replace(observe=lambda carry: (world.observe(carry), rendering.positions(carry)))
        (carry, _), rows = rollout(shown, Policy(policy.init, act), start, key, task.episode_length)
        ended = rows.terminated | rows.truncated
        steps = jnp.where(jnp.any(ended), jnp.argmax(ended) + 1, task.episode_length)

        def earn(acc: Return, row: Transition) -> tuple[Return, None]:
            return episode_return(acc, row, steps), None

        total = jax.lax.scan(earn, Return.zero(), rows)[0].total
        return jnp.concatenate([rows.extras, rendering.positions(carry)[None]]), steps, total

    positions, steps, total = jax.jit(play)(state)
    return Recording(np.asarray(positions)[: int(steps) + 1], float(total))


def frames(positions: Float[np.ndarray, "T nq"], dt: float) -> tuple[Int[np.ndarray, "F"], Int[np.ndarray, "F"]]:
    """(indices of the `positions` to draw, duration of each frame in ms). The positions are `dt` seconds apart.

    There are at most `MOST_FRAMES` frames, about `FRAME_SECONDS` apart. They end before the first position that is not
    finite. A GIF counts hundredths of a second, so durations are rounded, without accumulating the error.
    """
    finite = np.isfinite(positions).all(1)
    length = len(finite) if finite.all() else int(finite.argmin())
    stride = max(1, round(FRAME_SECONDS / dt))
    chosen = np.arange(0, length, stride)[:MOST_FRAMES]
    times = np.append(chosen, chosen[-1:] + stride) * dt
    return chosen, 10 * np.diff(np.rint(100 * times).astype(int))


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


def film(run: str | Path, file: Path, model: str | None = None) -> str:
    """Write a GIF of the first episode of `runner.evaluate` with the first seed of the run in folder `run`. Returns a
    description of it. `model`, if given, is the model to plan in.

    Raises NoPicture, before anything is computed, if the task has no MuJoCo model or the machine has no renderer; UserError
    as `runner.evaluate` does.
    """
    program, state, restored = runner.trained(run, model)
    clock = loop.clock_at(restored.extra["env_steps"])
    scene = rendering.scene(program.task)
    with rendering.Drawer(scene.model, WIDTH, HEIGHT) as drawer:
        of_seed = jax.tree.map(lambda leaf: leaf[0], state.algorithm)
        episode = record(program.algorithm, program.task, of_seed, clock=clock)
        chosen, durations = frames(episode.positions, scene.dt)
        pictures = [drawer.frame(episode.positions[i]) for i in chosen]
    file.parent.mkdir(parents=True, exist_ok=True)
    write_file(file, gif(pictures, durations.tolist()))
    lasts = (len(episode.positions) - 1) * scene.dt
    shown = min(lasts, float(durations.sum()) / 1000)
    seconds = f"all {lasts:.1f} s" if shown + FRAME_SECONDS >= lasts else f"the first {shown:.1f} of {lasts:.1f} s"
    return f"{seconds} of the first episode of seed {program.config.seed}, return {episode.total:.2f}"
