"""Sessions: one process working on one run, from its start or from its newest checkpoint."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxmbrl.core import hints
from jaxmbrl.core.config import UserError, to_dict
from jaxmbrl.core.spaces import Discrete
from jaxmbrl.core.types import Algorithm, Clock, Policy, PyTree, Task
from jaxmbrl.envs.given import registration
from jaxmbrl.training import checkpoint, devices, epoch_rows, evaluation, first_rows, memory, probing, targets
from jaxmbrl.training.checkpointing import Lost
from jaxmbrl.training.console import Progress
from jaxmbrl.training.epoch_rows import Evaluated
from jaxmbrl.training.hosts import ALONE, Hosts
from jaxmbrl.training.logs import Logger
from jaxmbrl.training.loop import LoopState
from jaxmbrl.training.programs import Program, RunConfig, initial, initial_shapes, unlearned
from jaxmbrl.training.recording import Recorder
from jaxmbrl.training.restoring import restore, share_of
from jaxmbrl.training.run_folder import RunFolder, environment
from jaxmbrl.training.stopping import Stopped, Stopping
from jaxmbrl.training.timing import Timing

CHUNK_SECONDS = 3.0
"""Target duration of one call of the compiled program; between calls, progress is shown and signals are handled."""

PATIENCE_SECONDS = 20.0
"""Time for which one of several hosts that was asked to stop tries to inform the others, before it stops alone."""

LARGE_STATE = 100_000_000
"""A run prints the size of its state if it has at least this many bytes."""

Callback = Callable[[list[dict[str, Any]]], Any]
"""(rows of an epoch, one for each seed) -> False to stop the run; anything else to continue."""


class Attached(NamedTuple):
    """Objects of the user that a run calls at the end of each epoch, outside of the compiled program. Of several hosts only
    the first calls them."""

    loggers: tuple[Logger, ...] = ()
    """Loggers beside those of the config."""
    callback: Callback | None = None


NOTHING = Attached()


class Frozen(NamedTuple):
    """Why a seed is frozen."""

    what: str
    """The first value that was not finite, such as `transition/reward` or the name of a metric."""
    env_steps: int
    """Environment steps at which it occurred."""


@hints.hinted_attributes
class Result(NamedTuple):
    """A trained policy and its metrics, in memory."""

    rows: list[dict[str, Any]]
    """The metrics, one row for each epoch and seed."""
    state: PyTree
    """The algorithm's state, with a leading axis of seeds."""
    policy: Callable[..., Policy]
    """(state of one seed, explore=False) -> policy."""
    task: Task
    config: RunConfig
    path: Path | None
    """The run folder, if there is one."""
    env_steps: int
    """Environment steps that each seed took: `config.total_steps`, or fewer if the run ended early."""
    frozen: Mapping[int, Frozen]
    """The seeds with a value that was not finite, and that value. Their state is from before it, and their rows since then
    have no metrics."""

    def __repr__(self) -> str:
        """The run in a line; the state would fill pages."""
        config = self.config
        told = [
            f"{self.env_steps:,} of {config.total_steps:,} steps",
            f"{config.seeds} seed{'s' if config.seeds > 1 else ''}",
        ]
        for metric in ("eval/return", "train/return"):
            values = [row[metric] for row in self.rows if metric in row and row["epoch"] == self._last_epoch_of(metric)]
            if values:
                told.append(f"{metric} {sum(values) / len(values):.1f}")
                break
        told += [f"{len(self.frozen)} frozen"] if self.frozen else []
        told += ["in memory" if self.path is None else f"in {self.path}"]
        return f"Result({config.algorithm} on {self.task.name}: {', '.join(told)})"

    def _last_epoch_of(self, metric: str) -> int:
        return max(row["epoch"] for row in self.rows if metric in row)


