"""Runs of a sweep on Ray, on a cluster or on this machine. Each run is one Ray task, which starts the training process.

Ray is imported where it is used. It is started without its dashboard and usage statistics. Results are written only to the
folder of the sweep. It must have the same path on all machines, and so must the user's program that is started, if there
is one.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jaxmbrl.core.config import UserError
from jaxmbrl.core.surroundings import environment
from jaxmbrl.sweeping.launching import POLL_SECONDS, Job, Launcher, begin

LOCAL = "local"
OBJECT_STORE_BYTES = 100 * 2**20
"""Size of the object store if Ray is started here; the store stays empty."""


def tasks(ray: Any, cpus: float, gpus: float) -> Launcher:
    """A launcher that runs jobs as Ray tasks, each with `cpus` CPUs and `gpus` GPUs."""
    # We retry, not Ray: a task that dies is reported and restarted in the same way as a process.
    task = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=0)(attend)

    def start(job: Job) -> Any:
        return task.remote(job.words, str(job.log.absolute()), os.getcwd())

    def ended(reference: Any) -> int | str | None:
        ready, _ = ray.wait([reference], timeout=0)
        if not ready:
            return None
        try:
            return int(ray.get(reference))
        except ray.exceptions.RayError as error:
            first = str(error).strip().partition("\n")[0]
            return f"{type(error).__name__}: {first}"

    # A cancelled task asks its process to save and exit, and waits for it.
    return Launcher(start, ended, lambda reference: ray.cancel(reference, force=False))


def attend(words: Sequence[str], log: str, cwd: str) -> int:
    """The body of a task: start a process as `begin` does and wait for it; returns its exit code."""
    os.chdir(cwd)
    process = begin(words, Path(log))
    while process.poll() is None:
        # Wait in short intervals, because a cancellation is only received between them.
        try:
            time.sleep(POLL_SECONDS)
        except KeyboardInterrupt:
            process.terminate()
    return int(process.returncode)


@contextlib.contextmanager
def connected(address: str | None, cpus: float, gpus: float) -> Iterator[Launcher]:
    """A launcher on the cluster at `address`, by default at RAY_ADDRESS. Without either, Ray is started on this machine and
    shut down afterwards.

    Raises UserError if Ray is not installed, there is no cluster, or this machine has too few resources for a run.
    """
    try:
        import ray
    except ImportError:
        raise UserError("Ray is not installed: pip install 'jaxmbrl[ray]'") from None
    address = address or os.environ.get("RAY_ADDRESS") or LOCAL
    own: dict[str, Any] = {}
    if address == LOCAL:
        own = {"include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
    with environment(RAY_USAGE_STATS_ENABLED="0"), warnings.catch_warnings():
        # JAX warns of forks, but the processes that Ray forks execute another program at once.
        warnings.simplefilter("ignore", RuntimeWarning)
        try:
            ray.init(address, logging_level=logging.ERROR, log_to_driver=False, **own)
        except Exception as error:  # Ray raises a plain Exception if it does not start in time.
            what = "Ray does not start here" if address == LOCAL else f"no Ray cluster at {address}"
            raise UserError(f"{what}: {str(error).strip().partition(chr(10))[0]}") from None
    try:
        room = ray.cluster_resources()
        for name, wanted in (("CPU", cpus), ("GPU", gpus)):
            if address == LOCAL and wanted > room.get(name, 0.0):
                raise UserError(f"a run needs {wanted:g} {name}s and this machine has {room.get(name, 0.0):g}")
        yield tasks(ray, cpus, gpus)
    finally:
        ray.shutdown()
