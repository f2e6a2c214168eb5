"""Runs: training from settings, in memory or in a run folder, resuming, loading and evaluating."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import numbers
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import numpy as np
from annotated_types import Ge, Lt
from jaxtyping import Array, Float

from jaxmbrl import algorithms
from jaxmbrl.core import hints, xla
from jaxmbrl.core.config import UserError, check, converted, to_dict
from jaxmbrl.core.types import Policy, PyTree, Task
from jaxmbrl.envs.given import registration, resolve
from jaxmbrl.training import checkpoint, devices, evaluation, experts, hosted, logs, restoring
from jaxmbrl.training.console import Progress, Warnings, Work
from jaxmbrl.training.hosts import ALONE, Hosts
from jaxmbrl.training.loop import clock_at
from jaxmbrl.training.programs import (
    WHOLE,
    ChoosesModel,
    Program,
    RunConfig,
    build,
    changed,
    configure,
    drift,
    hyper_of,
    read,
)
from jaxmbrl.training.run_folder import RunFolder
from jaxmbrl.training.session import NOTHING, Attached, Callback, Result, Session, policy_of
from jaxmbrl.training.stopping import Stopping

BACKENDS = ("jax", "gymnasium")
"""Backends in which a policy can be evaluated."""


@hints.hinted_attributes
class Loaded(NamedTuple):
    """A trained policy."""

    policy: Callable[..., Policy]
    """(state of one seed, explore=False) -> policy."""
    state: PyTree
    """The algorithm's state, with a leading axis of seeds."""
    task: Task

    def __repr__(self) -> str:
        """The policy in a line; the state would fill pages."""
        seeds = next((leaf.shape[0] for leaf in jax.tree.leaves(self.state)), 0)
        return f"Loaded(policy, state of {seeds} seed{'s' if seeds > 1 else ''}, task {self.task.name})"


class Trained(NamedTuple):
    """The policy of a run in a folder, by its newest intact checkpoint, or of a result in memory."""

    program: Program
    states: PyTree
    """The algorithm's state, with a leading axis of seeds."""
    env_steps: int
    """Environment steps for which it was trained."""
    frozen: tuple[int, ...]
    """Seeds with a value that was not finite."""


class Evaluation(NamedTuple):
    """Returns under the deterministic policy."""

    returns: Float[Array, "seeds episodes"]
    per_seed: list[float]
    """Mean of each seed."""
    mean: float
    iqm: float
    """Interquartile mean of the seeds' means."""
    env_steps: int
    """Environment steps for which the policies were trained."""
    frozen: tuple[int, ...]
    """Seeds with a value that was not finite; the policy from before that value is evaluated."""
    backend: str
    """Where the episodes ran: `jax` (in the compiled program) or `gymnasium`."""


