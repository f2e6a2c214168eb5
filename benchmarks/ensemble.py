"""Speed of the probabilistic ensemble: imagined rollouts of a planner's population, and gradient steps of a fit.

Each result is also given as a share of the peak of matrix products (2048 x 2048, float32), which is measured alternately
with it in the same process. All results are medians over the repeats.

    python benchmarks/ensemble.py [--repeats 7] [--out results.json]
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from measure import measure, report

from jaxmbrl.core import xla
from jaxmbrl.core.types import Key, Transition
from jaxmbrl.data import replay
from jaxmbrl.models import EnsembleConfig, ensemble
from jaxmbrl.rollout import Return, open_loop, planned_return, rollout

OBSERVATION, ACTION = 17, 6
"""Sizes of HalfCheetah."""


def flops_per_row(hidden: tuple[int, ...], inputs: int, outputs: int) -> int:
    """Multiplications and additions in the matrix products of the layers, for one row and one member."""
    sizes = [inputs, *hidden, outputs]
    return sum(2 * a * b for a, b in itertools.pairwise(sizes))


def rows_of(number: int) -> Transition:
    """Random transitions with the sizes of HalfCheetah."""
    keys = jax.random.split(jax.random.key(0), 4)
    observation = jax.random.normal(keys[0], (number, OBSERVATION))
    return Transition(
        observation=observation,
        action=jax.random.uniform(keys[1], (number, ACTION), minval=-1.0, maxval=1.0),
        reward=jax.random.normal(keys[2], (number,)),
        next_observation=observation + 0.1 * jax.random.normal(keys[3], (number, OBSERVATION)),
        terminated=jnp.zeros(number, bool),
        truncated=jnp.zeros(number, bool),
    )


def population(candidates: int, particles: int, horizon: int) -> tuple[Callable[[], Any], int]:
    """One pass of a planner's population through 5 elites of 7 members, on a task with the sizes of cartpole."""
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
    run = jax.jit(score, compiler_options=dict(xla.for_ensembles()))
    work = candidates * particles * horizon * flops_per_row(config.hidden, size + action_size, 2 * size)
    return lambda: run(state, actions, jax.random.key(2)), work


def fitting(rows: int, epochs: int, members: int = 7) -> tuple[Callable[[], Any], int, int]:
    """(a fit of all members with batches of 256 on a task with the sizes of HalfCheetah, its floating-point operations, its
    gradient steps)."""
    config = EnsembleConfig(
        members=members,
        elites=members,
        batch_size=256,
        holdout_fraction=0.0,
        max_epochs=epochs,
        weight_decay=(2.5e-5, 5e-5, 7.5e-5, 7.5e-5, 1e-4),
    )
    model = ensemble.make(config, OBSERVATION, ACTION, None, lambda n: jnp.zeros(n.shape[:-1], bool))
    data, state = replay.of_rows(rows_of(rows)), model.init(jax.random.key(2), {})
    run = jax.jit(model.fit, compiler_options=dict(xla.for_ensembles()))
    steps = epochs * -(-rows // config.batch_size)
    forward = flops_per_row(config.hidden, OBSERVATION + ACTION, 2 * (OBSERVATION + 1))
    work = 3 * forward * config.members * config.batch_size * steps
    return lambda: run(state, data, jax.random.key(1)), work, steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--candidates", type=int, default=350)
    parser.add_argument("--particles", type=int, default=20)
    parser.add_argument("--horizon", type=int, default=15)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--out", type=Path, help="write the results here, as JSON")
    options = parser.parse_args()

    shape = f"{options.candidates} x {options.particles} x {options.horizon}"
    run, work = population(options.candidates, options.particles, options.horizon)
    one_pass = measure(run, work, options.repeats)
    run, work, steps = fitting(options.rows, epochs=2)
    fit = measure(run, work, options.repeats)
    fit["updates a second"] = steps / fit["seconds"]
    title = f"population pass, 5 of 7 members, 4 x 200, {shape}"
    report({title: one_pass, "fit, 7 x 4 x 200, batch 256": fit}, options.out)


if __name__ == "__main__":
    main()
