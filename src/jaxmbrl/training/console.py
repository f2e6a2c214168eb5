"""The console of a run: a live table and a progress bar with the time left on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import statistics
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any, TextIO, cast

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from jaxmbrl.core.warning import warn_user

EPOCHS_SHOWN = 10
SPEED_WINDOW = 60.0
"""Seconds over which the speed is measured (at least the last two updates)."""
Column = tuple[str, str, str]
"""(title, metric, format)."""
SECONDS: Column = ("seconds", "time/epoch", ".1f")
COLUMNS: tuple[Column, ...] = (
    ("train return", "train/return", ".1f"),
    ("eval return", "eval/return", ".1f"),
    ("model error", "model/holdout_error", ".3g"),
    SECONDS,
)


class RunWarning(UserWarning):
    """A warning about a run, such as that of a seed that is frozen."""


class _Nowhere(io.TextIOBase):
    """A stream that discards its input."""

    def write(self, text: str) -> int:
        return len(text)


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Raises the error; rich would end the process."""
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


def discard(stream: TextIO | io.TextIOBase | None) -> None:
    """Discard what a stream still holds and what will be written to it. Otherwise Python reports it at its end."""
    if stream is None:
        return
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


class Progress:
    """The console of one run of `seeds` seeds, each of `total_steps` environment steps.

    Writes to `out` (standard output by default). Use it as a context manager: the live display is shown inside it. If `out`
    can no longer be written to, as a pipe whose reader has ended, nothing more is shown and the run continues.
    """

    def __init__(self, total_steps: int, seeds: int, out: TextIO | io.TextIOBase | None = None) -> None:
        self.total_steps = total_steps
        self.seeds = seeds
        self._out = cast(TextIO, (sys.stdout or _Nowhere()) if out is None else out)
        self._console = _console(self._out)
        self._columns = COLUMNS
        self._live: Live | None = None
        self._epochs: deque[dict[str, str]] = deque(maxlen=EPOCHS_SHOWN)
        self._speed = Speed()
        self._steps = 0
        self._message = ""
        self._compiling: tuple[str, float, Spinner] | None = None

    @classmethod
    def silent(cls) -> Progress:
        """A console that prints nothing."""
        return cls(0, 0, out=_Nowhere())

    def __enter__(self) -> Progress:
        if self._console is not None:
            self._live = Live(get_renderable=self._render, console=self._console, refresh_per_second=4)
            with self._kept():
                self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.end()

    def end(self) -> None:
        """End the live display; further messages are plain lines."""
        self._compiling = None
        live, self._live = self._live, None
        if live is not None:
            with self._kept():
                live.stop()

    @property
    def width(self) -> int:
        """Columns of the terminal; 80 if the output is not a terminal."""
        return 80 if self._console is None else self._console.width

    def say(self, text: str) -> None:
        """Print permanent lines."""
        self._print(text)

    def tell(self, text: str) -> None:
        """Print permanent lines that a user of Python, where nothing else is printed, has to know as well."""
        self.say(text)

    def warn(self, text: str) -> None:
        """Print a permanent warning."""
        self._print(f"warning: {text}", "yellow")

    def compiling(self, what: str) -> None:
        """Show that a compilation starts."""
        self._compiling = (what, time.monotonic(), Spinner("line"))
        if self._console is None:
            self._print(f"compiling {what} ...")
        self._refresh()

    def compiled(self, what: str, seconds: float) -> None:
        """Show how long a compilation took; the time left does not include it."""
        self._compiling = None
        self._speed.pause(seconds)
        self._print(f"compiled {what} in {seconds:.1f} s")

    def update(self, env_steps: int, message: str | None = None) -> None:
        """Move the bar to `env_steps` of each seed. The speed is measured from the first call on."""
        self._steps = env_steps
        self._message = message or ""
        self._speed.add(time.monotonic(), env_steps)
        self._refresh()

    def add_columns(self, names: Sequence[str]) -> None:
        """Also show these metrics, titled by their names."""
        known = [name for _, name, _ in self._columns]
        more = [(name, name, ".4g") for name in names if name not in known]
        self._columns = (*self._columns[:-1], *more, SECONDS)

    def epoch(self, rows: Sequence[dict[str, Any]]) -> None:
        """Show an epoch from its rows of metrics, one for each seed; frozen seeds are marked and left out of the means."""
        if not rows:
            return
        shown = summary(rows, self._columns)
        self._steps = max(self._steps, int(rows[0]["env_steps"]))
        self._epochs.append(shown)
        if self._console is None:
            self._print(_plain_epoch(shown, self.total_steps, self._columns))
        self._refresh()

    def _print(self, text: str, style: str = "") -> None:
        with self._kept():
            if self._console is not None:
                # Without line breaks of its own, so that commands can be copied.
                self._console.print(Text(text, style=style), soft_wrap=True)
                return
            _write(self._out, text)

    @contextlib.contextmanager
    def _kept(self) -> Iterator[None]:
        """Context in which an output that cannot be written to is reported once and given up."""
        try:
            yield
        except (OSError, ValueError) as error:
            if isinstance(self._out, _Nowhere):
                return
            reason = getattr(error, "strerror", None) or error
            if self._out is sys.stdout:
                discard(self._out)
            self._out, self._console, self._live = cast(TextIO, _Nowhere()), None, None
            with contextlib.suppress(OSError, ValueError):
                print(
                    f"jaxmbrl: warning: the output cannot be written to ({reason}): continuing without it", file=sys.stderr
                )

    def _refresh(self) -> None:
        if self._live is not None:
            with self._kept():
                self._live.refresh()

    def _render(self) -> RenderableType:
        parts: list[RenderableType] = []
        if self._epochs:
            parts.append(_table(list(self._epochs), self.seeds, self._columns))
        if self._compiling is not None:
            what, since, spinner = self._compiling
            spinner.update(text=Text(f"compiling {what}, {time.monotonic() - since:.0f} s", style="cyan"))
            parts.append(spinner)
        elif self._steps:
            parts.append(self._bar())
        return Group(*parts)

    def _bar(self) -> RenderableType:
        line = Table.grid(padding=(0, 2), expand=True)
        line.add_column(no_wrap=True)
        line.add_column(ratio=1)
        line.add_column(no_wrap=True)
        texts = [f"{self._steps / self.total_steps:.0%}"] if self.total_steps else []
        speed = self._speed.value()
        if speed:
            texts.append(f"{speed:,.0f} steps/s" if speed >= 10 else f"{speed:.1f} steps/s")
            if self._steps < self.total_steps:
                since = time.monotonic() - self._speed.last()
                texts.append(f"{duration(max((self.total_steps - self._steps) / speed - since, 0.0))} left")
        texts += [self._message] if self._message else []
        bar = ProgressBar(total=max(self.total_steps, 1), completed=self._steps, complete_style="cyan")
        line.add_row(f"{self._steps:,} of {self.total_steps:,} steps", bar, Text("  ".join(texts)))
        return line


