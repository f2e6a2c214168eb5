"""AMPO beside MBPO on the pendulum: what the adaptation of the ensemble's features changes (Shen et al., arXiv 2010.09546).

(a) Adaptation. The critics' estimate of the Wasserstein-1 distance between the features of real and of imagined inputs,
    before the first and the last step of each adaptation, as the run has it. An estimate by critics also changes because
    the critics learn. So after the run there is one more adaptation, with the distance before and after it between 500 real
    and 500 imagined rows by optimal assignment, a mean over members. The distance between two samples of real rows is that
    of equal distributions at this number of rows. `OTHERS` are adaptations with more steps, measured in the same way.
(b) The next fit. The holdout error of each fit of the run, beside that of the fit of MBPO after as many steps. And, later,
    the holdout error of a fit that starts from the adapted features, relative to that of a fit of the same rows, with the
    same holdout, that starts from the features without the last adaptation.
(c) Compounding error of the last fitted models of both methods, in standard deviations of the data
    (`diagnostics.compounding_error`), on the same trajectories: half are of the policy of AMPO, half of that of MBPO.
(d) Returns, and the probability of improvement of AMPO on MBPO.

Both methods have the preset `small`, which differs in nothing but the adaptation.

    python experiments/model_adaptation.py [--out FOLDER] [--runs FOLDER] [--steps 2000] [--seeds 8] [--quick]

Runs are in `--runs`, by default the folder of `--out`; finished ones are not repeated, and that of MBPO is the one of
`bidirectional.py`. A run that is longer, or unfinished but long enough, is taken as it is; what needs a checkpoint after
`--steps` steps is left out if a run has none. Writes `model-adaptation.png` and `model-adaptation.json`, with command,
commit, versions and machine.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from bidirectional import COLORS, QUICK, compared, draw_returns, evaluated, say, trained
from jaxtyping import Array, Float
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from jaxmbrl import envs
from jaxmbrl.algorithms import shared
from jaxmbrl.algorithms.dyna import ampo
from jaxmbrl.core.types import Key, PyTree, Transition
from jaxmbrl.data import replay
from jaxmbrl.diagnostics import compounding_error
from jaxmbrl.models import adaptation
from jaxmbrl.models.ensemble.layout import inputs_of
from jaxmbrl.models.normalizer import normalize
from jaxmbrl.training import collecting, programs, restoring
from jaxmbrl.training.loop import clock_at
from jaxmbrl.training.programs import Program
from jaxmbrl.training.run_folder import RunFolder, environment, new_figure, write_figure

TASK = "pendulum"
METHODS = ("mbpo", "ampo")
ROWS = 500
"""Rows of each kind for the distance by assignment, and steps of each policy for the compounding error."""
HORIZON = 20
"""Steps of the compounding error."""
OTHERS = ((20, 20), (100, 5), (100, 25), (400, 5))
"""Adaptations after the run that are also measured: steps of the features, and of the critics before each of them."""


class Saved(NamedTuple):
    """A run after the steps of the study."""

    rows: list[dict[str, Any]]
    program: Program
    states: PyTree
    """The states of the method, with a leading axis of seeds; None without a checkpoint."""


def saved_after(run: Path, method: str, steps: int, seeds: int, changes: dict[str, Any]) -> Saved:
    """The run after `steps` steps: trained, unless it has as many already."""
    rows = RunFolder.open(run).read_metrics() if run.exists() else []
    if not any(row["env_steps"] >= steps for row in rows):
        rows = trained(run, method, TASK, steps, seeds, changes).rows
    rows = [row for row in rows if row["env_steps"] <= steps]
    folder = RunFolder.open(run)
    if restoring.newest_step(folder, steps + 1)[0] != steps:
        return Saved(rows, programs.build(programs.read(folder), learns=False), None)
    program, state, _ = restoring.restore(folder, repair=False, before=steps + 1)
    return Saved(rows, program, state.algorithm)


def earth_mover(x: Float[np.ndarray, "n F"], y: Float[np.ndarray, "n F"]) -> float:
    """The Wasserstein-1 distance of two samples of the same size: the mean distance of an optimal assignment."""
    distances = cdist(np.asarray(x, np.float64), np.asarray(y, np.float64))
    return float(distances[linear_sum_assignment(distances)].mean())


def by_fit(rows: list[dict[str, Any]], name: str) -> tuple[list[int], Float[np.ndarray, "seeds fits"]]:
    """(environment steps, values) of a metric that each fit has. There is one fit in an epoch."""
    steps = sorted({row["env_steps"] for row in rows if name in row})
    seeds = sorted({row["seed"] for row in rows})
    values = {(row["seed"], row["env_steps"]): row[name] for row in rows if name in row}
    return steps, np.array([[values[seed, step] for step in steps] for seed in seeds])


def once_more(config: ampo.Config, state: ampo.State, key: Key) -> dict[str, Any]:
    """One more adaptation after the run of one seed and the fits after it, as arrays: features [E, N, F] of real rows
    (`real`), of others of these (`other`) and of imagined rows, before and after; holdout errors with and without it."""
    task = envs.make(TASK)
    layout, model = shared.layout_for(config, task), shared.ensemble_for(config, task)
    adapt_key, fit_key, *keys = jax.random.split(key, 5)
    before = adaptation.from_fit(layout, state.adaptation, state.model)
    imagined = state.imagined.buffer
    after, found = adaptation.adapt(config.adaptation, layout, before, state.model, state.replay, imagined, adapt_key)
    drawn = [replay.sample(buffer, k, ROWS) for buffer, k in zip((state.replay, state.replay, imagined), keys, strict=True)]
    inputs = [normalize(state.model.inputs, inputs_of(layout, rows.observation, rows.action)) for rows in drawn]

    def of(layers: PyTree, inputs: Float[Array, "N I"]) -> Float[Array, "E N F"]:
        return jax.vmap(lambda layers: adaptation.features(layout, layers, inputs))(layers)

    starts = state.model, adaptation.with_start(layout, after, state.model)
    errors = [model.fit(start, state.replay, fit_key)[1]["model/holdout_error"].total for start in starts]
    return {
        "real": of(before.features.params[0], inputs[0]),
        "other": of(before.features.params[0], inputs[1]),
        "imagined": of(before.features.params[1], inputs[2]),
        "real after": of(after.features.params[0], inputs[0]),
        "imagined after": of(after.features.params[1], inputs[2]),
        "first": found["adapt/distance_first"].total,
        "last": found["adapt/distance_last"].total,
        "holdout without": errors[0],
        "holdout with": errors[1],
    }


def after_the_run(run: Saved, changes: dict[str, int]) -> dict[str, Any]:
    """The measurements of `once_more` for each seed, with these changes to the settings of the adaptation."""
    settings = run.program.config.settings
    settings = replace(settings, adaptation=replace(settings.adaptation, **changes))
    measure = jax.jit(partial(once_more, settings))
    found: dict[str, list[float]] = {}
    for seed in range(run.program.config.seeds):
        of = jax.device_get(measure(jax.tree.map(lambda leaf, i=seed: leaf[i], run.states), jax.random.key(seed)))
        pairs = {
            "W1 before": ("real", "imagined"),
            "W1 after": ("real after", "imagined after"),
            "W1 of equal distributions": ("real", "other"),
        }
        numbers = {
            name: np.mean([earth_mover(x, y) for x, y in zip(of[a], of[b], strict=True)]) for name, (a, b) in pairs.items()
        } | {name: of[name] for name in ("first", "last", "holdout without", "holdout with")}
        for name, value in numbers.items():
            found.setdefault(name, []).append(float(value))
    ratio = np.array(found["holdout with"]) / np.array(found["holdout without"])
    return found | {"holdout ratio": ratio.tolist()}


def errors_along(saved: dict[str, Saved], steps: int) -> dict[str, Float[np.ndarray, "seeds H"]]:
    """(c) for each method: the error of the mean over members, of each seed."""
    task = envs.make(TASK)
    models = {method: shared.ensemble_for(run.program.config.settings, task) for method, run in saved.items()}
    found: dict[str, list[Any]] = {method: [] for method in saved}
    for seed in range(saved["mbpo"].program.config.seeds):
        states = {method: jax.tree.map(lambda leaf, i=seed: leaf[i], run.states) for method, run in saved.items()}
        policies = [saved[m].program.algorithm.policy(state, clock_at(steps), True) for m, state in states.items()]
        collected = [collecting.collect(task, policy, ROWS, seed) for policy in policies]
        rows: Transition = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *collected)
        for method, state in states.items():
            errors = compounding_error(models[method], state.model, rows, HORIZON, jax.random.key(seed))
            found[method].append(errors.scaled_mean)
    return {method: np.array(errors) for method, errors in found.items()}


def draw(numbers: dict[str, Any], file: Path) -> None:
    """Draw the distance, the holdout error, the compounding error and the returns."""
    width = 1.0 if numbers["compounding"] else 0.01
    figure = new_figure(13.0 + 3.0 * width, 3.6)
    distance, holdout, along, returns = figure.subplots(1, 4, width_ratios=(1.0, 1.0, width, 1.0))
    of = numbers["adaptation"]
    for name, label, color in (("first", "before the first step", COLORS[1]), ("last", "before the last step", COLORS[0])):
        distance.plot(of["steps"], np.mean(of[name], axis=0), color=color, marker=".", label=label)
    distance.set_title("critics' estimate of W1, mean of seeds", fontsize=10)
    distance.set_xlabel("environment steps")
    for method, color in zip(METHODS, COLORS, strict=False):
        holdout.plot(of["steps"], np.mean(numbers["holdout"][method], axis=0), color=color, label=method)
        if method not in numbers["compounding"]:
            continue
        values = np.array(numbers["compounding"][method])
        for each in values:
            along.plot(np.arange(1, HORIZON + 1), each, color=color, linewidth=0.5, alpha=0.4)
        along.plot(np.arange(1, HORIZON + 1), np.median(values, axis=0), color=color, linewidth=2, label=method)
    holdout.set_title("holdout error of each fit, mean of seeds", fontsize=10)
    holdout.set_xlabel("environment steps")
    along.set_title("compounding error, seeds and their median", fontsize=10)
    along.set_xlabel("imagined steps")
    along.set_ylabel("in standard deviations")
    measured = (holdout, along) if numbers["compounding"] else (holdout,)
    for axes in measured:
        axes.set_yscale("log")
    if not numbers["compounding"]:
        along.remove()
    for axes in (distance, *measured):
        axes.legend(frameon=False, fontsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    draw_returns(returns, TASK, numbers["learning"])
    write_figure(file, figure)


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Train what is missing, measure, print, and write the picture and the numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", type=Path, help="by default runs/model_adaptation, with --quick runs/model_adaptation-quick"
    )
    parser.add_argument("--runs", type=Path, help="folder of the runs; by default that of --out")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--quick", action="store_true", help="small networks (smoke test)")
    args = parser.parse_args(arguments)
    args.out = args.out or Path("runs/model_adaptation-quick" if args.quick else "runs/model_adaptation")
    args.out.mkdir(parents=True, exist_ok=True)
    runs = {method: (args.runs or args.out) / f"{TASK}-{method}" for method in METHODS}
    changes = QUICK if args.quick else {}
    saved = {method: saved_after(run, method, args.steps, args.seeds, changes) for method, run in runs.items()}

    steps, first = by_fit(saved["ampo"].rows, "adapt/distance_first")
    last = by_fit(saved["ampo"].rows, "adapt/distance_last")[1]
    holdout = {method: by_fit(run.rows, "model/holdout_error")[1] for method, run in saved.items()}
    further, others = {}, {}
    if saved["ampo"].states is not None:
        further = after_the_run(saved["ampo"], {})
        of_others = () if args.quick else OTHERS
        others = {
            f"{n} steps, {critic} of the critics": after_the_run(saved["ampo"], {"steps": n, "critic_steps": critic})
            for n, critic in of_others
        }
    along = {} if any(run.states is None for run in saved.values()) else errors_along(saved, args.steps)
    learning = {method: evaluated(run.rows) for method, run in saved.items()}
    written = {
        "task": TASK,
        "steps": args.steps,
        "seeds": args.seeds,
        "adaptation": {"steps": steps, "first": first.tolist(), "last": last.tolist()},
        "share of adaptations in which the estimate fell": float(np.mean(last < first)),
        "after the run": further,
        "after the run, other adaptations": others,
        "holdout": {method: values.tolist() for method, values in holdout.items()},
        "holdout ratio of means": float(holdout["ampo"][:, 1:].mean() / holdout["mbpo"][:, 1:].mean()),
        "holdout ratio of medians": float(np.median(holdout["ampo"][:, 1:]) / np.median(holdout["mbpo"][:, 1:])),
        "compounding": {method: values.tolist() for method, values in along.items()},
        "learning": learning,
        "compared": {
            str(step): compared(learning, "mbpo", step)
            for step in learning["mbpo"]["steps"]
            if step in {1000, 2000, args.steps}
        },
        "environment": environment(f"python experiments/model_adaptation.py --steps {args.steps} --seeds {args.seeds}"),
    }
    picture, file = args.out / "model-adaptation.png", args.out / "model-adaptation.json"
    file.write_text(json.dumps(written, indent=1) + "\n")
    draw(written, picture)
    print(f"the estimate fell in {np.mean(last < first):.0%} of the adaptations")
    for which, numbers in {"after the run": further, **others}.items():
        for name, values in numbers.items():
            print(f"{which}, {name}: mean {np.mean(values):.4g}, of each seed {', '.join(f'{x:.3g}' for x in values)}")
    print(
        f"holdout error of AMPO's fits relative to MBPO's: means {written['holdout ratio of means']:.3f}, medians "
        f"{written['holdout ratio of medians']:.3f}"
    )
    for h in (1, 5, 10, HORIZON) if along else ():
        medians = ", ".join(f"{method} {np.median(values[:, h - 1]):.4f}" for method, values in along.items())
        print(f"compounding error after {h} steps, median of seeds: {medians}")
    say(written["compared"])
    print(f"picture  {picture}\nnumbers  {file}")
    return written


if __name__ == "__main__":
    main()
