"""Runs on several hosts: each process trains a share of the seeds, synchronously, and the first one writes the metrics.

The processes only exchange a few values, between two calls of the compiled program.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxmbrl.core.config import UserError
from jaxmbrl.training import checkpoint
from jaxmbrl.training.run_folder import RunFolder


@dataclass(frozen=True)
class Hosts:
    """The processes of a run, and which of them this one is."""

    count: int = 1
    index: int = 0

    @property
    def first(self) -> bool:
        """Whether this is the process that writes the metrics."""
        return self.index == 0

    def share(self, seeds: int) -> tuple[int, int]:
        """(first, number) of this process's seeds among `seeds`; the shares differ by at most one."""
        least, more = divmod(seeds, self.count)
        return self.index * least + min(self.index, more), least + (self.index < more)

    def checkpoints(self, folder: RunFolder) -> Path:
        """The folder of this process's checkpoints, for the run in `folder`."""
        return folder.checkpoints if self.count == 1 else folder.checkpoints / f"host-{self.index}-of-{self.count}"

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes, in order. They must be plain JSON. All processes must call this equally often."""
        if self.count == 1:
            return [value]
        from jax.experimental import multihost_utils

        words = np.frombuffer(json.dumps(value).encode(), np.uint8)
        lengths = np.asarray(multihost_utils.process_allgather(np.array([len(words)]))).reshape(-1)
        padded = np.zeros(int(lengths.max()), np.uint8)
        padded[: len(words)] = words
        texts = np.asarray(multihost_utils.process_allgather(padded)).reshape(self.count, -1)
        return [json.loads(text[:length].tobytes()) for text, length in zip(texts, lengths, strict=True)]


ALONE = Hosts()


def newest_step(folder: RunFolder, before: int | None) -> tuple[int, list[Hosts]]:
    """(newest step of which every host has a checkpoint, below `before` if given; the hosts). The step is -1 if there is
    none."""
    counts = {int(path.name.rsplit("-", 1)[1]) for path in folder.checkpoints.glob("host-0-of-*")}
    found = [(-1, [ALONE])]
    for count in sorted({1, *counts}):
        hosts = [Hosts(count, i) for i in range(count)]
        common = set.intersection(*(set(checkpoint.steps(host.checkpoints(folder))) for host in hosts))
        found += [(step, hosts) for step in common if before is None or step < before]
    return max(found, key=lambda pair: pair[0])


def join(coordinator: str | None, count: int | None, index: int | None) -> Hosts:
    """Connect to the other processes. Arguments that are None are taken from the scheduler's environment
    (`jax.distributed.initialize`).

    Call it before any computation. Raises UserError if the processes do not find each other.
    """
    if (count is None) != (index is None) or (count is None) != (coordinator is None):
        raise UserError("give --coordinator, --hosts and --host together, or --hosts auto alone")
    if count is not None and index is not None and not 0 <= index < count:
        raise UserError(f"--host must be at least 0 and below --hosts ({count}), got {index}")
    try:
        jax.distributed.initialize(coordinator, count, index, initialization_timeout=_join_seconds())
    except (RuntimeError, ValueError) as error:
        raise UserError(f"the hosts did not find each other ({' '.join(str(error).split())[:300]})") from None
    return Hosts(jax.process_count(), jax.process_index())


def _join_seconds() -> int:
    """Seconds to wait for the other processes."""
    return int(os.environ.get("JAXMBRL_JOIN_SECONDS", "300"))