@hints.checked_arguments
def train(
    algorithm: str,
    env: Any,
    *,
    steps: int | None = None,
    seeds: int = 1,
    seed: int = 0,
    preset: str | None = None,
    settings: Any = None,
    hyper: Mapping[str, Any] | None = None,
    data: str | Path | None = None,
    out: str | Path | None = None,
    log: Any = (),
    callback: Callback | None = None,
    progress: Progress | None = None,
    stopping: Stopping | None = None,
    hosts: Hosts = ALONE,
    **fields: Any,
) -> Result:
    """Train `algorithm` on the task `env` and return the result; nothing is written unless `out` names a folder.

    `env` is the name of a task. It may also be a `Task`, a function that makes one or that makes Gymnasium environments, or
    what `gymnasium.make(ID)` returned (`envs.given`). With `out`, such a task is registered under its own name in this
    process; another process that resumes or evaluates the run must register it first (`envs.register`), and is told how.

    `settings` is the algorithm's config, or a mapping such as `{"ensemble.members": 7}` that changes the preset. `hyper`
    contains traced hyperparameters (`{"learning_rate": [1e-3, 3e-4]}`), one value or one per seed. With `data`, a file of
    transitions (`data.dataset`), nothing is collected: the algorithm learns from its rows in their order. `fields` are
    those of `RunConfig`, such as `demonstrations`, a file of transitions that the method samples besides its own.

    `log` names loggers ("tensorboard", "wandb") that receive the metrics too, or contains objects with `write(rows)` and
    `close()` (`logs.Logger`). `callback(rows)` is called at the end of each epoch with its rows of metrics, one for each
    seed, outside of the compiled program. If it returns False (and not another false value), the run is saved and ends, and
    its result so far is returned. If it raises an exception, the run is saved and the exception is passed on.

    If `stopping` is asked to stop, a run in a folder saves its state and ends. On several `hosts`, which share the folder,
    each trains its share of the seeds and returns their state.

    Without a `progress`, nothing is printed. Warnings, such as that of a seed that is frozen by a value that is not finite,
    are then passed to Python's `warnings` as `RunWarning`; `Result.frozen` names the seeds and the values.

    Raises UserError, before compiling, for settings that are unknown or out of range, for a task that is not as it must be
    (`envs.shapes`) and for a folder that is not writable; Stopped if asked to stop; `checkpointing.Lost` if the folder
    could not be written to for too long.
    """
    xla.prepare()
    _check_order(algorithm, env)
    console = _console(progress)
    _check_given(preset, hyper, data, out, stopping, hosts)
    name, task = resolve(env, keep=out is not None)
    names, attached = _attached(log, callback)
    given = dict(seeds=seeds, seed=seed, log=names, **fields)
    config = configure(algorithm, task or name, preset, settings, steps, data, **given)
    return begin_run(experts.build(config, task), hyper or {}, out, console, stopping, hosts, attached)


def _check_order(algorithm: Any, env: Any) -> None:
    """Raise UserError if the arguments of `train` are in another order."""
    swapped = isinstance(env, str) and env in algorithms.METHODS
    if not isinstance(algorithm, str) or (swapped and algorithm not in algorithms.METHODS):
        first, second = env if swapped else "sac", f"'{algorithm}'" if isinstance(algorithm, str) else "task"
        raise UserError(f"the algorithm comes first and the task second: jaxmbrl.train('{first}', {second})")


@hints.checked_arguments
def distill(
    run: str | Path | Result,
    *,
    env: str | None = None,
    hidden: tuple[int, ...] | list[int] | None = None,
    settings: Mapping[str, Any] | None = None,
    **arguments: Any,
) -> Result:
    """Train a small network that imitates the deterministic policy of the run in folder `run`, by the method `distillation`
    with DAgger (`algorithms.imitation.distillation`), and return the result.

    `hidden` are the units of its hidden layers, and `settings` other settings of `distillation`, such as
    `{"round_steps": 500}`. The other arguments are those of `train`, such as `steps` (labels of each seed) and `out`. Task,
    action repeat and number of seeds are by default those of the expert: each seed imitates one of the expert's. `env` may
    be the expert's task with another observation, as in `env="stacked/3/pixels/pendulum"` for an expert on `pendulum`: the
    student then learns from images, and the expert labels the states that they show.

    The student is a run like any other: `evaluate`, `export` and `resume` take it. Its expert is needed to resume it only.

    Raises UserError if `run` is not a run in a folder, and as `train` does.

    >>> student = distill("runs/pets", hidden=(16, 16), out="runs/student")  # doctest: +SKIP
    """
    if isinstance(run, Result) and run.path is None:
        raise UserError("an expert must have a folder: jaxmbrl.train(..., out='runs/x') makes a run in a folder")
    place = run.path if isinstance(run, Result) else run
    folder = RunFolder.open(place)  # type: ignore[arg-type]
    of = read(folder)
    chosen = dict(settings or {}) | ({} if hidden is None else {"hidden": list(hidden)})
    of_expert = {"seeds": of.seeds, "action_repeat": of.action_repeat, "expert": folder.path}
    return train("distillation", of.env if env is None else env, settings=chosen, **{**of_expert, **arguments})


