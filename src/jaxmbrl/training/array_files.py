"""Files with the arrays of a checkpoint, written and read by Orbax. On several hosts, each writes its own plain bytes."""

from __future__ import annotations

import contextlib
import importlib.metadata
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxmbrl.training.manifest import CheckpointError

PLAIN = ".bytes"
"""Suffix of a file with the bytes of one array."""


def save(folder: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write arrays, by name, into the new folder `folder`. Raises OSError if the disk cannot be written to."""
    if jax.process_count() > 1:
        # Orbax would save arrays that all processes share; here each process saves its own.
        folder.mkdir()
        for name, array in arrays.items():
            array.tofile(folder / f"{name}{PLAIN}")
        return
    try:
        with _orbax() as orbax:
            orbax.save(folder, arrays)
    except Exception as error:
        code = re.search(r"os_error_code='(\d+)'", str(error))
        if code is None:
            raise
        raise OSError(int(code[1]), os.strerror(int(code[1])), str(folder)) from error


def load(folder: Path, like: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Read arrays with the names, shapes and dtypes of `like`. A file of another size returns an array of another shape.

    Raises CheckpointError if Orbax cannot read the files.
    """
    if not like:
        return {}
    if any(folder.glob(f"*{PLAIN}")):
        return {name: _plain(folder / f"{name}{PLAIN}", array) for name, array in like.items()}
    try:
        with _orbax() as orbax:
            return orbax.load(folder, like)
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0]
        version = importlib.metadata.version("orbax-checkpoint")
        raise CheckpointError(
            f"checkpoint {folder.parent} is intact but orbax-checkpoint {version} cannot read it "
            f"({type(error).__name__}: {reason})"
        ) from error


def _plain(file: Path, like: np.ndarray) -> np.ndarray:
    """The array in a file of plain bytes."""
    data = file.read_bytes()
    return np.frombuffer(data, like.dtype).reshape(like.shape) if len(data) == like.nbytes else np.zeros(0)


@contextlib.contextmanager
def _orbax() -> Iterator[Any]:
    """Orbax without its log messages, whose content it also raises as errors. The logging configuration is restored."""
    root = logging.getLogger()
    handlers = list(root.handlers)
    from orbax.checkpoint import v1 as orbax

    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    context: Any = contextlib.nullcontext()
    if jax.process_count() > 1:
        own = jax.process_index()
        alone = orbax.options.MultiprocessingOptions(
            primary_host=own, active_processes={own}, barrier_sync_key_prefix=f"host-{own}"
        )
        context = orbax.Context(multiprocessing_options=alone)
    try:
        with context:
            yield orbax
    finally:
        logger.setLevel(level)
        for handler in [h for h in root.handlers if h not in handlers]:
            root.removeHandler(handler)
