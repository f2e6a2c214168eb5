"""How a run is asked to stop: by SIGTERM, as schedulers send it before they kill, or by SIGINT, as Ctrl-C does."""

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
"""Exit code of a process that was asked to stop and saved all that it had: EX_TEMPFAIL, try again."""
SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(Exception):
    """A run has stopped because it was asked to; its state is saved."""


class _Waiting(NamedTuple):
    """What the main thread waits for."""

    last_will: Callable[[], None]
    patience: float


class Stopping:
    """Whether the process was asked to stop, from when it is entered on.

    Python calls a signal's handler between two of its own instructions: not while a compiled program runs. So a thread
    watches for signals as well. While the main thread waits for something that may take long and leaves the run's state
    as it is (`meanwhile`), the thread does what is to be done and ends the process; otherwise the main thread looks at
    `asked` itself, at the next moment at which its state is whole. Where the others of several hosts would have to be told,
    the thread has patience first. A second signal ends the process at once.

    What it says goes to `say`, a run's end to `farewell`.
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
        heard, told = socket.socketpair()
        for end in (heard, told):
            self._stack.callback(end.close)
        told.setblocking(False)
        for number in SIGNALS:
            # Python must have a handler of its own for the byte to be written; the thread does all that there is to do.
            self._stack.callback(signal.signal, number, signal.signal(number, lambda *_: None))
        self._stack.callback(signal.set_wakeup_fd, signal.set_wakeup_fd(told.fileno(), warn_on_full_buffer=False))
        thread = threading.Thread(target=self._listen, args=(heard,), daemon=True, name="jaxmbrl-stopping")
        thread.start()

    def _listen(self, heard: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while told := heard.recv(64):
                for number in told:
                    if number in SIGNALS:
                        self._hear(number)

    def _hear(self, number: int) -> None:
        if self.asked:
            os._exit(128 + number)
        self.asked = True
        self._say("asked to stop: saving; asked again, it ends at once")
        with self._lock:
            if self._waiting is not None:
                self._hurry(self._waiting)

    def _hurry(self, waiting: _Waiting) -> None:
        """End the process once the patience of `waiting` is over: by a thread, so that a second signal is still heard."""
        timer = threading.Timer(waiting.patience, self._give_up, (waiting,))
        timer.daemon = True
        timer.start()

    def _give_up(self, waiting: _Waiting) -> None:
        with self._lock:
            if self._waiting is waiting:
                os._exit(self._end(waiting.last_will))

    def _end(self, last_will: Callable[[], None]) -> int:
        """Do what is to be done; the exit code."""
        try:
            last_will()
        except Stopped as stopped:
            self._farewell(stopped)
        except Exception as error:
            self._say(f"{type(error).__name__}: {error}")
            return 1
        finally:
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
        return ASKED_TO_STOP

    @contextlib.contextmanager
    def meanwhile(self, last_will: Callable[[], None], patience: float = 0.0) -> Iterator[None]:
        """While the main thread waits inside, being asked to stop means `last_will`, which raises Stopped when it is done,
        and then the process ends; with `patience`, in seconds, only if the waiting takes longer. What has been asked before
        is answered first, here."""
        waiting = _Waiting(last_will, patience)
        with self._lock:
            before, late = self._waiting, self.asked
            if patience or not late:
                self._waiting = waiting
            if patience and late:
                self._hurry(waiting)
        if late and not patience:
            last_will()
        try:
            yield
        finally:
            with self._lock:
                self._waiting = before
