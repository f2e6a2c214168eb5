"""The parts of a page: sections of charts, tables, texts and pictures, as plain values."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np

MOST_POINTS = 400
"""Maximum number of points of a line; longer lines are thinned evenly."""
MOST_ROWS = 120
"""Maximum number of rows of the table of a chart."""
DIGITS = 6
"""Significant digits of the numbers on a page."""

Kind: TypeAlias = Literal["line", "band", "points", "bars", "rule", "errors"]


Numbers: TypeAlias = Sequence[float] | np.ndarray[Any, Any]
"""Entries that are not finite are not drawn."""


class Series(NamedTuple):
    """One series of a chart. A `rule` is a horizontal line at its first y. `bars` start at 0 and have edges `low` and
    `high` on the x axis. For a `band` and for `errors` (points with error bars), `low` and `high` are the ends in y."""

    name: str
    key: str
    """Entry of the legend; all series with the same entry are shown and hidden together."""
    kind: Kind
    x: Numbers
    y: Numbers
    low: Numbers = ()
    high: Numbers = ()
    color: int = 0
    """Index in the page's palette; -1 is the colour of the text."""
    thin: bool = False
    dashed: bool = False


class Chart(NamedTuple):
    """A chart. Axes are named with their units."""

    title: str
    x: str
    y: str
    series: tuple[Series, ...]
    note: str = ""
    log: bool = False
    """Whether y is logarithmic, if all values are positive."""
    square: bool = False
    """Whether both axes have the same range, with the diagonal drawn."""


class Facets(NamedTuple):
    """Small charts side by side."""

    charts: tuple[Chart, ...]


class Table(NamedTuple):
    """A table. The first column has the names of the rows."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[Any]]
    note: str = ""
    closed: bool = False
    """Whether it is collapsed at first."""


class Text(NamedTuple):
    """A paragraph."""

    text: str
    warns: bool = False


class Heading(NamedTuple):
    """A heading within a section."""

    text: str


class Picture(NamedTuple):
    """A GIF."""

    title: str
    data: bytes
    note: str


Part: TypeAlias = Chart | Facets | Table | Text | Heading | Picture


class Section(NamedTuple):
    """A section of the page."""

    id: str
    title: str
    parts: tuple[Part, ...]


class Page(NamedTuple):
    """The whole page."""

    title: str
    facts: tuple[str, ...]
    """Short lines below the title."""
    sections: tuple[Section, ...]


def chosen(count: int, most: int) -> list[int]:
    """At most `most` of `count` indices, evenly spaced, including the first and the last."""
    return list(range(count)) if count <= most else np.unique(np.linspace(0, count - 1, most).round().astype(int)).tolist()


def number(value: Any) -> float | None:
    """A number with `DIGITS` significant digits; None for what is not finite."""
    value = float(value)
    return float(f"{value:.{DIGITS}g}") if np.isfinite(value) else None


def numbers(values: Iterable[Any]) -> list[float | None]:
    """`number` of each."""
    return [number(value) for value in values]


def as_json(chart: Chart) -> dict[str, Any]:
    """A chart as a JSON object, for the script of the page."""
    series = []
    for one in chart.series:
        entry: dict[str, Any] = {"name": one.name, "key": one.key, "kind": one.kind, "color": one.color}
        entry |= {name: numbers(getattr(one, name)) for name in ("x", "y", "low", "high")}
        series.append(entry | {"thin": one.thin, "dashed": one.dashed})
    return {**chart._asdict(), "series": series}


def table_of(chart: Chart) -> Table:
    """The numbers of a chart as a table. Line charts have a row for each x and a column for each series; other charts have
    a row for each bar or point. At most `MOST_ROWS` rows, evenly spaced, are kept."""
    if all(one.kind in ("line", "band", "rule") for one in chart.series):
        return _wide(chart)
    head = ["series", chart.x, chart.y]
    ends = any(len(one.low) for one in chart.series if one.kind != "rule")
    rows = []
    for one in chart.series:
        for i, y in enumerate(one.y):
            row = [one.name, one.x[i] if one.kind != "rule" else None, y]
            rows.append(row + ([one.low[i], one.high[i]] if len(one.low) else [None, None]) if ends else row)
    return _short(chart.title, head + (["from", "to"] if ends else []), rows)


def _wide(chart: Chart) -> Table:
    xs = sorted({float(x) for one in chart.series if one.kind != "rule" for x in one.x})
    columns: list[tuple[str, dict[float, Any]]] = []
    for one in chart.series:
        at = [float(x) for x in one.x]
        if one.kind == "band":
            columns.append((f"{one.name}, from", dict(zip(at, one.low, strict=True))))
            columns.append((f"{one.name}, to", dict(zip(at, one.high, strict=True))))
        elif one.kind == "rule":
            columns.append((one.name, dict.fromkeys(xs, one.y[0])))
        else:
            columns.append((one.name, dict(zip(at, one.y, strict=True))))
    rows = [[x, *(column.get(x) for _, column in columns)] for x in xs]
    return _short(chart.title, [chart.x, *(name for name, _ in columns)], rows)


def _short(title: str, head: Sequence[str], rows: Sequence[Sequence[Any]]) -> Table:
    kept = chosen(len(rows), MOST_ROWS)
    note = f"{len(kept)} of {len(rows):,} rows, evenly spaced" if len(kept) < len(rows) else ""
    return Table(title, head, [rows[i] for i in kept], note, closed=True)
