"""MBPO's rollout length and share of real data, compared at equal numbers of environment steps.

    branch length   k = 1, 5, 15 throughout, and k growing from 1 to 15 over the first half of the run; 5 % real data
    real share      5 %, 50 % and 100 % of a batch, with k = 1; at 100 % no imagined data are used, as in SAC

The task is `pendulum` with the preset `small`. All runs do ten updates per step, so the last case is SAC with the same
number of updates. MBPO's paper (Janner et al., arXiv 1906.08253) has ablations of the same two choices on the Hopper with
125,000 steps. There, branches of a few steps are better than single steps and very long branches, and model data are better
than real data alone.

Here, four seeds do not distinguish the cases: all intervals overlap, at the end and over the run. All cases solve the task
(about -150) on most seeds within 2,000 steps. With k = 15, and with k growing to 15, every seed has solved it at the end.
With k = 1, with k = 5 and with real data alone, one seed each has not. So the model, which explains 99 % of the holdout
variance, does no harm in branches of 15 steps. SAC learns as fast: with ten updates per step, few real data are enough for
such a small task. A harder task is needed to answer the paper's question.

    python experiments/rollout_length.py [--out FOLDER] [--seeds 4] [--steps 2000] [--quick]

Writes `rollout-length.png`, the interquartile mean over seeds of the evaluated return with its 95 % bootstrap interval at
each evaluation, and `rollout-length.json`. For each case the JSON contains the mean, the interquartile mean and its
interval of the return at the end (last two evaluations) and over the run (all evaluations, which rewards early learning),
with command, commit, versions and machine. The script takes about twenty minutes of one CPU core; `--quick` checks in two
minutes that it runs. The real shares are traced hyperparameters and run in one program, each with its own seeds. Existing
runs are not repeated.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

import jaxmbrl
from jaxmbrl.training.console import Progress
from jaxmbrl.training.curve import EVAL, seed_curves
from jaxmbrl.training.evaluation import bootstrap_interval, interquartile_mean
from jaxmbrl.training.run_folder import environment

TASK = "pendulum"
COMMON: dict[str, Any] = {"eval_every": 1}
LONGEST = 15
RATIOS = (0.05, 0.5, 1.0)
QUICK = {
    "agent.hidden": [8, 8],
    "ensemble.hidden": [8, 8],
    "ensemble.max_epochs": 1,
    "rollout_rows": 20,
    "updates_per_step": 1,
    "batch_size": 20,
}
COLORS = ("#0b3d91", "#2e7d32", "#c1440e", "#7b1fa2")


class Curves(NamedTuple):
    """Evaluated returns of one case."""

    steps: list[int]
    returns: Float[np.ndarray, "seeds T"]


def lengths(steps: int) -> dict[str, dict[str, int]]:
    """Settings of the branch length by case. In the last, it grows over the first half of the run after the warm-up."""
    fixed = {f"k = {k}": {"rollout_length.first": k, "rollout_length.last": k} for k in (1, 5, LONGEST)}
    growing = {
        "rollout_length.first": 1,
        "rollout_length.last": LONGEST,
        "rollout_length.begins": 0,
        "rollout_length.ends": steps // 2,
    }
    return {**fixed, f"k from 1 to {LONGEST}": growing}


def shares() -> tuple[str, ...]:
    """Names of the cases with different real shares."""
    return tuple(f"{ratio:.0%} real" + (", k = 1" if ratio < 1 else ": SAC") for ratio in RATIOS)


def returns_of(rows: list[dict[str, Any]], cases: int) -> list[Curves]:
    """The curves of the `cases` of a run, which have equal numbers of consecutive seeds."""
    found = list(seed_curves(rows, EVAL).values())
    seeds = len(found) // cases
    return [
        Curves(found[0].steps, np.array([curve.values for curve in found[i * seeds : (i + 1) * seeds]]))
        for i in range(cases)
    ]


def train(name: str, settings: dict[str, Any], hyper: dict[str, Any], steps: int, seeds: int, out: Path) -> Any:
    """The metrics of one run. It is trained in its own folder, unless the metrics exist already."""
    folder = out / name
    progress = Progress(steps, seeds)
    progress.say(name)
    if folder.exists():
        return jaxmbrl.resume(folder, progress=progress).rows
    args = {"steps": steps, "seeds": seeds, "preset": "small", "settings": {**COMMON, **settings}, "hyper": hyper}
    return jaxmbrl.train("mbpo", TASK, **args, out=folder, progress=progress).rows


def sweep(steps: int, seeds: int, changes: dict[str, Any], out: Path) -> tuple[dict[str, Curves], dict[str, Curves]]:
    """(curves by branch length, curves by real share). The first case of both is the same run."""
    by_length = lengths(steps)
    single, *longer = by_length
    hyper = {"real_ratio": [ratio for ratio in RATIOS for _ in range(seeds)]}
    rows = train("shares", {**by_length[single], **changes}, hyper, steps, len(RATIOS) * seeds, out)
    by_share = dict(zip(shares(), returns_of(rows, len(RATIOS)), strict=True))
    found = {single: by_share[shares()[0]]}
    for name in longer:
        rows = train(name.replace(" ", "-").replace("=-", ""), {**by_length[name], **changes}, {}, steps, seeds, out)
        (found[name],) = returns_of(rows, 1)
    return found, by_share


def summary(curves: Curves) -> dict[str, Any]:
    """Mean, interquartile mean and its interval over seeds of the return at the end and over the run."""
    per_seed = {"end": curves.returns[:, -2:].mean(axis=1).tolist(), "over the run": curves.returns.mean(axis=1).tolist()}
    return {
        name: {
            "per_seed": values,
            "mean": float(np.mean(values)),
            "iqm": interquartile_mean(values),
            "interval": bootstrap_interval(values),
        }
        for name, values in per_seed.items()
    } | {"steps": curves.steps, "returns": curves.returns.tolist()}


def draw(panels: dict[str, dict[str, Curves]], path: Path) -> None:
    """Write the picture: a panel for each choice, with a line and a band for each case."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 5), dpi=120, layout="constrained")
    for axes, (title, cases) in zip(figure.subplots(1, len(panels), sharey=True), panels.items(), strict=True):
        for (name, (steps, returns)), color in zip(cases.items(), COLORS, strict=False):
            at_steps = returns.T.tolist()
            band = np.array([bootstrap_interval(values) for values in at_steps])
            axes.fill_between(steps, *band.T, color=color, alpha=0.15, linewidth=0)
            axes.plot(steps, [interquartile_mean(values) for values in at_steps], color=color, linewidth=2.2, label=name)
        axes.set_title(title, loc="left", fontsize=11)
        axes.set_xlabel("environment steps of each seed (the first 200 are random)")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="0.92", linewidth=0.6)
        axes.legend(frameon=False, fontsize=9, loc="lower right")
    figure.axes[0].set_ylabel("return of an evaluation episode")
    figure.savefig(path)


