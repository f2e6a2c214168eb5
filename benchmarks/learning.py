"""Learning results: train several seeds, evaluate the deterministic policy on fixed start states, save mean, interquartile
mean and 95% bootstrap interval with command, commit, versions and machine.

    python benchmarks/learning.py CASE [--out benchmarks/results] [--runs runs]

CASE is one of those in CASES; `all` runs one after another. A case whose run folder exists is resumed.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from measure import provenance

import jaxmbrl
from jaxmbrl.agents.exploration import uniform
from jaxmbrl.training import evaluation, programs
from jaxmbrl.training.console import Progress


class Case(NamedTuple):
    """What to train, and how to judge it."""

    algorithm: str
    env: str
    steps: int
    seeds: int
    episodes: int
    goal: float | None
    """Mean return that a seed shall reach; None: all but a tenth of what the planner in the true simulator earns above a
    random policy, on the same start states."""
    goal_seeds: int
    """How many seeds shall reach it."""
    settings: dict[str, Any]
    preset: str | None = None
    """The task's own unless named."""


GAP = 0.1


CASES = {
    "pets-cartpole": Case("pets", "cartpole-continuous", 1000, 5, 10, 195.0, 4, {}),
    "pets-cartpole-learned": Case(
        "pets", "cartpole-continuous", 1000, 5, 10, 195.0, 3, {"learn_reward": True, "learn_termination": True}
    ),
    "pets-pendulum-learned": Case("pets", "pendulum", 2000, 4, 20, -200.0, 3, {"learn_reward": True}),
    "pets-pendulum": Case("pets", "pendulum", 2000, 4, 100, None, 4, {}),
    "pets-swingup": Case("pets", "cartpole-swingup", 1000, 4, 100, None, 4, {}),
    "icem-cartpole": Case("pets", "cartpole-continuous", 1000, 5, 10, 195.0, 4, {}, "small-icem"),
    "icem-pendulum": Case("pets", "pendulum", 2000, 4, 100, None, 4, {}, "small-icem"),
    # All but a tenth of what lies between a random policy, which falls after 5 steps, and the most that the task pays,
    # 1000: the planner in the true simulator cannot earn more, and would take hours.
    "pets-inverted-pendulum": Case("pets", "InvertedPendulum-v5", 2000, 4, 20, 901.0, 4, {}),
    "sac-pendulum": Case("sac", "pendulum", 20_000, 4, 100, -170.0, 4, {}),
    "mbpo-inverted-pendulum": Case("mbpo", "InvertedPendulum-v5", 4000, 4, 10, 1000.0, 4, {}),
    # The paper's settings: within these steps neither buffer is ever full, and branches have one step.
    "mbpo-hopper": Case(
        "mbpo", "Hopper-v5", 15_000, 4, 10, 300.0, 4, {"rollout_length.last": 1, "replay_capacity": 25_000}
    ),
    "mbpo-pendulum": Case("mbpo", "pendulum", 2000, 4, 100, -170.0, 4, {}),
    "dhmbpo-pendulum": Case("dhmbpo", "pendulum", 5000, 4, 100, -200.0, 4, {}),
    "dhmbpo-inverted-pendulum": Case("dhmbpo", "InvertedPendulum-v5", 5000, 4, 10, 1000.0, 4, {}),
    "dhmbpo-hopper": Case(
        "dhmbpo", "Hopper-v5", 25_000, 4, 10, 1000.0, 4, {"replay_capacity": 30_000, "ensemble.max_epochs": 40}
    ),
    "mve-pendulum": Case("mve", "pendulum", 5000, 4, 100, -200.0, 4, {}),
    "steve-pendulum": Case("steve", "pendulum", 5000, 4, 100, -200.0, 4, {}),
    "bptt-pendulum": Case("bptt", "pendulum", 5000, 4, 100, -200.0, 4, {}),
    "bptt-true-pendulum": Case("bptt", "pendulum", 1000, 4, 100, -200.0, 4, {"model": "true"}),
    "maac-pendulum": Case("maac", "pendulum", 5000, 4, 100, -200.0, 4, {}),
    "svg1-pendulum": Case("svg", "pendulum", 5000, 4, 100, -200.0, 4, {"horizon": 1, "noise": "inferred"}),
    "svg3-pendulum": Case("svg", "pendulum", 5000, 4, 100, -200.0, 4, {"horizon": 3}),
    "sac-pendulum-5000": Case("sac", "pendulum", 5000, 4, 100, -200.0, 0, {}),
    "maac-inverted-pendulum": Case("maac", "InvertedPendulum-v5", 5000, 4, 10, 1000.0, 4, {}),
    "redq-pendulum": Case("redq", "pendulum", 1600, 4, 100, -170.0, 4, {}),
    "droq-pendulum": Case("droq", "pendulum", 1600, 4, 100, -170.0, 4, {}),
    "td3-pendulum": Case("td3", "pendulum", 5000, 4, 100, -170.0, 4, {}),
    "ddpg-pendulum": Case("ddpg", "pendulum", 5000, 4, 100, -170.0, 4, {}),
    "sac-hopper": Case("sac", "Hopper-v5", 5000, 4, 10, 0.0, 0, {"warmup_steps": 1000, "eval_every": 0}),
}


