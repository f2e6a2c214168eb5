"""Seconds to compile each algorithm's training program, cold and from the cache, and the memory that it takes.

    python benchmarks/compiling.py [--algorithms sac mbpo ...] [--env pendulum] [--seeds 1] [--out results.json]

Each at its default preset for the task. Lowering, which is Python's part and is not cached, counts.
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
    asked = parser.parse_args()
    tables = {}
    for algorithm in asked.algorithms:
        program = programs.build(programs.configure(algorithm, asked.env, seeds=asked.seeds))
        print(f"compiling {algorithm} ({program.config.preset} preset) ...", flush=True)
        training, figures = compiled_twice(program)
        figures |= {f"MB, {name}": megabytes for name, megabytes in training.megabytes().items()}
        tables[f"{algorithm} ({program.config.preset} preset) on {asked.env}, seeds: {asked.seeds}"] = figures
    report(tables, asked.out)


if __name__ == "__main__":
    main()
