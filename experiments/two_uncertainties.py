"""Aleatoric and epistemic uncertainty of a probabilistic ensemble.

The ensemble is fitted to y = sin(1.5 x) + noise. The noise grows from left to right. There are no data in a gap in the
middle and beyond the right end. The aleatoric uncertainty is the mean over members of their variances. It should match the
noise wherever there are data. The epistemic uncertainty is the variance of the members' means. It should be small where
there are data, and grow in the gap and beyond the data. The ensemble should be calibrated for new values in the regions
with data; elsewhere, nothing is guaranteed.

    python experiments/two_uncertainties.py [--out FOLDER] [--quick]

The fit is that of the dynamics model: x is the observation, y the next observation, and there is no action. The two kinds
of uncertainty are those of Chua et al., PETS, arXiv 1805.12114, section 4; the data are our own. It takes about 20 s on two
CPU cores.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxmbrl.core.types import Key, Transition
from jaxmbrl.data import replay
from jaxmbrl.diagnostics.calibrating import Calibration, calibrate
from jaxmbrl.diagnostics.plotting import calibration_onto
from jaxmbrl.models import EnsembleConfig, ensemble, uncertainty

REGIONS = {"data": ((-4.0, -1.0), (1.0, 4.0)), "gap": ((-1.0, 1.0),), "beyond": ((4.0, 6.0),)}
"""Intervals of x; only the intervals of the first region have data."""
TITLES = {"data": "where data are", "gap": "in the gap", "beyond": "beyond the data"}
FIRST, LAST = -4.0, 6.0
DATA = 1000
"""Number of rows for the fit, including a holdout for early stopping."""
NEW = 4000
"""Number of test rows in each region."""
BLUE, RED, GREY = "#0b3d91", "#c1440e", "0.55"


def curve(x: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """The mean of y at x."""
    return jnp.sin(1.5 * x)


def noise(x: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """The standard deviation of y at x."""
    return 0.05 + 0.35 * jax.nn.sigmoid(x)


def sample(key: Key, region: str, rows: int) -> Transition:
    """Rows with x uniform over a region. The intervals of a region have equal lengths."""
    which_key, place_key, noise_key = jax.random.split(key, 3)
    low, high = jnp.array(REGIONS[region]).T
    which = jax.random.randint(which_key, (rows,), 0, low.size)
    x = low[which] + (high - low)[which] * jax.random.uniform(place_key, (rows,))
    y = curve(x) + noise(x) * jax.random.normal(noise_key, (rows,))
    never = jnp.zeros(rows, bool)
    return Transition(x[:, None], jnp.zeros((rows, 0)), jnp.zeros(rows), y[:, None], never, never)


class Study(NamedTuple):
    """The data, the fit and its results. `aleatoric` and `epistemic` are standard deviations in the unit of y."""

    data: Transition
    x: Float[Array, "N"]
    means: Float[Array, "E N"]
    aleatoric: Float[Array, "N"]
    epistemic: Float[Array, "N"]
    calibrations: dict[str, Calibration]
    """By region."""
    numbers: dict[str, dict[str, float]]
    """For each region, over its test rows: root mean squares, and the calibration error."""


def study(epochs: int, seed: int) -> Study:
    """Fit an ensemble to the data in at most `epochs` epochs, and evaluate its uncertainties."""
    data_key, init_key, fit_key, new_key = jax.random.split(jax.random.key(seed), 4)
    config = EnsembleConfig(
        members=5, elites=5, hidden=(64, 64), learning_rate=3e-3, max_epochs=epochs, patience=40, absolute=(0,)
    )
    # Reward and termination are given as known functions, so they are not learned.
    model = ensemble.make(
        config, 1, 0, reward=lambda s, a, t: jnp.zeros(len(s)), terminated=lambda t: jnp.zeros(len(t), bool)
    )
    data = sample(data_key, "data", DATA)
    state, _ = jax.jit(model.fit)(model.init(init_key, {}), replay.of_rows(data), fit_key)
    predict = jax.jit(model.predict)

    x = jnp.linspace(FIRST, LAST, 401)
    mean, variance = predict(state, x[:, None], jnp.zeros((x.size, 0)))
    aleatoric, epistemic = uncertainty(mean, variance)
    calibrations, numbers = {}, {}
    for key, name in zip(jax.random.split(new_key, len(REGIONS)), REGIONS, strict=True):
        new = sample(key, name, NEW)
        predicted = predict(state, new.observation, new.action)
        calibrations[name] = calibrate(*predicted, new.next_observation)
        parts = uncertainty(*predicted)
        numbers[name] = {
            "noise": _root_mean(noise(new.observation) ** 2),
            "aleatoric": _root_mean(parts[0]),
            "epistemic": _root_mean(parts[1]),
            "error of the mean": _root_mean((predicted[0].mean(axis=0) - curve(new.observation)) ** 2),
            "miscalibration": float(calibrations[name].error[0]),
        }
    return Study(data, x, mean[..., 0], jnp.sqrt(aleatoric[:, 0]), jnp.sqrt(epistemic[:, 0]), calibrations, numbers)


def _root_mean(squares: Float[Array, "*n"]) -> float:
    return math.sqrt(float(jnp.mean(squares)))


def draw(found: Study, path: Path) -> None:
    """Write the picture to `path`: fit, aleatoric and epistemic standard deviation in a column, calibration beside it."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 7.2), dpi=120, layout="constrained")
    grid = figure.add_gridspec(3, 2, width_ratios=(1.25, 1), height_ratios=(1.6, 1, 1))
    fit = figure.add_subplot(grid[0, 0])
    aleatoric = figure.add_subplot(grid[1, 0], sharex=fit)
    epistemic = figure.add_subplot(grid[2, 0], sharex=fit)
    x, truth = np.asarray(found.x), np.asarray(curve(found.x))
    dashed = {"color": "black", "linestyle": "--", "linewidth": 1.2}

    observed = np.asarray(found.data.next_observation)[:, 0]
    fit.plot(found.data.observation[:, 0], observed, ".", color=GREY, markersize=3, alpha=0.6, label="data")
    fit.plot(x, truth, **dashed, label="truth without noise")
    for i, mean in enumerate(np.asarray(found.means)):
        fit.plot(x, mean, color=BLUE, linewidth=1, label="members' means" if i == 0 else None)
    fit.set(ylabel="y", ylim=_limits(observed, np.asarray(found.means)), xlim=(FIRST, LAST))
    aleatoric.plot(x, found.aleatoric, color=RED, linewidth=2, label="aleatoric deviation")
    aleatoric.plot(x, noise(found.x), **dashed, label="true noise")
    epistemic.plot(x, found.epistemic, color=BLUE, linewidth=2, label="epistemic deviation")
    epistemic.plot(x, np.abs(np.asarray(found.means).mean(axis=0) - truth), **dashed, label="error of the ensemble's mean")
    epistemic.set_xlabel("x")

    titles = ("Fit", "Aleatoric uncertainty", "Epistemic uncertainty")
    for axes, title in zip((fit, aleatoric, epistemic), titles, strict=True):
        for region in ("gap", "beyond"):
            named = "no data" if axes is fit and region == "gap" else None
            axes.axvspan(*REGIONS[region][0], color="0.93", linewidth=0, zorder=0, label=named)
        axes.set_title(title, loc="left", fontsize=11)
        # Next to the title, above the axes, because lines may be anywhere inside.
        axes.legend(frameon=False, fontsize=9, ncol=4, loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0.2)
        axes.spines[["top", "right"]].set_visible(False)
        if axes is not epistemic:
            axes.tick_params(labelbottom=False)
        if axes is not fit:
            axes.set(ylabel="standard deviation", ylim=(0, None))

    quantiles = figure.add_subplot(grid[:, 1])
    calibration_onto(quantiles, {TITLES[name]: one for name, one in found.calibrations.items()})
    quantiles.set_anchor("N")
    quantiles.set_title("Calibration on new values", loc="left", fontsize=11)
    figure.savefig(path)


