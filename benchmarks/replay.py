"""Speed of prioritized replay beside uniform replay, with a million rows, and its share of a SAC update.

    python benchmarks/replay.py [--rows 1000000] [--batch 256] [--repeats 9] [--out results.json]

Rows have the sizes of HalfCheetah-v5 (17 observations, 6 actions), and priorities over six orders of magnitude. A call
makes many draws, writes or updates in one scan, as training does; the fastest repeat counts, because other programs of a
machine only slow it down. A draw includes gathering the rows of the batch. A write sets the priorities of a batch. The
update is one of SAC with the default settings, 2 x 256 units, on a batch that is at hand. The exit code is 1 if a
prioritized draw and a write take more than 15% of it longer than a uniform draw.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from measure import report, seconds

from jaxmbrl.agents.actor_critic import sac
from jaxmbrl.core.types import Key, Transition
from jaxmbrl.data import prioritized, replay

OBSERVATION, ACTION = 17, 6
DRAWS, UPDATES = 500, 20
"""Draws or writes in a call; SAC updates in a call."""
LARGEST_SHARE = 0.15


def made_up(rows: int) -> Transition:
    """Rows of zeros."""
    none, numbers = jnp.zeros(rows, bool), jnp.zeros(rows)
    seen = jnp.zeros((rows, OBSERVATION))
    return Transition(seen, jnp.zeros((rows, ACTION)), numbers, seen, none, none)


def fastest(one: Callable[[Any, Key], Any], state: Any, number: int, repeats: int) -> float:
    """Seconds of one of `number` calls `state = one(state, key)` in a scan."""
    keys = jax.random.split(jax.random.key(0), number)
    run = jax.jit(lambda state: jax.lax.scan(lambda state, key: (one(state, key), None), state, keys)[0], donate_argnums=0)

    def go() -> Any:
        nonlocal state
        state = run(state)
        return state

    seconds(go)
    return min(seconds(go) for _ in range(repeats)) / number


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    n, repeats = args.batch, args.repeats
    plain = replay.of_rows(made_up(args.rows))
    errors = jnp.asarray(10 ** np.random.default_rng(0).uniform(-4, 2, args.rows), jnp.float32)
    empty = prioritized.init(jax.tree.map(lambda x: x[0], plain.data), args.rows)
    filled = jax.jit(lambda held: prioritized.add(held, plain.data))(empty)
    held = jax.jit(lambda held: prioritized.update(held, jnp.arange(args.rows), errors))(filled)
    slots = jax.random.randint(jax.random.key(1), (n,), 0, args.rows)

    def summed(rows: Transition) -> Any:
        # All of the rows are used, so that all are gathered.
        return sum(jnp.sum(leaf, dtype=jnp.float32) for leaf in jax.tree.leaves(rows))

    def uniform_draw(total: Any, key: Key) -> Any:
        return total + summed(replay.sample(plain, key, n))

    def draw(total: Any, key: Key) -> Any:
        rows, _, weight = prioritized.sample(held, key, n, 0.4)
        return total + summed(rows) + jnp.sum(weight)

    def write(priorities: Any, key: Key) -> Any:
        error = jax.random.uniform(key, (n,))
        moved = (slots + jax.random.randint(key, (), 0, args.rows)) % args.rows
        return prioritized.without_rows(prioritized.update(prioritized.with_rows(held, priorities), moved, error))

    agent = sac.make(sac.SACConfig(), OBSERVATION, ACTION)
    batch = jax.tree.map(lambda x: x[:n], plain.data)
    start = jax.jit(lambda key: agent.init(key, {}))(jax.random.key(0))
    taken = {
        "uniform draw": fastest(uniform_draw, jnp.zeros(()), DRAWS, repeats),
        "prioritized draw": fastest(draw, jnp.zeros(()), DRAWS, repeats),
        "write": fastest(write, jax.tree.map(jnp.copy, prioritized.without_rows(held)), DRAWS, repeats),
        "SAC update": fastest(lambda state, key: agent.update(state, batch, key)[0], start, UPDATES, repeats),
    }
    extra = taken["prioritized draw"] + taken["write"] - taken["uniform draw"]
    share = extra / taken["SAC update"]
    found = {f"{name}s a second": 1 / value for name, value in taken.items()}
    found |= {f"microseconds of a {name}": 1e6 * value for name, value in taken.items()}
    report({f"replay, {args.rows:,} rows, batch {n}": found | {"extra share of a SAC update": share}}, args.out)
    if share > LARGEST_SHARE:
        raise SystemExit(f"prioritized replay takes {share:.0%} of a SAC update more than uniform replay")


if __name__ == "__main__":
    main()
