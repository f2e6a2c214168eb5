"""Policies distilled into small networks: what DAgger adds to behaviour cloning, and how much faster the students act.

Two experts, four seeds each: PETS on `cartpole-continuous`, a planner (iCEM with few candidates and small networks, after
600 steps), and SAC on `pendulum`, a network. Each is imitated by students of 2 x 16 units, from 400 and 1,000 labels a
round:

    dagger    the expert acts in the first round, the student in the others; the expert labels all states (Ross et al.,
              arXiv 1011.0686)
    cloning   the expert acts in all rounds: as many labels, all on its own states

The picture shows the return of the students after each round. The table has returns on 100 start states, the numbers of
parameters, and the actions a second of one policy on one observation at a time.

    python experiments/distillation.py [--out FOLDER] [--only pets sac] [--seeds 4] [--rounds 5] [--quick]

Experts and students are run folders in the folder of the study; those that exist are resumed. Writes `distillation.png` and
`distillation.json` with command, commit, versions and machine.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import jaxmbrl
from jaxmbrl.core.types import PyTree
from jaxmbrl.training.run_folder import RunFolder, environment, new_figure, write_figure

COLORS = {"dagger": "#c1440e", "cloning": "#0b3d91"}
KINDS: dict[str, dict[str, Any]] = {"dagger": {"beta_rounds": 1}, "cloning": {"beta_rounds": None}}
"""Settings of the students."""
EPISODES = 100


class Study(NamedTuple):
    """An expert and the part of its state that acts."""

    algorithm: str
    task: str
    preset: str
    steps: int
    """Environment steps of the expert."""
    settings: dict[str, Any]
    """Changes to its preset."""
    round_steps: int
    """Labels of each seed in a round."""
    episodes: int
    """Episodes of the expert's evaluation: a planner's are slow."""
    parameters: Callable[[PyTree], PyTree]
    quick: dict[str, Any]
    """Settings of a smoke test."""


STUDIES = {
    "pets": Study(
        "pets",
        "cartpole-continuous",
        "small-icem",
        600,
        {
            "ensemble.hidden": [32, 32],
            "planner.icem.population": 40,
            "planner.icem.horizon": 15,
            "particles": 5,
            "refit_every": 200,
        },
        400,
        10,
        lambda state: state.model.members.params.network,
        {
            "ensemble.hidden": [8],
            "ensemble.max_epochs": 2,
            "planner.icem.population": 10,
            "planner.icem.elites": 2,
            "planner.icem.horizon": 2,
            "particles": 5,
            "warmup_steps": 50,
            "epoch_steps": 50,
        },
    ),
    "sac": Study(
        "sac",
        "pendulum",
        "small",
        15_000,
        {},
        1000,
        EPISODES,
        lambda state: state.agent.actor.params,
        {"agent.hidden": [8], "warmup_steps": 50, "epoch_steps": 100, "eval_every": 0},
    ),
}


def numbers_of(parameters: PyTree) -> int:
    """The number of parameters of one seed, from those of all seeds."""
    return sum(leaf[0].size for leaf in jax.tree.leaves(parameters))


def actions_per_second(folder: Path, seconds: float) -> float:
    """Actions a second of the first seed's policy, one observation at a time, each with the memory of the last."""
    policy, state, task = jaxmbrl.load(folder)
    acting = policy(jax.tree.map(lambda leaf: leaf[0], state))
    act = jax.jit(acting.act)
    key = jax.random.key(0)
    observation, memory = task.world.observe(task.world.reset(key)), acting.init(key)
    _, _, memory = jax.block_until_ready(act(memory, observation, key))
    started, number = time.monotonic(), 0
    while time.monotonic() - started < seconds:
        _, _, memory = jax.block_until_ready(act(memory, observation, key))
        number += 1
    return number / (time.monotonic() - started)