class Session:
    """One process working on one run."""

    def __init__(
        self,
        program: Program,
        folder: RunFolder | None,
        progress: Progress,
        stopping: Stopping | None = None,
        hosts: Hosts = ALONE,
        attached: Attached = NOTHING,
    ) -> None:
        self.progress, self.hosts = progress, hosts
        self.attached = attached
        self.config = program.config
        self.whole, self.program = program, share_of(program, hosts)
        self.recorder = Recorder(folder, self.config, progress, hosts, self.reproducible)
        self.timing = Timing()
        self.stopping = stopping or Stopping(progress.say)
        self.patience = 0.0 if hosts.count == 1 else PATIENCE_SECONDS
        self.clock: Clock = program.clock_at(0)
        self.state: LoopState
        self.calls = 1
        """Calls of `learn` in the next call of the compiled program."""
        self.frozen: set[int] = set()
        """Seeds with a value that was not finite."""
        self.reached: targets.Reached | None = None
        """The return that reached the target of the run."""
        self.compiled: dict[str, Any] = {}
        self.run_compiled: Any = None
        self.evaluate_compiled: Any = None
        self.probes_compiled: Any = None
        self.resting = False
        """Whether the rows so far are those of the epochs before the state, so that it can be saved where it is."""
        self.closing = contextlib.ExitStack()
        # A task on the host is stepped for all seeds together.
        on_one = program.task.host is not None
        self.sharding = devices.shard_seeds(self.program.config.seeds, jax.local_devices()[: 1 if on_one else None])
        if self.sharding.devices > 1:
            self.progress.say(self.sharding.describe())

    @property
    def env_steps(self) -> int:
        """Environment steps that each seed has taken."""
        return int(self.clock.env_steps)

    def reproducible(self, state: LoopState) -> PyTree:
        """The parts of a state that can be recomputed."""
        return self.program.algorithm.views(state.algorithm).reproducible

    def begin(self, hyper: dict[str, Array]) -> Result:
        """Train from the start."""
        with self.noting_interrupts():
            self.start(hyper)
            return self.train()

    def start(self, hyper: dict[str, Array]) -> None:
        """Make the first state and save it."""
        self.recorder.event("start", algorithm=self.config.algorithm, env=self.config.env, seeds=self.config.seeds)
        size = memory.bytes_of(initial_shapes(self.program))
        if size >= LARGE_STATE:
            self.progress.say(
                f"the state takes {size / 1e9:,.2f} GB of memory, and each checkpoint about as much on the disk"
            )
        first, number = self.hosts.share(self.config.seeds)
        own_hyper = jax.tree.map(lambda x: x[first : first + number], hyper)
        self.state = initial(self.program, own_hyper, self.sharding)
        # Before the long compilation, so that a run can always be resumed.
        self.save(wait=True)
        self.open_loggers()

    def resume(self) -> Result:
        """Continue training from the newest checkpoint."""
        keeper = self.recorder.keeper
        assert keeper is not None
        folder = keeper.folder
        state, restored = self.restore()
        self.state = self.sharding.place(state)
        if self.program.total_steps < restored.extra["env_steps"]:
            raise UserError(
                f"the run in {folder.path} is already at {restored.extra['env_steps']} steps; "
                f"steps must not be lower, got {self.config.steps}"
            )
        for warning in restored.warnings:
            self.recorder.warn(warning)
        if self.hosts.first:
            folder.truncate_metrics(restored.extra["metrics_offset"])
            if to_dict(self.config) != folder.read_config():
                folder.write_config(to_dict(self.config))
        self.hosts.gather(None)
        rows = self.recorder.rows = folder.read_metrics()
        self.timing.resume(restored.extra)
        self.clock = self.program.clock_at(restored.extra["env_steps"])
        self.frozen = {row["seed"] for row in rows if row.get("frozen", False)}
        self.reached = targets.reached(self.config, rows)
        keeper.continue_from(self.env_steps)
        now = environment()
        for text in self.differences(now, folder.read_environment(), restored):
            self.recorder.warn(text)
        self.recorder.event("resume", env_steps=self.env_steps, versions=now["versions"], commit=now.get("commit"))
        self.progress.say(self.begins_at())
        self.open_loggers()
        # The process may have been killed between the checkpoint and its picture.
        self.recorder.draw()
        with self.noting_interrupts():
            return self.train()

    def begins_at(self) -> str:
        """Where a resumed run continues, or why there is nothing to do."""
        at = f"at {self.env_steps:,} of {self.program.total_steps:,} steps"
        if self.has_next() or self.has_pending_metrics():
            return f"resuming {at}"
        if self.reached is not None and self.env_steps < self.program.total_steps:
            return f"the run is finished, {at}: {self.reached_text()}; raise stop_at_return, or set it to None, to continue"
        return f"the run is finished, {at}: nothing to do"

    def reached_text(self) -> str:
        """The return that reached the target."""
        assert self.reached is not None
        metric, value = self.reached
        return f"{metric} reached {value:.1f} (mean over seeds; stop_at_return is {self.config.stop_at_return:g})"

    def open_loggers(self) -> None:
        """Open the loggers, which may take a while."""
        self.closing.callback(self.recorder.close_loggers)
        started = time.monotonic()
        with self.interruptible():
            self.recorder.open_loggers(self.attached.loggers)
        self.timing.exclude(time.monotonic() - started)

    def differences(self, now: dict[str, Any], started: dict[str, Any], restored: checkpoint.Restored) -> Iterator[str]:
        """Reasons why the resumed run may differ from an uninterrupted run."""
        for name in ("versions", "devices", "commit"):
            if now.get(name) != started.get(name):
                yield f"{name} differ from those that the run started with: the resume may not be exact"
        if self.collects_on_host() and self.has_next() and self.env_steps > 0:
            env = self.config.env
            yield f"the resume is not exact: checkpoints do not contain the state of {env}, so new episodes begin"
        if restored.left_out:
            yield "the resume may not be exact: the checkpoint has no imagined transitions (checkpoint.model_buffer)"

    def restore(self) -> tuple[LoopState, checkpoint.Restored]:
        """The newest intact state of this host's seeds."""
        assert self.recorder.keeper is not None
        folder, found = self.recorder.keeper.folder, None
        if self.hosts.first:
            # Damaged checkpoints are renamed before the other hosts read the folder.
            found = restore(folder, self.whole)
        self.hosts.gather(None)
        _, state, restored = found or restore(folder, self.whole, repair=False)
        first, number = self.hosts.share(self.config.seeds)
        if self.hosts.count > 1:
            state = jax.tree.map(lambda x: x[first : first + number], state)
        return state, restored

    def collects_on_host(self) -> bool:
        """Whether the task is stepped outside of the compiled program."""
        return self.program.task.host is not None and self.config.data is None

    def has_next(self) -> bool:
        """Whether steps are left, a seed is not frozen, and the return has not reached its target."""
        left = self.env_steps < self.program.total_steps and self.reached is None
        return left and len(self.frozen) < self.config.seeds

    def has_pending_metrics(self) -> bool:
        """Whether the metrics of an epoch that has ended are not in the rows yet."""
        done, within = divmod(self.env_steps, self.program.epoch_steps)
        return not within and len(self.recorder.rows) < done * self.config.seeds

    def train(self) -> Result:
        """Train to the end, or until the callback stops the run. Raises Stopped when asked to stop, after saving."""
        program, every = self.program, self.config.settings.eval_every
        with self.progress, self.closing:
            if self.collects_on_host() and self.has_next():
                self.progress.say(
                    f"{program.task.name} runs outside of the compiled program and is stepped by Python, which is "
                    f"slower than a task in JAX; episodes have at most {program.task.episode_length:,} steps"
                )
            if self.has_next() and program.total_steps != self.config.steps:
                self.progress.tell(
                    f"{self.config.steps:,} steps are rounded {'down' if self.config.data else 'up'} to "
                    f"{program.total_steps:,}, whole epochs of {program.epoch_steps:,}"
                )
            self.warn_if_unlearned(program.total_steps if self.has_next() else None)
            self.progress.update(self.env_steps)
            while self.has_next() or self.has_pending_metrics():
                epoch = len(self.recorder.rows) // self.config.seeds + 1
                self.resting = True
                self.run_to(epoch * program.epoch_steps)
                evaluated = self.evaluate() if every and epoch % every == 0 else None
                self.resting = False
                self.timing.count()
                self.report(epoch, evaluated)
                if self.reached is not None:
                    self.progress.say(f"{self.reached_text()}: training ends at {self.env_steps:,} steps")
                if not self.call_back() and self.has_next():
                    self.progress.say(f"stopped by the callback at {self.env_steps:,} of {program.total_steps:,} steps")
                    break
                if self.has_next():
                    self.between(epoch)
            frozen = self.faults()
            if len(self.frozen) == self.config.seeds:
                at = f"{self.env_steps:,} of {program.total_steps:,} steps"
                self.recorder.warn(f"all seeds had a value that is not finite; the run ends at {at}")
            elif not self.has_next() and len(self.recorder.rows) > self.config.seeds:
                # A run of one epoch has just said it.
                self.warn_if_unlearned(self.env_steps, over=True)
            self.save_before_exit()
        self.conclude()
        state = self.sharding.of_seeds(self.state.algorithm)
        policy = policy_of(program.algorithm, self.clock, program.task, state)
        path = self.recorder.path
        return Result(self.recorder.rows, state, policy, program.task, self.config, path, self.env_steps, frozen)

    def warn_if_unlearned(self, env_steps: int | None, over: bool = False) -> None:
        """Warn of a run of `env_steps` steps whose warm-up leaves none to learn from; None stands for a finished run."""
        text = None if env_steps is None else unlearned(self.config, env_steps, over)
        if text is not None:
            self.recorder.warn(text)

    def faults(self) -> dict[int, Frozen]:
        """The frozen seeds of all hosts."""
        fault, first = jax.device_get(self.state.fault), self.program.config.seed
        own = [
            (first + k, self.program.loop.checked[fault.what[k]], int(fault.env_steps[k]))
            for k in range(self.program.config.seeds)
            if fault.what[k] >= 0
        ]
        found = self.gathered(lambda parts: [entry for part in parts for entry in part], own)
        return {seed: Frozen(what, env_steps) for seed, what, env_steps in found}

    def call_back(self) -> bool:
        """Pass the newest rows to the callback. Returns whether training continues. An exception of the callback is raised
        after saving, on other hosts as Stopped."""
        answer = "continue"
        failure: BaseException | None = None
        if self.attached.callback is not None and self.hosts.first:
            try:
                rows = self.recorder.rows[-self.config.seeds :]
                if self.attached.callback([dict(row) for row in rows]) is False:
                    answer = "stop"
            except BaseException as error:
                answer, failure = "raise", error
        answer = self.gathered(lambda answers: next(iter(answers)), answer)
        if answer != "raise":
            return answer == "continue"
        failure = failure or Stopped("the callback of the first host raised an exception")
        self.recorder.event("stop", env_steps=self.env_steps, error=f"{type(failure).__name__}: {failure}")
        try:
            self.save_before_exit()
        except Lost as lost:
            failure.add_note(str(lost))
        raise failure

    def conclude(self) -> None:
        """Record how the session ended."""
        wall_time = round(self.timing.wall_time, 3)
        if self.has_next():
            self.recorder.event("stop", env_steps=self.env_steps, wall_time=wall_time)
            return
        reached = {} if self.reached is None else {"metric": self.reached.metric, "reached": self.reached.value}
        self.recorder.event("end", env_steps=self.env_steps, wall_time=wall_time, **reached)

    def run_to(self, end: int) -> None:
        """Run the compiled program to `end` environment steps, in chunks of about `CHUNK_SECONDS`."""
        program = self.program
        if self.run_compiled is None and self.env_steps < end:
            self.run_compiled = program.loop.compiled(self.compile, self.closing, self.clock, self.state, self.sharding)
        while self.env_steps < end:
            left = (end - self.env_steps) // program.loop.steps_per_call
            calls = min(self.calls, left)
            started = time.monotonic()
            with self.timing.spending("train"), memory.explained("training", self.compiled.get("training")):
                self.clock, self.state = self.run_compiled(self.clock, self.state, jnp.asarray(calls, jnp.int32))
                jax.block_until_ready(self.state)
            seconds = max(self.gathered(max, time.monotonic() - started), 1e-6)
            self.calls = max(1, min(int(calls * CHUNK_SECONDS / seconds), 4 * calls))
            self.progress.update(self.env_steps)
            if self.env_steps < end:
                self.between(None)

    def between(self, epoch: int | None) -> None:
        """Between two calls of the compiled program, at the end of `epoch` or within one (None): stop if asked to, and save
        if a checkpoint is due."""
        if self.gathered(any, self.stopping.asked):
            self.stop()
        if self.gathered(any, self.recorder.due(epoch)):
            self.save()
            self.recorder.draw(final=False)

    def stop(self) -> None:
        """Save, and end the session. Raises Stopped."""
        self.recorder.event("stop", env_steps=self.env_steps)
        self.save_before_exit()
        self.recorder.close_loggers()
        self.progress.end()
        raise Stopped(f"stopped at {self.env_steps:,} of {self.program.total_steps:,} steps")

    @contextlib.contextmanager
    def noting_interrupts(self) -> Iterator[None]:
        """Context in which a KeyboardInterrupt, of Ctrl-C in Python, is recorded and says how to go on. It saves the run
        first, unless the state is between two values: then the run continues from its newest checkpoint."""
        try:
            yield
        except KeyboardInterrupt as error:
            keeper = self.recorder.keeper
            if keeper is None:
                error.add_note("jaxmbrl: the run had no folder and is lost; give train an out, and resume continues it")
                raise
            if self.is_intact() and not keeper.has_saved(self.env_steps):
                with contextlib.suppress(Exception):
                    self.save(wait=True)
            keeper.wait()
            saved = max(checkpoint.steps(keeper.checkpoints), default=None)
            self.recorder.event("stop", env_steps=saved or 0, error="KeyboardInterrupt")
            again = f"jaxmbrl.resume({str(keeper.folder.path)!r})"
            total = f"{self.program.total_steps:,} steps"
            told = (
                f"the run is interrupted before its first checkpoint; {again} starts it from the beginning"
                if saved is None
                else f"the run is saved at {saved:,} of {total}; {again} continues it"
            )
            own = registration(self.config.env)
            first = "" if own is None else f"; in another process, call {own} before that"
            error.add_note(f"jaxmbrl: {told}{first}")
            raise

    def is_intact(self) -> bool:
        """Whether the state can be saved: no interrupted call of the compiled program has consumed it. Several hosts would
        have to save together."""
        leaves = jax.tree.leaves(self.state) if self.resting and self.hosts.count == 1 else []
        return bool(leaves) and not any(leaf.is_deleted() for leaf in leaves if isinstance(leaf, jax.Array))

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[None]:
        """Context in which a request to stop saves the run and ends the process, also while the main thread waits. The
        run's state must be consistent."""
        with self.stopping.meanwhile(self.stop, self.patience):
            yield

    def gathered(self, over: Callable[[Iterable[Any]], Any], value: Any) -> Any:
        """`over` applied to the values of all hosts."""
        with self.interruptible():
            return over(self.hosts.gather(value))

    def evaluate(self) -> Evaluated:
        """Returns of each seed's deterministic policy, and the algorithm's probes."""
        program, states = self.program, self.state.algorithm
        if self.evaluate_compiled is None:
            episodes = self.config.eval_episodes
            self.evaluate_compiled = evaluation.evaluator(
                program.algorithm,
                program.task,
                episodes,
                self.compile,
                self.closing,
                self.clock,
                states,
                self.sharding,
            )
            self.probes_compiled = probing.prober(program.algorithm, self.compile, states, self.sharding)
            self.progress.add_columns(probing.names(program.algorithm, states))
        compiled = self.compiled.get("evaluation")
        with self.timing.spending("evaluate"), self.interruptible(), memory.explained("evaluation", compiled):
            returns = np.asarray(self.evaluate_compiled(self.clock, states), np.float64).mean(axis=1)
            probes = jax.device_get(self.probes_compiled(states))
        return Evaluated(returns, probes)

    def compile(self, what: str, function: Any, *args: Any) -> Any:
        """Compile ahead of time, so that the console can show the compilation."""
        self.progress.compiling(what)
        started = time.monotonic()
        with self.interruptible(), memory.explained(f"compiling {what}"):
            compiled = self.program.compile(what, function, *args)
        memory.check_compiled(what, compiled, self.sharding.devices)
        self.compiled[what] = compiled
        seconds = time.monotonic() - started
        self.timing.compiled(seconds)
        self.progress.compiled(what, seconds)
        self.recorder.event("compile", what=what, seconds=round(seconds, 3), memory=memory.needed(compiled))
        return compiled

    def report(self, epoch: int, evaluated: Evaluated | None) -> None:
        """Write and show the epoch's rows."""
        found, fault = jax.device_get((self.state.metrics, self.state.fault))
        common = {"epoch": epoch, "env_steps": self.env_steps, "wall_time": round(self.timing.wall_time, 3)}
        rows, notices = epoch_rows.of_epoch(
            self.program, common, self.timing.metrics(), found, fault, evaluated, self.frozen
        )
        for notice in notices:
            self.recorder.warn(notice.text, **notice.fields)
        rows = self.gathered(lambda all_rows: [row for rows in all_rows for row in rows], rows)
        self.frozen |= {row["seed"] for row in rows if row.get("frozen", False)}
        self.timing.end_epoch()
        self.recorder.add(rows)
        for text in first_rows.examine(self.program, self.state.algorithm, self.env_steps):
            self.recorder.warn(text)
        self.reached = targets.reached(self.config, self.recorder.rows)

    def save(self, wait: bool = False) -> None:
        """Begin to write a checkpoint, if there is a folder. With `wait` it is written when this returns."""
        if self.recorder.keeper is None:
            return
        self.timing.count()
        faults = np.asarray(self.state.fault.what)[: self.program.config.seeds]
        extra = {
            "env_steps": self.env_steps,
            **self.timing.extra(),
            "frozen": [self.program.config.seed + int(k) for k in np.flatnonzero(faults >= 0)],
            "score": self.recorder.score(self.env_steps),
            "config": to_dict(self.config),
        }
        self.recorder.keeper.save(self.env_steps, self.sharding.of_seeds(self.state), extra, wait)

    def save_before_exit(self) -> None:
        """Write everything that is not on the disk yet, with retries. Raises Lost after the grace period."""
        keeper = self.recorder.keeper
        if keeper is None:
            return
        while not keeper.has_saved(self.env_steps):
            self.save(wait=True)
            if not keeper.has_saved(self.env_steps):
                time.sleep(1.0)
        self.recorder.draw()


