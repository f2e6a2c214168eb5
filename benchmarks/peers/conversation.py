"""The worker's side of the protocol with `benchmarks/peers.py`; it imports no package."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

Answer = Callable[[Mapping[str, Any]], None]
"""Send the results of the last request, and return when the next request arrives; ends the process if there is none.

The first call reports that the setup is complete.
"""
Case = Callable[[dict[str, Any], Answer], None]
"""(settings, answer): set up a case, then measure it in a loop."""


def converse(cases: Mapping[str, Case]) -> None:
    """Run the case that the command line names, with its settings in JSON."""
    name, settings = sys.argv[1], json.loads(sys.argv[2])
    answers = os.fdopen(os.dup(1), "w")
    # Send other output to standard error, so that it is not read as an answer.
    os.dup2(2, 1)

    def answer(figures: Mapping[str, Any]) -> None:
        answers.write(json.dumps(figures) + "\n")
        answers.flush()
        if not sys.stdin.readline():
            raise SystemExit(0)

    cases[name](settings, answer)
