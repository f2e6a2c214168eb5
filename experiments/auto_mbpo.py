"""AutoMBPO on a small task: learn a controller of MBPO's hyperparameters, and draw the schedules that it plays.

A stage is `--runs` whole runs of MBPO under the controller, which decides every 100 steps whether the model is fitted and
whether the share of real data shrinks, stays or grows (`jaxmbrl.scheduling.auto_mbpo`). The question is whether the share
grows during a run, as the paper finds (Lai et al., arXiv 2111.08550, figure 4).

    python experiments/auto_mbpo.py [--env pendulum] [--out FOLDER] [--stages 5] [--runs 10] [--seeds 1] [--quick]

`--decides refit_every real_ratio updates_per_step rollout_length` lets the controller decide on more. The search is saved
after each run; the same command continues it, with more `--stages` also a finished one. It writes

- `schedule.json`, the schedule of the best controller, for `jaxmbrl train mbpo --env pendulum --schedule schedule.json`;
- `controller.npz`, its parameters;
- `auto-mbpo.png`: returns by stage, and the real share against environment steps, of each stage and of the best controller;
- `auto-mbpo.json`, the numbers with command, commit, versions and machine.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from jaxmbrl.algorithms.schedules import COLUMNS
from jaxmbrl.scheduling import auto_mbpo
from jaxmbrl.scheduling.auto_mbpo import Found, Scales, Search, SearchConfig
from jaxmbrl.training.run_folder import environment, new_figure, write_figure

STEPS = 1000
SETTINGS: dict[str, Any] = {"warmup_steps": 200, "epoch_steps": 200, "refit_every": 100}
SCALES = Scales(model_error=0.1, critic_loss=100.0, episode_return=1500.0)
QUICK = {
    "agent.hidden": [8],
    "ensemble.hidden": [8],
    "ensemble.max_epochs": 1,
    "rollout_rows": 20,
    "updates_per_step": 1,
    "batch_size": 20,
}


def told(found: Found, search: Search) -> dict[str, Any]:
    """The numbers of a search."""
    ratio = [np.exp(np.log(stage.tables[..., 0]).mean(axis=0)) for stage in found.stages]
    return {
        "steps": [t * search.tau for t in range(search.length)],
        "baseline": found.baseline.tolist(),
        "best": found.best,
        "returns": [stage.returns.tolist() for stage in found.stages],
        "mean return": [float(stage.returns.mean()) for stage in found.stages],
        "geometric mean of the real ratio": [values.tolist() for values in ratio],
        "share of fits": [float((stage.tables[:, 1:, 1] > 0).mean()) for stage in found.stages],
        "real ratios": [stage.tables[..., 0].tolist() for stage in found.stages],
        "best controller": {
            **{name: found.deployed.table[:, i].tolist() for i, name in enumerate(COLUMNS)},
            "returns": found.deployed.returns.tolist(),
        },
    }


def draw(numbers: dict[str, Any], file: Path) -> None:
    """Returns by stage on the left, real shares on the right."""
    figure = new_figure(10.0, 3.8)
    left, right = figure.subplots(1, 2)
    returns = [np.mean(runs, axis=1) for runs in numbers["returns"]]
    stages = np.arange(len(returns))
    for stage, values in zip(stages, returns, strict=True):
        left.plot(np.full(len(values), stage), values, "o", color="0.7", markersize=4)
    left.plot(stages, [np.mean(values) for values in returns], color="#0b3d91", marker="o", label="mean of a stage")
    left.axhline(np.mean(numbers["baseline"]), color="black", linestyle=":", label="MBPO with its own settings")
    left.xaxis.get_major_locator().set_params(integer=True)
    left.set_xlabel("stage")
    left.set_ylabel("return, mean over the epochs of a run")
    left.legend(frameon=False, fontsize=8)
    shades = np.linspace(0.75, 0.25, len(returns))
    named = set(np.linspace(0, len(stages) - 1, min(len(stages), 5)).astype(int))
    for stage, values in zip(stages, numbers["geometric mean of the real ratio"], strict=True):
        style = {"color": str(shades[stage]), "linewidth": 1.2, "label": f"stage {stage}" if stage in named else None}
        right.step(numbers["steps"], values, where="post", **style)
    best = numbers["best controller"]
    right.step(numbers["steps"], best["real_ratio"], where="post", color="#c1440e", linewidth=2.2, label="best, greedy")
    for at, ratio, interval in zip(numbers["steps"][1:], best["real_ratio"][1:], best["refit_every"][1:], strict=True):
        if not interval:
            right.plot(at, ratio, "x", color="#c1440e", markersize=6)
    right.set_yscale("log")
    ticks = [0.02, 0.05, 0.1, 0.2, 0.5]
    right.set_yticks(ticks, [f"{tick:.0%}" for tick in ticks])
    right.minorticks_off()
    right.set_xlabel("steps after the warm-up (x: no fit)")
    right.set_ylabel("real share, geometric mean over runs")
    right.legend(frameon=False, fontsize=7, ncol=2)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    write_figure(file, figure)


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Search, and write the picture and the numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="pendulum")
    parser.add_argument("--preset", default="small")
    parser.add_argument("--out", type=Path, help="by default runs/auto_mbpo, with --quick runs/auto_mbpo-quick")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--stages", type=int, default=5)
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--decides", nargs="+", default=["refit_every", "real_ratio"], choices=[*auto_mbpo.CHOICES])
    parser.add_argument("--quick", action="store_true", help="tiny networks and few runs (smoke test)")
    args = parser.parse_args(arguments)
    args.out = args.out or Path("runs/auto_mbpo-quick" if args.quick else "runs/auto_mbpo")
    settings, steps, sizes = dict(SETTINGS), args.steps, {"stages": args.stages, "runs": args.runs}
    if args.quick:
        settings, steps, sizes = {**SETTINGS, **QUICK}, 600, {"stages": 2, "runs": 2, "baseline_runs": 1}
    config = SearchConfig(decides=tuple(args.decides), seeds=args.seeds, scales=SCALES, **sizes)
    search = auto_mbpo.make(args.env, config, preset=args.preset, settings=settings, steps=steps)
    found = search.search(args.out, say=lambda text: print(text, flush=True))
    command = (
        f"python experiments/auto_mbpo.py --env {args.env} --preset {args.preset} --steps {steps} --stages {args.stages} "
        f"--runs {args.runs} --seeds {args.seeds} --decides {' '.join(args.decides)}"
    )
    written = told(found, search) | {
        "task": args.env,
        "search": search.description(),
        "environment": environment(command),
    }
    picture, file = args.out / "auto-mbpo.png", args.out / "auto-mbpo.json"
    file.write_text(json.dumps(written, indent=1) + "\n")
    draw(written, picture)
    print(f"picture  {picture}\nnumbers  {file}\nschedule {args.out / 'schedule.json'}")
    return written


if __name__ == "__main__":
    main()
