"""Folders and files that survive a crash: on the disk when a function returns, and never half of one under its name."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

PARTIAL, REPLACED = ".partial-", ".replaced-"
"""Prefixes of folders that are being written or removed, and of folders whose successor is being put in place."""


def sync(path: Path) -> None:
    """Bring a file, or the entries of a folder, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_tree(folder: Path) -> None:
    """Bring a folder and everything in it to the disk."""
    for path in sorted(folder.rglob("*")):
        sync(path)
    sync(folder)


def put(partial: Path, path: Path) -> Path | None:
    """Give the folder `partial` the name `path` in one rename. A folder that has the name already is renamed first and
    returned: remove it once the new entry is on the disk."""
    replaced = path.with_name(f"{REPLACED}{path.name}")
    if path.exists():
        path.rename(replaced)
    partial.rename(path)
    return replaced if replaced.exists() else None


def remove(path: Path) -> None:
    """Remove a folder. Where the process is killed meanwhile, nothing incomplete keeps its name."""
    doomed = path.rename(path.with_name(f"{PARTIAL}{path.name.lstrip('.')}-removed"))
    shutil.rmtree(doomed)


def recover(folder: Path) -> None:
    """Give a replaced folder its name back where its successor was never put in place."""
    for old in folder.glob(f"{REPLACED}*"):
        path = folder / old.name.removeprefix(REPLACED)
        if path.exists():
            remove(old)
        else:
            old.rename(path)
