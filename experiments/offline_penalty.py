"""Learning from logged data alone: MOPO's penalty on data of three qualities of the pendulum.

The data are transitions of our own runs: `random` actions; a `medium` policy, SAC in the middle of its learning, with its
exploration; and `medium-replay`, the buffer of that run. All methods learn from the same number of rows of each, and do the
same number of updates:

    cloning         behaviour cloning (`agents.behaviour_cloning`)
    SAC             on the data alone: MOPO with a share of 1 of logged rows
    lambda 0 to 5   MOPO; lambda 0 is MBPO, with a model that is fitted once

The true task is used for one evaluation of the final policy, by the same start states for all. All cases of MOPO are one
compiled program, of which data, lambda and the share of logged rows are arguments.

    python experiments/offline_penalty.py [--out FOLDER] [--rows 4000] [--steps 800] [--seeds 2] [--quick]

Writes `offline-penalty.json`, with command, commit, versions and machine, and prints the table.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmbrl import algorithms
from jaxmbrl.agents import behaviour_cloning
from jaxmbrl.agents.behaviour_cloning import CloningConfig
from jaxmbrl.agents.exploration import uniform
from jaxmbrl.algorithms.dyna import mopo
from jaxmbrl.core.types import Algorithm, Clock, Task, Transition
from jaxmbrl.data import replay
from jaxmbrl.training import collecting, evaluation, loop, programs
from jaxmbrl.training.run_folder import environment

TASK = "pendulum"
LAMBDAS = (0.0, 1.0, 5.0)
EPISODES = 20
BEHAVIOUR = {"agent.hidden": [64, 64], "agent.learning_rate": 5e-4, "batch_size": 128, "eval_every": 0}
"""Changes to SAC's preset for the run that records the data."""


