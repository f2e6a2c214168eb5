"""Functions shared by the benchmarks: timing compared with the machine's matmul peak, and reports as text and JSON."""

from __future__ import annotations

import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.compilation_cache import compilation_cache

from jaxmbrl.training import loop, programs
from jaxmbrl.training.programs import Program
from jaxmbrl.training.run_folder import environment

SIDE = 2048
COPIED = 256_000_000
"""Bytes."""


def seconds(function: Callable[[], Any]) -> float:
    """Wall clock time of one call, in s."""
    start = time.perf_counter()
    jax.block_until_ready(function())
    return time.perf_counter() - start


def onward(run: Callable[[Any], Any], state: Any) -> Callable[[], Any]:
    """A function that calls `run` with the state that the last call returned; `run` may donate its argument."""

    def go() -> Any:
        nonlocal state
        state = run(state)
        return state

    return go


def in_turn(runs: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, dict[str, float]]:
    """Medians of the time of each call, in s, and of the CPU time of all its threads, in ms, after a first call that
    compiles. In each repeat all are called in turn. Their CPU times are divided by that of the first: the median of this
    ratio over the repeats, its least and its most."""
    for run in runs.values():
        seconds(run)
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            used = time.process_time()
            duration = seconds(run)
            found[name].append((duration, 1e3 * (time.process_time() - used)))
    first = next(iter(found.values()))
    figures = {}
    for name, measured in found.items():
        ratios = [of[1] / base[1] for of, base in zip(measured, first, strict=True)]
        figures[name] = {
            "seconds": statistics.median(of[0] for of in measured),
            "CPU ms": statistics.median(of[1] for of in measured),
            "CPU time, ratio to the first": statistics.median(ratios),
            "least": min(ratios),
            "most": max(ratios),
        }
    return figures


def peak() -> Callable[[], float]:
    """A function that measures the peak speed of a 2048 x 2048 float32 matrix product, in operations per second."""
    square = jax.random.normal(jax.random.key(0), (SIDE, SIDE))
    product = jax.jit(lambda a: jnp.matmul(a, a, precision="highest"))
    product(square).block_until_ready()
    return lambda: 2 * SIDE**3 / min(seconds(lambda: product(square)) for _ in range(3))


def measure(run: Callable[[], Any], work: int, repeats: int) -> dict[str, float]:
    """Medians over the repeats, after a first call that compiles. Each call is between two measurements of the peak.

    `work` is the number of floating-point operations of one call.
    """
    return _beside(peak(), "GFLOP/s", "peak", run, work, repeats)


