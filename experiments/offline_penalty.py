"""Learning from logged data alone: MOPO's penalty and MOReL's halts on data of three qualities.

The data are transitions of our own runs: `random` actions; a `medium` policy, SAC in the middle of its learning, with its
exploration; and `medium-replay`, the buffer of that run. All methods learn from the same number of rows of each. All but
behaviour cloning, which takes those of its preset, do the same number of updates:

    cloning         behaviour cloning (`bc`)
    SAC             on the data alone: `mopo` with a share of 1 of logged rows
    lambda 0 to 5   `mopo`; lambda 0 is MBPO, with a model that is fitted once
    MOReL           `mopo` with halts and lambda 0

No setting is chosen by returns. Lambda is 1 on all tasks, the default; the other values show what depends on it. MOReL
halts where the members disagree by more than on any logged row, with the smallest logged reward from then on. The true task
is used for one evaluation of each final policy, by the same start states for all.

    python experiments/offline_penalty.py [--tasks pendulum ...] [--out FOLDER] [--steps 500] [--seeds 4] [--quick]

Prints the returns and normalised scores, and writes `offline-penalty.json` after each method, with command, commit,
versions and machine, and a picture at the end. What is in the folder already is not measured again.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmbrl import algorithms
from jaxmbrl.agents.exploration import uniform
from jaxmbrl.algorithms.dyna import mopo
from jaxmbrl.algorithms.model_free import bc
from jaxmbrl.core.types import Algorithm, Clock, Task, Transition
from jaxmbrl.data import dataset
from jaxmbrl.training import collecting, evaluation, loop, programs, scores
from jaxmbrl.training.run_folder import environment

LAMBDAS = (0.0, 1.0, 5.0)
EPISODES = 20
COLORS = {
    "cloning": "#7a7a7a",
    "SAC": "#c46a1b",
    "lambda 0": "#9ecae1",
    "lambda 1": "#2171b5",
    "lambda 5": "#08306b",
    "MOReL": "#3a8a4d",
}


class Plan(NamedTuple):
    """How the data of a task are recorded."""

    rows: int
    """Transitions of each data set, and steps of the run of SAC that records two of them."""
    settings: dict[str, Any]
    """Changes to SAC's preset for that run."""


SMALL = {"agent.hidden": [64, 64], "agent.learning_rate": 5e-4, "batch_size": 128, "warmup_steps": 1000, "eval_every": 0}
PLANS = {
    "pendulum": Plan(4000, SMALL),
    "cartpole-continuous": Plan(4000, SMALL),
    "InvertedPendulum-v5": Plan(4000, SMALL),
}


