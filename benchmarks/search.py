"""Speed of tree search: the wrapper over environments, as a policy is, beside mctx alone on a batch, with the same network.

    python benchmarks/search.py [--pairs 40] [--out benchmarks/results]

Both do the same number of searches of Gumbel MuZero with the networks of MuZero's small preset on CartPole-v1. They are
timed in turn, so that a change of the machine's load concerns both; the ratio is the median over pairs.
"""

from __future__ import annotations

import argparse
import functools
import json
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import mctx
import numpy as np
from measure import provenance

from jaxmbrl import algorithms, envs
from jaxmbrl.algorithms.search import muzero
from jaxmbrl.distributions import ScalarHead
from jaxmbrl.planning import tree_search

BATCH = 32


def programs() -> tuple[Any, Any, int]:
    """(our searches, mctx's searches, simulations), each compiled for keys of 32 observations -> visits [32, A]."""
    task, config = envs.make("CartPole-v1"), algorithms.get("muzero").presets["small"].config
    head = ScalarHead(config.value_support)
    networks = muzero.make_networks(config, task, task.action.n, head)
    params = networks.init(jax.random.key(0))
    search = tree_search.make(config.search)

    def ours(observations: jax.Array, key: jax.Array) -> jax.Array:
        model = muzero.search_model(networks, head, params, jnp.asarray(config.discount))
        policy = tree_search.searching_policy(search, model, lambda o, key: networks.represent(params, o), True)
        return jax.vmap(lambda o, k: policy.act((), o, k)[1].visits)(observations, jax.random.split(key, BATCH))

    def predicted(latent: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits, value = networks.predict(params, latent)
        return logits, head.mean(value)

    def recurrent(_: Any, key: jax.Array, action: jax.Array, latent: jax.Array) -> Any:
        reward, latent = jax.vmap(functools.partial(networks.dynamics, params))(latent, action)
        logits, value = predicted(latent)
        reward = head.mean(reward)
        discount = jnp.full_like(reward, config.discount)
        return mctx.RecurrentFnOutput(reward=reward, discount=discount, prior_logits=logits, value=value), latent

    def alone(observations: jax.Array, key: jax.Array) -> jax.Array:
        latent = networks.represent(params, observations)
        logits, value = predicted(latent)
        root = mctx.RootFnOutput(prior_logits=logits, value=value, embedding=latent)
        found = mctx.gumbel_muzero_policy((), key, root, recurrent, num_simulations=config.search.simulations)
        return found.search_tree.children_visits[:, 0]

    arguments = jax.random.normal(jax.random.key(1), (BATCH, 4)), jax.random.key(2)
    return *(jax.jit(run).lower(*arguments).compile() for run in (ours, alone)), config.search.simulations


def seconds(run: Any, repeats: int, observations: jax.Array) -> float:
    """Seconds of `repeats` calls."""
    begun = time.perf_counter()
    for i in range(repeats):
        found = run(observations, jax.random.key(i))
    found.block_until_ready()
    return time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    args = parser.parse_args()
    ours, alone, simulations = programs()
    observations = jax.random.normal(jax.random.key(1), (BATCH, 4))
    for run in (ours, alone):
        seconds(run, args.repeats, observations)
    taken = []
    for pair in range(args.pairs):
        order = (ours, alone) if pair % 2 == 0 else (alone, ours)
        times = {id(run): seconds(run, args.repeats, observations) for run in order}
        taken.append((times[id(ours)], times[id(alone)]))
    times = np.array(taken)
    steps = BATCH * args.repeats * simulations / np.median(times, axis=0)
    found = {
        "batch": BATCH,
        "simulations": simulations,
        "simulations_per_second": float(steps[0]),
        "simulations_per_second_of_mctx": float(steps[1]),
        "ratio_of_times": float(np.median(times[:, 0] / times[:, 1])),
        "quartiles_of_ratio": np.quantile(times[:, 0] / times[:, 1], [0.25, 0.75]).tolist(),
    }
    print(found)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "search-cpu.json").write_text(json.dumps({"results": found, **provenance()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
