"""Model-based reinforcement learning in JAX, end to end."""

from __future__ import annotations

import os
import re
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxmbrl.training.runner import evaluate, load, resume, train

__version__ = "0.1.0"
__all__ = ["__version__", "evaluate", "load", "resume", "train"]

_THREADS = 8
_CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

_JAXLIB = tuple(int(number) for number in re.findall(r"\d+", version("jaxlib"))[:3])

if _CORES < _THREADS and _JAXLIB < (0, 11, 1):
    # XLA's pool on a CPU has as many threads as the machine has cores. In these versions a batched Cholesky decomposition
    # holds one of them while it waits for others of the same pool: as many at once as there are threads never return, and
    # MJX's steps have several. More threads cost some 5% of a plan's time. This is read when JAX first computes.
    os.environ.setdefault("PJRT_NPROC", str(_THREADS))


def __getattr__(name: str) -> Any:
    """The run functions, imported when they are asked for: parts must not pay for checkpoints and plots."""
    if name in ("evaluate", "load", "resume", "train"):
        from jaxmbrl.training import runner

        return getattr(runner, name)
    raise AttributeError(f"module 'jaxmbrl' has no attribute '{name}'")
