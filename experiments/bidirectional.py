"""BMPO beside MBPO: the compounding error of bidirectional trajectories, its bound, and what is learned from them.

(a) Error. A forward and a backward ensemble are fitted to the same transitions. They imagine trajectories of 2h steps under
    the actions of other logged ones: by the forward model from the first state, and from the middle state by the forward
    model h steps on and by the backward model h steps back. With the error ||s_t - s^_t||^2 of the state after t steps, in
    standard deviations of the data (Lai et al., arXiv 2007.01995, section 6.3),

        Error_for = 1/(2h) sum_{t=1}^{2h} error(t),    Error_bi = 1/(2h) sum_{i=1}^{h} error(h + i) + error(h - i)

    Predictions are the mean of all members, without noise. Drawn and listed are means over trajectories and ensembles. On
    `pendulum` the transitions are those of random actions; on `Hopper-v5` those of a policy that SAC has trained for 10,000
    steps.

(b) The bound. With branches of k1 = k2 = h steps the paper's theorems bound |eta - eta-branch| by

        2 r_max [gamma^(k1+k2+1) epsilon_pi / (1 - gamma)^2 + gamma^(k1+k2) epsilon_pi / (1 - gamma)
                 + n epsilon_m / (1 - gamma)]

    with n = max(k1, k2), and n = k1 + k2 for a forward model alone. epsilon_pi and epsilon_m are measured as in
    `when_to_trust_the_model.py`, at the resolution of a twentieth of a standard deviation, and epsilon_m is the larger one
    of the two models'. On `Hopper-v5` epsilon_pi is the largest total variation between the policy that collected and the
    one that SAC has after 1,000 further steps; on `pendulum` it is 0, because the policy is the one that collected.

(c) Learning. `bmpo` and `mbpo` with the preset `small` of each, which differ in nothing that MBPO has but the length of its
    forward branches; and BMPO's settings changed one by one. Each evaluation has the same start states for all.

    python experiments/bidirectional.py [--out FOLDER] [--errors pendulum Hopper-v5] [--task pendulum] [--steps 2000]
        [--seeds 8] [--cases mbpo bmpo ...] [--quick]

`--errors` and `--cases` without names measure nothing. Other numbers in an existing file are kept, and finished runs in
FOLDER are not repeated. Writes `bidirectional.png` and `bidirectional.json`, with command, commit, versions and machine of
each measurement.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from when_to_trust_the_model import BLUR, model_error, policy_shift

import jaxmbrl
from jaxmbrl import envs
from jaxmbrl.agents.actor_critic import sac
from jaxmbrl.agents.exploration import uniform
from jaxmbrl.core.types import DynamicsModel, Key, PyTree, Task, Transition
from jaxmbrl.data import replay
from jaxmbrl.models import EnsembleConfig, backward, ensemble
from jaxmbrl.rollout import open_loop, rollout
from jaxmbrl.training import collecting, evaluation
from jaxmbrl.training.run_folder import environment, new_figure, write_figure
from jaxmbrl.training.session import Result

LENGTHS = (1, 2, 5, 10)
DISCOUNT = 0.99
MODEL = EnsembleConfig(
    members=5, elites=5, hidden=(64, 64), batch_size=128, max_epochs=100, propagation="expectation", reward_noise=False
)
MODELS = {"pendulum": MODEL, "Hopper-v5": replace(MODEL, hidden=(200, 200), batch_size=256)}
"""Task of (a) -> the ensembles."""
ROWS = {"pendulum": 1500, "Hopper-v5": 5000}
"""Transitions that the ensembles are fitted to. Twice as many are held out."""
SAC = {"warmup_steps": 1000, "replay_capacity": 20_000, "eval_every": 0}
COLLECTS_AFTER, IMPROVED_AFTER = 10_000, 11_000
"""Steps after which the policy of SAC collects, and after which it is compared with itself."""
TASKS: dict[str, dict[str, Any]] = {
    "pendulum": {"epoch_steps": 100, "eval_every": 2},
    "InvertedPendulum-v5": {"epoch_steps": 500, "eval_every": 1},
}
"""Task of (c) -> when it is evaluated."""
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "mbpo": ("mbpo", {}),
    "bmpo": ("bmpo", {}),
    "bmpo, backward policy by GAN": ("bmpo", {"backward_learner": "gan"}),
    "mbpo, k 1 to 3": ("mbpo", {"rollout_length": {"first": 1, "last": 3, "begins": 200, "ends": 1000}}),
    "bmpo without planning": ("bmpo", {"horizon": 0}),
    "bmpo without backward branches": ("bmpo", {"backward_length": {"first": 0, "last": 0}}),
    "bmpo with uniform starts": ("bmpo", {"beta": {"first": 0.0, "last": 0.0}}),
}
"""Case -> (method, changes to its preset `small`)."""
QUICK = {"agent.hidden": [8], "ensemble.hidden": [8], "ensemble.max_epochs": 2, "updates_per_step": 1, "rollout_rows": 20}
SMALL = EnsembleConfig(members=2, elites=2, hidden=(8,), max_epochs=2, propagation="expectation")
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


def collected(task: Task, rows: int) -> tuple[Transition, Transition]:
    """(rows to fit, twice as many held out) of the random policy."""
    return tuple(collecting.collect(task, uniform(task.action), n, seed) for seed, n in enumerate((rows, 2 * rows)))


def collected_by_sac(
    task: Task, rows: int, steps: tuple[int, int], settings: dict[str, Any]
) -> tuple[tuple[Transition, Transition], Float[Array, "N"], float]:
    """The same of the stochastic policy of SAC after the first number of steps; the total variation of its policy after the
    second one at the rows held out; and the return of the mean actions after the first one."""
    with tempfile.TemporaryDirectory() as folder:
        before = jaxmbrl.train("sac", task.name, steps=steps[0], settings=settings, out=Path(folder) / "run")
        after = jaxmbrl.resume(Path(folder) / "run", steps=steps[1])
    old, new = (jax.tree.map(lambda leaf: leaf[0], result.state) for result in (before, after))
    policy = before.policy(old, explore=True)
    data, held_out = (collecting.collect(task, policy, n, seed) for seed, n in enumerate((rows, 2 * rows)))
    distribution = sac.functions(before.config.settings.agent, task.action.shape[0]).actor.distribution
    params = (state.agent.actor.params for state in (old, new))
    shift = policy_shift(distribution, *params, held_out.observation, jax.random.key(2))
    return (data, held_out), shift, jaxmbrl.evaluate(before).mean


def bound(lengths: tuple[int, int], n: int, shift: float, error: float, r_max: float, discount: float = DISCOUNT) -> float:
    """The right side of the theorems for `lengths` (k1, k2), with epsilon_pi `shift` and epsilon_m `error`, where the model
    errs in `n` steps."""
    left, total = 1 - discount, sum(lengths)
    behind = discount ** (total + 1) * shift / left**2 + discount**total * shift / left
    return 2 * r_max * (behind + n * error / left)


def model_errors(
    models: tuple[DynamicsModel, DynamicsModel], states: tuple[PyTree, PyTree], rows: Transition, blur: Array, key: Key
) -> Float[Array, "2"]:
    """epsilon_m of the forward and of the backward ensemble: the mean over `rows`."""
    found = []
    for model, state, given, wanted in zip(
        models, states, (rows, backward.exchanged(rows)), (rows.next_observation, rows.observation), strict=True
    ):
        mean, variance = (x[..., : wanted.shape[-1]] for x in model.predict(state, given.observation, given.action))
        found.append(jnp.mean(model_error(mean, variance, wanted, blur, key)))
    return jnp.stack(found)


def measured(task: Task, rows: int, ensembles: int, config: EnsembleConfig, quick: bool = False) -> dict[str, Any]:
    """(a) and (b): means of both errors over trajectories and ensembles, their ratio, and the bounds, for each h."""
    size, action = task.observation.shape[0], task.action.shape[0]
    parts = (task.reward, task.terminated, task.features)
    models = ensemble.make(config, size, action, *parts), backward.make(config, size, action, *parts)
    collects: dict[str, Any] = {"data": "random actions"}
    shift = np.zeros(1)
    if task.name == "pendulum":
        data, held_out = collected(task, rows)
    else:
        steps, settings = (COLLECTS_AFTER, IMPROVED_AFTER), SAC
        if quick:
            steps, settings = (200, 300), SAC | {"agent.hidden": [8], "warmup_steps": 100, "epoch_steps": 100}
        (data, held_out), shift, reached = collected_by_sac(task, rows, steps, settings)
        collects = {"data": f"the stochastic policy of SAC after {steps[0]:,} steps", "return of its mean actions": reached}
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
        return jnp.stack(forth), jnp.stack(both), model_errors(models, states, held_out, BLUR * scale, key)

    found = [one(jax.random.key(i)) for i in range(ensembles)]
    forth, both, of_models = (np.array(part, np.float64) for part in zip(*found, strict=True))
    r_max = float(jnp.abs(data.reward).max())
    epsilon_pi, epsilon_m = float(shift.max()), float(of_models.mean(axis=0).max())
    return {
        **collects,
        "rows": rows,
        "ensembles": ensembles,
        "h": list(LENGTHS),
        "windows": [int(w.reward.shape[1]) for w in real.values()],
        "forward": forth.mean(axis=0).tolist(),
        "bidirectional": both.mean(axis=0).tolist(),
        "ratio": (forth.mean(axis=0) / both.mean(axis=0)).tolist(),
        "ratio of each ensemble": (forth / both).tolist(),
        "discount": DISCOUNT,
        "r_max": r_max,
        "epsilon_pi": epsilon_pi,
        "epsilon_pi, mean": float(shift.mean()),
        "epsilon_m": epsilon_m,
        "epsilon_m of each model": of_models.mean(axis=0).tolist(),
        "bound, forward": [bound((h, h), 2 * h, epsilon_pi, epsilon_m, r_max) for h in LENGTHS],
        "bound, bidirectional": [bound((h, h), h, epsilon_pi, epsilon_m, r_max) for h in LENGTHS],
        "largest possible difference": r_max / (1 - DISCOUNT),
    }


def trained(run: Path, method: str, task: str, steps: int, seeds: int, settings: dict[str, Any]) -> Result:
    """The run of a method with its preset `small` in the folder `run`, which is not repeated if it exists."""
    if run.exists():
        return jaxmbrl.resume(run)
    given = {**TASKS[task], **settings}
    return jaxmbrl.train(method, task, steps=steps, seeds=seeds, preset="small", settings=given, out=run)


def evaluated(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Evaluations of the run with these metrics: for each of these, the mean return of each seed."""
    found = [row for row in rows if "eval/return" in row]
    at = sorted({row["env_steps"] for row in found})
    by_step = {step: [row["eval/return"] for row in found if row["env_steps"] == step] for step in at}
    return {"steps": at, "returns": list(by_step.values()), "seconds": rows[-1]["wall_time"]}