def bandwidth(run: Callable[[], Any], moved: int, repeats: int) -> dict[str, float]:
    """The same for a call that reads and writes `moved` bytes; the limit is reading and writing 256 MB in place."""
    long = jnp.zeros(COPIED // 4, jnp.float32)
    change = jax.jit(lambda x: x + 1.0, donate_argnums=0)

    go = onward(change, long)
    seconds(go)
    return _beside(lambda: 2 * COPIED / min(seconds(go) for _ in range(3)), "GB/s", "memory's", run, moved, repeats)


def _beside(
    limit: Callable[[], float], unit: str, name: str, run: Callable[[], Any], work: int, repeats: int
) -> dict[str, float]:
    seconds(run)
    times, shares, limits = [], [], []
    for _ in range(repeats):
        before, duration, after = limit(), seconds(run), limit()
        times.append(duration)
        limits.append((before + after) / 2)
        shares.append(work / duration / limits[-1])
    return {
        "seconds": statistics.median(times),
        unit: work / statistics.median(times) / 1e9,
        f"{name} {unit}": statistics.median(limits) / 1e9,
        f"share of {name}": statistics.median(shares),
    }


def matmul_operations(function: Callable[..., Any], *arguments: Any, steps: int) -> int:
    """Multiplications and additions in the matrix products of one call. Of a condition the most expensive branch counts.
    Loops with a traced number of steps have `steps`."""
    return _operations(jax.make_jaxpr(function)(*arguments).jaxpr, steps)


def _operations(jaxpr: Any, steps: int) -> int:
    total = 0
    for equation in jaxpr.eqns:
        inner = [_operations(getattr(x, "jaxpr", x), steps) for x in _jaxprs(equation.params)]
        match equation.primitive.name:
            case "dot_general":
                ((contracted, _), _) = equation.params["dimension_numbers"]
                depth = math.prod(equation.invars[0].aval.shape[d] for d in contracted)
                total += 2 * depth * math.prod(equation.outvars[0].aval.shape)
            case "scan":
                total += equation.params["length"] * sum(inner)
            case "cond":
                total += max(inner)
            case "while":
                total += steps * sum(inner)
            case _:
                total += sum(inner)
    return total


def _jaxprs(params: Mapping[str, Any]) -> list[Any]:
    leaves = jax.tree.leaves(dict(params), is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr"))
    return [x for x in leaves if hasattr(x, "eqns") or hasattr(x, "jaxpr")]


class Training:
    """The training program of a run, compiled, and its state."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.clock, self.state = loop.clock_at(0), programs.initial(program, {})
        arguments = (self.clock, self.state, jnp.asarray(1, jnp.int32))
        begun = time.perf_counter()
        self.compiled = program.compile("training", jax.jit(program.loop.run, donate_argnums=1), *arguments)
        self.compile_seconds = time.perf_counter() - begun

    def advance(self, steps: int) -> float:
        """Take `steps` environment steps, rounded up to whole calls of `learn`. Returns the seconds."""
        calls = -(-steps // self.program.loop.steps_per_call)

        def go() -> Any:
            self.clock, self.state = self.compiled(self.clock, self.state, jnp.asarray(calls, jnp.int32))
            return self.clock, self.state

        found = seconds(go)
        if bool(jnp.any(self.state.fault.what >= 0)):
            raise SystemExit("a seed was frozen because a value was not finite: its speed is meaningless")
        return found

    def megabytes(self) -> dict[str, float]:
        """Memory of the state, and further memory that the program uses while it runs."""
        memory = self.compiled.memory_analysis()
        return {"state": memory.argument_size_in_bytes / 1e6, "temporary": memory.temp_size_in_bytes / 1e6}


def compiled_twice(program: Program) -> tuple[Training, dict[str, float]]:
    """(the training program, its compile times: first without a cache, then from the cache that the first compilation
    wrote)."""
    times = {}
    with tempfile.TemporaryDirectory() as cache:
        compilation_cache.reset_cache()
        jax.config.update("jax_compilation_cache_dir", cache)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        for name in ("seconds to compile, cold", "seconds to compile, cached"):
            jax.clear_caches()
            training = Training(program)
            times[name] = training.compile_seconds
        jax.config.update("jax_compilation_cache_dir", None)
        compilation_cache.reset_cache()
    return training, times


def slope(sizes: list[float], values: list[float]) -> float:
    """The exponent of the growth of `values` with `sizes`, over the upper half of the sizes: 0 is constant, 1 is linear."""
    half = len(sizes) // 2
    logs = [math.log(x) for x in sizes[half:]], [math.log(y) for y in values[half:]]
    return float(np.polyfit(*logs, 1)[0])


def report(tables: Mapping[str, Mapping[str, float]], out: Path | None, *arguments: str) -> None:
    """Print the results. With `out`, also write them as JSON, with machine, versions, commit and command (`provenance`)."""
    for title, figures in tables.items():
        print(title)
        for name, value in figures.items():
            print(f"  {name:<32}{value:>16,.3f}")
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps({"results": tables, **provenance(*arguments)}, indent=2) + "\n")


def keep(path: Path, results: dict[str, Any]) -> None:
    """Write results to a JSON file; other cases in the file are kept."""
    before = json.loads(path.read_text())["results"] if path.exists() else {}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"results": before | results}, indent=1) + "\n")


def provenance(*arguments: str) -> dict[str, Any]:
    """The command (script and the `arguments` that determine its result), commit, versions and machine."""
    script = f"benchmarks/{Path(sys.argv[0]).name}"
    found = environment(" ".join(["python", script, *arguments]))
    # The folder of the checkout is of no interest.
    return {"environment": found | ({"script": script} if "script" in found else {})}
