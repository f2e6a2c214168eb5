"""MBPO on Gymnasium's MuJoCo tasks, our learning curves over the published ones.

Each task is a run of `jaxmbrl train` in a folder TASK-METHOD below --out, with the method's preset for the task unless
--preset names another. A run that is there already goes on where it stopped, to --steps if that is further than it was
begun with: so the study can be cut at any time and called again. After each task the pictures are drawn: mean over seeds of
the evaluations, 95% bootstrap band, and what is published (`benchmarks/published/`) with standard deviations.

    python experiments/mbpo_gym.py [--tasks Hopper-v5 ...] [--method mbpo] [--preset NAME] [--seeds 4] [--steps N]
                                   [--out FOLDER] [--draw-only] [--quick] [-- any other option of jaxmbrl train]

`mbpo_gym.json` holds, for the tasks asked for, settings, curves, and the table of ours against theirs at each published
step that the run has reached. MBPO: Janner et al., arXiv 1906.08253. At the paper's settings a seed takes hours on a GPU;
`--quick` checks in some minutes on a CPU that it runs, on a task without published returns.
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


def words_of(asked: argparse.Namespace, task: str, extra: Sequence[str]) -> list[str]:
    """The words of `jaxmbrl train` behind the method's name; what the study decides comes last and so holds."""
    given = {"env": task, "seeds": asked.seeds, "steps": asked.steps, "preset": asked.preset}
    own = [word for name, value in given.items() if value is not None for word in (f"--{name}", str(value))]
    return [*extra, *own, "--out", str(asked.out / stem(task, asked.method))]


def train(method: str, words: list[str], steps: int | None) -> int:
    """Begin the run that the words ask for, or go on with it; the exit code of `jaxmbrl`."""
    config, folder = training.parse_train(method, words)
    if not (folder / CONFIG).exists():
        return cli.main(["train", method, *words])
    held = programs.read(RunFolder.open(folder))
    check_same(held, config, folder)
    done = max(checkpoint.steps(folder / "checkpoints"), default=0)
    aim = held.steps if steps is None else steps
    if done >= aim:
        print(f"{folder} is at {done:,} steps already", flush=True)
        return 0
    return cli.main(["train", "--resume", str(folder), "--steps", str(aim)])


def check_same(held: programs.RunConfig, asked: programs.RunConfig, folder: Path) -> None:
    """Raise UserError where a run that goes on would be another than was asked for, its length aside."""
    for name, then, now in programs.drift(to_dict(held), to_dict(asked)):
        raise UserError(f"{folder} was begun with {name} {then}, not {now}: ask for the same, or another --out")


def describe(folder: RunFolder, points: Sequence[published.Point], picture: Path) -> tuple[dict[str, Any], Any]:
    """Draw a run; what the JSON says of it, and the comparisons with the published points."""
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


def report(asked: argparse.Namespace, points: Sequence[published.Point]) -> None:
    """Draw all runs that are there of the tasks asked for, and write the JSON."""
    found, comparisons = {}, []
    for task in asked.tasks:
        name = stem(task, asked.method)
        if (asked.out / name / CONFIG).exists():
            found[task], compared = describe(RunFolder.open(asked.out / name), points, asked.out / f"{name}.png")
            comparisons.append(compared)
    if not found:
        raise UserError(f"there is no run of {asked.method} on {', '.join(asked.tasks)} below {asked.out}")
    overall = published.share_of_reference(comparisons)
    if overall is not None:
        low, high = overall["interval"]
        told = (
            f"{overall['iqm']:.2f} [{low:.2f}, {high:.2f}], {overall['tasks']} tasks, each at the last step known of both"
        )
        print(f"\nreturn over {published.REFERENCE}'s published mean, interquartile mean: {told}")
    held = {
        "command": shlex.join(["python", "experiments/mbpo_gym.py", *sys.argv[1:]]),
        "tasks": found,
        f"share of {published.REFERENCE}": overall,
        "drawn": environment(),
    }
    write_file(asked.out / "mbpo_gym.json", json.dumps(held, indent=1).encode() + b"\n")
    print(f"numbers  {asked.out / 'mbpo_gym.json'}", flush=True)


def parse(words: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The study's options, and the words behind `--`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", metavar="TASK")
    parser.add_argument("--method", default="mbpo")
    parser.add_argument("--preset", metavar="NAME", help="the method's own for each task if not given")
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--steps", type=int, help="environment steps of each seed; the preset's if not given")
    parser.add_argument("--out", type=Path, default=Path("runs/mbpo_gym"))
    parser.add_argument("--draw-only", action="store_true", help="train nothing: draw what is there")
    parser.add_argument("--quick", action="store_true", help="does it run? 1,000 steps of two seeds on pendulum")
    words = list(words)
    cut = words.index("--") if "--" in words else len(words)
    asked = parser.parse_args(words[:cut])
    for name, value in (QUICK if asked.quick else {"tasks": list(TASKS), "seeds": 4}).items():
        if getattr(asked, name) is None:
            setattr(asked, name, value)
    return asked, words[cut + 1 :]


def study(asked: argparse.Namespace, extra: Sequence[str]) -> int:
    """Train and draw task by task; the exit code."""
    points = published.read(PUBLISHED)
    if asked.draw_only:
        report(asked, points)
        return 0
    commands = [words_of(asked, task, extra) for task in asked.tasks]
    for words in commands:
        # All mistakes are told before the first hours of training.
        training.parse_train(asked.method, words)
    worst = 0
    for words in commands:
        code = train(asked.method, words, asked.steps)
        if code > 1:
            return code
        # With 1 a run has ended with all its seeds frozen, which is no reason to leave out the other tasks.
        worst = max(worst, code)
        report(asked, points)
    return worst


def main(words: Sequence[str] | None = None) -> int:
    try:
        return study(*parse(sys.argv[1:] if words is None else words))
    except UserError as error:
        print(f"mbpo_gym: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
