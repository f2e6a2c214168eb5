"""Every method side by side: all methods that apply to a task, at equal numbers of real steps, with small presets.

    python benchmarks/field.py [--tasks pendulum ...] [--methods sac ...] [--at-once N] [--limit MINUTES]
                                           measure, or go on
    python benchmarks/field.py --list      the cases and their states
    python benchmarks/field.py --report    figure and tables

A case is a method on a task. Its seeds train in one program, which is resumed if it was stopped; the deterministic policy
is evaluated on fixed start states at each of the numbers of `--steps`, within one training. A method that updates every U
steps is evaluated at the next multiple of U. Cases run one at a time, each in its own process, the cheapest first: by the
time of its last epoch or, before its first one, by the method's time on other tasks. A case that proves more expensive
than the next one gives way to it. Ctrl-C, SIGTERM or the limit save the run; the same command continues.

Each case has a file in `--out`, written after each evaluation. `does-not-apply.json` there has the reasons of the others.
Times are seconds of CPU time: run the script on one core (`taskset -c 0`). Those of training, of evaluation, and of
compilation with tracing and restoring are counted apart. A case compiles its programs again after each evaluation, but a
program in the cache (`JAX_COMPILATION_CACHE_DIR`, by default a folder in `--runs`) only has to be read.

With `--until N` each case is left once it has its results at N of `--steps`, so that all methods have some before any has
all; without it, cases continue from their run folders or, if these are gone, from the start.

For long runs of few methods on other tasks there are `--preset`, `--set` and `--rescore`, and `--out` keeps them apart.

With `--at-once N` the seeds of a case train in groups of N, each in a program of its own, one group after the other. The
results of groups are kept in `--out`/groups, so a case that takes hours needs no run folder for longer than one group.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import field_report
import jax
import yaml
from measure import provenance

import jaxmbrl
from jaxmbrl import algorithms, envs
from jaxmbrl.algorithms import Method
from jaxmbrl.core.config import UserError
from jaxmbrl.core.types import Task
from jaxmbrl.data.augmentation import AugmentationSettings, check_images
from jaxmbrl.training import programs
from jaxmbrl.training.console import Progress, duration
from jaxmbrl.training.programs import ChoosesModel
from jaxmbrl.training.run_folder import write_file
from jaxmbrl.training.session import Result
from jaxmbrl.training.stopping import ASKED_TO_STOP, Stopped, Stopping

ROOT = Path(__file__).parents[1]
TASKS = ("pendulum", "cartpole-swingup", "CartPole-v1", "InvertedPendulum-v5")
STEPS = (2_000, 5_000, 10_000)
SEEDS = 8
EPISODES, FEW_EPISODES = 20, 5
"""Start states of each evaluation, and those of `PLANNERS` on the tasks of `ALIKE`."""
PLANNERS = ("pets", "planet", "latent-mpc", "td-mpc2", "uct")
"""Methods that plan anew at each step, so that evaluations may take longer than the training."""
ALIKE = ("cartpole-swingup", "CartPole-v1", "InvertedPendulum-v5")
"""Tasks whose start states differ so little that few of them tell as much."""
SIZED = 10
"""A task's own preset is taken if its default number of steps is at most so many times the largest of `--steps`; those for
longer runs change their policy too seldom."""
ENDS = ("pilco",)
"""Methods that learn for the steps of their preset at most, because each further trial takes them hours; a later evaluation
is that of the last policy."""
PATIENCE = 1.5
"""A case gives way if the time that is left for it exceeds that of the next case by this factor."""
SAVING = 180.0
"""Seconds for which a process that was asked to stop may go on."""


class Case(NamedTuple):
    """A method on a task, with the settings of its run."""

    method: str
    task: str
    preset: str
    settings: dict[str, Any]
    """Changes to the preset."""
    at: dict[int, int]
    """Number of steps of `--steps` -> the multiple of the method's own steps at which it is evaluated."""
    seeds: int
    episodes: int
    first: int = 0
    """The first seed of this group."""
    at_once: int | None = None
    """Seeds of a group, which train in one program; None for all."""
    until: int | None = None
    """The number of steps of `--steps` after which the case is left, None for the largest."""
    rescored: bool = False
    """Whether policies are evaluated in the task's Gymnasium counterpart, too."""

    @property
    def name(self) -> str:
        """Name of its file."""
        return field_report.name_of(self.method, self.task)

    @property
    def group(self) -> str:
        """Name of the group's run folder, and of its file unless it has all seeds."""
        return self.name if self.is_whole else f"{self.name}-seeds-{self.first}-to-{self.first + self.trained - 1}"

    @property
    def trained(self) -> int:
        """Seeds of this group."""
        return min(self.at_once or self.seeds, self.seeds - self.first)

    @property
    def is_whole(self) -> bool:
        """Whether the group has all seeds."""
        return self.trained == self.seeds

    def groups(self, at_once: int | None) -> list[Case]:
        """The case in groups of `at_once` seeds."""
        return [self._replace(first=first, at_once=at_once) for first in range(0, self.seeds, at_once or self.seeds)]

    @property
    def words(self) -> list[str]:
        """The options of the command for this case alone."""
        changed = text_of_settings({name: value for name, value in self.settings.items() if name != "model"})
        return [
            *("--tasks", self.task, "--methods", self.method, "--steps", *map(str, self.at)),
            *(("--seeds", str(self.seeds)) if self.seeds != SEEDS else ()),
            *(("--episodes", str(self.episodes)) if self.episodes != episodes_of(self.method, self.task) else ()),
            *(("--preset", self.preset) if changed or self.rescored else ()),
            *(("--set", *changed) if changed else ()),
            *(("--rescore",) if self.rescored else ()),
        ]

    @property
    def now(self) -> dict[int, int]:
        """`at` up to `until`."""
        return {steps: at for steps, at in self.at.items() if self.until is None or steps <= self.until}

    @property
    def epoch(self) -> int:
        """Steps of an epoch: all evaluations are at the end of one."""
        return math.gcd(*self.at.values())


