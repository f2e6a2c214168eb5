"""Growth of time and memory with seeds, environments, members, horizon, population, batch, buffer and observation size.

    python benchmarks/growth.py [--axes seeds batch ...] [--full] [--out results.json] [--figure growth.png]

Each axis varies one number of a small run and keeps the others. Measured are the seconds of one unit of work (given in the
title), the megabytes of state and working memory, and the exponents of their growth over the upper half of the sizes (0 is
constant, 1 is linear). `--full` includes larger sizes.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
from ensemble import fitting
from measure import Training, report, seconds, slope

from jaxmbrl.agents.actor_critic import sac as soft
from jaxmbrl.agents.actor_critic.updates import updates
from jaxmbrl.core.types import Transition
from jaxmbrl.training import programs

Measured = tuple[float, dict[str, float]]
"""(seconds of a unit of work, megabytes by name)."""


class Axis(NamedTuple):
    """A number that is varied."""

    unit: str
    """The timed unit of work."""
    sizes: tuple[int, ...]
    more: tuple[int, ...]
    """Further sizes with `--full`."""
    at: Callable[[int], Measured]


SAC = {"agent.hidden": (64, 64), "batch_size": 64, "warmup_steps": 64, "replay_capacity": 10_000, "epoch_steps": 64}
PETS = {
    "ensemble.hidden": (64, 64, 64),
    "ensemble.max_epochs": 1,
    "planner.cem.horizon": 15,
    "planner.cem.population": 100,
    "planner.cem.min_variance": 0.0,
    "particles": 10,
    "refit_every": 10,
    "warmup_steps": 50,
    "epoch_steps": 50,
    "replay_capacity": 1000,
}
REPEATS = 3


def run_of(algorithm: str, env: str, settings: dict[str, Any], steps: int, seeds: int = 1) -> Measured:
    """Seconds of `steps` environment steps after the warm-up, and memory."""
    training = Training(programs.build(programs.configure(algorithm, env, settings=settings, seeds=seeds)))
    training.advance(training.program.config.settings.warmup_steps)
    training.advance(steps)
    return statistics.median(training.advance(steps) for _ in range(REPEATS)), training.megabytes()


def of_seeds(number: int) -> Measured:
    return run_of("sac", "pendulum", SAC, 64, seeds=number)


def of_environments(number: int) -> Measured:
    steps = 4 * number
    settings = SAC | {"num_envs": number, "warmup_steps": steps, "epoch_steps": steps, "updates_per_step": 1}
    return run_of("sac", "pendulum", settings, steps)


def of_batch(rows: int) -> Measured:
    return run_of("sac", "pendulum", SAC | {"batch_size": rows}, 64)


def of_buffer(rows: int) -> Measured:
    return run_of("sac", "pendulum", SAC | {"replay_capacity": rows}, 64)


def of_horizon(steps: int) -> Measured:
    return run_of("pets", "cartpole-continuous", PETS | {"planner.cem.horizon": steps}, 10)


def of_population(candidates: int) -> Measured:
    return run_of("pets", "cartpole-continuous", PETS | {"planner.cem.population": candidates}, 10)


def of_members(number: int) -> Measured:
    run, _, _ = fitting(2048, 2, number)
    seconds(run)
    return statistics.median(seconds(run) for _ in range(REPEATS)), {}


def of_observation(size: int) -> Measured:
    agent = soft.make(soft.SACConfig(hidden=(64, 64)), size, 4)
    keys = jax.random.split(jax.random.key(0), 3)
    observation = jax.random.normal(keys[0], (64, size))
    batch = Transition(observation, jnp.zeros((64, 4)), jnp.ones(64), observation, jnp.zeros(64, bool), jnp.zeros(64, bool))
    run = jax.jit(lambda state, key: updates(agent, state, lambda key: batch, key, 64)[0])
    state = agent.init(keys[1], {})
    seconds(lambda: run(state, keys[2]))
    return statistics.median(seconds(lambda: run(state, keys[2])) for _ in range(REPEATS)), {}


AXES = {
    "seeds": Axis("64 steps and updates of SAC", (1, 2, 4, 8, 16, 32), (64,), of_seeds),
    "environments": Axis("4 steps of each, an update for each step", (1, 4, 16, 64), (256, 1024), of_environments),
    "batch": Axis("64 updates of SAC", (32, 64, 128, 256, 512), (1024, 2048, 4096), of_batch),
    "buffer": Axis("64 steps and updates of SAC", (1000, 10_000, 100_000, 1_000_000), (4_000_000,), of_buffer),
    "horizon": Axis("10 plans by CEM", (5, 10, 20, 40), (80, 160), of_horizon),
    "population": Axis("10 plans by CEM", (50, 100, 200, 400), (800, 1600), of_population),
    "members": Axis("16 steps of a fit, 4 x 200", (1, 2, 4, 8), (16, 32), of_members),
    "observation": Axis("64 updates of SAC", (4, 16, 64, 256), (1024, 4096), of_observation),
}


def draw(found: dict[str, dict[int, Measured]], path: Path) -> None:
    """Plot seconds, and megabytes if known, against each axis, on logarithmic scales, with a line of slope 1."""
    figure, axes = plt.subplots(2, 4, figsize=(15, 7), layout="constrained")
    for plot, (name, measured) in zip(axes.flat, found.items(), strict=False):
        sizes, times = list(measured), [time for time, _ in measured.values()]
        plot.loglog(sizes, times, "o-", label=f"seconds, slope {slope(sizes, times):.2f}")
        memory = [sum(megabytes.values()) for _, megabytes in measured.values()]
        if all(memory):
            plot.loglog(sizes, memory, "s--", label=f"MB, slope {slope(sizes, memory):.2f}")
        plot.loglog(sizes, [times[-1] * size / sizes[-1] for size in sizes], ":", color="gray", label="linear")
        plot.set(title=AXES[name].unit, xlabel=name, ylabel="seconds; MB")
        plot.set_xticks(sizes, [f"{size:,}" for size in sizes])
        plot.set_xticks([], minor=True)
        plot.legend()
    for plot in axes.flat[len(found) :]:
        plot.set_visible(False)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--axes", nargs="+", choices=AXES, default=list(AXES))
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--figure", type=Path)
    args = parser.parse_args()
    found: dict[str, dict[int, Measured]] = {}
    tables = {}
    for name in args.axes:
        axis = AXES[name]
        sizes = axis.sizes + (axis.more if args.full else ())
        found[name] = {}
        for size in sizes:
            print(f"{name} {size} ...", flush=True)
            found[name][size] = axis.at(size)
        times = [time for time, _ in found[name].values()]
        tables[f"{name}: {axis.unit}"] = {f"seconds at {size}": time for size, time in zip(sizes, times, strict=True)} | {
            "exponent of seconds": slope(list(sizes), times)
        }
        if all(megabytes for _, megabytes in found[name].values()):
            whole = [sum(megabytes.values()) for _, megabytes in found[name].values()]
            tables[f"{name}: memory"] = {f"MB at {size}": x for size, x in zip(sizes, whole, strict=True)} | {
                "exponent of MB": slope(list(sizes), whole)
            }
    report(tables, args.out)
    if args.figure is not None:
        draw(found, args.figure)


if __name__ == "__main__":
    main()
