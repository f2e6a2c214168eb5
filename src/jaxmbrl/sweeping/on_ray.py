"""Runs of a sweep on Ray, on a cluster or on this machine: each is one task, whose process trains.

Ray is imported where it is used. It is started without its dashboard and usage statistics. Results are only in the folder
of the sweep, which all machines must have at the same path.
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
from jaxmbrl.sweeping.launching import POLL_SECONDS, Job, Launcher, begin

LOCAL = "local"
OBJECT_STORE_BYTES = 100 * 2**20
"""Size of the object store of a Ray that is started here; it stays empty."""


def tasks(ray: Any, cpus: float, gpus: float) -> Launcher:
    """Tasks of Ray, each with its share of the cluster."""
    # Retries are ours: a task that dies is reported and started again as a process is.
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

    # A cancelled task asks its process to save and end, and waits for it.
    return Launcher(start, ended, lambda reference: ray.cancel(reference, force=False))


def attend(words: Sequence[str], log: str, cwd: str) -> int:
    """The body of a task: start a process with a `jaxmbrl` command line and wait for it; returns its exit code."""
    os.chdir(cwd)
    process = begin(words, Path(log))
    while process.poll() is None:
        # Short waits, because a cancellation is not received during a long one.
        try:
            time.sleep(POLL_SECONDS)
        except KeyboardInterrupt:
            process.terminate()
    return int(process.returncode)


@contextlib.contextmanager
def connected(address: str | None, cpus: float, gpus: float) -> Iterator[Launcher]:
    """Tasks on the cluster at `address`, by default at RAY_ADDRESS, or else on a Ray of this machine that ends afterwards.

    Raises UserError where Ray is missing, there is no cluster, or this machine is too small for a run.
    """
    try:
        import ray
    except ImportError:
        raise UserError("Ray is not installed: pip install 'jaxmbrl[ray]'") from None
    address = address or os.environ.get("RAY_ADDRESS") or LOCAL
    own: dict[str, Any] = {}
    if address == LOCAL:
        own = {"include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
    with _environment(RAY_USAGE_STATS_ENABLED="0"), warnings.catch_warnings():
        # JAX warns of forks; those of Ray execute another program at once.
        warnings.simplefilter("ignore", RuntimeWarning)
        try:
            ray.init(address, logging_level=logging.ERROR, log_to_driver=False, **own)
        except Exception as error:  # Ray raises a plain Exception where it does not start in time.
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


@contextlib.contextmanager
def _environment(**values: str) -> Iterator[None]:
    """Environment variables, set while inside."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
