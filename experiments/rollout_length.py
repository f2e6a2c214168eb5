"""How long to imagine, and how much: MBPO's branch length and its share of real data, at equal environment steps.

    branch length   k = 1, 5, 15 throughout, and k growing from 1 to 15 over the first half of the run; 5 % real data
    real share      5 %, 50 % and 100 % of a batch, with k = 1; at 100 % nothing imagined is learned from: SAC

The task is `pendulum`, the settings are the preset `small`: all runs do ten updates a step, so the last case is SAC with as
many. MBPO's paper (Janner et al., arXiv 1906.08253) ablates the same two choices on the Hopper in 125,000 steps; there
branches of some steps beat single ones and very long ones, and model data beat real data alone.

Here four seeds do not tell the cases apart: all intervals overlap, at the end and over the run. All cases solve the task
(about -150) on most seeds within the 2,000 steps; every seed is there in the end with k = 15 and with k growing to 15,
while single steps, five and real data alone each had one that faltered. So the model, which explains 99 % of the held-out
variance, does no harm in branches of 15. SAC learns as fast: with ten updates a step, few real data are enough for so small
a task. The paper's question needs a harder one.

    python experiments/rollout_length.py [--out FOLDER] [--seeds 4] [--steps 2000] [--quick]

Writes `rollout-length.png`, the interquartile mean over seeds of the evaluated return with its 95 % bootstrap interval at
each evaluation, and `rollout-length.json`: for each case mean, interquartile mean and interval of the return at the end
(last two evaluations) and over the run (all evaluations: who learns early), with command, commit, versions and machine. It
takes about twenty minutes of one CPU core; `--quick` checks in two that it runs. The real shares run side by side in one
program, since the share is a traced number, and each has seeds of its own. A run that is there already is not run again.
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
    """Settings of the branch length by case; the last grows over the first half of the run, the warm-up not counted."""
    fixed = {f"k = {k}": {"rollout_length.first": k, "rollout_length.last": k} for k in (1, 5, LONGEST)}
    growing = {
        "rollout_length.first": 1,
        "rollout_length.last": LONGEST,
        "rollout_length.begins": 0,
        "rollout_length.ends": steps // 2,
    }
    return {**fixed, f"k from 1 to {LONGEST}": growing}


def shares() -> tuple[str, ...]:
    """Names of the real shares' cases."""
    return tuple(f"{ratio:.0%} real" + (", k = 1" if ratio < 1 else ": SAC") for ratio in RATIOS)


def returns_of(rows: list[dict[str, Any]], cases: int) -> list[Curves]:
    """The curves of a run's `cases`, which have equal numbers of successive seeds."""
    found = list(seed_curves(rows, EVAL).values())
    seeds = len(found) // cases
    return [
        Curves(found[0].steps, np.array([curve.values for curve in found[i * seeds : (i + 1) * seeds]]))
        for i in range(cases)
    ]


def train(name: str, settings: dict[str, Any], hyper: dict[str, Any], steps: int, seeds: int, out: Path) -> Any:
    """The metrics of one run, trained into a folder of its own unless they are there."""
    folder = out / name
    progress = Progress(steps, seeds)
    progress.say(name)
    if folder.exists():
        return jaxmbrl.resume(folder, progress=progress).rows
    asked = {"steps": steps, "seeds": seeds, "preset": "small", "settings": {**COMMON, **settings}, "hyper": hyper}
    return jaxmbrl.train("mbpo", TASK, **asked, out=folder, progress=progress).rows


def sweep(steps: int, seeds: int, changes: dict[str, Any], out: Path) -> tuple[dict[str, Curves], dict[str, Curves]]:
    """Curves by branch length and by real share; the first case of both is the same run."""
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
    """Write the picture: a panel for each choice, in it a line and a band for each case."""
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
    """Run what is missing, print the table, write picture and numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/rollout_length"))
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--quick", action="store_true", help="tiny networks, two seeds and 400 steps: does it run?")
    asked = parser.parse_args(arguments)
    steps, seeds, changes = (400, 2, QUICK) if asked.quick else (asked.steps, asked.seeds, {})
    by_length, by_share = sweep(steps, seeds, changes, asked.out)
    picture, numbers = asked.out / "rollout-length.png", asked.out / "rollout-length.json"
    draw({"branch length, 5 % real data": by_length, "real share of a batch": by_share}, picture)
    found = {
        "branch length": {name: summary(curves) for name, curves in by_length.items()},
        "real share": {name: summary(curves) for name, curves in by_share.items()},
    }
    print(f"\nreturn on {TASK}, {seeds} seeds: interquartile mean [95% interval]")
    for title, cases in found.items():
        print(f"{title}\n{table(cases)}")
    where = environment() | {"command": f"python experiments/rollout_length.py --seeds {seeds} --steps {steps}"}
    written = {"task": TASK, "steps": steps, "seeds": seeds, **found, "environment": where}
    numbers.write_text(json.dumps(written, indent=1) + "\n")
    print(f"picture  {picture}\nnumbers  {numbers}")


if __name__ == "__main__":
    main()
