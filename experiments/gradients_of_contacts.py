"""How useful the gradients of the true simulator are, with and without contacts, along one direction of policy parameters.

    J_H(e) = sum_{t<H} w(s_{t+1}) under the policy with parameters p + e d,    from one start state, d a unit vector

The slope of J_H from differentiating MJX (`envs/constraints.py`) is exact wherever J_H has one. It may still be useless to
an optimiser. A contact one step earlier or later, or a slipping foot, bends J_H on a scale smaller than the optimiser's
steps, and small differences grow with every step (Suh et al., arXiv 2202.00817). This experiment compares

    slopes      dJ_H/de at each point of a grid over e, by differentiating the simulator
    chords      differences of J_H between the point's neighbours on the grid, divided by their distance

on the inverted pendulum, with w = -angle^2, which has contacts only at the ends of its rail, and on the hopper, with w its
forward velocity. (The tasks' own rewards are not used, because they are discontinuous: they add 1 for each step until the
episode ends.) Terminations are ignored, so the hopper falls.

    python experiments/gradients_of_contacts.py [--out FOLDER] [--points 201] [--span 0.5] [--quick]

Writes `gradients-of-contacts.png` and `gradients-of-contacts.json`, with command, commit, versions and machine.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxmbrl import envs
from jaxmbrl.algorithms.value_gradients import bptt
from jaxmbrl.core.types import Policy
from jaxmbrl.models.imagination import imagine
from jaxmbrl.nn.networks import MLP
from jaxmbrl.training.run_folder import environment

WATCHED: dict[str, Callable[[Array], Array]] = {
    "InvertedPendulum-v5": lambda s: -(s[..., 1] ** 2),
    "Hopper-v5": lambda s: s[..., 5],
    "pendulum": lambda s: s[..., 0],
}
"""w by task."""
TASKS = ("InvertedPendulum-v5", "Hopper-v5")
HORIZONS = (5, 10, 25, 50, 100)
SHOWN = (10, 50)
HIDDEN = (32, 32)


class Scan(NamedTuple):
    """Results for one task, at each point of the grid."""

    earned: Float[np.ndarray, "points H"]
    """J_1 .. J_H."""
    slopes: Float[np.ndarray, "points H"]
    """Their derivatives."""


def scan(name: str, at: Float[np.ndarray, "points"], steps: int, seed: int = 0) -> Scan:
    """J and its slopes along a random direction from a random policy."""
    task = envs.make(name)
    network = MLP(HIDDEN, task.action.shape[0])
    start_key, params_key, direction_key = jax.random.split(jax.random.key(seed), 3)
    params = network.init(params_key, task.observation.zeros())
    leaves, treedef = jax.tree.flatten(params)
    drawn = [jax.random.normal(jax.random.fold_in(direction_key, i), leaf.shape) for i, leaf in enumerate(leaves)]
    length = jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in drawn))
    direction = jax.tree.unflatten(treedef, [leaf / length for leaf in drawn])
    origin = task.world.reset(start_key)
    world = bptt.simulated(task.world._replace(step=without_ends(task.world.step)))

    def earned(e: Float[Array, "points"]) -> Float[Array, "points H"]:
        def act(memory: Any, observation: Array, key: Any) -> tuple[Array, Array, Any]:
            action = jax.vmap(lambda x, o: network.apply(moved(x), o))(e, observation)
            return jnp.tanh(action), jnp.zeros_like(e), memory

        origins = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (len(at), *jnp.shape(leaf))), origin)
        trajectory = imagine(world, Policy(lambda key: (), act), origins, jax.random.key(0), steps)
        return jnp.cumsum(WATCHED[name](trajectory.next_observation), axis=0).T

    def moved(x: Float[Array, ""]) -> Any:
        return jax.tree.map(lambda p, d: p + x * d, params, direction)

    e = jnp.asarray(at, float)
    found = jax.jit(lambda e: jax.jvp(earned, (e,), (jnp.ones_like(e),)))(e)
    return Scan(*(np.asarray(x, np.float64) for x in found))


def without_ends(step: Any) -> Any:
    """A step function of a task that never terminates."""

    def on(*of: Any) -> Any:
        carry, made = step(*of)
        return carry, made._replace(terminated=jnp.zeros_like(made.terminated))

    return on


def chords(at: Float[np.ndarray, "points"], earned: Float[np.ndarray, "points H"]) -> Float[np.ndarray, "inner H"]:
    """Slopes between the two neighbours of each inner point."""
    return (earned[2:] - earned[:-2]) / (at[2:] - at[:-2])[:, None]


def summary(at: Float[np.ndarray, "points"], found: Scan) -> dict[str, dict[str, float]]:
    """For each horizon, the root mean squares of slopes and chords, and the share of points where their signs agree."""
    of_horizon = {}
    for horizon in HORIZONS:
        if horizon > found.earned.shape[1]:
            continue
        slope, chord = found.slopes[1:-1, horizon - 1], chords(at, found.earned)[:, horizon - 1]
        of_horizon[str(horizon)] = {
            "slopes": float(np.sqrt(np.mean(slope**2))),
            "chords": float(np.sqrt(np.mean(chord**2))),
            "largest slope": float(np.max(np.abs(slope))),
            "same sign": float(np.mean(np.sign(slope) == np.sign(chord))),
        }
    return of_horizon


def table(found: dict[str, dict[str, dict[str, float]]]) -> str:
    """The summaries as text."""
    columns = ("slopes", "chords", "largest slope", "same sign")
    lines = [f"  {'':<26}" + "".join(f"{c:>16}" for c in columns)]
    for task, by_horizon in found.items():
        for horizon, of_horizon in by_horizon.items():
            lines.append(f"  {task + ', H = ' + horizon:<26}" + "".join(f"{of_horizon[c]:>16.4g}" for c in columns))
    return "\n".join(lines)


def draw(at: Float[np.ndarray, "points"], scans: dict[str, Scan], path: Path) -> None:
    """Write the picture, with a row for each task: J along the direction with its slopes as dashes, and the root mean
    squares of slopes and chords."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 3.8 * len(scans)), dpi=120, layout="constrained")
    grid = figure.subplots(len(scans), len(SHOWN) + 1, squeeze=False)
    for (task, found), row in zip(scans.items(), grid, strict=True):
        for axes, horizon in zip(row, SHOWN, strict=False):
            h = min(horizon, found.earned.shape[1])
            earned, slopes = found.earned[:, h - 1], found.slopes[:, h - 1]
            axes.plot(at, earned, color="#0b3d91", linewidth=1.2)
            half = (at[1] - at[0]) * 2
            for x, y, slope in list(zip(at, earned, slopes, strict=True))[:: max(1, len(at) // 25)]:
                axes.plot([x - half, x + half], [y - half * slope, y + half * slope], color="#c1440e", linewidth=1.6)
            axes.set_title(f"{task}, H = {h}", loc="left", fontsize=11)
            axes.set(xlabel="distance e along the direction", ylabel="J", ylim=limits(earned))
        inner = chords(at, found.earned)
        shown = [h for h in HORIZONS if h <= found.earned.shape[1]]
        for name, of, color in (("slopes", found.slopes[1:-1], "#c1440e"), ("chords", inner, "#0b3d91")):
            rms = [np.sqrt(np.mean(of[:, h - 1] ** 2)) for h in shown]
            row[-1].plot(shown, rms, color=color, marker="o", linewidth=2, label=name)
        row[-1].set(xlabel="horizon H", ylabel="root mean square", xscale="log", yscale="log")
        row[-1].set_title("how steep", loc="left", fontsize=11)
        row[-1].legend(frameon=False)
    for axes in grid.flat:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="0.92", linewidth=0.6)
    figure.savefig(path)


def limits(values: Float[np.ndarray, "points"]) -> tuple[float, float]:
    """The limits of an axis that shows `values`, even if more is drawn."""
    room = 0.1 * (np.ptp(values) or 1.0)
    return float(values.min() - room), float(values.max() + room)


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Scan, print the table, write picture and numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", type=Path, help="by default runs/gradients_of_contacts, with --quick runs/gradients_of_contacts-quick"
    )
    parser.add_argument("--points", type=int, default=201)
    parser.add_argument("--span", type=float, default=0.5, help="largest distance from the policy")
    parser.add_argument("--quick", action="store_true", help="only the pendulum and few steps (smoke test)")
    args = parser.parse_args(arguments)
    args.out = args.out or Path("runs/gradients_of_contacts-quick" if args.quick else "runs/gradients_of_contacts")
    args.out.mkdir(parents=True, exist_ok=True)
    tasks, steps, points = (("pendulum",), 10, 11) if args.quick else (TASKS, HORIZONS[-1], args.points)
    at = np.linspace(-args.span, args.span, points)
    scans = {task: scan(task, at, steps) for task in tasks}
    found = {task: summary(at, of) for task, of in scans.items()}
    print(table(found))
    picture, numbers = args.out / "gradients-of-contacts.png", args.out / "gradients-of-contacts.json"
    draw(at, scans, picture)
    command = f"python experiments/gradients_of_contacts.py --points {points} --span {args.span}"
    curves = {
        task: {
            str(h): {"earned": of.earned[:, h - 1].tolist(), "slopes": of.slopes[:, h - 1].tolist()}
            for h in HORIZONS
            if h <= steps
        }
        for task, of in scans.items()
    }
    written = {"at": at.tolist(), "tasks": found, "curves": curves, "environment": environment(command)}
    numbers.write_text(json.dumps(written, indent=1) + "\n")
    print(f"picture  {picture}\nnumbers  {numbers}")
    return written


if __name__ == "__main__":
    main()
