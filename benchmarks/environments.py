"""Environment steps per second of Gymnasium's MuJoCo tasks: ours on MJX, Gymnasium's vector environments, and the batch
rollout of C MuJoCo, all on the same machine.

    python benchmarks/environments.py [--tasks Hopper-v5 ...] [--batches 1 64 1024] [--seconds 2] [--out results.json]

- Ours is the program of the collector: one compiled loop with random actions and automatic resets. Its compile time, for
  the largest batch and without a cache, is reported separately.
- Gymnasium's are a `SyncVectorEnv` of 64 environments and an `AsyncVectorEnv` with twice as many environments as cores,
  with random actions. Cores are those that the process may use (`taskset` chooses them).
- C MuJoCo's is `mujoco.rollout` of 64 environments on all cores, with random controls, without resets after the start, and
  with neither observations nor rewards. It shows the cost of the physics alone.

All four are measured in the same run.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import mujoco
import mujoco.rollout
import numpy as np
from measure import report, seconds

from jaxmbrl import envs
from jaxmbrl.agents.exploration import uniform
from jaxmbrl.rollout import auto_reset, rollout

TASKS = [name for name in envs.names() if name.endswith("-v5")]
CORES = len(os.sched_getaffinity(0))
GYMNASIUM_BATCH = 64


def rate(run: Callable[[int], Any], steps: int, budget: float) -> float:
    """Steps per second of `run(n)`, which takes n times `steps` steps, in a call that takes about `budget` seconds."""
    seconds(lambda: run(1))
    once = max(seconds(lambda: run(1)), 1e-6)
    calls = max(1, round(budget / once))
    return calls * steps / seconds(lambda: run(calls))


def ours(name: str, batch: int, budget: float) -> tuple[float, float]:
    """(steps per second, seconds to compile) on MJX."""
    task = envs.make(name)
    world, policy = auto_reset(task.world, uniform(task.action))

    def run(key: Any, length: Any) -> Any:
        def one(key: Any) -> Any:
            start_key, memory_key, rollout_key = jax.random.split(key, 3)
            state = (world.reset(start_key), policy.init(memory_key))
            earned = rollout(world, policy, state, rollout_key, length, lambda sum, row, i: sum + row.reward, jnp.zeros(()))
            return earned[1]

        return jax.vmap(one)(jax.random.split(key, batch))

    key = jax.random.key(0)
    lowered = jax.jit(run).lower(key, jnp.ones((), jnp.int32))
    started = time.perf_counter()
    compiled = lowered.compile()
    compiling = time.perf_counter() - started
    return rate(lambda n: compiled(key, jnp.asarray(n, jnp.int32)), batch, budget), compiling


def vectorised(name: str, budget: float, processes: bool) -> float:
    """Steps per second of Gymnasium's vector environment."""
    env = envs.make(name).env
    number = 2 * CORES if processes else GYMNASIUM_BATCH
    many = gymnasium.make_vec(
        env.gymnasium_id,
        num_envs=number,
        vectorization_mode="async" if processes else "sync",
        vector_kwargs={"context": "spawn"} if processes else {},
        **env.gymnasium_options,
    )
    many.reset(seed=0)

    def run(calls: int) -> None:
        for _ in range(calls):
            many.step(many.action_space.sample())

    try:
        return rate(run, number, budget)
    finally:
        many.close()


def physics(name: str, budget: float) -> float:
    """Control steps per second of C MuJoCo's batch rollout, with Gymnasium's own model."""
    env = envs.make(name).env
    theirs = gymnasium.make(env.gymnasium_id, disable_env_checker=True, **env.gymnasium_options).unwrapped
    model = theirs.model
    data = [mujoco.MjData(model) for _ in range(CORES)]
    rng = np.random.default_rng(0)
    starts = []
    for seed in range(GYMNASIUM_BATCH):
        theirs.reset(seed=seed)
        starts.append(np.concatenate([[0.0], theirs.data.qpos, theirs.data.qvel]))
    low, high = model.actuator_ctrlrange.T

    def run(calls: int) -> None:
        control = np.repeat(rng.uniform(low, high, (GYMNASIUM_BATCH, calls, model.nu)), env.frame_skip, axis=1)
        mujoco.rollout.rollout(model, data, np.array(starts), control)

    return rate(run, GYMNASIUM_BATCH, budget)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=TASKS)
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 64, 1024])
    parser.add_argument("--seconds", type=float, default=2.0, help="seconds of each measurement")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    mujoco.set_mju_user_warning(lambda message: None)
    tables: dict[str, dict[str, float]] = {}
    for name in args.tasks:
        figures = {}
        for batch in args.batches:
            figures[f"steps/s, MJX, {batch:,}"], compiling = ours(name, batch, args.seconds)
        figures["seconds to compile"] = compiling
        figures[f"steps/s, Gymnasium, {GYMNASIUM_BATCH} in turn"] = vectorised(name, args.seconds, processes=False)
        figures[f"steps/s, Gymnasium, {2 * CORES} processes"] = vectorised(name, args.seconds, processes=True)
        figures["steps/s, C MuJoCo's rollout"] = physics(name, args.seconds)
        tables[name] = figures
        jax.clear_caches()
        report({name: figures}, None)
    if args.out is not None:
        report(tables, args.out)


if __name__ == "__main__":
    main()