def _check_given(preset: Any, hyper: Any, data: Any, out: Any, stopping: Any, hosts: Any) -> None:
    """Raise UserError for an argument of `train` of another type than it must have."""
    path, mapping = (str, os.PathLike), (Mapping,)
    for name, value, kinds, due in (
        ("preset", preset, (str,), "the name of a preset"),
        ("hyper", hyper, mapping, "a mapping such as {'learning_rate': [1e-3, 3e-4]}"),
        ("data", data, path, "the path of a file of transitions, as jaxmbrl.data.dataset.save writes it"),
        ("out", out, path, "the path of a new folder"),
        ("stopping", stopping, (Stopping,), "a jaxmbrl.training.stopping.Stopping"),
        ("hosts", hosts, (Hosts,), "a jaxmbrl.training.hosts.Hosts"),
    ):
        if value is not None and not isinstance(value, kinds):
            raise UserError(f"{name} must be {due}, got {value!r:.60}")


def _console(progress: Any) -> Progress:
    """The console of a run. Raises UserError if it is none."""
    if progress is None:
        return Warnings()
    if not isinstance(progress, Progress):
        raise UserError(f"progress must be a console, got {progress!r:.60}: {hints.SHOWN}")
    return progress


def begin_run(
    program: Program,
    hyper: Mapping[str, Any],
    out: str | Path | None,
    progress: Progress | None = None,
    stopping: Stopping | None = None,
    hosts: Hosts = ALONE,
    attached: Attached = NOTHING,
) -> Result:
    """Train `program` from the start. The other arguments and the errors are those of `train`."""
    config, traced = program.config, hyper_of(hyper, program.config)
    if config.seeds < hosts.count:
        raise UserError(f"seeds must be at least the number of hosts ({hosts.count}), got {config.seeds}")
    progress = _console(progress)
    if out is None and config.log:
        raise UserError(f"log '{config.log[0]}' writes into the folder of a run: give out, the name of a new folder")
    if out is None:
        return Session(program, None, progress, stopping, hosts, attached).begin(traced)
    with contextlib.ExitStack() as locks:
        if hosts.first:
            folder = RunFolder.create(out)
            locks.enter_context(folder.lock())
            # The config makes the folder a run, which can start from both files if it is stopped before a checkpoint.
            own = registration(config.env)
            folder.write_environment(
                {"hyper": {name: np.asarray(value).tolist() for name, value in traced.items()}}
                | ({} if own is None else {"registration": own})
            )
            folder.write_config(to_dict(config))
        hosts.gather(None)
        return Session(program, RunFolder.open(out), progress, stopping, hosts, attached).begin(traced)


@hints.checked_arguments
def resume(
    run: str | Path | Result,
    *,
    steps: int | None = None,
    settings: Mapping[str, Any] | None = None,
    log: Any = None,
    callback: Callback | None = None,
    progress: Progress | None = None,
    stopping: Stopping | None = None,
    **fields: Any,
) -> Result:
    """Continue the run in folder `run`, or in that of a result, from its newest intact checkpoint, to `steps` if given.
    `settings` and `fields`, named as in `train`, may change only what does not affect learning (`programs.MAY_CHANGE`). A
    run that was stopped before its first checkpoint starts from the beginning.

    `log` replaces the loggers of the run; None keeps those with a name. Objects and the `callback` are not saved: pass them
    again. Both receive the epochs after the checkpoint again if the process was killed.

    Raises UserError if `run` is not a run, has no intact checkpoint, or was started with other settings; also as `train`.
    """
    xla.prepare()
    if isinstance(run, Result) and run.path is None:
        raise UserError("a result in memory cannot be resumed: jaxmbrl.train(..., out='runs/x') makes a run in a folder")
    if not isinstance(settings, Mapping | None):
        raise UserError(f"settings must be a mapping such as {{'eval_every': 2}}, got {settings!r:.60}")
    _check_given(None, None, None, None, stopping, ALONE)
    folder = RunFolder.open(run.path if isinstance(run, Result) and run.path is not None else run)  # type: ignore[arg-type]
    config = read(folder)
    names, attached = _attached(config.log if log is None else log, callback)
    given = {**fields, "log": list(names)} | ({} if steps is None else {"steps": steps})
    return continue_run(folder, changed(config, settings or {}, given), progress, stopping, attached=attached)


