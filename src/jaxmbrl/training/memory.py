"""What a run needs of a device's memory, told before it runs out of it."""

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
"""Where Linux says how much a container may take."""


class OutOfMemory(UserError):
    """A run needs more memory than there is."""


def check(arrays: PyTree, what: str, advice: str) -> None:
    """Raise OutOfMemory, with `advice`, where `what` is `arrays` (or their shapes) and does not fit into the devices."""
    needed, held = bytes_of(arrays), available()
    if needed > held:
        raise OutOfMemory(f"{what} takes {_told(needed)}, the device has {_told(held)}; {advice}")


def bytes_of(arrays: PyTree) -> int:
    """Memory of arrays, or of what has their shapes."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(arrays))


def needed(compiled: Any) -> int | None:
    """Memory that a compiled program takes on each device while it runs: arguments, results and working memory."""
    found = compiled.memory_analysis()
    if found is None:
        return None
    held = found.argument_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes
    return int(held + found.temp_size_in_bytes)


def check_compiled(what: str, compiled: Any, devices: int = 1) -> None:
    """Raise OutOfMemory where a program, compiled for so many devices, needs more than there is."""
    need = needed(compiled)
    if need is not None and need * devices > available():
        raise OutOfMemory(
            f"{what} needs {_told(need * devices)} of memory while it runs, the device has {_told(available())}; {LOWER}"
        )


@contextlib.contextmanager
def told(what: str, compiled: Any = None) -> Iterator[None]:
    """An allocation that fails within is an OutOfMemory that says what `compiled` needs."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        need = None if compiled is None else needed(compiled)
        measured = "" if need is None else f", which needs {_told(need)}"
        raise OutOfMemory(
            f"out of memory in {what}{measured} (the device has {_told(available())}, others may use some of it); {LOWER}"
        ) from error


def available() -> int:
    """Bytes of all devices of this process together; of a CPU, what this process may take of its machine."""
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


def _told(size: int) -> str:
    return f"{size / 1e9:,.1f} GB" if size >= 1e8 else f"{size / 1e6:,.1f} MB"
