"""Dreams: an episode of a policy in its task, and beside it one in its latent world model, as a GIF.

Both begin with the same observations. From then on the model does not see the task: the policy acts on the images that the
model decodes, and the model imagines what its actions lead to (World Models, arXiv 1803.10122; Dreamer, arXiv 1912.01603).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from jaxmbrl.core import hints
from jaxmbrl.core.config import UserError
from jaxmbrl.core.keys import beside
from jaxmbrl.core.spaces import Box
from jaxmbrl.core.types import Action, Algorithm, Clock, Key, Memory, Observation, Policy, PyTree, Task
from jaxmbrl.diagnostics.latent import CONTEXT, WHITE, enlarged
from jaxmbrl.diagnostics.video import frames, gif, gif_path
from jaxmbrl.envs.drawing.own import step_seconds
from jaxmbrl.envs.observed import plain
from jaxmbrl.models.latent import LatentView, repeated
from jaxmbrl.rollout import rollout
from jaxmbrl.training import evaluation, loop, runner
from jaxmbrl.training.run_folder import write_file
from jaxmbrl.training.session import Result

HEIGHT = 192
"""Least height of a picture, in pixels."""
GAP = 6
"""Width of the line between task and dream, in pixels."""
ENDS = 0.5
"""Probability of a termination from which on a dream has ended."""


class Dream(NamedTuple):
    """Images [H, W, C], C = 1 or 3, of an episode in the task and of one in the model. The first `context` are of the same
    positions."""

    observed: UInt8[np.ndarray, "T H W C"]
    """In the task, up to the end of the episode."""
    imagined: UInt8[np.ndarray, "D H W C"]
    """In the model, up to a step that terminates with a probability of 0.5 or more. The first `context` are those of the
    task."""
    context: int
    """Number of observations that the model sees."""
    earned: float
    """Undiscounted reward of the task, from the last observation of the context on."""
    expected: float
    """The same in the dream, of the model's rewards."""


def check(algorithm: Algorithm, task: Task, state: PyTree, context: int = CONTEXT) -> None:
    """Raise UserError if the method has no latent model that decodes observations, if observations are not images of one or
    three channels, if the task runs on the host, or if `context` is not at least 1 and below the length of an episode."""
    image = task.observation
    if not (isinstance(image, Box) and image.is_image and image.shape[-1] in (1, 3)):
        raise UserError(
            f"a dream is filmed of images of one or three channels, and observations of {task.name} are {image}"
        )
    if task.host is not None:
        raise UserError(f"a dream is filmed of a task in JAX, and '{task.name}' runs on the host")
    if not 1 <= context < task.episode_length:
        raise UserError(f"context must be from 1 to {task.episode_length - 1}, got {context}")
    if algorithm.views(state).latent is None:
        raise UserError("a dream is filmed of a method with a latent model and a decoder, such as dreamer or world-models")