def recorded(rows: int, changes: dict[str, Any], seed: int = 0) -> tuple[Task, dict[str, Transition], float]:
    """(task, the data by name, return of the medium policy)."""
    program = programs.build(programs.configure("sac", TASK, settings={**BEHAVIOUR, "replay_capacity": rows, **changes}))
    task, algorithm = program.task, program.algorithm
    calls = jnp.asarray(rows // program.loop.steps_per_call, jnp.int32)
    states = jax.jit(program.loop.init)(jnp.array([seed]), {})
    _, states = jax.jit(program.loop.run)(loop.clock_at(0), states, calls)
    state = jax.tree.map(lambda leaf: leaf[0], states.algorithm)
    data = {
        "random": collecting.collect(task, uniform(task.action), rows, seed),
        "medium": collecting.collect(task, algorithm.policy(state, loop.clock_at(rows), True), rows, seed),
        # Neither full twice nor in another order: the rows as they were added.
        "medium-replay": state.experience.own.data._replace(extras=()),
    }
    medium = jax.jit(lambda s: evaluation.evaluate(algorithm, task, s, EPISODES))(states.algorithm)
    return task, data, float(jnp.mean(medium))


def returns_of_mopo(config: mopo.Config, task: Task, steps: int, seeds: int) -> Any:
    """A compiled function: (data, lambda, share of logged rows) -> mean return of each seed's final policy."""

    @jax.jit
    def run(data: Transition, penalty: Any, real_ratio: Any) -> Any:
        algorithm = mopo.make(config, task, data)
        hyper = {"penalty": penalty, "real_ratio": real_ratio}
        states = jax.vmap(lambda seed: algorithm.init(jax.random.key(seed), hyper, None))(jnp.arange(seeds))
        unused = jax.tree.map(lambda leaf: leaf[:1, None], data)

        def call(i: Any, states: Any) -> Any:
            return jax.vmap(lambda state: algorithm.learn(Clock(i + 1), state, unused)[0])(states)

        states = jax.lax.fori_loop(0, steps, call, states)
        return jnp.mean(evaluation.evaluate(algorithm, task, states, EPISODES), axis=1)

    return run


def returns_of_cloning(config: CloningConfig, task: Task, updates: int, batch_size: int, seeds: int) -> Any:
    """A compiled function: data -> mean return of each seed's final policy."""
    learner = behaviour_cloning.make(config, task.observation.shape[0], task.action.shape[0])
    acting = Algorithm(lambda *_: None, lambda state, *_: learner.policy(state, False), lambda *_: (None, {}), 1)

    @jax.jit
    def run(data: Transition) -> Any:
        buffer = replay.of_rows(data)

        def learn(seed: Any) -> Any:
            init_key, key = jax.random.split(jax.random.key(seed))

            def update(state: Any, key: Any) -> tuple[Any, None]:
                return learner.update(state, replay.sample(buffer, key, batch_size), key)[0], None

            return jax.lax.scan(update, learner.init(init_key, {}), jax.random.split(key, updates))[0]

        states = jax.vmap(learn)(jnp.arange(seeds))
        return jnp.mean(evaluation.evaluate(acting, task, states, EPISODES), axis=1)

    return run


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Record the data, train, print the table and write the numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/offline-penalty"))
    parser.add_argument("--rows", type=int, default=4000, help="transitions of each data set")
    parser.add_argument("--steps", type=int, default=800, help="calls of `learn`, each of ten updates")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="few rows, two seeds and tiny networks (smoke test)")
    args = parser.parse_args(arguments)
    args.out.mkdir(parents=True, exist_ok=True)
    config = algorithms.get("mopo").presets["small"].config
    rows, steps, seeds, changes, lambdas = args.rows, args.steps, args.seeds, {}, LAMBDAS
    cloning = CloningConfig(hidden=config.agent.hidden, learning_rate=config.agent.learning_rate)
    if args.quick:
        rows, steps, seeds, lambdas = 300, 4, 2, (0.0, 5.0)
        changes = {"agent.hidden": [8], "batch_size": 8, "warmup_steps": 100, "epoch_steps": 100}
        config = dataclasses.replace(
            config,
            agent=dataclasses.replace(config.agent, hidden=(8,)),
            ensemble=dataclasses.replace(config.ensemble, hidden=(8,), max_epochs=2),
            rollout_rows=20,
        )
        cloning = dataclasses.replace(cloning, hidden=(8,))
    task, data, medium = recorded(rows, changes)
    print(f"the medium policy's return is {medium:.1f}", flush=True)
    learn = returns_of_mopo(config, task, steps, seeds)
    clone = returns_of_cloning(cloning, task, steps * config.updates_per_step, config.batch_size, seeds)
    cases = {"cloning": clone, "SAC": lambda rows: learn(rows, 0.0, 1.0)}
    cases |= {f"lambda {x:g}": partial(lambda rows, x: learn(rows, x, config.real_ratio), x=x) for x in lambdas}
    found: dict[str, dict[str, list[float]]] = {}
    for name, transitions in data.items():
        ended = np.asarray(transitions.terminated | transitions.truncated)
        print(
            f"{name}: {rows} rows, {ended.sum()} episodes, reward a step {float(transitions.reward.mean()):.2f}", flush=True
        )
        found[name] = {}
        for case, returns in cases.items():
            found[name][case] = np.asarray(returns(transitions), float).tolist()
            print(f"  {case:12} {np.mean(found[name][case]):9.1f}   {[round(x, 1) for x in found[name][case]]}", flush=True)
    numbers = args.out / "offline-penalty.json"
    command = f"python experiments/offline_penalty.py --rows {rows} --steps {steps} --seeds {seeds}"
    written = {
        "task": TASK,
        "rows": rows,
        "steps": steps,
        "episodes": EPISODES,
        "return of the medium policy": medium,
        "reward a step": {name: float(transitions.reward.mean()) for name, transitions in data.items()},
        "returns": found,
        "environment": environment() | {"command": command},
    }
    numbers.write_text(json.dumps(written, indent=1) + "\n")
    print(f"numbers  {numbers}")
    return written


if __name__ == "__main__":
    main()