def in_bfloat16(case: Case) -> Case:
    """The case with products between hidden layers in bfloat16, which shall reach the same goal."""
    parts = {"pets": ["ensemble"], "sac": ["agent"], "mbpo": ["ensemble", "agent"]}[case.algorithm]
    return case._replace(settings=case.settings | {f"{part}.precision": "bfloat16" for part in parts})


CASES |= {
    f"{name}-bfloat16": in_bfloat16(CASES[name])
    for name in ("pets-cartpole", "mbpo-pendulum", "mbpo-inverted-pendulum", "sac-pendulum")
}


def run(name: str, runs: Path, out: Path) -> None:
    case = CASES[name]
    folder = runs / name
    if folder.exists():
        result = jaxmbrl.resume(folder, progress=Progress(case.steps, case.seeds))
    else:
        result = jaxmbrl.train(
            case.algorithm,
            case.env,
            steps=case.steps,
            seeds=case.seeds,
            preset=case.preset,
            settings=case.settings,
            out=folder,
            progress=Progress(case.steps, case.seeds),
        )
    found = jaxmbrl.evaluate(folder, case.episodes)
    low, high = evaluation.bootstrap_interval(found.per_seed)
    bounds = limits(case) if case.goal is None else {}
    goal = bounds["oracle"] - GAP * (bounds["oracle"] - bounds["random"]) if case.goal is None else case.goal
    reached = sum(value >= goal for value in found.per_seed)
    summary = {
        "case": name,
        **case._asdict(),
        **bounds,
        "goal": goal,
        "per_seed": found.per_seed,
        "mean": found.mean,
        "iqm": found.iqm,
        "interval": [low, high],
        "seeds_at_goal": reached,
        "training_seconds": result.rows[-1]["wall_time"],
        "curve": [[row["env_steps"], row["seed"], row["train/return"]] for row in result.rows if "train/return" in row],
        **provenance(name),
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.json").write_text(json.dumps(summary, indent=1) + "\n")
    print(
        f"{name}: mean {found.mean:.1f}, IQM {found.iqm:.1f} [{low:.1f}, {high:.1f}], per seed "
        f"{', '.join(f'{x:.1f}' for x in found.per_seed)}; {reached} of {case.seeds} seeds at {goal:.1f} or better"
        + "".join(f"; {name} {value:.1f}" for name, value in bounds.items()),
        flush=True,
    )


def limits(case: Case) -> dict[str, float]:
    """Mean returns of the same planner in the true simulator and of a random policy, on the case's start states."""
    program = programs.build(programs.configure(case.algorithm, case.env, case.preset, {**case.settings, "model": "true"}))
    random = uniform(program.task.action)
    blind = program.algorithm._replace(policy=lambda state, explore: random, observes_full_state=False)
    found = {}
    for name, algorithm in (("oracle", program.algorithm), ("random", blind)):
        state = jax.tree.map(lambda leaf: leaf[None], program.algorithm.init(jax.random.key(0), {}))
        returns = jax.jit(lambda s, a=algorithm: evaluation.evaluate(a, program.task, s, case.episodes))(state)
        found[name] = float(np.mean(np.asarray(returns, np.float64)))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", choices=[*CASES, "all"])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--runs", type=Path, default=Path("runs/learning"))
    asked = parser.parse_args()
    for name in CASES if asked.case == "all" else [asked.case]:
        run(name, asked.runs, asked.out)


if __name__ == "__main__":
    main()
