"""The temperature of dreams: what a controller of World Models earns in its dreams, and what it earns in the task.

Ha and Schmidhuber (arXiv 1803.10122, section "Cheating the World Model") report that a controller which is trained in
dreams of a low temperature earns much there, because it uses errors of the memory, and little in the task, and that a
temperature above 1 makes controllers robust. This experiment trains controllers at several temperatures. Runs with the
same seed collect the same random actions and fit the same vision and the same memory to them; only their dreams differ.
As in the paper, the model is fitted once, to random actions.

    python experiments/dream_temperature.py [--env cartpole-continuous] [--out FOLDER] [--seeds 8] [--quick]

For each temperature, of each seed: the mean return of the controllers in all generations of the search and of the final
controller, both in dreams of this temperature, and of the final controller in the task, on fixed start states. Writes
`dream-temperature.png` and `dream-temperature.json`, with command, commit, versions and machine. Finished runs are not
repeated, and interrupted runs are resumed.
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
from jaxmbrl.training.evaluation import bootstrap_interval, interquartile_mean
from jaxmbrl.training.run_folder import environment

TEMPERATURES = (0.1, 0.5, 1.0, 1.15, 1.3)
"""Those of the paper's table."""
WARMUP, STEPS = 4000, 5000
"""Random actions, to which the model is fitted, and all steps. The final controller acts in those after the warm-up."""
SERIES = {
    "generations": ("all generations, in their dreams", "#8a8a8a"),
    "dream": ("final controller, in its dreams", "#0b3d91"),
    "task": ("final controller, in the task", "#c1440e"),
}
"""Name of a series -> (its label, its colour)."""
METRICS = {"generations": "policy/dreamt", "dream": "policy/dreamt_at_end"}
"""Name of a series -> the metric."""


def train(env: str, temperature: float, steps: int, seeds: int, changes: dict[str, Any], out: Path) -> list[dict[str, Any]]:
    """The metrics of the run in folder `out`, which is trained or resumed."""
    progress = Progress(steps, seeds)
    progress.say(f"temperature {temperature}")
    if out.exists():
        return jaxmbrl.resume(out, progress=progress).rows
    settings = {"rounds": 1, "warmup_steps": WARMUP, "temperature": temperature, **changes}
    args = {"steps": steps, "seeds": seeds, "preset": "small", "settings": settings}
    return jaxmbrl.train("world-models", env, **args, out=out, progress=progress).rows


def of_run(rows: list[dict[str, Any]], in_task: list[float]) -> dict[str, list[float]]:
    """The numbers of a run, by seed."""
    searched = [row for row in rows if METRICS["dream"] in row]
    assert [row["seed"] for row in searched] == list(range(len(in_task))), "there is one search for each seed"
    return {name: [row[metric] for row in searched] for name, metric in METRICS.items()} | {"task": in_task}


def table(found: dict[str, dict[str, list[float]]]) -> str:
    """The numbers as a Markdown table: means over seeds, and the interquartile mean (IQM) of the returns in the task."""
    head = (
        "temperature",
        "all generations, in dreams",
        "final, in dreams",
        "in the task",
        "IQM [95% interval]",
        "each seed",
    )
    lines = [f"| {' | '.join(head)} |", "|---:|---:|---:|---:|---:|---|"]
    for temperature, case in found.items():
        low, high = bootstrap_interval(case["task"])
        means = " | ".join(f"{np.mean(case[name]):.1f}" for name in SERIES)
        each = ", ".join(f"{value:.1f}" for value in case["task"])
        middle = f"{interquartile_mean(case['task']):.1f} [{low:.1f}, {high:.1f}]"
        lines.append(f"| {temperature} | {means} | {middle} | {each} |")
    return "\n".join(lines)


def draw(found: dict[str, dict[str, list[float]]], path: Path) -> None:
    """Write the picture: returns against the temperature, the mean over seeds as a line and each seed as a dot."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 4.6), dpi=120, layout="constrained")
    axes = figure.subplots()
    places = np.arange(len(found))
    for i, (name, (label, color)) in enumerate(SERIES.items()):
        values = np.array([case[name] for case in found.values()])
        shifted = places + 0.12 * (i - 1)
        axes.plot(np.repeat(shifted, values.shape[1]), values.ravel(), ".", color=color, alpha=0.5, markersize=7)
        axes.plot(shifted, values.mean(axis=1), color=color, linewidth=2.2, marker="o", markersize=5, label=label)
    axes.set_xticks(places, list(found))
    axes.set(xlabel="temperature of the dreams", ylabel="return per episode")
    axes.set_ylim(bottom=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="0.92", linewidth=0.6)
    figure.legend(loc="outside upper center", ncols=3, frameon=False, fontsize=9)
    figure.savefig(path)


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Train the missing runs, print the table, and write the picture and the numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="cartpole-continuous")
    parser.add_argument(
        "--out", type=Path, help="by default runs/dream_temperature, with --quick runs/dream_temperature-quick"
    )
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--episodes", type=int, default=100, help="episodes of an evaluation")
    parser.add_argument("--quick", action="store_true", help="tiny networks, two seeds and two temperatures (smoke test)")
    args = parser.parse_args(arguments)
    args.out = args.out or Path("runs/dream_temperature-quick" if args.quick else "runs/dream_temperature")
    temperatures, steps, seeds, episodes, changes = TEMPERATURES, STEPS, args.seeds, args.episodes, {}
    if args.quick:
        changes = dict(algorithms.get("world-models").tiny) | {"rounds": 1}
        temperatures, steps, seeds, episodes = (0.1, 1.0), 200, 2, 2
    found = {}
    for temperature in temperatures:
        folder = args.out / str(temperature)
        rows = train(args.env, temperature, steps, seeds, changes, folder)
        found[str(temperature)] = of_run(rows, list(jaxmbrl.evaluate(folder, episodes).per_seed))
    print(f"\n{args.env}, {seeds} seeds\n{table(found)}")
    picture, numbers = (args.out / f"dream-temperature.{kind}" for kind in ("png", "json"))
    draw(found, picture)
    where = environment(f"python experiments/dream_temperature.py --env {args.env} --seeds {args.seeds}")
    written = {"task": args.env, "steps": steps, "seeds": seeds, "episodes": episodes, "by_temperature": found}
    written["environment"] = where
    numbers.write_text(json.dumps(written, indent=1) + "\n")
    print(f"picture  {picture}\nnumbers  {numbers}")
    return written


if __name__ == "__main__":
    main()
