"""Five dynamics models and their uncertainty: a Gaussian process, an ensemble, and three Bayesian neural networks.

The models are a Gaussian process (`models.gaussian_process`), the ensemble of independent networks, and networks whose
weights have a distribution (`models.bayesian`): MC dropout, concrete dropout, and Bayes by backprop, each as draws that are
kept. Three things are measured:

(a) A curve. 200 rows of y = sin(1.5 x) + noise of standard deviation 0.1, with x in [-4, -1] and [1, 4]. The epistemic
    standard deviation should be small where data are, and larger in the gap between them and beyond them, x in [4.5, 6].
    The ratio beyond / at the data says whether a model's uncertainty grows where it has no data; a ratio of 5 is asked of
    the Gaussian process and of the ensemble.
(b) `cartpole-swingup`. Models are fitted to the first 300 steps of a random policy, and evaluated on others of its steps
    (held out) and on single steps from states drawn uniformly from the range that a swing-up visits (far): positions within
    1.5 m, velocities within 4 m/s, angular velocities within 12 rad/s, all angles.
(c) With `--returns`: PETS on that task with each model, preset `small-swingup`, which refits after each episode. The model
    is the only difference, except that plans through the Gaussian process use its mean only.

Errors and standard deviations of (a) are in the unit of y, those of (b) in standard deviations of the change of each
dimension in the fitted rows; all are root mean squares. The negative log-likelihood (NLL) is of new noisy values, in nats
per dimension, and miscalibration the mean of |share - level| (`diagnostics.calibrating`).

    python experiments/bayesian_models.py [--out FOLDER] [--seeds 2] [--returns] [--steps 480] [--quick]

Writes `bayesian-models.png` and `bayesian-models.json`, with command, commit, versions and machine. Runs of PETS are in
`--runs`, by default the folder of `--out`; finished ones are not repeated. Without the runs it takes about two minutes of
two CPU cores, each model's runs some minutes more.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
from dataclasses import replace
from functools import lru_cache
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
from jaxmbrl.envs.base import never
from jaxmbrl.envs.classic.cartpole_swingup import CartPoleSwingUp
from jaxmbrl.models import EnsembleConfig, ensemble, gaussian_process, uncertainty
from jaxmbrl.models.bayesian import BayesianConfig
from jaxmbrl.models.gaussian_process import GaussianProcessConfig, regression
from jaxmbrl.training.collecting import collect
from jaxmbrl.training.run_folder import environment, new_figure, write_figure

MODELS = {
    "Gaussian process": "gp",
    "ensemble": "bootstrap",
    "dropout": "dropout",
    "concrete dropout": "concrete-dropout",
    "Bayes by backprop": "bayes-by-backprop",
}
"""The kind of each model: `gp`, or that of an ensemble."""
COLORS = dict(zip(MODELS, ("#0b3d91", "#c1440e", "#2a7f62", "#8a5a9e", "#b8860b"), strict=True))
REGIONS = {"data": ((-4.0, -1.0), (1.0, 4.0)), "gap": ((-1.0, 1.0),), "beyond": ((4.5, 6.0),)}
"""(a) Intervals of x, of equal lengths within a region; only the first region has data."""
DATA, NOISE, NEW = 200, 0.1, 2000
TASK = "cartpole-swingup"
FITTED, TESTED = 300, 1000
"""(b) Steps of the random policy."""
FAR = np.array([1.5, 4.0, 12.0, math.pi])
"""(b) Largest position, velocity, angular velocity and angle of states that are far from the data."""
DRAWS = 20
"""Members of the Bayesian networks in (a) and (b)."""
PICTURE, NUMBERS = "bayesian-models.png", "bayesian-models.json"
GOAL = 5.0
"""(a) Least ratio of the epistemic standard deviation beyond the data to that at the data."""
LAST = 5
"""(c) Episodes at the end of a run whose mean return is compared."""


class Sizes(NamedTuple):
    """Sizes of the study."""

    seeds: int = 2
    epochs: int = 1250
    """(a) Epochs of 4 gradient steps."""
    swingup_epochs: int = 200
    """(b) Epochs of 5 gradient steps."""
    evaluations: int = 60
    """Evaluations of the Gaussian process's evidence."""
    steps: int = 480
    """(c) Environment steps of a run."""
    settings: tuple[tuple[str, Any], ...] = ()
    """(c) Changes to the preset."""


