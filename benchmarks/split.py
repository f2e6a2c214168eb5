"""Time of an epoch by part: collecting, planning, fitting, imagining, updating, evaluating, and the host.

    python benchmarks/split.py [--cases pets sac mbpo dhmbpo] [--out results.json]

The first table is of a normal run, in a folder, with checkpoints and evaluations. It gives the share of the time of later
epochs in which the compiled programs ran; the rest is spent on the host. The second table is of the training program alone.
It covers the operations of one round after the first fit, from XLA's profiler, summed over threads and grouped by the part
of the algorithm to which they belong (the innermost part, if parts are nested). The profiler overestimates very small
operations, so the factor by which it slows the round down is reported too.
"""

from __future__ import annotations

import argparse
import collections
import re
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import jax
from measure import Training, keep, provenance, report

from jaxmbrl.training import programs, runner
from jaxmbrl.training.console import Progress
from jaxmbrl.training.run_folder import RunFolder

PARTS = ("collect", "plan", "fit", "imagine", "update")
CONTROL = re.compile(r"^(while|conditional|cond|call|ThunkExecutor|thread|end:|\$|Threadpool|wrapped_call|region)")


class Case(NamedTuple):
    """A measured algorithm with its settings."""

    algorithm: str
    env: str
    preset: str | None
    settings: dict[str, Any]
    round: int
    """Environment steps of the profiled round, from one fit to the next."""
    steps: int
    """Environment steps of the run."""


CASES = {
    "pets": Case("pets", "cartpole-continuous", "small", {}, 50, 800),
    "sac": Case("sac", "pendulum", None, {}, 200, 5000),
    "mbpo": Case("mbpo", "InvertedPendulum-v5", None, {}, 250, 1500),
    "dhmbpo": Case("dhmbpo", "pendulum", None, {}, 200, 1600),
}


def whole_run(case: Case) -> dict[str, float]:
    """Shares of the wall clock time of a run, in the epochs after the first one with updates."""
    with tempfile.TemporaryDirectory() as folder:
        result = runner.train(
            case.algorithm,
            case.env,
            preset=case.preset,
            settings=case.settings,
            steps=case.steps,
            out=Path(folder) / "run",
            progress=Progress.silent(),
        )
        saved = [event for event in RunFolder.open(Path(folder) / "run").read_events() if event["kind"] == "checkpoint"]
    rows = [row for row in result.rows if row["env_steps"] > result.config.settings.warmup_steps][1:]
    spent = {name: sum(row.get(f"time/{name}", 0.0) for row in rows) for name in ("epoch", "train", "evaluate")}
    host = spent["epoch"] - spent["train"] - spent["evaluate"]
    return {
        "seconds": spent["epoch"],
        "train": spent["train"] / spent["epoch"],
        "evaluate": spent["evaluate"] / spent["epoch"],
        "host": host / spent["epoch"],
        "checkpoints": float(len(saved)),
    }


def profiled(case: Case) -> dict[str, float]:
    """Shares of the time of a round of the training program, by part."""
    config = programs.configure(case.algorithm, case.env, case.preset, settings=case.settings)
    training = Training(programs.build(config))
    warmup = -(-config.settings.warmup_steps // case.round) * case.round
    training.advance(warmup)
    training.advance(case.round)
    plain = min(training.advance(case.round), training.advance(case.round))
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            traced = training.advance(case.round)
        (file,) = Path(folder).rglob("*.xplane.pb")
        found = by_part(str(file), training.compiled.as_text())
    whole = sum(found.values())
    shares = {name: found.get(name, 0.0) / whole for name in (*PARTS, "other") if found.get(name)}
    return {"seconds": plain, "seconds of work, all threads": whole, **shares, "slowed by the profiler": traced / plain}


def by_part(file: str, program: str) -> dict[str, float]:
    """Seconds of the operations in a profile, by part. The text of the compiled `program` gives the part of each
    operation."""
    of = parts_of(program)
    found: dict[str, float] = collections.Counter()
    for plane in jax.profiler.ProfileData.from_file(file).planes:
        for line in plane.lines:
            for event in line.events:
                if not CONTROL.match(event.name) and event.name in of:
                    found[of[event.name]] += event.duration_ns / 1e9
    return found


def parts_of(program: str) -> dict[str, str]:
    """The part of each operation, by name. An operation without a path in the program belongs to the part of most others
    in its computation. If no operation of the computation has a path, it belongs to no part."""
    found: dict[str, str] = {}
    for block in re.split(r"\n(?=%|ENTRY)", program):
        operations = dict(re.findall(r'%([\w.\-]+) = [^\n]*?metadata=\{[^}]*?op_name="([^"]*)"', block))
        own = {name: part_of(path) for name, path in operations.items()}
        most = collections.Counter(part for part in own.values() if part != "other").most_common(1)
        names = re.findall(r"%([\w.\-]+) = ", block)
        found |= {name: own.get(name, most[0][0] if most else "other") for name in names}
    return found


def part_of(path: str) -> str:
    """The innermost part of the algorithm on the path of an operation."""
    words = re.findall(r"\w+", path)
    return next((word for word in reversed(words) if word in PARTS), "other")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--out", type=Path, help="write the results here, as JSON; other cases in the file are kept")
    args = parser.parse_args()
    for name in args.cases:
        case = CASES[name]
        title = f"{case.algorithm} on {case.env}"
        print(f"measuring {title} ...", flush=True)
        tables = {
            f"{title}: a run of {case.steps:,} steps": whole_run(case),
            f"{title}: {case.round:,} steps of the training program": profiled(case),
        }
        report(tables, None)
        if args.out is not None:
            keep(args.out, {name: {"tables": tables, **provenance("--cases", name)}})


if __name__ == "__main__":
    main()