def continue_run(
    folder: RunFolder,
    config: RunConfig,
    progress: Progress | None = None,
    stopping: Stopping | None = None,
    hosts: Hosts = ALONE,
    attached: Attached = NOTHING,
) -> Result:
    """Continue the run in `folder` with `config`. Raises as `resume` does."""
    xla.prepare()
    console = _console(progress)
    saved = checkpoint.extras(hosts.checkpoints(folder))
    for started in (to_dict(read(folder)), *(saved[step]["config"] for step in sorted(saved, reverse=True)[:1])):
        drifted = drift(started, to_dict(config))
        if drifted:
            differences = "; ".join(f"{name} was {then!r} and is {now!r}" for name, then, now in drifted)
            raise UserError(
                f"the run in {folder.path} cannot continue with other settings ({differences}); restore them, or start "
                "another run"
            )
    folder.check_precision()
    program = experts.build(config)
    with folder.lock() if hosts.first else contextlib.nullcontext():
        session = Session(program, folder, console, stopping, hosts, attached)
        if not restoring.can_begin(folder):
            return session.resume()
        hyper = hyper_of(folder.read_environment().get("hyper") or {}, config)
        console.say("the run has no checkpoint yet: it starts from the beginning")
        folder.write_config(to_dict(config))
        return session.begin(hyper)


def _attached(log: Any, callback: Any) -> tuple[tuple[str, ...], Attached]:
    """(names of loggers, objects that a run calls). Raises UserError for anything else."""
    names, loggers = logs.split(log)
    if callback is not None:
        _check_callback(callback)
    return names, Attached(loggers, callback)


def _check_callback(callback: Any) -> None:
    """Raise UserError for what cannot be called with the rows of an epoch."""
    if not callable(callback):
        raise UserError(f"callback must be a function of the rows of an epoch, got {callback!r:.60}")
    try:
        signature = inspect.signature(callback)
    except (TypeError, ValueError):
        # A function that is not written in Python.
        return
    try:
        signature.bind([])
    except TypeError:
        raise UserError(
            f"callback must take one argument, the rows of an epoch: 'def callback(rows)', got one with {signature}"
        ) from None


@hints.checked_arguments
def load(run: str | Path | Result) -> Loaded:
    """(policy, state, task) of the run in folder `run`, from its newest intact checkpoint, or of a result in memory. Raises
    UserError if there is none.

    >>> policy, state, task = load("runs/x")                              # doctest: +SKIP
    >>> act = policy(jax.tree.map(lambda x: x[0], state)).act             # doctest: +SKIP
    """
    xla.prepare()
    if isinstance(run, Result):
        return Loaded(run.policy, run.state, run.task)
    found = trained(run)
    algorithm, task = found.program.algorithm, found.program.task
    return Loaded(policy_of(algorithm, clock_at(found.env_steps), task, found.states), found.states, task)


