"""Speed of Dyna-Q with thousands of seeds in one program, beside a loop in plain Python, and of whole runs of small methods
with a thousand seeds.

    python benchmarks/tabular.py [--seeds 256 1024 4096] [--updates 50] [--repeats 7] [--out results.json]
    python benchmarks/tabular.py --runs 1000 [--out results.json]

Runs the training loop itself: acting, resets, the model, metrics and the check for finite values are included. An update is
one change of Q(s, a), of a real step or of planning; their number is counted over all seeds. The fastest repeat counts,
because other programs of a machine only slow it down. A core second is a second of CPU time of one core: it does not count
the time in which other programs had the core.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from measure import Training, report

from jaxmbrl import envs
from jaxmbrl.algorithms.tabular import dyna_q
from jaxmbrl.envs.tabular.mazes import DYNA, maze_mdp
from jaxmbrl.training import loop, programs

RUNS = (
    ("q-learning", "CliffWalking"),
    ("dyna-q", "dyna-maze"),
    ("reinforce", "cartpole-continuous"),
    ("a2c", "cartpole-continuous"),
)
"""Methods and tasks of whole runs, each with the preset of the task."""
RUN_SECONDS = 10.0
"""Wall-clock time for which a run is measured, after its first epoch, if it is not shorter."""
WORK = 4_000_000
"""Updates in a repeat, about."""


def compiled(seeds: int, n: int, repeats: int) -> dict[str, float]:
    """Speed of the training loop with `seeds` seeds and `n` planning updates a step."""
    task, config = envs.make("dyna-maze"), dyna_q.Config(planning_updates=n)
    made = loop.make(dyna_q.make(config, task), task, config)
    run = jax.jit(made.run, donate_argnums=1)
    steps = max(1, WORK // (seeds * (1 + n)))
    at = (loop.clock_at(0), jax.jit(made.init)(jnp.arange(seeds), {}))

    def go() -> None:
        nonlocal at
        at = jax.block_until_ready(run(*at, jnp.asarray(steps, jnp.int32)))

    go()
    found = fastest(go, seeds * steps, n, repeats)
    made_updates = int(np.asarray(at[1].algorithm.updates, np.int64).sum())
    assert made_updates == seeds * steps * (1 + n) * (1 + repeats)
    return found


def fastest(go: Callable[[], None], steps: int, n: int, repeats: int) -> dict[str, float]:
    """Speeds of the fastest call of `go`, which takes `steps` environment steps with 1 + n updates each."""
    wall, cpu = [], []
    for _ in range(repeats):
        begun = time.perf_counter(), time.process_time()
        go()
        wall.append(time.perf_counter() - begun[0])
        cpu.append(time.process_time() - begun[1])
    return {
        "updates a second": steps * (1 + n) / min(wall),
        "updates a core second": steps * (1 + n) / min(cpu),
        "environment steps a second": steps / min(wall),
    }


def run(method: str, env: str, seeds: int) -> dict[str, float]:
    """Speed and memory of the training program of a run with `seeds` seeds, without evaluations and the run's folder. CPU
    time is that of all cores together; the time of all seeds follows from the speed if the run is longer."""
    program = programs.build(programs.configure(method, env, seeds=seeds))
    training = Training(program)
    training.advance(program.epoch_steps)
    begun, cpu, steps = time.perf_counter(), time.process_time(), program.epoch_steps
    while steps < program.total_steps and (steps == program.epoch_steps or time.perf_counter() - begun < RUN_SECONDS):
        training.advance(program.epoch_steps)
        steps += program.epoch_steps
    wall, cpu, made = time.perf_counter() - begun, time.process_time() - cpu, steps - program.epoch_steps
    return {
        "environment steps of each seed": program.total_steps,
        "environment steps a second": seeds * made / wall,
        "environment steps a core second": seeds * made / cpu,
        "seeds a second": seeds * made / wall / program.total_steps,
        "seeds a core second": seeds * made / cpu / program.total_steps,
    } | {f"MB, {name}": megabytes for name, megabytes in training.megabytes().items()}


def in_python(n: int, repeats: int, steps: int = 2000) -> dict[str, float]:
    """The same of one seed, with lists and dictionaries."""
    process = maze_mdp(DYNA)
    successors, rewards, ends = (
        table[..., 0].tolist() for table in (process.successors, process.rewards, process.terminated)
    )
    start, alpha, discount, epsilon = 18, 0.1, 0.95, 0.1

    def run() -> None:
        q = [[0.0] * 4 for _ in successors]
        model: dict[int, dict[int, tuple[float, int, bool]]] = {}
        visited: list[int] = []
        state = start
        for _ in range(steps):
            values = q[state]
            largest = max(values)
            explores = random.random() < epsilon
            action = random.randrange(4) if explores else random.choice([a for a in range(4) if values[a] == largest])
            after, reward, end = successors[state][action], rewards[state][action], ends[state][action]
            values[action] += alpha * (reward + (0.0 if end else discount * max(q[after])) - values[action])
            if state not in model:
                model[state] = {}
                visited.append(state)
            model[state][action] = (reward, after, end)
            for _ in range(n):
                s = random.choice(visited)
                a = random.choice(list(model[s]))
                r, following, d = model[s][a]
                q[s][a] += alpha * (r + (0.0 if d else discount * max(q[following])) - q[s][a])
            state = start if end else after

    return fastest(run, steps, n, repeats)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[256, 1024, 4096])
    parser.add_argument("--updates", type=int, nargs="+", default=[5, 50], help="planning updates a step")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--runs", type=int, metavar="N", help="measure whole runs with N seeds instead")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    tables = {}
    for method, env in RUNS if args.runs else ():
        tables[f"{method} on {env}, {args.runs:,} seeds"] = run(method, env, args.runs)
    for n in () if args.runs else args.updates:
        tables[f"Dyna-Q, n = {n}, in plain Python"] = in_python(n, args.repeats)
        for seeds in args.seeds:
            tables[f"Dyna-Q, n = {n}, {seeds:,} seeds in one program"] = compiled(seeds, n, args.repeats)
    report(tables, args.out, *(("--runs", str(args.runs)) if args.runs else ()))


if __name__ == "__main__":
    main()
