"""Settings of XLA: compiler options, of which those that its version does not know are left out, and the threads of its CPU
client.

jaxlib 0.10.2 computes two things wrong on a CPU, both in its kernels of YNNPACK, so no program here may contain them:

- A product whose right-hand matrix has one number in all places, such as `jnp.zeros` that is closed over, and that is
  summed in the same kernel. It reads memory beyond that number, so the result depends on what lies there. A matrix that is
  an argument of the program, or an element of a loop's state, is safe.
- The sum over an array that was broadcast along its last axes, if it is large enough for several threads (a million
  numbers): they overwrite one another's partial sums.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import jax

from jaxmbrl.core import threefry

NOTHING: Mapping[str, str] = MappingProxyType({})
EIGEN: Mapping[str, str] = MappingProxyType({"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE"})
"""Eigen computes products; YNNPACK still computes sums."""
UNOPTIMIZED: Mapping[str, Any] = MappingProxyType(
    {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}
)
"""Compilation takes half the time; the program is several times as slow."""


def for_ensembles(precision: str = "default") -> Mapping[str, str]:
    """Options for `jax.jit` and `Lowered.compile` of programs whose time goes mostly into the matrix products of ensembles.

    YNNPACK, XLA's default on a CPU, distributes products that are batched over members badly over threads. For them Eigen
    is faster: by 8% in a plan and 16% in a fit on two cores. SAC's two critics are 5% faster with the default. Returns no
    options on other devices, or for `precision` "bfloat16", for which only YNNPACK uses the CPU's matrix units.
    """
    return _on_cpu(EIGEN) if precision != "bfloat16" else NOTHING


def for_one_call() -> Mapping[str, Any]:
    """Options for programs that are called once and compute little, such as that of the initial state: on a CPU they
    compile in half the time. Returns no options on other devices."""
    return _on_cpu(UNOPTIMIZED)


def _on_cpu(options: Mapping[str, Any]) -> Mapping[str, Any]:
    """Those of the options that this version of XLA knows; none on other devices."""
    return {name: of for name, of in options.items() if _known(name, of)} if jax.default_backend() == "cpu" else NOTHING


@functools.cache
def _known(name: str, value: Any) -> bool:
    try:
        jax.jit(lambda x: x, compiler_options={name: value}).lower(0.0).compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True


def prepare() -> None:
    """Prepare this process for programs of this package: `ensure_threads`, and random bits without loops on a CPU
    (`core.threefry`). Call it before JAX first computes."""
    ensure_threads()
    threefry.without_loops()


def ensure_threads() -> None:
    """Give XLA's thread pool on a CPU at least two threads. XLA reads the setting when JAX first computes, so call this
    before.

    By default the pool has one thread for each core. With a single thread, a program that calls back to Python can
    deadlock: it waits for the thread that it occupies itself. If the user has set `PJRT_NPROC`, its value is kept.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if cores < 2:
        os.environ.setdefault("PJRT_NPROC", "2")
