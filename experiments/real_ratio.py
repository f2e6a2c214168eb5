"""MBPO with a growing share of real data: linear from 5 to 50 % over the run, against 5 % throughout.

The bound of AutoMBPO (Lai et al., arXiv 2111.08550, theorem 1) on the return of a policy that is trained on a mixture of
real and imagined data has an optimal ratio of real share to real data. The real data grow during a run, so the best share
should grow, too. This compares the two on two tasks, with the preset `small` of `mbpo`; nothing else differs.

    python experiments/real_ratio.py [--out FOLDER] [--runs FOLDER] [--tasks TASK ...] [--seeds 8] [--quick]

Writes `real-ratio.png`, the interquartile mean over seeds of the evaluated return with its 95 % bootstrap interval, and
`real-ratio.json`: for each task and case mean, interquartile mean and interval of the return at the end and over the run
(the mean of all evaluations, which rewards early learning), and the probability that a run of the linear schedule is
better, with command, commit, versions and machine. Existing runs are not repeated; numbers of other tasks are kept.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

import jaxmbrl
from jaxmbrl.training import evaluation
from jaxmbrl.training.console import Progress
from jaxmbrl.training.curve import EVAL, seed_curves
from jaxmbrl.training.run_folder import environment, new_figure, write_figure

FIRST, LAST = 0.05, 0.5
WARMUP = 200
TASKS: dict[str, tuple[int, dict[str, Any]]] = {
    "pendulum": (1200, {}),
    "InvertedPendulum-v5": (4000, {"agent.target_entropy": -0.05}),
}
"""Task -> (environment steps, changes to the preset). The target entropy is that of MBPO's paper for this task."""
CASES = ("fixed", "linear")
QUICK = {
    "agent.hidden": [8],
    "ensemble.hidden": [8],
    "ensemble.max_epochs": 1,
    "rollout_rows": 20,
    "updates_per_step": 1,
    "batch_size": 20,
}
COLORS = {"fixed": "#0b3d91", "linear": "#c1440e"}
LABELS = {"fixed": f"{FIRST:.0%} real", "linear": f"{FIRST:.0%} to {LAST:.0%} real"}


def settings_of(case: str, task: str, steps: int) -> dict[str, Any]:
    """Changes to the preset `small` for one case on one task."""
    # A table for both, so that they are one program: with JAX_COMPILATION_CACHE_DIR it is compiled once.
    ratios = [FIRST, LAST if case == "linear" else FIRST]
    table = {"steps": [0, steps - WARMUP], "interpolation": "linear", "real_ratio": ratios}
    return {"warmup_steps": WARMUP, "eval_every": 1, **TASKS[task][1], "schedule": table}


def trained(case: str, task: str, steps: int, seeds: int, changes: dict[str, Any], runs: Path) -> dict[str, Any]:
    """The evaluations of one case: for each of them the return of each seed. It is resumed if its folder exists."""
    folder, progress = runs / f"{task}-{case}", Progress(steps, seeds)
    progress.say(f"{task}, {LABELS[case]}")
    if folder.exists():
        result = jaxmbrl.resume(folder, progress=progress)
    else:
        settings = {**settings_of(case, task, steps), **changes}
        args = {"steps": steps, "seeds": seeds, "preset": "small", "settings": settings}
        result = jaxmbrl.train("mbpo", task, **args, out=folder, progress=progress)
    curves = list(seed_curves(result.rows, EVAL).values())
    returns = np.array([curve.values for curve in curves]).T
    return {"steps": curves[0].steps, "returns": returns.tolist(), "seconds": result.rows[-1]["wall_time"]}


def compared(found: dict[str, Any]) -> dict[str, Any]:
    """Per-seed returns of both cases at the end and over the run, their means, and the probability of improvement."""
    told: dict[str, Any] = {}
    for when in ("end", "over the run"):
        of = {}
        for case, numbers in found.items():
            returns = np.array(numbers["returns"])
            of[case] = (returns[-1] if when == "end" else returns.mean(axis=0)).tolist()
        told[when] = {
            case: {
                "per_seed": values,
                "mean": float(np.mean(values)),
                "iqm": evaluation.interquartile_mean(values),
                "interval": evaluation.bootstrap_interval(values),
            }
            for case, values in of.items()
        }
        pair = of["linear"], of["fixed"]
        told[when]["improvement"] = evaluation.probability_of_improvement(pair)
        told[when]["improvement interval"] = evaluation.improvement_interval(pair)
    return told


def draw(tasks: dict[str, Any], file: Path) -> None:
    """A panel for each task, with a line and a band for each case."""
    figure = new_figure(9.0, 3.6)
    for axes, (task, numbers) in zip(np.atleast_1d(figure.subplots(1, len(tasks))), tasks.items(), strict=True):
        for case, found in numbers["runs"].items():
            returns = np.array(found["returns"])
            low, high = evaluation.bootstrap_bands(returns)
            middle = [evaluation.interquartile_mean(values) for values in returns]
            axes.plot(found["steps"], middle, color=COLORS[case], label=LABELS[case])
            axes.fill_between(found["steps"], low, high, color=COLORS[case], alpha=0.15, linewidth=0)
        axes.set_title(task, fontsize=10)
        axes.set_xlabel(f"environment steps (the first {WARMUP} are random)")
        axes.set_ylabel("return")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8)
    write_figure(file, figure)


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Train, print the comparison, and write the picture and the numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="by default runs/real_ratio, with --quick runs/real_ratio-quick")
    parser.add_argument("--runs", type=Path, default=Path("runs/real_ratio"))
    parser.add_argument("--tasks", nargs="+", default=[*TASKS], choices=TASKS)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--quick", action="store_true", help="tiny networks and few steps (smoke test)")
    args = parser.parse_args(arguments)
    args.out = args.out or Path("runs/real_ratio-quick" if args.quick else "runs/real_ratio")
    args.out.mkdir(parents=True, exist_ok=True)
    picture, file = args.out / "real-ratio.png", args.out / "real-ratio.json"
    written: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {"tasks": {}}
    command = f"python experiments/real_ratio.py --tasks {' '.join(args.tasks)} --seeds {args.seeds}"
    for task in args.tasks:
        steps, changes = (400, QUICK) if args.quick else (TASKS[task][0], {})
        runs = {case: trained(case, task, steps, args.seeds, changes, args.runs) for case in CASES}
        where = environment(command)
        written["tasks"][task] = {"compared": compared(runs), "runs": runs, "seeds": args.seeds, "environment": where}
        file.write_text(json.dumps(written, indent=1) + "\n")
        draw(written["tasks"], picture)
        for when, told in written["tasks"][task]["compared"].items():
            for case in CASES:
                low, high = told[case]["interval"]
                middle = f"mean {told[case]['mean']:.1f}, IQM {told[case]['iqm']:.1f} [{low:.1f}, {high:.1f}]"
                print(f"{task}, {when}, {LABELS[case]}: {middle}")
            low, high = told["improvement interval"]
            probability = f"{told['improvement']:.2f} [{low:.2f}, {high:.2f}]"
            print(f"{task}, {when}: probability of improvement {probability}", flush=True)
    print(f"picture  {picture}\nnumbers  {file}")
    return written


if __name__ == "__main__":
    main()
