"""A run's newest policy, model and critic looked at: restored without changing the folder, and played.

What is looked at is one seed. Its deterministic policy plays the task's own episodes; on them the model is judged, and
their actions are counted. The critic is judged on episodes of the policy that it values, which for a soft agent is random.
"""

from __future__ import annotations

import tempfile
import time
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxmbrl import agents
from jaxmbrl.agents.actor_critic import scaled_sac
from jaxmbrl.agents.actor_critic.scaled_sac import ScaledSACConfig
from jaxmbrl.algorithms.shared import ensemble_for
from jaxmbrl.core.config import UserError
from jaxmbrl.core.types import ActorCritic, Algorithm, Policy, PyTree, Task, Transition, World
from jaxmbrl.diagnostics import compounding_error, evaluate_model, imagined_vs_real, monte_carlo_returns, value_bias, video
from jaxmbrl.diagnostics.one_step import ModelEvaluation
from jaxmbrl.diagnostics.open_loop import CompoundingError, ImaginedVsReal, steps_left
from jaxmbrl.diagnostics.values import ValueBias
from jaxmbrl.envs.base import vector_sizes
from jaxmbrl.rollout import auto_reset, rollout, world_of
from jaxmbrl.training import collecting, evaluation, memory, session
from jaxmbrl.training.loop import clock_at
from jaxmbrl.training.programs import Program
from jaxmbrl.training.run_folder import RunFolder

EPISODES = 5
MOST_STEPS = 5_000
CHUNK = 50
"""Steps of one call of the compiled program; between two the clock is looked at."""
PLAY_SECONDS = 45.0
"""After which playing ends, with the steps that there are."""
FILM_SECONDS = 90.0
"""What an episode's steps may take to be filmed."""
HIDDEN = 0.5
"""Share of a discounted return that may lie beyond a time limit."""
HORIZON = 50
"""Steps that a model is left alone for, at most."""
ATTEMPTS = 5
"""To restore a checkpoint of a run that trains and removes old ones meanwhile."""


class Critic(NamedTuple):
    """What the critic said, and what came."""

    bias: ValueBias
    soft: bool
    """Whether values hold the entropy bonus."""
    discount: float
    ends_by_critic: bool
    """Whether its own value stands for what follows an episode's time limit, as nothing else is known of that."""


class Diagnosis(NamedTuple):
    """What was found of one seed of a run; None for what there is not."""

    seed: int
    env_steps: int
    """Environment steps that the policy was trained for."""
    rows: Transition
    """What the deterministic policy met, episode after episode, as NumPy arrays."""
    returns: tuple[float, ...]
    """Undiscounted, of the episodes that ended."""
    step_seconds: float
    """Of one step of the deterministic policy and of the task."""
    stored: Float[np.ndarray, "N A"] | None
    """Actions in the replay buffer."""
    model: ModelEvaluation | None
    errors: CompoundingError | None
    imagined: ImaginedVsReal | None
    critic: Critic | None
    film: bytes | None
    film_told: str
    """What the film shows, or why there is none."""
    state_bytes: int
    """Of the whole state of the run, all seeds."""
    notes: tuple[str, ...]
    """What could not be done, and what is wrong with newer checkpoints."""


def diagnose(run: str | Path) -> Diagnosis:
    """Look at the first seed, of those that are not frozen, of the run in folder `run`.

    Nothing in the folder is changed, and the run may be training. Raises UserError where it has no intact checkpoint, or
    its task cannot be made.
    """
    program, state, restored = _restore(Path(run))
    notes = list(restored.warnings)
    config = program.config
    frozen = set(restored.extra["frozen"])
    seed = next((seed for seed in range(config.seed, config.seed + config.seeds) if seed not in frozen), config.seed)
    of_seed = jax.tree.map(lambda leaf: leaf[seed - config.seed], state.algorithm)
    algorithm, task = program.algorithm, program.task
    steps = min(EPISODES * task.episode_length, MOST_STEPS)
    rows, step_seconds = play(task, algorithm, of_seed, steps)
    found: dict[str, Any] = dict.fromkeys(("model", "errors", "imagined", "critic"))
    trained = restored.extra["env_steps"] > 0
    for look in (_model, _critic):
        if trained:
            try:
                found |= look(program, of_seed, rows)
            except UserError as error:
                notes.append(str(error))
    film, told = _film(Path(run), program, step_seconds)
    return Diagnosis(
        seed=seed,
        env_steps=restored.extra["env_steps"],
        rows=rows,
        returns=returns_of(rows),
        step_seconds=step_seconds,
        stored=_stored(of_seed),
        film=film,
        film_told=told,
        state_bytes=memory.bytes_of(state),
        notes=tuple(notes),
        **found,
    )


def _restore(run: Path) -> Any:
    for _ in range(ATTEMPTS - 1):
        folder = RunFolder.open(run)
        try:
            return session.restore(folder, repair=False)
        except (UserError, OSError):
            if not folder.is_locked():
                raise
            time.sleep(0.2)
    return session.restore(RunFolder.open(run), repair=False)


