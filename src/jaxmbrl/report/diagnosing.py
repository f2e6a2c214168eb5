"""Diagnosis of a run's newest policy, model and critic. They are restored, without changing the folder, and evaluated.

One seed is examined. Its deterministic policy plays episodes of the task; the model is evaluated on their transitions, and
the report shows a histogram of their actions. The critic is evaluated on episodes of the policy whose value it estimates,
which is stochastic for a soft agent. `Algorithm.views` says which of these parts an algorithm has.
"""

from __future__ import annotations

import shlex
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Shaped, UInt8

from jaxmbrl.core.config import UserError
from jaxmbrl.core.types import Algorithm, Clock, CriticView, ModelView, Policy, PyTree, Task, Transition, World
from jaxmbrl.data.prioritized import Prioritized
from jaxmbrl.data.replay import Replay
from jaxmbrl.data.sequences import Sequences
from jaxmbrl.diagnostics import (
    compounding_error,
    evaluate_model,
    imagined_vs_real,
    latent_predictions,
    monte_carlo_returns,
    value_bias,
    video,
)
from jaxmbrl.diagnostics.latent import CONTEXT, LatentPredictions
from jaxmbrl.diagnostics.one_step import ModelEvaluation
from jaxmbrl.diagnostics.open_loop import CompoundingError, ImaginedVsReal, steps_left
from jaxmbrl.diagnostics.values import ValueBias
from jaxmbrl.models.latent import LatentView
from jaxmbrl.rollout import auto_reset, rollout, world_of
from jaxmbrl.training import collecting, console, evaluation, loop, memory, restoring
from jaxmbrl.training.programs import Program
from jaxmbrl.training.run_folder import RunFolder

EPISODES = 5
MOST_STEPS = 5_000
CHUNK = 50
"""Steps per call of the compiled program. The time limit is checked between calls."""
PLAY_SECONDS = 45.0
"""Time limit for playing episodes."""
PLAYED = 0.5
"""Share of the work that is done when the deterministic policy has played."""
FILM_SECONDS = 90.0
"""A video is only made if the steps of an episode take at most this time."""
OBSERVED_MS = 100
"""Time for which each image is shown in a film of observations (ms)."""
HIDDEN = 0.5
"""Largest share of a discounted return that may lie after a time limit."""
HORIZON = 50
"""Maximum length of open-loop predictions of the model."""
ATTEMPTS = 5
"""Attempts to restore a checkpoint. A run that is training may remove old checkpoints meanwhile."""


class Critic(NamedTuple):
    """The critic's values compared with the returns that followed."""

    bias: ValueBias
    soft: bool
    """Whether values include the entropy bonus."""
    discount: float
    ends_by_critic: bool
    """Whether returns are bootstrapped with the critic's value at the time limit of an episode."""


class Diagnosis(NamedTuple):
    """The results for one seed of a run; None for parts that its algorithm does not have."""

    seed: int
    env_steps: int
    """Environment steps for which the policy was trained."""
    rows: Transition
    """Transitions of the deterministic policy, episode after episode, as NumPy arrays."""
    returns: tuple[float, ...]
    """Undiscounted returns of the episodes that ended."""
    step_seconds: float
    """Time of one step of the deterministic policy and of the task."""
    stored: Shaped[np.ndarray, "N *A"] | None
    """Actions in the replay buffer: vectors [A], or numbers of discrete choices."""
    model: ModelEvaluation | None
    errors: CompoundingError | None
    imagined: ImaginedVsReal | None
    latent: LatentPredictions | None
    critic: Critic | None
    film: bytes | None
    film_note: str
    """A description of the film, or the reason why there is none."""
    state_bytes: int
    """Size of the run's whole state, with all seeds."""
    notes: tuple[str, ...]
    """Parts that could not be evaluated, and newer checkpoints that are damaged."""


def ignore(share: float) -> None:
    """Show no progress."""


def diagnose(run: str | Path, update: Callable[[float], None] = ignore) -> Diagnosis:
    """Diagnose the first seed that is not frozen of the run in folder `run`. `update` receives the share of the work done,
    at most 1.

    Nothing in the folder is changed, and the run may be training meanwhile. Raises UserError if it has no intact
    checkpoint, or its task cannot be made.
    """
    program, state, restored = _restore(Path(run))
    notes = list(restored.warnings)
    config = program.config
    frozen = set(restored.extra["frozen"])
    seed = next((seed for seed in range(config.seed, config.seed + config.seeds) if seed not in frozen), config.seed)
    of_seed = jax.tree.map(lambda leaf: leaf[seed - config.seed], state.algorithm)
    algorithm, task = program.algorithm, program.task
    clock = loop.clock_at(restored.extra["env_steps"])
    views = algorithm.views(of_seed)
    steps = min(EPISODES * task.episode_length, MOST_STEPS)
    rows, step_seconds = play(task, algorithm, of_seed, clock, steps, update=lambda share: update(PLAYED * share))
    found: dict[str, Any] = dict.fromkeys(("model", "errors", "imagined", "latent", "critic"))
    if restored.extra["env_steps"] > 0:
        later = lambda share: update(PLAYED + (1 - PLAYED) * share)  # noqa: E731
        looks = (
            lambda: _model(views.model, rows),
            lambda: _latent(views.latent, rows),
            lambda: _critic(program, of_seed, clock, later),
        )
        for look in looks:
            try:
                found |= look()
            except UserError as error:
                notes.append(str(error))
    film, film_note = _film(Path(run), program, rows, step_seconds)
    return Diagnosis(
        seed=seed,
        env_steps=restored.extra["env_steps"],
        rows=rows,
        returns=returns_of(rows),
        step_seconds=step_seconds,
        stored=_stored(views.replay),
        film=film,
        film_note=film_note,
        state_bytes=memory.bytes_of(state),
        notes=tuple(notes),
        **found,
    )


