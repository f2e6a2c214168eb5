"""The manifest of a checkpoint: its format, step and extra values, and a digest of every leaf and of every file."""

from __future__ import annotations

import errno
import hashlib
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmbrl.core.config import UserError
from jaxmbrl.core.types import PyTree

FORMAT = 1
MANIFEST = "manifest.json"


class CheckpointError(UserError):
    """A checkpoint cannot be written, or none can be restored; the reason is in one line."""


class Damaged(Exception):
    """A checkpoint differs from what was written; the message says how."""


def is_key(leaf: Any) -> bool:
    """Whether an array has typed random keys."""
    return bool(jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key))


def spec(leaf: Any) -> dict[str, Any]:
    """Shape and dtype of an array, in the form of the manifest."""
    return {"shape": list(leaf.shape), "dtype": str(leaf.dtype)}


def digest(array: np.ndarray) -> str:
    """SHA-256 of an array's bytes."""
    return hashlib.sha256(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data).hexdigest()


def file_entry(path: Path) -> dict[str, Any]:
    """Size and SHA-256 of a file."""
    with path.open("rb") as file:
        return {"size": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def body_digest(body: dict[str, Any]) -> str:
    """SHA-256 of the manifest itself."""
    return hashlib.sha256(json.dumps(body, sort_keys=True, allow_nan=False).encode()).hexdigest()


def write(folder: Path, step: int, leaves: list[dict[str, Any]], extra: dict[str, Any]) -> None:
    """Write the manifest of the checkpoint in `folder`. The other files must be complete."""
    files = {str(p.relative_to(folder)): file_entry(p) for p in sorted(folder.rglob("*")) if p.is_file()}
    body = {"format": FORMAT, "step": step, "extra": extra, "leaves": leaves, "files": files}
    document = {"sha256": body_digest(body), "manifest": body}
    (folder / MANIFEST).write_bytes(json.dumps(document, indent=1, allow_nan=False).encode() + b"\n")


def read(path: Path) -> dict[str, Any]:
    """The manifest of the checkpoint `path`. Raises Damaged if it differs from what was written, CheckpointError if it has
    another format."""
    try:
        document = json.loads((path / MANIFEST).read_bytes())
        intact = document["sha256"] == body_digest(document["manifest"])
    except FileNotFoundError:
        raise Damaged(f"{MANIFEST} is missing") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        intact = False
    if not intact:
        raise Damaged(f"{MANIFEST} differs from what was written")
    body: dict[str, Any] = document["manifest"]
    if body["format"] != FORMAT:
        raise CheckpointError(f"checkpoint {path} has format {body['format']}, not {FORMAT}; use the version that wrote it")
    if f"{body['step']:08}" != path.name:
        raise Damaged(f"{MANIFEST} is that of step {body['step']}")
    return body


def verified(path: Path) -> dict[str, Any]:
    """The manifest, after comparing every file with its digest. Raises as `read` does, and Damaged if a file differs."""
    body = read(path)
    for name, entry in body["files"].items():
        try:
            found = file_entry(path / name)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EIO):
                raise
            raise Damaged(f"{name} cannot be read: {error.strerror}") from None
        if found["size"] != entry["size"]:
            raise Damaged(f"{name} has {found['size']} bytes, not {entry['size']}")
        if found["sha256"] != entry["sha256"]:
            raise Damaged(f"the bytes of {name} have changed")
    return body


def looks_complete(path: Path) -> bool:
    """Whether the manifest is intact and every file has the right size. The files' digests are not compared."""
    try:
        files = read(path)["files"]
        return all((path / name).stat().st_size == entry["size"] for name, entry in files.items())
    except (Damaged, CheckpointError, OSError):
        return False


def compare(path: Path, leaves: list[dict[str, Any]], like: PyTree) -> None:
    """Raise CheckpointError naming the first leaf that differs from `like` in path, shape or dtype."""
    found = {entry["path"]: entry for entry in leaves}
    expected = {jax.tree_util.keystr(keys): spec(leaf) for keys, leaf in jax.tree_util.tree_flatten_with_path(like)[0]}
    for name in [*expected, *found]:
        here, there = _text(expected.get(name)), _text(found.get(name))
        if here != there:
            raise CheckpointError(
                f"checkpoint {path} does not fit this run: leaf {name} must be {here}, got {there}; "
                "resume with the settings and the version it was written with"
            )


def _text(spec: dict[str, Any] | None) -> str:
    return "nothing" if spec is None else f"{spec['dtype']}{spec['shape']}"
