"""Speed of MBPO end to end: environment steps and policy updates a second, fits and imagined rollouts included, for several
numbers of seeds in one program; time to compile, cold and from the cache; memory.

    python benchmarks/mbpo.py [--env Hopper-v5] [--preset NAME] [--seeds 1 8] [--warmup 1000] [--seconds 60]
                              [--whole-buffers] [--out results.json]

Each number of seeds is timed after its first fit, of untrained networks, which is told apart; the slice takes whole rounds
of `refit_every` steps, and about `--seconds`. The preset is the task's own but for the warm-up, and for smaller buffers
and branches of one step unless there is `--whole-buffers`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from measure import compiled_twice, report

from jaxmbrl.training import programs


def slice_of(asked: argparse.Namespace, seeds: int) -> dict[str, float]:
    """The figures for `seeds` seeds."""
    settings = {"warmup_steps": asked.warmup, "eval_every": 0}
    if not asked.whole_buffers:
        settings |= {"replay_capacity": 50_000, "rollout_length.last": 1}
    program = programs.build(programs.configure("mbpo", asked.env, asked.preset, settings=settings, seeds=seeds))
    config = program.config.settings
    training, figures = compiled_twice(program)
    for name, megabytes in training.megabytes().items():
        figures[f"MB, {name}"] = megabytes
    training.advance(asked.warmup - config.num_envs)
    figures["seconds of the first fit and step"] = training.advance(config.num_envs)
    training.advance(config.refit_every)
    taken, spent = 0, 0.0
    while spent < asked.seconds:
        spent += training.advance(config.refit_every)
        taken += config.refit_every
    figures["environment steps"] = float(taken)
    figures["environment steps a second, each seed"] = taken / spent
    figures["environment steps a second, all seeds"] = seeds * taken / spent
    figures["policy updates a second, all seeds"] = seeds * taken * config.updates_per_step / spent
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="Hopper-v5")
    parser.add_argument("--preset")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--warmup", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--whole-buffers", action="store_true")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    tables = {}
    for seeds in asked.seeds:
        print(f"timing {seeds} seeds ...", flush=True)
        tables[f"MBPO on {asked.env}, seeds: {seeds}"] = slice_of(asked, seeds)
    report(tables, asked.out)


if __name__ == "__main__":
    main()