def table(cases: dict[str, dict[str, Any]]) -> str:
    """The summaries as text, a line for each case."""
    lines = [f"  {'':<18}{'at the end':>32}{'over the run':>32}"]
    for name, found in cases.items():
        line = f"  {name:<18}"
        for when in ("end", "over the run"):
            low, high = found[when]["interval"]
            line += f"{found[when]['iqm']:>14.1f} [{low:>7.1f}, {high:>6.1f}]"
        lines.append(line)
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Train the missing runs, print the table, and write the picture and the numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="by default runs/rollout_length, with --quick runs/rollout_length-quick")
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--quick", action="store_true", help="tiny networks, two seeds and 400 steps (smoke test)")
    args = parser.parse_args(arguments)
    args.out = args.out or Path("runs/rollout_length-quick" if args.quick else "runs/rollout_length")
    steps, seeds, changes = (400, 2, QUICK) if args.quick else (args.steps, args.seeds, {})
    by_length, by_share = sweep(steps, seeds, changes, args.out)
    picture, numbers = args.out / "rollout-length.png", args.out / "rollout-length.json"
    draw({"branch length, 5 % real data": by_length, "real share of a batch": by_share}, picture)
    found = {
        "branch length": {name: summary(curves) for name, curves in by_length.items()},
        "real share": {name: summary(curves) for name, curves in by_share.items()},
    }
    print(f"\nreturn on {TASK}, {seeds} seeds: interquartile mean [95% interval]")
    for title, cases in found.items():
        print(f"{title}\n{table(cases)}")
    where = environment(f"python experiments/rollout_length.py --seeds {seeds} --steps {steps}")
    written = {"task": TASK, "steps": steps, "seeds": seeds, **found, "environment": where}
    numbers.write_text(json.dumps(written, indent=1) + "\n")
    print(f"picture  {picture}\nnumbers  {numbers}")


if __name__ == "__main__":
    main()
