"""Model-based reinforcement learning in JAX, end to end."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxmbrl.training.runner import evaluate, load, resume, train

__version__ = "0.1.0"
__all__ = ["__version__", "evaluate", "load", "resume", "train"]

if (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1) < 2:
    # XLA's pool on a CPU has as many threads as the machine has cores. With a single one a call back to Python can wait for
    # the thread that its program holds. This is read when JAX first computes.
    os.environ.setdefault("PJRT_NPROC", "2")


def __getattr__(name: str) -> Any:
    """The run functions, imported when they are asked for: parts must not pay for checkpoints and plots."""
    if name in ("evaluate", "load", "resume", "train"):
        from jaxmbrl.training import runner

        return getattr(runner, name)
    raise AttributeError(f"module 'jaxmbrl' has no attribute '{name}'")
