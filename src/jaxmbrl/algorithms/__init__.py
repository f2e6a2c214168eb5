"""Published methods, one file each, by name: `algorithms.METHODS`, `algorithms.get`. Your own: `algorithms.register`.

Importing this package imports none of them: a method's module is imported when it is first looked up.
"""

from __future__ import annotations

from jaxmbrl.algorithms.presets import Preset, default_for
from jaxmbrl.algorithms.registry import LOOP, METHODS, Card, Goal, Method, add_presets, cards, get, preset, register

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
]
