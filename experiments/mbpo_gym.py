"""MBPO on Gymnasium's MuJoCo tasks: our learning curves together with published ones.

Each task is a run of `jaxmbrl train` in a folder TASK-METHOD below --out, with the method's preset for the task unless
--preset names another. An existing run is resumed and continues to --steps, so the study can be interrupted at any time and
called again. After each task the pictures are drawn. They show the mean over seeds of the evaluations, its 95% bootstrap
band, and published returns (`benchmarks/published/`) with standard deviations.

    python experiments/mbpo_gym.py [--tasks Hopper-v5 ...] [--method mbpo] [--preset NAME] [--seeds 4] [--steps N]
                                   [--out FOLDER] [--draw-only] [--quick] [-- any other option of jaxmbrl train]

`mbpo_gym.json` contains, for the given tasks, the settings, the curves, and a table of our returns and the published ones
at each published step that the run has reached. MBPO: Janner et al., arXiv 1906.08253. With the paper's settings a seed
takes hours on a GPU. `--quick` checks in a few minutes on a CPU that the script runs, on a task without published returns.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxmbrl import cli
from jaxmbrl.commands import training
from jaxmbrl.core.config import UserError, to_dict
from jaxmbrl.diagnostics import published
from jaxmbrl.training import checkpoint, programs
from jaxmbrl.training.curve import EVAL, seed_curves
from jaxmbrl.training.run_folder import CONFIG, RunFolder, environment, write_file

TASKS = ("Hopper-v5", "Walker2d-v5", "HalfCheetah-v5", "Ant-v5/truncated", "Humanoid-v5/truncated")
QUICK = {"tasks": ["pendulum"], "preset": "small", "seeds": 2, "steps": 1000}
PUBLISHED = Path(__file__).parents[1] / "benchmarks" / "published" / "returns.csv"


def stem(task: str, method: str) -> str:
    """Name of a run's folder and picture."""
    return f"{re.sub('[/:]', '-', task)}-{method}"


def words_of(args: argparse.Namespace, task: str, extra: Sequence[str]) -> list[str]:
    """The arguments of `jaxmbrl train` after the method's name. Options of the study come last and so take precedence."""
    given = {"env": task, "seeds": args.seeds, "steps": args.steps, "preset": args.preset}
    own = [word for name, value in given.items() if value is not None for word in (f"--{name}", str(value))]
    return [*extra, *own, "--out", str(args.out / stem(task, args.method))]


def train(method: str, words: list[str], steps: int | None) -> int:
    """Start or resume the run that the words describe; returns the exit code of `jaxmbrl`."""
    config, folder = training.parse_train(method, words)
    if not (folder / CONFIG).exists():
        return cli.main(["train", method, *words])
    saved = programs.read(RunFolder.open(folder))
    check_same(saved, config, folder)
    done = max(checkpoint.steps(folder / "checkpoints"), default=0)
    aim = saved.steps if steps is None else steps
    if done >= aim:
        print(f"{folder} is at {done:,} steps already", flush=True)
        return 0
    return cli.main(["train", "--resume", str(folder), "--steps", str(aim)])


def check_same(saved: programs.RunConfig, wanted: programs.RunConfig, folder: Path) -> None:
    """Raise UserError if the config of an existing run differs from the wanted one, except for its length."""
    for name, then, now in programs.drift(to_dict(saved), to_dict(wanted)):
        raise UserError(f"{folder} was begun with {name} {then}, not {now}: ask for the same, or another --out")