def play(
    task: Task, algorithm: Algorithm, state: PyTree, steps: int, policy: Any = None, seconds: float = PLAY_SECONDS
) -> tuple[Transition, float]:
    """(transitions [T, ...] episode after episode, seconds a step) of the deterministic policy of `state`, or of
    `policy(state)`: `steps` of them, rounded up to chunks, or as many as there is time for.

    A task on the host is played for one episode. The extras are the policy's own where `policy` is given, else ().
    """
    acting = policy or (lambda state: algorithm.policy(state, clock_at(0), False))
    started = time.monotonic()
    if task.host is not None:
        steps = min(steps, task.episode_length)
        rows = jax.device_get(collecting.collect(task, acting(state), steps))
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
    def chunk(state: PyTree, loop: Any, i: Any) -> Any:
        world, acting = parts(state)
        loop, rows = rollout(world, acting, loop, jax.random.fold_in(key, i), CHUNK)
        return loop, rows if policy is not None else rows._replace(extras=())

    loop, found = begin(state), []
    step_seconds = 0.0
    for i in range(-(-steps // CHUNK)):
        loop, rows = jax.block_until_ready(chunk(state, loop, np.int32(i)))
        found.append(jax.device_get(rows))
        now = time.monotonic()
        if i == 0:
            # The first call compiles.
            started = now
        else:
            step_seconds = (now - started) / (i * CHUNK)
        if now - started > seconds:
            break
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *found), step_seconds


def returns_of(rows: Transition) -> tuple[float, ...]:
    """Undiscounted returns of the episodes that end within `rows`."""
    ends = np.flatnonzero(rows.terminated | rows.truncated)
    return tuple(float(part.sum()) for part in np.split(np.asarray(rows.reward, float), ends + 1)[: len(ends)])


def _stored(state: PyTree) -> Float[np.ndarray, "N A"] | None:
    held = getattr(state, "replay", None)
    action = None if held is None else np.asarray(held.data.action[: int(held.size)])
    return action if action is not None and action.ndim == 2 and len(action) else None


def _model(program: Program, state: PyTree, rows: Transition) -> dict[str, Any]:
    """The model judged on `rows`, where the algorithm has one and it has been fitted."""
    config, task = program.config.settings, program.task
    fitted = getattr(state, "model", None)
    if not hasattr(config, "ensemble") or int(getattr(fitted, "fits", 0)) == 0:
        return {}
    model = ensemble_for(config, task)
    left = steps_left(rows)
    horizon = min(HORIZON, int(left.max()))
    key = jax.random.key(0)
    known = None if config.learn_reward else task.reward
    return {
        "model": evaluate_model(model, fitted, rows),
        "errors": compounding_error(model, fitted, rows, horizon, key),
        "imagined": imagined_vs_real(model, fitted, rows, 0, min(horizon, int(left[0])), key, reward=known),
    }


def _agent(program: Program, state: PyTree) -> tuple[ActorCritic, PyTree] | None:
    """The agent of the algorithm and its state, where it has a critic."""
    config = getattr(program.config.settings, "agent", None)
    held = getattr(state, "agent", None)
    if config is None or held is None:
        return None
    sizes = vector_sizes(program.task, "a critic")
    if isinstance(config, ScaledSACConfig):
        return scaled_sac.make(config, *sizes, normalizer=state.seen), held
    return agents.make(config, *sizes), held


def _critic(program: Program, state: PyTree, rows: Transition) -> dict[str, Any]:
    """The critic beside the returns of the policy that it values."""
    made = _agent(program, state)
    if made is None or program.task.host is not None:
        return {}
    agent, held = made
    steps = min(EPISODES * program.task.episode_length, MOST_STEPS)
    played, _ = play(program.task, program.algorithm, state, steps, lambda state: agent.policy_with_entropy(state.agent))
    value_key, last_key = jax.random.split(jax.random.key(0))

    @jax.jit
    def values(held: PyTree, rows: Transition) -> tuple[Any, Any]:
        q = agent.action_value(held, rows.observation, rows.action, value_key)
        return q, agent.target_value(held, rows.next_observation, last_key)

    q, bootstrap = jax.device_get(values(held, jax.tree.map(jnp.asarray, played._replace(extras=()))))
    bonus = np.asarray(played.extras, float).reshape(len(played.reward))
    discount = float(held.discount)
    followed = played.reward, played.terminated, played.truncated, discount
    returns = monte_carlo_returns(*followed, bonus=bonus)
    ends_by_critic = not np.isfinite(returns).any()
    if ends_by_critic:
        # Where a time limit hides at most half of the return, the critic's own value stands for what it hides.
        enough = np.isfinite(monte_carlo_returns(*followed, bonus=bonus, tolerance=HIDDEN))
        returns = np.where(enough, monte_carlo_returns(*followed, bootstrap=bootstrap, bonus=bonus), np.nan)
    if not np.isfinite(returns).any():
        raise UserError("the critic is not judged: the episodes are too short beside its discount")
    return {"critic": Critic(value_bias(q, returns), bool(np.any(bonus != 0)), discount, ends_by_critic)}


def _film(run: Path, program: Program, step_seconds: float) -> tuple[bytes | None, str]:
    needed = step_seconds * program.task.episode_length
    if needed > FILM_SECONDS:
        asks = f"`jaxmbrl evaluate {run} --video` makes one"
        return None, f"an episode's steps would take about {needed / 60:.0f} minutes; {asks}"
    with tempfile.TemporaryDirectory(prefix="jaxmbrl-") as place, warnings.catch_warnings():
        # They have been told.
        warnings.simplefilter("ignore", session.RunWarning)
        file = Path(place) / "film.gif"
        try:
            told = video.film(run, file)
        except UserError as error:
            return None, str(error)
        return file.read_bytes(), told
