"""What demonstrations are worth on two tasks that random exploration hardly solves, and what bad ones cost.

In both mountain cars the engine is too weak for the hill, and nothing but the goal is rewarded. A scripted driver that
always pushes in the direction of the velocity reaches it. Ten of its episodes are written to a file of transitions, ten of
a random policy to another. Cases:

    alone           without demonstrations
    demonstrations  half of each batch are rows of the scripted driver (RLPD: Ball et al., arXiv 2302.02948)
    random          half of each batch are rows of the random policy

on `mountain-car-continuous` by SAC and by the preset `ddpgfd` of DDPG (Vecerik et al., arXiv 1707.08817), and on
`MountainCar-v0` by DQN and by its preset `dqfd` (Hester et al., arXiv 1704.03732). The two presets sample demonstrations by
priority. What bad demonstrations cost is shown where a method learns alone: on `pendulum` by SAC, which it solves.

    python experiments/demonstrations.py [--out FOLDER] [--only CASE ...] [--seeds 4] [--quick]

Writes the files of transitions, and `demonstrations.json` with command, commit, versions and machine. Cases that it has
already are kept, and each names its own commit.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxmbrl
from jaxmbrl import envs
from jaxmbrl.agents.exploration import uniform
from jaxmbrl.core.spaces import Discrete
from jaxmbrl.core.types import Action, Key, Memory, Observation, Policy, PyTree, Task, Transition
from jaxmbrl.data import dataset
from jaxmbrl.training.collecting import collect
from jaxmbrl.training.evaluation import interquartile_mean
from jaxmbrl.training.run_folder import environment

EPISODES = 10
EVALUATED = 20
"""Episodes of each evaluation."""


class Study(NamedTuple):
    """A method on a task, with demonstrations or without."""

    algorithm: str
    task: str
    steps: int
    driver: str | None = None
    """Whose rows are the demonstrations."""
    preset: str | None = None


CONTINUOUS, CHOICES = "mountain-car-continuous", "MountainCar-v0"
STUDIES = {
    "sac-alone": Study("sac", CONTINUOUS, 20_000),
    "sac-demonstrations": Study("sac", CONTINUOUS, 20_000, "scripted"),
    "ddpgfd-demonstrations": Study("ddpg", CONTINUOUS, 20_000, "scripted", "ddpgfd"),
    "dqn-alone": Study("dqn", CHOICES, 30_000),
    "dqn-demonstrations": Study("dqn", CHOICES, 30_000, "scripted"),
    "dqfd-demonstrations": Study("dqn", CHOICES, 30_000, "scripted", "dqfd"),
    "pendulum-alone": Study("sac", "pendulum", 10_000, None, "small"),
    "pendulum-random": Study("sac", "pendulum", 10_000, "random", "small"),
}


def scripted(task: Task) -> Policy:
    """The driver that pushes with full power in the direction of the velocity, forward at rest."""

    def act(memory: Memory, observation: Observation, key: Key) -> tuple[Action, PyTree, Memory]:
        forward = observation[1] >= 0
        if isinstance(task.action, Discrete):
            return jnp.where(forward, 2, 0).astype(jnp.int32), (), memory
        return jnp.where(forward, 1.0, -1.0)[None], (), memory

    return Policy(lambda key: (), act)


def episodes(task: Task, driver: str, number: int = EPISODES) -> Transition:
    """The rows of the first `number` episodes of a driver."""
    policy = scripted(task) if driver == "scripted" else uniform(task.action)
    rows = jax.device_get(collect(task, policy, number * task.episode_length))
    ends = np.flatnonzero(rows.terminated | rows.truncated)
    return jax.tree.map(lambda x: x[: ends[number - 1] + 1], rows)


def returns(rows: Transition) -> list[float]:
    """The return of each episode."""
    ends = np.flatnonzero(rows.terminated | rows.truncated) + 1
    return [float(part.sum()) for part in np.split(np.asarray(rows.reward, float), ends[:-1])]


def written(task: Task, driver: str, folder: Path) -> Path:
    """The file of the driver's episodes."""
    file = folder / f"{driver}-{task.name}.npz"
    if not file.exists():
        dataset.save(file, episodes(task, driver), task.name)
    return file


def run(study: Study, folder: Path, seeds: int, quick: bool) -> dict[str, Any]:
    """Train and evaluate; the returns of each seed."""
    task, found = envs.make(study.task), {}
    if study.driver is not None:
        file = written(task, study.driver, folder)
        found["demonstrated"] = returns(dataset.load(file).rows)
    steps = 200 if quick else study.steps
    settings: dict[str, Any] = {"epoch_steps": steps // 10, "eval_every": 1}
    if quick:
        settings |= {"agent.hidden": [8], "batch_size": 8, "warmup_steps": 100}
    result = jaxmbrl.train(
        study.algorithm,
        study.task,
        steps=steps,
        seeds=seeds,
        preset=study.preset,
        settings=settings,
        eval_episodes=2 if quick else EVALUATED,
        demonstrations=None if study.driver is None else file,
    )
    evaluated = [(row["env_steps"], row["seed"], row["eval/return"]) for row in result.rows if "eval/return" in row]
    last = [value for at, _, value in evaluated if at == steps]
    return found | {
        **study._asdict(),
        "preset": result.config.preset,
        "seeds": seeds,
        "per_seed": last,
        "iqm": interquartile_mean(last),
        "evaluations": evaluated,
        "seconds": result.rows[-1]["wall_time"],
    }


def line(name: str, case: dict[str, Any]) -> str:
    """A case as text."""
    shown = f"{name:<22}{case['iqm']:>9.1f}   per seed {', '.join(f'{x:.1f}' for x in case['per_seed'])}"
    given = case.get("demonstrated")
    return shown + (f"   demonstrated {np.mean(given):.1f}" if given else "")


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Run the cases, print them, and write the numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="by default runs/demonstrations, with --quick runs/demonstrations-quick")
    parser.add_argument("--only", nargs="+", choices=STUDIES, default=list(STUDIES), metavar="CASE")
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--quick", action="store_true", help="few steps and tiny networks (smoke test)")
    args = parser.parse_args(arguments)
    args.out = args.out or Path("runs/demonstrations-quick" if args.quick else "runs/demonstrations")
    args.out.mkdir(parents=True, exist_ok=True)
    numbers = args.out / "demonstrations.json"
    cases = json.loads(numbers.read_text())["cases"] if numbers.exists() else {}
    for name in args.only:
        if name not in cases:
            now = environment(f"python experiments/demonstrations.py --seeds {args.seeds}")
            cases[name] = run(STUDIES[name], args.out, args.seeds, args.quick) | {"commit": now.get("commit")}
            saved = {"cases": cases, "environment": now}
            numbers.write_text(json.dumps(saved, indent=1) + "\n")
        print(line(name, cases[name]), flush=True)
    return cases


if __name__ == "__main__":
    main()
