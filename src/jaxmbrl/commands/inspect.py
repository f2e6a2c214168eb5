"""The commands that examine runs, data and this machine: evaluate, debug, collect, fit, doctor."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import statistics
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from jaxmbrl.commands import options
from jaxmbrl.commands.options import complain
from jaxmbrl.commands.training import task_words
from jaxmbrl.core.calling import again
from jaxmbrl.core.config import UserError, check
from jaxmbrl.core.places import expanded

if TYPE_CHECKING:
    from jaxmbrl.core.types import Task
    from jaxmbrl.data.dataset import Dataset
    from jaxmbrl.training.programs import RunConfig
    from jaxmbrl.training.runner import Evaluation, Trained
    from jaxmbrl.training.scores import Reference

SHORT_SECONDS = 5.0
"""Durations below this are not announced."""


def evaluate(words: list[str]) -> int:
    """`jaxmbrl evaluate`: returns of a run's policy, a video, and a video of a dream."""
    from jaxmbrl.envs.bridges import twin
    from jaxmbrl.training import programs, runner, scores
    from jaxmbrl.training.run_folder import RunFolder

    parser = options.parser("evaluate", description="Returns of a run's deterministic policy on fixed start states.")
    parser.add_argument("run", metavar="RUN", help="a run folder")
    parser.add_argument(
        "--episodes", type=options.whole, default=10, metavar="N", help="episodes of each seed (default: 10)"
    )
    parser.add_argument(
        "--model", metavar="MODEL", help="'true': plan in the true simulator; 'learned': in the learned model"
    )
    backends = "'gymnasium': the same episodes in real Gymnasium, with C MuJoCo; 'jax': in the compiled program"
    parser.add_argument("--backend", metavar="BACKEND", help=backends)
    scored = "returns whose normalised scores are 0 and 100 (default: the task's, if there are any)"
    parser.add_argument("--score-reference", nargs=2, type=float, metavar=("RANDOM", "EXPERT"), help=scored)
    parser.add_argument("--json", action="store_true", help="the last line is one JSON object: per_seed, mean, iqm")
    film = "film the first seed's first episode, as a GIF of at most 300 frames (default: RUN/video.gif); else exit code 1"
    parser.add_argument("--video", nargs="?", const="", metavar="FILE", help=film)
    dreamt = "film the same beside a dream of a latent world model of images, as a GIF (default: RUN/dream.gif)"
    parser.add_argument("--dream", nargs="?", const="", metavar="FILE", help=dreamt)
    args = parser.parse_args(words)
    if args.episodes < 1:
        raise UserError(f"--episodes must be at least 1, got {args.episodes}")
    folder = RunFolder.open(args.run)
    config = programs.read(folder)
    reference = scores.reference_of(config.env, args.score_reference)
    file, dream_file = (_video_file(args.run, name, getattr(args, name)) for name in ("video", "dream"))
    seeds = f"{config.seeds} seed{'s' if config.seeds > 1 else ''}"
    expected = ""
    if args.model is None and args.backend is None:
        # Only for the message, so errors in the file of metrics do not matter.
        with contextlib.suppress(UserError):
            expected = _expected(folder.read_metrics(), config, args.episodes)
    print(
        f"evaluating {config.algorithm} on {config.env}: {seeds}, {args.episodes} episodes each{expected} ...", flush=True
    )
    started = time.monotonic()
    with options.warnings_in_a_line():
        # Before the checkpoint is read, which may take a while.
        runner.checked_episodes(args.episodes, args.backend)
        policy = _trained(args.run, args.dream is not None)
        found = runner.evaluate(policy, args.episodes, args.model, args.backend, progress=True)
    print(f"the policy after {found.env_steps:,} of {config.total_steps:,} environment steps")
    for line in _per_seed(found, config.seed):
        print(line)
    if found.backend == "gymnasium":
        print(f"played in {twin.versions(physics=policy.program.task.host is None)}")
    print(f"mean {found.mean:.2f}, interquartile mean {found.iqm:.2f}, in {time.monotonic() - started:.1f} s")
    if reference is not None:
        print(scores.described(found.per_seed, reference))
    _dream(args.run, args.dream is not None, dream_file)
    filmed = args.video is None or _film(args.run, args.model, args.backend, file)
    if args.json:
        print(json.dumps(_summary(found, reference), allow_nan=False))
    else:
        _suggest_after_evaluating(args.run, args.video is not None, policy)
    return 0 if filmed else 1