QUICK = Sizes(
    seeds=1,
    epochs=15,
    swingup_epochs=3,
    evaluations=5,
    steps=240,
    settings=(("planner.cem.population", 10), ("planner.cem.iterations", 1), ("ensemble.max_epochs", 3)),
)


def precision_of(kind: str) -> Any:
    """The floating-point type of a model: float64 of a Gaussian process, else float32."""
    return jax.enable_x64(True) if kind == "gp" else contextlib.nullcontext()


@lru_cache
def made(kind: str, size: int, actions: int, config: EnsembleConfig, evaluations: int) -> DynamicsModel:
    """A model of this kind for observations and actions of these sizes, whose reward and termination are known."""
    known = {"reward": lambda s, a, t: jnp.zeros(len(s)), "terminated": never}
    if kind == "gp":
        rows = GaussianProcessConfig(capacity=FITTED, inducing=FITTED, evaluations=evaluations, absolute=config.absolute)
        return gaussian_process.make(rows, size, actions, **known)
    if kind != "bootstrap":
        config = replace(config, kind=kind, members=DRAWS, elites=DRAWS, bayesian=BayesianConfig(rate=0.1))
    return ensemble.make(config, size, actions, **known)


def fitted(kind: str, model: DynamicsModel, rows: Transition, seed: int) -> PyTree:
    """The state of a model that is fitted to the rows."""
    init_key, fit_key = jax.random.split(jax.random.key(seed))
    return jax.jit(model.fit)(jax.jit(model.init)(init_key, {}), replay.of_rows(rows), fit_key)[0]


def parts(
    kind: str, model: DynamicsModel, state: PyTree, rows: Transition
) -> tuple[Float[Array, "N D"], Float[Array, "N D"], Float[Array, "N D"]]:
    """(mean, variance of the noise, variance of the function) of the predictions."""
    mean, variance = jax.jit(model.predict)(state, rows.observation, rows.action)
    if kind != "gp":
        return jnp.mean(mean, axis=0), *uncertainty(mean, variance)
    noise = jnp.broadcast_to(regression.noise_variance(state.posterior), variance[0].shape)
    return mean[0], noise, variance[0] - noise


def measured(
    kind: str, model: DynamicsModel, state: PyTree, rows: Transition, unit: Float[np.ndarray, "D"]
) -> dict[str, float]:
    """The numbers of a model on rows that it was not fitted to; errors and deviations in these units."""
    found = evaluate_model(model, state, rows)
    _, aleatoric, epistemic = parts(kind, model, state, rows)

    def root(squares: Any) -> float:
        return float(np.sqrt(np.mean(np.asarray(squares) / unit**2)))

    return {
        "error": root(found.error**2),
        "aleatoric": root(aleatoric),
        "epistemic": root(epistemic),
        "nll": float(np.mean(found.mixture_nll + np.log(unit))),
        "miscalibration": float(np.mean(found.calibration.error)),
    }


