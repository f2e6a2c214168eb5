"""The duals of MPO during a run: temperatures and multipliers, beside the KL divergences that they keep at their bounds.

    eta         falls or rises until KL(weights | uniform) is `epsilon`
    alpha       falls while a KL divergence of the policy is below its bound, and rises while it is above

Temperatures are in units of the return, so that a good one depends on the task; MPO finds it.

    python experiments/mpo_duals.py [--env pendulum] [--out FOLDER] [--seeds 4] [--steps 20000] [--quick]

Writes `mpo-duals.png` and `mpo-duals.json`, with command, commit, versions and machine. A finished run in FOLDER/run is not
repeated, and an interrupted one is resumed.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

import jaxmbrl
from jaxmbrl import algorithms
from jaxmbrl.training.console import Progress
from jaxmbrl.training.run_folder import environment

STD = "standard deviation of the policy"
PANELS = (
    ("temperature eta", (("temperature", None), ("penalty_temperature", None))),
    ("multipliers alpha", (("alpha_mean", None), ("alpha_std", None))),
    ("KL(weights | uniform)", (("weights_kl", "epsilon"),)),
    ("KL by the change of the mean", (("kl_mean", "epsilon_mean"),)),
    ("KL by the change of the standard deviation", (("kl_std", "epsilon_std"),)),
    (STD, (("std", None),)),
)
"""Title of each panel, and its metrics (below `agent/`) with the setting that bounds each."""
LABELS = {
    "temperature": "of the values",
    "penalty_temperature": "of the penalty",
    "alpha_mean": "of the mean",
    "alpha_std": "of the standard deviation",
}
COLORS = ("#0b3d91", "#c1440e")


def series(rows: list[dict[str, Any]], name: str) -> tuple[np.ndarray, np.ndarray]:
    """(steps, values [seeds, steps]) of the metric agent/`name`, at the steps that all seeds have."""
    seeds = sorted({row["seed"] for row in rows})
    found = [
        {row["env_steps"]: row[f"agent/{name}"] for row in rows if row["seed"] == s and f"agent/{name}" in row}
        for s in seeds
    ]
    steps = sorted(set.intersection(*map(set, found)))
    return np.array(steps), np.array([[of[step] for step in steps] for of in found])


def draw(found: dict[str, Any], bounds: dict[str, float], path: Path) -> None:
    """Write the picture: a panel for each kind of dual or divergence; the line is the mean over seeds, the band their
    range, the dashes the bound."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 7), dpi=120, layout="constrained")
    for axes, (title, names) in zip(figure.subplots(2, 3, sharex=True).flat, PANELS, strict=True):
        for (name, bound), color in zip(names, COLORS, strict=False):
            steps, values = (np.asarray(found[name][key]) for key in ("steps", "values"))
            axes.fill_between(steps, values.min(axis=0), values.max(axis=0), color=color, alpha=0.15, linewidth=0)
            axes.plot(steps, values.mean(axis=0), color=color, linewidth=2, marker=".", label=LABELS.get(name))
            if bound is not None:
                axes.axhline(bounds[bound], color="0.3", linestyle="--", linewidth=1.2)
                axes.annotate(
                    "bound", (steps[-1], bounds[bound]), (0, 4), textcoords="offset points", ha="right", color="0.3"
                )
        axes.set_title(title, loc="left", fontsize=11)
        axes.locator_params(axis="x", nbins=5)
        if title != STD:
            axes.set_yscale("log")
        if len(names) > 1:
            axes.legend(frameon=False, fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="0.92", linewidth=0.6)
        if axes.get_subplotspec().is_last_row():
            axes.set_xlabel("environment steps")
    figure.savefig(path)


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Train the run if it is missing, and write picture and numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="pendulum")
    parser.add_argument("--out", type=Path, help="by default runs/mpo_duals, with --quick runs/mpo_duals-quick")
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--quick", action="store_true", help="tiny networks, two seeds and 400 steps (smoke test)")
    args = parser.parse_args(arguments)
    args.out = args.out or Path("runs/mpo_duals-quick" if args.quick else "runs/mpo_duals")
    steps, seeds, changes = args.steps, args.seeds, {}
    if args.quick:
        changes = {"agent.hidden": [8], "batch_size": 8, "warmup_steps": 100, "epoch_steps": 100, "eval_every": 0}
        steps, seeds = 400, 2
    folder, progress = args.out / "run", Progress(steps, seeds)
    if folder.exists():
        rows = jaxmbrl.resume(folder, progress=progress).rows
    else:
        given = {"steps": steps, "seeds": seeds, "preset": "small", "settings": changes}
        rows = jaxmbrl.train("mpo", args.env, **given, out=folder, progress=progress).rows
    config = algorithms.get("mpo").presets["small"].config.agent
    names = [name for _, panel in PANELS for name, _ in panel]
    found = {
        name: dict(zip(("steps", "values"), map(np.ndarray.tolist, series(rows, name)), strict=True)) for name in names
    }
    bounds = {bound: getattr(config, bound) for _, panel in PANELS for _, bound in panel if bound is not None}
    picture, numbers = args.out / "mpo-duals.png", args.out / "mpo-duals.json"
    draw(found, bounds, picture)
    command = f"python experiments/mpo_duals.py --env {args.env} --seeds {seeds} --steps {steps}"
    where = environment(command)
    written = {"task": args.env, "steps": steps, "seeds": seeds, "bounds": bounds, **found, "environment": where}
    numbers.write_text(json.dumps(written, indent=1) + "\n")
    print(f"picture  {picture}\nnumbers  {numbers}")
    return written


if __name__ == "__main__":
    main()
