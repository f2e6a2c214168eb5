"""PILCO's predicted trials against the real ones: after each fit and policy improvement the belief of the next trial, and
the trial that the policy then takes.

For each seed and trial this measures the sum of costs (1 - reward), the mean cost of the last second, which is near 0 if
the policy balances, the predicted sum of costs, and the share of real states that are within two standard deviations of the
prediction, over all steps and entries of the observation.

    python experiments/predicted_trials.py [--env pilco-pendulum] [--out FOLDER] [--trials 5] [--seeds 4] [--seed 0]
        [--preset NAME] [--policy rbf|linear] [--evaluations N] [--run RUN] [--quick]

A trial 0 of random actions comes first. With `--run RUN`, the folder of a run of `pilco`, nothing is trained: the same is
measured of 20 trials of each seed's last policy, and the first of them is drawn. Writes `predicted-trials-TASK.png` and
`.json`, with command, commit, versions and machine; of trained seeds anew after each.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmbrl import algorithms, envs
from jaxmbrl.algorithms.value_gradients import pilco
from jaxmbrl.core.precision import use_float64
from jaxmbrl.core.types import Task
from jaxmbrl.rollout import rollout
from jaxmbrl.training import runner
from jaxmbrl.training.loop import clock_at
from jaxmbrl.training.run_folder import environment, new_figure, write_figure

SECOND = 1.0
"""Length of the end of a trial over which the cost is averaged."""
TRIALS = 20
"""Trials of each policy of a run."""


class Trial(NamedTuple):
    """A trial, and what was predicted of it; `None` for the random one."""

    observation: Any
    """After each step, [H, O]."""
    reward: Any
    """[H]."""
    predicted: pilco.Prediction | None


def of_seed(config: pilco.Config, task: Task, trials: int, seed: int, say: Any = print) -> list[Trial]:
    """The random trial, and `trials` trials of one seed."""
    algorithm = pilco.make(config, task)

    @jax.jit
    def take(state: pilco.State, env_steps: Any, key: Any) -> Any:
        reset_key, policy_key, rollout_key = jax.random.split(key, 3)
        policy = algorithm.policy(state, clock_at(0)._replace(env_steps=env_steps), True)
        start = task.world.reset(reset_key), policy.init(policy_key)
        return rollout(task.world, policy, start, rollout_key, config.refit_every)[1]

    @jax.jit
    def learn(state: pilco.State, env_steps: Any, rows: Any) -> Any:
        clock = clock_at(0)._replace(env_steps=env_steps)
        state, found = algorithm.learn(clock, state, jax.tree.map(lambda leaf: leaf[:, None], rows))
        return state, found, pilco.predict(config, task, state.model.posterior, state.actor.params, state.start)

    learner_key, key = jax.random.split(jax.random.key(seed))
    state, predicted, done = jax.jit(lambda key: algorithm.init(key, {}, None))(learner_key), None, []
    for trial in range(trials + 1):
        env_steps = jnp.asarray(trial * config.refit_every, jnp.int32)
        rows = take(state, env_steps, jax.random.fold_in(key, trial))
        done.append(Trial(np.asarray(rows.next_observation), np.asarray(rows.reward), predicted))
        if trial < trials:
            started = time.monotonic()
            state, found, predicted = learn(state, env_steps + config.refit_every, rows)
            predicted = jax.device_get(predicted)
            took = f", {float(found['policy/evaluations'].total):.0f} evaluations in {time.monotonic() - started:.0f} s"
            ratio = float(found["model/signal_to_noise"].total)
            expected = float(np.sum(1 - predicted.reward))
        cost = 1 - done[-1].reward
        end = cost[-round(SECOND / task.env.dt) :].mean()
        say(f"seed {seed} trial {trial}: cost {cost.sum():.2f}, last second {end:.3f}", flush=True)
        if trial < trials:
            say(f"    next predicted {expected:.2f}{took}, signal to noise {ratio:.0f}", flush=True)
    return done


def of_run(run: Path) -> tuple[pilco.Config, Task, dict[int, list[Trial]]]:
    """(config, task, for each seed `TRIALS` trials of its last policy) of a run."""
    found = runner.trained(run)
    config, task = found.program.config.settings, found.program.task

    @jax.jit
    def of_one(state: pilco.State, keys: Any) -> Any:
        policy = found.program.algorithm.policy(state, clock_at(found.env_steps), False)

        def take(key: Any) -> Any:
            start = task.world.reset(key), policy.init(key)
            return rollout(task.world, policy, start, key, config.horizon)[1]

        return jax.vmap(take)(keys), pilco.predict(config, task, state.model.posterior, state.actor.params, state.start)

    trials = {}
    keys = jax.random.split(jax.random.key(0), TRIALS)
    for k in range(found.program.config.seeds):
        rows, predicted = jax.device_get(of_one(jax.tree.map(lambda leaf, k=k: leaf[k], found.states), keys))
        trials[found.program.config.seed + k] = [
            Trial(rows.next_observation[i], rows.reward[i], predicted) for i in range(TRIALS)
        ]
    return config, task, trials


def numbers_of(task: Task, trials: list[Trial]) -> list[dict[str, float]]:
    """What is measured of each trial."""
    found = []
    for trial in trials:
        cost = 1 - trial.reward
        entry = {"cost": float(cost.sum()), "last_second": float(cost[-round(SECOND / task.env.dt) :].mean())}
        if trial.predicted is not None:
            belief = trial.predicted.belief
            deviation = np.sqrt(np.diagonal(belief.covariance, axis1=1, axis2=2))
            inside = np.abs(trial.observation - belief.mean) <= 2 * deviation
            entry |= {"predicted_cost": float(np.sum(1 - trial.predicted.reward)), "within_two": float(inside.mean())}
        found.append(entry)
    return found


def draw(task: Task, shown: dict[str, Trial], path: Path) -> None:
    """One column for each predicted trial: its entries and reward with the predicted band of two standard deviations."""
    env: Any = task.env
    names = [*env.observation_names, "reward"]
    figure = new_figure(2.3 * len(shown), 1.7 * len(names))
    grid = figure.subplots(len(names), len(shown), squeeze=False, sharex=True, sharey="row")
    for column, (name, trial) in enumerate(shown.items()):
        assert trial.predicted is not None
        belief = trial.predicted.belief
        deviation = np.sqrt(np.diagonal(belief.covariance, axis1=1, axis2=2))
        of_reward = np.sqrt(np.maximum(trial.predicted.reward_variance, 0.0))
        mean = np.column_stack([belief.mean, trial.predicted.reward])
        width = 2 * np.column_stack([deviation, of_reward])
        real = np.column_stack([trial.observation, trial.reward])
        seconds = env.dt * (1 + np.arange(len(real)))
        for row, entry in enumerate(names):
            axes = grid[row, column]
            low, high = mean[:, row] - width[:, row], mean[:, row] + width[:, row]
            axes.fill_between(seconds, low, high, color="#0b3d91", alpha=0.2, linewidth=0)
            axes.plot(seconds, mean[:, row], color="#0b3d91", linewidth=1.5, label="predicted")
            axes.plot(seconds, real[:, row], color="black", linewidth=1.5, linestyle="--", label="real")
            axes.spines[["top", "right"]].set_visible(False)
            axes.grid(color="0.92", linewidth=0.6)
            if column == 0:
                axes.set_ylabel(entry)
        grid[0, column].set_title(name, loc="left", fontsize=10)
        grid[-1, column].set_xlabel("s")
    # The first bands may be wide; what happened sets the scale.
    for row in range(len(names)):
        values = np.concatenate([np.column_stack([t.observation, t.reward])[:, row] for t in shown.values()])
        margin = 0.5 * (values.max() - values.min())
        grid[row, 0].set_ylim(values.min() - margin, values.max() + margin)
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=2, frameon=False)
    write_figure(path, figure)


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Take the trials of each seed, print their costs, and write picture and numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="pilco-pendulum")
    parser.add_argument(
        "--out", type=Path, help="by default runs/predicted_trials, with --quick runs/predicted_trials-quick"
    )
    parser.add_argument("--trials", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--preset")
    parser.add_argument("--policy", choices=("rbf", "linear"))
    parser.add_argument("--evaluations", type=int)
    parser.add_argument("--run", type=Path, help="the folder of a run of pilco, in the place of training")
    parser.add_argument("--quick", action="store_true", help="two short trials with few rows (smoke test)")
    args = parser.parse_args(arguments)
    args.out = args.out or Path("runs/predicted_trials-quick" if args.quick else "runs/predicted_trials")
    use_float64()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.run is not None:
        return show(args.run, args.out)
    task = envs.make(args.env)
    name, config = algorithms.preset("pilco", args.env, args.preset)
    for field in ("policy", "evaluations"):
        if getattr(args, field) is not None:
            config = dataclasses.replace(config, **{field: getattr(args, field)})
    if args.quick:
        gp = dataclasses.replace(config.gp, capacity=40, inducing=40, evaluations=3)
        config = dataclasses.replace(config, gp=gp, bases=3, evaluations=2, refit_every=20, warmup_steps=20, horizon=20)
    stem = args.out / f"predicted-trials-{args.env.replace('/', '-')}"
    command = f"python experiments/predicted_trials.py --env {args.env} --trials {args.trials} --seeds {args.seeds}"
    written: dict[str, Any] = {"env": args.env, "preset": name, "config": dataclasses.asdict(config), "trials": {}}
    for seed in range(args.seed, args.seed + args.seeds):
        trials = of_seed(config, task, args.trials, seed)
        written["trials"][str(seed)] = numbers_of(task, trials)
        written["environment"] = environment(command)
        stem.with_suffix(".json").write_text(json.dumps(written, indent=1) + "\n")
        shown = {f"trial {number}": trial for number, trial in enumerate(trials) if trial.predicted is not None}
        draw(task, shown, Path(f"{stem}-{seed}.png"))
    return written


def show(run: Path, out: Path) -> dict[str, Any]:
    """Measure and draw the last policies of a run."""
    _, task, by_seed = of_run(run)
    stem = out / f"predicted-trials-{task.name.replace('/', '-')}"
    means: dict[str, Any] = {}
    for seed, trials in by_seed.items():
        numbers = numbers_of(task, trials)
        means[str(seed)] = {name: float(np.mean([of[name] for of in numbers])) for name in numbers[0]}
        print(f"seed {seed}: " + ", ".join(f"{name} {value:.3f}" for name, value in means[str(seed)].items()))
    written = {"env": task.name, "trials_of_each": TRIALS, "means": means}
    written["environment"] = environment(f"python experiments/predicted_trials.py --run {run.name}")
    stem.with_suffix(".json").write_text(json.dumps(written, indent=1) + "\n")
    draw(task, {f"seed {seed}": trials[0] for seed, trials in by_seed.items()}, stem.with_suffix(".png"))
    return written


if __name__ == "__main__":
    main()
