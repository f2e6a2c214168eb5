"""Speed of the probabilistic ensemble: imagined rollouts of a planner's population, and gradient steps of a fit.

Each figure is also given as a share of the matrix-product peak (2048 cubed, float32), measured in turn with it in the same
process; all are medians over the repeats.

    python benchmarks/ensemble.py [--repeats 7] [--out results.json]
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxmbrl.models import EnsembleConfig, ensemble
from jaxmbrl.rollout import Return, open_loop, planned_return, rollout
from jaxmbrl.types import Key, Transition

SIDE = 2048


def flops_per_row(config: EnsembleConfig, inputs: int, outputs: int) -> int:
    """Multiplications and additions of the layers' products for one row of one member."""
    sizes = [inputs, *config.hidden, outputs]
    return sum(2 * a * b for a, b in itertools.pairwise(sizes))


def seconds(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(function())
    return time.perf_counter() - start


def peak() -> Callable[[], float]:
    """A measurement of the peak, in floating-point operations a second."""
    square = jax.random.normal(jax.random.key(0), (SIDE, SIDE))
    product = jax.jit(lambda a: jnp.matmul(a, a, precision="highest"))
    return lambda: 2 * SIDE**3 / min(seconds(lambda: product(square)) for _ in range(3))


def population(candidates: int, particles: int, horizon: int) -> tuple[Callable[[], Any], int]:
    """One pass of a planner's population through 5 elites of 7 members, on a task of cartpole's size."""
    config = EnsembleConfig(members=7, elites=5)
    size, action_size = 4, 1
    model = ensemble.make(
        config, size, action_size, lambda o, a, n: -jnp.sum(n**2, -1), lambda n: jnp.zeros(n.shape[:-1], bool)
    )

    def score(state: Any, actions: Any, key: Key) -> Any:
        world = model.world(state)

        def plan(sequence: Any) -> Any:
            policy = open_loop(sequence)
            begin = world.start(jnp.zeros((particles, size)), key), policy.init(key)
            zero = Return.zero((particles,))
            return rollout(world, policy, begin, key, horizon, planned_return, zero)[1].total.mean()

        return jax.vmap(plan)(actions)

    state = model.init(jax.random.key(0), {})
    actions = jax.random.uniform(jax.random.key(1), (candidates, horizon, action_size), minval=-1.0, maxval=1.0)
    run = jax.jit(score)
    work = candidates * particles * horizon * flops_per_row(config, size + action_size, 2 * size)
    return lambda: run(state, actions, jax.random.key(2)), work


def fitting(rows: int, epochs: int) -> tuple[Callable[[], Any], int, int]:
    """A fit of 7 members at batch 256 on a task of HalfCheetah's size, with its operations and its gradient steps."""
    config = EnsembleConfig(
        members=7,
        elites=7,
        batch_size=256,
        holdout_fraction=0.0,
        max_epochs=epochs,
        weight_decay=(2.5e-5, 5e-5, 7.5e-5, 7.5e-5, 1e-4),
    )
    size, action_size = 17, 6
    model = ensemble.make(config, size, action_size, None, lambda n: jnp.zeros(n.shape[:-1], bool))
    keys = jax.random.split(jax.random.key(0), 5)
    observation = jax.random.normal(keys[0], (rows, size))
    data = Transition(
        observation=observation,
        action=jax.random.uniform(keys[1], (rows, action_size), minval=-1.0, maxval=1.0),
        reward=jax.random.normal(keys[2], (rows,)),
        next_observation=observation + 0.1 * jax.random.normal(keys[3], (rows, size)),
        terminated=jnp.zeros(rows, bool),
        truncated=jnp.zeros(rows, bool),
    )
    state = model.init(keys[4], {})
    run = jax.jit(model.fit)
    steps = epochs * -(-rows // config.batch_size)
    forward = flops_per_row(config, size + action_size, 2 * (size + 1))
    work = 3 * forward * config.members * config.batch_size * steps
    return lambda: run(state, data, jnp.asarray(rows), jax.random.key(1)), work, steps


def measure(run: Callable[[], Any], work: int, repeats: int) -> tuple[float, float]:
    """(seconds, share of the peak), after a first call that compiles."""
    run_peak = peak()
    run_peak()
    seconds(run)
    times, shares = [], []
    for _ in range(repeats):
        before, duration, after = run_peak(), seconds(run), run_peak()
        times.append(duration)
        shares.append(work / duration / ((before + after) / 2))
    return statistics.median(times), statistics.median(shares)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--candidates", type=int, default=350)
    parser.add_argument("--particles", type=int, default=20)
    parser.add_argument("--horizon", type=int, default=15)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--out", type=Path, help="write the figures here, as JSON")
    options = parser.parse_args()

    run, work = population(options.candidates, options.particles, options.horizon)
    pass_seconds, pass_share = measure(run, work, options.repeats)
    run, work, steps = fitting(options.rows, epochs=2)
    fit_seconds, fit_share = measure(run, work, options.repeats)

    shape = f"{options.candidates} x {options.particles} x {options.horizon}"
    print(f"{'what':44s} {'figure':>22s} {'share of peak':>14s}")
    print(f"{'population pass, 4 x 200, ' + shape:44s} {pass_seconds * 1e3:>19.1f} ms {pass_share:>14.2f}")
    print(f"{'fit, 7 x 4 x 200, batch 256':44s} {steps / fit_seconds:>12.1f} updates/s {fit_share:>14.2f}")
    if options.out is not None:
        figures = {
            "population_pass": {"shape": shape, "seconds": pass_seconds, "share_of_peak": pass_share},
            "fit": {"updates_per_second": steps / fit_seconds, "share_of_peak": fit_share},
            "machine": {"device": str(jax.devices()[0]), "processor": platform.machine(), "jax": jax.__version__},
        }
        options.out.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
