"""A worker's side of its conversation with `benchmarks/peers.py`, without any package."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

Answer = Callable[[Mapping[str, Any]], None]
"""Tells the figures of what was asked for, and comes back when the next is asked for; ends the process if none is.

The first answer says that all is set up.
"""
Case = Callable[[dict[str, Any], Answer], None]
"""(settings, answer): what is measured, again and again."""


def converse(cases: Mapping[str, Case]) -> None:
    """Run the case that the command line names, with its settings in JSON."""
    name, settings = sys.argv[1], json.loads(sys.argv[2])
    answers = os.fdopen(os.dup(1), "w")
    # Whatever else is printed must not be taken for an answer.
    os.dup2(2, 1)

    def answer(figures: Mapping[str, Any]) -> None:
        answers.write(json.dumps(figures) + "\n")
        answers.flush()
        if not sys.stdin.readline():
            raise SystemExit(0)

    cases[name](settings, answer)