def _restore(run: Path) -> Any:
    for _ in range(ATTEMPTS - 1):
        folder = RunFolder.open(run)
        try:
            return restoring.restore(folder, repair=False)
        except (UserError, OSError):
            if not folder.is_locked():
                raise
            time.sleep(0.2)
    return restoring.restore(RunFolder.open(run), repair=False)


def play(
    task: Task,
    algorithm: Algorithm,
    state: PyTree,
    clock: Clock,
    steps: int,
    policy: Callable[[PyTree], Policy] | None = None,
    seconds: float = PLAY_SECONDS,
    update: Callable[[float], None] = ignore,
) -> tuple[Transition, float]:
    """Play episodes with the deterministic policy of `state`, or with `policy(state)`. Returns (transitions [T, ...],
    episode after episode; seconds per step).

    T is `steps`, rounded up to whole chunks, or fewer if the time limit is reached. A task on the host is played for one
    episode. The extras of the transitions are those of `policy` if it is given, else (). `update` receives the share of the
    steps, or of the time limit, that has passed, first 0 when the program is compiled.
    """
    acting = policy or (lambda state: algorithm.policy(state, clock, False))
    started = time.monotonic()
    if task.host is not None:
        steps = min(steps, task.episode_length)
        # The first step compiles, so it is not counted.
        counted = lambda done: update((done - 1) / max(steps - 1, 1))  # noqa: E731
        rows = jax.device_get(collecting.collect(task, acting(state), steps, update=counted))
        return rows, (time.monotonic() - started) / steps
    start_key, memory_key, key = evaluation.keys_of(0)
    inner = world_of(task, algorithm) if policy is None else task.world

    def parts(state: PyTree) -> tuple[World, Policy]:
        return auto_reset(inner, acting(state))

    @jax.jit
    def begin(state: PyTree) -> Any:
        world, policy = parts(state)
        return world.reset(start_key), policy.init(memory_key)

    @jax.jit
    def chunk(state: PyTree, at: Any, i: Any) -> Any:
        world, acting = parts(state)
        at, rows = rollout(world, acting, at, jax.random.fold_in(key, i), CHUNK)
        return at, rows if policy is not None else rows._replace(extras=())

    at, found = begin(state), []
    step_seconds = 0.0
    for i in range(-(-steps // CHUNK)):
        at, rows = jax.block_until_ready(chunk(state, at, np.int32(i)))
        found.append(jax.device_get(rows))
        now = time.monotonic()
        if i == 0:
            # The first call compiles, so it is not timed, and its steps are not counted as work.
            started = now
        else:
            step_seconds = (now - started) / (i * CHUNK)
        share = i * CHUNK / max(steps - CHUNK, 1)
        update(min(max(share, (now - started) / max(seconds, 1e-6)), 1.0))
        if now - started > seconds:
            break
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *found), step_seconds


def returns_of(rows: Transition) -> tuple[float, ...]:
    """Undiscounted returns of the episodes that end in `rows`."""
    ends = np.flatnonzero(rows.terminated | rows.truncated)
    return tuple(float(part.sum()) for part in np.split(np.asarray(rows.reward, float), ends + 1)[: len(ends)])


def _stored(buffer: Any) -> Shaped[np.ndarray, "N *A"] | None:
    """The actions in a buffer of `jaxmbrl.data`, vectors or discrete choices; None if there are none."""
    buffer = buffer.replay if isinstance(buffer, Prioritized) else buffer
    if isinstance(buffer, Replay):
        action = np.asarray(buffer.data.action[: int(buffer.size)])
    elif isinstance(buffer, Sequences):
        room = buffer.rows.action.shape[1]
        newest_first = (int(buffer.position) - 1 - np.arange(int(buffer.size))) % room
        action = np.asarray(buffer.rows.action)[:, newest_first].reshape(-1, *buffer.rows.action.shape[2:])
    else:
        return None
    return action if action.ndim <= 2 and len(action) else None


def _model(view: ModelView | None, rows: Transition) -> dict[str, Any]:
    """Evaluate the model on `rows`, if there is a model and it has been fitted."""
    if view is None or not bool(view.fitted):
        return {}
    left = steps_left(rows)
    horizon = min(HORIZON, int(left.max()))
    key = jax.random.key(0)
    first = min(horizon, int(left[0]))
    return {
        "model": evaluate_model(view.model, view.state, rows),
        "errors": compounding_error(view.model, view.state, rows, horizon, key),
        "imagined": imagined_vs_real(view.model, view.state, rows, 0, first, key, reward=view.reward),
    }


def _latent(view: LatentView | None, rows: Transition) -> dict[str, Any]:
    """Reconstructions and open-loop predictions of the latent model, if there is one."""
    if view is None:
        return {}
    context = max(1, min(CONTEXT, int(steps_left(rows).max()) // 2))
    return {"latent": latent_predictions(view, rows, jax.random.key(0), context=context)}


def _critic(program: Program, state: PyTree, clock: Clock, update: Callable[[float], None] = ignore) -> dict[str, Any]:
    """Compare the critic, if there is one, with the returns of the policy whose value it estimates."""
    algorithm, task = program.algorithm, program.task
    view = algorithm.views(state).critic
    if view is None or task.host is not None:
        return {}

    def critic_of(state: PyTree) -> CriticView:
        view = algorithm.views(state).critic
        assert view is not None
        return view

    steps = min(EPISODES * task.episode_length, MOST_STEPS)
    played, _ = play(task, algorithm, state, clock, steps, lambda state: critic_of(state).policy, update=update)
    value_key, last_key = jax.random.split(jax.random.key(0))

    @jax.jit
    def values(state: PyTree, rows: Transition) -> tuple[Any, Any]:
        critic = critic_of(state)
        q = critic.action_value(rows.observation, rows.action, value_key)
        return q, critic.value(rows.next_observation, last_key)

    q, bootstrap = jax.device_get(values(state, jax.tree.map(jnp.asarray, played._replace(extras=()))))
    bonus = np.asarray(played.extras, float).reshape(len(played.reward))
    discount = float(view.discount)
    followed = played.reward, played.terminated, played.truncated, discount
    returns = monte_carlo_returns(*followed, bonus=bonus)
    ends_by_critic = not np.isfinite(returns).any()
    if ends_by_critic:
        # If at most half of a return lies after a time limit, the critic's value replaces that part.
        enough = np.isfinite(monte_carlo_returns(*followed, bonus=bonus, tolerance=HIDDEN))
        returns = np.where(enough, monte_carlo_returns(*followed, bootstrap=bootstrap, bonus=bonus), np.nan)
    if not np.isfinite(returns).any():
        raise UserError("the critic is not evaluated: the episodes are too short for its discount factor")
    return {"critic": Critic(value_bias(q, returns), bool(np.any(bonus != 0)), discount, ends_by_critic)}


def _film(run: Path, program: Program, rows: Transition, step_seconds: float) -> tuple[bytes | None, str]:
    """(GIF of an episode or None, what it shows or why there is none). Without a MuJoCo model it shows the images that the
    policy observed in the first episode of `rows`, where the observations are images."""
    needed = step_seconds * program.task.episode_length
    if needed > FILM_SECONDS:
        command = f"`{shlex.join(['jaxmbrl', 'evaluate', str(run), '--video'])}` makes one"
        return None, f"an episode's steps would take about {needed / 60:.0f} minutes; {command}"
    with tempfile.TemporaryDirectory(prefix="jaxmbrl-") as place, warnings.catch_warnings():
        # These warnings are in the notes already.
        warnings.simplefilter("ignore", console.RunWarning)
        file = Path(place) / "film.gif"
        try:
            shown = video.film(run, file)
        except UserError as error:
            return _observed(rows) or (None, str(error))
        return file.read_bytes(), shown


def _observed(rows: Transition) -> tuple[bytes, str] | None:
    """(GIF of the images observed in the first episode of `rows`, what it shows); None where they are no images."""
    images = np.asarray(rows.observation)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3):
        return None
    ends = np.flatnonzero(rows.terminated | rows.truncated)
    length = min(int(ends[0]) + 1 if len(ends) else len(images), video.MOST_FRAMES)
    frames = [_framed(image) for image in images[:length]]
    return video.gif(frames, [OBSERVED_MS] * length), f"what the policy observed in the first {length} steps"


def _framed(image: UInt8[np.ndarray, "H W C"]) -> UInt8[np.ndarray, "h w 3"]:
    """A frame of a film with an image of one or three channels in its middle, as large as whole multiples of pixels fit."""
    thinned = max(-(-image.shape[0] // video.HEIGHT), -(-image.shape[1] // video.WIDTH))
    image = image[::thinned, ::thinned]
    factor = min(video.HEIGHT // image.shape[0], video.WIDTH // image.shape[1])
    image = image.repeat(factor, axis=0).repeat(factor, axis=1)
    top, left = (video.HEIGHT - image.shape[0]) // 2, (video.WIDTH - image.shape[1]) // 2
    frame = np.full((video.HEIGHT, video.WIDTH, 3), 128, np.uint8)
    frame[top : top + image.shape[0], left : left + image.shape[1]] = image
    return frame
