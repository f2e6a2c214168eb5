"""Measure the returns by which scores are normalised (`training.scores`) on tasks for which D4RL has none.

    python benchmarks/references.py [--tasks pendulum ...] [--out FOLDER]

The random return is the mean of 1,000 episodes of uniformly random actions. The expert is SAC at the end of its learning
goal, or the largest possible return of the task. Tasks that are not measured again keep their numbers.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from readme import MOST, RESULTS

from jaxmbrl import envs
from jaxmbrl.agents.exploration import uniform
from jaxmbrl.core.types import Algorithm
from jaxmbrl.training import evaluation
from jaxmbrl.training.run_folder import environment

OF_GYMNASIUM = ("CartPole-v1", "InvertedPendulum-v5")
TASKS = ("pendulum", "cartpole-continuous", *OF_GYMNASIUM)
EPISODES = 1000


def random_returns(name: str) -> np.ndarray:
    """Returns [EPISODES] of uniformly random actions: of Gymnasium's tasks in Gymnasium, of ours on the start states of
    evaluations."""
    if name in OF_GYMNASIUM:
        env = gymnasium.make(name)
        env.action_space.seed(0)
        return np.array([episode(env, seed) for seed in range(EPISODES)])
    task = envs.make(name)
    blind = Algorithm(lambda *_: (), lambda *_: uniform(task.action), lambda *_: ((), {}), 1)
    found = jax.jit(lambda unused: evaluation.evaluate(blind, task, unused, EPISODES))(jnp.zeros(1))
    return np.asarray(found[0], np.float64)


def episode(env: gymnasium.Env, seed: int) -> float:
    """The return of an episode of random actions."""
    env.reset(seed=seed)
    total, ended = 0.0, False
    while not ended:
        _, reward, terminated, truncated, _ = env.step(env.action_space.sample())
        total, ended = total + float(reward), terminated or truncated
    return total


def expert_of(name: str) -> tuple[float, str]:
    """(the expert's return, what it is)."""
    if name in MOST:
        return float(MOST[name]), "the largest possible return"
    return float(json.loads((RESULTS / f"sac-{name}.json").read_text())["mean"]), f"the mean return of sac-{name}.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    file = args.out / "score-references.json"
    found: dict[str, Any] = json.loads(file.read_text())["results"] if file.exists() else {}
    for name in args.tasks:
        returns, (expert, what) = random_returns(name), expert_of(name)
        error = float(returns.std(ddof=1) / np.sqrt(EPISODES))
        found[name] = {"random": float(returns.mean()), "standard error": error, "expert": expert, "expert is": what}
        print(f"{name}: random {returns.mean():.2f} (standard error {error:.2f}), expert {expert:.2f}, {what}", flush=True)
    command = "python benchmarks/references.py"
    written = {"episodes": EPISODES, "results": found, "environment": environment(command)}
    file.write_text(json.dumps(written, indent=1) + "\n")


if __name__ == "__main__":
    main()
