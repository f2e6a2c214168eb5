"""Speed of latent world models: updates a second of Dreamer, and the time of an environment step with its belief.

An update is one step of the optimiser on model, actor and critic: windows are filtered, trajectories imagined. Its speed is
also given as a share of the peak of matrix products (2048 x 2048, float32), which is measured alternately with it. Only the
operations of matrix products count. All results are medians over the repeats.

    python benchmarks/latent.py [--cases small small-pixels size1m] [--repeats 5] [--out results.json]
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, NamedTuple

import jax
from measure import matmul_operations, measure, onward, report, seconds

from jaxmbrl.rollout import auto_reset, rollout
from jaxmbrl.training import loop, programs

STEPS = 200
"""Environment steps of a measurement."""


class Case(NamedTuple):
    """What is measured."""

    title: str
    method: str
    task: str
    preset: str
    calls: int
    """Calls of `learn` in a measurement."""


CASES = {
    "small": Case("small, through the model", "dreamer", "pendulum", "small", 20),
    "small-discrete": Case("small, by log-probabilities", "dreamer", "CartPole-v1", "small", 20),
    "small-pixels": Case("small, images of 32 x 32 in grey", "dreamer", "pixels/32,grey/pendulum", "small", 20),
    "size1m": Case("size1m", "dreamer", "dmc/cartpole-swingup", "size1m", 1),
}


def measured(case: Case, repeats: int) -> dict[str, float]:
    """Updates and environment steps of a case, one seed."""
    changes = {"replay_capacity": 20_000}
    program = programs.build(programs.configure(case.method, case.task, case.preset, changes))
    algorithm, task, config = program.algorithm, program.task, program.config.settings
    state = jax.jit(lambda key: algorithm.init(key, {}, None))(jax.random.key(0))
    clock = loop.clock_at(1_000_000)

    def collected(state: Any, steps: int, environments: int) -> Any:
        world, policy = auto_reset(task.world, algorithm.policy(state, clock, True))

        def one(key: Any) -> Any:
            start_key, memory_key, key = jax.random.split(key, 3)
            return rollout(world, policy, (world.reset(start_key), policy.init(memory_key)), key, steps)[1]

        return jax.vmap(one, out_axes=1)(jax.random.split(jax.random.key(1), environments))

    play = jax.jit(lambda state: collected(state, STEPS, 1))
    seconds(lambda: play(state))
    step = sorted(seconds(lambda: play(state)) for _ in range(repeats))[repeats // 2] / STEPS

    rows = jax.jit(lambda state: collected(state, algorithm.period, config.num_envs))(state)
    enough = -(-config.sequence_length // algorithm.period) + 1

    def several(state: Any, calls: int) -> Any:
        return jax.lax.fori_loop(0, calls, lambda i, state: algorithm.learn(clock, state, rows)[0], state)

    state = jax.jit(several, static_argnums=1)(state, enough)
    work = matmul_operations(lambda state: algorithm.learn(clock, state, rows), state, steps=config.updates)
    run = jax.jit(lambda state: several(state, case.calls), donate_argnums=0)
    found = measure(onward(run, state), case.calls * work, repeats)
    updates = case.calls * config.updates
    return found | {
        "updates a second": updates / found["seconds"],
        "ms per update": 1e3 * found["seconds"] / updates,
        "GFLOP per update": work / config.updates / 1e9,
        "ms per environment step": 1e3 * step,
        "windows of a batch": config.batch_size,
        "rows of a window": config.sequence_length,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES), metavar="CASE")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, help="write the results here, as JSON")
    options = parser.parse_args()
    report({CASES[name].title: measured(CASES[name], options.repeats) for name in options.cases}, options.out)


if __name__ == "__main__":
    main()
