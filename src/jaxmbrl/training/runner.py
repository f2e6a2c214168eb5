"""Runs: training from settings, in memory or in a run folder, resuming, loading and evaluating."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Float

from jaxmbrl import algorithms
from jaxmbrl.core import xla
from jaxmbrl.core.config import UserError, check, to_dict
from jaxmbrl.core.types import Policy, PyTree, Task
from jaxmbrl.envs.given import resolve
from jaxmbrl.training import checkpoint, devices, evaluation, hints, hosted, logs
from jaxmbrl.training.console import Progress, Warnings, Work
from jaxmbrl.training.hosts import ALONE, Hosts
from jaxmbrl.training.loop import LoopState, clock_at
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
from jaxmbrl.training.restoring import newest
from jaxmbrl.training.run_folder import RunFolder
from jaxmbrl.training.session import NOTHING, Attached, Callback, Result, Session, policy_of
from jaxmbrl.training.stopping import Stopping

BACKENDS = ("jax", "gymnasium")
"""Backends in which a policy can be evaluated."""


class Loaded(NamedTuple):
    """A trained policy."""

    policy: Callable[..., Policy]
    """(state of one seed, explore=False) -> policy."""
    state: PyTree
    """The algorithm's state, with a leading axis of seeds."""
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
    """Environment steps for which the policies were trained."""
    frozen: tuple[int, ...]
    """Seeds with a value that was not finite; the policy from before that value is evaluated."""
    backend: str
    """Where the episodes ran: `jax` (in the compiled program) or `gymnasium`."""


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
    process; another process that resumes or evaluates the run must register it first.

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
    xla.ensure_threads()
    _check_order(algorithm, env)
    console = _console(progress)
    name, task = resolve(env, keep=out is not None)
    names, attached = _attached(log, callback)
    given = dict(seeds=seeds, seed=seed, log=names, **fields)
    config = configure(algorithm, task or name, preset, settings, steps, data, **given)
    return begin_run(build(config, task=task), hyper or {}, out, console, stopping, hosts, attached)


def _check_order(algorithm: Any, env: Any) -> None:
    """Raise UserError if the arguments of `train` are in another order."""
    swapped = isinstance(env, str) and env in algorithms.METHODS
    if not isinstance(algorithm, str) or (swapped and algorithm not in algorithms.METHODS):
        first, second = env if swapped else "sac", f"'{algorithm}'" if isinstance(algorithm, str) else "task"
        raise UserError(f"the algorithm comes first and the task second: jaxmbrl.train('{first}', {second})")


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
            folder.write_config(to_dict(config))
            folder.write_environment({"hyper": {name: np.asarray(value).tolist() for name, value in traced.items()}})
        hosts.gather(None)
        return Session(program, RunFolder.open(out), progress, stopping, hosts, attached).begin(traced)


def resume(
    run: str | Path,
    *,
    steps: int | None = None,
    settings: Mapping[str, Any] | None = None,
    log: Any = None,
    callback: Callback | None = None,
    progress: Progress | None = None,
    stopping: Stopping | None = None,
    **fields: Any,
) -> Result:
    """Continue the run in folder `run` from its newest intact checkpoint, to `steps` if given. `settings` and `fields`,
    named as in `train`, may change only what does not affect learning (`programs.MAY_CHANGE`).

    `log` replaces the loggers of the run; None keeps those with a name. Objects and the `callback` are not saved: pass them
    again. Both receive the epochs after the checkpoint again if the process was killed.

    Raises UserError if `run` is not a run, has no intact checkpoint, or was started with other settings; also as `train`.
    """
    xla.ensure_threads()
    folder = RunFolder.open(run)
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
    xla.ensure_threads()
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
    program = build(config)
    with folder.lock() if hosts.first else contextlib.nullcontext():
        return Session(program, folder, console, stopping, hosts, attached).resume()


def _attached(log: Any, callback: Any) -> tuple[tuple[str, ...], Attached]:
    """(names of loggers, objects that a run calls). Raises UserError for anything else."""
    names, loggers = logs.split(log)
    if callback is not None and not callable(callback):
        raise UserError(f"callback must be a function of the rows of an epoch, got {callback!r:.60}")
    return names, Attached(loggers, callback)


def load(run: str | Path) -> Loaded:
    """(policy, state, task) of the run in folder `run`, from its newest intact checkpoint. Raises UserError if there is
    none.

    >>> policy, state, task = load("runs/x")                              # doctest: +SKIP
    >>> act = policy(jax.tree.map(lambda x: x[0], state)).act             # doctest: +SKIP
    """
    xla.ensure_threads()
    program, state, restored = newest(run)
    clock = clock_at(restored.extra["env_steps"])
    return Loaded(policy_of(program.algorithm, clock), state.algorithm, program.task)


def evaluate(
    run: str | Path,
    episodes: int = 10,
    model: str | None = None,
    backend: str | None = None,
    progress: Work | bool = False,
) -> Evaluation:
    """Returns of `episodes` episodes of each seed of the run in folder `run`, under its deterministic policy.

    The start state depends only on the episode's index: it is the same for every seed and every run of the task. With
    `model` "true" the run's planner plans in the true simulator instead of the learned model. Raises UserError if the
    algorithm is not a planner.

    With the `backend` "gymnasium" the same episodes run in the task's Gymnasium counterpart, with C MuJoCo; tasks
    `gymnasium/...` always run there. Raises UserError if there is no counterpart, or if Gymnasium is not installed.

    With `progress`, an evaluation that takes more than a few seconds shows its progress and the time left.
    """
    xla.ensure_threads()
    if backend not in (None, *BACKENDS):
        raise UserError(f"backend must be {' or '.join(repr(name) for name in BACKENDS)}, got {backend!r}")
    if not 1 <= episodes < WHOLE:
        raise UserError(f"episodes must be at least 1 and below {WHOLE}, got {episodes}")
    program, state, restored = trained(run, model)
    algorithm, task = program.algorithm, program.task
    own = "jax" if task.host is None else "gymnasium"
    if backend == "jax" and own != backend:
        raise UserError(f"task '{task.name}' runs outside of the compiled program: leave the backend out")
    chosen, clock = backend or own, clock_at(restored.extra["env_steps"])
    work = Work("evaluating", task.episode_length, "steps") if progress is True else progress or Work.silent()
    with contextlib.ExitStack() as closing, work:
        if chosen == "jax":
            given = (algorithm, task, episodes, program.compile, clock, state.algorithm)
            returns = evaluation.in_parts(*given, work.update)
        else:
            function = evaluation.evaluator(
                algorithm,
                task,
                episodes,
                program.compile,
                closing,
                clock,
                state.algorithm,
                devices.single_device(program.config.seeds),
                in_gymnasium=True,
            )
            assert isinstance(function, hosted.Evaluator)
            function.update = work.update
            returns = function(clock, state.algorithm)
    return summarise(returns, restored.extra["env_steps"], tuple(restored.extra["frozen"]), chosen)


def trained(run: str | Path, model: str | None = None) -> tuple[Program, LoopState, checkpoint.Restored]:
    """As `restoring.newest`; if `model` is given, the run's planner uses that model."""
    program, state, restored = newest(run)
    if model is not None:
        program = build(planning_in(program.config, model), learns=False)
    return program, state, restored


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
