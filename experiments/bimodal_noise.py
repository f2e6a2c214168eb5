"""Three dynamics models of a task whose noise has two modes: one Gaussian, a mixture of Gaussians, and score matching.

On `kicked/0.4,0.04/pendulum` (`envs.kicked`) each step's torque is 0.6 times the one that was chosen, plus or minus about
0.8 N m, with equal probability. Models are fitted to steps of a random policy and evaluated on others:

- ensemble, Gaussian head: each member predicts one Gaussian;
- ensemble, mixture head (`--ensemble.head mixture`): each member predicts a mixture, and is fitted by its likelihood;
- score matching (`--dynamics score`): samples by denoising, without a density.

The next observation is (cos, sin, angular velocity). Measured are

- the negative log-likelihood (NLL) of the angular velocity, in nats. The score-matching model has no density: its number is
  that of a kernel density of 64 samples, whose width was fitted. For comparison "NLL of samples" is the same estimate for
  all models, with 200 samples and for each model the most likely width on these rows;
- the energy score E|X - y| - E|X - X'| / 2 of the whole next observation, in standard deviations of its changes, from
  samples X, X' of the model: a proper score, lower is better (Gneiting and Raftery 2007);
- miscalibration of the angular velocity, the mean of |share - level| (`diagnostics.calibrating`).

The lines "truth" are those of the simulator's own distribution. The goal is a mixture whose NLL is at least 0.5 nats below
that of the Gaussian.

    python experiments/bimodal_noise.py [--out FOLDER] [--seeds 2] [--returns] [--quick]

`--returns` also trains PETS with each model, for the return on that task. Writes `bimodal-noise.png` and
`bimodal-noise.json`, with command, commit, versions and machine. Without returns it takes about one minute of one core.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

import jaxmbrl
from jaxmbrl import envs
from jaxmbrl.agents.exploration import uniform
from jaxmbrl.core.types import DynamicsModel, Key, PyTree, Transition
from jaxmbrl.data import replay
from jaxmbrl.diagnostics import evaluate_model
from jaxmbrl.envs.base import State
from jaxmbrl.envs.classic.pendulum import DT, GRAVITY, MAX_TORQUE, Pendulum, reward
from jaxmbrl.models import EnsembleConfig, ensemble, score_matching
from jaxmbrl.models.score_matching import ScoreConfig, best_width
from jaxmbrl.training.collecting import collect
from jaxmbrl.training.run_folder import environment, new_figure, write_figure

KICK, SPREAD = 0.4, 0.04
TASK = f"kicked/{KICK:g},{SPREAD:g}/pendulum"
SPEED = 2
"""Entry of the observation: the angular velocity."""
MODELS = ("Gaussian", "mixture", "score matching")
COLORS = {"Gaussian": "#c1440e", "mixture": "#0b3d91", "score matching": "#2a7f62", "truth": "0.3"}
NEW, DRAWN = 500, 200
"""Held-out steps, and samples for each."""
SHOWN = 4000
"""Samples in the picture."""
GOAL = 0.5
"""Least difference in nats of the NLL of Gaussian and mixture."""
PICTURE, NUMBERS = "bimodal-noise.png", "bimodal-noise.json"
LAST = 3
"""Episodes at the end of a run of PETS whose mean return is compared."""


class Sizes(NamedTuple):
    """Sizes of the study."""

    seeds: int = 2
    steps: int = 2000
    """Steps that the models are fitted to."""
    epochs: int = 300
    score_steps: int = 2500
    pets_steps: int = 1600
    settings: tuple[tuple[str, Any], ...] = ()
    """Changes to the preset of PETS."""


QUICK = Sizes(
    seeds=1,
    steps=300,
    epochs=2,
    score_steps=20,
    pets_steps=400,
    settings=(
        ("planner.cem.population", 10),
        ("planner.cem.elites", 2),
        ("planner.cem.iterations", 1),
        ("ensemble.max_epochs", 2),
    ),
)


def made(name: str, sizes: Sizes) -> DynamicsModel:
    """A model of this name; it predicts the observation only."""
    known = {"reward": reward, "terminated": envs.make(TASK).terminated}
    if name == "score matching":
        return score_matching.make(ScoreConfig(fit_steps=sizes.score_steps), 3, 1, **known)
    config = EnsembleConfig(
        head="mixture" if name == "mixture" else "gaussian",
        members=3,
        elites=3,
        hidden=(64, 64),
        learning_rate=3e-3,
        annealing=True,
        batch_size=64,
        max_epochs=sizes.epochs,
        patience=sizes.epochs,
    )
    return ensemble.make(config, 3, 1, **known)


def random_steps(number: int, seed: int) -> Transition:
    """Steps of a random policy."""
    task = envs.make(TASK)
    return collect(task, uniform(task.action), number, seed)


def samples(
    name: str, model: DynamicsModel, state: PyTree, rows: Transition, number: int, key: Key
) -> Float[Array, "S N 3"]:
    """Samples of the next observation of each row, for the ensembles with members in turn."""

    def sample(key: Key) -> Float[Array, "N 3"]:
        return model.world(state).step(rows.observation, rows.action, key)[0]

    return jax.lax.map(sample, jax.random.split(key, number), batch_size=20)


def true_samples(rows: Transition, number: int, key: Key) -> Float[Array, "S N 3"]:
    """The same by the simulator."""
    task, env = envs.make(TASK), Pendulum()

    def step(observation: Float[Array, "3"], action: Float[Array, "1"], key: Key) -> Float[Array, "3"]:
        state: State = env.state_at(jnp.stack([jnp.arctan2(observation[1], observation[0]), observation[2]]))
        return task.world.step(task.world.start(state, key), action, key)[1].next_observation

    def sample(key: Key) -> Float[Array, "N 3"]:
        return jax.vmap(step)(rows.observation, rows.action, jax.random.split(key, rows.reward.shape[0]))

    return jax.lax.map(sample, jax.random.split(key, number), batch_size=20)


def true_density(rows: Transition) -> Float[np.ndarray, "N"]:
    """Log-density of the recorded angular velocities, where no speed or torque is at its limit."""
    observation, action, after = (np.asarray(x, float) for x in (rows.observation, rows.action, rows.next_observation))
    gain = 3 * MAX_TORQUE * DT
    mean = observation[:, SPEED] + 1.5 * GRAVITY * DT * observation[:, 1] + gain * (1 - KICK) * action[:, 0]
    each = [
        -0.5 * ((after[:, SPEED] - mean - sign * gain * KICK) / (gain * SPREAD)) ** 2
        - math.log(gain * SPREAD * math.sqrt(2 * math.pi))
        for sign in (-1, 1)
    ]
    return np.logaddexp(*each) - math.log(2)


def unlimited(rows: Transition) -> np.ndarray:
    """Which rows reach no limit of the speed or, by more than two standard deviations of the spread, of the torque."""
    torque = (1 - KICK) * np.abs(np.asarray(rows.action)[:, 0]) + KICK + 2 * SPREAD
    return (np.abs(np.asarray(rows.next_observation)[:, SPEED]) < 7.99) & (torque < 1)


def energy_score(drawn: Float[Array, "S N D"], observed: Float[Array, "N D"]) -> Float[Array, ""]:
    """The mean over rows of E|X - y| - E|X - X'| / 2, with X' the samples of X shifted by half their number."""
    apart = jnp.mean(jnp.linalg.norm(drawn - observed, axis=-1), axis=0)
    other = jnp.roll(drawn, drawn.shape[0] // 2, axis=0)
    return jnp.mean(apart - 0.5 * jnp.mean(jnp.linalg.norm(drawn - other, axis=-1), axis=0))


def of_samples(drawn: Float[Array, "S N 3"], rows: Transition, unit: Float[np.ndarray, "3"]) -> dict[str, float]:
    """What can be measured of samples alone."""
    speed, observed = drawn[..., SPEED:] / unit[SPEED], rows.next_observation[:, SPEED:] / unit[SPEED]
    density = jax.scipy.stats.norm.logpdf(observed, speed, best_width(speed, observed))
    likelihood = jnp.mean(jax.nn.logsumexp(density, axis=0)) - math.log(drawn.shape[0]) - math.log(unit[SPEED])
    return {
        "nll_of_samples": -float(likelihood),
        "energy_score": float(energy_score(drawn / unit, rows.next_observation / unit)),
    }


def study(sizes: Sizes) -> dict[str, Any]:
    """The numbers of each seed of each model and of the truth, and the samples in the picture."""
    found: dict[str, Any] = {name: [] for name in (*MODELS, "truth")}
    models = {name: made(name, sizes) for name in MODELS}
    draw = jax.jit(samples, static_argnums=(0, 1, 4))
    truly = jax.jit(true_samples, static_argnums=1)
    picture: dict[str, Any] = {}
    for seed in range(sizes.seeds):
        data = jax.tree.map(jnp.asarray, random_steps(sizes.steps, seed))
        test = jax.tree.map(jnp.asarray, random_steps(2 * NEW, 1000 + seed))
        inside = np.flatnonzero(unlimited(test))[:NEW]
        test = jax.tree.map(lambda leaf, inside=inside: leaf[inside], test._replace(extras=()))
        unit = np.std(np.asarray(data.next_observation - data.observation), axis=0)
        one = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf[0], (30, *leaf.shape[1:])), test)
        init_key, fit_key, draw_key = jax.random.split(jax.random.key(seed), 3)
        for name, model in models.items():
            state, _ = jax.jit(model.fit)(jax.jit(model.init)(init_key, {}), replay.of_rows(data), fit_key)
            of_rows = evaluate_model(model, state, test)
            drawn = draw(name, model, state, test, DRAWN, draw_key)
            numbers = {
                "nll": float(of_rows.mixture_nll[SPEED]),
                **of_samples(drawn, test, unit),
                "miscalibration": float(of_rows.calibration.error[SPEED]),
                "error": float(of_rows.error[SPEED] / unit[SPEED]),
            }
            found[name].append(numbers)
            if seed == 0:
                picture[name] = np.asarray(draw(name, model, state, one, SHOWN // 30, draw_key))[..., SPEED].ravel()
        drawn = truly(test, DRAWN, draw_key)
        found["truth"].append({"nll": -float(np.mean(true_density(test))), **of_samples(drawn, test, unit)})
        if seed == 0:
            picture["truth"] = np.asarray(truly(one, SHOWN // 30, draw_key))[..., SPEED].ravel()
    return found | {"picture": picture}


def returns(name: str, sizes: Sizes, folder: Path) -> dict[str, Any]:
    """The return of each episode of each seed: PETS with one model, whose run is in `folder`."""
    settings: dict[str, Any] = dict(sizes.settings)
    if name == "score matching":
        settings |= {"dynamics": "score", "score.hidden": [64, 64], "score.fit_steps": min(500, sizes.score_steps)}
    elif name == "mixture":
        settings["ensemble.head"] = "mixture"
    run = folder / f"pets-{name.replace(' ', '-')}"
    if run.exists():
        result = jaxmbrl.resume(run)
    else:
        result = jaxmbrl.train(
            "pets", TASK, steps=sizes.pets_steps, preset="small", settings=settings, seeds=sizes.seeds, out=run
        )
    by_seed = [[row["train/return"] for row in result.rows if row["seed"] == seed] for seed in range(sizes.seeds)]
    return {"returns": by_seed, "last": [float(np.mean(values[-LAST:])) for values in by_seed]}


def mean_of(numbers: list[dict[str, float]], name: str) -> float:
    """The mean over seeds of a number; NaN if it was not measured."""
    return float(np.mean([of.get(name, np.nan) for of in numbers]))


def table(found: dict[str, Any]) -> str:
    """The means over seeds as text, a line for each model."""
    names = ("nll", "nll_of_samples", "energy_score", "miscalibration", "error")
    lines = [" " * 16 + "".join(f"{name:>16}" for name in names)]
    for model in (*MODELS, "truth"):
        lines.append(f"{model:<16}" + "".join(f"{mean_of(found[model], name):16.3f}" for name in names))
    return "\n".join(lines)


def draw_picture(found: dict[str, Any], path: Path) -> None:
    """Write the picture: histograms of samples of one step beside the truth."""
    figure = new_figure(13, 3.6)
    panels = figure.subplots(1, len(MODELS), sharey=True)
    truth = found["picture"]["truth"]
    width = np.ptp(truth)
    bins = np.linspace(truth.min() - 0.4 * width, truth.max() + 0.4 * width, 70)
    for axes, name in zip(panels, MODELS, strict=True):
        axes.hist(truth, bins, density=True, color=COLORS["truth"], alpha=0.35, label="simulator")
        axes.hist(
            found["picture"][name], bins, density=True, histtype="step", color=COLORS[name], linewidth=1.8, label=name
        )
        axes.set(title=f"{name}: NLL {mean_of(found[name], 'nll'):.2f}", xlabel="next angular velocity (rad/s)")
        axes.legend(frameon=False, fontsize=8)
        axes.title.set_fontsize(10)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("density")
    write_figure(path, figure)


def write(found: dict[str, Any], sizes: Sizes, out: Path, command: str) -> dict[str, Any]:
    """Write the picture and the numbers, and return the latter."""
    draw_picture(found, out / PICTURE)
    gain = mean_of(found["Gaussian"], "nll") - mean_of(found["mixture"], "nll")
    written = {
        "task": TASK,
        "seeds": sizes.seeds,
        "goal": {"nats": GOAL, "found": gain},
        **{name: of for name, of in found.items() if name != "picture"},
        "environment": environment(command),
    }
    (out / NUMBERS).write_text(json.dumps(written, indent=1) + "\n")
    return written


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Fit the models, print the table, and write the picture and the numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="by default runs/bimodal-noise, with --quick runs/bimodal-noise-quick")
    parser.add_argument("--runs", type=Path, help="folder of the runs of PETS")
    parser.add_argument("--seeds", type=int, default=Sizes().seeds)
    parser.add_argument("--returns", action="store_true", help="train PETS with each model, too")
    parser.add_argument("--quick", action="store_true", help="one seed and few steps (smoke test)")
    args = parser.parse_args(arguments)
    args.out = args.out or Path("runs/bimodal-noise-quick" if args.quick else "runs/bimodal-noise")
    args.out.mkdir(parents=True, exist_ok=True)
    sizes = QUICK if args.quick else Sizes(seeds=args.seeds)
    found = study(sizes)
    print(f"{TASK}, means of {sizes.seeds} seeds\n{table(found)}")
    command = f"python experiments/bimodal_noise.py --seeds {sizes.seeds}"
    written = write(found, sizes, args.out, command)
    if args.returns:
        found["returns"] = {name: returns(name, sizes, args.runs or args.out) for name in MODELS}
        print(f"\nreturn of PETS, mean of the last {LAST} episodes of each seed")
        for name, of in found["returns"].items():
            print(f"{name:<16}" + "".join(f"{value:10.1f}" for value in of["last"]))
        written = write(found, sizes, args.out, f"{command} --returns")
    print(f"picture  {args.out / PICTURE}\nnumbers  {args.out / NUMBERS}")
    return written


if __name__ == "__main__":
    main()
