"""Write the README's tables of speed from the results in `benchmarks/results`.

    python benchmarks/readme.py [--check]

With `--check` nothing is written: it fails where the README says something else.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
BEGIN, END = "<!-- speed: written by benchmarks/readme.py -->", "<!-- end of speed -->"

Row = tuple[str, str, str, str]

PEERS = {
    "plan-cartpole": ("one plan of CEM, 350 candidates x 20 particles x 15 steps x 5 iterations", "seconds", "s"),
    "plan-cartpole-bfloat16": ("the same with our products between hidden layers in bfloat16", "seconds", "s"),
    "plan-halfcheetah": ("one plan of CEM, 400 x 20 x 30 x 5, 18 observations", "seconds", "s"),
    "fit": ("ensemble fit, 7 members of 4 x 200, batch 256", "updates a second", "updates/s"),
    "fit-bfloat16": ("the same with our products between hidden layers in bfloat16", "updates a second", "updates/s"),
    "sac": ("SAC, 2 x 256, batch 256", "updates a second", "updates/s"),
    "sac-bfloat16": ("the same with our products between hidden layers in bfloat16", "updates a second", "updates/s"),
    "mbpo": ("MBPO on InvertedPendulum, each fit by its own early stopping", "environment steps a second", "steps/s"),
    "mbpo-fixed": ("MBPO on InvertedPendulum, 20 epochs a fit", "environment steps a second", "steps/s"),
    "mbpo-fixed-bfloat16": (
        "the same with our products between hidden layers in bfloat16",
        "environment steps a second",
        "steps/s",
    ),
    "pets": ("PETS on cartpole from nothing to a return of 195, a seed", "seconds a seed", "s"),
    "brax-sac": ("SAC with Brax's inverted pendulum, 16 environments", "updates a second", "updates/s"),
}
"""Case of `peers.py` -> (what it is, the figure that is shown, its unit)."""


def read(name: str) -> dict[str, Any]:
    """The results of one file."""
    return json.loads((RESULTS / f"{name}.json").read_text())["results"]


def table(head: Row, rows: Iterable[Row]) -> list[str]:
    """Lines of a Markdown table; the columns after the first are of numbers."""
    return [f"| {' | '.join(row)} |" for row in (head, ("---", *["---:"] * (len(head) - 1)), *rows)]


def number(value: float) -> str:
    """Three significant digits, or whole."""
    return f"{value:,.0f}" if value >= 100 else f"{value:#.3g}"


def beside_peers() -> list[str]:
    """The table of what `peers.py` found."""
    found, rows = read("peers-cpu"), []
    for name, (about, figure, unit) in PEERS.items():
        if name not in found:
            continue
        case = found[name]
        peer, ratio = case["peer"]["name"], case["times as fast"]
        span = f" ({number(ratio['least'])} to {number(ratio['most'])})" if len(case["pairs"]) > 1 else ""
        rows.append(
            (
                about,
                f"{number(case['jaxmbrl'][figure])} {unit}",
                f"{peer}: {number(case[peer][figure])} {unit}",
                f"{number(ratio['median'])}{span}",
            )
        )
    return table(("on two CPU cores", "jaxmbrl", "the other", "times as fast"), rows)


def beside_limits() -> list[str]:
    """The table of what `limits.py` found."""
    rows = []
    for about, figures in read("limits-cpu").items():
        unit = "GFLOP/s" if "GFLOP/s" in figures else "GB/s"
        limit = "peak" if unit == "GFLOP/s" else "memory's"
        cells = (number(figures[unit]), number(figures[f"{limit} {unit}"]))
        rows.append((about, *(f"{cell} {unit}" for cell in cells), f"{figures[f'share of {limit}']:#.2g}"))
    return table(("beside the machine's limit, measured in turn", "reached", "limit", "share"), rows)


def written(readme: str) -> str:
    """The README with its tables as the results have them. Raises SystemExit where it has no place for them."""
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise SystemExit(f"README.md needs the lines {BEGIN} and {END}")
    return "\n".join([f"{before}{begin}", "", *beside_peers(), "", *beside_limits(), "", f"{end}{after}"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    asked = parser.parse_args()
    path = ROOT / "README.md"
    now = path.read_text()
    then = written(now)
    if asked.check and now != then:
        raise SystemExit("README.md does not tell what benchmarks/results hold: run python benchmarks/readme.py")
    if not asked.check:
        path.write_text(then)


if __name__ == "__main__":
    main()