class Warnings(Progress):
    """A console that prints nothing and passes warnings on to Python, as `RunWarning`: the default of `jaxmbrl.train`."""

    def __init__(self) -> None:
        super().__init__(0, 0, out=_Nowhere())

    def tell(self, text: str) -> None:
        """As `warn`."""
        self.warn(text)

    def warn(self, text: str) -> None:
        """Warn at the line of the user's program that called this package."""
        warn_user(text, RunWarning)


class Work:
    """Progress of a long operation other than training, such as an evaluation: a bar with the time left on a terminal, and
    elsewhere a line now and then. Use it as a context manager; nothing is shown of an operation that takes a few seconds.

    `what` names the operation and `unit` what `total` counts. Writes to `out` (standard error by default). The first line
    is printed after `first` seconds if the rest takes as long, the others every `every` seconds.
    """

    def __init__(
        self,
        what: str,
        total: float | int,
        unit: str,
        out: TextIO | io.TextIOBase | None = None,
        first: float = 5.0,
        every: float = 30.0,
    ) -> None:
        self.total: float | int = total
        self._what, self._unit, self._every = what, unit, every
        self._short, self._shown = first, False
        # A process without a terminal may have neither standard output nor standard error.
        self._out = cast(TextIO, (sys.stderr or _Nowhere()) if out is None else out)
        self._console = _console(self._out)
        self._live: Live | None = None
        self._now = time.monotonic()
        self._next = self._now + first
        self._done: float | int = 0.0
        self._from: tuple[float, float] | None = None
        """(time, amount done) at the first update."""

    @classmethod
    def silent(cls) -> Work:
        """A progress that prints nothing."""
        return cls("", 0, "", out=_Nowhere())

    def __enter__(self) -> Work:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def update(self, done: float | int, total: float | int | None = None) -> None:
        """Set the amount done, and the `total` if it has changed. The speed is measured from the first call on, so call it
        with 0 after compiling and not before."""
        self._now, self._done = time.monotonic(), done
        self.total = self.total if total is None else total
        if self._from is None or done < self._from[1]:
            self._from = (self._now, done)
        left = self._left()
        # Nothing is shown of what is nearly done, such as a short operation whose compilation took long.
        if self._now < self._next or left is None or (left < self._short and not self._shown):
            return
        self._shown = True
        if self._console is None:
            self._next = self._now + self._every
            with contextlib.suppress(OSError, ValueError):
                _write(self._out, self._text())
        elif self._live is None:
            self._live = Live(get_renderable=self._render, console=self._console, refresh_per_second=4, transient=True)
            self._live.start(refresh=True)

    def _left(self) -> float | None:
        """Seconds left by the mean speed so far; None while it is unknown."""
        if self._from is None or self._done <= self._from[1]:
            return None
        since, before = self._from
        return max((self.total - self._done) * (self._now - since) / (self._done - before), 0.0)

    def _text(self, passed: float = 0.0) -> str:
        """One line; `passed` is the time since the last update."""
        left = self._left()
        share = f" ({self._done / self.total:.0%})" if self.total else ""
        text = f"{self._what}: {int(self._done):,} of {int(self.total):,} {self._unit}{share}"
        return text if left is None else f"{text}, about {duration(max(left - passed, 0.0))} left"

    def _render(self) -> RenderableType:
        line = Table.grid(padding=(0, 2), expand=True)
        line.add_column(no_wrap=True)
        line.add_column(ratio=1)
        bar = ProgressBar(total=max(self.total, 1e-9), completed=self._done, complete_style="cyan")
        line.add_row(Text(self._text(time.monotonic() - self._now)), bar)
        return line