def dream(algorithm: Algorithm, task: Task, state: PyTree, context: int = CONTEXT, clock: Clock | None = None) -> Dream:
    """The first episode of the evaluation with `state` (of one seed), and a dream that begins with its first `context`
    observations. `clock` is that of the policy, by default the clock at the start of a run.

    Raises UserError as `check`, and if the episode ends within the context.
    """
    check(algorithm, task, state, context)

    def play(state: PyTree) -> Any:
        view: LatentView = algorithm.views(state).latent
        model, params = view.model, view.params
        world, policy, start, key = evaluation.begin(algorithm, task, state, jnp.zeros((), jnp.int32), clock)
        filter_key, dream_key = jax.random.split(beside(key))

        def act(memory: Memory, observation: Observation, key: Key) -> tuple[Action, PyTree, Memory]:
            action, _, after = policy.act(memory, observation, key)
            return action, memory, after

        _, rows = rollout(world, Policy(policy.init, act), start, key, task.episode_length)
        seen = jax.tree.map(lambda x: x[: context - 1], (rows.observation, rows.action))

        def observe(belief: Any, given: tuple[Observation, Action, Key]) -> tuple[Any, None]:
            observation, action, key = given
            return model.acted(model.observe(params, belief, observation, key), action), None

        keys = jax.random.split(filter_key, context)
        belief, _ = jax.lax.scan(observe, model.initial(), (*seen, keys[: context - 1]))
        last, memory = jax.tree.map(lambda x: x[context - 1], (rows.observation, rows.extras))
        belief = repeated(model.observe(params, belief, last, keys[-1]), 1)
        imagined = model.world(params)

        def step(carry: Any, key: Key) -> tuple[Any, Any]:
            belief, memory, image = carry
            act_key, step_key = jax.random.split(key)
            action, _, memory = policy.act(memory, image, act_key)
            belief, made = imagined.step(belief, action[None], step_key)
            image = _pixels(model.decode(params, made.next_observation)[0])
            return (belief, memory, image), (image, made.reward[0], made.terminated[0])

        begin_key, steps_key = jax.random.split(dream_key)
        steps = jax.random.split(steps_key, task.episode_length + 1 - context)
        _, dreamt = jax.lax.scan(step, (imagined.start(belief, begin_key), memory, last), steps)
        return rows._replace(extras=()), dreamt

    rows, (images, rewards, ends) = jax.device_get(jax.jit(play)(state))
    length = _until(rows.terminated | rows.truncated)
    if length < context:
        raise UserError(f"the episode has {length} steps, and the context {context}: give a smaller context")
    observed = np.concatenate([rows.observation[:length], rows.next_observation[length - 1 : length]])
    steps = _until(ends >= ENDS)
    return Dream(
        observed,
        np.concatenate([observed[:context], images[:steps]]),
        context,
        float(rows.reward[context - 1 : length].sum()),
        float(rewards[:steps].sum()),
    )


def _pixels(image: Float[Array, "H W C"]) -> UInt8[Array, "H W C"]:
    return jnp.clip(jnp.round(image), 0, WHITE).astype(jnp.uint8)


def _until(ends: np.ndarray) -> int:
    """Number of steps up to the first that ends, or of all."""
    return int(np.argmax(ends)) + 1 if ends.any() else len(ends)


def pictures(found: Dream, positions: np.ndarray) -> list[UInt8[np.ndarray, "h w 3"]]:
    """A picture for each position: the task on the left, the dream on the right, each enlarged by a whole number. The line
    between them is white as long as the model sees the task. What has ended stays at its last image."""
    factor = max(1, -(-HEIGHT // found.observed.shape[1]))

    made = []
    for position in positions:
        sides = [enlarged(images[min(position, len(images) - 1)], factor) for images in (found.observed, found.imagined)]
        line = np.full((len(sides[0]), GAP, 3), WHITE if position < found.context else 0, np.uint8)
        made.append(np.concatenate([sides[0], line, sides[1]], axis=1))
    return made


@hints.checked_arguments
def film(run: str | Path | Result, file: str | Path, context: int = CONTEXT) -> str:
    """Write a GIF of `dream` with the first seed of a run to `file`: the task on the left, the dream on the right.

    Returns a description. `run` is a run folder, or the result of `jaxmbrl.train` in memory.

    Raises UserError as `dream` does, or if the name of `file` does not end with `.gif`.
    """
    path = gif_path(file)
    program, states, env_steps, _ = runner.trained(run)
    of_seed = jax.tree.map(lambda leaf: leaf[0], states)
    found = dream(program.algorithm, program.task, of_seed, context, loop.clock_at(env_steps))
    dt = step_seconds(program.task, getattr(plain(program.task.env), "dt", None))
    count = max(len(found.observed), len(found.imagined))
    chosen, durations = frames(np.ones(count, bool), dt)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, gif(pictures(found, chosen), durations.tolist()))
    return (
        f"{durations.sum() / 1000:.1f} s of seed {program.config.seed}; on the left the task, where the policy earns "
        f"{found.earned:.2f} after {context} observations, on the right its dream, in which it expects {found.expected:.2f}"
    )
