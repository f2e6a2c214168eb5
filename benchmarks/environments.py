"""Environment steps a second of Gymnasium's MuJoCo tasks: ours on MJX, Gymnasium's vector environments, C MuJoCo's batch
rollout, all on the same device's host.

    python benchmarks/environments.py [--tasks Hopper-v5 ...] [--batches 1 64 1024] [--seconds 2] [--out results.json]

Ours is the collector's own program: random actions, every episode's end reset, one compiled loop. Its compile time,
of the largest batch and without any cache, is told apart. Gymnasium's are `SyncVectorEnv` of 64 and `AsyncVectorEnv`
of twice the cores, with random actions. Cores are those that the process may use (`taskset` chooses). C MuJoCo's is
`mujoco.rollout` of 64 on all cores, random controls, from resets on and without any more, with neither observations
nor rewards: what bare physics costs. The four stand side by side in one run.
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
    """Steps a second of `run(n)`, which takes n times `steps` steps, in a call that takes about `budget` seconds."""
    seconds(lambda: run(1))
    once = max(seconds(lambda: run(1)), 1e-6)
    calls = max(1, round(budget / once))
    return calls * steps / seconds(lambda: run(calls))


def ours(name: str, batch: int, budget: float) -> tuple[float, float]:
    """(steps a second, seconds to compile) on MJX."""
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
    """Steps a second of Gymnasium's vector environment."""
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
    """Control steps a second of C MuJoCo's batch rollout, with Gymnasium's own model."""
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
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    mujoco.set_mju_user_warning(lambda message: None)
    tables: dict[str, dict[str, float]] = {}
    for name in asked.tasks:
        figures = {}
        for batch in asked.batches:
            figures[f"steps/s, MJX, {batch:,}"], compiling = ours(name, batch, asked.seconds)
        figures["seconds to compile"] = compiling
        figures[f"steps/s, Gymnasium, {GYMNASIUM_BATCH} in turn"] = vectorised(name, asked.seconds, processes=False)
        figures[f"steps/s, Gymnasium, {2 * CORES} processes"] = vectorised(name, asked.seconds, processes=True)
        figures["steps/s, C MuJoCo's rollout"] = physics(name, asked.seconds)
        tables[name] = figures
        jax.clear_caches()
        report({name: figures}, None)
    if asked.out is not None:
        report(tables, asked.out)


if __name__ == "__main__":
    main()
