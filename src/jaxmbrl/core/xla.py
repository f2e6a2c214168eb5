"""Settings of XLA: compiler options, and the threads of its CPU client."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from types import MappingProxyType

import jax

NOTHING: Mapping[str, str] = MappingProxyType({})
EIGEN: Mapping[str, str] = MappingProxyType({"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE"})
"""Products by Eigen, and sums still by YNNPACK."""


def for_ensembles(precision: str = "default") -> Mapping[str, str]:
    """Options for `jax.jit` and `Lowered.compile` of programs that spend their time in an ensemble's products.

    XLA's default on a CPU, YNNPACK, shares products that are batched over members out badly: with them Eigen is faster, by
    8% in a plan and 16% in a fit on two cores; SAC's two critics are 5% faster with the default. Nothing on other devices,
    where this version of XLA does not know the option, or for products of that `precision` "bfloat16": YNNPACK alone has
    matrix units multiply them.
    """
    return EIGEN if precision != "bfloat16" and jax.default_backend() == "cpu" and _known(tuple(EIGEN.items())) else NOTHING


@functools.cache
def _known(options: tuple[tuple[str, str], ...]) -> bool:
    try:
        jax.jit(lambda x: x, compiler_options=dict(options)).lower(0.0).compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True


def ensure_threads() -> None:
    """Let XLA's thread pool on a CPU have at least two threads. XLA reads the setting when JAX first computes: call this
    before.

    The pool has one thread for each core. With a single thread, a program that calls back to Python can wait for the thread
    that it occupies itself. A value of `PJRT_NPROC` that the user has chosen is kept.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if cores < 2:
        os.environ.setdefault("PJRT_NPROC", "2")
