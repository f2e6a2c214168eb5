"""Checkpoints that are restored bit for bit, or rejected with the reason.

The arrays are written and read by Orbax. Orbax restores a flipped byte of array data as a wrong value, and casts to another
dtype, both without an error. Therefore each checkpoint has a manifest with a digest of every file and of every leaf's
bytes, and everything that is loaded is compared with it.

    00000123/            one complete checkpoint: it gets this name in one rename, after everything is on the disk
      arrays/            the leaves, numbered in tree order (`array_files`)
      manifest.json      format, step, extra, leaves (path, shape, dtype, sha256), files (size, sha256) (`manifest`)
    damaged-00000100/    set aside by `restore`
    .partial-*           being written or removed; a killed process leaves it, the next save removes it
    .replaced-*          an earlier checkpoint of the same step, while the new one takes its place
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxmbrl.core.places import check_utf8
from jaxmbrl.core.types import PyTree
from jaxmbrl.training import array_files, durable, manifest
from jaxmbrl.training.manifest import CheckpointError, Damaged

ARRAYS = "arrays"


class Restored(NamedTuple):
    """Result of `restore`."""

    step: int
    state: PyTree
    extra: dict[str, Any]
    path: Path
    warnings: tuple[str, ...]
    """One line for each damaged checkpoint."""
    left_out: bool = False
    """Whether leaves were omitted when it was saved."""


class Snapshot(NamedTuple):
    """A copy of a state; later changes of the state do not affect it."""

    leaves: list[dict[str, Any]]
    """The manifest's entry of each leaf, without its digest."""
    arrays: list[np.ndarray | None]
    """The leaves in this process's memory, keys as their data; None for omitted leaves."""


def steps(folder: Path) -> list[int]:
    """The steps of the checkpoints in `folder`, ascending; [] if there is no such folder. Nothing is verified."""
    if not folder.is_dir():
        return []
    return sorted(int(path.name) for path in folder.iterdir() if re.fullmatch(r"\d{8,}", path.name) and path.is_dir())


def extras(folder: Path) -> dict[int, dict[str, Any]]:
    """The `extra` of each checkpoint whose manifest is intact, by step. Files and leaves are not verified."""
    found = {}
    for step in steps(folder):
        with contextlib.suppress(Damaged, CheckpointError, OSError):
            found[step] = manifest.read(folder / f"{step:08}")["extra"]
    return found


def take(state: PyTree, left_out: Collection[str] = ()) -> Snapshot:
    """Copy `state`, a pytree of JAX and NumPy arrays and typed keys, all of them on this process's devices, without the
    leaves whose paths (`jax.tree_util.keystr`) are in `left_out`.

    Raises ValueError for a leaf that is not such an array.
    """
    leaves: list[dict[str, Any]] = []
    arrays: list[np.ndarray | None] = []
    for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]:
        name = jax.tree_util.keystr(path)
        if not isinstance(leaf, jax.Array | np.ndarray):
            raise ValueError(f"leaf {name} must be an array, got {type(leaf).__name__}")
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            raise ValueError(f"leaf {name} is distributed over several processes; gather it before saving")
        entry = {"path": name, **manifest.spec(leaf)}
        if name in left_out:
            leaves.append(entry | {"left_out": True})
            arrays.append(None)
            continue
        data: Any = leaf
        if manifest.is_key(leaf):
            entry["implementation"] = str(jax.random.key_impl(leaf))
            data = jax.random.key_data(leaf)
        leaves.append(entry)
        # A copy: on a CPU, a compiled program may later overwrite the memory of a view.
        arrays.append(np.array(data))
    return Snapshot(leaves, arrays)


