"""Published methods by name: `algorithms.METHODS`, `algorithms.get`. `algorithms.register` adds your own.

Importing this package imports no method: the module of a method is imported when the method is first looked up.
"""

from __future__ import annotations

from jaxmbrl.algorithms.presets import Preset, default_for
from jaxmbrl.algorithms.registry import (
    LOOP,
    METHODS,
    Card,
    Goal,
    Method,
    add_presets,
    cards,
    get,
    preset,
    register,
    unknown,
    unregister,
)

__all__ = [
    "LOOP",
    "METHODS",
    "Card",
    "Goal",
    "Method",
    "Preset",
    "add_presets",
    "cards",
    "default_for",
    "get",
    "preset",
    "register",
    "unknown",
    "unregister",
]
