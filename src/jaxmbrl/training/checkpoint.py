"""Checkpoints that restore bit for bit, or say why not.

The arrays are written and read by Orbax. It restores a flipped byte of array data as a wrong value and casts a differing
dtype, both without a word; so each checkpoint carries a manifest with a digest of every file and of every leaf's bytes,
and whatever is loaded is checked against it.

    00000123/            one checkpoint, complete: it gets this name in one rename, after everything is on the disk
      arrays/            Orbax's files: the leaves, numbered in tree order; on several hosts NUMBER.bytes, their bytes alone
      manifest.json      format, step, extra, leaves (path, shape, dtype, sha256), files (size, sha256)
    damaged-00000100/    set aside by `restore`
    .partial-*           being written or removed; a killed process leaves it, the next save removes it
    .replaced-*          an earlier checkpoint of the same step, while the new one takes its place
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import importlib.metadata
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmbrl.core.config import UserError
from jaxmbrl.core.types import PyTree

FORMAT = 1
MANIFEST = "manifest.json"
ARRAYS = "arrays"
PLAIN = ".bytes"


class CheckpointError(UserError):
    """A checkpoint that cannot be written, or none that can be restored, told in one line."""


class Restored(NamedTuple):
    """What `restore` found."""

    step: int
    state: PyTree
    extra: dict[str, Any]
    path: Path
    warnings: tuple[str, ...]
    """One line for each checkpoint that was set aside."""
    left_out: bool = False
    """Whether leaves were left out when it was saved."""


class Taken(NamedTuple):
    """A state as it was when it was taken; what becomes of the state later changes nothing of it."""

    leaves: list[dict[str, Any]]
    """What the manifest says of each leaf, but for its digest."""
    arrays: list[np.ndarray | None]
    """The leaves' bytes in this process's memory; of keys, their data; None of those left out."""


class _Damaged(Exception):
    """What is wrong with a checkpoint."""


def steps(folder: Path) -> list[int]:
    """The steps of the checkpoints in `folder`, ascending; [] where there is no such folder. Nothing is verified."""
    if not folder.is_dir():
        return []
    return sorted(int(path.name) for path in folder.iterdir() if re.fullmatch(r"\d{8,}", path.name) and path.is_dir())


def extras(folder: Path) -> dict[int, dict[str, Any]]:
    """What was saved beside the state in each checkpoint whose manifest is whole, by step. No digest is checked."""
    found = {}
    for step in steps(folder):
        with contextlib.suppress(_Damaged, CheckpointError, OSError):
            found[step] = _manifest(folder / f"{step:08}")["extra"]
    return found


def take(state: PyTree, left_out: Collection[str] = ()) -> Taken:
    """Copy `state`, a pytree of JAX and NumPy arrays, typed keys included, all of them held by this process; but for the
    leaves whose paths (`jax.tree_util.keystr`) are `left_out`.

    Raises ValueError for a leaf that is not such an array.
    """
    leaves: list[dict[str, Any]] = []
    arrays: list[np.ndarray | None] = []
    for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]:
        name = jax.tree_util.keystr(path)
        if not isinstance(leaf, jax.Array | np.ndarray):
            raise ValueError(f"leaf {name} must be an array, got {type(leaf).__name__}")
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            raise ValueError(f"leaf {name} is spread over several processes; gather it before saving")
        entry = {"path": name, **_spec(leaf)}
        if name in left_out:
            leaves.append(entry | {"left_out": True})
            arrays.append(None)
            continue
        data: Any = leaf
        if _is_key(leaf):
            entry["implementation"] = str(jax.random.key_impl(leaf))
            data = jax.random.key_data(leaf)
        leaves.append(entry)
        # On a CPU a view would show what a compiled program later writes into the same memory.
        arrays.append(np.array(data))
    return Taken(leaves, arrays)


def save(
    folder: Path,
    step: int,
    state: PyTree | Taken,
    extra: dict[str, Any],
    keep: int = 3,
    precious: Collection[int] = (),
) -> Path:
    """Write `state` as the checkpoint of `step` and return its folder; it is on the disk when this returns.

    `state` is what `take` takes or has taken; `extra` is plain JSON without NaN. Of the checkpoints that are complete the
    newest `keep` and those of the steps in `precious` stay; damaged ones are left alone.

    Raises CheckpointError where the disk refuses, ValueError for a negative step, a `keep` below 1, an `extra` that is
    not JSON, or a leaf that is not an array.
    """
    if step < 0 or keep < 1:
        raise ValueError(f"step must be at least 0 and keep at least 1, got {step} and {keep}")
    try:
        json.dumps(extra, allow_nan=False)
    except TypeError as error:
        raise ValueError(f"extra must be plain JSON: {error}") from None
    taken = state if isinstance(state, Taken) else take(state)
    both = list(zip(taken.leaves, taken.arrays, strict=True))
    leaves = [entry if array is None else entry | {"sha256": _digest(array)} for entry, array in both]
    arrays = {_array_name(i): array for i, (_, array) in enumerate(both) if array is not None and array.size}
    # Orbax takes absolute paths only.
    folder = folder.absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _recover(folder)
        for left in folder.glob(".partial-*"):
            shutil.rmtree(left)
        path = _write(folder, step, leaves, arrays, extra)
        _prune(folder, keep, path, {folder / f"{step:08}" for step in precious})
    except OSError as error:
        raise CheckpointError(
            f"checkpoint {step} could not be written to {folder} ({error.strerror or error}); see to the disk and resume"
        ) from error
    return path


def restore(
    folder: Path,
    like: PyTree,
    repair: bool = True,
    before: int | None = None,
    fresh: Callable[[], PyTree] | None = None,
) -> Restored:
    """Read the newest checkpoint in `folder` that is intact, bit for bit as it was saved.

    `like` is a pytree of arrays or `jax.ShapeDtypeStruct` (as from `jax.eval_shape`) with the structure, shapes and
    dtypes that are expected; leaves go where its shardings say, to NumPy where a leaf of `like` is NumPy, and to the
    default device otherwise. Weak types become strong. Leaves that were left out are those of `fresh()`.

    A damaged checkpoint is renamed to `damaged-<step>`, with a warning line, and the one before is taken. With `repair`
    false nothing is renamed, as befits a reader of a folder that another process may be writing to. With `before` only
    checkpoints of steps below it count.

    Raises CheckpointError where no checkpoint is intact, and where one is but has other leaves than `like`.
    """
    warnings: list[str] = []
    folder = folder.absolute()
    try:
        if repair:
            _recover(folder)
        for step in (x for x in reversed(steps(folder)) if before is None or x < before):
            path = folder / f"{step:08}"
            try:
                manifest = _verified_manifest(path)
                _compare(path, manifest["leaves"], like)
                state, left_out = _load(path, manifest["leaves"], like, fresh)
                return Restored(step, state, manifest["extra"], path, tuple(warnings), left_out)
            except _Damaged as problem:
                done = _set_aside(path) if repair else "it is passed over"
                warnings.append(f"checkpoint {path} is damaged ({problem}); {done}")
    except OSError as error:
        raise CheckpointError(f"{folder} could not be read ({error.strerror or error}); see to the disk") from error
    if warnings:
        raise CheckpointError(f"no intact checkpoint in {folder}: {'; '.join(warnings)}")
    aside = sorted(path.name for path in folder.glob("damaged-*"))
    note = f" but {', '.join(aside)}" if aside else ""
    raise CheckpointError(f"no checkpoint in {folder}{note}; start the run anew in another folder")


def _array_name(i: int) -> str:
    return f"{i:06}"


def _spec(leaf: Any) -> dict[str, Any]:
    """Shape and dtype, as the manifest holds them."""
    return {"shape": list(leaf.shape), "dtype": str(leaf.dtype)}


def _is_key(leaf: Any) -> bool:
    return bool(jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key))


def _digest(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data).hexdigest()


def _write(
    folder: Path, step: int, leaves: list[dict[str, Any]], arrays: dict[str, np.ndarray], extra: dict[str, Any]
) -> Path:
    """Write the checkpoint beside its place, bring it to the disk, and rename it."""
    path = folder / f"{step:08}"
    partial = folder / f".partial-{path.name}"
    try:
        partial.mkdir()
        if arrays:
            _save_arrays(partial / ARRAYS, arrays)
        files = {str(p.relative_to(partial)): _file_entry(p) for p in sorted(partial.rglob("*")) if p.is_file()}
        body = {"format": FORMAT, "step": step, "extra": extra, "leaves": leaves, "files": files}
        document = {"sha256": _body_digest(body), "manifest": body}
        (partial / MANIFEST).write_text(json.dumps(document, indent=1, allow_nan=False) + "\n")
        _sync_tree(partial)
        replaced = folder / f".replaced-{path.name}"
        if path.exists():
            path.rename(replaced)
        partial.rename(path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        _recover(folder)
        raise
    _sync(folder)
    if replaced.exists():
        _remove(replaced)
    return path


def _save_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    if jax.process_count() > 1:
        # Orbax saves what all processes have in common; here each keeps what it has by itself.
        path.mkdir()
        for name, array in arrays.items():
            array.tofile(path / f"{name}{PLAIN}")
        return
    try:
        with _orbax() as orbax:
            orbax.save(path, arrays)
    except Exception as error:
        code = re.search(r"os_error_code='(\d+)'", str(error))
        if code is None:
            raise
        raise OSError(int(code[1]), os.strerror(int(code[1])), str(path)) from error


def _file_entry(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"size": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _body_digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True, allow_nan=False).encode()).hexdigest()


def _sync_tree(folder: Path) -> None:
    for path in sorted(folder.rglob("*")):
        _sync(path)
    _sync(folder)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _recover(folder: Path) -> None:
    """Give a replaced checkpoint its name back where its successor never came."""
    for old in folder.glob(".replaced-*"):
        path = folder / old.name.removeprefix(".replaced-")
        if path.exists():
            _remove(old)
        else:
            old.rename(path)


def _remove(path: Path) -> None:
    """Remove a folder so that a kill on the way leaves no half of it under its name."""
    doomed = path.rename(path.with_name(f".partial-{path.name.lstrip('.')}-removed"))
    shutil.rmtree(doomed)


def _prune(folder: Path, keep: int, newest: Path, precious: Collection[Path]) -> None:
    """Remove complete checkpoints older than the newest `keep`, but for the precious ones."""
    others = [folder / f"{step:08}" for step in steps(folder)]
    complete = [path for path in others if path != newest and _looks_complete(path)]
    for path in complete[: max(len(complete) - (keep - 1), 0)]:
        if path not in precious:
            _remove(path)


def _looks_complete(path: Path) -> bool:
    """Whether the manifest is whole and every file has its size; digests of files are left to `restore`."""
    try:
        files = _manifest(path)["files"]
        return all((path / name).stat().st_size == entry["size"] for name, entry in files.items())
    except (_Damaged, CheckpointError, OSError):
        return False


def _manifest(path: Path) -> dict[str, Any]:
    """The manifest, if it is what `save` wrote."""
    try:
        document = json.loads((path / MANIFEST).read_bytes())
        intact = document["sha256"] == _body_digest(document["manifest"])
    except FileNotFoundError:
        raise _Damaged(f"{MANIFEST} is missing") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        intact = False
    if not intact:
        raise _Damaged(f"{MANIFEST} is not as it was written")
    body: dict[str, Any] = document["manifest"]
    if body["format"] != FORMAT:
        raise CheckpointError(f"checkpoint {path} has format {body['format']}, not {FORMAT}; use the version that wrote it")
    if f"{body['step']:08}" != path.name:
        raise _Damaged(f"{MANIFEST} is that of step {body['step']}")
    return body


def _verified_manifest(path: Path) -> dict[str, Any]:
    """The manifest, after the digest of every file."""
    manifest = _manifest(path)
    for name, entry in manifest["files"].items():
        try:
            found = _file_entry(path / name)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EIO):
                raise
            raise _Damaged(f"{name} cannot be read: {error.strerror}") from None
        if found["size"] != entry["size"]:
            raise _Damaged(f"{name} has {found['size']} bytes, not {entry['size']}")
        if found["sha256"] != entry["sha256"]:
            raise _Damaged(f"the bytes of {name} have changed")
    return manifest


def _compare(path: Path, leaves: list[dict[str, Any]], like: PyTree) -> None:
    """Raise CheckpointError naming the first leaf that differs from `like`."""
    found = {entry["path"]: entry for entry in leaves}
    expected = {jax.tree_util.keystr(keys): _spec(leaf) for keys, leaf in jax.tree_util.tree_flatten_with_path(like)[0]}
    for name in [*expected, *found]:
        here, there = _text(expected.get(name)), _text(found.get(name))
        if here != there:
            raise CheckpointError(
                f"checkpoint {path} does not fit this run: leaf {name} is expected as {here}, found as {there}; "
                "resume with the settings and the version it was written with"
            )


def _text(spec: dict[str, Any] | None) -> str:
    return "nothing" if spec is None else f"{spec['dtype']}{spec['shape']}"


def _load(
    path: Path, leaves: list[dict[str, Any]], like: PyTree, fresh: Callable[[], PyTree] | None
) -> tuple[PyTree, bool]:
    """The state, every leaf checked after loading, and whether some were left out; `like` has the same leaves."""
    targets, treedef = jax.tree.flatten(like)
    order = {jax.tree_util.keystr(keys): i for i, (keys, _) in enumerate(jax.tree_util.tree_flatten_with_path(like)[0])}
    wanted, left_out = {}, [entry["path"] for entry in leaves if entry.get("left_out", False)]
    for i, entry in enumerate(leaves):
        if entry["path"] in left_out:
            continue
        target = targets[order[entry["path"]]]
        data = jax.eval_shape(jax.random.key_data, target) if _is_key(target) else target
        wanted[_array_name(i)] = np.zeros(data.shape, data.dtype)
    loaded = _load_arrays(path, {name: array for name, array in wanted.items() if array.size})
    if left_out and fresh is None:
        raise CheckpointError(f"checkpoint {path} was saved without leaf {left_out[0]}")
    state: list[Any] = jax.tree.leaves(fresh()) if left_out and fresh is not None else [None] * len(targets)
    for i, entry in enumerate(leaves):
        name = _array_name(i)
        if name not in wanted:
            continue
        array = loaded.get(name, wanted[name])
        if array.shape != wanted[name].shape or array.dtype != wanted[name].dtype or _digest(array) != entry["sha256"]:
            raise _Damaged(f"leaf {entry['path']} is not as it was saved")
        at = order[entry["path"]]
        state[at] = _place(path, array, entry, targets[at])
    return jax.tree.unflatten(treedef, state), bool(left_out)


def _load_arrays(path: Path, wanted: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    if not wanted:
        return {}
    if any((path / ARRAYS).glob(f"*{PLAIN}")):
        return {name: _plain(path / ARRAYS / f"{name}{PLAIN}", array) for name, array in wanted.items()}
    try:
        with _orbax() as orbax:
            return orbax.load(path / ARRAYS, wanted)
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0]
        version = importlib.metadata.version("orbax-checkpoint")
        raise CheckpointError(
            f"checkpoint {path} is intact but orbax-checkpoint {version} cannot read it ({type(error).__name__}: {reason})"
        ) from error


def _plain(file: Path, like: np.ndarray) -> np.ndarray:
    """The array in a file of its bytes alone."""
    data = file.read_bytes()
    return np.frombuffer(data, like.dtype).reshape(like.shape) if len(data) == like.nbytes else np.zeros(0)


def _place(path: Path, array: np.ndarray, entry: dict[str, Any], target: Any) -> Any:
    """The leaf where and as `target` wants it."""
    if isinstance(target, np.ndarray):
        return array
    stays = isinstance(target, jax.Array) and not target.committed
    sharding = None if stays else target.sharding
    if "implementation" in entry:
        keys = jax.random.wrap_key_data(jax.device_put(array, may_alias=False), impl=entry["implementation"])
        return keys if sharding is None else jax.device_put(keys, sharding)
    leaf = jax.device_put(array, sharding, may_alias=False)
    if leaf.dtype != array.dtype:
        raise CheckpointError(f"checkpoint {path} holds {array.dtype} ({entry['path']}); set JAX_ENABLE_X64=1 to resume")
    return leaf


def _set_aside(path: Path) -> str:
    """Rename a damaged checkpoint; what became of it, in words."""
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


@contextlib.contextmanager
def _orbax() -> Iterator[Any]:
    """Orbax, with its notes off the console (its faults are raised as well); logging is afterwards as it was before."""
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