def _per_seed(found: Evaluation, first: int) -> list[str]:
    """The mean return of each seed from `first` on; of more than `MOST_SEEDS`, those that are frozen or not finite, and the
    quantiles of the others."""
    from jaxmbrl.training.scores import MOST_SEEDS

    lines, finite = [], []
    for seed, value in enumerate(found.per_seed, first):
        frozen = "  (frozen when a value was not finite)" if seed in found.frozen else ""
        line = f"seed {seed}: " + (f"{value:.2f}" if math.isfinite(value) else "not finite") + frozen
        if len(found.per_seed) <= MOST_SEEDS or frozen or not math.isfinite(value):
            lines.append(line)
        else:
            finite.append(value)
    if len(found.per_seed) > MOST_SEEDS:
        more = len(lines) - MOST_SEEDS
        lines = lines[:MOST_SEEDS] + ([f"... and {more} more"] if more > 0 else [])
    if len(finite) > 1:
        cuts = statistics.quantiles(finite, n=20, method="inclusive")
        shown = (min(finite), cuts[0], cuts[4], cuts[9], cuts[14], cuts[18], max(finite))
        texts = zip(("lowest", "5%", "25%", "median", "75%", "95%", "highest"), shown, strict=True)
        lines.append(f"{len(finite):,} seeds: " + ", ".join(f"{name} {value:.2f}" for name, value in texts))
    return lines


def _summary(found: Evaluation, reference: Reference | None) -> dict[str, Any]:
    """The JSON object of an evaluation; numbers that are not finite are None."""
    from jaxmbrl.training.scores import normalized

    per_seed = [_finite(value) for value in found.per_seed]
    summary = {"per_seed": per_seed, "mean": _finite(found.mean), "iqm": _finite(found.iqm), "backend": found.backend}
    if reference is not None:
        summary["scores"] = [_finite(normalized(value, reference)) for value in found.per_seed]
    return summary | {"env_steps": found.env_steps, "frozen": list(found.frozen)}


def _suggest_after_evaluating(run: str, filmed: bool, policy: Trained) -> None:
    """Print commands that use the run further."""
    from jaxmbrl.exporting import exporter

    print("what to try next:")
    if not filmed:
        print(f"  {again('evaluate', run, '--video')}")
    print(f"  {again('report', run)}")
    to = exporter.format_of(policy)
    if to is not None:
        print(f"  {again('export', run, '--to', to)}")


def _expected(rows: list[dict[str, Any]], config: RunConfig, episodes: int) -> str:
    """How long an evaluation of a run with these `rows` takes, if that is more than a few seconds: by the run's own
    evaluations or, of a planner, which plans at each step of training as well, by its last epoch with finished episodes."""
    from jaxmbrl.training.console import duration
    from jaxmbrl.training.programs import ChoosesModel

    measured = [row["time/evaluate"] for row in rows if isinstance(row.get("time/evaluate"), int | float)]
    steps, epoch_steps = _last_means(rows, "train/episode_length", "time/train"), config.settings.epoch_steps
    if measured:
        seconds, known = measured[-1] * episodes / config.eval_episodes, "of the run's own evaluations"
    elif steps is not None and isinstance(config.settings, ChoosesModel):
        length, trained = steps
        seconds, known = trained * episodes * length / epoch_steps, "of its steps in training"
    else:
        return ""
    return f", about {duration(seconds)} by the time {known}" if seconds >= SHORT_SECONDS else ""


def _last_means(rows: list[dict[str, Any]], *metrics: str) -> tuple[float, ...] | None:
    """Means over seeds of the metrics in the last epoch that has them all; None if there is none."""
    known = [row for row in rows if all(isinstance(row.get(name), int | float) for name in metrics)]
    last = [row for row in known if row["epoch"] == known[-1]["epoch"]]
    return tuple(statistics.fmean(row[name] for row in last) for name in metrics) if last else None


def debug(words: list[str]) -> int:
    """`jaxmbrl debug`: find the operation that produced a run's first value that is not finite."""
    from jaxmbrl.debug import replaying

    parser = options.parser("debug", description="Find the operation that produced a run's first non-finite value.")
    parser.add_argument("run", metavar="RUN", help="a run folder")
    parser.add_argument("--seed", type=options.whole, metavar="S", help="the seed (default: the first with such a value)")
    args = parser.parse_args(words)
    started = time.monotonic()
    with options.warnings_in_a_line():
        report = replaying.debug(args.run, args.seed)
    if report is None:
        who = "no seed" if args.seed is None else f"seed {args.seed} has not"
        print(f"{who} met a value that is not finite, by the newest checkpoint of {args.run}")
        return 0
    for line in replaying.describe(report):
        print(line)
    print(f"in {time.monotonic() - started:.1f} s")
    if report.origin is None:
        return 1
    print("what to try next:")
    print("  lower the learning rates, and check the ranges above: divisors, logarithms, roots, exponentials")
    for other in report.others[:1]:
        print(f"  {again('debug', args.run, '--seed', str(other))}")
    print(f"  {again('evaluate', args.run)}")
    return 0