def curve(x: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """(a) The mean of y at x."""
    return np.sin(1.5 * x)


def points(region: str, number: int, seed: int) -> Transition:
    """(a) Rows with x uniform over a region, as transitions without action from x to y."""
    rng = np.random.default_rng([seed, list(REGIONS).index(region), number])
    low, high = np.array(REGIONS[region]).T
    which = rng.integers(low.size, size=number)
    x = rng.uniform(low[which], high[which])
    return of_curve(x, curve(x) + NOISE * rng.normal(size=number))


def of_curve(x: np.ndarray, y: np.ndarray) -> Transition:
    """(a) Rows from x to y."""
    none = np.zeros(len(x), bool)
    rows = Transition(x[:, None], np.zeros((len(x), 0)), np.zeros(len(x)), y[:, None], none, none)
    return jax.tree.map(jnp.asarray, rows)


CURVE = EnsembleConfig(
    members=5,
    elites=5,
    hidden=(50, 50),
    noise="constant",
    learning_rate=5e-3,
    annealing=True,
    batch_size=64,
    holdout_fraction=0.0,
    input_margin=None,
    absolute=(0,),
)
"""(a) Members of an ensemble, and of the networks without data for early stopping."""
SWINGUP = replace(CURVE, hidden=(64, 64, 64), learning_rate=3e-3, noise="input", absolute=())
"""(b) The same."""


def on_curve(kind: str, sizes: Sizes) -> dict[str, Any]:
    """(a) The numbers of one model: for each region those of each seed, and its predictions for the picture."""
    with precision_of(kind):
        model = made(kind, 1, 0, replace(CURVE, max_epochs=sizes.epochs), sizes.evaluations)
        found: dict[str, Any] = {region: [] for region in REGIONS}
        for seed in range(sizes.seeds):
            state = fitted(kind, model, points("data", DATA, seed), seed)
            for region in REGIONS:
                found[region].append(measured(kind, model, state, points(region, NEW, seed), np.ones(1)))
            if seed == 0:
                x = np.linspace(-5, 6.5, 231)
                drawn = parts(kind, model, state, of_curve(x, curve(x)))
                found["picture"] = (x, *(np.asarray(part)[:, 0] for part in drawn))
    return found


def random_steps(number: int, seed: int) -> Transition:
    """(b) Steps of a random policy, episode after episode."""
    task = envs.make(TASK)
    return collect(task, uniform(task.action), number, seed)


def in_this_precision(values: np.ndarray) -> Array:
    """An array with floats of JAX's default type."""
    return jnp.asarray(values, float if values.dtype.kind == "f" else values.dtype)


def far_steps(number: int, seed: int) -> Transition:
    """(b) Single steps with random actions from states that are uniform within the ranges of `FAR`."""
    env = CartPoleSwingUp()

    def one(key: Key) -> Transition:
        state_key, action_key = jax.random.split(key)
        state = env.state_at(jax.random.uniform(state_key, (4,), minval=-1.0) * FAR)
        action = jax.random.uniform(action_key, (1,), minval=-1.0)
        after, no = env.step(state, action), jnp.zeros((), bool)
        return Transition(state.obs, action, after.reward, after.obs, no, no)

    return jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(seed), number))


def on_swingup(kind: str, sizes: Sizes) -> dict[str, Any]:
    """(b) The numbers of one model: for each kind of row those of each seed."""
    found: dict[str, Any] = {"held out": [], "far": []}
    for seed in range(sizes.seeds):
        rows = random_steps(FITTED, seed), random_steps(TESTED, 1000 + seed), far_steps(TESTED, seed)
        data, *tests = jax.device_get(rows)
        unit = np.std(data.next_observation - data.observation, axis=0)
        with precision_of(kind):
            data, *tests = (jax.tree.map(in_this_precision, rows) for rows in (data, *tests))
            config = replace(SWINGUP, max_epochs=sizes.swingup_epochs)
            model = made(kind, data.observation.shape[1], 1, config, sizes.evaluations)
            state = fitted(kind, model, data, seed)
            for name, test in zip(found, tests, strict=True):
                found[name].append(measured(kind, model, state, test, unit))
    return found


