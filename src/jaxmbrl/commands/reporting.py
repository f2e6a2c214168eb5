"""The command `jaxmbrl report`: an HTML page about runs."""

from __future__ import annotations

import time
from pathlib import Path

from jaxmbrl.commands import options
from jaxmbrl.core.config import UserError
from jaxmbrl.core.places import expanded


def report(words: list[str]) -> int:
    """`jaxmbrl report`: write one HTML page about runs."""
    from jaxmbrl.report import build
    from jaxmbrl.training.console import Work
    from jaxmbrl.training.run_folder import write_file

    about = "One HTML page about runs, self-contained: curves, comparison, the model, the policy, the run."
    parser = options.parser("report", description=about)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run folder, a sweep's folder, or a folder of runs")
    where = "the page (default: report.html in the folder of one RUN, beside the first of several)"
    parser.add_argument("--out", metavar="FILE", help=where)
    returns = "a CSV of published returns, drawn for the same tasks (for example benchmarks/published/returns.csv)"
    parser.add_argument("--published", metavar="FILE", help=returns)
    parser.add_argument(
        "--no-rollouts", action="store_true", help="use only what the folders contain: run no policy, evaluate no model"
    )
    args = parser.parse_args(words)
    started = time.monotonic()
    file = _page(build.default_file(args.runs) if args.out is None else expanded(args.out))
    work = Work("evaluating policies", 1, "policies")
    page = build.make(args.runs, not args.no_rollouts, args.published, lambda text: print(text, flush=True), work)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_file(file, page)
    except OSError as error:
        raise UserError(f"{file} cannot be written ({error.strerror}); name another file with --out") from None
    print(f"report   {file}: {len(page) / 1e6:.1f} MB, in {time.monotonic() - started:.1f} s")
    return 0


def _page(path: Path) -> Path:
    """The file of the page. Raises UserError if its name has another ending, or if another file would be overwritten."""
    from jaxmbrl.report import page

    if not path.name or path.name == "..":
        raise UserError(f"--out must be the name of a file, FILE.html, got '{path}'")
    if path.suffix not in ("", ".html", ".htm"):
        raise UserError(f"--out must be the name of a page, FILE.html, got '{path}'")
    path = path if path.suffix else path.with_name(path.name + ".html")
    if path.is_dir():
        raise UserError(f"{path} is a folder; name a file with --out")
    if path.exists() and not page.is_ours(path):
        raise UserError(f"{path} exists and is no report; name another file with --out")
    return path