def _film(run: str, model: str | None, backend: str | None, file: Path) -> bool:
    """Write a video of an episode. If nothing can be drawn, print a message and return False."""
    from jaxmbrl.diagnostics import video
    from jaxmbrl.envs.drawing import NoPicture
    from jaxmbrl.training import console

    with warnings.catch_warnings():
        # The evaluation has already printed these warnings.
        warnings.simplefilter("ignore", console.RunWarning)
        try:
            print(f"video    {file}: {video.film(run, file, model, backend)}")
        except NoPicture as error:
            complain(str(error))
            return False
    return True


def _video_file(run: str, name: str, given: str | None) -> Path:
    """The file of the option --`name`: the one that is given, or NAME.gif in the run folder."""
    from jaxmbrl.data import dataset

    return dataset.new_file(f"--{name}", given, ".gif") if given else expanded(run) / f"{name}.gif"


def _trained(run: str, dreams: bool) -> Trained:
    """The policy of a run. Raises UserError if it is to be filmed while it dreams, and its model cannot dream."""
    import jax

    from jaxmbrl.diagnostics import dream
    from jaxmbrl.training import runner

    policy = runner.trained(run)
    if dreams:
        dream.check(policy.program.algorithm, policy.program.task, jax.tree.map(lambda leaf: leaf[0], policy.states))
    return policy


def _dream(run: str, filmed: bool, file: Path) -> None:
    """Write a video of a dream to `file`, if it is to be `filmed`."""
    from jaxmbrl.diagnostics import dream

    if filmed:
        print(f"dream    {file}: {dream.film(run, file)}")


def _finite(value: float) -> float | None:
    """The value, or None if it is not finite, which JSON cannot represent."""
    return value if math.isfinite(value) else None


def collect(words: list[str]) -> int:
    """`jaxmbrl collect`: record transitions of a policy to a file."""
    from jaxmbrl.data import dataset
    from jaxmbrl.training import collecting
    from jaxmbrl.training.console import Work

    parser = options.parser("collect", description="Write transitions of a policy, episode after episode, to an npz file.")
    parser.add_argument("--policy", required=True, metavar="POLICY", help="'random', or the folder of a run")
    parser.add_argument("--env", metavar="TASK", help="the task; by default the run's own")
    parser.add_argument("--out", required=True, metavar="FILE", help="the new file, FILE.npz")
    parser.add_argument("--steps", type=options.whole, default=10_000, metavar="N", help="transitions (default: 10000)")
    parser.add_argument("--seed", type=options.whole, default=0, metavar="S", help="random seed (default: 0)")
    alike = "act with exploration, as in training, not deterministically (planners act the same in both cases)"
    parser.add_argument("--explore", action="store_true", help=alike)
    times = "how many times each action is applied (default: 1, or the run's own)"
    parser.add_argument("--action-repeat", type=options.whole, metavar="N", help=times)
    args = parser.parse_args(words)
    out = dataset.new_file("--out", args.out, ".npz")
    started = time.monotonic()
    with options.warnings_in_a_line(), Work("collecting", args.steps, "steps") as work:
        rows, task = collecting.collect_by(
            args.env, args.policy, args.steps, args.seed, args.explore, args.action_repeat, work.update
        )
    dataset.save(out, rows, task.name, task.action_repeat)
    ended = rows.terminated | rows.truncated
    print(f"{args.steps:,} transitions of {task.name} in {out}, {int(ended.sum())} finished episodes")
    print(f"reward a step {float(rows.reward.mean()):.3f} on average, in {time.monotonic() - started:.1f} s")
    if rows.observation.ndim == 2:
        print("what to try next:")
        print(f"  {again('fit', '--data', out)}")
        print(f"  {again('train', 'pets', *task_words(task), '--data', out)}")
    return 0


