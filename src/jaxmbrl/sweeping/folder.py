"""The folder of a sweep: a run folder for each of its runs, and their logs.

NAME/            the folder of a run, see `training.run_folder`
.logs/NAME.log   the output of the processes that worked on it, and how each of them ended
.sweep.json      the names of the runs, so that those that have not started are known, and the sweep's file
"""

from __future__ import annotations

import datetime
import json
import re
from pathlib import Path
from typing import Any, NamedTuple

from jaxmbrl.core.config import UserError
from jaxmbrl.core.places import check_utf8
from jaxmbrl.training.run_folder import CONFIG, write_file

INDEX = ".sweep.json"
LOGS = ".logs"
KINDS = ("begins", "died", "failed", "finished", "stopped")
"""Kinds of notes in a log."""
TAIL = 1 << 16
"""Number of bytes at the end of a log in which the last note or error is searched."""
SAYS = "jaxmbrl: "
"""Start of the line of an error (`commands.options.complain`)."""
MOST_WORDS = 500
"""Most characters of a line of a log that are repeated."""


class SweepFolder(NamedTuple):
    """A sweep's folder. Nothing is written before `create`."""

    path: Path

    def run(self, name: str) -> Path:
        """The run folder called `name`."""
        return self.path / name

    def log(self, name: str) -> Path:
        """The log of the run called `name`."""
        return self.path / LOGS / f"{name}.log"

    def create(self) -> None:
        """Create the folder if it does not exist. Raises UserError if it cannot be created, is the folder of a run,
        or is not UTF-8."""
        if (self.path / CONFIG).exists():
            raise UserError(f"{self.path} is the folder of a run; choose another folder for the sweep")
        check_utf8(self.path)
        try:
            (self.path / LOGS).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"{self.path} cannot be created ({error.strerror}); choose another folder for the sweep"
            ) from None

    def write_index(self, names: list[str], invalid: dict[str, str], file: Path | None = None) -> None:
        """Write the names of all runs, the errors of the invalid ones, and the sweep's file. Raises UserError if the folder
        is that of another file, which still exists, or if it cannot be written to."""
        own = None if file is None else str(file.resolve())
        other = self._index().get("file")
        if own is not None and isinstance(other, str) and other != own and Path(other).exists():
            raise UserError(f"{self.path} has the runs of {other}; choose another folder for those of {file}: --out FOLDER")
        text = json.dumps({"runs": names, "invalid": invalid, "file": own}, indent=1)
        try:
            write_file(self.path / INDEX, text.encode() + b"\n")
        except OSError as error:
            raise UserError(
                f"{self.path} cannot be written to ({error.strerror}); choose another folder for the sweep"
            ) from None

    def read_index(self) -> tuple[list[str], dict[str, str]]:
        """The arguments of the last `write_index`; empty if the file is missing or not valid."""
        found = self._index()
        try:
            return [str(name) for name in found["runs"]], {str(k): str(v) for k, v in found["invalid"].items()}
        except (KeyError, TypeError, AttributeError):
            return [], {}

    def _index(self) -> dict[str, Any]:
        """The contents of the index; empty if the file is missing or not valid."""
        try:
            found = json.loads((self.path / INDEX).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def note(self, name: str, kind: str, text: str = "") -> None:
        """Append a note about the process of a run to the run's log. `kind` is one of KINDS."""
        if kind not in KINDS:
            raise ValueError(f"a note's kind is one of {', '.join(KINDS)}, got {kind!r}")
        time = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        log = self.log(name)
        log.parent.mkdir(parents=True, exist_ok=True)
        # Start a new line, even after the incomplete last line of a process that died.
        before = "" if not log.exists() or _tail(log, 1) in ("", "\n") else "\n"
        with log.open("a", encoding="utf-8") as file:
            file.write(f"{before}[sweep {time}] {kind}: {' '.join(text.split())}".rstrip() + "\n")

    def last_note(self, name: str, since: int = 0) -> tuple[str, str]:
        """(kind, text) of the last note in the log of a run, after its first `since` bytes; ("", "") if there is none."""
        found = re.findall(rf"^\[sweep [^\]\s]+\] ({'|'.join(KINDS)}): ?(.*)$", self._end(name, since), re.MULTILINE)
        return found[-1] if found else ("", "")

    def last_words(self, name: str, since: int = 0, ours: bool = False) -> str:
        """The last line that a process printed to the log of a run, after its first `since` bytes; "" if there is none.
        With `ours`, the last of our error messages, if there is one."""
        lines = [line.strip() for line in self._end(name, since).splitlines() if not line.startswith("[sweep ")]
        errors = [line for line in lines if ours and line.startswith(SAYS)]
        return next((line.removeprefix(SAYS) for line in reversed(errors or lines) if line), "")[:MOST_WORDS]

    def log_size(self, name: str) -> int:
        """Bytes of the log of a run."""
        log = self.log(name)
        return log.stat().st_size if log.exists() else 0

    def _end(self, name: str, since: int) -> str:
        """The end of the log of a run, after its first `since` bytes; "" if it cannot be read."""
        try:
            return _tail(self.log(name), min(max(self.log_size(name) - since, 0), TAIL))
        except OSError:
            return ""


def _tail(file: Path, size: int) -> str:
    """The last `size` bytes of a file, as text."""
    with file.open("rb") as opened:
        opened.seek(max(opened.seek(0, 2) - size, 0))
        return opened.read().decode("utf-8", errors="replace")
