"""The `jaxmbrl` command. A user's mistake ends with exit code 2 and one line."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import math
import os
import re
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from jaxmbrl import options
from jaxmbrl.config import UserError, check, closest, from_dict

if TYPE_CHECKING:
    from jaxmbrl.training.console import Progress
    from jaxmbrl.training.runner import Result, RunConfig
    from jaxmbrl.types import Task

USAGE = """usage: jaxmbrl COMMAND ...

  train ALGORITHM --env TASK [--steps N] [--seeds K] [--seed S] [--out FOLDER] [--preset NAME] [--config FILE]
                             [--FIELD VALUE ...]  train; any field of the algorithm's config is an option by its path
  train --resume RUN         go on with a run where it stopped
  train ALGORITHM --env TASK --data FILE                 learn from transitions in a file, without collecting
  evaluate RUN [--model true] [--backend gymnasium] [--video [FILE]]
                             returns of a run's deterministic policy, and a video
  collect --policy random|RUN --env TASK --out FILE.npz  write transitions to a file
  fit --data FILE.npz        fit a dynamics model to transitions and judge it
  list                       algorithms, tasks and presets
  doctor                     whether this machine is ready

`jaxmbrl train ALGORITHM --help` tells all fields of an algorithm.
`--no-compile-cache` before or after any of these compiles afresh instead of reusing what earlier runs compiled."""

CACHE_SWITCH = "--no-compile-cache"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line; returns the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return _command(words)
    except UserError as error:
        _complain(str(error))
        return 2
    except SystemExit as stop:
        # How the parsers end after help.
        return int(stop.code or 0)
    except KeyboardInterrupt:
        _complain("interrupted")
        return 130
    except BrokenPipeError:
        # The reader has gone (`| head`); give the interpreter nothing to flush.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        _complain(f"{error.filename or 'output'}: {error.strerror or error}")
        return 2 if error.errno == errno.ENAMETOOLONG else 1


def _complain(text: str) -> None:
    """One line on standard error, whatever a user's words held."""
    print("jaxmbrl: " + " ".join(text.splitlines()), file=sys.stderr)


def _command(words: list[str]) -> int:
    cached = CACHE_SWITCH not in words
    words = [word for word in words if word != CACHE_SWITCH]
    commands = {
        "train": _train,
        "evaluate": _evaluate,
        "collect": _collect,
        "fit": _fit,
        "list": _list,
        "doctor": _doctor,
    }
    if not words or words[0] in ("-h", "--help", "help"):
        print(USAGE)
        return 0
    if words == ["--version"]:
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

    if getattr(jax.config, "jax_compilation_cache_dir", None) is not None:
        # The user has chosen a folder.
        return
    try:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:
        _complain("compiled programs are not kept: there is no home folder; name one in XDG_CACHE_HOME")
        return
    folder = base / "jaxmbrl" / "compiled"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        _complain(f"compiled programs are not kept: {folder} cannot be made ({error.strerror})")
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))


def _train(words: list[str]) -> int:
    from jaxmbrl import algorithms
    from jaxmbrl.training import runner
    from jaxmbrl.training.console import Progress
    from jaxmbrl.training.run_folder import RunFolder

    if any(word.split("=")[0] == "--resume" for word in words):
        return _resume(words)
    if words and words[0] in ("-h", "--help"):
        print(USAGE)
        return 0
    name = words[0] if words else ""
    if not name or name.startswith("-"):
        raise UserError(
            f"name the algorithm first, as in 'jaxmbrl train sac --env pendulum'; {closest('', algorithms.METHODS)}"
        )
    algorithms.get(name)
    config, out = parse_train(name, words[1:])
    program = runner.build(config)
    progress = Progress(program.total_steps, config.seeds)
    out = RunFolder.create(out or _free_folder(Path("runs"), f"{config.algorithm}-{re.sub('[/:]', '-', config.env)}")).path
    if program.total_steps != config.steps:
        progress.say(
            f"{config.steps:,} steps are rounded {'down' if config.data else 'up'} to {program.total_steps:,}, "
            f"whole epochs of {program.epoch_steps:,}"
        )
    progress.say(
        f"training {config.algorithm} ({config.preset} preset) on {config.env}"
        f"{f', each action {config.action_repeat} times' if config.action_repeat > 1 else ''}: {program.total_steps:,} "
        f"{'transitions of ' + config.data if config.data else 'environment steps'}, "
        f"{config.seeds} seed{'s' if config.seeds > 1 else ''}, into {out}"
    )
    fields = {field: getattr(config, field) for field in ("eval_episodes", "checkpoint_every", "action_repeat")}
    return _finish(
        out,
        progress,
        lambda: runner.train(
            config.algorithm,
            config.env,
            steps=config.steps,
            seeds=config.seeds,
            seed=config.seed,
            preset=config.preset,
            settings=config.settings,
            data=config.data,
            out=out,
            progress=progress,
            **fields,
        ),
    )


