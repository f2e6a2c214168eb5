"""Exploration by imagination: how soon does a car that is too weak for its hill reach the top, if nothing tells it to?

On `mountain-car-continuous` every action costs, and the only reward is at the top of the hill. Three ways to act, with each
action applied `--action-repeat` times:

    plan2explore    an explorer that maximises the disagreement of the world model in imagination; it never sees a reward
    dreamer         the same model and actor, which maximise the predicted reward
    uniform         uniformly random actions

The picture and the numbers have the environment steps until the first visit of the goal, of each seed, and the returns of
the evaluated policies: of `plan2explore` this is the task policy, which learns from the recorded rewards in imagination
only, and never acted before.

    python experiments/exploring_by_imagination.py [--out FOLDER] [--seeds 8] [--steps 4000] [--action-repeat 4]
                                                   [--quick]

Writes `exploring-by-imagination.png` and `exploring-by-imagination.json`, with command, commit, versions and machine. A
finished run in FOLDER is not repeated, and an interrupted one is resumed. With 8 seeds and 4,000 steps a method takes about
15 minutes on one core of a CPU.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

import jaxmbrl
from jaxmbrl import envs
from jaxmbrl.agents.exploration import uniform
from jaxmbrl.rollout import auto_reset, rollout
from jaxmbrl.training.console import Progress
from jaxmbrl.training.run_folder import environment

TASK = "mountain-car-continuous"
METHODS = ("plan2explore", "dreamer")
COLORS = {"plan2explore": "#0b3d91", "dreamer": "#c1440e", "uniform": "#8a8a8a"}
LONGEST = 1_000_000
"""Steps of the task with uniformly random actions, for each seed."""
QUICK = {
    "model.deter": 8,
    "model.hidden": 8,
    "model.groups": 2,
    "model.classes": 4,
    "model.units": 8,
    "model.bins": 5,
    "model.coder.units": 8,
    "agent.horizon": 3,
    "agent.roots": 6,
    "agent.units": 8,
    "agent.bins": 5,
    "batch_size": 4,
    "train_every": 20,
    "warmup_steps": 100,
    "epoch_steps": 100,
}


def first_visits(terminated: np.ndarray) -> list[int | None]:
    """The number of the first step [K, N] that reaches the goal, from 1, for each seed; None if there is none."""
    reached = np.asarray(terminated, bool)
    return [int(np.argmax(of)) + 1 if of.any() else None for of in reached]


def share_of_seeds(visits: list[int | None], steps: np.ndarray) -> np.ndarray:
    """The share of seeds whose first visit is at most at each of `steps`."""
    return np.mean([[visit is not None and visit <= step for step in steps] for visit in visits], axis=0)


def by_chance(seeds: int, steps: int, repeat: int) -> np.ndarray:
    """Whether each of `steps` uniformly random actions, applied `repeat` times, reaches the goal, [seeds, steps]."""
    task = envs.repeat(envs.make(TASK), repeat)
    world, policy = auto_reset(task.world, uniform(task.action))

    def of_seed(key: Any) -> Any:
        reset_key, memory_key, key = jax.random.split(key, 3)
        _, rows = rollout(world, policy, (world.reset(reset_key), policy.init(memory_key)), key, steps)
        return rows.terminated

    return np.asarray(jax.jit(jax.vmap(of_seed))(jax.random.split(jax.random.key(0), seeds)))


def trained(method: str, folder: Path, steps: int, seeds: int, repeat: int, settings: dict[str, Any]) -> dict[str, Any]:
    """First visits and returns of a run of `method`, which is trained unless its folder exists."""
    progress = Progress(steps, seeds)
    if folder.exists():
        result = jaxmbrl.resume(folder, progress=progress)
    else:
        fields = {"steps": steps, "seeds": seeds, "eval_episodes": 10, "action_repeat": repeat}
        result = jaxmbrl.train(method, TASK, settings=settings, out=folder, progress=progress, **fields)
    stored = result.state.replay
    assert int(np.min(stored.size)) == steps, "the buffer must hold the whole run"
    visits = first_visits(np.asarray(stored.rows.terminated)[:, 0, :steps])
    evaluated = [row for row in result.rows if "eval/return" in row]
    at = sorted({row["env_steps"] for row in evaluated})
    returns = [[row["eval/return"] for row in evaluated if row["seed"] == seed] for seed in range(seeds)]
    return {"first_visit": visits, "evaluated_at": at, "returns": returns, "final": [of[-1] for of in returns]}


def table(found: dict[str, Any]) -> str:
    """The numbers as a Markdown table, in steps of the task."""
    repeat = found["action_repeat"]
    lines = ["| | first visit of the goal, each seed | median | final return, each seed |", "|---|---|---:|---|"]
    for name in (*METHODS, "uniform"):
        visits = [None if visit is None else repeat * visit for visit in found[name]["first_visit"]]
        median = np.median([np.inf if visit is None else visit for visit in visits])
        each = ", ".join("never" if visit is None else f"{visit:,}" for visit in visits)
        middle = f"{median:,.0f}" if np.isfinite(median) else "never"
        final = ", ".join(f"{value:.1f}" for value in found[name].get("final", ()))
        lines.append(f"| `{name}` | {each} | {middle} | {final or '-'} |")
    return "\n".join(lines)


def draw(found: dict[str, Any], path: Path) -> None:
    """Write the picture: the share of seeds that have reached the goal, and the returns of the evaluated policies."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4), dpi=120, layout="constrained")
    left, right = figure.subplots(1, 2)
    longest, repeat = max(found["steps"], found["uniform"]["steps"]), found["action_repeat"]
    steps = np.unique(np.geomspace(10, longest, 400).round().astype(int))
    for name in (*METHODS, "uniform"):
        shown = steps[steps <= found[name]["steps"]]
        share = share_of_seeds(found[name]["first_visit"], shown)
        left.step(repeat * shown, share, where="post", color=COLORS[name], linewidth=2, label=name)
    left.set(xscale="log", xlabel="steps of the task", ylabel="share of seeds", ylim=(-0.03, 1.03))
    left.set_title("Has been at the goal", loc="left")
    left.legend(frameon=False)
    for name in METHODS:
        at, returns = repeat * np.asarray(found[name]["evaluated_at"]), np.asarray(found[name]["returns"])
        right.plot(at, returns.T, color=COLORS[name], alpha=0.25, linewidth=0.8)
        right.plot(at, returns.mean(axis=0), color=COLORS[name], linewidth=2.2, label=name)
    right.set(xlabel="steps of the task", ylabel="return per episode")
    right.set_title("Evaluated policy: each seed and the mean", loc="left")
    right.legend(frameon=False)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="0.92", linewidth=0.6)
    figure.savefig(path)


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Train the runs that are missing, and write picture and numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out",
        type=Path,
        help="by default runs/exploring_by_imagination, with --quick runs/exploring_by_imagination-quick",
    )
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--action-repeat", type=int, default=4)
    parser.add_argument("--quick", action="store_true", help="tiny networks, two seeds and 400 steps (smoke test)")
    args = parser.parse_args(arguments)
    args.out = args.out or Path("runs/exploring_by_imagination-quick" if args.quick else "runs/exploring_by_imagination")
    repeat = args.action_repeat
    steps, seeds, settings, longest = args.steps, args.seeds, {"epoch_steps": 500}, LONGEST // repeat
    if args.quick:
        steps, seeds, settings, longest = 400, 2, QUICK, 1000
    found: dict[str, Any] = {"task": TASK, "action_repeat": repeat, "steps": steps, "seeds": seeds, "settings": settings}
    for method in METHODS:
        found[method] = {"steps": steps} | trained(method, args.out / method, steps, seeds, repeat, settings)
    found["uniform"] = {"steps": longest, "first_visit": first_visits(by_chance(seeds, longest, repeat))}
    command = f"python experiments/exploring_by_imagination.py --seeds {seeds} --steps {steps} --action-repeat {repeat}"
    found["environment"] = environment(command)
    picture, numbers = (args.out / f"exploring-by-imagination.{kind}" for kind in ("png", "json"))
    draw(found, picture)
    numbers.write_text(json.dumps(found, indent=1) + "\n")
    print(f"{table(found)}\npicture  {picture}\nnumbers  {numbers}")
    return found


if __name__ == "__main__":
    main()
