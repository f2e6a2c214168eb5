"""Published and recommended settings of an algorithm."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


class Preset(NamedTuple):
    """Settings under a name."""

    config: Any
    source: str
    """Where the numbers come from, and what differs."""
    steps: int
    """Environment steps that a run takes unless told otherwise."""
    tasks: tuple[str, ...] = ()
    """The tasks whose default it is."""


def default_for(presets: Mapping[str, Preset], task: str) -> str:
    """Name of the preset that `task` gets when none is asked for: the one that lists it, else the first."""
    return next((name for name, preset in presets.items() if task in preset.tasks), next(iter(presets)))
