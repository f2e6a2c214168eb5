"""The `jaxmbrl` command: train, evaluate, list. A user's mistake ends with exit code 2 and one line."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import json
import os
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import tyro

from jaxmbrl.config import UserError, check, closest, from_dict

if TYPE_CHECKING:
    from jaxmbrl.training.runner import Result, RunConfig

USAGE = """usage: jaxmbrl COMMAND ...

  train ALGORITHM --env TASK [--steps N] [--seeds K] [--seed S] [--out FOLDER] [--preset NAME] [--config FILE]
                             [--FIELD VALUE ...]  train; any field of the algorithm's config is an option by its path
  train --resume RUN         go on with a run where it stopped
  evaluate RUN               returns of a run's deterministic policy
  list                       algorithms, tasks and presets

`jaxmbrl train ALGORITHM --help` tells all fields of an algorithm.
`--no-compile-cache` before or after any of these compiles afresh instead of reusing what earlier runs compiled."""

CACHE_SWITCH = "--no-compile-cache"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line; returns the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return _command(words)
    except UserError as error:
        print(f"jaxmbrl: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("jaxmbrl: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader has gone (`| head`); give the interpreter nothing to flush.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _command(words: list[str]) -> int:
    cached = CACHE_SWITCH not in words
    words = [word for word in words if word != CACHE_SWITCH]
    commands = {"train": _train, "evaluate": _evaluate, "list": _list}
    if not words or words[0] in ("-h", "--help", "help"):
        print(USAGE)
        return 0
    if words[0] == "--version":
        from jaxmbrl import __version__

        print(__version__)
        return 0
    if words[0] not in commands:
        raise UserError(f"unknown command '{words[0]}'; {closest(words[0], commands)}")
    if cached:
        _cache_compilations()
    return commands[words[0]](words[1:])


def _cache_compilations() -> None:
    """Keep compiled programs in the user's cache folder, so that the next start is fast."""
    import jax

    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = base / "jaxmbrl" / "compiled"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        print(f"jaxmbrl: compiled programs are not kept: {folder} cannot be made ({error.strerror})", file=sys.stderr)
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see '{self.prog} --help'")


def _parser(command: str, **more: Any) -> _Parser:
    return _Parser(prog=f"jaxmbrl {command}", allow_abbrev=False, **more)


def _train(words: list[str]) -> int:
    from jaxmbrl import algorithms
    from jaxmbrl.training import runner
    from jaxmbrl.training.console import Progress
    from jaxmbrl.training.run_folder import RunFolder

    if "--resume" in words:
        parser = _parser("train --resume", usage="jaxmbrl train --resume RUN [--steps N]")
        parser.add_argument("--resume", required=True, metavar="RUN")
        parser.add_argument("--steps", type=int, help="go on to this many environment steps")
        asked = parser.parse_args(words)
        config = runner.parse(RunFolder.open(asked.resume).read_config())
        progress = Progress(_whole_epochs(config, asked.steps), config.seeds)
        _report(runner.resume(asked.resume, steps=asked.steps, progress=progress), progress)
        return 0
    if not words or words[0] in ("-h", "--help"):
        print(USAGE)
        return 0
    name, *options = words
    if name.startswith("-"):
        raise UserError(
            f"name the algorithm first, as in 'jaxmbrl train sac --env pendulum'; {closest('', algorithms.METHODS)}"
        )
    algorithms.get(name)
    config, out = _parse_train(name, options)
    program = runner.build(config)
    progress = Progress(program.total_steps, config.seeds)
    if program.total_steps != config.steps:
        progress.say(
            f"{config.steps:,} steps are rounded up to {program.total_steps:,}, whole epochs of {program.epoch_steps:,}"
        )
    fields = {field: getattr(config, field) for field in ("eval_episodes", "checkpoint_every")}
    out = out or _free_folder(Path("runs"), f"{config.algorithm}-{config.env}")
    progress.say(
        f"training {config.algorithm} ({config.preset} preset) on {config.env}: {program.total_steps:,} environment steps, "
        f"{config.seeds} seed{'s' if config.seeds > 1 else ''}, into {out}"
    )
    result = runner.train(
        config.algorithm,
        config.env,
        steps=config.steps,
        seeds=config.seeds,
        seed=config.seed,
        preset=config.preset,
        settings=config.settings,
        out=out,
        progress=progress,
        **fields,
    )
    _report(result, progress)
    return 0