class Speed:
    """Environment steps per second, measured over the last `SPEED_WINDOW` seconds."""

    def __init__(self) -> None:
        self._marks: deque[tuple[float, int]] = deque()

    def add(self, now: float, steps: int) -> None:
        """Record that `steps` were done at the time `now` (s)."""
        if self._marks and steps < self._marks[-1][1]:
            self._marks.clear()
        self._marks.append((now, steps))
        while len(self._marks) > 2 and now - self._marks[1][0] >= SPEED_WINDOW:
            self._marks.popleft()

    def pause(self, seconds: float) -> None:
        """Exclude the last `seconds`."""
        self._marks = deque((then + seconds, steps) for then, steps in self._marks)

    def value(self) -> float | None:
        """Steps per second; None while it is unknown."""
        if len(self._marks) < 2:
            return None
        (since, before), (now, steps) = self._marks[0], self._marks[-1]
        return (steps - before) / (now - since) if now > since and steps > before else None

    def last(self) -> float:
        """The time at which steps were last added (s)."""
        return self._marks[-1][0]


def summary(rows: Sequence[dict[str, Any]], columns: Sequence[Column] = COLUMNS) -> dict[str, str]:
    """The texts shown for an epoch's rows, one for each seed: means over the seeds that have the metric."""
    running = [row for row in rows if not row.get("frozen", False)]
    frozen = [str(row["seed"]) for row in rows if row.get("frozen", False)]
    shown = {"epoch": str(rows[0]["epoch"]), "env steps": f"{rows[0]['env_steps']:,}"}
    for title, name, form in columns:
        values = [row[name] for row in (rows if name.startswith("time/") else running) if name in row]
        if values:
            mean = statistics.fmean(values)
            # A count of updates as 48,000, not as 4.8e+04.
            shown[title] = format(mean, ",.0f" if form.endswith("g") and 1e4 <= abs(mean) < 1e7 else form)
    if frozen:
        shown["frozen"] = f"seed{'s' if len(frozen) > 1 else ''} {', '.join(frozen)}"
    return shown


def _console(out: Any) -> Console | None:
    """The console of a terminal; None for any other output."""
    on_terminal = not getattr(out, "closed", False) and out.isatty() and os.environ.get("TERM", "") not in ("", "dumb")
    return _Console(file=out, force_terminal=True, highlight=False) if on_terminal else None


def _write(out: Any, text: str) -> None:
    """Write a line, with replacements for characters that the output cannot encode."""
    try:
        out.write(text + "\n")
    except UnicodeEncodeError:
        out.write(text.encode(out.encoding, "replace").decode(out.encoding) + "\n")
    out.flush()


def duration(seconds: float) -> str:
    """A duration in words: `12 s`, `3 min 20 s`, `2 h 05 min`."""
    minutes, rest = divmod(round(seconds), 60)
    if not minutes:
        return f"{rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


def _plain_epoch(shown: dict[str, str], total_steps: int, columns: Sequence[Column]) -> str:
    parts = [f"epoch {shown['epoch']}", f"{shown['env steps']} of {total_steps:,} steps"]
    parts += [f"{title} {shown[title]}" for title, *_ in columns[:-1] if title in shown]
    if "seconds" in shown:
        parts.append(f"{shown['seconds']} s")
    if "frozen" in shown:
        parts.append(f"frozen: {shown['frozen']}")
    return ", ".join(parts)


def _table(epochs: list[dict[str, str]], seeds: int, columns: Sequence[Column]) -> Table:
    """A table of the last epochs, without empty columns."""
    titles = [t for t in ("epoch", "env steps", *(title for title, *_ in columns)) if any(t in e for e in epochs)]
    frozen = any("frozen" in epoch for epoch in epochs)
    table = Table(box=box.SIMPLE_HEAD, caption=f"mean over {seeds} seeds" if seeds > 1 else None, caption_justify="left")
    for title in titles:
        table.add_column(title, justify="right", style="bold" if title.endswith("return") else "")
    if frozen:
        table.add_column("frozen", style="red")
    for epoch in epochs:
        cells = [epoch.get(title, "-") for title in titles]
        table.add_row(*cells, *([epoch.get("frozen", "")] if frozen else []))
    return table
