"""Runs: from settings to a trained policy, in memory or in a run folder, and on from where it stopped."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import math
import os
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from annotated_types import Ge, Lt
from jaxtyping import Array, Float

from jaxmbrl import algorithms, dataset, envs, metrics
from jaxmbrl.config import UserError, check, closest, from_dict, to_dict
from jaxmbrl.training import bridged, checkpoint, curve, evaluation, loop
from jaxmbrl.training.console import Progress
from jaxmbrl.training.loop import Loop, LoopState
from jaxmbrl.training.run_folder import CONFIG, RunFolder, environment
from jaxmbrl.types import Algorithm, Clock, Policy, PyTree, Task, Transition, row_like

CHUNK_SECONDS = 3.0
"""Wall clock that one call of the compiled program aims at; between two, progress is shown and signals are seen."""
BACKENDS = ("jax", "gymnasium")
"""Where a policy can be evaluated."""
WHOLE = 2**31
"""Where the whole numbers of a compiled program end."""


class RunWarning(UserWarning):
    """Something about a run that its user should know."""


@dataclass(frozen=True)
class RunConfig:
    """All that determines a run."""

    algorithm: str
    env: str
    preset: str
    """Name of the preset that `settings` started from."""
    settings: Any
    """The algorithm's config."""
    steps: Annotated[int, Ge(1)]
    """Environment steps of each seed, rounded up to whole epochs."""
    seeds: Annotated[int, Ge(1)] = 1
    """Number of seeds, trained side by side in one program."""
    seed: Annotated[int, Ge(0), Lt(2**31)] = 0
    """The first seed; the others follow it."""
    eval_episodes: Annotated[int, Ge(1)] = 10
    """Episodes of each evaluation."""
    checkpoint_every: Annotated[int, Ge(1)] = 10
    """Epochs between two checkpoints."""
    action_repeat: Annotated[int, Ge(1)] = 1
    """Times that each action is applied; steps and episodes count the agent's actions (`envs.repeat`)."""
    data: str | None = None
    """File of transitions to learn from instead of collecting (`dataset`); each seed learns from them in their order."""
    data_digest: str | None = None
    """SHA-256 of that file."""

    def problem(self) -> tuple[str, str] | None:
        """A rule between fields that is broken."""
        if self.seed + self.seeds > WHOLE:
            return "seeds", f"must be at most {WHOLE - self.seed} from seed {self.seed} on, got {self.seeds}"
        return None


