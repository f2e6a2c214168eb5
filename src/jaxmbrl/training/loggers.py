"""The loggers of a run. An error of a logger becomes a warning, and training continues."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from jaxmbrl.training.logs import Described, Logger, Row
from jaxmbrl.training.tensorboard_log import TensorBoardLog
from jaxmbrl.training.wandb_log import WandbLog


def make(name: str, run: Described, warn: Callable[[str], None]) -> Logger:
    """The logger called `name`, for a run that starts or continues. Messages to the user are passed to `warn`."""
    if name == "tensorboard":
        return TensorBoardLog(run)
    return WandbLog(run, warn)


class Loggers:
    """The loggers of a run. The first error of each is passed to `warn`; later ones are ignored."""

    def __init__(self, warn: Callable[[str], None]) -> None:
        self._warn = warn
        self._loggers: list[tuple[str, Logger]] = []
        self._failed: set[str] = set()

    def open(self, names: Iterable[str], objects: Iterable[Logger], describe: Callable[[], Described]) -> None:
        """Make the loggers called `names`, and use `objects` as well."""
        self._loggers += [(f"{type(one).__name__} {i}", one) for i, one in enumerate(objects)]
        for name in names:
            try:
                self._loggers.append((name, make(name, describe(), self._warn)))
            except Exception as error:
                self._report(name, error)

    def write(self, rows: Sequence[Row]) -> None:
        """Pass the rows of an epoch to every logger."""
        for name, logger in self._loggers:
            try:
                logger.write([dict(row) for row in rows])
            except Exception as error:
                self._report(name, error)

    def close(self) -> None:
        """Close every logger, once."""
        while self._loggers:
            name, logger = self._loggers.pop()
            try:
                logger.close()
            except Exception as error:
                self._report(name, error)

    def _report(self, name: str, error: Exception) -> None:
        if name not in self._failed:
            self._failed.add(name)
            reason = " ".join(str(error).split())[:300]
            self._warn(f"log '{name}' failed ({type(error).__name__}: {reason}); training continues")