def _resume(words: list[str]) -> int:
    from jaxmbrl.training import runner
    from jaxmbrl.training.console import Progress
    from jaxmbrl.training.run_folder import RunFolder

    parser = options.parser("train --resume", usage="jaxmbrl train --resume RUN [--steps N]", add_help=False)
    parser.add_argument("--resume", required=True, metavar="RUN", help="the folder of the run to go on with")
    parser.add_argument("--steps", type=int, metavar="N", help="go on to this many environment steps")
    if "-h" in words or "--help" in words:
        parser.print_help()
        return 0
    asked, stray = parser.parse_known_args(words)
    if stray:
        raise UserError(f"--resume takes a run's own settings, and --steps alone beside them: leave out '{stray[0]}'")
    config = runner.read(RunFolder.open(asked.resume))
    progress = Progress(_whole_epochs(config, asked.steps), config.seeds)
    return _finish(Path(asked.resume), progress, lambda: runner.resume(asked.resume, steps=asked.steps, progress=progress))


def _finish(out: Path, progress: Progress, work: Callable[[], Result]) -> int:
    """Do the work of a run and say what came of it; returns the exit code."""
    try:
        result = work()
    except KeyboardInterrupt:
        _complain(f"interrupted; '{_own_name()} train --resume {out}' goes on from the last checkpoint")
        return 130
    _report(result, progress)
    if all(row.get("frozen", False) for row in result.rows[-result.config.seeds :]):
        _complain(f"no seed reached the end: each met a value that is not finite; {out / 'events.jsonl'} names them")
        return 1
    return 0


