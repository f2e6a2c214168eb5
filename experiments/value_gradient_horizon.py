"""Value gradients through a learned model: gradient norm and return of the policy against the horizon n.

    SVG(n)   the actor maximises the rewards of n imagined steps plus the critics' value after them (`algorithms/svg.py`);
             n = 0 is SAC
    BPTT     the actor maximises the rewards of H imagined steps alone (`algorithms/bptt.py`)

It is often said that gradients through many steps become very large and ill-behaved, so that a medium number works best.
This experiment measures the return of the deterministic policy on fixed start states, the norm of the gradient with respect
to the actor's parameters, and the norm of the gradient with respect to each imagined state. If the latter grows with the
distance from the end, gradients explode; if it shrinks, they vanish.

    python experiments/value_gradient_horizon.py [--env pendulum] [--out FOLDER] [--seeds 4] [--steps 2000] [--quick]

Writes `value-gradient-horizon.png` and `value-gradient-horizon.json`, with command, commit, versions and machine. The
gradient norms are means over the last fifth of the run. Finished runs are not repeated, and interrupted runs are resumed.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

import jaxmbrl
from jaxmbrl.training.console import Progress
from jaxmbrl.training.evaluation import bootstrap_interval, interquartile_mean
from jaxmbrl.training.run_folder import environment

HORIZONS = {"svg": (0, 1, 3, 5, 10, 20), "bptt": (5, 10, 20, 50, 100)}
SETTINGS: dict[str, dict[str, Any]] = {"svg": {"updates_per_step": 2}, "bptt": {}}
QUICK: dict[str, dict[str, Any]] = {
    "svg": {"agent.hidden": [8, 8], "updates_per_step": 1, "batch_size": 16},
    "bptt": {"hidden": [8, 8], "updates": 2, "batch_size": 16},
}
QUICK_MODEL: dict[str, Any] = {"ensemble.hidden": [8, 8], "ensemble.max_epochs": 1}
QUICK_HORIZONS = {"svg": (0, 2), "bptt": (3,)}
NAMES = {"svg": "SVG(n): critics after n steps", "bptt": "BPTT: nothing after n steps"}
COLORS = {"svg": "#0b3d91", "bptt": "#c1440e"}
NORM = "agent/actor_gradient_norm"
STATE = "gradient/state_"


def train(
    method: str, env: str, horizon: int, steps: int, seeds: int, changes: dict[str, Any], out: Path
) -> list[dict[str, Any]]:
    """The metrics of one run. It is trained in its own folder, unless it exists already."""
    progress = Progress(steps, seeds)
    progress.say(f"{method}, n = {horizon}")
    folder = out / f"{method}-{horizon}"
    if folder.exists():
        return jaxmbrl.resume(folder, progress=progress).rows
    settings = {"eval_every": 0, "horizon": horizon, **SETTINGS[method], **changes}
    args = {"steps": steps, "seeds": seeds, "preset": "small", "settings": settings}
    return jaxmbrl.train(method, env, **args, out=folder, progress=progress).rows


def of_run(rows: list[dict[str, Any]], per_seed: list[float]) -> dict[str, Any]:
    """The summary of a run: returns at the end and during training, and gradient norms, by seed."""
    seeds = sorted({row["seed"] for row in rows})
    late = [row for row in rows if row["env_steps"] > 0.8 * rows[-1]["env_steps"]]

    def mean(name: str) -> list[float]:
        return [float(np.mean([row[name] for row in late if row["seed"] == seed and name in row])) for seed in seeds]

    states = sorted(int(name.removeprefix(STATE)) for name in late[-1] if name.startswith(STATE))
    return {
        "returns": per_seed,
        "iqm": interquartile_mean(per_seed),
        "interval": bootstrap_interval(per_seed),
        "norms": mean(NORM),
        "state_norms": [mean(f"{STATE}{t}") for t in states],
        "curve": [[row["env_steps"], row["seed"], row["train/return"]] for row in rows if "train/return" in row],
    }


def table(found: dict[str, dict[str, Any]]) -> str:
    """Returns and gradient norms as text, a line for each method and horizon."""
    lines = [f"  {'':<12}{'return':>26}{'gradient norm':>28}{'by first, last state':>24}"]
    for method, cases in found.items():
        for horizon, case in cases.items():
            low, high = case["interval"]
            norms, ends = case["norms"], [np.mean(x) for x in case["state_norms"]]
            line = f"  {method + ', ' + horizon:<12}{case['iqm']:>9.1f} [{low:>7.1f}, {high:>6.1f}]"
            line += f"{np.mean(norms):>12.3g} [{min(norms):>6.3g}, {max(norms):>6.3g}]"
            lines.append(line + (f"{ends[0]:>12.3g}, {ends[-1]:>8.3g}" if ends else ""))
    return "\n".join(lines)


def draw(found: dict[str, dict[str, Any]], path: Path) -> None:
    """Write the picture: returns and gradient norms against the horizon, and the gradient with respect to each state."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 4.8), dpi=120, layout="constrained")
    earned, norms, along = figure.subplots(1, 3)
    for method, cases in found.items():
        # Both axes include n = 0.
        at = [int(horizon) for horizon in cases]
        color, label = COLORS[method], NAMES[method]
        earned.fill_between(at, *np.array([c["interval"] for c in cases.values()]).T, color=color, alpha=0.15, linewidth=0)
        earned.plot(at, [c["iqm"] for c in cases.values()], color=color, linewidth=2.2, marker="o", label=label)
        for x, case in zip(at, cases.values(), strict=True):
            earned.plot([x] * len(case["returns"]), case["returns"], ".", color=color, alpha=0.5, markersize=5)
            norms.plot([x] * len(case["norms"]), case["norms"], ".", color=color, alpha=0.5, markersize=5)
        norms.plot(at, [np.mean(c["norms"]) for c in cases.values()], color=color, linewidth=2.2, marker="o", label=label)
    norms_of = [(h, c["state_norms"]) for h, c in found["svg"].items() if c["state_norms"]]
    for (horizon, values), shade in zip(norms_of, np.linspace(0.15, 0.85, len(norms_of)), strict=True):
        mean = [np.mean(x) for x in values]
        along.plot(
            range(len(mean)), mean, color=colormaps["viridis"](shade), linewidth=2, marker=".", label=f"n = {horizon}"
        )
    for axes, title, x, y in (
        (earned, "return of the policy", "horizon n", "return of an evaluation episode"),
        (norms, "gradient with respect to the actor's parameters", "horizon n", "norm, mean over updates"),
        (along, "gradient with respect to each state, SVG(n)", "step t of n", "norm, mean over rows"),
    ):
        axes.set_title(title, loc="left", fontsize=11)
        axes.set(xlabel=x, ylabel=y)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="0.92", linewidth=0.6)
        axes.legend(frameon=False, fontsize=9)
    for axes in (earned, norms):
        axes.set_xscale("symlog", linthresh=1)
        ticks = sorted({int(h) for cases in found.values() for h in cases})
        axes.set_xticks(ticks, [str(t) for t in ticks])
    norms.set_yscale("log")
    along.set_yscale("log")
    figure.savefig(path)


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Train the missing runs, print the table, and write the picture and the numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="pendulum")
    parser.add_argument(
        "--out", type=Path, help="by default runs/value_gradient_horizon, with --quick runs/value_gradient_horizon-quick"
    )
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--episodes", type=int, default=50, help="episodes of an evaluation")
    parser.add_argument("--quick", action="store_true", help="tiny networks, two seeds and 400 steps (smoke test)")
    args = parser.parse_args(arguments)
    args.out = args.out or Path("runs/value_gradient_horizon-quick" if args.quick else "runs/value_gradient_horizon")
    steps, seeds, episodes = (400, 2, 2) if args.quick else (args.steps, args.seeds, args.episodes)
    found: dict[str, dict[str, Any]] = {}
    for method, horizons in (QUICK_HORIZONS if args.quick else HORIZONS).items():
        changes = QUICK[method] | QUICK_MODEL if args.quick else {}
        found[method] = {}
        for horizon in horizons:
            rows = train(method, args.env, horizon, steps, seeds, changes, args.out)
            judged = jaxmbrl.evaluate(args.out / f"{method}-{horizon}", episodes)
            found[method][str(horizon)] = of_run(rows, judged.per_seed)
    print(f"\n{args.env}, {seeds} seeds: IQM of the return [95% interval], mean gradient norm [least, largest seed]")
    print(table(found))
    picture, numbers = args.out / "value-gradient-horizon.png", args.out / "value-gradient-horizon.json"
    draw(found, picture)
    command = f"python experiments/value_gradient_horizon.py --env {args.env} --seeds {seeds} --steps {steps}"
    where = environment(command)
    written = {"task": args.env, "steps": steps, "seeds": seeds, "episodes": episodes, **found, "environment": where}
    numbers.write_text(json.dumps(written, indent=1) + "\n")
    print(f"picture  {picture}\nnumbers  {numbers}")
    return written


if __name__ == "__main__":
    main()
