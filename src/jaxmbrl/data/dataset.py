"""Transitions as a file: an npz with named arrays, one row a step, in the order in which they came.

observation       [N, O]
action            [N, A], in [-1, 1]
reward            [N]
next_observation  [N, O], the true successor and not the first observation of the next episode
terminated        [N] true where the task ended
truncated         [N] true where only the clock ran out; may be left out where it never did
env               name of the task; may be left out
action_repeat     times that each action was applied; may be left out where once

A row that is both terminated and truncated, as Gymnasium may give one, counts as terminated alone.
"""

from __future__ import annotations

import hashlib
import io
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxmbrl.core.config import UserError
from jaxmbrl.core.types import Task, Transition

REQUIRED = ("observation", "action", "reward", "next_observation", "terminated")
FLAGS = ("terminated", "truncated")


class Dataset(NamedTuple):
    """What a file of transitions holds."""

    rows: Transition
    """[N, ...], NumPy arrays: numbers in JAX's default float, flags bool."""
    env: str | None
    """Name of the task, where the file tells it."""
    digest: str
    """SHA-256 of the file."""
    action_repeat: int
    """Times that each action was applied in a row."""


def save(path: str | Path, rows: Transition, env: str, action_repeat: int = 1) -> None:
    """Write transitions [N, ...] of the task `env`, each action applied `action_repeat` times, to the file `path`.

    Raises UserError where that cannot be made, or the transitions are not what `load` takes.
    """
    path = Path(path)
    arrays: dict[str, Any] = {name: np.asarray(getattr(rows, name)) for name in (*REQUIRED, "truncated")}
    _rows(arrays)
    check_writable(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "xb") as file:
        np.savez(file, env=np.array(env), action_repeat=np.array(action_repeat), **arrays)


def check_writable(path: str | Path) -> None:
    """Raise UserError where `path` cannot become a new file, before the work whose result it shall hold. Nothing is left
    behind."""
    path = Path(path)
    try:
        taken = path.is_symlink() or path.exists()
        try_writing(path.parent)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}); choose another file") from None
    if taken:
        raise UserError(f"{path} exists; choose another file")


def try_writing(folder: Path) -> None:
    """Raise OSError where no file can be written to `folder`, or to the nearest one above it where it is still to make."""
    place = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    with tempfile.TemporaryFile(dir=place) as file:
        file.write(b"jaxmbrl")


def load(path: str | Path) -> Dataset:
    """Read and check a file of transitions. Raises UserError naming the array that is missing or wrong."""
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from None
    try:
        file = np.load(io.BytesIO(content), allow_pickle=False)
        arrays = {name: file[name] for name in file.files}
    except MemoryError:
        raise UserError(f"{path} does not fit into this machine's memory; part it") from None
    except Exception:
        # Every layer of a zip file has its own ways to be torn, and none of them lists its errors.
        raise UserError(f"{path} is not an npz file of plain arrays, as numpy.savez writes it") from None
    try:
        return Dataset(_rows(arrays), _env(arrays), hashlib.sha256(content).hexdigest(), _action_repeat(arrays))
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def check_fits(data: Dataset, task: Task) -> None:
    """Raise UserError where the arrays are not of `task`'s sizes, or each action was applied another number of times."""
    if data.action_repeat != task.action_repeat:
        raise UserError(f"action_repeat must be {data.action_repeat}, as of the data, got {task.action_repeat}")
    for name, spec in (("observation", task.observation), ("action", task.action)):
        shape = getattr(data.rows, name).shape[1:]
        if shape != spec.shape:
            raise UserError(f"the data's '{name}' has rows of shape {shape}, {task.name} has {spec.shape}")


def _env(arrays: dict[str, Any]) -> str | None:
    if "env" not in arrays:
        return None
    name = arrays["env"]
    if not isinstance(name, np.ndarray) or name.dtype.kind != "U" or name.size != 1 or not name.item():
        raise UserError("'env' must be the name of one task")
    return str(name.item())


def _action_repeat(arrays: dict[str, Any]) -> int:
    times = arrays.get("action_repeat", np.array(1))
    if not isinstance(times, np.ndarray) or times.dtype.kind not in "iu" or times.size != 1 or times.item() < 1:
        raise UserError("'action_repeat' must be one whole number of at least 1")
    return int(times.item())


def _rows(arrays: dict[str, Any]) -> Transition:
    for name, value in arrays.items():
        if not isinstance(value, np.ndarray):
            raise UserError(f"'{name}' is not an array")
    for name in REQUIRED:
        if name not in arrays:
            raise UserError(f"the array '{name}' is missing; there is: {', '.join(sorted(arrays)) or 'nothing'}")
    known = {*REQUIRED, "truncated", "env", "action_repeat"}
    unknown = sorted(set(arrays) - known)
    if unknown:
        raise UserError(f"unknown array '{unknown[0]}'; known are: {', '.join(sorted(known))}")
    count = len(arrays["reward"]) if arrays["reward"].ndim == 1 else -1
    if count < 1:
        raise UserError(f"'reward' must be [N] with N at least 1, got shape {arrays['reward'].shape}")
    given = {"truncated": np.zeros(count, bool)} | {name: arrays[name] for name in Transition._fields if name in arrays}
    columns: dict[str, Any] = {name: _column(name, given[name], count) for name in (*REQUIRED, "truncated")}
    rows = Transition(**columns)
    if rows.next_observation.shape != rows.observation.shape:
        raise UserError(
            f"'next_observation' must be like 'observation' {rows.observation.shape}, got {rows.next_observation.shape}"
        )
    if not rows.observation.shape[1]:
        raise UserError("'observation' must have at least one number a row")
    return rows._replace(truncated=rows.truncated & ~rows.terminated)


def _column(name: str, value: np.ndarray, count: int) -> np.ndarray:
    """One array in its dtype, checked."""
    rank = 2 if name in ("observation", "action", "next_observation") else 1
    if value.ndim != rank or len(value) != count:
        raise UserError(f"'{name}' must be [{', '.join(['N', 'size'][:rank])}] with N = {count}, got shape {value.shape}")
    if name in FLAGS:
        if value.dtype.kind not in "biuf" or not np.isin(value, (0, 1)).all():
            raise UserError(f"'{name}' must be true or false in every row")
        return value.astype(bool)
    if value.dtype.kind not in "iuf":
        raise UserError(f"'{name}' must hold numbers, got {value.dtype}")
    with np.errstate(over="ignore"):
        value = value.astype(jnp.result_type(float))
    wrong = np.flatnonzero(~np.isfinite(value).reshape(count, -1).all(axis=1))
    if len(wrong):
        raise UserError(f"'{name}' is not finite in {len(wrong)} rows, the first of them row {wrong[0]}")
    if name == "action" and np.abs(value).max(initial=0.0) > 1:
        beyond = value.flat[np.abs(value).argmax()]
        raise UserError(f"'action' must be in [-1, 1], got {beyond:g}: divide by the actuator's range")
    return value