def _whole_epochs(config: RunConfig, steps: int | None) -> int:
    """The steps of a run in whole epochs: rounded up, or down where data end."""
    epoch, steps = config.settings.epoch_steps, steps or config.steps
    return (steps // epoch if config.data else -(-steps // epoch)) * epoch


def _free_folder(parent: Path, stem: str) -> Path:
    """The first of parent/stem-1, parent/stem-2, ... that is not there, made at once so that no other run takes it."""
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
    """The end of a run: where it lies and what to do next."""
    from jaxmbrl.training import curve

    assert result.path is not None
    # Data end no episode of the policy's own; what it earns is seen where it is evaluated.
    if result.config.data is None or any("eval/return" in row for row in result.rows):
        progress.say(curve.text_curve(result.rows, width=min(progress.width, 80), height=12))
    finished = [row["train/return"] for row in result.rows if "train/return" in row]
    if finished:
        first, last = _mean_of_epoch(result.rows, first=True), _mean_of_epoch(result.rows, first=False)
        progress.say(f"return of the first finished trials {first:.1f}, of the last {last:.1f} (mean over seeds)")
    progress.say(f"run      {result.path}")
    progress.say(f"picture  {result.path / 'curve.png'}")
    command, config = _own_name(), result.config
    other = "sac" if config.algorithm == "pets" else "pets"
    progress.say("what to try next:")
    progress.say(f"  {command} evaluate {result.path}")
    if config.data is None:
        progress.say(f"  {command} train --resume {result.path} --steps {2 * int(result.rows[-1]['env_steps'])}")
    again = _task_words(result.task) + (f" --data {config.data}" if config.data else "")
    progress.say(f"  {command} train {other} {again}")
    progress.say(f"  {command} list")


def _task_words(task: Task) -> str:
    """The options that ask for `task`."""
    return f"--env {task.name}" + (f" --action-repeat {task.action_repeat}" if task.action_repeat > 1 else "")


def _own_name() -> str:
    """The command as it was called, where the plain name would not find it."""
    called = sys.argv[0]
    plain = Path(called).name != "jaxmbrl" or shutil.which("jaxmbrl") == str(Path(called).absolute())
    return "jaxmbrl" if plain else called


def _mean_of_epoch(rows: list[dict[str, Any]], first: bool) -> float:
    """Mean over seeds of train/return in the first or last epoch that has one."""
    epochs = [row["epoch"] for row in rows if "train/return" in row]
    epoch = min(epochs) if first else max(epochs)
    values = [row["train/return"] for row in rows if row["epoch"] == epoch and "train/return" in row]
    return float(sum(values) / len(values))


def parse_train(name: str, words: list[str]) -> tuple[RunConfig, Path | None]:
    """The run that the words ask for: a preset or a saved config, with the fields given replaced."""
    from jaxmbrl import algorithms, envs
    from jaxmbrl.training import runner

    early = options.parser(f"train {name}", add_help=False)
    for option in ("--env", "--preset", "--config", "--data"):
        early.add_argument(option)
    asked, rest = early.parse_known_args(words)
    if asked.config is not None:
        base = _read_config(name, asked.config, asked.preset)
        if asked.env is not None:
            base = dataclasses.replace(base, env=asked.env)
    elif asked.env is None:
        # Any task will do for help, and to tell first what else is wrong.
        base = runner.configure(name, envs.names()[0], asked.preset or next(iter(algorithms.get(name).presets)))
    else:
        base = runner.configure(name, asked.env, asked.preset)
    method = algorithms.get(name)
    arguments = dataclasses.make_dataclass(
        "arguments",
        [
            ("steps", Annotated[int, tyro.conf.arg(help="Environment steps of each seed, rounded up to whole epochs.")]),
            ("seeds", Annotated[int, tyro.conf.arg(help="Seeds, trained side by side in one program.")]),
            ("seed", Annotated[int, tyro.conf.arg(help="The first seed; the others follow it.")]),
            ("eval_episodes", Annotated[int, tyro.conf.arg(help="Episodes of each evaluation.")]),
            ("checkpoint_every", Annotated[int, tyro.conf.arg(help="Epochs between two checkpoints.")]),
            ("action_repeat", Annotated[int, tyro.conf.arg(help="Times each action is applied; steps count actions.")]),
            ("settings", Annotated[method.config, tyro.conf.arg(name="")]),
            *[(option, Annotated[str, tyro.conf.arg(metavar=metavar, help=text)], "") for option, metavar, text in _TEXTS],
        ],
        frozen=True,
    )
    if asked.data == "":
        raise UserError("--data needs a value: an npz of transitions, as 'jaxmbrl collect' writes it")
    if asked.data is not None:
        learned = runner.configure(name, base.env, base.preset, base.settings, data=asked.data)
        fields = {field: getattr(learned, field) for field in ("steps", "data", "data_digest")}
        base = dataclasses.replace(base, **fields)
    run_fields = {f: getattr(base, f) for f in _OPTIONS}
    parsed = options.parse(arguments, arguments(**run_fields), rest, f"train {name}", f"Train {name}: {method.summary}.")
    if "" in options.values("--out", rest):
        raise UserError("--out needs a value: the new folder of the run")
    if asked.env is None and asked.config is None:
        raise UserError(f"--env TASK is missing; there is: {', '.join(envs.names())}")
    given = {field: getattr(parsed, field) for field in run_fields}
    given["settings"] = check(given["settings"])
    out = Path(parsed.out) if parsed.out else None
    return from_dict(runner.RunConfig, {**{f: getattr(base, f) for f in _KEPT}, **given}), out


_OPTIONS = ("steps", "seeds", "seed", "eval_episodes", "checkpoint_every", "action_repeat", "settings")
"""Fields of a run that are options of tyro's."""

_KEPT = ("algorithm", "env", "preset", "data", "data_digest")
"""Those that are not."""


_TEXTS = (
    ("out", "FOLDER", "New folder of the run; runs/ALGORITHM-TASK-N if not given."),
    ("env", "TASK", "The task; 'jaxmbrl list' names them."),
    ("preset", "NAME", "Settings to start from; the task's own if not given. 'jaxmbrl list' names them."),
    ("config", "FILE", "Settings to start from: the config.yaml of a run."),
    ("data", "FILE", "Transitions to learn from instead of collecting, as 'jaxmbrl collect' writes them."),
)
"""Options that are words; but for the first they are read before the others, whose defaults depend on them."""


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
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        told = f"line {mark.line + 1}: {problem}" if mark and problem else " ".join(str(error).split())
        raise UserError(f"--config {file} is not valid YAML ({told})") from None
    try:
        config = runner.parse(values)
    except UserError as error:
        raise UserError(f"--config {file}: {error}") from None
    if config.algorithm != name:
        raise UserError(f"--config {file} is of {config.algorithm}, not {name}")
    return config


def _evaluate(words: list[str]) -> int:
    from jaxmbrl.envs import twin
    from jaxmbrl.training import runner
    from jaxmbrl.training.run_folder import RunFolder

    parser = options.parser("evaluate", description="Returns of a run's deterministic policy on fixed start states.")
    parser.add_argument("run", metavar="RUN", help="a run folder")
    parser.add_argument("--episodes", type=int, default=10, metavar="N", help="episodes of each seed (default: 10)")
    parser.add_argument(
        "--model", metavar="MODEL", help="'true': plan in the true simulator; 'learned': in the model learned"
    )
    backends = "'gymnasium': the same episodes in real Gymnasium, with C MuJoCo; 'jax': in the compiled program"
    parser.add_argument("--backend", metavar="BACKEND", help=backends)
    parser.add_argument("--json", action="store_true", help="the last line is one JSON object: per_seed, mean, iqm")
    film = "film the first seed's first episode, as a GIF of at most 300 frames (default: RUN/video.gif)"
    parser.add_argument("--video", nargs="?", const="", metavar="FILE", help=film)
    asked = parser.parse_args(words)
    if asked.episodes < 1:
        raise UserError(f"--episodes must be at least 1, got {asked.episodes}")
    config = runner.read(RunFolder.open(asked.run))
    file = _new_file("--video", asked.video, ".gif") if asked.video else Path(asked.run) / "video.gif"
    seeds = f"{config.seeds} seed{'s' if config.seeds > 1 else ''}"
    print(f"evaluating {config.algorithm} on {config.env}: {seeds}, {asked.episodes} episodes each ...", flush=True)
    started = time.monotonic()
    with _warnings_in_a_line():
        found = runner.evaluate(asked.run, asked.episodes, asked.model, asked.backend)
    total = _whole_epochs(config, None)
    print(f"the policy after {found.env_steps:,} of {total:,} environment steps")
    for k, value in enumerate(found.per_seed):
        frozen = "  (frozen when a value was not finite)" if config.seed + k in found.frozen else ""
        print(f"seed {config.seed + k}: " + (f"{value:.2f}" if math.isfinite(value) else "not finite") + frozen)
    if found.backend == "gymnasium":
        print(f"played in {twin.versions(physics=not config.env.startswith('gymnasium/'))}")
    print(f"mean {found.mean:.2f}, interquartile mean {found.iqm:.2f}, in {time.monotonic() - started:.1f} s")
    if asked.video is not None:
        _film(asked.run, asked.model, file)
    if asked.json:
        per_seed = [_finite(value) for value in found.per_seed]
        told = {"per_seed": per_seed, "mean": _finite(found.mean), "iqm": _finite(found.iqm), "backend": found.backend}
        print(json.dumps(told | {"env_steps": found.env_steps, "frozen": list(found.frozen)}, allow_nan=False))
    return 0


def _film(run: str, model: str | None, file: Path) -> None:
    """Film an episode; where nothing can be drawn, say so."""
    from jaxmbrl.diagnostics import video
    from jaxmbrl.envs.rendering import NoPicture
    from jaxmbrl.training import runner

    with warnings.catch_warnings():
        # The evaluation has told them.
        warnings.simplefilter("ignore", runner.RunWarning)
        try:
            print(f"video    {file}: {video.film(run, file, model)}")
        except NoPicture as error:
            _complain(str(error))


@contextlib.contextmanager
def _warnings_in_a_line() -> Iterator[None]:
    """Tell what is wrong with a run as our errors are told, and not as Python does."""
    from jaxmbrl.training import runner

    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always", runner.RunWarning)
        yield
    for warning in heard:
        _complain(f"warning: {warning.message}")


def _new_file(option: str, text: str, suffix: str) -> Path:
    """The new file that an option names, with its suffix. Raises UserError where it cannot be made."""
    from jaxmbrl import dataset

    path = Path(text)
    if not path.name or path.name == "..":
        raise UserError(f"{option} must be the name of a new file, FILE{suffix}, got '{text}'")
    path = path if path.suffix == suffix else path.with_name(path.name + suffix)
    dataset.check_writable(path)
    return path


def _finite(value: float) -> float | None:
    """The value, or None where JSON has no word for it."""
    return value if math.isfinite(value) else None


def _collect(words: list[str]) -> int:
    from jaxmbrl import dataset
    from jaxmbrl.training import collecting

    parser = options.parser("collect", description="Write transitions of a policy, episode after episode, to an npz file.")
    parser.add_argument("--policy", required=True, metavar="POLICY", help="'random', or the folder of a run")
    parser.add_argument("--env", metavar="TASK", help="the task; a run knows its own")
    parser.add_argument("--out", required=True, metavar="FILE", help="the new file, FILE.npz")
    parser.add_argument("--steps", type=int, default=10_000, metavar="N", help="transitions (default: 10000)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of all randomness (default: 0)")
    alike = "act as in training and not deterministically (a planner acts alike in both)"
    parser.add_argument("--explore", action="store_true", help=alike)
    times = "times that each action is applied (default: 1; a run knows its own)"
    parser.add_argument("--action-repeat", type=int, metavar="N", help=times)
    asked = parser.parse_args(words)
    out = _new_file("--out", asked.out, ".npz")
    started = time.monotonic()
    with _warnings_in_a_line():
        rows, task = collecting.collect_by(
            asked.env, asked.policy, asked.steps, asked.seed, asked.explore, asked.action_repeat
        )
    dataset.save(out, rows, task.name, task.action_repeat)
    ended = rows.terminated | rows.truncated
    print(f"{asked.steps:,} transitions of {task.name} in {out}, {int(ended.sum())} finished episodes")
    print(f"reward a step {float(rows.reward.mean()):.3f} on average, in {time.monotonic() - started:.1f} s")
    print("what to try next:")
    print(f"  {_own_name()} fit --data {out}")
    print(f"  {_own_name()} train pets {_task_words(task)} --data {out}")
    return 0


def _fit(words: list[str]) -> int:
    from jaxmbrl import dataset, envs
    from jaxmbrl.diagnostics import calibration, judging

    early = options.parser("fit", add_help=False)
    for option in ("--data", "--env", "--out"):
        early.add_argument(option)
    asked, rest = early.parse_known_args(words)
    texts = [
        (option, Annotated[str, tyro.conf.arg(metavar=metavar, help=text)], "") for option, metavar, text in _FIT_TEXTS
    ]
    kind = dataclasses.make_dataclass(
        "arguments", [("settings", Annotated[judging.FitConfig, tyro.conf.arg(name="")]), *texts], frozen=True
    )
    default = kind(judging.FitConfig())
    config = check(options.parse(kind, default, rest, "fit", "Fit a dynamics model to transitions and judge it.").settings)
    if not asked.data:
        raise UserError("--data FILE is missing: an npz of transitions, as 'jaxmbrl collect' writes it")
    data = dataset.load(asked.data)
    name = asked.env or data.env
    task = None if name is None or (asked.env is None and name not in envs.names()) else envs.make(name, data.action_repeat)
    if asked.env is not None and data.env not in (None, asked.env):
        raise UserError(f"{asked.data} holds transitions of {data.env}, not of {asked.env}")
    if task is not None:
        dataset.check_fits(data, task)
    picture = None if asked.out is None else _new_file("--out", asked.out, ".png")
    started = time.monotonic()
    print(
        f"fitting to {asked.data}: {len(data.rows.reward):,} transitions" + (f" of {name}" if name else "") + " ...",
        flush=True,
    )
    judged = judging.fit_and_judge(config, data.rows, task)
    seconds = time.monotonic() - started
    print(f"fitted to {judged.trained_on:,} rows, judged on the last {judged.tested_on:,}, in {seconds:.1f} s")
    for metric, value in judged.found.items():
        print(f"{metric:<26}{value:.5g}")
    print(f"\n{'':<18}{'error':>10}{'unexplained':>13}{'aleatoric':>11}{'epistemic':>11}{'miscalibration':>16}")
    size = data.rows.observation.shape[1]
    for d, error in enumerate(judged.error):
        what = f"observation {d}" if d < size else "reward"
        share = judged.unexplained[d]
        told = f"{'constant':>13}" if math.isnan(share) and math.isfinite(error) else f"{share:>13.4f}"
        print(
            f"{what:<18}{error:>10.4g}{told}{judged.aleatoric[d]:>11.4g}{judged.epistemic[d]:>11.4g}"
            f"{float(judged.calibration.error[d]):>16.3f}"
        )
    print("error, aleatoric, epistemic: root mean square in the task's units; unexplained: share of the change's variance")
    if picture is not None:
        picture.parent.mkdir(parents=True, exist_ok=True)
        calibration.draw({"unseen rows": judged.calibration}, picture, "Calibration")
        print(f"picture  {picture}")
    return 0


_FIT_TEXTS = (
    ("data", "FILE", "Transitions, as 'jaxmbrl collect' writes them."),
    ("env", "TASK", "The task whose known reward and termination to use; the file's own if not given."),
    ("out", "FILE", "Where to draw the calibration, FILE.png."),
)


def _doctor(words: list[str]) -> int:
    import jax

    from jaxmbrl.diagnostics import doctor

    options.parser(
        "doctor", description="What is installed, what it computes on, how exactly, and where it may write."
    ).parse_args(words)
    bad = 0
    cache = getattr(jax.config, "jax_compilation_cache_dir", None)
    for finding in doctor.examine(Path("runs"), cache):
        print(f"{finding.state:<6}{finding.what:<15}{finding.told}", flush=True)
        bad += finding.state == "bad"
    print("this machine is ready" if not bad else f"{bad} thing{'s' if bad > 1 else ''} to mend")
    return 1 if bad else 0


def _list(words: list[str]) -> int:
    from jaxmbrl import algorithms, envs

    options.parser("list", description="Algorithms, tasks and presets.").parse_args(words)
    print("algorithms")
    for name, method in algorithms.METHODS.items():
        print(f"  {name:<24}{method.summary}")
    print("\ntasks")
    for name in envs.names():
        print(f"  {name}")
    for family in envs.FAMILIES:
        print(f"  {family}/NAME")
    print("\npresets")
    for name, method in algorithms.METHODS.items():
        for preset, (_, source, steps, tasks) in method.presets.items():
            print(f"  {name} --preset {preset}  ({steps:,} steps{', default on ' + ', '.join(tasks) if tasks else ''})")
            print(f"      {source}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