def describe(folder: RunFolder, points: Sequence[published.Point], picture: Path) -> tuple[dict[str, Any], Any]:
    """Draw a run. Returns (its entry in the JSON, the comparisons with the published points)."""
    config, rows = programs.read(folder), folder.read_metrics()
    known = published.of_task(points, config.env)
    comparisons = published.compare(rows, known)
    frozen = sorted({row["seed"] for row in rows if row.get("frozen", False)})
    seeds = f"{config.seeds} seeds" if config.seeds > 1 else "1 seed"
    label = f"{config.algorithm}, " + ("mean of " if config.seeds > 1 else "") + seeds
    label += f",\n{len(frozen)} of them frozen" if frozen else ""
    published.draw(rows, known, picture, f"{config.algorithm} ({config.preset} preset) on {config.env}", label)
    found = {
        "config": to_dict(config),
        "environment_steps": max([row["env_steps"] for row in rows], default=0),
        "wall_clock_hours": max([row["wall_time"] for row in rows], default=0.0) / 3600,
        "frozen": frozen,
        "curves": {seed: list(zip(*curve, strict=True)) for seed, curve in seed_curves(rows, EVAL).items()},
        "table": [
            {**row._asdict(), "ours": row.ours._asdict(), "theirs": [point._asdict() for point in row.theirs]}
            for row in comparisons
        ],
        "environment": folder.read_environment(),
        "resumed": [event for event in folder.read_events() if event["kind"] == "resume"],
    }
    print(f"\n{config.algorithm} on {config.env}, {seeds}, {found['environment_steps']:,} steps: {picture}")
    print(published.table(comparisons) if comparisons else "no published step is reached", flush=True)
    return found, comparisons


def report(args: argparse.Namespace, points: Sequence[published.Point]) -> None:
    """Draw all existing runs of the given tasks, and write the JSON."""
    found, comparisons = {}, []
    for task in args.tasks:
        name = stem(task, args.method)
        if (args.out / name / CONFIG).exists():
            found[task], compared = describe(RunFolder.open(args.out / name), points, args.out / f"{name}.png")
            comparisons.append(compared)
    if not found:
        raise UserError(f"there is no run of {args.method} on {', '.join(args.tasks)} below {args.out}")
    overall = published.share_of_reference(comparisons)
    if overall is not None:
        low, high = overall["interval"]
        summary = (
            f"{overall['iqm']:.2f} [{low:.2f}, {high:.2f}], {overall['tasks']} tasks, each at the last step known of both"
        )
        print(f"\nreturn over {published.REFERENCE}'s published mean, interquartile mean: {summary}")
    result = {
        "command": shlex.join(["python", "experiments/mbpo_gym.py", *sys.argv[1:]]),
        "tasks": found,
        f"share of {published.REFERENCE}": overall,
        "drawn": environment(),
    }
    write_file(args.out / "mbpo_gym.json", json.dumps(result, indent=1).encode() + b"\n")
    print(f"numbers  {args.out / 'mbpo_gym.json'}", flush=True)


def parse(words: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """(the options of the study, the words after `--`)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", metavar="TASK")
    parser.add_argument("--method", default="mbpo")
    parser.add_argument("--preset", metavar="NAME", help="the method's own for each task if not given")
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--steps", type=int, help="environment steps of each seed; the preset's if not given")
    parser.add_argument("--out", type=Path, help="by default runs/mbpo_gym, with --quick runs/mbpo_gym-quick")
    parser.add_argument("--draw-only", action="store_true", help="only draw the existing runs")
    parser.add_argument("--quick", action="store_true", help="1,000 steps of two seeds on pendulum (smoke test)")
    words = list(words)
    cut = words.index("--") if "--" in words else len(words)
    args = parser.parse_args(words[:cut])
    args.out = args.out or Path("runs/mbpo_gym-quick" if args.quick else "runs/mbpo_gym")
    for name, value in (QUICK if args.quick else {"tasks": list(TASKS), "seeds": 4}).items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    return args, words[cut + 1 :]


def study(args: argparse.Namespace, extra: Sequence[str]) -> int:
    """Train and draw task by task; returns the exit code."""
    points = published.read(PUBLISHED)
    if args.draw_only:
        report(args, points)
        return 0
    commands = [words_of(args, task, extra) for task in args.tasks]
    for words in commands:
        # Report all mistakes before the first hours of training.
        training.parse_train(args.method, words)
    worst = 0
    for words in commands:
        code = train(args.method, words, args.steps)
        if code > 1:
            return code
        # Code 1 means that all seeds of a run are frozen; the other tasks still run.
        worst = max(worst, code)
        report(args, points)
    return worst


def main(words: Sequence[str] | None = None) -> int:
    try:
        return study(*parse(sys.argv[1:] if words is None else words))
    except UserError as error:
        print(f"mbpo_gym: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
