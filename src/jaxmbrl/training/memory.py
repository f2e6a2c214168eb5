"""Device memory that a run needs, checked before it starts."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from jaxmbrl.core.config import UserError
from jaxmbrl.core.types import PyTree

LOWER = "lower seeds, num_envs, replay_capacity, batch_size, a planner's population or the networks' sizes"
LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
"""Linux files with the memory limit of a container."""


class OutOfMemory(UserError):
    """A run needs more memory than is available."""


def check(arrays: PyTree, what: str, advice: str) -> None:
    """Raise OutOfMemory, with `advice`, if `arrays` (or their shapes) do not fit into device memory; `what` names them."""
    needed, present = bytes_of(arrays), available()
    if needed > present:
        raise OutOfMemory(f"{what} takes {_text(needed)}, the device has {_text(present)}; {advice}")


def bytes_of(arrays: PyTree) -> int:
    """Bytes of arrays, or of arrays with these shapes and dtypes."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(arrays))


def needed(compiled: Any) -> int | None:
    """Bytes that a compiled program uses on each device while it runs: arguments, results and temporary memory."""
    found = compiled.memory_analysis()
    if found is None:
        return None
    in_and_out = found.argument_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes
    return int(in_and_out + found.temp_size_in_bytes)


def check_compiled(what: str, compiled: Any, devices: int = 1) -> None:
    """Raise OutOfMemory if a program, compiled for this number of devices, needs more memory than is available."""
    need = needed(compiled)
    if need is not None and need * devices > available():
        raise OutOfMemory(
            f"{what} needs {_text(need * devices)} of memory while it runs, the device has {_text(available())}; {LOWER}"
        )


@contextlib.contextmanager
def explained(what: str, compiled: Any = None) -> Iterator[None]:
    """Convert the error of a failed allocation into an OutOfMemory that says how much memory `compiled` needs."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        need = None if compiled is None else needed(compiled)
        measured = "" if need is None else f", which needs {_text(need)}"
        present = f"the device has {_text(available())}, and other processes may use some of it"
        raise OutOfMemory(f"out of memory in {what}{measured} ({present}); {LOWER}") from error


def available() -> int:
    """Memory in bytes of all devices of this process together; on a CPU, the memory that this process may use."""
    limits = [(device.memory_stats() or {}).get("bytes_limit") for device in jax.local_devices()]
    known = [limit for limit in limits if limit is not None]
    if known:
        return sum(known)
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([machine, *(int(text) for text in map(_read, LIMITS) if text.isdigit())])


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _text(size: int) -> str:
    return f"{size / 1e9:,.1f} GB" if size >= 1e8 else f"{size / 1e6:,.1f} MB"
