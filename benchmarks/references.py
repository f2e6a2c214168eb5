"""Measure the returns by which scores are normalised (`training.scores`) on tasks for which D4RL has none.

    python benchmarks/references.py [--out FOLDER]

The random return is the mean of 1,000 episodes of uniformly random actions. The expert is SAC at the end of its
learning goal, or the largest possible return of the task.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from readme import MOST, RESULTS

from jaxmbrl import envs
from jaxmbrl.agents.exploration import uniform
from jaxmbrl.core.types import Algorithm
from jaxmbrl.training import evaluation
from jaxmbrl.training.run_folder import environment

TASKS = ("pendulum", "cartpole-continuous", "InvertedPendulum-v5", "CartPole-v1")
EPISODES = 1000


def random_returns(name: str) -> np.ndarray:
    """Returns [EPISODES] of uniformly random actions on the start states of evaluations."""
    task = envs.make(name)
    blind = Algorithm(lambda *_: (), lambda *_: uniform(task.action), lambda *_: ((), {}), 1)
    found = jax.jit(lambda unused: evaluation.evaluate(blind, task, unused, EPISODES))(jnp.zeros(1))
    return np.asarray(found[0], np.float64)


def expert_of(name: str) -> tuple[float, str]:
    """(the expert's return, what it is)."""
    if name in MOST:
        return float(MOST[name]), "the largest possible return"
    return float(json.loads((RESULTS / f"sac-{name}.json").read_text())["mean"]), f"the mean return of sac-{name}.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    found: dict[str, Any] = {}
    for name in TASKS:
        returns, (expert, what) = random_returns(name), expert_of(name)
        error = float(returns.std(ddof=1) / np.sqrt(EPISODES))
        found[name] = {"random": float(returns.mean()), "standard error": error, "expert": expert, "expert is": what}
        print(f"{name}: random {returns.mean():.2f} (standard error {error:.2f}), expert {expert:.2f}, {what}", flush=True)
    command = "python benchmarks/references.py"
    written = {"episodes": EPISODES, "results": found, "environment": environment(command)}
    (args.out / "score-references.json").write_text(json.dumps(written, indent=1) + "\n")


if __name__ == "__main__":
    main()