class Program(NamedTuple):
    """A run's parts, built from its config and checked."""

    config: RunConfig
    task: Task
    algorithm: Algorithm
    loop: Loop

    @property
    def epoch_steps(self) -> int:
        """Environment steps of an epoch."""
        return self.config.settings.epoch_steps

    @property
    def total_steps(self) -> int:
        """Environment steps of the run, in whole epochs: rounded up, or down where data end."""
        whole = self.config.steps // self.epoch_steps
        return (whole if self.config.data else -(-self.config.steps // self.epoch_steps)) * self.epoch_steps


class Result(NamedTuple):
    """What training leaves in memory."""

    rows: list[dict[str, Any]]
    """The metrics, one row for each epoch and seed."""
    state: PyTree
    """The algorithm's state, leading with an axis of seeds."""
    policy: Callable[..., Policy]
    """(state of one seed, explore=False) -> policy."""
    task: Task
    config: RunConfig
    path: Path | None
    """The run folder, if one was asked for."""


class Loaded(NamedTuple):
    """A trained policy."""

    policy: Callable[..., Policy]
    """(state of one seed, explore=False) -> policy."""
    state: PyTree
    """The algorithm's state, leading with an axis of seeds."""
    task: Task


class Evaluation(NamedTuple):
    """Returns under the deterministic policy."""

    returns: Float[Array, "seeds episodes"]
    per_seed: list[float]
    """Mean of each seed."""
    mean: float
    iqm: float
    """Interquartile mean of the seeds' means."""
    env_steps: int
    """Environment steps that the policies were trained for."""
    frozen: tuple[int, ...]
    """Seeds that met a value that was not finite; they count with the policy that they had."""
    backend: str
    """Where the episodes ran: `jax`, in the compiled program, or `gymnasium`."""


def configure(
    algorithm: str,
    env: str,
    preset: str | None = None,
    settings: Any = None,
    steps: int | None = None,
    data: str | Path | None = None,
    **fields: Any,
) -> RunConfig:
    """A checked `RunConfig`. `settings` is the algorithm's config, or a mapping from dotted field names to values that
    replace the preset's. With a file of `data` the steps are all its rows unless told otherwise. Raises UserError, in one
    line, for whatever is unknown or out of range."""
    method = algorithms.get(algorithm)
    envs.check_name(env)
    name, config = algorithms.preset(algorithm, env, preset)
    if isinstance(settings, Mapping):
        config = from_dict(method.config, _replaced(to_dict(config), settings))
    elif isinstance(settings, method.config):
        config = settings
    elif settings is not None:
        raise UserError(
            f"settings must be the config of {algorithm} or a mapping such as {{'epoch_steps': 500}}, got {settings!r:.60}"
        )
    if data is not None:
        held = dataset.load(data)
        steps = len(held.rows.reward) if steps is None else steps
        fields |= {"data": str(Path(data).resolve()), "data_digest": held.digest}
    steps = method.presets[name].steps if steps is None else steps
    given = dict(algorithm=algorithm, env=env, preset=name, steps=steps, settings=check(config), **fields)
    return from_dict(RunConfig, given)


def parse(values: Any) -> RunConfig:
    """The `RunConfig` that a config.yaml holds. Raises UserError naming the field that is wrong."""
    config = from_dict(RunConfig, values)
    method = algorithms.get(config.algorithm)
    envs.check_name(config.env)
    return dataclasses.replace(config, settings=from_dict(method.config, config.settings, "settings."))


def read(folder: RunFolder) -> RunConfig:
    """The config of the run in `folder`. Raises UserError naming the file and the field that is wrong."""
    values = folder.read_config()
    try:
        return parse(values)
    except UserError as error:
        raise UserError(f"{folder.path / CONFIG}: {error}") from None


def build(config: RunConfig, learns: bool = True) -> Program:
    """Put a run's parts together. Raises UserError where they do not fit, each other or the machine.

    The parts of a run that does not go on learning (`learns` false) need no file of data.
    """
    method, settings = algorithms.get(config.algorithm), config.settings
    check_whole(to_dict(config))
    task = envs.make(config.env, config.action_repeat)
    algorithm = method.make(settings, task)
    steps_per_call = algorithm.period * settings.num_envs
    if settings.epoch_steps % steps_per_call:
        raise UserError(
            f"epoch_steps must be a multiple of {steps_per_call}, the environment steps between two calls of learn, "
            f"got {settings.epoch_steps}"
        )
    data = None
    if config.data is not None:
        data = _data(config, task) if learns else jax.tree.map(lambda leaf: leaf[None], row_like(task))
    if task.host is None or data is not None:
        made = loop.make(algorithm, task, settings, data)
    else:
        made = bridged.make(algorithm, task, settings)
    program = Program(config, task, algorithm, made)
    if program.total_steps >= WHOLE:
        raise UserError(f"steps must be below {WHOLE} in whole epochs, got {config.steps}")
    state = jax.eval_shape(lambda: _initial(program, _hyper({}, program.config)))
    check_memory(state, "the state of the run", "lower seeds, replay_capacity or the networks' sizes")
    return program


def _data(config: RunConfig, task: Task) -> Transition:
    """The rows that a run learns from. Raises UserError where they are not, or no longer, what it needs."""
    assert config.data is not None
    data = dataset.load(config.data)
    if config.data_digest not in (None, data.digest):
        raise UserError(f"{config.data} is not the file that the run started with; bring that one back")
    if data.env not in (None, task.name):
        raise UserError(f"{config.data} holds transitions of {data.env}, not of {task.name}")
    dataset.check_fits(data, task)
    held, settings = len(data.rows.reward), config.settings
    if settings.num_envs != 1:
        raise UserError(f"num_envs must be 1 with data, got {settings.num_envs}")
    if settings.epoch_steps > held:
        raise UserError(f"epoch_steps must be at most the data's {held} rows, got {settings.epoch_steps}")
    if not settings.epoch_steps <= config.steps <= held:
        raise UserError(
            f"steps must be between an epoch ({settings.epoch_steps}) and the data's {held} rows, got {config.steps}"
        )
    if getattr(settings, "model", "learned") != "learned":
        raise UserError("model must be 'learned' with data: in the true simulator there is nothing to learn")
    return jax.tree.map(jnp.asarray, data.rows)


def train(
    algorithm: str,
    env: str,
    *,
    steps: int | None = None,
    seeds: int = 1,
    seed: int = 0,
    preset: str | None = None,
    settings: Any = None,
    hyper: Mapping[str, Any] | None = None,
    data: str | Path | None = None,
    out: str | Path | None = None,
    progress: Progress | None = None,
    **fields: Any,
) -> Result:
    """Train `algorithm` on the task `env` and return what was learned; nothing is written unless `out` names a folder.

    `settings` is the algorithm's config, or a mapping such as `{"ensemble.members": 7}` over the preset's. `hyper` gives
    traced numbers (`{"learning_rate": [1e-3, 3e-4]}`), one value or one a seed. With `data`, a file of transitions, nothing
    is collected: the algorithm learns from its rows in turn (`dataset` says what it holds). `fields` are those of
    `RunConfig`.

    Raises UserError, before compiling, for whatever is unknown, out of range or not writable.
    """
    config = configure(algorithm, env, preset, settings, steps, data, seeds=seeds, seed=seed, **fields)
    program = build(config)
    traced = _hyper(hyper or {}, config)
    folder = None if out is None else RunFolder.create(out)
    progress = progress or Progress.silent()
    if folder is None:
        return _Session(program, None, progress).begin(traced)
    with folder.lock():
        folder.write_config(to_dict(config))
        folder.write_environment({"hyper": {name: np.asarray(value).tolist() for name, value in traced.items()}})
        return _Session(program, folder, progress).begin(traced)


def resume(run: str | Path, *, steps: int | None = None, progress: Progress | None = None) -> Result:
    """Go on with the run in folder `run` from its newest intact checkpoint, to `steps` if given.

    Raises UserError where `run` is not a run, or holds no checkpoint that is intact.
    """
    folder = RunFolder.open(run)
    config = read(folder)
    if steps is not None:
        config = check(dataclasses.replace(config, steps=steps))
    program = build(config)
    with folder.lock():
        session = _Session(program, folder, progress or Progress.silent())
        return session.resume(steps_changed=steps is not None)


def load(run: str | Path) -> Loaded:
    """(policy, state, task) of the run in folder `run`, from its newest intact checkpoint.

    >>> policy, state, task = load("runs/x")                              # doctest: +SKIP
    >>> act = policy(jax.tree.map(lambda x: x[0], state)).act             # doctest: +SKIP
    """
    program, state, _ = newest(run)
    return Loaded(_policy(program.algorithm), state.algorithm, program.task)


def evaluate(run: str | Path, episodes: int = 10, model: str | None = None, backend: str | None = None) -> Evaluation:
    """Returns of `episodes` episodes of each seed of the run in folder `run`, under its deterministic policy.

    Start states are fixed by the episode's index, the same for every seed and every run of the task. With `model` "true"
    the run's planner plans in the true simulator and not in what was learned. Raises UserError where that is no planner.

    The `backend` "gymnasium" plays the same episodes in the task's twin in Gymnasium, with C MuJoCo; it is where tasks
    `gymnasium/...` live anyway. Raises UserError where there is no twin, or Gymnasium is missing.
    """
    if backend not in (None, *BACKENDS):
        raise UserError(f"backend must be {' or '.join(repr(name) for name in BACKENDS)}, got {backend!r}")
    if not 1 <= episodes < WHOLE:
        raise UserError(f"episodes must be at least 1 and below {WHOLE}, got {episodes}")
    program, state, restored = trained(run, model)
    algorithm, task = program.algorithm, program.task
    own = "jax" if task.host is None else "gymnasium"
    if backend == "jax" and own != backend:
        raise UserError(f"task '{task.name}' lives outside of the compiled program: leave the backend out")
    chosen = backend or own
    with contextlib.ExitStack() as closing:
        function = evaluation.evaluator(
            algorithm, task, episodes, _as_it_is, closing, state.algorithm, in_gymnasium=chosen == "gymnasium"
        )
        returns = function(state.algorithm)
    return summarise(returns, restored.extra["env_steps"], tuple(restored.extra["frozen"]), chosen)


def trained(run: str | Path, model: str | None = None) -> tuple[Program, LoopState, checkpoint.Restored]:
    """As `newest`, with the run's planner planning in `model` where that is given."""
    program, state, restored = newest(run)
    if model is not None:
        program = build(_planning_in(program.config, model), learns=False)
    return program, state, restored


def _as_it_is(what: str, function: Any, *arguments: Any) -> Any:
    """Compiled when it is first called."""
    return function


def _planning_in(config: RunConfig, model: str) -> RunConfig:
    """The config of the same run, planning in `model`."""
    if not hasattr(config.settings, "model"):
        raise UserError(f"model is a setting of planners, and {config.algorithm} is none: leave it out")
    if config.settings.model == "true" and model == "learned":
        raise UserError("the run planned in the true simulator and has learned no model: leave model out")
    settings = from_dict(type(config.settings), to_dict(config.settings) | {"model": model})
    return dataclasses.replace(config, settings=settings)


def summarise(
    returns: Float[Array, "seeds episodes"], env_steps: int, frozen: tuple[int, ...] = (), backend: str = "jax"
) -> Evaluation:
    """Means by seed, and over seeds."""
    per_seed = [float(x) for x in np.mean(np.asarray(returns, np.float64), axis=1)]
    mean, iqm = float(np.mean(per_seed)), evaluation.interquartile_mean(per_seed)
    return Evaluation(returns, per_seed, mean, iqm, env_steps, frozen, backend)


class _Session:
    """One process working on one run."""

    def __init__(self, program: Program, folder: RunFolder | None, progress: Progress) -> None:
        self.program, self.folder, self.progress = program, folder, progress
        self.config = program.config
        self.rows: list[dict[str, Any]] = []
        self.clock: Clock = loop.clock_at(0)
        self.state: LoopState
        self.wall_time = 0.0
        self.compile_seconds = 0.0
        self.calls = 1
        self.frozen: set[int] = set()
        self.run_compiled: Any = None
        self.evaluate_compiled: Any = None
        self.closing = contextlib.ExitStack()

    def begin(self, hyper: dict[str, Array]) -> Result:
        """Train from the start."""
        self.event("start", algorithm=self.config.algorithm, env=self.config.env, seeds=self.config.seeds)
        size = _bytes(jax.eval_shape(lambda: _initial(self.program, hyper)))
        if size >= WORTH_SAYING:
            self.progress.say(
                f"its state takes {size / 1e9:,.2f} GB of memory, and each checkpoint about as much of the disk"
            )
        self.state = _initial(self.program, hyper)
        # Before the long compilation, so that a run is resumable from its first moment.
        self.save()
        return self.train()

    def resume(self, steps_changed: bool) -> Result:
        """Train on from the newest checkpoint."""
        assert self.folder is not None
        _, self.state, restored = _restore(self.folder, self.program)
        if steps_changed and self.program.total_steps < restored.extra["env_steps"]:
            raise UserError(
                f"the run in {self.folder.path} is at {restored.extra['env_steps']} steps already; "
                f"steps must not be below, got {self.config.steps}"
            )
        for warning in restored.warnings:
            self.warn(warning)
        self.folder.truncate_metrics(restored.extra["metrics_offset"])
        if steps_changed:
            self.folder.write_config(to_dict(self.config))
        self.rows = self.folder.read_metrics()
        self.wall_time = restored.extra["wall_time"]
        self.clock = loop.clock_at(restored.extra["env_steps"])
        self.frozen = set(restored.extra["frozen"])
        now, then = environment(), self.folder.read_environment()
        for name in ("versions", "devices", "commit"):
            if now.get(name) != then.get(name):
                self.warn(f"{name} differ from those that the run started with: the resume need not be exact")
        if self.program.task.host is not None and self.config.data is None and self.goes_on() and self.clock.env_steps > 0:
            self.warn(
                f"the resume is not exact: the checkpoint cannot hold the state of {self.config.env}, so new episodes begin"
            )
        self.event("resume", env_steps=restored.extra["env_steps"], versions=now["versions"], commit=now.get("commit"))
        at = f"at {restored.extra['env_steps']:,} of {self.program.total_steps:,} steps"
        self.progress.say(f"resuming {at}" if self.goes_on() else f"the run is finished, {at}: nothing to do")
        # A kill may have come between the checkpoint and its picture.
        self.draw()
        return self.train()

    def goes_on(self) -> bool:
        """Whether steps are left, and a seed to take them."""
        return int(self.clock.env_steps) < self.program.total_steps and len(self.frozen) < self.config.seeds

    def train(self) -> Result:
        """Epochs to the end."""
        program, started = self.program, time.monotonic() - self.wall_time
        every = self.config.settings.eval_every
        with self.progress, self.closing:
            if program.task.host is not None and program.config.data is None and self.goes_on():
                self.progress.say(
                    f"{program.task.name} is stepped outside of the compiled program, with a trip to Python and back at "
                    f"each step: slower than a task in JAX; episodes of at most {program.task.episode_length:,} steps"
                )
            self.progress.update(int(self.clock.env_steps))
            while self.goes_on():
                epoch = int(self.clock.env_steps) // program.epoch_steps + 1
                epoch_started = time.monotonic()
                self.compile_seconds = 0.0
                self.run_epoch()
                returns = self.evaluate() if every and epoch % every == 0 else None
                now = time.monotonic()
                self.wall_time = now - started
                self.report(epoch, now - epoch_started - self.compile_seconds, returns)
                if not self.goes_on() or epoch % self.config.checkpoint_every == 0:
                    self.save()
                if len(self.frozen) == self.config.seeds:
                    self.warn("every seed has met a value that is not finite; the run ends here")
        self.event("end", env_steps=int(self.clock.env_steps), wall_time=round(self.wall_time, 3))
        path = None if self.folder is None else self.folder.path
        return Result(self.rows, self.state.algorithm, _policy(program.algorithm), program.task, self.config, path)

    def run_epoch(self) -> None:
        """Run the compiled program to the epoch's end, in chunks of about `CHUNK_SECONDS`."""
        program = self.program
        if self.run_compiled is None:
            self.run_compiled = program.loop.compiled(self.compile, self.closing, self.clock, self.state)
        end = (int(self.clock.env_steps) // program.epoch_steps + 1) * program.epoch_steps
        while int(self.clock.env_steps) < end:
            left = (end - int(self.clock.env_steps)) // program.loop.steps_per_call
            calls = min(self.calls, left)
            started = time.monotonic()
            self.clock, self.state = self.run_compiled(self.clock, self.state, jnp.asarray(calls, jnp.int32))
            jax.block_until_ready(self.state)
            seconds = max(time.monotonic() - started, 1e-6)
            self.calls = max(1, min(int(calls * CHUNK_SECONDS / seconds), 4 * calls))
            self.progress.update(int(self.clock.env_steps))

    def evaluate(self) -> np.ndarray:
        """Mean return of each seed's deterministic policy."""
        program, episodes = self.program, self.config.eval_episodes
        if self.evaluate_compiled is None:
            self.evaluate_compiled = evaluation.evaluator(
                program.algorithm, program.task, episodes, self.compile, self.closing, self.state.algorithm
            )
        return np.asarray(self.evaluate_compiled(self.state.algorithm), np.float64).mean(axis=1)

    def compile(self, what: str, function: Any, *args: Any) -> Any:
        """Compile ahead of time, so that compile time is seen as such."""
        self.progress.compiling(what)
        started = time.monotonic()
        compiled = function.lower(*args).compile()
        seconds = time.monotonic() - started
        self.compile_seconds += seconds
        self.progress.compiled(what, seconds)
        self.event("compile", what=what, seconds=round(seconds, 3))
        return compiled

    def report(self, epoch: int, seconds: float, returns: np.ndarray | None) -> None:
        """Write and show the epoch's rows."""
        found, fault = jax.device_get((self.state.metrics, self.state.fault))
        rows = []
        for k in range(self.config.seeds):
            seed = self.config.seed + k
            row = {
                "epoch": epoch,
                "env_steps": int(self.clock.env_steps),
                "seed": seed,
                "wall_time": round(self.wall_time, 3),
            }
            timing = {"time/epoch": round(seconds, 3)}
            if self.compile_seconds:
                timing["time/compile"] = round(self.compile_seconds, 3)
            if fault.what[k] >= 0:
                self.freeze(seed, epoch, self.program.loop.checked[fault.what[k]], int(fault.env_steps[k]))
                rows.append(row | {"frozen": True} | timing)
                continue
            of_seed = jax.tree.map(lambda x, k=k: x[k], found)
            row |= metrics.known(of_seed)
            if "train/return" in of_seed:
                row["train/episodes"] = int(of_seed["train/return"].weight)
            if returns is not None:
                row["eval/return"] = float(returns[k])
            rows.append(self.finite(row, seed, epoch) | timing)
        self.rows += rows
        if self.folder is not None:
            self.folder.append_metrics(rows)
        self.progress.epoch(rows)

    def finite(self, row: dict[str, Any], seed: int, epoch: int) -> dict[str, Any]:
        """The row without the sums that overflowed and returns that are not finite."""
        for name in [name for name, value in row.items() if not np.isfinite(value)]:
            text = f"'{name}' of seed {seed} was {row[name]} in epoch {epoch} and is left out of the metrics"
            self.warn(text, seed=seed, epoch=epoch, metric=name)
        return {name: value for name, value in row.items() if np.isfinite(value)}

    def freeze(self, seed: int, epoch: int, what: str, env_steps: int) -> None:
        """Say, once, that a seed met a value that is not finite."""
        if seed not in self.frozen:
            self.frozen.add(seed)
            text = f"seed {seed} is frozen: '{what}' was not finite in epoch {epoch}, at step {env_steps}"
            self.warn(text, seed=seed, epoch=epoch, metric=what, env_steps=env_steps)

    def save(self) -> None:
        """Write a checkpoint and the picture, if there is a folder."""
        if self.folder is None:
            return
        env_steps = int(self.clock.env_steps)
        extra = {
            "env_steps": env_steps,
            "metrics_offset": self.folder.metrics_offset(),
            "wall_time": self.wall_time,
            "frozen": sorted(self.frozen),
        }
        started = time.monotonic()
        checkpoint.save(self.folder.checkpoints, env_steps, self.state, extra)
        self.event("checkpoint", env_steps=env_steps, seconds=round(time.monotonic() - started, 3))
        self.draw()

    def draw(self) -> None:
        """Draw the picture, if there is a folder and something to see."""
        if self.folder is not None and self.rows:
            title = f"{self.config.algorithm} on {self.config.env}"
            curve.draw(self.rows, self.folder.path / "curve.png", title)

    def warn(self, text: str, **fields: Any) -> None:
        """Show a warning and keep it."""
        self.progress.warn(text)
        self.event("warning", text=text, **fields)

    def event(self, kind: str, **fields: Any) -> None:
        """Append to events.jsonl, if there is a folder."""
        if self.folder is not None:
            self.folder.event(kind, **fields)


def _initial(program: Program, hyper: dict[str, Array]) -> LoopState:
    config = program.config
    return jax.jit(program.loop.init)(config.seed + jnp.arange(config.seeds), hyper)


def _restore(
    folder: RunFolder, program: Program | None = None, repair: bool = True
) -> tuple[Program, LoopState, checkpoint.Restored]:
    program = build(read(folder), learns=False) if program is None else program
    like = jax.eval_shape(lambda: _initial(program, _hyper({}, program.config)))
    restored = checkpoint.restore(folder.checkpoints, like, repair)
    return program, restored.state, restored


def newest(run: str | Path) -> tuple[Program, LoopState, checkpoint.Restored]:
    """The parts and the state of a run, for looking at; what was wrong with newer checkpoints is a `RunWarning`."""
    program, state, restored = _restore(RunFolder.open(run), repair=False)
    for text in restored.warnings:
        warnings.warn(text, RunWarning, stacklevel=3)
    return program, state, restored


def _policy(algorithm: Algorithm) -> Callable[..., Policy]:
    return lambda state, explore=False: algorithm.policy(state, explore)


def check_memory(arrays: PyTree, what: str, advice: str) -> None:
    """Raise UserError, with `advice`, where `what` is `arrays` (or their shapes) and does not fit into the device."""
    needed = _bytes(arrays)
    held = _memory_bytes()
    if needed > held:
        raise UserError(f"{what} takes {needed / 1e9:,.1f} GB, the device has {held / 1e9:,.1f} GB; {advice}")


def _bytes(arrays: PyTree) -> int:
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(arrays))


def _memory_bytes() -> int:
    """Memory of one device."""
    limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if limit is None else limit


def check_whole(values: Any, name: str = "") -> None:
    """Raise UserError for a whole number that a compiled program cannot hold."""
    if isinstance(values, dict):
        for key, value in values.items():
            check_whole(value, f"{name}.{key}".removeprefix(".").removeprefix("settings."))
    elif isinstance(values, list):
        for i, value in enumerate(values):
            check_whole(value, f"{name}[{i}]")
    elif isinstance(values, int) and abs(values) >= WHOLE:
        raise UserError(f"{name} must be below {WHOLE}, got {values}")


def _hyper(given: Mapping[str, Any], config: RunConfig) -> dict[str, Array]:
    """Arrays [seeds] of the traced numbers."""
    method, values = algorithms.get(config.algorithm), to_dict(config.settings)
    found = {}
    for name, value in given.items():
        if name not in method.hyper:
            raise UserError(f"unknown hyper '{name}' of {config.algorithm}; {closest(name, method.hyper)}")
        try:
            found[name] = np.broadcast_to(np.asarray(value, float), (config.seeds,))
        except (TypeError, ValueError):
            raise UserError(f"hyper '{name}' must be a number or one a seed ({config.seeds}), got {value!r:.60}") from None
        for number in found[name]:
            from_dict(method.config, _replaced(copy.deepcopy(values), {_path(values, name): float(number)}))
    return {name: jnp.asarray(array, float) for name, array in found.items()}


def _path(values: Mapping[str, Any], name: str) -> str:
    """Dotted path of the first field called `name`."""
    if name in values:
        return name
    inner = ((key, _path(value, name)) for key, value in values.items() if isinstance(value, Mapping))
    return next((f"{key}.{path}" for key, path in inner if path), "")


def _replaced(values: dict[str, Any], changes: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    """`values` with dotted fields replaced."""
    for path, value in changes.items():
        at, *rest = str(path).split(".", 1)
        if at not in values:
            raise UserError(f"unknown field '{prefix}{at}'; {closest(at, values)}")
        if rest and not isinstance(values[at], dict):
            raise UserError(f"unknown field '{prefix}{path}': {prefix}{at} has no fields")
        nested = {rest[0]: value} if rest else value
        merges = isinstance(nested, Mapping) and isinstance(values[at], dict)
        values[at] = _replaced(values[at], nested, f"{prefix}{at}.") if merges else value
    return values


WORTH_SAYING = 100_000_000
"""Bytes from which on a run tells the size of its state."""
