"""End-to-end speed of MBPO: environment steps and policy updates per second, including fits and imagined rollouts, for
several numbers of seeds in one program; compile time, cold and from the cache; and memory.

    python benchmarks/mbpo.py [--env Hopper-v5] [--preset NAME] [--seeds 1 8] [--warmup 1000] [--seconds 60]
                              [--whole-buffers] [--out results.json]

Timing starts after the first fit, which starts from untrained networks and is reported separately. It covers whole rounds
of `refit_every` steps for about `--seconds`. The preset is the task's own, except for the warm-up, and, without
`--whole-buffers`, for smaller buffers and branches of one step.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from measure import compiled_twice, report

from jaxmbrl.training import programs


def slice_of(args: argparse.Namespace, seeds: int) -> dict[str, float]:
    """The measurements with `seeds` seeds."""
    settings = {"warmup_steps": args.warmup, "eval_every": 0}
    if not args.whole_buffers:
        settings |= {"replay_capacity": 50_000, "rollout_length.last": 1}
    program = programs.build(programs.configure("mbpo", args.env, args.preset, settings=settings, seeds=seeds))
    config = program.config.settings
    training, figures = compiled_twice(program)
    for name, megabytes in training.megabytes().items():
        figures[f"MB, {name}"] = megabytes
    training.advance(args.warmup - config.num_envs)
    figures["seconds of the first fit and step"] = training.advance(config.num_envs)
    training.advance(config.refit_every)
    taken, spent = 0, 0.0
    while spent < args.seconds:
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
    args = parser.parse_args()
    tables = {}
    for seeds in args.seeds:
        print(f"timing {seeds} seeds ...", flush=True)
        tables[f"MBPO on {args.env}, seeds: {seeds}"] = slice_of(args, seeds)
    report(tables, args.out)


if __name__ == "__main__":
    main()