def _whole_epochs(config: RunConfig, steps: int | None) -> int:
    epoch = config.settings.epoch_steps
    return -(-(steps or config.steps) // epoch) * epoch


def _free_folder(parent: Path, stem: str) -> Path:
    """The first of parent/stem-1, parent/stem-2, ... that is not there."""
    number = 1
    while (parent / f"{stem}-{number}").exists():
        number += 1
    return parent / f"{stem}-{number}"


def _report(result: Result, progress: Any) -> None:
    """The end of a run: where it lies and what to do next."""
    from jaxmbrl.training import curve

    assert result.path is not None
    drawn = curve.text_curve(result.rows, width=min(progress.width, 80), height=12)
    if drawn:
        progress.say(drawn)
    finished = [row["train/return"] for row in result.rows if "train/return" in row]
    if finished:
        first, last = _mean_of_epoch(result.rows, first=True), _mean_of_epoch(result.rows, first=False)
        progress.say(f"return of the first finished trials {first:.1f}, of the last {last:.1f} (mean over seeds)")
    progress.say(f"run: {result.path}    picture: {result.path / 'curve.png'}")
    progress.say(f"next: jaxmbrl evaluate {result.path}")


def _mean_of_epoch(rows: list[dict[str, Any]], first: bool) -> float:
    """Mean over seeds of train/return in the first or last epoch that has one."""
    epochs = [row["epoch"] for row in rows if "train/return" in row]
    epoch = min(epochs) if first else max(epochs)
    values = [row["train/return"] for row in rows if row["epoch"] == epoch and "train/return" in row]
    return float(sum(values) / len(values))


def _parse_train(name: str, options: list[str]) -> tuple[RunConfig, Path | None]:
    """The run that the options ask for: a preset or a saved config, with the fields given replaced."""
    from jaxmbrl import algorithms
    from jaxmbrl.training import runner

    early = _parser(f"train {name}", add_help=False)
    for option in ("--env", "--preset", "--config"):
        early.add_argument(option)
    asked, rest = early.parse_known_args(options)
    helping = "-h" in rest or "--help" in rest
    if asked.config is not None:
        base = _read_config(name, asked.config, asked.preset)
        if asked.env is not None:
            base = dataclasses.replace(base, env=asked.env)
    elif asked.env is None and not helping:
        raise UserError(f"--env TASK is missing; {_tasks()}")
    else:
        base = runner.configure(name, asked.env or "pendulum", asked.preset)
    method = algorithms.get(name)
    arguments = dataclasses.make_dataclass(
        "arguments",
        [
            ("steps", Annotated[int, tyro.conf.arg(help="Environment steps of each seed, rounded up to whole epochs.")]),
            ("seeds", Annotated[int, tyro.conf.arg(help="Seeds, trained side by side in one program.")]),
            ("seed", Annotated[int, tyro.conf.arg(help="The first seed; the others follow it.")]),
            ("eval_episodes", Annotated[int, tyro.conf.arg(help="Episodes of each evaluation.")]),
            ("checkpoint_every", Annotated[int, tyro.conf.arg(help="Epochs between two checkpoints.")]),
            ("settings", Annotated[method.config, tyro.conf.arg(name="")]),
            (
                "out",
                Annotated[str | None, tyro.conf.arg(help="New folder of the run; runs/ALGORITHM-TASK-N if not given.")],
                None,
            ),
        ],
        frozen=True,
    )
    run_fields = {f: getattr(base, f) for f in ("steps", "seeds", "seed", "eval_episodes", "checkpoint_every", "settings")}
    description = f"Train {name}: {method.summary}. Needs --env TASK; takes --preset NAME and --config FILE, a config.yaml."
    parsed = _tyro(arguments, arguments(**run_fields), rest, f"jaxmbrl train {name}", description)
    given = {field: getattr(parsed, field) for field in run_fields}
    given["settings"] = check(given["settings"])
    out = None if parsed.out is None else Path(parsed.out)
    return from_dict(runner.RunConfig, {**{f: getattr(base, f) for f in ("algorithm", "env", "preset")}, **given}), out


def _read_config(name: str, file: str, preset: str | None) -> RunConfig:
    import yaml

    from jaxmbrl.training import runner

    if preset is not None:
        raise UserError("give --preset or --config, not both")
    try:
        values = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"--config {file} cannot be read ({error.strerror})") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"--config {file} is not valid YAML ({' '.join(str(error).split())})") from None
    try:
        config = runner.parse(values)
    except UserError as error:
        raise UserError(f"--config {file}: {error}") from None
    if config.algorithm != name:
        raise UserError(f"--config {file} is of {config.algorithm}, not {name}")
    return config


