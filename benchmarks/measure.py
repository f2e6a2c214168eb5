"""What the benchmarks share: timing beside the machine's matmul peak, and a table that is also JSON."""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxmbrl.training.run_folder import environment

SIDE = 2048


def seconds(function: Callable[[], Any]) -> float:
    """Wall clock of one call."""
    start = time.perf_counter()
    jax.block_until_ready(function())
    return time.perf_counter() - start


def peak() -> Callable[[], float]:
    """A measurement of the peak of a float32 matrix product of 2048 cubed, in floating-point operations a second."""
    square = jax.random.normal(jax.random.key(0), (SIDE, SIDE))
    product = jax.jit(lambda a: jnp.matmul(a, a, precision="highest"))
    product(square).block_until_ready()
    return lambda: 2 * SIDE**3 / min(seconds(lambda: product(square)) for _ in range(3))


def measure(run: Callable[[], Any], work: int, repeats: int) -> dict[str, float]:
    """Medians over the repeats, after a first call that compiles; each call stands between two readings of the peak.

    `work` is the number of floating-point operations of one call.
    """
    run_peak = peak()
    seconds(run)
    times, shares, peaks = [], [], []
    for _ in range(repeats):
        before, duration, after = run_peak(), seconds(run), run_peak()
        times.append(duration)
        peaks.append((before + after) / 2)
        shares.append(work / duration / peaks[-1])
    return {
        "seconds": statistics.median(times),
        "GFLOP/s": work / statistics.median(times) / 1e9,
        "peak GFLOP/s": statistics.median(peaks) / 1e9,
        "share of peak": statistics.median(shares),
    }


def report(tables: Mapping[str, Mapping[str, float]], out: Path | None) -> None:
    """Print the figures; with `out`, write them as JSON together with machine, versions and commit."""
    for title, figures in tables.items():
        print(title)
        for name, value in figures.items():
            print(f"  {name:<32}{value:>16,.3f}")
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps({"results": tables, **provenance()}, indent=2) + "\n")


def provenance(*arguments: str) -> dict[str, Any]:
    """The script and those `arguments` that determine its result; commit, versions and machine."""
    where = environment()
    where["command"] = " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *arguments])
    return {"environment": where}
