"""Sessions: one process working on one run, from its start or on from where it stopped."""

from __future__ import annotations

import contextlib
import dataclasses
import time
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxmbrl.core import metrics
from jaxmbrl.core.config import UserError, to_dict
from jaxmbrl.core.types import Algorithm, Clock, Policy, PyTree, Task
from jaxmbrl.training import checkpoint, curve, devices, evaluation, loop, memory
from jaxmbrl.training.checkpointing import Keeper, part_of
from jaxmbrl.training.console import Progress
from jaxmbrl.training.hosts import ALONE, Hosts
from jaxmbrl.training.loop import LoopState
from jaxmbrl.training.programs import Program, RunConfig, build, hyper_of, initial, read
from jaxmbrl.training.run_folder import RunFolder, environment
from jaxmbrl.training.stopping import Stopped, Stopping

CHUNK_SECONDS = 3.0
"""Wall clock that one call of the compiled program aims at; between two, progress is shown and signals are seen."""

PATIENCE_SECONDS = 20.0
"""For which one of several hosts that was asked to stop waits to tell the others, before it stops alone."""

WORTH_SAYING = 100_000_000
"""Bytes from which on a run tells the size of its state."""


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


class RunWarning(UserWarning):
    """Something about a run that its user should know."""


class Session:
    """One process working on one run."""

    def __init__(
        self,
        program: Program,
        folder: RunFolder | None,
        progress: Progress,
        stopping: Stopping | None = None,
        hosts: Hosts = ALONE,
    ) -> None:
        self.progress, self.hosts = progress, hosts
        self.config = program.config
        self.whole, self.program = program, share_of(program, hosts)
        self.keeper = None if folder is None else Keeper(folder, self.config.checkpoint, progress.say, self.warn, hosts)
        self.stopping = stopping or Stopping(progress.say)
        self.patience = 0.0 if hosts.count == 1 else PATIENCE_SECONDS
        self.rows: list[dict[str, Any]] = []
        self.clock: Clock = loop.clock_at(0)
        self.state: LoopState
        self.wall_time = 0.0
        self.epoch_seconds = 0.0
        self.spent = {"compile": 0.0, "train": 0.0, "evaluate": 0.0}
        """Seconds of the epoch in progress; of training and evaluation, those that the compiled program ran."""
        self.calls = 1
        self.frozen: set[int] = set()
        self.compiled: dict[str, Any] = {}
        self.run_compiled: Any = None
        self.evaluate_compiled: Any = None
        self.closing = contextlib.ExitStack()
        self.warned: set[str] = set()
        self.counted = time.monotonic()
        # A task on the host is stepped for all seeds at once.
        on_one = program.task.host is not None
        self.spread = devices.spread(self.program.config.seeds, jax.local_devices()[: 1 if on_one else None])
        if self.spread.devices > 1:
            self.progress.say(self.spread.told())

    @property
    def env_steps(self) -> int:
        """Environment steps that each seed has taken."""
        return int(self.clock.env_steps)

    def begin(self, hyper: dict[str, Array]) -> Result:
        """Train from the start."""
        self.event("start", algorithm=self.config.algorithm, env=self.config.env, seeds=self.config.seeds)
        size = memory.bytes_of(jax.eval_shape(lambda: initial(self.program, hyper_of({}, self.program.config))))
        if size >= WORTH_SAYING:
            self.progress.say(
                f"its state takes {size / 1e9:,.2f} GB of memory, and each checkpoint about as much of the disk"
            )
        begins, number = self.hosts.share(self.config.seeds)
        of_share = jax.tree.map(lambda x: x[begins : begins + number], hyper)
        self.state = initial(self.program, of_share, self.spread)
        # Before the long compilation, so that a run is resumable from its first moment.
        self.save(wait=True)
        return self.train()

    def resume(self) -> Result:
        """Train on from the newest checkpoint."""
        assert self.keeper is not None
        folder = self.keeper.folder
        state, restored = self.restore()
        self.state = self.spread.place(state)
        if self.program.total_steps < restored.extra["env_steps"]:
            raise UserError(
                f"the run in {folder.path} is at {restored.extra['env_steps']} steps already; "
                f"steps must not be below, got {self.config.steps}"
            )
        for warning in restored.warnings:
            self.warn(warning)
        if self.hosts.first:
            folder.truncate_metrics(restored.extra["metrics_offset"])
            if to_dict(self.config) != folder.read_config():
                folder.write_config(to_dict(self.config))
        self.hosts.gather(None)
        self.rows = folder.read_metrics()
        self.wall_time, self.epoch_seconds = restored.extra["wall_time"], restored.extra["epoch_seconds"]
        self.spent |= restored.extra["spent"]
        self.clock = loop.clock_at(restored.extra["env_steps"])
        self.frozen = {row["seed"] for row in self.rows if row.get("frozen", False)}
        self.keeper.goes_on_from(self.env_steps)
        now, then = environment(), folder.read_environment()
        for name in ("versions", "devices", "commit"):
            if now.get(name) != then.get(name):
                self.warn(f"{name} differ from those that the run started with: the resume need not be exact")
        if self.program.task.host is not None and self.config.data is None and self.goes_on() and self.env_steps > 0:
            self.warn(
                f"the resume is not exact: the checkpoint cannot hold the state of {self.config.env}, so new episodes begin"
            )
        if restored.left_out:
            self.warn(
                "the resume need not be exact: the checkpoint is without imagined transitions (checkpoint.model_buffer)"
            )
        self.event("resume", env_steps=self.env_steps, versions=now["versions"], commit=now.get("commit"))
        at = f"at {self.env_steps:,} of {self.program.total_steps:,} steps"
        ended = not self.goes_on() and not self.has_pending_metrics()
        self.progress.say(f"the run is finished, {at}: nothing to do" if ended else f"resuming {at}")
        # A kill may have come between the checkpoint and its picture.
        self.draw()
        return self.train()

    def restore(self) -> tuple[LoopState, checkpoint.Restored]:
        """The newest intact state of this host's seeds."""
        assert self.keeper is not None
        found = None
        if self.hosts.first:
            # What is damaged is set aside before the others look.
            found = restore(self.keeper.folder, self.whole)
        self.hosts.gather(None)
        _, state, restored = found or restore(self.keeper.folder, self.whole, repair=False)
        begins, number = self.hosts.share(self.config.seeds)
        if self.hosts.count > 1:
            state = jax.tree.map(lambda x: x[begins : begins + number], state)
        return state, restored

    def goes_on(self) -> bool:
        """Whether steps are left, and a seed to take them."""
        return self.env_steps < self.program.total_steps and len(self.frozen) < self.config.seeds

    def has_pending_metrics(self) -> bool:
        """Whether an epoch has come to its end of which the metrics do not tell yet."""
        done, within = divmod(self.env_steps, self.program.epoch_steps)
        return not within and len(self.rows) < done * self.config.seeds

    def train(self) -> Result:
        """Epochs to the end. Raises Stopped when asked to stop, after saving."""
        program, every = self.program, self.config.settings.eval_every
        with self.progress, self.closing:
            if program.task.host is not None and program.config.data is None and self.goes_on():
                self.progress.say(
                    f"{program.task.name} is stepped outside of the compiled program, with a trip to Python and back at "
                    f"each step: slower than a task in JAX; episodes of at most {program.task.episode_length:,} steps"
                )
            self.progress.update(self.env_steps)
            while self.goes_on() or self.has_pending_metrics():
                epoch = len(self.rows) // self.config.seeds + 1
                self.run_to(epoch * program.epoch_steps)
                returns = self.evaluate() if every and epoch % every == 0 else None
                self.count_time()
                self.report(epoch, returns)
                if len(self.frozen) == self.config.seeds:
                    self.warn("every seed has met a value that is not finite; the run ends here")
                if self.goes_on():
                    self.between(epoch)
            self.save_before_exit()
        self.event("end", env_steps=self.env_steps, wall_time=round(self.wall_time, 3))
        path = None if self.keeper is None else self.keeper.folder.path
        learner = self.spread.of_seeds(self.state.algorithm)
        return Result(self.rows, learner, policy_of(program.algorithm, self.clock), program.task, self.config, path)

    def run_to(self, end: int) -> None:
        """Run the compiled program to `end` environment steps, in chunks of about `CHUNK_SECONDS`."""
        program = self.program
        if self.run_compiled is None and self.env_steps < end:
            self.run_compiled = program.loop.compiled(self.compile, self.closing, self.clock, self.state, self.spread)
        while self.env_steps < end:
            left = (end - self.env_steps) // program.loop.steps_per_call
            calls = min(self.calls, left)
            started = time.monotonic()
            with memory.told("training", self.compiled.get("training")):
                self.clock, self.state = self.run_compiled(self.clock, self.state, jnp.asarray(calls, jnp.int32))
                jax.block_until_ready(self.state)
            self.spent["train"] += time.monotonic() - started
            seconds = max(self.gathered(max, time.monotonic() - started), 1e-6)
            self.calls = max(1, min(int(calls * CHUNK_SECONDS / seconds), 4 * calls))
            self.progress.update(self.env_steps)
            if self.env_steps < end:
                self.between(None)

    def between(self, epoch: int | None) -> None:
        """What is due between two calls of the compiled program, at the end of `epoch` or within one (None)."""
        if self.gathered(any, self.stopping.asked):
            self.stop()
        if self.keeper is None:
            return
        self.keeper.flush()
        if self.gathered(any, self.keeper.due(epoch)):
            self.save()
            self.draw()

    def stop(self) -> None:
        """Save, and end the session."""
        self.event("stop", env_steps=self.env_steps)
        self.save_before_exit()
        self.progress.end()
        raise Stopped(f"stopped at {self.env_steps:,} of {self.program.total_steps:,} steps")

    def gathered(self, over: Callable[[Iterable[Any]], Any], told: Any) -> Any:
        """`over` what all hosts tell; while it waits for them, its own state is whole."""
        with self.stopping.meanwhile(self.stop, self.patience):
            return over(self.hosts.gather(told))

    def count_time(self) -> None:
        """Add the time since this was last called."""
        now = time.monotonic()
        self.wall_time += now - self.counted
        self.epoch_seconds += now - self.counted
        self.counted = now

    def evaluate(self) -> np.ndarray:
        """Mean return of each seed's deterministic policy."""
        program, episodes = self.program, self.config.eval_episodes
        if self.evaluate_compiled is None:
            self.evaluate_compiled = evaluation.evaluator(
                program.algorithm,
                program.task,
                episodes,
                self.compile,
                self.closing,
                self.clock,
                self.state.algorithm,
                self.spread,
            )
        started = time.monotonic()
        with self.stopping.meanwhile(self.stop, self.patience), memory.told("evaluation", self.compiled.get("evaluation")):
            returns = np.asarray(self.evaluate_compiled(self.clock, self.state.algorithm), np.float64).mean(axis=1)
        self.spent["evaluate"] += time.monotonic() - started
        return returns

    def compile(self, what: str, function: Any, *args: Any) -> Any:
        """Compile ahead of time, so that compile time is seen as such."""
        self.progress.compiling(what)
        started = time.monotonic()
        with self.stopping.meanwhile(self.stop, self.patience), memory.told(f"compiling {what}"):
            compiled = self.program.compile(what, function, *args)
        memory.check_compiled(what, compiled, self.spread.devices)
        self.compiled[what] = compiled
        seconds = time.monotonic() - started
        self.spent["compile"] += seconds
        self.epoch_seconds -= seconds
        self.progress.compiled(what, seconds)
        self.event("compile", what=what, seconds=round(seconds, 3), memory=memory.needed(compiled))
        return compiled

    def report(self, epoch: int, returns: np.ndarray | None) -> None:
        """Write and show the epoch's rows."""
        found, fault = jax.device_get((self.state.metrics, self.state.fault))
        own, rows = self.program.config, []
        timing = {"time/epoch": round(self.epoch_seconds, 3)}
        timing |= {f"time/{name}": round(seconds, 3) for name, seconds in self.spent.items() if seconds}
        for k in range(own.seeds):
            seed = own.seed + k
            row = {
                "epoch": epoch,
                "env_steps": self.env_steps,
                "seed": seed,
                "wall_time": round(self.wall_time, 3),
            }
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
        rows = self.gathered(lambda all_rows: [row for rows in all_rows for row in rows], rows)
        self.frozen |= {row["seed"] for row in rows if row.get("frozen", False)}
        self.rows += rows
        self.epoch_seconds, self.spent = 0.0, dict.fromkeys(self.spent, 0.0)
        if self.keeper is not None:
            self.keeper.rows(rows)
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

    def save(self, wait: bool = False) -> None:
        """Begin a checkpoint, if there is a folder; with `wait` it is written when this returns."""
        if self.keeper is None:
            return
        self.count_time()
        extra = {
            "env_steps": self.env_steps,
            "wall_time": self.wall_time,
            "epoch_seconds": self.epoch_seconds,
            "spent": self.spent | {"compile": 0.0},
            "frozen": [self.program.config.seed + int(k) for k in np.flatnonzero(self.faults() >= 0)],
            "score": self.score(),
            "config": to_dict(self.config),
        }
        self.keeper.save(self.env_steps, self.spread.of_seeds(self.state), extra, wait)

    def faults(self) -> np.ndarray:
        """Of each seed, the index of what was not finite; -1 while all is well."""
        return np.asarray(self.state.fault.what)[: self.program.config.seeds]

    def save_before_exit(self) -> None:
        """Bring everything to the disk, waiting where it refuses. Raises Lost when it refuses for too long."""
        if self.keeper is None:
            return
        while not self.keeper.holds(self.env_steps):
            self.save(wait=True)
            if not self.keeper.holds(self.env_steps):
                time.sleep(1.0)
        self.draw()

    def score(self) -> float | None:
        """Mean return over seeds where the newest rows are of an evaluation at this very step."""
        newest = self.rows[-self.config.seeds :]
        found = [row["eval/return"] for row in newest if row["env_steps"] == self.env_steps and "eval/return" in row]
        return float(np.mean(found)) if found else None

    def draw(self) -> None:
        """Draw the picture, if there is a folder and something to see; a run does not depend on it."""
        if self.keeper is None or not self.rows or not self.hosts.first:
            return
        path = self.keeper.folder.path / "curve.png"
        try:
            curve.draw(self.rows, path, f"{self.config.algorithm} on {self.config.env}")
        except Exception as error:
            if "picture" not in self.warned:
                self.warned.add("picture")
                self.warn(f"{path} could not be drawn ({type(error).__name__}: {error}); training goes on without it")

    def warn(self, text: str, **fields: Any) -> None:
        """Show a warning and keep it."""
        self.progress.warn(text)
        self.event("warning", text=text, **fields)

    def event(self, kind: str, **fields: Any) -> None:
        """Append to events.jsonl, if there is a folder."""
        if self.keeper is not None:
            self.keeper.event(kind, **fields)