def _tyro(kind: type, default: Any, words: list[str], prog: str, description: str) -> Any:
    """Parse with tyro; its framed errors are folded into one line."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            return tyro.cli(kind, default=default, args=words, prog=prog, description=description)
    except SystemExit as stop:
        if not stop.code:
            raise
    raise UserError(_one_line(printed.getvalue()))


def _one_line(box: str) -> str:
    """The message in tyro's framed error, and the nearest option where it names one."""
    lines = [line.strip(" │|") for line in box.splitlines()]
    sections: list[list[str]] = [[]]
    for line in lines:
        if re.fullmatch(r"[-─╭╮╰╯]{5,}.*", line):
            sections.append([])
        elif line:
            sections[-1].append(line)
    told = [" ".join(section) for section in sections if section]
    message = told[1] if len(told) > 1 else " ".join(told)
    near = re.search(r"Perhaps you meant:\s*(--\S+)", " ".join(told))
    return message[:1].lower() + message[1:].rstrip(".") + (f"; did you mean {near[1]}?" if near else "")


def _tasks() -> str:
    from jaxmbrl import envs

    return f"there is: {', '.join(envs.names())}"


def _evaluate(words: list[str]) -> int:
    from jaxmbrl.training import runner
    from jaxmbrl.training.run_folder import RunFolder

    parser = _parser("evaluate", description="Returns of a run's deterministic policy on fixed start states.")
    parser.add_argument("run", metavar="RUN", help="a run folder")
    parser.add_argument("--episodes", type=int, default=10, help="episodes of each seed (default: 10)")
    parser.add_argument("--json", action="store_true", help="the last line is one JSON object: per_seed, mean, iqm")
    asked = parser.parse_args(words)
    config = runner.parse(RunFolder.open(asked.run).read_config())
    if asked.episodes < 1:
        raise UserError(f"--episodes must be at least 1, got {asked.episodes}")
    seeds = f"{config.seeds} seed{'s' if config.seeds > 1 else ''}"
    print(f"evaluating {config.algorithm} on {config.env}: {seeds}, {asked.episodes} episodes each ...", flush=True)
    started = time.monotonic()
    found = runner.evaluate(asked.run, asked.episodes)
    for k, value in enumerate(found.per_seed):
        print(f"seed {config.seed + k}: {value:.2f}")
    print(f"mean {found.mean:.2f}, interquartile mean {found.iqm:.2f}, in {time.monotonic() - started:.1f} s")
    if asked.json:
        print(json.dumps({"per_seed": found.per_seed, "mean": found.mean, "iqm": found.iqm}))
    return 0


def _list(words: list[str]) -> int:
    from jaxmbrl import algorithms, envs

    _parser("list", description="Algorithms, tasks and presets.").parse_args(words)
    print("algorithms")
    for name, method in algorithms.METHODS.items():
        print(f"  {name:<24}{method.summary}")
    print("\ntasks")
    for name in envs.names():
        print(f"  {name}")
    print("\npresets")
    for name, method in algorithms.METHODS.items():
        for preset, (_, source, steps, tasks) in method.presets.items():
            print(f"  {name} --preset {preset}  ({steps:,} steps{', default on ' + ', '.join(tasks) if tasks else ''})")
            print(f"      {source}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