def save(
    folder: Path,
    step: int,
    state: PyTree | Snapshot,
    extra: dict[str, Any],
    keep: int = 3,
    precious: Collection[int] = (),
) -> Path:
    """Write `state` as the checkpoint of `step` and return its folder; it is on the disk when this returns.

    `state` is what `take` accepts or returns; `extra` is plain JSON without NaN. The newest `keep` complete checkpoints and
    those of the steps in `precious` are kept; damaged ones are not removed.

    Raises CheckpointError if the disk cannot be written to; ValueError for a negative step, a `keep` below 1, an `extra`
    that is not JSON, or a leaf that is not an array.
    """
    if step < 0 or keep < 1:
        raise ValueError(f"step must be at least 0 and keep at least 1, got {step} and {keep}")
    try:
        json.dumps(extra, allow_nan=False)
    except TypeError as error:
        raise ValueError(f"extra must be plain JSON: {error}") from None
    snapshot = state if isinstance(state, Snapshot) else take(state)
    both = list(zip(snapshot.leaves, snapshot.arrays, strict=True))
    leaves = [entry if array is None else entry | {"sha256": manifest.digest(array)} for entry, array in both]
    arrays = {_array_name(i): array for i, (_, array) in enumerate(both) if array is not None and array.size}
    # Orbax only accepts absolute paths.
    folder = folder.absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        durable.recover(folder)
        for left in folder.glob(f"{durable.PARTIAL}*"):
            shutil.rmtree(left)
        path = _write(folder, step, leaves, arrays, extra)
        _prune(folder, keep, path, {folder / f"{step:08}" for step in precious})
    except OSError as error:
        raise CheckpointError(
            f"checkpoint {step} could not be written to {folder} ({error.strerror or error}); check the disk and resume"
        ) from error
    return path


def restore(
    folder: Path,
    like: PyTree,
    repair: bool = True,
    before: int | None = None,
    fresh: Callable[[], PyTree] | None = None,
    ignored: str | None = None,
) -> Restored:
    """Read the newest intact checkpoint in `folder`, bit for bit as it was saved.

    `like` is a pytree of arrays or `jax.ShapeDtypeStruct` (as from `jax.eval_shape`) with the expected structure, shapes
    and dtypes. Leaves are placed with its shardings, as NumPy arrays if a leaf of `like` is one, and otherwise on the
    default device. Weak types become strong. Omitted leaves are taken from `fresh()`. Leaves of the checkpoint whose path
    (`jax.tree_util.keystr`) begins with `ignored` are not read; `like` must not have them.

    A damaged checkpoint is renamed to `damaged-<step>`, with a warning, and the one before is read. With `repair` false
    nothing is renamed, so a folder to which another process may be writing can be read. With `before` only checkpoints of
    lower steps are considered.

    Raises CheckpointError if no checkpoint is intact, or if an intact one has other leaves than `like`; UserError if the
    path is not UTF-8.
    """
    warnings: list[str] = []
    folder = folder.absolute()
    check_utf8(folder)
    try:
        if repair:
            durable.recover(folder)
        for step in (x for x in reversed(steps(folder)) if before is None or x < before):
            path = folder / f"{step:08}"
            try:
                body = manifest.verified(path)
                leaves = [
                    entry | {"ignored": ignored is not None and entry["path"].startswith(ignored)}
                    for entry in body["leaves"]
                ]
                manifest.compare(path, [entry for entry in leaves if not entry["ignored"]], like)
                state, left_out = _load(path, leaves, like, fresh)
                return Restored(step, state, body["extra"], path, tuple(warnings), left_out)
            except Damaged as problem:
                done = _set_aside(path) if repair else "it is skipped"
                warnings.append(f"checkpoint {path} is damaged ({problem}); {done}")
    except OSError as error:
        raise CheckpointError(f"{folder} could not be read ({error.strerror or error}); check the disk") from error
    if warnings:
        raise CheckpointError(f"no intact checkpoint in {folder}: {'; '.join(warnings)}")
    aside = sorted(path.name for path in folder.glob("damaged-*"))
    note = f" except {', '.join(aside)}" if aside else ""
    raise CheckpointError(f"no checkpoint in {folder}{note}; start the run again in another folder")


def _array_name(i: int) -> str:
    return f"{i:06}"


