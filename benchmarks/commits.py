"""Speed and compile time of two checkouts of this repository, measured alternately in one run.

    git worktree add ../before COMMIT
    python benchmarks/commits.py ../before [--cases plan sac] [--rounds 10] [--out results.json]

Each checkout runs in its own process, which compiles a case and then waits for requests, each for one timing. The ratio is
the median, over pairs of timings, of the other checkout's seconds divided by this one's: above 1, this one is faster. Cases
use only the functions that run programs (`programs.configure`, `programs.build`, `Loop.init`, `Loop.run`).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np


class Case(NamedTuple):
    """The timed work: calls of `learn` and the collection of data between them."""

    algorithm: str
    task: str
    settings: dict[str, Any]
    calls: int
    """Calls in one timing."""
    what: str


SMALL_SEARCH = {"planner.method": "random-shooting", "planner.random_shooting.population": 2}
CASES = {
    "plan": Case("pets", "cartpole-continuous", {"refit": False}, 1, "50 plans of CEM, the small preset of PETS"),
    "fit": Case(
        "pets",
        "pendulum",
        {
            **SMALL_SEARCH,
            "planner.random_shooting.horizon": 1,
            "ensemble.hidden": [200, 200, 200],
            "ensemble.holdout_fraction": 0.0,
            "warmup_steps": 1000,
        },
        1,
        "40 epochs on 1,000 rows and more, 5 members of 3 x 200",
    ),
    "sac": Case("sac", "pendulum", {"warmup_steps": 300, "replay_capacity": 100_000}, 100, "100 updates, 2 x 256"),
    "mbpo": Case("mbpo", "pendulum", {}, 100, "a round of MBPO: a fit, branches, 1,000 updates; small preset"),
    "dhmbpo": Case("dhmbpo", "pendulum", {}, 1, "a round of DHMBPO: a fit and 400 updates; small preset"),
}


def worker() -> None:
    """Time cases; lines on standard input request them."""
    import jax
    import jax.numpy as jnp

    from jaxmbrl.training import loop, programs

    for line in sys.stdin:
        case = Case(*json.loads(line))
        program = programs.build(programs.configure(case.algorithm, case.task, settings=case.settings))
        clock, state = loop.clock_at(0), jax.jit(program.loop.init)(jnp.arange(1), {})
        began = time.perf_counter()
        traced = jax.jit(program.loop.run, donate_argnums=1).lower(clock, state, jnp.asarray(1, jnp.int32))
        lowered = time.perf_counter()
        run = traced.compile(compiler_options=dict(program.algorithm.compiler_options))
        compiled = time.perf_counter()
        warm = -(-program.config.settings.warmup_steps // program.loop.steps_per_call)
        clock, state = run(clock, state, jnp.asarray(warm + 1, jnp.int32))
        send({"trace": lowered - began, "compile": compiled - lowered})
        calls = jnp.asarray(case.calls, jnp.int32)
        while sys.stdin.readline().strip() == "again":
            began = time.perf_counter()
            clock, state = jax.block_until_ready(run(clock, state, calls))
            send({"seconds": time.perf_counter() - began})


def send(message: dict[str, float]) -> None:
    print(json.dumps(message), flush=True)


class Checkout:
    """A process that measures one checkout."""

    def __init__(self, folder: Path) -> None:
        environment = os.environ | {"PYTHONPATH": str(folder.resolve() / "src")}
        words = [sys.executable, str(Path(__file__).resolve()), "--worker"]
        self.process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=folder
        )
        git = ["git", "rev-parse", "HEAD"]
        self.commit = subprocess.run(git, cwd=folder, capture_output=True, text=True, check=True).stdout.strip()

    def ask(self, line: str) -> dict[str, float]:
        """Send one line and return the answer."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the process of commit {self.commit} ended")
        return json.loads(answer)

    def end(self) -> None:
        """End the case."""
        assert self.process.stdin is not None
        self.process.stdin.write("end\n")
        self.process.stdin.flush()

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(60)


def compare(name: str, ours: Checkout, theirs: Checkout, rounds: int) -> dict[str, Any]:
    """Measure one case alternately in both checkouts."""
    line = json.dumps(CASES[name])
    compiling = [checkout.ask(line) for checkout in (theirs, ours)]
    pairs = []
    for i in range(rounds):
        order = (theirs, ours) if i % 2 == 0 else (ours, theirs)
        seconds = {checkout: checkout.ask("again")["seconds"] for checkout in order}
        pairs.append((seconds[theirs], seconds[ours]))
    ours.end()
    theirs.end()
    before, after = np.array(pairs).T
    ratio = before / after
    return {
        "what": CASES[name].what,
        "before_seconds": float(np.median(before)),
        "after_seconds": float(np.median(after)),
        "times_as_fast": float(np.median(ratio)),
        "quartiles": [float(x) for x in np.quantile(ratio, (0.25, 0.75))],
        "before_compile": compiling[0],
        "after_compile": compiling[1],
        "pairs": rounds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=Path, nargs="?", help="the checkout to compare this one with")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--rounds", type=int, default=10, help="pairs of timings")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        worker()
        return
    from measure import provenance

    with contextlib.ExitStack() as closing:
        ours, theirs = Checkout(Path(__file__).parents[1]), Checkout(args.other)
        closing.callback(ours.close)
        closing.callback(theirs.close)
        found: dict[str, Any] = {}
        for name in args.cases:
            found[name] = compare(name, ours, theirs, args.rounds)
            print(name, json.dumps(found[name]), flush=True)
    if args.out is not None:
        about = provenance() | {"before": theirs.commit, "after": ours.commit, "cases": found}
        args.out.write_text(json.dumps(about, indent=2) + "\n")


if __name__ == "__main__":
    main()
