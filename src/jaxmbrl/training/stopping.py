"""Stopping a run by a signal: SIGTERM, which schedulers send before they kill a process, or SIGINT, which Ctrl-C sends."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from typing import NamedTuple

ASKED_TO_STOP = 75
"""Exit code of a process that was asked to stop and saved its state: EX_TEMPFAIL, which means to try again."""
SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(Exception):
    """A run has stopped because it was asked to; its state is saved."""


class _Waiting(NamedTuple):
    """A wait of the main thread."""

    finish: Callable[[], None]
    """Saves the state and raises Stopped."""
    patience: float
    """Seconds before `finish` is called."""


class Stopping:
    """A context manager that records whether the process was asked to stop.

    Python calls signal handlers between two of its own instructions, so not while a compiled program runs. Therefore a
    thread watches for signals as well. While the main thread waits for a long operation that does not change the run's
    state (`meanwhile`), the thread finishes the run and ends the process. Otherwise the main thread checks `asked` the next
    time that the state is consistent. With several hosts, which must be informed, the thread first waits for the given
    patience. A second signal ends the process at once.

    Messages are passed to `say`, and the end of a run to `farewell`.
    """

    def __init__(self, say: Callable[[str], None], farewell: Callable[[Stopped], None] | None = None) -> None:
        self.asked = False
        self._say = say
        self._farewell = farewell or (lambda stopped: say(str(stopped)))
        self._lock = threading.Lock()
        self._waiting: _Waiting | None = None
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Stopping:
        if threading.current_thread() is threading.main_thread():
            self._watch()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _watch(self) -> None:
        receiver, sender = socket.socketpair()
        for end in (receiver, sender):
            self._stack.callback(end.close)
        sender.setblocking(False)
        for number in SIGNALS:
            # Python writes the byte only for signals with a handler, so the handler does nothing; the thread reacts.
            self._stack.callback(signal.signal, number, signal.signal(number, lambda *_: None))
        self._stack.callback(signal.set_wakeup_fd, signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False))
        thread = threading.Thread(target=self._listen, args=(receiver,), daemon=True, name="jaxmbrl-stopping")
        thread.start()

    def _listen(self, receiver: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while received := receiver.recv(64):
                for number in received:
                    if number in SIGNALS:
                        self._hear(number)

    def _hear(self, number: int) -> None:
        if self.asked:
            os._exit(128 + number)
        self.asked = True
        self._say("asked to stop: saving (a second signal ends the process at once)")
        with self._lock:
            if self._waiting is not None:
                self._hurry(self._waiting)

    def _hurry(self, waiting: _Waiting) -> None:
        """End the process after the patience of `waiting`, on another thread, so that a second signal is still handled."""
        timer = threading.Timer(waiting.patience, self._give_up, (waiting,))
        timer.daemon = True
        timer.start()

    def _give_up(self, waiting: _Waiting) -> None:
        with self._lock:
            if self._waiting is waiting:
                os._exit(self._end(waiting.finish))

    def _end(self, finish: Callable[[], None]) -> int:
        """Finish the run and return the exit code."""
        try:
            finish()
        except Stopped as stopped:
            self._farewell(stopped)
        except Exception as error:
            self._say(f"{type(error).__name__}: {error}")
            return 1
        finally:
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(AttributeError, OSError, ValueError):
                    # A stream may be closed, or None in a process without a terminal.
                    stream.flush()
        return ASKED_TO_STOP

    @contextlib.contextmanager
    def meanwhile(self, finish: Callable[[], None], patience: float = 0.0) -> Iterator[None]:
        """Context in which the main thread waits: a request to stop calls `finish`, which raises Stopped, and ends the
        process; with `patience`, in seconds, only if the wait takes longer. An earlier request is handled on entry."""
        waiting = _Waiting(finish, patience)
        with self._lock:
            before, late = self._waiting, self.asked
            if patience or not late:
                self._waiting = waiting
            if patience and late:
                self._hurry(waiting)
        if late and not patience:
            finish()
        try:
            yield
        finally:
            with self._lock:
                self._waiting = before
