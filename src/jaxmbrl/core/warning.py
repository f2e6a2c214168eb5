"""Warnings that point at the user's program."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path

PACKAGE = str(Path(__file__).parents[1]) + os.sep
INSTALLED = (f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}")
"""Folders of other packages, which may stand between the user's program and this one."""


def warn_user(text: str, category: type[Warning] = UserWarning) -> None:
    """Warn at the line of the user's program that called this package."""
    frame, level = sys._getframe(), 1
    while frame.f_back is not None and _foreign(frame.f_code.co_filename):
        frame, level = frame.f_back, level + 1
    warnings.warn(text, category, stacklevel=level)


def _foreign(file: str) -> bool:
    return file.startswith((PACKAGE, "<")) or any(folder in file for folder in INSTALLED)
