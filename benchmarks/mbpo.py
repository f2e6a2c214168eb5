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
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.compilation_cache import compilation_cache
from measure import report, seconds

from jaxmbrl.training import loop, programs


def compiled(program: programs.Program, arguments: Any, cache: str) -> tuple[Any, dict[str, float]]:
    """The training program compiled, and what that took: without a cache, and then from the one that the first left."""
    compilation_cache.reset_cache()
    jax.config.update("jax_compilation_cache_dir", cache)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    times = {}
    for name in ("seconds to compile, cold", "seconds to compile, cached"):
        jax.clear_caches()
        begun = time.perf_counter()
        run = jax.jit(program.loop.run, donate_argnums=1).lower(*arguments).compile()
        times[name] = time.perf_counter() - begun
    # The folder is about to go.
    jax.config.update("jax_compilation_cache_dir", None)
    compilation_cache.reset_cache()
    return run, times


def slice_of(asked: argparse.Namespace, seeds: int) -> dict[str, float]:
    """The figures for `seeds` seeds."""
    settings = {"warmup_steps": asked.warmup, "eval_every": 0}
    if not asked.whole_buffers:
        settings |= {"replay_capacity": 50_000, "rollout_length.last": 1}
    program = programs.build(programs.configure("mbpo", asked.env, asked.preset, settings=settings, seeds=seeds))
    config = program.config.settings
    init = jax.jit(program.loop.init)
    clock, state = loop.clock_at(0), init(jnp.arange(seeds), {})
    with tempfile.TemporaryDirectory() as cache:
        run, figures = compiled(program, (clock, state, jnp.asarray(1, jnp.int32)), cache)
    memory = run.memory_analysis()
    figures["GB of state"] = memory.argument_size_in_bytes / 1e9
    figures["GB besides, while running"] = memory.temp_size_in_bytes / 1e9

    def advance(steps: int) -> float:
        nonlocal clock, state

        def go() -> Any:
            nonlocal clock, state
            clock, state = run(clock, state, jnp.asarray(steps // config.num_envs, jnp.int32))
            return clock

        return seconds(go)

    advance(asked.warmup - config.num_envs)
    figures["seconds of the first fit and step"] = advance(config.num_envs)
    advance(config.refit_every)
    taken, spent = 0, 0.0
    while spent < asked.seconds:
        spent += advance(config.refit_every)
        taken += config.refit_every
    if bool(jnp.any(state.fault.what >= 0)):
        raise SystemExit("a seed has met a value that is not finite: its speed means nothing")
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
