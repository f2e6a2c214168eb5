"""Paths as users write them: `~` is the home folder, and some names cannot be written by all libraries."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from jaxmbrl.core.config import UserError


def expanded(path: str | Path) -> Path:
    """The path, with `~` or `~USER` at its start replaced by a home folder, as a shell does. Every function that takes a
    path from a user calls this; no shell expands paths in Python, in YAML or after `--option=`.

    Raises UserError for what is no path, if there is no home folder, and for a path with a null character.

    >>> from jaxmbrl.core.places import expanded
    >>> expanded("runs/~x").as_posix()
    'runs/~x'
    """
    if not isinstance(path, str | os.PathLike):
        raise UserError(f"a path must be text or a pathlib.Path, got {path!r:.60}")
    text = os.path.expanduser(path)
    if text == "~" or text.startswith("~/"):
        raise UserError(f"{text}: there is no home folder to replace '~'; set HOME, or write the whole path")
    if "\0" in text:
        raise UserError(f"{text!r} cannot be a path: it has a null character; remove it")
    return Path(text)


def check_utf8(path: str | Path) -> None:
    """Raise UserError if the absolute path is not UTF-8 on the disk. Orbax, which writes and reads checkpoints, encodes all
    paths in UTF-8, so in a locale with another encoding it would use another folder, or none."""
    path = Path(path).absolute()
    try:
        if str(path).encode("utf-8") == os.fsencode(path):
            return
    except UnicodeEncodeError:
        pass
    encoding = sys.getfilesystemencoding()
    if encoding == "utf-8":
        raise UserError(f"{path} cannot hold checkpoints: its name is not UTF-8; rename the folder")
    raise UserError(
        f"{path} cannot hold checkpoints: this process reads names as {encoding}, and Orbax writes them as UTF-8; "
        "set PYTHONUTF8=1"
    )
