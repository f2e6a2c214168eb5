"""From vanilla model-based reinforcement learning to PETS, step by step, on the cart-pole swing-up.

    0.5  collect random data once, fit a model, plan each episode with it, open loop
    1.0  the same, but refit to all data after every episode
    1.5  the same, but replan at every step and take the first action: model-predictive control (MPC)
    PETS the same, but with a probabilistic ensemble and trajectory sampling: plan under model uncertainty

Version 0.5 should fail because the plan leaves the states of the random data (distribution mismatch). Version 1.0 should
fail because small errors of a plan grow over an episode without feedback. Version 1.5 should fail because a plan exploits
the errors of a single model. The first two do fail. Both 1.5 and PETS reach the planner in the true simulator, because on
this smooth task without noise a single model is soon good enough.

All versions are settings of one algorithm, `pets`, with CEM as the planner. Lectures on deep reinforcement learning use
these version numbers. PETS: Chua et al., arXiv 1805.12114.

    python experiments/model_based_ladder.py [--out FOLDER] [--seeds 4] [--steps 1000] [--quick]

An episode has 40 steps. Open-loop plans must be as long; they use more candidates, because there is only one search per
episode. The others plan 12 steps ahead, which is about the best in the true simulator. The black lines are the same
planners in the true simulator. The open-loop one shows how much of a failure is due to the task and not the model: it has
to balance an unstable pole without feedback. The script takes about twenty minutes on two CPU cores; `--quick` checks in a
minute that it runs. Existing runs are not repeated.
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
from jaxmbrl.training.run_folder import RunFolder

TASK = "cartpole-swingup"
EPISODE = 40
COMMON = {
    "planner.method": "cem",
    "refit_every": EPISODE,
    "warmup_steps": 200,
    "epoch_steps": 200,
    "num_envs": 1,
}
SINGLE = {
    "ensemble.members": 1,
    "ensemble.elites": 1,
    "ensemble.probabilistic": False,
    "ensemble.propagation": "expectation",
    "particles": 1,
}
BLIND = {
    "open_loop": True,
    "planner.cem.horizon": EPISODE,
    "planner.cem.population": 400,
    "planner.cem.elites": 20,
    "planner.cem.iterations": 10,
}
LOOKING = {"planner.cem.horizon": 12}
RUNGS: dict[str, dict[str, Any]] = {
    "0.5: random data once, open loop": {**SINGLE, **BLIND, "refit": False},
    "1.0: data iterated, open loop": {**SINGLE, **BLIND},
    "1.5: replanned at every step": {**SINGLE, **LOOKING},
    "PETS: ensemble, trajectory sampling": LOOKING,
}
TRUE: dict[str, dict[str, Any]] = {
    "true model, open loop": {**BLIND, "model": "true"},
    "true model, replanned": {**LOOKING, "model": "true"},
}
QUICK = {"planner.cem.population": 20, "planner.cem.elites": 4, "planner.cem.iterations": 2, "ensemble.max_epochs": 2}
COLORS = ("#9e9e9e", "#c1440e", "#2e7d32", "#0b3d91")


def value_gradient_step(name: str, settings: dict[str, Any], steps: int, seeds: int, out: Path) -> list[dict[str, Any]]:
    """The metrics of one version. It is trained in its own folder, unless the metrics exist already."""
    folder = out / name.partition(":")[0].replace(" ", "-").replace(",", "")
    progress = Progress(steps, seeds)
    progress.say(name)
    if folder.exists():
        return jaxmbrl.resume(folder, progress=progress).rows
    result = jaxmbrl.train("pets", TASK, steps=steps, seeds=seeds, settings=settings, out=folder, progress=progress)
    return result.rows


def returns_at_end(rows: list[dict[str, Any]]) -> list[float]:
    """For each seed, the mean return of the episodes in the last two epochs."""
    last = max(row["epoch"] for row in rows)
    seeds = sorted({row["seed"] for row in rows})
    return [
        float(np.mean([row["train/return"] for row in rows if row["seed"] == seed and row["epoch"] >= last - 1]))
        for seed in seeds
    ]


def draw(curves: dict[str, list[dict[str, Any]]], limits: dict[str, float], path: Path) -> None:
    """Write the picture: for each version, the mean over seeds and each seed, against environment steps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.5, 5.4), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    for (name, rows), color in zip(curves.items(), COLORS, strict=True):
        steps = sorted({row["env_steps"] for row in rows})
        table = np.array([[row["train/return"] for row in rows if row["env_steps"] == at] for at in steps])
        axes.plot(steps, table, color=color, linewidth=0.8, alpha=0.4)
        axes.plot(steps, table.mean(axis=1), color=color, linewidth=2.5, marker="o", markersize=4, label=name)
    for (name, value), style in zip(limits.items(), (":", "--"), strict=True):
        axes.axhline(value, color="black", linestyle=style, linewidth=1.2, label=name)
    axes.set(xlabel="environment steps (the first 200 are random)", ylabel=f"return of {EPISODE} steps", ylim=(0, None))
    axes.set_title("The ladder of model-based reinforcement learning, cart-pole swing-up", loc="left", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="0.92", linewidth=0.6)
    axes.legend(frameon=False, fontsize=9, loc="upper center", bbox_to_anchor=(0.5, -0.13), ncol=2)
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", type=Path, help="by default runs/model_based_ladder, with --quick runs/model_based_ladder-quick"
    )
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--quick", action="store_true", help="tiny searches and 400 steps (smoke test)")
    args = parser.parse_args()
    args.out = args.out or Path("runs/model_based_ladder-quick" if args.quick else "runs/model_based_ladder")
    steps, changes = (400, QUICK) if args.quick else (args.steps, {})

    def rows_of(name: str, settings: dict[str, Any], seeds: int, steps: int) -> list[dict[str, Any]]:
        return value_gradient_step(name, {**COMMON, **settings, **changes}, steps, seeds, args.out)

    curves = {name: rows_of(name, settings, args.seeds, steps) for name, settings in RUNGS.items()}
    # A planner in the true simulator needs no data, so two epochs after the random one are enough.
    limits = {
        name: float(np.mean(returns_at_end(rows_of(name, settings, 2, min(steps, 600))))) for name, settings in TRUE.items()
    }
    picture = args.out / "ladder.png"
    draw(curves, limits, picture)
    summary = {}
    print(f"\nreturn of the last two epochs' episodes, {args.seeds} seeds: interquartile mean [95% interval]")
    for name, rows in curves.items():
        per_seed = returns_at_end(rows)
        low, high = bootstrap_interval(per_seed)
        summary[name] = {"per_seed": per_seed, "iqm": interquartile_mean(per_seed), "interval": [low, high]}
        print(f"  {name:<38}{summary[name]['iqm']:>6.1f} [{low:.1f}, {high:.1f}]")
    for name, value in limits.items():
        print(f"  {name:<38}{value:>6.1f}")
    environment = RunFolder.open(args.out / "0.5").read_environment()
    (args.out / "ladder.json").write_text(
        json.dumps({"rungs": summary, "true": limits, "steps": steps, "environment": environment}, indent=1) + "\n"
    )
    print(f"picture  {picture}\nnumbers  {args.out / 'ladder.json'}")


if __name__ == "__main__":
    main()