@hints.checked_arguments
def evaluate(
    run: str | Path | Result | Trained,
    episodes: int = 10,
    model: str | None = None,
    backend: str | None = None,
    progress: Work | bool = False,
) -> Evaluation:
    """Returns of `episodes` episodes of each seed of the run in folder `run`, or of a result in memory, under its
    deterministic policy. What `trained` returned is not restored again.

    The start state depends only on the episode's index: it is the same for every seed and every run of the task. With
    `model` "true" the run's planner plans in the true simulator instead of the learned model. Raises UserError if the
    algorithm is not a planner.

    With the `backend` "gymnasium" the same episodes run in the task's Gymnasium counterpart, with C MuJoCo; tasks
    `gymnasium/...` always run there. Raises UserError if there is no counterpart, or if Gymnasium is not installed.

    With `progress`, an evaluation that takes more than a few seconds shows its progress and the time left.
    """
    xla.prepare()
    episodes = checked_episodes(episodes, backend)
    if not isinstance(progress, bool | Work | None):
        raise UserError(f"progress must be True, False or a jaxmbrl.training.console.Work, got {progress!r:.60}")
    program, states, env_steps, frozen = trained(run, model)
    algorithm, task = program.algorithm, program.task
    own = "jax" if task.host is None else "gymnasium"
    if backend == "jax" and own != backend:
        raise UserError(f"task '{task.name}' runs outside of the compiled program: leave the backend out")
    chosen, clock = backend or own, clock_at(env_steps)
    work = Work("evaluating", task.episode_length, "steps") if progress is True else progress or Work.silent()
    with contextlib.ExitStack() as closing, work:
        if chosen == "jax":
            given = (algorithm, task, episodes, program.compile, clock, states)
            returns = evaluation.in_parts(*given, work.update)
        else:
            function = evaluation.evaluator(
                algorithm,
                task,
                episodes,
                program.compile,
                closing,
                clock,
                states,
                devices.single_device(program.config.seeds),
                in_gymnasium=True,
            )
            assert isinstance(function, hosted.Evaluator)
            function.update = work.update
            returns = function(clock, states)
    return summarise(returns, env_steps, frozen, chosen)


def checked_episodes(given: Any, backend: str | None = None) -> int:
    """The number of episodes. Raises UserError for anything else, such as a task in its place, and for a `backend` that is
    none."""
    if backend not in (None, *BACKENDS):
        raise UserError(f"backend must be {' or '.join(repr(name) for name in BACKENDS)}, got {backend!r}")
    number = isinstance(given, numbers.Number) or str(given).isdecimal()
    own = "" if number else ": a run is evaluated on its own task, which is not given"
    if own and not isinstance(given, str):
        raise UserError(f"episodes must be a whole number, got an object of type {type(given).__name__}{own}")
    try:
        return int(converted(Annotated[int, Ge(1), Lt(WHOLE)], given, "episodes"))
    except UserError as error:
        raise UserError(f"{error}{own}") from None


def trained(run: str | Path | Result | Trained, model: str | None = None) -> Trained:
    """The policy of the run in folder `run` (as `restoring.newest`) or of a result in memory. If `model` is given, its
    planner uses that model. What this function returned is returned unchanged without a `model`."""
    if isinstance(run, Trained):
        return run if model is None else run._replace(program=build(planning_in(run.program.config, model), learns=False))
    if isinstance(run, Result):
        config = run.config if model is None else planning_in(run.config, model)
        # The task of a result need not be registered, and repeats its actions already.
        alone = dataclasses.replace(config, action_repeat=1)
        return Trained(build(alone, learns=False, task=run.task), run.state, run.env_steps, tuple(run.frozen))
    program, state, restored = restoring.newest(run)
    if model is not None:
        program = build(planning_in(program.config, model), learns=False)
    return Trained(program, state.algorithm, restored.extra["env_steps"], tuple(restored.extra["frozen"]))


def planning_in(config: RunConfig, model: str) -> RunConfig:
    """The config of the run, with a planner that uses `model`."""
    settings = config.settings
    if not isinstance(settings, ChoosesModel):
        raise UserError(f"model is a setting of planners, and {config.algorithm} is not a planner: leave it out")
    if settings.uses_true_model() and model == "learned":
        raise UserError("the run planned in the true simulator and did not learn a model: leave model out")
    return dataclasses.replace(config, settings=check(settings.with_model(model)))


def summarise(
    returns: Float[Array, "seeds episodes"], env_steps: int, frozen: tuple[int, ...] = (), backend: str = "jax"
) -> Evaluation:
    """The `Evaluation` with means per seed and over seeds."""
    per_seed = [float(x) for x in np.mean(np.asarray(returns, np.float64), axis=1)]
    mean, iqm = float(np.mean(per_seed)), evaluation.interquartile_mean(per_seed)
    return Evaluation(returns, per_seed, mean, iqm, env_steps, frozen, backend)