def returns(kind: str, sizes: Sizes, folder: Path) -> dict[str, Any]:
    """(c) The return of each episode of each seed: PETS with one model, whose run is in `folder`."""
    settings: dict[str, Any] = {"epoch_steps": 40, "refit_every": 40, **dict(sizes.settings)}
    if kind == "gp":
        few = {"capacity": 200, "inducing": 200, "evaluations": min(30, sizes.evaluations), "propagation": "expectation"}
        settings |= {"dynamics": "gp", "particles": 1, **{f"gp.{name}": value for name, value in few.items()}}
    else:
        settings["ensemble.kind"] = kind
    with precision_of(kind):
        run = folder / f"pets-{kind}"
        if run.exists():
            result = jaxmbrl.resume(run)
        else:
            given = {"preset": "small-swingup", "settings": settings, "seeds": sizes.seeds, "out": run}
            result = jaxmbrl.train("pets", TASK, steps=sizes.steps, **given)
    by_seed = [[row["train/return"] for row in result.rows if row["seed"] == seed] for seed in range(sizes.seeds)]
    return {
        "returns": by_seed,
        "last": [float(np.mean(values[-LAST:])) for values in by_seed],
        "seconds": result.rows[-1]["wall_time"],
    }


def mean_of(numbers: list[dict[str, float]], name: str) -> float:
    """The mean over seeds of a number."""
    return float(np.mean([of[name] for of in numbers]))


def ratio(regions: dict[str, Any]) -> float:
    """(a) The epistemic standard deviation beyond the data, as a multiple of that at the data; means over seeds."""
    return mean_of(regions["beyond"], "epistemic") / mean_of(regions["data"], "epistemic")


def table(found: dict[str, Any], regions: tuple[str, ...]) -> str:
    """The means over seeds as text, a line for each model and region."""
    names = ("error", "aleatoric", "epistemic", "nll", "miscalibration")
    lines = [" " * 32 + "".join(f"{name:>16}" for name in names)]
    for model, of in found.items():
        for region in regions:
            numbers = "".join(f"{mean_of(of[region], name):16.3f}" for name in names)
            lines.append(f"{model:<20}{region:<12}{numbers}")
    return "\n".join(lines)


def draw(found: dict[str, Any], path: Path) -> None:
    """Write the picture: the fits of the curve, and below them deviations, errors and returns."""
    figure = new_figure(16, 8)
    above, below = figure.subfigures(2, 1, height_ratios=(1, 1.05))
    panels = above.subplots(1, len(MODELS), sharey=True)
    data = points("data", DATA, 0)
    for axes, (name, of) in zip(panels, found["curve"].items(), strict=True):
        x, mean, aleatoric, epistemic = of["picture"]
        for width, share in ((np.sqrt(aleatoric + epistemic), 0.15), (np.sqrt(epistemic), 0.35)):
            axes.fill_between(x, mean - 2 * width, mean + 2 * width, color=COLORS[name], alpha=share, linewidth=0)
        axes.plot(data.observation[:, 0], data.next_observation[:, 0], ".", color="0.45", markersize=2)
        axes.plot(x, curve(x), color="black", linestyle="--", linewidth=1)
        axes.plot(x, mean, color=COLORS[name], linewidth=1.8)
        axes.set(title=f"{name}: beyond / data {ratio(of):.1f}", xlim=(-5, 6.5), ylim=(-3, 3), xlabel="x")
    panels[0].set_ylabel("y, with 2 standard deviations:\nepistemic (dark), and with noise")
    has_returns = "returns" in found
    bars = below.subplots(1, 3 + has_returns)
    _bars(bars[0], found["curve"], tuple(REGIONS), "epistemic")
    bars[0].set(title="curve: epistemic deviation", yscale="log")
    _bars(bars[1], found["swingup"], ("held out", "far"), "error", "epistemic")
    bars[1].set(title="swing-up: error, and epistemic deviation (dots)", yscale="log")
    _bars(bars[2], found["swingup"], ("held out", "far"), "miscalibration")
    bars[2].set(title="swing-up: miscalibration")
    if has_returns:
        for name, of in found["returns"].items():
            runs = np.asarray(of["returns"])
            episodes = np.arange(1, runs.shape[1] + 1)
            for run in runs:
                bars[3].plot(episodes, run, color=COLORS[name], alpha=0.25, linewidth=0.8)
            bars[3].plot(episodes, runs.mean(axis=0), color=COLORS[name], linewidth=2)
        bars[3].set(title="swing-up: return of PETS, mean of seeds", xlabel="episode", ylim=(0, None))
    for axes in (*panels, *bars):
        axes.title.set_fontsize(10)
        axes.spines[["top", "right"]].set_visible(False)
    handles = [bars[0].bar(0, 0, color=color, label=name) for name, color in COLORS.items()]
    below.legend(handles=handles, loc="outside lower center", ncol=len(handles), frameon=False, fontsize=9)
    write_figure(path, figure)