class DoesNotApply(Exception):
    """A method cannot be measured on a task; the message has the reason."""


def small_preset(method: Method, task: str, steps: int) -> str:
    """Name of the preset: the task's own one if it is for runs of a similar length, else `small`, else the one for the
    shortest runs."""
    own = [name for name, of in method.presets.items() if task in of.tasks and of.steps <= SIZED * steps]
    small = [name for name in method.presets if name == "small"]
    return [*own, *small, min(method.presets, key=lambda name: method.presets[name].steps)][0]


def episodes_of(method: str, task: str) -> int:
    """Start states of each evaluation of a method on a task."""
    return FEW_EPISODES if method in PLANNERS and task in ALIKE else EPISODES


def case_of(
    name: str,
    task: Task,
    steps: Sequence[int],
    seeds: int,
    episodes: int | None = None,
    preset: str | None = None,
    changes: Mapping[str, Any] | None = None,
) -> Case:
    """The case of the method `name` on `task`, by default with the preset of `small_preset` and the number of episodes of
    `episodes_of`, and with `changes` of its settings. Raises DoesNotApply if the method refuses the task, or does not learn
    from real steps alone."""
    method = algorithms.get(name)
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", before or method.needs_float64)
    try:
        preset, changes = preset or small_preset(method, task.name, max(steps)), dict(changes or {})
        config = programs.configure(name, task.name, preset, changes, steps=max(steps), seeds=seeds)
        programs.check_taught(config)
        if method.offline is not None:
            raise DoesNotApply("it learns from a file of transitions")
        settings = config.settings
        if isinstance(settings, ChoosesModel) and settings.uses_true_model():
            settings, changes = settings.with_model("learned"), {**changes, "model": "learned"}
        if isinstance(settings, AugmentationSettings):
            check_images(settings, task.observation)
        algorithm = method.make(settings, task)
    except UserError as error:
        raise DoesNotApply(str(error)) from None
    finally:
        jax.config.update("jax_enable_x64", before)
    if algorithm.observes_full_state:
        raise DoesNotApply("it plans in the true simulator, from its state")
    unit = algorithm.period * settings.num_envs
    last = method.presets[preset].steps if name in ENDS else max(steps)
    at = {step: -(-min(step, last) // unit) * unit for step in sorted(steps)}
    return Case(name, task.name, preset, changes, at, seeds, episodes or episodes_of(name, task.name))


def all_cases(
    methods: Sequence[str],
    tasks: Sequence[str],
    steps: Sequence[int],
    seeds: int,
    episodes: int | None = None,
    preset: str | None = None,
    changes: Mapping[str, Any] | None = None,
) -> tuple[list[Case], dict[str, dict[str, str]]]:
    """(cases of `case_of`, task -> method -> reason why there is none)."""
    cases, apart = [], {}
    for task in map(envs.make, tasks):
        apart[task.name] = reasons = {}
        for name in methods:
            try:
                cases.append(case_of(name, task, steps, seeds, episodes, preset, changes))
            except DoesNotApply as reason:
                reasons[name] = str(reason)
    return cases, apart


class Ledger:
    """The seconds of a run, by steps: a JSON line for each call of the compiled program, evaluation and compilation. What
    was counted after the checkpoint from which the run continues is removed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def begin(self, env_steps: int) -> None:
        """Remove the lines of training and evaluation after `env_steps`."""
        self.lines = [line for line in self.lines if line["env_steps"] <= env_steps or line["what"] == "compilation"]
        self._write()

    def add(self, env_steps: int, what: str, cpu: float, wall: float) -> None:
        """Add a line."""
        self.lines.append({"env_steps": env_steps, "what": what, "cpu": round(cpu, 4), "wall": round(wall, 4)})
        self._write()

    def _write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_file(self.path, "".join(json.dumps(line) + "\n" for line in self.lines).encode())

    def seconds(self, what: str, kind: str = "cpu", after: int = -1) -> float:
        """Seconds of `what`, of the lines after `after` steps."""
        return sum(line[kind] for line in self.lines if line["what"] == what and line["env_steps"] > after)

    def last(self) -> int:
        """Steps of the last line of training."""
        return max((line["env_steps"] for line in self.lines if line["what"] == "training"), default=0)

    def left(self, case: Case) -> float | None:
        """CPU seconds that the rest of the case takes at the speed of its last epoch; None before the first."""
        now = self.last()
        if not now:
            return None
        newest = min(case.epoch, now)
        speed = self.seconds("training", after=now - newest) / newest
        evaluations = [line["cpu"] for line in self.lines if line["what"] == "evaluation"]
        ahead = [at for at in case.now.values() if at > now]
        return speed * max(max(case.now.values()) - now, 0) + (max(evaluations) if evaluations else 0.0) * len(ahead)


class Meter(Progress):
    """A console that writes the seconds of the run to a ledger."""

    def __init__(self, ledger: Ledger, total_steps: int, seeds: int) -> None:
        super().__init__(total_steps, seeds)
        self.ledger, self.env_steps = ledger, -1
        self._mark = (time.process_time(), time.monotonic())

    def count(self, what: str) -> None:
        """Add the time since the last call."""
        now = (time.process_time(), time.monotonic())
        cpu, wall = (b - a for a, b in zip(self._mark, now, strict=True))
        self._mark = now
        self.ledger.add(max(self.env_steps, 0), what, cpu, wall)

    def update(self, env_steps: int, message: str | None = None) -> None:
        """Count a call of the compiled program; the first call of a session ends its start."""
        begins, self.env_steps = self.env_steps < 0, env_steps
        if begins:
            self.ledger.begin(env_steps)
        self.count("compilation" if begins else "training")
        super().update(env_steps, message)

    def compiled(self, what: str, seconds: float) -> None:
        """Count a compilation, with its tracing."""
        self.count("compilation")
        super().compiled(what, seconds)

    def epoch(self, rows: Sequence[dict[str, Any]]) -> None:
        """Count an evaluation."""
        if any("eval/return" in row for row in rows):
            self.count("evaluation")
        super().epoch(rows)


class Place(NamedTuple):
    """Where results and runs are."""

    out: Path
    runs: Path

    def ledger(self, case: Case) -> Ledger:
        """The seconds of the case."""
        return Ledger(self.runs / f"{case.group}.seconds.jsonl")

    def folder(self, case: Case) -> Path:
        """The run folder of the case."""
        return self.runs / case.group

    def file(self, case: Case) -> Path:
        """The file of the case, or of its group."""
        return self.out / f"{case.name}.json" if case.is_whole else self.out / "groups" / f"{case.group}.json"

    def read(self, case: Case) -> dict[str, Any]:
        """The results of the group of seeds, or of the whole case if it is done; {} if there are none with as many episodes
        an evaluation."""
        files = (self.out / f"{case.name}.json", self.file(case))
        found = [json.loads(file.read_text()) if file.exists() else {} for file in files]
        found = [of if of.get("episodes") == case.episodes else {} for of in found]
        return found[0] if found[0].get("state") == "done" else found[1]

    def own(self, case: Case) -> Path:
        """The file of the evaluations of the run in `folder`."""
        return self.runs / f"{case.group}.stages.json"

    def evaluated(self, case: Case) -> list[dict[str, Any]]:
        """The evaluations of the run in `folder`."""
        return json.loads(self.own(case).read_text()) if self.own(case).exists() else []

    def is_open(self, case: Case) -> bool:
        """Whether the case has no results yet at a number of steps up to `until`."""
        found = self.read(case)
        return found.get("state") != "done" and len(found.get("stages", [])) < len(case.now)

    def write(self, case: Case, state: str, stages: list[dict[str, Any]]) -> None:
        """Write the results of the group of seeds; and those of the whole case, as far as all groups have them. The files
        of groups are deleted when all are done."""
        self._write(case, state, stages)
        if case.is_whole:
            return
        groups = case.groups(case.at_once)
        found = [self.read(group) for group in groups]
        if not all(of.get("stages") for of in found):
            return
        states = [of["state"] for of in found]
        merged = list(map(merge, zip(*(of["stages"] for of in found), strict=False)))
        done = all(of == "done" for of in states)
        unfinished = next((of for of in states if of.startswith("failed")), field_report.at(merged[-1]["env_steps"]))
        self._write(case._replace(first=0, at_once=None), "done" if done else unfinished, merged)
        if done:
            for group in groups:
                self.file(group).unlink()

    def _write(self, case: Case, state: str, stages: list[dict[str, Any]]) -> None:
        card = algorithms.METHODS.card(case.method)
        found = {
            **{"method": case.method, "task": case.task, "family": card.family, "requires": list(card.requires)},
            **{"preset": case.preset, "settings": case.settings, "seeds": case.trained, "episodes": case.episodes},
            **{"steps": list(case.at), "state": state, "stages": stages},
            **provenance(*case.words),
        }
        self.file(case).parent.mkdir(parents=True, exist_ok=True)
        write_file(self.file(case), (field_report.text_of(found) + "\n").encode())


def merge(stages: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The evaluations of all groups of seeds at a number of steps, as one."""
    per_seed = [value for stage in stages for value in stage["per_seed"]]
    seconds = {
        kind: {what: round(sum(stage[kind][what] for stage in stages), 2) for what in stages[0][kind]}
        for kind in ("cpu_seconds", "wall_seconds")
    }
    return {
        **stages[0],
        "per_seed": per_seed,
        **field_report.summary(per_seed),
        "frozen": [seed for stage in stages for seed in stage["frozen"]],
        **({"gymnasium": [of for stage in stages for of in stage["gymnasium"]]} if "gymnasium" in stages[0] else {}),
        **seconds,
        **({"dirty": any(stage["dirty"] for stage in stages)} if "dirty" in stages[0] else {}),
    }


def work(case: Case, place: Place, stopping: Stopping | None = None, give_way: float = math.inf) -> str:
    """Train and evaluate the case, from where it is, and write its results after each evaluation. Returns its state:
    `done`, `failed: why`, or `at N steps` if it is to be left there, or gave way because more than `give_way` seconds were
    left. Raises Stopped if asked to stop."""
    folder, ledger = place.folder(case), place.ledger(case)
    known: list[dict[str, Any]] = place.read(case).get("stages", [])
    # All results of a case are of one training: those before belong to a run folder that is gone, and stay until this run
    # has as many.
    stages = place.evaluated(case) if folder.exists() else []

    def reached() -> str:
        return "done" if len(stages) == len(case.at) else field_report.at(stages[-1]["env_steps"])

    def write(state: str) -> None:
        place.runs.mkdir(parents=True, exist_ok=True)
        write_file(place.own(case), json.dumps(stages).encode())
        if len(stages) >= len(known) or state.startswith("failed"):
            place.write(case, state, stages if len(stages) >= len(known) else known)

    def goes_on(_: Any = None) -> bool:
        left = ledger.left(case)
        return left is None or left <= PATIENCE * give_way

    for steps, at in list(case.now.items())[len(stages) :]:
        if ledger.last() and not goes_on():
            return field_report.at(ledger.last())
        if stages and stages[-1]["env_steps"] == at:
            stages.append({**stages[-1], "steps": steps})
            write(reached())
            continue
        meter = Meter(ledger, at, case.trained)
        every = {"eval_every": at // case.epoch}
        common: dict[str, Any] = {"steps": at, "progress": meter, "callback": goes_on, "stopping": stopping}
        if folder.exists():
            result = jaxmbrl.resume(folder, settings=every, eval_episodes=case.episodes, **common)
        else:
            settings = {**case.settings, "epoch_steps": case.epoch, **every}
            run = {"seeds": case.trained, "seed": case.first, "preset": case.preset, "settings": settings}
            run["eval_episodes"] = case.episodes
            result = jaxmbrl.train(case.method, case.task, out=folder, **run, **common)
        if result.env_steps < at:
            ended = len(result.frozen) == case.trained
            state = (
                f"failed: no seed is finite after {result.env_steps:,} steps"
                if ended
                else field_report.at(result.env_steps)
            )
            write(state)
            return state
        stages.append(stage_of(case, steps, result, ledger))
        write(reached())
    return reached()


def stage_of(case: Case, steps: int, result: Result, ledger: Ledger) -> dict[str, Any]:
    """The results of an evaluation. A frozen seed is evaluated with its last finite policy."""
    rows = {row["seed"]: row for row in result.rows if row["env_steps"] == result.env_steps}
    returns = [rows[seed].get("eval/return") for seed in range(case.first, case.first + case.trained)]
    if any(value is None for value in returns):
        returns = list(jaxmbrl.evaluate(result, case.episodes).per_seed)
    again = jaxmbrl.evaluate(result, case.episodes, backend="gymnasium").per_seed if case.rescored else []
    kinds = ("training", "evaluation", "compilation")
    found = provenance()["environment"]
    return {
        "steps": steps,
        "env_steps": result.env_steps,
        "per_seed": returns,
        **field_report.summary(returns),
        **({"gymnasium": list(again)} if case.rescored else {}),
        "frozen": sorted(result.frozen),
        "cpu_seconds": {what: round(ledger.seconds(what), 2) for what in kinds},
        "wall_seconds": {what: round(ledger.seconds(what, "wall"), 2) for what in kinds},
        **{key: found[key] for key in ("commit", "dirty") if key in found},
    }


def estimate(case: Case, place: Place, cases: Sequence[Case]) -> float | None:
    """CPU seconds that are left of a case: by its own last epoch, else by the method's time a step on other tasks, of runs
    here or else of results, else by that of its learning goals; None if nothing is known."""
    own = place.ledger(case).left(case)
    if own is not None:
        return own
    total = max(case.now.values())
    here = [(place.ledger(other), other) for other in cases if other.method == case.method]
    paces = [found.seconds("training") / found.last() / other.trained for found, other in here if found.last()]
    if not paces:
        measured = [found for found in field_report.results(place.out) if found.method == case.method and found.stages]
        paces = [found.stages[-1].training / found.stages[-1].env_steps / found.seeds for found in measured]
    # Goals with settings of their own, such as other learners, may be many times as expensive.
    goals = sorted(algorithms.METHODS.card(case.method).goals, key=lambda goal: len(goal.settings))
    files = [ROOT / "benchmarks" / "results" / f"{goal.name}.json" for goal in goals]
    known = [json.loads(file.read_text()) for file in files if file.exists()]
    near = [found for found in known if found["env"] == case.task] or known
    paces = paces or [of["training_seconds"] / of["steps"] / of["seeds"] for of in near[:1]]
    return max(paces) * total * case.trained if paces else None


def measure(cases: Sequence[Case], place: Place, limit: float, command: list[str]) -> None:
    """Work on the cases until all are done or `limit` minutes have passed. `command` starts the process of a case, with its
    name and the seconds after which it gives way. Raises KeyboardInterrupt after a signal, once the run is saved."""
    deadline, failed = time.monotonic() + 60 * limit, set[str]()
    while open_cases := [case for case in cases if place.is_open(case) and case.group not in failed]:
        left = {case.group: estimate(case, place, cases) for case in open_cases}
        ranked = sorted(open_cases, key=lambda case: left[case.group] or 0.0)
        case = ranked[0]
        give_way = min((seconds for other in ranked[1:] if (seconds := left[other.group]) is not None), default=math.inf)
        if deadline - time.monotonic() < 1:
            break
        print(f"[{case.group}: about {text_of(left[case.group])} left]", flush=True)
        code = run([*command, "--case", case.method, case.task, str(case.first), "--give-way", str(give_way)], deadline)
        state = place.read(case).get("state", "not begun")
        if code not in (0, ASKED_TO_STOP):
            failed.add(case.group)
            state = f"failed: its process ended with exit code {code}"
            place.write(case, state, place.read(case).get("stages", []))
        elif state.startswith("failed"):
            failed.add(case.group)
        print(f"[{case.group}: {state}]", flush=True)


def run(command: list[str], deadline: float) -> int:
    """Run a process until it ends, or is asked to stop at the `deadline` or by a signal to this one. Returns its code,
    which is that of a process that was asked to stop if it was."""
    # In a session of its own it does not receive Ctrl-C besides our request; a second signal would end it unsaved.
    with subprocess.Popen(command, start_new_session=True) as process:
        try:
            return process.wait(max(deadline - time.monotonic(), 0.0))
        except subprocess.TimeoutExpired:
            stop(process)
            return ASKED_TO_STOP
        except BaseException:
            stop(process)
            raise


def stop(process: subprocess.Popen[bytes]) -> None:
    """Ask a process to stop and wait for it. One that does not end is killed: its run continues from a checkpoint."""
    process.terminate()
    try:
        process.wait(SAVING)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def text_of(seconds: float | None) -> str:
    return "an unknown time" if seconds is None else duration(seconds)


def listed(cases: Sequence[Case], apart: dict[str, dict[str, str]], place: Place) -> list[str]:
    """Lines with the state of each case, the cheapest first, and the reasons of the methods that do not apply."""
    lines, total, unknown = [], 0.0, 0
    states = [(case, place.read(case).get("state"), estimate(case, place, cases)) for case in cases]
    for case, state, left in sorted(states, key=lambda entry: (entry[1] == "done", entry[2] or 0.0)):
        done, begun = state == "done", place.ledger(case).last()
        now = state or "to do"
        if begun and not done and not now.startswith("failed"):
            now = field_report.at(begun)
        ended = not place.is_open(case)
        lines.append(f"{case.group:<40} {now}" + ("" if ended else f", about {text_of(left)} left"))
        total, unknown = total + (0.0 if ended else left or 0.0), unknown + (not ended and left is None)
    lines += [
        f"{field_report.name_of(name, task):<40} does not apply: {why}"
        for task in apart
        for name, why in apart[task].items()
    ]
    of_unknown = f", and {unknown} cases of unknown cost" if unknown else ""
    return [*lines, f"in all about {text_of(total)} of one core left{of_unknown}"]


def interrupt(number: int, frame: FrameType | None) -> None:
    """A signal handler: SIGTERM as Ctrl-C."""
    raise KeyboardInterrupt


def setting(text: str) -> tuple[str, Any]:
    """(name, value) of a setting NAME=VALUE, whose value is read as YAML."""
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"'{text}' has no '='")
    return name, yaml.safe_load(value)


def text_of_settings(changes: Mapping[str, Any]) -> list[str]:
    """Words NAME=VALUE, without spaces."""
    return [f"{name}={json.dumps(value, separators=(',', ':'))}" for name, value in changes.items()]


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    """The command's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS))
    parser.add_argument("--methods", nargs="+", default=list(algorithms.METHODS), choices=list(algorithms.METHODS))
    parser.add_argument("--steps", nargs="+", type=int, default=list(STEPS))
    parser.add_argument("--preset", help="of the methods, by default a small one")
    parser.add_argument("--set", nargs="+", default=[], type=setting, metavar="NAME=VALUE", help="changes of the preset")
    parser.add_argument("--rescore", action="store_true", help="evaluate policies in Gymnasium with C MuJoCo, too")
    parser.add_argument("--until", type=int, help="one of --steps, after which each case is left for another time")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    some = f"start states of each evaluation, by default {EPISODES}, or {FEW_EPISODES} for planners"
    parser.add_argument("--episodes", type=int, help=some)
    parser.add_argument("--at-once", type=int, help="seeds that train in one program; by default all")
    parser.add_argument("--limit", type=float, default=math.inf, help="minutes")
    parser.add_argument("--out", type=Path, default=field_report.RESULTS)
    parser.add_argument("--runs", type=Path, default=Path("runs/field"))
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--report", action="store_true")
    parser.add_argument("--case", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--give-way", type=float, default=math.inf, help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.until not in (None, *args.steps):
        parser.error(f"--until {args.until} is none of --steps ({', '.join(map(str, args.steps))})")
    return args


def main(arguments: list[str] | None = None) -> None:
    args = parsed(arguments)
    place = Place(args.out, args.runs)
    numbers = args.steps, args.seeds, args.episodes, args.preset, dict(args.set)
    if args.report:
        field_report.write(args.out)
        return
    if args.case:
        method, task, first = args.case
        jax.config.update("jax_enable_x64", algorithms.get(method).needs_float64)
        which = {"first": int(first), "at_once": args.at_once, "until": args.until, "rescored": args.rescore}
        case = case_of(method, envs.make(task), *numbers)._replace(**which)
        with Stopping(lambda text: print(text, flush=True)) as stopping:
            try:
                work(case, place, stopping, args.give_way)
            except UserError as error:
                place.write(case, f"failed: {error}", place.read(case).get("stages", []))
            except Stopped as stopped:
                print(stopped, flush=True)
                sys.exit(ASKED_TO_STOP)
        return
    own = bool(args.preset or args.set)
    cases, apart = all_cases(args.methods if own else list(algorithms.METHODS), args.tasks, *numbers)
    cases = [case._replace(until=args.until, rescored=args.rescore) for case in cases if case.method in args.methods]
    cases = [group for case in cases for group in case.groups(args.at_once)]
    if args.list:
        chosen = {task: {name: why for name, why in of.items() if name in args.methods} for task, of in apart.items()}
        print("\n".join(listed(cases, chosen, place)))
        return
    if own:
        refused = [f"{field_report.name_of(name, task)}: {why}" for task, of in apart.items() for name, why in of.items()]
        if refused:
            sys.exit("\n".join(refused))
    else:
        field_report.keep_apart(args.out, apart)
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str((args.runs / "cache").resolve()))
    signal.signal(signal.SIGTERM, interrupt)
    words = ["--steps", *map(str, args.steps), "--seeds", str(args.seeds)]
    words += ["--episodes", str(args.episodes)] if args.episodes else []
    words += ["--at-once", str(args.at_once)] if args.at_once else []
    words += ["--until", str(args.until)] if args.until else []
    words += ["--preset", args.preset] if args.preset else []
    words += ["--set", *text_of_settings(dict(args.set))] if args.set else []
    words += ["--rescore"] if args.rescore else []
    command = [sys.executable, str(Path(__file__).resolve()), *words, "--out", str(args.out), "--runs", str(args.runs)]
    try:
        measure(cases, place, args.limit, command)
    except KeyboardInterrupt:
        print("interrupted: the same command continues", flush=True)
        sys.exit(130)


if __name__ == "__main__":
    main()
