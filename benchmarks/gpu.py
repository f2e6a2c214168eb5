"""What this package does on one accelerator, measured in a few minutes by one command that ends by itself.

Each case runs in a process of its own, with a time limit: one that hangs, fails or runs out of memory costs no other. The
results are saved after each figure. The cases, in this order:

    smoke       a method of each family compiles, learns for 200 steps and stays finite; and what it has learned after an
                interruption and a resume, compared with an uninterrupted run
    matmul      matrix products: the default precision of float32, "highest", and bfloat16; their speed and error
    speed       steps and updates a second of SAC, PETS, MBPO, DHMBPO and Dreamer, with 1, 8 and 32 seeds in a program
    plan        one full-size plan of PETS, and its share of the device's peak
    mjx         steps a second of MJX with 1,024 and 4,096 environments
    learn       MBPO on Hopper-v5 with 8 seeds, for all the time that is left

    python benchmarks/gpu.py [--minutes 9] [--only smoke speed ...] [--scale 1] [--out results.json]

Where a package is missing, the cases that need it fail alone, and their errors are saved. `--scale` below 1 shrinks all
sizes: `--scale 0.001` tests the script on a CPU, and its figures mean nothing. The first process does not use the device:
all of its memory is free for the cases.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

SMOKE = {
    "mbpo": "pendulum",
    "sac": "pendulum",
    "dreamer": "pendulum",
    "pets": "pendulum",
    "dhmbpo": "pendulum",
    "muzero": "CartPole-v1",
    "ppo": "pendulum",
    "svg": "pendulum",
    "steve": "pendulum",
    "gps": "pendulum-reach",
    "dyna-q": "CliffWalking",
    "dqn": "CartPole-v1",
}
"""Method -> task of the smoke test, at the size of the contract tests, in order of worth."""
SMOKE_SETTINGS = {"gps": {"epoch_steps": 160}}
"""Their settings beside the tiny ones: GPS has rounds of 4 episodes of 40 steps on its task."""
SMOKE_STEPS = 200
SEEDS = (1, 8, 32)
BATCHES = (1024, 4096)
MARGIN = 15.0
"""Seconds that are left at the end for saving."""
LEAST = 20.0
"""Seconds without which a case is not begun."""


class Speed(NamedTuple):
    """A program whose speed is measured."""

    method: str
    task: str
    preset: str | None
    settings: dict[str, Any]
    warmup: int
    """Environment steps before the measurement, with the first fit."""
    period: int
    """Environment steps that are timed at once: a whole round of fit, imagination and updates."""
    updates: Callable[[Any], float]
    """settings -> updates for each environment step of a seed."""


def _a_step(config: Any) -> float:
    return config.updates_per_step


SPEEDS = {
    "SAC": Speed("sac", "pendulum", None, {"warmup_steps": 1000, "replay_capacity": 100_000}, 1500, 500, _a_step),
    "PETS": Speed("pets", "cartpole-continuous", None, {"refit": False, "warmup_steps": 200}, 250, 50, lambda _: 0.0),
    "MBPO": Speed(
        "mbpo",
        "Hopper-v5",
        None,
        {"warmup_steps": 1000, "replay_capacity": 50_000, "rollout_length.last": 1},
        1250,
        250,
        _a_step,
    ),
    "DHMBPO": Speed("dhmbpo", "Hopper-v5", None, {"warmup_steps": 1000, "replay_capacity": 50_000}, 2000, 500, _a_step),
    "Dreamer": Speed(
        "dreamer",
        "dmc/cartpole-swingup",
        "size1m",
        {"replay_capacity": 20_000},
        2000,
        200,
        lambda config: config.updates / (config.train_every * config.num_envs),
    ),
}


class Case(NamedTuple):
    """What one process measures."""

    work: Callable[[float], Iterator[tuple[str, dict[str, Any]]]]
    """scale -> (title, figures), as they are found."""
    limit: float
    """Seconds; infinite for all that is left."""


def sized(number: int, scale: float, least: int = 2) -> int:
    """`number`, shrunk by the scale."""
    return number if scale >= 1 else max(least, round(number * scale))


def smoke(scale: float) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each method twice over `SMOKE_STEPS`: at once, and resumed from a checkpoint after half of them."""
    import jaxmbrl

    for method, task in SMOKE.items():
        begun = time.perf_counter()
        given: dict[str, Any] = {"settings": smoke_settings(method), "seeds": 2}
        try:
            with tempfile.TemporaryDirectory() as folder:
                whole = jaxmbrl.train(method, task, steps=SMOKE_STEPS, **given)
                jaxmbrl.train(method, task, steps=SMOKE_STEPS // 2, out=Path(folder) / "run", **given)
                resumed = jaxmbrl.resume(Path(folder) / "run", steps=SMOKE_STEPS)
            figures = {
                "frozen seeds": len(whole.frozen),
                "not finite": float(not all(np.isfinite(leaf).all() for leaf in floats(whole.state))),
                "largest difference after a resume": difference(whole.state, resumed.state),
            }
        except Exception as error:  # One method must not cost the others.
            figures = {"error": f"{type(error).__name__}: {error}"[:500]}
        yield f"smoke, {method} on {task}", figures | {"seconds": time.perf_counter() - begun}


def smoke_settings(method: str) -> dict[str, Any]:
    """The settings of a method's smoke test."""
    from jaxmbrl import algorithms

    return dict(algorithms.get(method).tiny) | SMOKE_SETTINGS.get(method, {})


def floats(tree: Any) -> list[np.ndarray]:
    """The floating-point leaves of what was learned, as arrays of float64."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return [np.asarray(leaf, np.float64) for leaf in leaves]


def difference(first: Any, second: Any) -> float:
    """The largest difference of two entries; 0 if the two are equal bit for bit."""
    pairs = zip(floats(first), floats(second), strict=True)
    return max(float(np.max(np.abs(np.nan_to_num(a) - np.nan_to_num(b)), initial=0.0)) for a, b in pairs)


def matmul(scale: float) -> Iterator[tuple[str, dict[str, Any]]]:
    """Products of two squares and of an ensemble's layer, in three precisions."""
    from measure import seconds

    side = sized(8192, scale, 64)
    shapes = {f"{side} x {side}": ((side, side), (side, side)), "an ensemble's layer": ((7, 4096, 200), (7, 200, 200))}
    for title, (left, right) in shapes.items():
        a, b = (jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate((left, right)))
        few = 512
        exact = np.asarray(a[..., :few, :], np.float64) @ np.asarray(b, np.float64)
        for name, dtype, precision in (
            ("float32, default", jnp.float32, "default"),
            ("float32, highest", jnp.float32, "highest"),
            ("bfloat16", jnp.bfloat16, "default"),
        ):
            product = jax.jit(
                lambda a, b, dtype=dtype, precision=precision: jnp.matmul(
                    a.astype(dtype), b.astype(dtype), precision=precision, preferred_element_type=jnp.float32
                )
            )
            found = np.asarray(product(a, b)[..., :few, :], np.float64)
            taken = min(seconds(lambda product=product, a=a, b=b: product(a, b)) for _ in range(5))
            yield (
                f"product of {title}, {name}",
                {
                    "TFLOP/s": 2 * math.prod(left) * right[-1] / taken / 1e12,
                    "error, in standard deviations": float(np.std(found - exact) / np.std(exact)),
                },
            )


def speed(name: str, seeds: int, scale: float) -> Iterator[tuple[str, dict[str, Any]]]:
    """Steps and updates a second of one program."""
    from measure import Training

    from jaxmbrl import algorithms
    from jaxmbrl.training import programs

    case = SPEEDS[name]
    settings, seeds = {"eval_every": 0, **case.settings}, sized(seeds, scale, 1)
    task, preset, warmup, period = case.task, case.preset, case.warmup, case.period
    if scale < 1:
        settings |= dict(algorithms.get(case.method).tiny)
        task, preset, warmup, period = "pendulum", None, 200, 100
    program = programs.build(programs.configure(case.method, task, preset, settings=settings, seeds=seeds))
    training = Training(program)
    training.advance(warmup)
    training.advance(period)
    taken, spent = 0, 0.0
    while spent < (10.0 if scale >= 1 else 0.1):
        spent += training.advance(period)
        taken += period
    figures = {
        "environment steps a second, each seed": taken / spent,
        "environment steps a second, all seeds": seeds * taken / spent,
        "updates a second, all seeds": seeds * taken * case.updates(program.config.settings) / spent,
        "seconds to compile": training.compile_seconds,
        **{f"MB, {what}": megabytes for what, megabytes in training.megabytes().items()},
    }
    yield f"{name}, {case.method} on {task}, seeds: {seeds}", figures


def plan(scale: float) -> Iterator[tuple[str, dict[str, Any]]]:
    """A plan of PETS, beside the peak of the device."""
    from measure import measure
    from plan import planning

    run, flops, evaluations = planning()
    figures = measure(run, flops, 9 if scale >= 1 else 1)
    yield "one plan of PETS", figures | {"model evaluations a second": evaluations / figures["seconds"]}


def mjx(scale: float) -> Iterator[tuple[str, dict[str, Any]]]:
    """Steps a second of MJX."""
    from environments import ours

    for task in ("Hopper-v5", "Humanoid-v5") if scale >= 1 else ("InvertedPendulum-v5",):
        for batch in (sized(batch, scale) for batch in BATCHES):
            rate, compiling = ours(task, batch, 3.0 if scale >= 1 else 0.1)
            yield f"MJX, {task}, {batch} environments", {"steps a second": rate, "seconds to compile": compiling}


def learn(scale: float) -> Iterator[tuple[str, dict[str, Any]]]:
    """MBPO until the process is ended; a line for each evaluation."""
    import jaxmbrl
    from jaxmbrl import algorithms

    found: queue.Queue[dict[str, Any] | BaseException | None] = queue.Queue()
    begun = time.perf_counter()

    def tell(rows: list[dict[str, Any]]) -> bool:
        returns = [row.get("eval/return", row.get("train/return")) for row in rows]
        known = [value for value in returns if value is not None]
        figures = {"environment steps": rows[-1]["env_steps"], "seconds": time.perf_counter() - begun}
        if known:
            what = "evaluated" if "eval/return" in rows[0] else "training"
            figures |= {f"mean return, {what}": float(np.mean(known)), f"returns, {what}": known}
        found.put(figures)
        return True

    def train() -> None:
        settings = {} if scale >= 1 else dict(algorithms.get("mbpo").tiny)
        fields: dict[str, Any] = {} if scale >= 1 else {"steps": 200}
        task, seeds = ("Hopper-v5", 8) if scale >= 1 else ("pendulum", 2)
        try:
            jaxmbrl.train("mbpo", task, seeds=seeds, settings=settings, callback=tell, **fields)
            found.put(None)
        except BaseException as error:
            found.put(error)

    threading.Thread(target=train, daemon=True).start()
    curve: list[dict[str, Any]] = []
    while (figures := found.get()) is not None:
        if isinstance(figures, BaseException):
            raise figures
        curve.append(figures)
        yield "MBPO learns", {"curve": curve}


CASES: dict[str, Case] = {
    "smoke": Case(smoke, 240.0),
    "matmul": Case(matmul, 60.0),
    **{
        f"speed {name} {seeds}": Case(lambda scale, name=name, seeds=seeds: speed(name, seeds, scale), 90.0)
        for name in SPEEDS
        for seeds in SEEDS
    },
    "plan": Case(plan, 60.0),
    "mjx": Case(mjx, 120.0),
    "learn": Case(learn, math.inf),
}


def work(name: str, scale: float) -> None:
    """Measure one case: a line of JSON for each figure, and one with the device's memory at the end."""
    for title, figures in CASES[name].work(scale):
        print(json.dumps([title, figures]), flush=True)
    stats = jax.devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        print(json.dumps([f"memory, {name}", {"MB, peak": stats["peak_bytes_in_use"] / 1e6}]), flush=True)


def collected(command: list[str], limit: float, keep: Callable[[str, dict[str, Any]], None]) -> dict[str, Any]:
    """Run `command` for at most `limit` seconds and pass on each figure that it prints. Returns how it ended."""
    begun = time.monotonic()
    with tempfile.TemporaryFile() as errors:
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as process:
            timer = threading.Timer(limit, process.kill)
            timer.start()
            try:
                assert process.stdout is not None
                for line in process.stdout:
                    # Libraries may print, too.
                    with contextlib.suppress(ValueError, TypeError):
                        keep(*json.loads(line))
                code = process.wait()
            finally:
                timer.cancel()
                process.kill()
        seconds = time.monotonic() - begun
        if code == 0:
            return {"ended": "done", "seconds": seconds}
        if seconds >= limit:
            return {"ended": f"time limit of {limit:.0f} s", "seconds": seconds}
        errors.seek(0)
        last = errors.read().decode(errors="replace").strip().splitlines()[-3:]
        return {"ended": f"exit code {code}", "seconds": seconds, "error": "\n".join(last)[-800:]}


def measure_all(
    cases: Mapping[str, tuple[list[str], float]], deadline: float, save: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """Run the commands of `cases` (command, limit in s) in turn until `deadline` (`time.monotonic`). `save` receives all
    figures after each new one. Cases for which no time is left are listed as such."""
    written: dict[str, Any] = {"results": {}, "cases": {}}

    def keep(title: str, figures: dict[str, Any]) -> None:
        written["results"][title] = figures
        save(written)
        print(title, *(f"  {name:<40}{_text(value)}" for name, value in figures.items()), sep="\n", flush=True)

    for name, (command, limit) in cases.items():
        left = deadline - time.monotonic() - MARGIN
        if left < LEAST:
            written["cases"][name] = {"ended": "no time was left"}
        else:
            written["cases"][name] = collected(command, min(limit, left), keep)
        print(f"[{name}: {written['cases'][name]['ended']}]", flush=True)
        save(written)
    return written


def _text(value: Any) -> str:
    return f"{value:,.4g}" if isinstance(value, int | float) else str(value)


def main(arguments: list[str] | None = None) -> dict[str, Any] | None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=9.0, help="time for everything")
    parser.add_argument("--only", nargs="+", metavar="CASE", help=f"cases or their first words: {', '.join(CASES)}")
    parser.add_argument("--scale", type=float, default=1.0, help="below 1: smaller, to test the script")
    parser.add_argument("--out", type=Path, help="write the results here, as JSON")
    parser.add_argument("--worker", choices=list(CASES), help=argparse.SUPPRESS)
    parser.add_argument("--describe", help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.describe is not None:
        from measure import provenance

        print(json.dumps(["machine", provenance(args.describe)]))
        return None
    if args.worker:
        work(args.worker, args.scale)
        # A training thread may still run.
        os._exit(0)
    deadline = time.monotonic() + 60 * args.minutes
    chosen = [name for name in CASES if args.only is None or name in args.only or name.split()[0] in args.only]
    unknown = set(args.only or ()) - {word for name in CASES for word in (name, name.split()[0])}
    if unknown or not chosen:
        parser.error(f"--only: no case is called {', '.join(sorted(unknown))}; there are {', '.join(CASES)}")
    # A program that was compiled once is read from the cache when a run is resumed.
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", tempfile.mkdtemp())
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    script = [sys.executable, str(Path(__file__).resolve())]
    longer = 1.0 if args.scale >= 1 else 10.0
    cases = {name: ([*script, "--scale", str(args.scale), "--worker", name], longer * CASES[name].limit) for name in chosen}
    words = f"--minutes {args.minutes:g} --scale {args.scale:g}" + (f" --only {' '.join(args.only)}" if args.only else "")
    origin: dict[str, Any] = {}
    collected([*script, "--describe", words], 60.0, lambda title, figures: origin.update(figures))

    def save(written: dict[str, Any]) -> None:
        if args.out is not None:
            args.out.parent.mkdir(parents=True, exist_ok=True)
            args.out.write_text(json.dumps(written | origin, indent=1) + "\n")

    return measure_all(cases, deadline, save)


if __name__ == "__main__":
    main()
