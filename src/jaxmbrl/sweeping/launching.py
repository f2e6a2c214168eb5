"""Start the runs of a sweep, several at once, each in its own process. If a process dies, its run is restarted."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxmbrl.sweeping import status
from jaxmbrl.sweeping.folder import SweepFolder
from jaxmbrl.training.console import Work
from jaxmbrl.training.stopping import ASKED_TO_STOP

USER_ERROR = 2
"""Exit code of a process with invalid options. It is not restarted, because it would fail again."""
POLL_SECONDS = 0.2
LOOK_SECONDS = 10.0
"""Time between two looks at the folders of the runs, to show their progress."""


class Job(NamedTuple):
    """A run to start or resume."""

    name: str
    words: tuple[str, ...]
    """Arguments of Python that start or resume it: those of the program, and those of its `jaxmbrl` command."""
    log: Path
    """The file to which its output is appended."""
    total_steps: int | None = None
    """The steps of the whole run, in whole epochs, which may be more than those of a finished run that it continues."""


class Launcher(NamedTuple):
    """An interface to start and stop jobs."""

    start: Callable[[Job], Any]
    """Start a job; returns its handle."""
    ended: Callable[[Any], int | str | None]
    """(handle) -> exit code, negative for a signal; or a description of what happened to the job; None while it runs."""
    stop: Callable[[Any], None]
    """Ask the job of a handle to save and exit; a second call asks it to exit at once."""


def processes() -> Launcher:
    """A launcher that runs jobs as processes on this machine."""

    def stop(process: subprocess.Popen[bytes]) -> None:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()

    return Launcher(lambda job: begin(job.words, job.log), lambda process: process.poll(), stop)


def begin(words: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    """Start a Python process whose arguments, `words`, run a `jaxmbrl` command. It stops when this process ends.

    It has its own session, so Ctrl-C reaches only this process, which passes it on once.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, *words, "--with", str(os.getpid())]
    with log.open("ab") as out:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )


class Signals:
    """Counts SIGINT and SIGTERM inside `counted`, where they do not stop this process."""

    def __init__(self) -> None:
        self.received = 0

    @contextlib.contextmanager
    def counted(self) -> Iterator[Signals]:
        """Context manager that counts signals; only the main thread receives any."""

        def receive(*_: object) -> None:
            self.received += 1

        with contextlib.ExitStack() as stack:
            # Python allows handlers in the main thread only.
            with contextlib.suppress(ValueError):
                for number in (signal.SIGINT, signal.SIGTERM):
                    stack.callback(signal.signal, number, signal.signal(number, receive))
            yield self


def launch(
    jobs: Sequence[Job],
    folder: SweepFolder,
    launcher: Launcher,
    at_once: int,
    retries: int,
    say: Callable[[str], None],
    signals: Signals,
    poll: float = POLL_SECONDS,
    work: Work | None = None,
) -> dict[str, str]:
    """Run all jobs, `at_once` at a time. Returns the state of each: finished, failed, stopped or waiting.

    If the process of a job dies, the job is restarted, up to `retries` times, and resumes its run. After a signal no
    further job starts; running jobs are asked to save and exit, and this function waits for them. `work` shows how many of
    the runs are done, running ones by their share of the steps.
    """
    waiting = deque(jobs)
    shares = {job.name: share_of(folder, job.name, job.total_steps) for job in jobs}
    looked = -math.inf
    states = {job.name: "waiting" for job in jobs}
    tries = dict.fromkeys(states, 0)
    active: dict[str, tuple[Job, Any, float, int]] = {}
    passed_on = 0
    while active or (waiting and not signals.received):
        if passed_on < signals.received:
            if passed_on == 0 and active:
                say(f"asked to stop: {len(active)} running, which save and end (a second signal ends them at once)")
            passed_on = signals.received
            for _, handle, *_ in active.values():
                launcher.stop(handle)
        while waiting and len(active) < at_once and not signals.received:
            job = waiting.popleft()
            tries[job.name] += 1
            steps = status.look(folder.run(job.name)).env_steps
            say(f"starts    {job.name}" + (f" at {steps:,} steps" if steps else ""))
            size = folder.log_size(job.name)
            active[job.name] = (job, launcher.start(job), time.monotonic(), size)
        ended = {name: code for name, (_, handle, *_) in active.items() if (code := launcher.ended(handle)) is not None}
        for name, code in ended.items():
            job, _, began, size = active.pop(name)
            state, why = outcome(folder, job, code, stopping=bool(signals.received), since=size)
            seconds = f"in {time.monotonic() - began:.0f} s"
            if state == "died" and tries[name] <= retries:
                folder.note(name, "died", why)
                say(f"died      {name} {seconds}: {why}; it is started again")
                waiting.appendleft(job)
                continue
            state = "failed" if state == "died" else state
            states[name] = state
            if folder.last_note(name, size)[0] != state:
                folder.note(name, state, why)
            say(f"{state:<9} {name} {seconds}" + (f": {why}" if why else ""))
        if work is not None and (ended or time.monotonic() - looked >= LOOK_SECONDS):
            shares |= {name: 1.0 for name in ended if name not in active and states[name] != "waiting"}
            shares |= {name: share_of(folder, name, job.total_steps) for name, (job, *_) in active.items()}
            work.update(sum(shares.values()), len(jobs))
            looked = time.monotonic()
        if not ended:
            time.sleep(poll)
    return states


def share_of(folder: SweepFolder, name: str, total_steps: int | None = None) -> float:
    """The share of its steps, `total_steps` if they are known, that a run has done."""
    found = status.look(folder.run(name))
    total = total_steps or found.total_steps
    return 1.0 if status.has_ended(found, total_steps) else min(found.env_steps / total, 1.0) if total else 0.0


def outcome(folder: SweepFolder, job: Job, code: int | str, stopping: bool, since: int = 0) -> tuple[str, str]:
    """(state, reason) of a run after its process ended with `code`. The state is finished, stopped, failed or died; a run
    that died is retried. Of a process that noted no reason, the reason is its last line in the log after the first `since`
    bytes."""
    name = job.name
    noted = folder.last_note(name)
    found = status.look(folder.run(name), noted)
    if status.has_ended(found, job.total_steps):
        return found.state, found.error or ""
    if code == ASKED_TO_STOP or (stopping and code != USER_ERROR):
        return "stopped", ""
    kind, why = folder.last_note(name, since)
    if kind == "failed":
        return ("failed" if code == USER_ERROR else "died"), why
    said = folder.last_words(name, since, ours=code == USER_ERROR)
    if code == USER_ERROR:
        return "failed", said or "its options are not valid"
    killed = isinstance(code, int) and code < 0 and code != -signal.SIGABRT
    return "died", _in_words(code) + (f": {said}" if said and not killed else "")


def _in_words(code: int | str) -> str:
    """A description of how a process ended."""
    if isinstance(code, str):
        return code
    if code == 0:
        return "it ended before all steps were done"
    if code > 0:
        return f"exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"killed by {name}" + (" (out of memory?)" if code == -signal.SIGKILL else "")