_MISSING = object()


def policy_of(algorithm: Algorithm, clock: Clock, task: Task, states: PyTree) -> Callable[..., Policy]:
    """(state of one seed, explore=False) -> policy, at the given clock. `states` are those of all seeds; only their shapes
    are kept. Raises UserError for the states of all seeds in the place of one, and the policy's `act` for missing arguments
    and for an observation that is not one of the task."""
    shapes, space = _shapes(states), task.observation
    due = () if isinstance(space, Discrete) or algorithm.observes_full_state else space.shape

    def policy(state: PyTree, explore: bool = False) -> Policy:
        if shapes and _shapes(state) == shapes:
            raise UserError(
                "policy takes the state of one seed, got that of all seeds: "
                "policy(jax.tree.map(lambda leaf: leaf[0], state)) is the first seed's"
            )
        made = algorithm.policy(state, clock, explore)

        def act(memory: Any, observation: Any = _MISSING, key: Any = _MISSING) -> Any:
            if observation is _MISSING or key is _MISSING:
                raise UserError(
                    "act takes (memory, observation, key): before the first step of an episode memory is policy.init(key), "
                    "and key is jax.random.key(0) or another"
                )
            if due and np.shape(observation)[-len(due) :] != due:
                raise UserError(
                    f"an observation of task '{task.name}' has the shape {list(due)}, got {list(np.shape(observation))}"
                )
            return made.act(memory, observation, key)

        return Policy(made.init, act, remember=made.remember)

    return policy


def _shapes(tree: PyTree) -> list[tuple[int, ...]]:
    return [getattr(leaf, "shape", ()) for leaf in jax.tree.leaves(tree)]
