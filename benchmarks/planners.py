"""Planners in the true simulator: returns of model-predictive control from fixed start states, and the time of a plan.

    python benchmarks/planners.py pendulum [--episodes 100] [--only ilqr ...] [--out results.json]

Each planner of `SETTINGS` plays the same episodes. Reported are the mean return, the mean of the 5% worst episodes, and the
median time of a plan from one state, warm-started, without the first, which compiles.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

import jax
import numpy as np
from measure import report, seconds

from jaxmbrl import envs
from jaxmbrl.algorithms.shooting import pets
from jaxmbrl.planning import GradientConfig, ICEMConfig, ILQRConfig, PlannerConfig, make, make_problem
from jaxmbrl.planning.cem import CEMConfig
from jaxmbrl.training import evaluation

SETTINGS: dict[str, PlannerConfig] = {
    "cem": PlannerConfig("cem", cem=CEMConfig(horizon=20, population=100, elites=10, iterations=4)),
    "icem": PlannerConfig("icem", icem=ICEMConfig(horizon=20, population=60, elites=20, iterations=2, deviation=0.7)),
    "ilqr": PlannerConfig("ilqr"),
    "ilqr-1": PlannerConfig("ilqr", ilqr=ILQRConfig(samples=0)),
    "gradient": PlannerConfig("gradient", gradient=GradientConfig(horizon=20)),
    "gradient-cem": PlannerConfig("gradient", gradient=GradientConfig(horizon=20, iterations=5, cem_iterations=2)),
}
"""CEM and iCEM have the settings of the preset `small` of PETS."""


def result(name: str, config: PlannerConfig, episodes: int, repeats: int = 30) -> dict[str, float]:
    """Figures of one planner on the task `name`."""
    task = envs.make(name)
    algorithm = pets.make(pets.Config(model="true", planner=config, particles=1), task)
    state = jax.tree.map(lambda leaf: leaf[None], algorithm.init(jax.random.key(0), {}, None))
    returns = np.asarray(jax.jit(lambda state: evaluation.evaluate(algorithm, task, state, episodes))(state), np.float64)

    planner = make(config, task.action)
    step = jax.jit(task.env.step)
    plan = jax.jit(lambda start, memory, key: planner.plan(make_problem(task.world, start, task.action), memory, key))
    start, memory, times = task.env.reset(jax.random.key(0)), planner.init(), []
    for i in range(repeats):
        made: list = []
        key = jax.random.key(i)
        times.append(seconds(lambda s=start, m=memory, k=key, made=made: made.append(plan(s, m, k)) or made[0]))
        actions, memory, _ = made[0]
        start = step(start, actions[0])
    worst = np.sort(returns.ravel())[: max(1, returns.size // 20)]
    return {
        "return": float(returns.mean()),
        "worst 5%": float(worst.mean()),
        "seconds a plan": statistics.median(times[1:]),
        "plans a second": 1 / statistics.median(times[1:]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task")
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--only", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    tables = {name: result(args.task, SETTINGS[name], args.episodes) for name in args.only}
    report(tables, args.out)


if __name__ == "__main__":
    main()
