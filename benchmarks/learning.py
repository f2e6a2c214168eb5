"""Learning results: train several seeds, evaluate the deterministic policy on fixed start states, and save the mean, the
interquartile mean and its 95% bootstrap interval, with command, commit, versions and machine.

    python benchmarks/learning.py NAME [--out benchmarks/results] [--runs runs/learning]

The cases are the goals in the records of the methods (`algorithms.Goal`). NAME is the name of a case, or of a method, which
stands for its first case; `all` runs all cases. A case is resumed if its run folder exists. The exit code is 1 if fewer
seeds reach a goal than it requires.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
from measure import provenance

import jaxmbrl
from jaxmbrl import algorithms
from jaxmbrl.agents.exploration import uniform
from jaxmbrl.algorithms import Goal
from jaxmbrl.data import dataset
from jaxmbrl.training import collecting, evaluation, programs
from jaxmbrl.training.console import Progress
from jaxmbrl.training.session import Result

GAP = 0.1
"""A goal without a number is to close the gap between a random policy and a planner in the true simulator, except for this
share."""


CASES = {goal.name: (method, goal) for method, card in algorithms.cards().items() for goal in card.goals}
"""Case -> (method, goal)."""


def run(name: str, runs: Path, out: Path) -> bool:
    """Train, evaluate and save one case; returns whether enough seeds reached its goal."""
    method, goal = CASES[name]
    expert = trained(*CASES[goal.expert], runs / goal.expert).path if goal.expert else None
    folder = runs / name
    result = trained(method, goal, folder, expert)
    found = jaxmbrl.evaluate(folder, goal.episodes)
    low, high = evaluation.bootstrap_interval(found.per_seed)
    bounds = limits(method, goal) if goal.at_least is None else {}
    at_least = bounds["oracle"] - GAP * (bounds["oracle"] - bounds["random"]) if bounds else goal.at_least
    evaluations = [[row["env_steps"], row["seed"], row["eval/return"]] for row in result.rows if "eval/return" in row]
    best = [max(value for _, of, value in evaluations if of == seed) for seed in range(goal.seeds)] if goal.best else []
    reached = sum(value >= at_least for value in best or found.per_seed)
    summary = {
        "case": name,
        **described(method, goal),
        **bounds,
        "goal": at_least,
        "per_seed": found.per_seed,
        **({"best_per_seed": best, "evaluations": evaluations} if goal.best else {}),
        "mean": found.mean,
        "iqm": found.iqm,
        "interval": [low, high],
        "seeds_at_goal": reached,
        "training_seconds": result.rows[-1]["wall_time"],
        "curve": [[row["env_steps"], row["seed"], row["train/return"]] for row in result.rows if "train/return" in row],
        **provenance(name),
    }
    out.mkdir(parents=True, exist_ok=True)
    text = re.sub(r"\[[^][{}]*]", lambda row: " ".join(row[0].split()), json.dumps(summary, indent=1))
    (out / f"{name}.json").write_text(text + "\n")
    print(
        f"{name}: mean {found.mean:.1f}, IQM {found.iqm:.1f} [{low:.1f}, {high:.1f}], per seed "
        f"{', '.join(f'{x:.1f}' for x in found.per_seed)}; "
        + (f"best evaluation {', '.join(f'{x:.1f}' for x in best)}; " if best else "")
        + f"{reached} of {goal.seeds} seeds at {at_least:.1f} or better"
        + "".join(f"; {name} {value:.1f}" for name, value in bounds.items()),
        flush=True,
    )
    return reached >= goal.seeds_at_goal


def trained(method: str, goal: Goal, folder: Path, expert: Path | None = None) -> Result:
    """The run of a goal in `folder`, resumed if it exists. It imitates the run `expert` if that is given."""
    jax.config.update("jax_enable_x64", algorithms.get(method).needs_float64 or goal.float64)
    if folder.exists():
        return jaxmbrl.resume(folder, progress=Progress(goal.steps, goal.seeds))
    return jaxmbrl.train(
        method,
        goal.task,
        steps=goal.steps,
        seeds=goal.seeds,
        preset=goal.preset,
        settings=dict(goal.settings),
        data=recorded(goal, folder.with_suffix(".npz")) if goal.data else None,
        out=folder,
        progress=Progress(goal.steps, goal.seeds),
        expert=expert,
        action_repeat=goal.action_repeat,
    )


def recorded(goal: Goal, file: Path) -> Path:
    """The file of the goal's transitions. A missing file is written, by a policy that is trained now."""
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        policy = "random"
        if goal.behaviour:
            policy = str(file.parent / f"{goal.behaviour}-{goal.task}")
            if not Path(policy).exists():
                jaxmbrl.train(goal.behaviour, goal.task, out=policy)
        rows, task = collecting.collect_by(goal.task, policy, goal.data)
        dataset.save(file, rows, task.name)
    return file


def described(method: str, goal: Goal) -> dict[str, Any]:
    """The entries of the case in its results file, without the goal's return. How many seeds must reach it is in the record
    of the method only."""
    return {
        "algorithm": method,
        "env": goal.task,
        "steps": goal.steps,
        "seeds": goal.seeds,
        "episodes": goal.episodes,
        "settings": dict(goal.settings),
        "preset": goal.preset,
        **({"data": goal.data} if goal.data else {}),
        **({"behaviour": goal.behaviour} if goal.behaviour else {}),
        **({"expert": goal.expert} if goal.expert else {}),
        **({"action_repeat": goal.action_repeat} if goal.action_repeat > 1 else {}),
    }


def limits(method: str, goal: Goal) -> dict[str, float]:
    """Mean returns, on the start states of the case, of the same planner in the true simulator and of a random policy."""
    program = programs.build(programs.configure(method, goal.task, goal.preset, {**goal.settings, "model": "true"}))
    random = uniform(program.task.action)
    blind = program.algorithm._replace(policy=lambda state, *_: random, observes_full_state=False)
    found = {}
    for name, algorithm in (("oracle", program.algorithm), ("random", blind)):
        state = jax.tree.map(lambda leaf: leaf[None], program.algorithm.init(jax.random.key(0), {}, None))
        returns = jax.jit(lambda s, a=algorithm: evaluation.evaluate(a, program.task, s, goal.episodes))(state)
        found[name] = float(np.mean(np.asarray(returns, np.float64)))
    return found


def named(name: str) -> list[str]:
    """The cases that NAME stands for."""
    cards = algorithms.cards()
    return list(CASES) if name == "all" else [cards[name].goals[0].name] if name in cards else [name]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [*CASES, *(name for name, card in algorithms.cards().items() if card.goals), "all"]
    parser.add_argument("name", choices=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--runs", type=Path, default=Path("runs/learning"))
    args = parser.parse_args()
    missed = [name for name in named(args.name) if not run(name, args.runs, args.out)]
    if missed:
        raise SystemExit(f"too few seeds reached the goal of {', '.join(missed)}")


if __name__ == "__main__":
    main()
