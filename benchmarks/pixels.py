"""Images that are drawn in a second, and what observing them costs a task.

    python benchmarks/pixels.py [--tasks pendulum ...] [--sizes 32 64] [--batch 64] [--seconds 3] [--out results.json]
    python benchmarks/pixels.py --picture docs/figures/pixels.png

Drawn are the states of a batch in one compiled program, in colour and in grey. The steps are those of a collector with
random actions and automatic resets, of the plain task and of the task that is observed as images, of which each step draws
two: the successor, and the observation after a reset. The fastest of ten measurements counts. With `--picture` nothing is
measured: some tasks are drawn. Steps of MuJoCo tasks are not measured.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from environments import rate
from measure import report
from PIL import Image

from jaxmbrl import envs
from jaxmbrl.agents.exploration import uniform
from jaxmbrl.core.types import Task
from jaxmbrl.rollout import auto_reset, rollout

REPEATS = 10
KEPT = 8
"""Steps whose observations are kept."""
EDGE = ((2, 2), (2, 2), (0, 0))
TASKS = ["pendulum", "cartpole-swingup", "reacher-2d", "dyna-maze", "Hopper-v5"]


def drawn(name: str, size: int, grey: bool, batch: int, budget: float) -> float:
    """Images per second of a batch of reset states."""
    task = envs.pixels(name, size, grey)
    carries = jax.jit(jax.vmap(task.world.reset))(jax.random.split(jax.random.key(0), batch))

    @jax.jit
    def run(carries: Any, times: Any) -> Any:
        def again(i: Any, total: Any) -> Any:
            # The images depend on the loop, so that they are drawn each time.
            moved = jax.tree.map(lambda x: x + 1e-3 * i if jnp.issubdtype(x.dtype, jnp.floating) else (x + i) % 40, carries)
            return total + jax.vmap(task.world.observe)(moved).astype(jnp.int32)

        return jax.lax.fori_loop(0, times, again, jnp.zeros((batch, *task.observation.shape), jnp.int32))

    return fastest(lambda n: run(carries, jnp.asarray(n, jnp.int32)), batch, budget)


def stepped(task: Task, batch: int, budget: float) -> float:
    """Environment steps per second of the collector. Each step's observations are kept in turn, as a buffer does."""
    world, policy = auto_reset(task.world, uniform(task.action))

    def fold(kept: Any, row: Any, i: Any) -> Any:
        return kept.at[i % KEPT].set(jnp.stack([row.observation, row.next_observation]))

    @jax.jit
    def run(key: Any, length: Any) -> Any:
        def one(key: Any) -> Any:
            start_key, memory_key, rollout_key = jax.random.split(key, 3)
            start = (world.reset(start_key), policy.init(memory_key))
            none = jnp.zeros((KEPT, 2, *task.observation.shape), task.observation.zeros().dtype)
            return rollout(world, policy, start, rollout_key, length, fold, none)[1]

        return jax.vmap(one)(jax.random.split(key, batch))

    key = jax.random.key(0)
    return fastest(lambda n: run(key, jnp.asarray(n, jnp.int32)), batch, budget)


def fastest(run: Callable[[int], Any], steps: int, budget: float) -> float:
    """The largest of some rates, because other programs of a machine only slow a program down."""
    return max(rate(run, steps, budget / REPEATS) for _ in range(REPEATS))


def picture(out: Path) -> None:
    """Images of some tasks with 64 x 64 pixels, those of the last row in grey and with 32 x 32."""
    plain = [
        ("pendulum", "cartpole-swingup", "reacher-2d", "Acrobot-v1", "MountainCar-v0", "dyna-maze"),
        ("Hopper-v5", "HalfCheetah-v5", "Walker2d-v5", "Ant-v5", "Humanoid-v5", "bsuite/Catch"),
    ]
    rows = []
    for size, grey, names in [(64, False, plain[0]), (64, False, plain[1]), (32, True, plain[0])]:
        images = [
            np.asarray(shown(name, size, grey)).repeat(128 // size, axis=0).repeat(128 // size, axis=1) for name in names
        ]
        framed = [np.pad(np.broadcast_to(x, (*x.shape[:2], 3)), EDGE, constant_values=128) for x in images]
        rows.append(np.concatenate(framed, axis=1))
    Image.fromarray(np.concatenate(rows)).save(out, optimize=True)


def shown(name: str, size: int, grey: bool) -> Any:
    """An image of a task after 15 random steps, or of a MuJoCo task at the start, where no step has to be compiled."""
    task = envs.pixels(name, size, grey)

    @jax.jit
    def after(key: Any) -> Any:
        carry = task.world.reset(key)
        for step_key in jax.random.split(key, 0 if name.endswith("-v5") else 15):
            carry, _ = task.world.step(carry, task.action.sample(step_key), step_key)
        return task.world.observe(carry)

    return after(jax.random.key(4))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=TASKS)
    parser.add_argument("--sizes", nargs="+", type=int, default=[32, 64])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=3.0, help="seconds of each measurement")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--picture", type=Path, help="draw some tasks to this file instead")
    args = parser.parse_args()
    if args.picture is not None:
        picture(args.picture)
        return
    tables: dict[str, dict[str, float]] = {}
    for name in args.tasks:
        # The simulator takes nearly all the time of a step of MuJoCo (`environments.py`).
        steps = not name.endswith("-v5")
        figures = {"steps/s, not drawn": stepped(envs.make(name), args.batch, args.seconds)} if steps else {}
        for size in args.sizes:
            for grey in (False, True):
                what = f"{size} x {size}{', grey' if grey else ''}"
                figures[f"images/s, {what}"] = drawn(name, size, grey, args.batch, args.seconds)
            if steps:
                figures[f"steps/s, {size} x {size}"] = stepped(envs.pixels(name, size), args.batch, args.seconds)
        tables[name] = figures
        jax.clear_caches()
        report({name: figures}, None)
    if args.out is not None:
        report(tables, args.out)


if __name__ == "__main__":
    main()
