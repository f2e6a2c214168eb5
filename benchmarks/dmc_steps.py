"""One control step of DeepMind Control's tasks on MJX against C MuJoCo, in float64 and float32.

    python benchmarks/dmc_steps.py [--tasks dmc/walker-walk ...] [--states 1000] [--iterations 6 12] [--out results.json]

States are those that dm_control reaches under four policies (`tests/envs/dm_control_steps.py`). The error of a state is the
largest difference of a position or velocity after the step (m, rad, m/s, rad/s) from C MuJoCo with its solver run to its
end. A figure `beyond 1e-6` counts the states with a larger one. `theirs` are the same figures of dm_control itself, whose
solver stops at its tolerance. Observations and rewards are compared where the state is within 1e-6. Needs dm_control.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import jax
import numpy as np
from measure import provenance

sys.path.append(str(Path(__file__).parents[1] / "tests" / "envs"))
import dm_control_steps as theirs

TASKS = [
    *("dmc/ball_in_cup-catch", "dmc/cheetah-run", "dmc/finger-spin", "dmc/finger-turn-hard", "dmc/hopper-hop"),
    *("dmc/walker-run", "dmc/humanoid-run"),
]
"""One of each model; the finger's hinge has two dampings."""


def errors(found: theirs.Outcome, due: theirs.Outcome) -> np.ndarray:
    """Of each state: the largest difference of a position or velocity."""
    return np.abs(np.concatenate([found.qpos - due.qpos, found.qvel - due.qvel], axis=1)).max(axis=1)


def figures(name: str, states: int, iterations: tuple[int, int] | None) -> dict[str, float]:
    """The figures of a task."""
    rows = theirs.recorded(name, states)
    far = errors(rows.theirs, rows.solved)
    found = {
        "states with contacts": float((rows.contacts > 0).mean()),
        "theirs, largest": far.max(),
        "theirs, beyond 1e-6": float((far > 1e-6).sum()),
    }
    for width, kind in ((True, "float64"), (False, "float32")):
        jax.clear_caches()
        with jax.enable_x64(width):
            ours = theirs.simulated(name, rows, iterations)
        far = errors(ours, rows.solved)
        found |= {f"{kind}, median": float(np.median(far)), f"{kind}, largest": far.max()}
        if width:
            found |= {"float64, beyond 1e-6": float((far > 1e-6).sum())}
            finished = errors(rows.theirs, rows.solved) < 1e-9
            found |= {
                "observation, largest": np.abs(ours.observation - rows.solved.observation)[far < 1e-6].max(),
                "reward, largest": np.abs(ours.reward - rows.theirs.reward)[finished & (far < 1e-6)].max(),
            }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=TASKS)
    parser.add_argument("--states", type=int, default=1000)
    parser.add_argument("--iterations", nargs=2, type=int, metavar=("SOLVER", "LINE_SEARCH"), help="other than the task's")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    tables = {}
    for name in args.tasks:
        tables[name] = figures(name, args.states, tuple(args.iterations) if args.iterations else None)
        print(name, *(f"  {what:<24}{value:.2g}" for what, value in tables[name].items()), sep="\n", flush=True)
    if args.out is not None:
        args.out.write_text(json.dumps({"results": tables, **provenance()}, indent=2) + "\n")


if __name__ == "__main__":
    main()
