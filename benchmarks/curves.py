"""Draw figures from the curves in `benchmarks/results`: training returns against real environment steps. They show the mean
over seeds, the range of the seeds, and published returns of other implementations.

    python benchmarks/curves.py [--figure learning-curves] [--out benchmarks/results]

`learning-curves` is the figure of the README, `dmc-curves` that of latent world models on DeepMind Control's cart-pole. A
repeated action counts as that many steps (frames).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from jaxmbrl.diagnostics import published

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"

COLORS = {
    "MBPO": "#0b3d91",
    "DHMBPO": "#c1440e",
    "PETS": "#2e7d32",
    "SAC": "0.45",
    "REDQ": "#8e5ea2",
    "Dreamer": "#0b3d91",
    "DreamerV3": "#0b3d91",
    "TD-MPC2": "#c1440e",
}

BESIDE = {"DHMBPO": 0.93, "SAC (erl_lib)": 1.07}
"""Factors that shift published points horizontally from their steps, because methods have points at the same steps."""


class Panel(NamedTuple):
    """One panel of the figure: a task and the curves to draw."""

    title: str
    cases: dict[str, str]
    """Method -> name of its case."""
    published: dict[str, tuple[int, ...]]
    """Method -> steps of its published returns."""
    limits: tuple[float, float]
    counted: str = "real environment steps"


FIGURES = {
    "learning-curves": (
        Panel(
            "pendulum",
            {"MBPO": "mbpo-pendulum", "PETS": "icem-pendulum", "REDQ": "redq-pendulum", "SAC": "sac-pendulum"},
            {},
            (-1700.0, 0.0),
        ),
        Panel(
            "Hopper-v5",
            {"DHMBPO": "dhmbpo-hopper", "MBPO": "mbpo-hopper", "SAC": "sac-hopper"},
            {"DHMBPO": (50_000, 100_000), "MBPO": (50_000, 100_000), "SAC (erl_lib)": (50_000, 100_000)},
            (0.0, 4000.0),
        ),
    ),
    "dmc-curves": tuple(
        Panel(
            f"dmc/cartpole-{name}",
            {"Dreamer": f"dreamer-dmc-cartpole-{name}"} | others,
            {"DreamerV3": (50_000, 100_000)},
            (0.0, 1000.0),
            "real environment steps with repeats",
        )
        for name, others in (("balance", {}), ("swingup", {"TD-MPC2": "td-mpc2-dmc-cartpole-swingup"}))
    ),
}
"""Name of a figure and its file -> its panels."""


def curve(case: dict[str, Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(steps, mean, minimum, maximum) over the seeds, at the steps at which all of them ended an episode."""
    at: dict[int, list[float]] = {}
    for steps, _, value in case["curve"]:
        at.setdefault(steps * case.get("action_repeat", 1), []).append(value)
    steps = [step for step in sorted(at) if len(at[step]) == case["seeds"]]
    values = np.array([at[step] for step in steps])
    return np.array(steps), values.mean(axis=1), values.min(axis=1), values.max(axis=1)


def draw(axes: Axes, panel: Panel, points: list[published.Point]) -> None:
    for method, name in panel.cases.items():
        steps, mean, least, most = curve(json.loads((RESULTS / f"{name}.json").read_text()))
        axes.fill_between(steps, least, most, color=COLORS[method], alpha=0.15, linewidth=0)
        axes.plot(steps, mean, color=COLORS[method], linewidth=2.2, label=method)
    for method, wanted in panel.published.items():
        found = {point.environment_steps: point for point in points if point.method == method}
        means, deviations = zip(*((found[step].return_mean, found[step].return_std) for step in wanted), strict=True)
        look = {"marker": "s", "markersize": 6, "capsize": 3, "linestyle": "", "alpha": 0.75}
        axes.errorbar(
            [step * BESIDE.get(method, 1.0) for step in wanted],
            means,
            deviations,
            color=COLORS[method.split()[0]],
            label=f"{method}, published by others",
            **look,
        )
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.set(ylim=panel.limits, xlabel=f"{panel.counted} per seed (log scale)", ylabel="return per episode")
    axes.set_title(panel.title, loc="left", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="0.93", linewidth=0.6)
    axes.legend(frameon=False, fontsize=9, loc="lower right" if panel.limits[0] < 0 else "upper left")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--figure", choices=list(FIGURES), default="learning-curves")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the folder")
    args = parser.parse_args()
    points = published.read(ROOT / "benchmarks" / "published" / "returns.csv")
    figure = Figure(figsize=(10, 4), dpi=120, layout="constrained")
    panels = FIGURES[args.figure]
    for axes, panel in zip(figure.subplots(1, len(panels)), panels, strict=True):
        same = [point for point in points if point.task == panel.title]
        draw(axes, panel, same or published.of_task(points, panel.title))
    figure.savefig(args.out / f"{args.figure}.png", metadata={"Software": None})


if __name__ == "__main__":
    main()