def recorded(task_name: str, plan: Plan, out: Path, seed: int = 0) -> tuple[Task, dict[str, Transition], float]:
    """(task, the data by name, return of the medium policy). They are saved in `out`, and not recorded again."""
    rows = plan.rows
    files = {name: out / f"{task_name}-{rows}-{name}.npz" for name in ("random", "medium", "medium-replay")}
    returns = out / f"{task_name}-{rows}.json"
    program = programs.build(programs.configure("sac", task_name, settings={**plan.settings, "replay_capacity": rows}))
    task, algorithm = program.task, program.algorithm
    if not returns.exists():
        calls = jnp.asarray(rows // program.loop.steps_per_call, jnp.int32)
        states = jax.jit(program.loop.init)(jnp.array([seed]), {})
        _, states = jax.jit(program.loop.run)(loop.clock_at(0), states, calls)
        state = jax.tree.map(lambda leaf: leaf[0], states.algorithm)
        data = {
            "random": collecting.collect(task, uniform(task.action), rows, seed),
            "medium": collecting.collect(task, algorithm.policy(state, loop.clock_at(rows), True), rows, seed),
            # Neither full twice nor in another order: the rows as they were added.
            "medium-replay": jax.device_get(state.experience.own.data),
        }
        for name, transitions in data.items():
            files[name].unlink(missing_ok=True)
            dataset.save(files[name], transitions, task_name)
        medium = jax.jit(lambda s: evaluation.evaluate(algorithm, task, s, EPISODES))(states.algorithm)
        returns.write_text(json.dumps(float(jnp.mean(medium))) + "\n")
    data = {name: jax.tree.map(jnp.asarray, dataset.load(file).rows) for name, file in files.items()}
    return task, data, float(json.loads(returns.read_text()))


def returns_of(make: Callable[[Transition], Algorithm], task: Task, steps: int, seeds: int) -> Callable[..., Any]:
    """A compiled function: (data, traced settings) -> mean return of each seed's final policy after `steps` calls of
    `learn`."""

    @jax.jit
    def run(data: Transition, hyper: dict[str, Any]) -> Any:
        algorithm = make(data)
        states = jax.vmap(lambda seed: algorithm.init(jax.random.key(seed), hyper, None))(jnp.arange(seeds))
        unused = jax.tree.map(lambda leaf: leaf[:1, None], data)

        def call(i: Any, states: Any) -> Any:
            return jax.vmap(lambda state: algorithm.learn(Clock(i + 1), state, unused)[0])(states)

        states = jax.lax.fori_loop(0, steps, call, states)
        return jnp.mean(evaluation.evaluate(algorithm, task, states, EPISODES), axis=1)

    return run


def cases_of(
    config: mopo.Config, cloning: tuple[bc.Config, int], task: Task, steps: int, seeds: int, lambdas: tuple[float, ...]
) -> dict[str, Callable[[Transition], Any]]:
    """The methods by name: data -> mean return of each seed. Those of MOPO are one program. `cloning` are the settings and
    steps of `bc`."""
    learn = returns_of(partial(mopo.make, config, task), task, steps, seeds)
    morel = dataclasses.replace(config, halts=True)
    halting = returns_of(partial(mopo.make, morel, task), task, steps, seeds)
    clone = returns_of(partial(bc.make, cloning[0], task), task, cloning[1], seeds)

    def with_lambda(data: Transition, penalty: float, real_ratio: float = config.real_ratio) -> Any:
        return learn(data, {"penalty": penalty, "real_ratio": real_ratio})

    return {
        "cloning": lambda data: clone(data, {}),
        "SAC": lambda data: with_lambda(data, 0.0, 1.0),
        **{f"lambda {x:g}": partial(with_lambda, penalty=x) for x in lambdas},
        "MOReL": lambda data: halting(data, {"penalty": 0.0, "real_ratio": config.real_ratio}),
    }


def draw(tasks: dict[str, Any], path: Path) -> None:
    """Write the picture: the scores of each task and data set, a bar for each method, a dot for each seed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.4 * len(tasks)), dpi=120, layout="constrained")
    for axes, (task, of) in zip(np.atleast_1d(figure.subplots(len(tasks), 1)), tasks.items(), strict=True):
        width = 0.8 / max(len(cases) for cases in of["scores"].values())
        for place, cases in enumerate(of["scores"].values()):
            for k, (case, seeds) in enumerate(cases.items()):
                x = place - 0.4 + (k + 0.5) * width
                axes.bar(x, np.mean(seeds), 0.9 * width, color=COLORS[case], label=None if place else case)
                axes.plot([x] * len(seeds), seeds, ".", color="black", markersize=4)
        axes.axhline(of["score of the medium policy"], color="0.3", linestyle="--", linewidth=1, label="medium policy")
        axes.set_xticks(range(len(of["scores"])), [f"{name} data" for name in of["scores"]])
        axes.set(title=task, ylabel="normalised score")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="0.92", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path)


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Record the data, train, print the table, and write the numbers and the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=PLANS, default=list(PLANS))
    parser.add_argument("--out", type=Path, help="by default runs/offline-penalty, with --quick runs/offline-penalty-quick")
    parser.add_argument("--steps", type=int, default=500, help="calls of `learn`, each of ten updates")
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--quick", action="store_true", help="few rows, two seeds and tiny networks (smoke test)")
    args = parser.parse_args(arguments)
    args.out = args.out or Path("runs/offline-penalty-quick" if args.quick else "runs/offline-penalty")
    args.out.mkdir(parents=True, exist_ok=True)
    config, cloning = (algorithms.get(name).presets["small"].config for name in ("mopo", "bc"))
    plans, steps, seeds, lambdas = PLANS, args.steps, args.seeds, LAMBDAS
    cloning_steps = algorithms.get("bc").presets["small"].steps
    if args.quick:
        steps, cloning_steps, seeds, lambdas = 4, 4, 2, (0.0, 5.0)
        changes = {"agent.hidden": [8], "batch_size": 8, "warmup_steps": 100, "epoch_steps": 100}
        plans = {name: Plan(300, plan.settings | changes) for name, plan in PLANS.items()}
        config = dataclasses.replace(
            config,
            agent=dataclasses.replace(config.agent, hidden=(8,)),
            ensemble=dataclasses.replace(config.ensemble, hidden=(8,), max_epochs=2),
            rollout_rows=20,
        )
        cloning = dataclasses.replace(cloning, agent=dataclasses.replace(cloning.agent, hidden=(8,)))
    numbers, picture = args.out / "offline-penalty.json", args.out / "offline-penalty.png"
    written = json.loads(numbers.read_text()) if numbers.exists() else {"tasks": {}}
    for name in args.tasks:
        plan, reference = plans[name], scores.REFERENCES[name]
        command = f"python experiments/offline_penalty.py --tasks {name} --steps {steps} --seeds {seeds}"
        case_of = {"rows": plan.rows, "steps": steps, "seeds": seeds, "episodes": EPISODES}
        entry = written["tasks"].get(name, {})
        if {key: entry.get(key) for key in case_of} != case_of:
            entry = written["tasks"][name] = case_of | {"reference": reference._asdict(), "returns": {}, "scores": {}}
        task, data, medium = recorded(name, plan, args.out)
        entry["score of the medium policy"] = scores.normalized(medium, reference)
        print(f"{name}: the medium policy's return is {medium:.1f}", flush=True)
        methods = cases_of(config, (cloning, cloning_steps), task, steps, seeds, lambdas)
        for quality, transitions in data.items():
            ended, earned = np.asarray(transitions.terminated | transitions.truncated), float(transitions.reward.mean())
            print(f"{quality}: {len(ended)} rows, {ended.sum()} episodes, reward a step {earned:.2f}", flush=True)
            found = entry["returns"].setdefault(quality, {})
            for case, returns in methods.items():
                each = found[case] = found.get(case) or np.asarray(returns(transitions), float).tolist()
                entry["scores"].setdefault(quality, {})[case] = [scores.normalized(x, reference) for x in each]
                score = np.mean(entry["scores"][quality][case])
                print(f"  {case:12}{np.mean(each):9.1f}{score:8.1f}   {[round(x, 1) for x in each]}", flush=True)
                entry["environment"] = environment(command)
                numbers.write_text(json.dumps(written, indent=1) + "\n")
    draw(written["tasks"], picture)
    print(f"picture  {picture}\nnumbers  {numbers}")
    return written


if __name__ == "__main__":
    main()
