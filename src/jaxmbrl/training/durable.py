"""Folders and files that survive a crash: they are on the disk when a function returns, and never incomplete."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

PARTIAL, REPLACED = ".partial-", ".replaced-"
"""Prefixes of folders that are being written or removed, and of folders that are being replaced."""


def sync(path: Path) -> None:
    """Flush a file, or the entries of a folder, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_tree(folder: Path) -> None:
    """Flush a folder and everything in it to the disk."""
    for path in sorted(folder.rglob("*")):
        sync(path)
    sync(folder)


def put(partial: Path, path: Path) -> Path | None:
    """Rename the folder `partial` to `path` in one operation. An existing folder `path` is renamed first and returned:
    remove it once the new entry is on the disk."""
    replaced = path.with_name(f"{REPLACED}{path.name}")
    if path.exists():
        path.rename(replaced)
    partial.rename(path)
    return replaced if replaced.exists() else None


def remove(path: Path) -> None:
    """Remove a folder. If the process is killed meanwhile, no incomplete folder has its name."""
    doomed = path.rename(path.with_name(f"{PARTIAL}{path.name.lstrip('.')}-removed"))
    shutil.rmtree(doomed)


def recover(folder: Path) -> None:
    """Restore the name of a replaced folder if its successor never got that name."""
    for old in folder.glob(f"{REPLACED}*"):
        path = folder / old.name.removeprefix(REPLACED)
        if path.exists():
            remove(old)
        else:
            old.rename(path)
