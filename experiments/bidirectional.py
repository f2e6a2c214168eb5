"""BMPO beside MBPO on the pendulum: the compounding error of bidirectional trajectories, and what is learned from them.

(a) Error. A forward and a backward ensemble are fitted to the same random transitions. They imagine trajectories of 2h
    steps under the actions of other logged ones: by the forward model from the first state, and from the middle state by
    the forward model h steps on and by the backward model h steps back. With the error ||s_t - s^_t||^2 of the state after
    t steps, in standard deviations of the data (Lai et al., arXiv 2007.01995, section 6.3),

        Error_for = 1/(2h) sum_{t=1}^{2h} error(t),    Error_bi = 1/(2h) sum_{i=1}^{h} error(h + i) + error(h - i)

    Predictions are the mean of all members, without noise. Drawn and listed are means over trajectories and ensembles.

(b) Learning. `bmpo` and `mbpo` with the preset `small` of each, which differ in nothing that MBPO has but the length of its
    forward branches; and BMPO's settings changed one by one. Each evaluation has the same start states for all.

    python experiments/bidirectional.py [--out FOLDER] [--steps 2000] [--seeds 8] [--cases mbpo bmpo ...] [--quick]

`--cases` without names measures only (a); the numbers of other cases in an existing file are kept. Writes
`bidirectional.png` and `bidirectional.json`, with command, commit, versions and machine.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

import jaxmbrl
from jaxmbrl import envs
from jaxmbrl.agents.exploration import uniform
from jaxmbrl.core.types import DynamicsModel, Key, PyTree, Task, Transition
from jaxmbrl.data import replay
from jaxmbrl.models import EnsembleConfig, backward, ensemble
from jaxmbrl.rollout import open_loop, rollout
from jaxmbrl.training import collecting, evaluation
from jaxmbrl.training.run_folder import environment, new_figure, write_figure

TASK = "pendulum"
LENGTHS = (1, 2, 5, 10)
MODEL = EnsembleConfig(
    members=5, elites=5, hidden=(64, 64), batch_size=128, max_epochs=100, propagation="expectation", reward_noise=False
)
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "mbpo": ("mbpo", {}),
    "bmpo": ("bmpo", {}),
    "mbpo, k 1 to 3": ("mbpo", {"rollout_length": {"first": 1, "last": 3, "begins": 200, "ends": 1000}}),
    "bmpo without planning": ("bmpo", {"horizon": 0}),
    "bmpo without backward branches": ("bmpo", {"backward_length": {"first": 0, "last": 0}}),
    "bmpo with uniform starts": ("bmpo", {"beta": {"first": 0.0, "last": 0.0}}),
}
"""Case -> (method, changes to its preset `small`)."""
QUICK = {"agent.hidden": [8], "ensemble.hidden": [8], "ensemble.max_epochs": 2, "updates_per_step": 1, "rollout_rows": 20}
COLORS = ("#0b3d91", "#c1440e", "#2e7d32", "#7b4397", "#8a6d00", "0.45")


def errors(predicted: Float[Array, "T N O"], real: Float[Array, "T N O"], scale: Float[Array, "O"]) -> Float[Array, "T N"]:
    """The squared distance of each predicted state, in units of `scale`."""
    return jnp.sum(((predicted - real) / scale) ** 2, axis=-1)


def forward_error(
    model: DynamicsModel, state: PyTree, real: Transition, h: int, scale: Float[Array, "O"], key: Key
) -> Float[Array, "N"]:
    """Error_for of each of N trajectories of 2h transitions, leaves [2h, N, ...]."""
    world = model.world(state)
    start = world.start(real.observation[0], key), jnp.zeros((), jnp.int32)
    _, found = rollout(world, open_loop(real.action), start, key, 2 * h)
    return jnp.mean(errors(found.next_observation, real.next_observation, scale), axis=0)


def bidirectional_error(
    models: tuple[DynamicsModel, DynamicsModel],
    states: tuple[PyTree, PyTree],
    real: Transition,
    h: int,
    scale: Float[Array, "O"],
    key: Key,
) -> Float[Array, "N"]:
    """Error_bi of the same trajectories; `models` and `states` are those of the forward and of the backward ensemble."""
    middle = real.observation[h]
    after = jax.tree.map(lambda leaf: leaf[h:], real)
    before = jax.tree.map(lambda leaf: leaf[:h][::-1], real)
    total = jnp.zeros(middle.shape[0])
    for model, state, part in zip(models, states, (after, before), strict=True):
        world = model.world(state)
        start = world.start(middle, key), jnp.zeros((), jnp.int32)
        _, found = rollout(world, open_loop(part.action), start, key, h)
        if part is after:
            total += jnp.sum(errors(found.next_observation, part.next_observation, scale), axis=0)
        else:
            total += jnp.sum(errors(found.observation, part.observation, scale), axis=0)
    return total / (2 * h)


def windows_of(rows: Transition, length: int) -> Transition:
    """Windows of `length` transitions within an episode, which begin `length` steps apart: leaves [length, N, ...]."""
    ended = np.asarray(rows.terminated | rows.truncated)
    begins = [i for i in range(0, len(ended) - length + 1, length) if not ended[i : i + length - 1].any()]
    index = np.array(begins)[None] + np.arange(length)[:, None]
    return jax.tree.map(lambda leaf: jnp.asarray(leaf)[index], rows)


def measured(task: Task, rows: int, ensembles: int, config: EnsembleConfig) -> dict[str, Any]:
    """Means of both errors over trajectories and ensembles, and their ratio, for each h."""
    size, action = task.observation.shape[0], task.action.shape[0]
    parts = (task.reward, task.terminated, task.features)
    models = ensemble.make(config, size, action, *parts), backward.make(config, size, action, *parts)
    data = collecting.collect(task, uniform(task.action), rows, seed=0)
    held_out = collecting.collect(task, uniform(task.action), 2 * rows, seed=1)
    scale = jnp.std(data.observation, axis=0)
    real = {h: windows_of(held_out, 2 * h) for h in LENGTHS}

    @jax.jit
    def one(key: Key) -> Any:
        keys = jax.random.split(key, 4)
        states = tuple(
            model.fit(model.init(k, {}), replay.of_rows(data), j)[0]
            for model, k, j in zip(models, keys[:2], keys[2:], strict=True)
        )
        forth = [jnp.mean(forward_error(models[0], states[0], w, h, scale, key)) for h, w in real.items()]
        both = [jnp.mean(bidirectional_error(models, states, w, h, scale, key)) for h, w in real.items()]
        return jnp.stack(forth), jnp.stack(both)

    found = np.array([[np.asarray(x) for x in one(jax.random.key(i))] for i in range(ensembles)])
    forth, both = found[:, 0], found[:, 1]
    return {
        "h": list(LENGTHS),
        "windows": [int(w.reward.shape[1]) for w in real.values()],
        "forward": forth.mean(axis=0).tolist(),
        "bidirectional": both.mean(axis=0).tolist(),
        "ratio": (forth.mean(axis=0) / both.mean(axis=0)).tolist(),
        "ratio of each ensemble": (forth / both).tolist(),
    }


def learned(case: str, steps: int, seeds: int, changes: dict[str, Any]) -> dict[str, Any]:
    """Evaluations of one case: for each of these, the mean return of each seed."""
    method, settings = CASES[case]
    result = jaxmbrl.train(
        method, TASK, steps=steps, seeds=seeds, preset="small", settings={"eval_every": 1, **settings, **changes}
    )
    rows = [row for row in result.rows if "eval/return" in row]
    at = sorted({row["env_steps"] for row in rows})
    by_step = {step: [row["eval/return"] for row in rows if row["env_steps"] == step] for step in at}
    return {"steps": at, "returns": list(by_step.values()), "seconds": result.rows[-1]["wall_time"]}


def compared(found: dict[str, Any], against: str, step: int) -> dict[str, Any]:
    """Interquartile means of all cases after `step` steps, and their probabilities of improvement on one of them."""
    returns = {case: numbers["returns"][numbers["steps"].index(step)] for case, numbers in found.items()}
    return {
        case: {
            "iqm": evaluation.interquartile_mean(values),
            "interval": evaluation.bootstrap_interval(values),
            "improvement": evaluation.probability_of_improvement((values, returns[against])),
            "improvement interval": evaluation.improvement_interval((values, returns[against])),
        }
        for case, values in returns.items()
    }


def draw(numbers: dict[str, Any], file: Path) -> None:
    """Draw the errors against h and the returns against environment steps."""
    figure = new_figure(9.0, 3.6)
    left, right = figure.subplots(1, 2)
    error = numbers["error"]
    for name, color, marker in (("forward", COLORS[1], "o"), ("bidirectional", COLORS[0], "s")):
        left.plot(error["h"], error[name], marker=marker, color=color, label=name)
    for h, value, ratio in zip(error["h"], error["forward"], error["ratio"], strict=True):
        left.annotate(f"{ratio:.1f} times", (h, value), textcoords="offset points", xytext=(-6, 5), ha="right", fontsize=8)
    left.set_xscale("log")
    left.set_yscale("log")
    left.set_xlim(0.5, 12)
    left.set_xticks(error["h"], [str(h) for h in error["h"]])
    left.minorticks_off()
    left.set_xlabel("h (trajectories of 2h steps)")
    left.set_ylabel("mean squared error, in variances")
    left.set_title("compounding error", fontsize=10)
    left.legend(frameon=False, fontsize=8)
    for (case, found), color in zip(numbers["learning"].items(), COLORS, strict=False):
        returns = np.array(found["returns"])
        low, high = evaluation.bootstrap_bands(returns)
        middle = [evaluation.interquartile_mean(values) for values in returns]
        right.plot(found["steps"], middle, color=color, label=case)
        right.fill_between(found["steps"], low, high, color=color, alpha=0.15, linewidth=0)
    right.set_xlabel("environment steps")
    right.set_ylabel("return")
    right.set_title("interquartile mean and 95 % interval", fontsize=10)
    if numbers["learning"]:
        right.legend(frameon=False, fontsize=8)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    write_figure(file, figure)


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measure, train, print the tables, and write the picture and the numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/bidirectional"))
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--cases", nargs="*", default=["mbpo", "bmpo"], choices=CASES)
    parser.add_argument("--quick", action="store_true", help="one small ensemble and few steps (smoke test)")
    args = parser.parse_args(arguments)
    args.out.mkdir(parents=True, exist_ok=True)
    picture, file = args.out / "bidirectional.png", args.out / "bidirectional.json"
    rows, ensembles, config, changes = 1500, 3, MODEL, {}
    if args.quick:
        rows, ensembles, changes = 200, 1, QUICK
        config = EnsembleConfig(members=2, elites=2, hidden=(8,), max_epochs=2, propagation="expectation")
    error = measured(envs.make(TASK), rows, ensembles, config)
    for h, ratio in zip(error["h"], error["ratio"], strict=True):
        print(f"h = {h:2}: Error_for / Error_bi = {ratio:.2f}", flush=True)
    written: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {"learning": {}}
    command = (
        f"python experiments/bidirectional.py --steps {args.steps} --seeds {args.seeds} --cases {' '.join(args.cases)}"
    )
    for case in (None, *args.cases):
        if case is not None:
            written["learning"][case] = learned(case, args.steps, args.seeds, changes)
        known = written["learning"]
        middle = {step for found in known.values() for step in found["steps"]} & {1000, args.steps}
        written = {
            "task": TASK,
            "rows": rows,
            "ensembles": ensembles,
            "error": error,
            "learning": known,
            "compared": {str(step): compared(known, "mbpo", step) for step in sorted(middle) if "mbpo" in known},
            "environment": environment() | {"command": command},
        }
        file.write_text(json.dumps(written, indent=1) + "\n")
        draw(written, picture)
        print(f"{case or 'errors'}: done", flush=True)
    for step, cases in written["compared"].items():
        for case, told in cases.items():
            low, high = told["interval"]
            below, above = told["improvement interval"]
            print(
                f"{case} after {step} steps: IQM {told['iqm']:.1f} [{low:.1f}, {high:.1f}], probability of improvement on "
                f"mbpo {told['improvement']:.2f} [{below:.2f}, {above:.2f}]"
            )
    print(f"picture  {picture}\nnumbers  {file}")
    return written


if __name__ == "__main__":
    main()