def _bars(axes: Any, found: dict[str, Any], regions: tuple[str, ...], name: str, dots: str | None = None) -> None:
    """A group of bars for each region, and a bar for each model: means over seeds."""
    width = 0.8 / len(found)
    for i, (model, of) in enumerate(found.items()):
        at = np.arange(len(regions)) + (i - (len(found) - 1) / 2) * width
        axes.bar(at, [mean_of(of[region], name) for region in regions], width, color=COLORS[model])
        if dots is not None:
            axes.plot(at, [mean_of(of[region], dots) for region in regions], "o", color="black", markersize=4)
    axes.set_xticks(range(len(regions)), regions)


def write(found: dict[str, Any], sizes: Sizes, out: Path, command: str) -> dict[str, Any]:
    """Write the picture and the numbers, and return the latter."""
    draw(found, out / PICTURE)
    written = {
        "seeds": sizes.seeds,
        "goal": {"ratio": GOAL, "of": list(MODELS)[:2]},
        "ratios": {name: ratio(of) for name, of in found["curve"].items()},
        **found,
        "curve": {name: {part: of[part] for part in REGIONS} for name, of in found["curve"].items()},
        "environment": environment(command),
    }
    (out / NUMBERS).write_text(json.dumps(written, indent=1) + "\n")
    return written


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Fit the models, print the tables, and write the picture and the numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="by default runs/bayesian-models, with --quick runs/bayesian-models-quick")
    parser.add_argument("--runs", type=Path, help="folder of the runs of PETS")
    parser.add_argument("--seeds", type=int, default=Sizes().seeds)
    parser.add_argument("--returns", action="store_true", help="train PETS with each model, too")
    parser.add_argument("--steps", type=int, default=Sizes().steps, help="environment steps of each run of PETS")
    parser.add_argument("--quick", action="store_true", help="one seed and few epochs (smoke test)")
    args = parser.parse_args(arguments)
    args.out = args.out or Path("runs/bayesian-models-quick" if args.quick else "runs/bayesian-models")
    args.out.mkdir(parents=True, exist_ok=True)
    sizes = QUICK if args.quick else Sizes(seeds=args.seeds, steps=args.steps)
    found: dict[str, Any] = {
        "curve": {name: on_curve(kind, sizes) for name, kind in MODELS.items()},
        "swingup": {name: on_swingup(kind, sizes) for name, kind in MODELS.items()},
    }
    print(f"the curve, means of {sizes.seeds} seeds")
    print(table(found["curve"], tuple(REGIONS)))
    print(f"\n{TASK}, means of {sizes.seeds} seeds")
    print(table(found["swingup"], ("held out", "far")))
    ratios = {name: ratio(of) for name, of in found["curve"].items()}
    print("\nepistemic deviation beyond / at the data: " + ", ".join(f"{name} {x:.1f}" for name, x in ratios.items()))
    command = f"python experiments/bayesian_models.py --seeds {sizes.seeds}"
    written = write(found, sizes, args.out, command)
    if args.returns:
        found["returns"] = {name: returns(kind, sizes, args.runs or args.out) for name, kind in MODELS.items()}
        print(f"\nreturn of PETS, mean of the last {LAST} episodes of each seed")
        for name, of in found["returns"].items():
            print(f"{name:<20}" + "".join(f"{value:8.1f}" for value in of["last"]))
        written = write(found, sizes, args.out, f"{command} --returns --steps {sizes.steps}")
    print(f"picture  {args.out / PICTURE}\nnumbers  {args.out / NUMBERS}")
    return written


if __name__ == "__main__":
    main()