def _task_of(data: Dataset, env: str | None) -> Task | None:
    """The task that `--env` or else the file of transitions names; None if neither does, or if the file's is unknown."""
    from jaxmbrl import envs
    from jaxmbrl.envs.action_repeat import times_in

    name = env or data.env
    if name is None:
        return None
    try:
        return envs.make(name, max(1, data.action_repeat // times_in(name)))
    except UserError:
        if env is None:
            return None
        raise


def fit(words: list[str]) -> int:
    """`jaxmbrl fit`: fit a model to transitions and evaluate it."""
    from jaxmbrl.data import dataset
    from jaxmbrl.diagnostics import model_evaluation, plotting
    from jaxmbrl.training.console import Work
    from jaxmbrl.training.run_folder import write_figure

    early = options.parser("fit", add_help=False)
    for option in ("--data", "--env", "--out"):
        early.add_argument(option)
    args, rest = early.parse_known_args(words)
    if not args.data and rest and not rest[0].startswith("-"):
        raise UserError(f"the file follows an option: {again('fit', '--data', rest[0])}")
    texts = [
        (option, Annotated[str, tyro.conf.arg(metavar=metavar, help=text)], "") for option, metavar, text in _FIT_TEXTS
    ]
    kind = dataclasses.make_dataclass(
        "arguments", [("settings", Annotated[model_evaluation.FitConfig, tyro.conf.arg(name="")]), *texts], frozen=True
    )
    default = kind(model_evaluation.FitConfig())
    config = check(
        options.parse(kind, default, rest, "fit", "Fit a dynamics model to transitions and evaluate it.").settings
    )
    if not args.data:
        raise UserError("--data FILE is missing: a file of transitions, such as 'jaxmbrl collect' writes")
    data = dataset.load(args.data)
    task = _task_of(data, args.env)
    if args.env is not None and data.env not in (None, args.env):
        raise UserError(f"{args.data} holds transitions of {data.env}, not of {args.env}")
    if task is None and data.digits:
        # Nothing depends on absolute values: no task has a reward function of them, and no policy will act on them.
        data = dataset.load(args.data, centered=True)
    if task is not None:
        dataset.check_fits(data, task)
    dataset.check_vectors(data.rows, "fit")
    picture = None if args.out is None else dataset.new_file("--out", args.out, ".png")
    started = time.monotonic()
    of = f" of {args.env or data.env}" if args.env or data.env else ""
    print(f"fitting to {args.data}: {len(data.rows.reward):,} transitions{of} ...", flush=True)
    with options.warnings_in_a_line(), Work("fitting", config.ensemble.max_epochs, "epochs at most") as work:
        data.warn()
        fitted = model_evaluation.fit_and_evaluate(config, data.rows, task, work.update)
    seconds = time.monotonic() - started
    print(f"fitted to {fitted.trained_on:,} rows, tested on the last {fitted.tested_on:,}, in {seconds:.1f} s")
    for metric, value in fitted.found.items():
        print(f"{metric:<26}{value:.5g}")
    print(f"\n{'':<18}{'error':>10}{'unexplained':>13}{'aleatoric':>11}{'epistemic':>11}{'miscalibration':>16}")
    found = fitted.evaluation
    for d, what in enumerate(plotting.dimension_names(len(found.error), found.learns_reward)):
        error, share = found.error[d], found.unexplained[d]
        text = f"{'constant':>13}" if math.isnan(share) and math.isfinite(error) else f"{share:>13.4f}"
        print(
            f"{what:<18}{error:>10.4g}{text}{found.aleatoric[d]:>11.4g}{found.epistemic[d]:>11.4g}"
            f"{float(found.calibration.error[d]):>16.3f}"
        )
    print("error, aleatoric, epistemic: root mean square in the task's units; unexplained: share of the change's variance")
    if picture is not None:
        picture.parent.mkdir(parents=True, exist_ok=True)
        write_figure(picture, plotting.plot_calibration({"unseen rows": found.calibration}))
        print(f"picture  {picture}")
    if task is not None:
        print("what to try next:")
        print(f"  {again('train', 'pets', *task_words(task), '--data', args.data)}")
    return 0


_FIT_TEXTS = (
    ("data", "FILE", "Transitions, of 'jaxmbrl collect', D4RL or Minari."),
    ("env", "TASK", "The task whose known reward and termination to use; the file's own if not given."),
    ("out", "FILE", "Where to draw the calibration, FILE.png."),
)


def doctor(words: list[str]) -> int:
    """`jaxmbrl doctor`: check whether this machine is ready."""
    import jax

    from jaxmbrl.diagnostics import doctor

    options.parser(
        "doctor", description="Check versions, devices, precision, rendering, and the folders that are written to."
    ).parse_args(words)
    bad = 0
    cache = getattr(jax.config, "jax_compilation_cache_dir", None)
    for finding in doctor.examine(Path("runs"), cache):
        print(f"{finding.state:<6}{finding.what:<15}{finding.message}", flush=True)
        bad += finding.state == "bad"
    print("this machine is ready" if not bad else f"{bad} problem{'s' if bad > 1 else ''} to fix")
    return 1 if bad else 0