def _limits(y: np.ndarray, means: np.ndarray) -> tuple[float, float]:
    """Limits for the data and the means, but at most three times the range of the data, because members may diverge."""
    low, high = float(y.min()), float(y.max())
    room = high - low
    return max(low - room, min(low, float(means.min()))) - 0.1, min(high + room, max(high, float(means.max()))) + 0.1


def table(numbers: dict[str, dict[str, float]]) -> str:
    """The numbers as text, a line for each region."""
    names = list(next(iter(numbers.values())))
    lines = [" " * 16 + "".join(f"{name:>19}" for name in names)]
    lines += [f"{TITLES[region]:<16}" + "".join(f"{row[name]:19.3f}" for name in names) for region, row in numbers.items()]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> Study:
    """Run the study, print its numbers and write its picture."""
    parser = argparse.ArgumentParser(description="Two kinds of uncertainty of a probabilistic ensemble.")
    parser.add_argument(
        "--out",
        type=Path,
        help="folder of the picture; by default runs/two-uncertainties, with --quick runs/two-uncertainties-quick",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the data and the fit")
    parser.add_argument("--quick", action="store_true", help="fewer epochs (smoke test)")
    options = parser.parse_args(arguments)
    options.out = options.out or Path("runs/two-uncertainties-quick" if options.quick else "runs/two-uncertainties")
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"cannot write to {options.out}: {error.strerror}; choose another folder with --out")
    found = study(80 if options.quick else 300, options.seed)
    print(f"root mean squares over {NEW} new values of y in each region; the last column is the mean of |share - level|")
    print(table(found.numbers))
    picture = options.out / "two-uncertainties.png"
    draw(found, picture)
    print(f"picture: {picture}")
    return found


if __name__ == "__main__":
    main()
