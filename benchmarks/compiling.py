"""Seconds to compile the training program of each algorithm, cold and from the cache, and the memory that it uses.

    python benchmarks/compiling.py [--algorithms sac mbpo ...] [--env pendulum] [--seeds 1] [--out results.json]

Each algorithm has its default preset for the task. The times include lowering, which runs in Python and is not cached.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from measure import compiled_twice, report

from jaxmbrl import algorithms
from jaxmbrl.training import programs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--algorithms", nargs="+", choices=sorted(algorithms.METHODS), default=sorted(algorithms.METHODS))
    parser.add_argument("--env", default="pendulum")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    tables = {}
    for algorithm in args.algorithms:
        program = programs.build(programs.configure(algorithm, args.env, seeds=args.seeds))
        print(f"compiling {algorithm} ({program.config.preset} preset) ...", flush=True)
        training, figures = compiled_twice(program)
        figures |= {f"MB, {name}": megabytes for name, megabytes in training.megabytes().items()}
        tables[f"{algorithm} ({program.config.preset} preset) on {args.env}, seeds: {args.seeds}"] = figures
    report(tables, args.out)


if __name__ == "__main__":
    main()