def run(name: str, out: Path, seeds: int, rounds: int, quick: bool) -> dict[str, Any]:
    """Train an expert and its students; the numbers."""
    study, folder = STUDIES[name], out / name
    settings = study.quick if quick else study.settings
    if (folder / "expert").exists():
        expert = jaxmbrl.resume(folder / "expert")
    else:
        expert = jaxmbrl.train(
            study.algorithm,
            study.task,
            seeds=seeds,
            preset=study.preset,
            steps=100 if quick else study.steps,
            settings=settings,
            out=folder / "expert",
        )
    of_expert = jaxmbrl.evaluate(expert, 2 if quick else study.episodes)
    found: dict[str, Any] = {
        "expert": {
            "per_seed": of_expert.per_seed,
            "parameters": numbers_of(study.parameters(expert.state)),
            "actions a second": actions_per_second(folder / "expert", 0.2 if quick else 10.0),
        }
    }
    length = 50 if quick else study.round_steps
    for kind, changes in KINDS.items():
        place = folder / kind
        changed = {"round_steps": length, "epoch_steps": length, **changes, **({"updates": 5} if quick else {})}
        if place.exists():
            student = jaxmbrl.resume(place)
        else:
            student = jaxmbrl.distill(
                folder / "expert",
                settings=changed,
                seeds=seeds,
                steps=rounds * length,
                eval_episodes=2 if quick else 20,
                out=place,
            )
        rows = RunFolder.open(place).read_metrics()
        steps = sorted({row["env_steps"] for row in rows})
        evaluated = jaxmbrl.evaluate(student, 2 if quick else EPISODES)
        found[kind] = {
            "labels": steps,
            "returns": [[row["eval/return"] for row in rows if row["env_steps"] == step] for step in steps],
            "loss before": [[row["student/loss_before"] for row in rows if row["env_steps"] == step] for step in steps],
            "per_seed": evaluated.per_seed,
            "iqm": evaluated.iqm,
            "parameters": numbers_of(student.state.student.network.params),
            "actions a second": actions_per_second(place, 0.2 if quick else 3.0),
            "seconds": rows[-1]["wall_time"],
        }
    return found


def draw(cases: dict[str, Any], file: Path) -> None:
    """Draw the returns of students after each round, with those of their experts."""
    figure = new_figure(4.5 * len(cases), 3.4)
    for axes, (name, found) in zip(np.atleast_1d(figure.subplots(1, len(cases))), cases.items(), strict=True):
        for kind, color in COLORS.items():
            returns = np.array(found[kind]["returns"])
            axes.plot(found[kind]["labels"], returns.mean(axis=1), color=color, marker="o", label=kind)
            axes.fill_between(
                found[kind]["labels"], returns.min(axis=1), returns.max(axis=1), color=color, alpha=0.15, linewidth=0
            )
        axes.axhline(np.mean(found["expert"]["per_seed"]), color="0.4", linestyle="--", label="expert")
        axes.set_title(f"{STUDIES[name].algorithm} on {STUDIES[name].task}", fontsize=10)
        axes.set_xlabel("labels of each seed")
        axes.set_ylabel("return: mean and range of the seeds")
        axes.legend(frameon=False, fontsize=8, loc="lower right")
        axes.spines[["top", "right"]].set_visible(False)
    write_figure(file, figure)


def table(cases: dict[str, Any]) -> list[str]:
    """The numbers as lines."""
    lines = [f"{'':<16}{'return':>9}{'parameters':>12}{'actions / s':>13}   per seed"]
    for name, found in cases.items():
        for kind, of in found.items():
            seeds = ", ".join(f"{x:.1f}" for x in of["per_seed"])
            mean = np.mean(of["per_seed"])
            lines.append(
                f"{name + ' ' + kind:<16}{mean:>9.1f}{of['parameters']:>12,}{of['actions a second']:>13,.0f}   {seeds}"
            )
    return lines


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Run the studies, print the table, and write the picture and the numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="by default runs/distillation, with --quick runs/distillation-quick")
    parser.add_argument("--only", nargs="+", choices=STUDIES, default=list(STUDIES))
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="tiny experts and two short rounds (smoke test)")
    args = parser.parse_args(arguments)
    args.out = args.out or Path("runs/distillation-quick" if args.quick else "runs/distillation")
    args.out.mkdir(parents=True, exist_ok=True)
    numbers, rounds = args.out / "distillation.json", 2 if args.quick else args.rounds
    cases = json.loads(numbers.read_text())["cases"] if numbers.exists() else {}
    for name in args.only:
        cases[name] = run(name, args.out, args.seeds, rounds, args.quick)
        saved = environment(f"python experiments/distillation.py --seeds {args.seeds} --rounds {rounds}")
        numbers.write_text(json.dumps({"cases": cases, "environment": saved}, indent=1) + "\n")
    draw(cases, args.out / "distillation.png")
    print("\n".join(table(cases)), flush=True)
    return cases


if __name__ == "__main__":
    main()
