"""The worker's side of the protocol with `benchmarks/peers.py`; it imports no package."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

Answer = Callable[[Mapping[str, Any]], None]
"""Send the results of the last request, and return when the next request arrives; ends the process if there is none.

The first call reports that the setup is complete.
"""
Case = Callable[[dict[str, Any], Answer], None]
"""(settings, answer): set up a case, then measure it in a loop."""


def timed(run: Callable[[], Any], number: int, unit: str) -> dict[str, float]:
    """Results of one call of `run`, which waits for its results and does `number` of `unit`.

    The CPU's time is that of all threads of this process. With a single core it is the time that the call would take if no
    other program used the core.
    """
    begun, used = time.perf_counter(), time.process_time()
    run()
    used, duration = time.process_time() - used, time.perf_counter() - begun
    return {
        "seconds": duration,
        "CPU seconds": used,
        f"{unit}s a second": number / duration,
        f"CPU ms for each {unit}": 1e3 * used / number,
    }


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
