"""The command `jaxmbrl train`: start or resume a run."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from jaxmbrl.commands import options
from jaxmbrl.commands.options import complain
from jaxmbrl.core.calling import again
from jaxmbrl.core.config import UserError, check, closest, from_dict
from jaxmbrl.core.plain_yaml import read_yaml
from jaxmbrl.core.spaces import Box

if TYPE_CHECKING:
    from jaxmbrl.core.types import Task
    from jaxmbrl.training.console import Progress
    from jaxmbrl.training.hosts import Hosts
    from jaxmbrl.training.programs import RunConfig
    from jaxmbrl.training.session import Result
    from jaxmbrl.training.stopping import Stopping


def train(words: list[str]) -> int:
    """`jaxmbrl train`; returns the exit code. Raises UserError for mistakes in the options, before anything is compiled."""
    from jaxmbrl import algorithms
    from jaxmbrl.training import experts, programs, runner
    from jaxmbrl.training.console import Progress
    from jaxmbrl.training.run_folder import RunFolder

    hosts, words = _hosts(words)
    if any(word.split("=")[0] == "--resume" for word in words):
        return _resume(words, hosts)
    name = words[0] if words else ""
    if not name or name.startswith("-"):
        raise UserError(
            f"name the algorithm first, as in 'jaxmbrl train sac --env pendulum'; {closest('', algorithms.METHODS)}"
        )
    algorithms.get(name)
    if words[1:] and not words[1].startswith("-"):
        raise UserError(f"unexpected argument '{words[1]}': the task follows an option, --env {words[1]}")
    config, out = parse_train(name, words[1:])
    with options.warnings_in_a_line():
        program = experts.build(config)
    progress = Progress(program.total_steps, config.seeds) if hosts.first else Progress.silent()
    if hosts.first:
        stem = f"{config.algorithm}-{re.sub('[/:]', '-', config.env)}"
        out = RunFolder.create(out or _free_folder(Path("runs"), stem)).path
    out = Path(hosts.gather(str(out))[0])
    kind = "steps on all transitions" if programs.learns_offline(config) else "transitions"
    progress.say(
        f"training {config.algorithm} ({config.preset} preset) on {config.env}"
        f"{f', each action {config.action_repeat} times' if config.action_repeat > 1 else ''}: {program.total_steps:,} "
        f"{kind + ' of ' + config.data if config.data else 'environment steps'}, "
        f"{f'{config.demonstrations_rows:,} demonstrations, ' if config.demonstrations else ''}"
        f"{config.seeds} seed{'s' if config.seeds > 1 else ''}, into {out}"
    )
    return finish(
        out, progress, lambda stopping: runner.begin_run(program, {}, out, progress, stopping, hosts), hosts.first
    )


def distill(words: list[str]) -> int:
    """`jaxmbrl distill`: train a small network that imitates the policy of a run, on the run's task, or with `--env` on
    this task with another observation."""
    from jaxmbrl.training import programs
    from jaxmbrl.training.run_folder import RunFolder

    if not words or words[0].startswith("-"):
        if "-h" in words or "--help" in words:
            return train(["distillation", "--help"])
        raise UserError("name the run to imitate first, as in 'jaxmbrl distill runs/pets-pendulum-1 --hidden 16 16'")
    run, *rest = words
    of = programs.read(RunFolder.open(run))
    repeat = ["--action-repeat", str(of.action_repeat)] if of.action_repeat > 1 else []
    env = [] if options.values("--env", rest) else ["--env", of.env]
    return train(["distillation", *env, "--expert", run, "--seeds", str(of.seeds), *repeat, *rest])


def _hosts(words: list[str]) -> tuple[Hosts, list[str]]:
    """Connect the processes that train together; returns them and the remaining words of the command line."""
    from jaxmbrl.training import hosts

    parser = options.parser("train", add_help=False)
    parser.add_argument("--coordinator")
    parser.add_argument("--hosts")
    parser.add_argument("--host", type=int)
    args, rest = parser.parse_known_args(words)
    if args.hosts is args.host is args.coordinator is None:
        return hosts.ALONE, words
    if args.hosts == "auto" and args.host is args.coordinator is None:
        return hosts.join(None, None, None), rest
    if args.hosts is not None and not args.hosts.isdecimal():
        raise UserError(f"--hosts must be a whole number, or 'auto' alone, got '{args.hosts}'")
    return hosts.join(args.coordinator, args.hosts and int(args.hosts), args.host), rest


def _resume(words: list[str], hosts: Hosts) -> int:
    from jaxmbrl.training import programs, runner
    from jaxmbrl.training.console import Progress
    from jaxmbrl.training.run_folder import RunFolder

    usage = "jaxmbrl train --resume RUN [--steps N] [--FIELD VALUE ...]"
    about = f"Resume a run from its newest checkpoint. These fields may change: {', '.join(programs.MAY_CHANGE)}."
    parser = options.parser("train --resume", usage=usage, description=about, add_help=False)
    parser.add_argument("--resume", required=True, metavar="RUN", help="the folder of the run to resume")
    parser.add_argument("--steps", metavar="N", help="train up to this many environment steps")
    if "-h" in words or "--help" in words:
        parser.print_help()
        return 0
    early = options.parser("train --resume", add_help=False)
    early.add_argument("--resume", required=True)
    args, rest = early.parse_known_args(words)
    folder = RunFolder.open(args.resume)
    config = programs.read(folder)
    if rest and not rest[0].startswith("-"):
        name = rest.pop(0)
        if name != config.algorithm:
            raise UserError(f"the run in {folder.path} is of {config.algorithm}, not {name}")
    for option in ("--out", "--config"):
        if options.values(option, rest):
            raise UserError(f"--resume uses the run's own folder and config: leave {option} out")
    if rest:
        config, _ = parse_train(config.algorithm, rest, config)
    progress = Progress(config.total_steps, config.seeds) if hosts.first else Progress.silent()
    return finish(
        folder.path, progress, lambda stopping: runner.continue_run(folder, config, progress, stopping, hosts), hosts.first
    )


def finish(out: Path, progress: Progress, work: Callable[[Stopping], Result], first: bool = True) -> int:
    """Train a run by calling `work`, and print its outcome; returns the exit code."""
    from jaxmbrl.training.checkpointing import Lost
    from jaxmbrl.training.stopping import ASKED_TO_STOP, Stopped, Stopping

    def farewell(stopped: Stopped) -> None:
        progress.say(f"{stopped}; to continue: {again('train', '--resume', out)}")

    try:
        with options.warnings_in_a_line(progress.warn), Stopping(progress.say, farewell) as stopping:
            result = work(stopping)
    except Stopped as stopped:
        farewell(stopped)
        return ASKED_TO_STOP
    except Lost as lost:
        complain(str(lost))
        return 1
    if not first:
        return 0
    _report(result, progress)
    if all(row.get("frozen", False) for row in result.rows[-result.config.seeds :]):
        complain(f"no seed finished: each met a value that is not finite; {out / 'events.jsonl'} names them")
        return 1
    return 0


def _free_folder(parent: Path, stem: str) -> Path:
    """The first of parent/stem-1, parent/stem-2, ... that does not exist. It is created now, so that no other run can take
    it."""
    number = 1
    with contextlib.suppress(OSError):
        parent.mkdir(parents=True, exist_ok=True)
        while True:
            try:
                (parent / f"{stem}-{number}").mkdir()
            except FileExistsError:
                number += 1
            else:
                break
    return parent / f"{stem}-{number}"


def _report(result: Result, progress: Any) -> None:
    """Print the folder of a finished run and suggest what to do next. A policy from data alone is evaluated, if it never
    was."""
    from jaxmbrl.training import curve, programs

    assert result.path is not None
    # With --data the policy plays no training episodes, so its return is known only from evaluations.
    if result.config.data is None or any("eval/return" in row for row in result.rows):
        progress.say(curve.text_curve(result.rows, width=min(progress.width, 80), height=12))
    if programs.learns_offline(result.config) and not any("eval/return" in row for row in result.rows):
        _evaluate(result, progress)
    if returns := described_returns(result.rows):
        progress.say(returns)
    progress.say(f"run      {result.path}")
    progress.say(f"picture  {result.path / 'curve.png'}")
    config = result.config
    other = "sac" if config.algorithm == "pets" else "pets"
    progress.say("what to try next:")
    progress.say(f"  {again('evaluate', result.path)}")
    if config.stop_at_return is not None and int(result.rows[-1]["env_steps"]) < config.total_steps:
        progress.say(f"  {again('train', '--resume', result.path, '--stop-at-return', 'None')}")
    elif config.data is None:
        steps = str(2 * max(int(result.rows[-1]["env_steps"]), getattr(config.settings, "warmup_steps", 0)))
        progress.say(f"  {again('train', '--resume', result.path, '--steps', steps)}")
    if isinstance(result.task.observation, Box) and result.task.observation.is_vector:
        data = ["--data", config.data] if config.data else []
        progress.say(f"  {again('train', other, *task_words(result.task), *data)}")
    progress.say(f"  {again('list')}")


def _evaluate(result: Result, progress: Any) -> None:
    """Print the returns of the final policy, and their normalised scores if the task has a reference."""
    from jaxmbrl.training import runner, scores

    episodes = result.config.eval_episodes
    found = runner.evaluate(result, episodes)
    each = scores.listed(found.per_seed)
    progress.say(
        f"return of the final policy {found.mean:.1f}{each}, {episodes} episodes of {result.task.name} for each seed"
    )
    reference = scores.reference_of(result.config.env)
    if reference is not None:
        progress.say(scores.described(found.per_seed, reference))


def task_words(task: Task) -> list[str]:
    """The command-line options that select `task`."""
    from jaxmbrl.envs.action_repeat import times_in

    further = task.action_repeat // times_in(task.name)
    return ["--env", task.name, *(["--action-repeat", str(further)] if further > 1 else [])]


def described_returns(rows: list[dict[str, Any]]) -> str | None:
    """A line with the returns of training and of the newest evaluation, from rows of metrics; None before any episode of
    training has ended."""
    first, last = (_mean_of_epoch(rows, "train/return", first) for first in (True, False))
    evaluated = _mean_of_epoch(rows, "eval/return", first=False)
    if first is None or last is None:
        return None
    evaluation = "" if evaluated is None else f", of the newest evaluation {evaluated:.1f}"
    return f"return of the first finished episodes {first:.1f}, of the last {last:.1f}{evaluation} (mean over seeds)"


def _mean_of_epoch(rows: list[dict[str, Any]], name: str, first: bool) -> float | None:
    """Mean over seeds of a metric in the first or the last epoch that has it; None without any."""
    epochs = [row["epoch"] for row in rows if name in row]
    if not epochs:
        return None
    epoch = min(epochs) if first else max(epochs)
    values = [row[name] for row in rows if row["epoch"] == epoch and name in row]
    return float(sum(values) / len(values))


def parse_train(name: str, words: list[str], started: RunConfig | None = None) -> tuple[RunConfig, Path | None]:
    """The run that a command line describes: a preset, a saved config or `started`, with the given fields replaced."""
    from jaxmbrl import algorithms, envs
    from jaxmbrl.training import logs, programs

    early = options.parser(f"train {name}", add_help=False)
    for option in ("--env", "--preset", "--config", "--schedule", *_FILES):
        early.add_argument(option)
    args, rest = early.parse_known_args(words)
    knows_task = args.env is not None or started is not None
    if started is not None:
        words_of_run = {field: getattr(args, field) for field in ("env", "preset") if getattr(args, field) is not None}
        base = dataclasses.replace(started, **words_of_run)
    elif args.config is not None:
        base, of_run = _read_config(name, args.config, args.preset, args.env)
        knows_task |= of_run
    elif args.env is None:
        # The task does not matter for --help, or for reporting other mistakes first.
        base = programs.configure(name, envs.names()[0], args.preset or next(iter(algorithms.get(name).presets)))
    else:
        base = programs.configure(name, args.env, args.preset)
    method = algorithms.get(name)
    texts = _TEXTS if hasattr(base.settings, "schedule") else _TEXTS[:-1]
    if args.schedule is not None:
        base = dataclasses.replace(base, settings=_with_schedule(name, base.settings, args.schedule))
    arguments = dataclasses.make_dataclass(
        "arguments",
        [
            ("steps", Annotated[int, tyro.conf.arg(help="Environment steps of each seed, rounded up to whole epochs.")]),
            ("seeds", Annotated[int, tyro.conf.arg(help="Seeds, trained side by side in one program.")]),
            ("seed", Annotated[int, tyro.conf.arg(help="The first seed; the others follow it.")]),
            ("eval_episodes", Annotated[int, tyro.conf.arg(help="Episodes of each evaluation.")]),
            ("checkpoint", programs.CheckpointConfig),
            ("log", Annotated[tuple[logs.Name, ...], tyro.conf.arg(help="Loggers that receive the metrics too.")]),
            ("stop_at_return", Annotated[float | None, tyro.conf.arg(help=_TARGET, metavar="RETURN")]),
            ("action_repeat", Annotated[int, tyro.conf.arg(help="Times each action is applied; steps count actions.")]),
            ("settings", Annotated[method.config, tyro.conf.arg(name="")]),
            *[(option, Annotated[str, tyro.conf.arg(metavar=metavar, help=text)], "") for option, metavar, text in texts],
        ],
        frozen=True,
    )
    for option, filled in _FILES.items():
        file = getattr(args, option.removeprefix("--"))
        if file == "":
            rows = "a file of transitions, such as 'jaxmbrl collect' writes"
            raise UserError(f"{option} needs a value: {'the folder of a run' if option == '--expert' else rows}")
        if file is not None:
            learned = programs.configure(name, base.env, base.preset, base.settings, **{option.removeprefix("--"): file})
            # The steps of a run or of its config hold where its file has only moved.
            moved = option == "--data" and base.data_digest is not None and learned.data_digest == base.data_digest
            kept = ("steps",) if moved else ()
            base = dataclasses.replace(base, **{field: getattr(learned, field) for field in filled if field not in kept})
    run_fields = {f: getattr(base, f) for f in _OPTIONS}
    parsed = options.parse(arguments, arguments(**run_fields), rest, f"train {name}", f"Train {name}: {method.summary}.")
    if "" in options.values("--out", rest):
        raise UserError("--out needs a value: the new folder of the run")
    if not knows_task:
        raise UserError(f"--env TASK is missing; there is: {', '.join(envs.names())}")
    given = {field: getattr(parsed, field) for field in run_fields}
    given["settings"] = check(given["settings"])
    out = Path(parsed.out) if parsed.out else None
    return from_dict(programs.RunConfig, {**{f: getattr(base, f) for f in _KEPT}, **given}), out


_TARGET = "End when the mean return over seeds reaches this: of evaluations, or without them of training episodes."

_OPTIONS = ("steps", "seeds", "seed", "eval_episodes", "checkpoint", "log", "stop_at_return", "action_repeat", "settings")
"""Fields of a run that tyro parses."""

_FILES = {
    "--data": ("data", "data_digest", "steps"),
    "--demonstrations": ("demonstrations", "demonstrations_digest", "demonstrations_rows"),
    "--expert": ("expert", "expert_steps", "expert_seeds"),
}
"""Options that name a file of transitions or a run, and the fields of a run that it determines."""

_KEPT = ("algorithm", "env", "preset", *_FILES["--data"][:2], *_FILES["--demonstrations"], *_FILES["--expert"])
"""Fields of a run that tyro does not parse."""


_TEXTS = (
    ("out", "FOLDER", "New folder of the run; runs/ALGORITHM-TASK-N if not given."),
    ("env", "TASK", "The task; 'jaxmbrl list' names them."),
    ("preset", "NAME", "Settings to start from; the task's own if not given. 'jaxmbrl list' names them."),
    ("config", "FILE", "Settings to start from: the config.yaml of a run, or presets of your own in YAML."),
    ("data", "FILE", "Transitions to learn from instead of collecting: of 'jaxmbrl collect', D4RL or Minari."),
    ("demonstrations", "FILE", "Transitions of the task to sample besides those collected, by model-free methods."),
    ("expert", "RUN", "Run whose policy a small network imitates, by distillation."),
    ("schedule", "FILE", "Table of hyperparameters over environment steps (JSON or npz), such as AutoMBPO's."),
)
"""Text options. All except the first are parsed before the other options, because the defaults of those depend on them. The
last is for methods with that setting."""


def _with_schedule(name: str, settings: Any, file: str) -> Any:
    """The settings with the schedule in a file. Raises UserError if the method has none, or for a mistake in the file."""
    from jaxmbrl.algorithms import schedules

    if not hasattr(settings, "schedule"):
        raise UserError(f"--schedule has no effect on {name}: train mbpo, bmpo or ampo with it, or leave it out")
    if not file:
        raise UserError("--schedule needs a value: a JSON or npz file with steps and columns of hyperparameters")
    return dataclasses.replace(settings, schedule=schedules.load(file))


def _read_config(name: str, file: str, preset: str | None, env: str | None) -> tuple[RunConfig, bool]:
    """(the run that a file describes, whether the file is the config of a run, which includes its task). Any other file
    contains presets (`algorithms.presets`): the one called `preset` is used, or else the file's default for the task
    `env`."""
    from jaxmbrl import algorithms, envs
    from jaxmbrl.training import programs

    values = read_yaml(file, f"--config {file}")
    if isinstance(values, Mapping) and values and "algorithm" not in values:
        try:
            added = algorithms.add_presets(name, file)
        except UserError as error:
            raise UserError(f"--config {error}") from None
        chosen = preset or algorithms.default_for(added, env or "")
        return programs.configure(name, env or envs.names()[0], chosen), False
    if preset is not None:
        raise UserError("give --preset or --config, not both")
    try:
        config = programs.parse(values)
    except UserError as error:
        raise UserError(f"--config {file}: {error}") from None
    if config.algorithm != name:
        raise UserError(f"--config {file} is of {config.algorithm}, not {name}")
    return config if env is None else dataclasses.replace(config, env=env), True
