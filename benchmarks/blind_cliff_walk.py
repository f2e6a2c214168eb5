"""Updates that Q-learning from memory needs on the blind cliff walk, by the way in which it chooses transitions.

The blind cliff walk (Schaul et al., arXiv 1511.05952, section 3.1) has n states in a row and two actions. The right action
leads on, the other one ends the episode; only the right action in the last state has a reward, 1, and ends it as well. The
memory has each transition of all 2^n sequences of n actions, 2^(n + 1) - 2 in total, so that few of them have the reward.
Values begin as N(0, 0.1), and move by a quarter of the TD error of one transition at a time; the discount is 1 - 1 / n. An
update is needed until the mean squared error of all values is below 0.001.

    uniform        a uniformly random transition
    proportional   by priority: `data.prioritized` with alpha 0.7, without importance weights
    greedy         the transition with the largest absolute error when it was last used

With priorities, each transition begins with the same one, 1.

    python benchmarks/blind_cliff_walk.py [--sizes 6 8 10] [--seeds 200] [--out results.json]

The exit code is 1 if proportional sampling needs more than a quarter of the updates of uniform sampling.
"""

from __future__ import annotations

import argparse
import statistics
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int
from measure import report

from jaxmbrl.agents import tables
from jaxmbrl.data import prioritized
from jaxmbrl.data.prioritized import Prioritized

KINDS = ("uniform", "proportional", "greedy")
STEP_SIZE, DEVIATION, CLOSE, LARGEST_SHARE = 0.25, 0.1, 1e-3, 0.25
ALPHA, MOST = 0.7, 1_000_000
"""Exponent of the priorities; number of updates after which a run is given up."""


class Step(NamedTuple):
    """A transition, with the fields that `agents.tables` reads. Action 1 is right."""

    state: Int[Array, "*N"]
    action: Int[Array, "*N"]
    reward: Float[Array, "*N"]
    next_observation: Int[Array, "*N"]
    terminated: Bool[Array, "*N"]


def memory(n: int) -> Step:
    """All transitions of all sequences of n actions: 2^(n - 1 - s) of each of the two actions in state s."""
    state = np.concatenate([np.full(2 ** (n - s), s) for s in range(n)])
    action = np.concatenate([np.arange(2 ** (n - s)) % 2 for s in range(n)])
    last = (state == n - 1) & (action == 1)
    ends = (action == 0) | last
    return Step(
        jnp.asarray(state, jnp.int32),
        jnp.asarray(action, jnp.int32),
        jnp.asarray(last, float),
        jnp.asarray(np.where(ends, 0, state + 1), jnp.int32),
        jnp.asarray(ends),
    )


def true_values(n: int) -> Float[np.ndarray, "n 2"]:
    """Q*: the discounted reward of going right to the end; 0 for the other action."""
    return np.stack([np.zeros(n), (1 - 1 / n) ** np.arange(n - 1, -1, -1)], axis=1)


@partial(jax.jit, static_argnums=(0, 1))
def updates_needed(kind: str, n: int, key: Any) -> Int[Array, ""]:
    """The number of updates of one run."""
    steps, due, discount = memory(n), jnp.asarray(true_values(n), float), 1 - 1 / n
    count = steps.state.shape[0]
    first_key, key = jax.random.split(key)
    # With the exponent 1 the leaves of the tree are the errors, which the greedy rule compares.
    held = prioritized.init(jnp.zeros((), jnp.int32), count, ALPHA if kind == "proportional" else 1.0)
    held = prioritized.add(held, jnp.arange(count, dtype=jnp.int32))

    def goes_on(at: tuple[Any, Prioritized, Any]) -> Any:
        q, _, number = at
        return (jnp.mean((q - due) ** 2) >= CLOSE) & (number < MOST)

    def update(at: tuple[Any, Prioritized, Any]) -> tuple[Any, Prioritized, Any]:
        q, held, number = at
        index = chosen(held, jax.random.fold_in(key, number))
        step = jax.tree.map(lambda x: x[index], steps)
        q, error = tables.update(q, STEP_SIZE, discount, step.state, step.action, step)
        if kind != "uniform":
            held = prioritized.update(held, index[None], error[None])
        return q, held, number + 1

    def chosen(held: Prioritized, key: Any) -> Int[Array, ""]:
        if kind == "uniform":
            return jax.random.randint(key, (), 0, count)
        if kind == "greedy":
            return jnp.argmax(held.tree[held.tree.shape[0] // 2 :][:count]).astype(jnp.int32)
        return prioritized.sample_slots(held, key, 1, 0.0)[0][0]

    q = DEVIATION * jax.random.normal(first_key, (n, 2))
    return jax.lax.while_loop(goes_on, update, (q, held, jnp.zeros((), jnp.int32)))[2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[6, 8, 10])
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    rows, missed = {}, []
    for n in args.sizes:
        row: dict[str, float] = {}
        for kind in KINDS:
            needed = [int(updates_needed(kind, n, jax.random.key(seed))) for seed in range(args.seeds)]
            row[kind] = float(statistics.median(needed))
        row["proportional / uniform"] = row["proportional"] / row["uniform"]
        rows[f"median number of updates, {n} states"] = row
        print(n, row, flush=True)
        if row["proportional / uniform"] > LARGEST_SHARE:
            missed.append(str(n))
    report(rows, args.out)
    if missed:
        raise SystemExit(f"proportional sampling needs more than a quarter of the updates with {', '.join(missed)} states")


if __name__ == "__main__":
    main()
