"""Build the report of runs: read their folders and return one HTML file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from jaxmbrl import __version__
from jaxmbrl.core.config import UserError
from jaxmbrl.core.places import expanded
from jaxmbrl.diagnostics import published
from jaxmbrl.report import diagnosing, gathering, page, sections
from jaxmbrl.report.diagnosing import Diagnosis
from jaxmbrl.training.console import Work

MOST_DIAGNOSED = 6
"""Largest number of runs for which the policy is restored and evaluated."""


def default_file(paths: Sequence[str | Path]) -> Path:
    """The default file of a report of `paths`: in the folder of one run or sweep, beside the first of several."""
    first = expanded(paths[0])
    return (first if len(paths) == 1 else first.absolute().parent) / "report.html"


def make(
    paths: Sequence[str | Path],
    rollouts: bool = True,
    published_file: str | Path | None = None,
    say: Callable[[str], None] = lambda text: None,
    work: Work | None = None,
) -> bytes:
    """The page about the runs in `paths`: folders of runs, of sweeps, or with runs in them. Nothing is written.

    With `rollouts` the newest policy is restored and evaluated, for one run of each group with the same settings, and for
    at most `MOST_DIAGNOSED` runs. `published_file` is a CSV of published returns (`diagnostics.published`). `say` is called
    with a message before each long step. `work` shows the number of policies that are evaluated.

    Raises UserError if a path is not a run, or a file cannot be read.
    """
    points = [] if published_file is None else published.read(expanded(published_file))
    gathered = gathering.gather(paths)
    found: dict[int, Diagnosis | str] = {}
    chosen = list(dict.fromkeys(group.runs[0] for group in gathered.groups)) if rollouts else []
    work = work or Work.silent()
    with work:
        for number, index in enumerate(chosen[:MOST_DIAGNOSED]):
            run, update = gathered.runs[index], partial(_show, work, number, min(len(chosen), MOST_DIAGNOSED))
            say(f"evaluating the newest policy of {run.path} ...")
            try:
                found[index] = diagnosing.diagnose(run.path, update)
            except UserError as error:
                found[index] = str(error)
    if len(chosen) > MOST_DIAGNOSED:
        say(f"only the policies of the first {MOST_DIAGNOSED} runs are evaluated")
    source = "" if published_file is None else f"from {Path(published_file).name}"
    made = sections.page(gathered, found, points, source)
    return page.render(made, f"Made by jaxmbrl {__version__} from {', '.join(map(str, paths))}.")


def _show(work: Work, number: int, total: int, share: float) -> None:
    work.update(number + share, total)