def compared(found: dict[str, Any], against: str, step: int) -> dict[str, Any]:
    """Interquartile means of the cases that were evaluated after `step` steps, and their probabilities of improvement on
    one of them."""
    known = {case: dict(zip(numbers["steps"], numbers["returns"], strict=True)) for case, numbers in found.items()}
    returns = {case: by_step[step] for case, by_step in known.items() if step in by_step}
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
    """Draw the errors against h, and the returns against environment steps, a panel for each task."""
    error, learning = numbers["error"], numbers["learning"]
    panels = max(1, len(error) + len(learning))
    figure = new_figure(4.2 * panels, 3.6)
    places = list(figure.subplots(1, panels, squeeze=False)[0])
    for task, of in error.items():
        _draw_errors(places.pop(0), task, of)
    for task, of in learning.items():
        draw_returns(places.pop(0), task, of)
    write_figure(file, figure)


def _draw_errors(axes: Any, task: str, error: dict[str, Any]) -> None:
    for name, color, marker in (("forward", COLORS[1], "o"), ("bidirectional", COLORS[0], "s")):
        axes.plot(error["h"], error[name], marker=marker, color=color, label=name)
    for h, value, ratio in zip(error["h"], error["forward"], error["ratio"], strict=True):
        axes.annotate(f"{ratio:.1f} times", (h, value), textcoords="offset points", xytext=(-6, 5), ha="right", fontsize=8)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(0.5, 12)
    axes.set_xticks(error["h"], [str(h) for h in error["h"]])
    axes.minorticks_off()
    axes.set_xlabel("h (trajectories of 2h steps)")
    axes.set_ylabel("mean squared error, in variances")
    axes.set_title(f"compounding error, {task}", fontsize=10)
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    axes.spines[["top", "right"]].set_visible(False)


