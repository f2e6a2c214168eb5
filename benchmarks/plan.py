"""Speed of one full-size plan of PETS through its policy: 350 candidates x 20 particles x 15 steps x 5 iterations, 5 elites
of 7 members, 4 x 200 hidden units, trajectory sampling, learned reward and termination, and full CEM.

    python benchmarks/plan.py [--repeats 9] [--out results.json]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
from ensemble import flops_per_row
from measure import measure, report

from jaxmbrl.algorithms.shooting import pets
from jaxmbrl.envs import make
from jaxmbrl.models import EnsembleConfig
from jaxmbrl.planning import PlannerConfig
from jaxmbrl.planning.cem import CEMConfig
from jaxmbrl.training.loop import clock_at


def planning() -> tuple[Callable[[], Any], int, int]:
    """(a plan, its floating-point operations, its number of model evaluations)."""
    config = pets.Config(
        ensemble=EnsembleConfig(members=7, elites=5, hidden=(200, 200, 200, 200)),
        # A variance of 0 is never reached, so every plan runs all iterations.
        planner=PlannerConfig(cem=CEMConfig(horizon=15, population=350, elites=35, iterations=5, min_variance=0.0)),
        particles=20,
        learn_reward=True,
        learn_termination=True,
        replay_capacity=1000,
    )
    task = make("cartpole-continuous")
    algorithm = pets.make(config, task)
    state = jax.jit(lambda key: algorithm.init(key, {}))(jax.random.key(0))
    observation = task.env.reset(jax.random.key(1)).obs

    @partial(jax.jit, compiler_options=dict(algorithm.compiler_options))
    def plan(state: pets.State, key: jax.Array) -> jax.Array:
        policy = algorithm.policy(state, clock_at(config.warmup_steps), True)
        return policy.act(policy.init(key), observation, key)[0]

    planner = config.planner.cem
    evaluations = planner.population * config.particles * planner.horizon * planner.iterations
    # Inputs: observation, action. Outputs: mean and log-variance of change and reward. Then next observation -> logit.
    dynamics = flops_per_row(config.ensemble.hidden, 4 + 1, 2 * (4 + 1))
    flops = evaluations * (dynamics + flops_per_row(config.ensemble.termination_hidden, 4, 1))
    key = jax.random.key(2)
    return lambda: plan(state, key), flops, evaluations


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    run, flops, evaluations = planning()
    figures = measure(run, flops, args.repeats)
    figures["model evaluations a second"] = evaluations / figures["seconds"]
    report({"one plan of PETS, 350 x 20 x 15 x 5, 5 of 7 members, 4 x 200": figures}, args.out)


if __name__ == "__main__":
    main()