def _write(
    folder: Path, step: int, leaves: list[dict[str, Any]], arrays: dict[str, np.ndarray], extra: dict[str, Any]
) -> Path:
    """Write the checkpoint under a temporary name, flush it to the disk, and rename it."""
    path = folder / f"{step:08}"
    partial = folder / f"{durable.PARTIAL}{path.name}"
    try:
        partial.mkdir()
        if arrays:
            array_files.save(partial / ARRAYS, arrays)
        manifest.write(partial, step, leaves, extra)
        durable.sync_tree(partial)
        replaced = durable.put(partial, path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        durable.recover(folder)
        raise
    durable.sync(folder)
    if replaced is not None:
        durable.remove(replaced)
    return path


def _prune(folder: Path, keep: int, newest: Path, precious: Collection[Path]) -> None:
    """Remove complete checkpoints older than the newest `keep`, except the precious ones."""
    others = [folder / f"{step:08}" for step in steps(folder)]
    complete = [path for path in others if path != newest and manifest.looks_complete(path)]
    for path in complete[: max(len(complete) - (keep - 1), 0)]:
        if path not in precious:
            durable.remove(path)


def _load(
    path: Path, leaves: list[dict[str, Any]], like: PyTree, fresh: Callable[[], PyTree] | None
) -> tuple[PyTree, bool]:
    """(the state, with every leaf verified after loading; whether some leaves were omitted). `like` has the same leaves,
    except for those that are ignored."""
    targets, treedef = jax.tree.flatten(like)
    order = {jax.tree_util.keystr(keys): i for i, (keys, _) in enumerate(jax.tree_util.tree_flatten_with_path(like)[0])}
    wanted, left_out = {}, [entry["path"] for entry in leaves if entry.get("left_out", False)]
    unread = {}
    for i, entry in enumerate(leaves):
        if entry["path"] in left_out:
            continue
        if entry["ignored"]:
            # Orbax reads all arrays of a file.
            unread[_array_name(i)] = _zeros(entry)
            continue
        target = targets[order[entry["path"]]]
        data = jax.eval_shape(jax.random.key_data, target) if manifest.is_key(target) else target
        wanted[_array_name(i)] = np.zeros(data.shape, data.dtype)
    loaded = array_files.load(path / ARRAYS, {name: array for name, array in (wanted | unread).items() if array.size})
    if left_out and fresh is None:
        raise CheckpointError(f"checkpoint {path} was saved without leaf {left_out[0]}")
    state: list[Any] = jax.tree.leaves(fresh()) if left_out and fresh is not None else [None] * len(targets)
    for i, entry in enumerate(leaves):
        name = _array_name(i)
        if name not in wanted:
            continue
        array = loaded.get(name, wanted[name])
        same = array.shape == wanted[name].shape and array.dtype == wanted[name].dtype
        if not same or manifest.digest(array) != entry["sha256"]:
            raise Damaged(f"leaf {entry['path']} differs from what was saved")
        at = order[entry["path"]]
        state[at] = _place(path, array, entry, targets[at])
    return jax.tree.unflatten(treedef, state), bool(left_out)


def _zeros(entry: dict[str, Any]) -> np.ndarray:
    """An array of the shape and dtype of a leaf in a manifest; of keys, that of their numbers."""
    if "implementation" in entry:
        numbers = jax.random.key_data(jax.random.key(0, impl=entry["implementation"]))
        return np.zeros((*entry["shape"], *numbers.shape), numbers.dtype)
    return np.zeros(entry["shape"], entry["dtype"])


def _place(path: Path, array: np.ndarray, entry: dict[str, Any], target: Any) -> Any:
    """The leaf with the type and the sharding of `target`."""
    if isinstance(target, np.ndarray):
        return array
    stays = isinstance(target, jax.Array) and not target.committed
    sharding = None if stays else target.sharding
    if "implementation" in entry:
        keys = jax.random.wrap_key_data(jax.device_put(array, may_alias=False), impl=entry["implementation"])
        return keys if sharding is None else jax.device_put(keys, sharding)
    leaf = jax.device_put(array, sharding, may_alias=False)
    if leaf.dtype != array.dtype:
        raise CheckpointError(f"checkpoint {path} has {array.dtype} ({entry['path']}); set JAX_ENABLE_X64=1 to resume")
    return leaf


def _set_aside(path: Path) -> str:
    """Rename a damaged checkpoint and return the result in words."""
    aside = path.with_name(f"damaged-{path.name}")
    number = 1
    while aside.exists():
        number += 1
        aside = path.with_name(f"damaged-{path.name}-{number}")
    try:
        path.rename(aside)
    except OSError as error:
        return f"it could not be renamed ({error.strerror})"
    return f"set aside as {aside.name}"