def draw_returns(axes: Any, task: str, cases: dict[str, Any]) -> None:
    """Draw the interquartile mean and the interval of each case against environment steps."""
    for (case, found), color in zip(cases.items(), COLORS, strict=False):
        returns = np.array(found["returns"])
        low, high = evaluation.bootstrap_bands(returns)
        middle = [evaluation.interquartile_mean(values) for values in returns]
        axes.plot(found["steps"], middle, color=color, label=case)
        axes.fill_between(found["steps"], low, high, color=color, alpha=0.15, linewidth=0)
    axes.set_xlabel("environment steps")
    axes.set_ylabel("return: IQM and 95 % interval")
    axes.set_title(f"returns, {task}", fontsize=10)
    axes.legend(frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def say(compared: dict[str, Any]) -> None:
    """Print the numbers of `compared`, by step."""
    for step, cases in compared.items():
        for case, found in cases.items():
            low, high = found["interval"]
            below, above = found["improvement interval"]
            print(
                f"{case} after {step} steps: IQM {found['iqm']:.1f} [{low:.1f}, {high:.1f}], probability of improvement on "
                f"mbpo {found['improvement']:.2f} [{below:.2f}, {above:.2f}]"
            )


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measure, train, print the tables, and write the picture and the numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="by default runs/bidirectional, with --quick runs/bidirectional-quick")
    parser.add_argument("--errors", nargs="*", default=["pendulum"], choices=MODELS)
    parser.add_argument("--task", default="pendulum", choices=TASKS)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--cases", nargs="*", default=["mbpo", "bmpo"], choices=CASES)
    parser.add_argument("--quick", action="store_true", help="one small ensemble and few steps (smoke test)")
    args = parser.parse_args(arguments)
    args.out = args.out or Path("runs/bidirectional-quick" if args.quick else "runs/bidirectional")
    args.out.mkdir(parents=True, exist_ok=True)
    picture, file = args.out / "bidirectional.png", args.out / "bidirectional.json"
    command = (
        f"python experiments/bidirectional.py --errors {' '.join(args.errors)} --task {args.task} --steps {args.steps} "
        f"--seeds {args.seeds} --cases {' '.join(repr(case) if ' ' in case else case for case in args.cases)}"
    )
    nothing: dict[str, Any] = {"error": {}, "learning": {}, "compared": {}}
    written = json.loads(file.read_text()) if file.exists() else nothing

    def keep(what: str, under: list[str], found: dict[str, Any]) -> None:
        place = written[what]
        for name in under[:-1]:
            place = place.setdefault(name, {})
        place[under[-1]] = found | {"environment": environment(command)}
        file.write_text(json.dumps(written, indent=1) + "\n")
        draw(written, picture)

    for name in args.errors:
        sizes = (200, 1, SMALL) if args.quick else (ROWS[name], 3, MODELS[name])
        found = measured(envs.make(name), *sizes, quick=args.quick)
        keep("error", [name], found)
        print(f"{name}: data of {found['data']}, epsilon_pi {found['epsilon_pi']:.3f}, epsilon_m {found['epsilon_m']:.3f}")
        for i, h in enumerate(LENGTHS):
            print(
                f"h = {h:2}: Error_for / Error_bi = {found['ratio'][i]:.2f}, bounds {found['bound, forward'][i]:.0f} and "
                f"{found['bound, bidirectional'][i]:.0f}",
                flush=True,
            )
    for case in args.cases:
        method, settings = CASES[case]
        run = args.out / f"{args.task}-{case.replace(',', '').replace(' ', '-')}"
        changes = QUICK if args.quick else {}
        result = trained(run, method, args.task, args.steps, args.seeds, {**settings, **changes})
        keep("learning", [args.task, case], evaluated(result.rows))
        print(f"{args.task}, {case}: done", flush=True)
    for task, known in written["learning"].items():
        steps = {step for found in known.values() for step in found["steps"]} & {1000, 2000, 4000, args.steps}
        if "mbpo" in known:
            written["compared"][task] = {
                str(step): compared(known, "mbpo", step) for step in sorted(steps) if step in known["mbpo"]["steps"]
            }
            print(task)
            say(written["compared"][task])
    file.write_text(json.dumps(written, indent=1) + "\n")
    print(f"picture  {picture}\nnumbers  {file}")
    return written


if __name__ == "__main__":
    main()