def restore(
    folder: RunFolder, program: Program | None = None, repair: bool = True, before: int | None = None
) -> tuple[Program, LoopState, checkpoint.Restored]:
    """The parts and the newest intact state of the run in `folder`, of a step below `before` where that is given; with
    `repair` what is damaged is set aside. What several hosts saved is put together."""
    program = build(read(folder), learns=False) if program is None else program
    warnings: list[str] = []
    while True:
        step, source = newest_of_all(folder, before)
        parts = [_restore_part(folder, program, host, repair, step + 1 if len(source) > 1 else before) for host in source]
        warnings += [warning for part in parts for warning in part.warnings]
        if len(source) == 1 or all(part.step == step for part in parts):
            break
        before = step
    state = parts[0].state if len(parts) == 1 else jax.tree.map(lambda *x: jnp.concatenate(x), *(p.state for p in parts))
    extra = parts[0].extra | {"frozen": sorted(seed for part in parts for seed in part.extra["frozen"])}
    left_out = any(part.left_out for part in parts)
    return program, state, parts[0]._replace(state=state, extra=extra, warnings=tuple(warnings), left_out=left_out)


def newest_of_all(folder: RunFolder, before: int | None) -> tuple[int, list[Hosts]]:
    """The newest step of which there is a checkpoint of every host, below `before`; and the hosts."""
    counts = {int(path.name.rsplit("-", 1)[1]) for path in folder.checkpoints.glob("host-0-of-*")}
    found = [(-1, [ALONE])]
    for count in sorted({1, *counts}):
        hosts = [Hosts(count, i) for i in range(count)]
        common = set.intersection(*(set(checkpoint.steps(part_of(folder, host))) for host in hosts))
        found += [(step, hosts) for step in common if before is None or step < before]
    return max(found, key=lambda pair: pair[0])


def _restore_part(
    folder: RunFolder, program: Program, hosts: Hosts, repair: bool, before: int | None
) -> checkpoint.Restored:
    """What one host saved."""
    own = share_of(program, hosts)

    def fresh() -> LoopState:
        return initial(own, hyper_of({}, own.config))

    return checkpoint.restore(part_of(folder, hosts), jax.eval_shape(fresh), repair, before, fresh)


def newest(run: str | Path) -> tuple[Program, LoopState, checkpoint.Restored]:
    """The parts and the state of a run, for looking at; what was wrong with newer checkpoints is a `RunWarning`."""
    program, state, restored = restore(RunFolder.open(run), repair=False)
    for text in restored.warnings:
        warnings.warn(text, RunWarning, stacklevel=3)
    return program, state, restored


def share_of(program: Program, hosts: Hosts) -> Program:
    """The program of this host's seeds alone."""
    begins, number = hosts.share(program.config.seeds)
    return program._replace(config=dataclasses.replace(program.config, seed=program.config.seed + begins, seeds=number))


def policy_of(algorithm: Algorithm, clock: Clock) -> Callable[..., Policy]:
    """(state of one seed, explore=False) -> policy, as at that clock."""
    return lambda state, explore=False: algorithm.policy(state, clock, explore)
