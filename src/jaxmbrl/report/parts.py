"""What a page is made of: sections of charts, tables, texts and pictures, as plain values."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np

MOST_POINTS = 400
"""Of a line; more are thinned out evenly."""
MOST_ROWS = 120
"""Of the table behind a chart."""
DIGITS = 6
"""Significant ones of what a page holds."""

Kind: TypeAlias = Literal["line", "band", "points", "bars", "rule", "errors"]


Numbers: TypeAlias = Sequence[float] | np.ndarray[Any, Any]
"""Where one is not finite, nothing is drawn."""


class Series(NamedTuple):
    """One thing in a chart. A `rule` is a horizontal line at its first y; `bars` stand on 0 around x, `low` and `high`
    being their edges; of a `band` and of `errors` (points with bars) these are the ends."""

    name: str
    key: str
    """Entry of the legend; the series of one entry are shown and hidden together."""
    kind: Kind
    x: Numbers
    y: Numbers
    low: Numbers = ()
    high: Numbers = ()
    color: int = 0
    """Number in the page's palette; -1 is that of the text."""
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
    """Whether y is logarithmic, where all of it is above 0."""
    square: bool = False
    """Whether both axes have the same range, with a diagonal where both are equal."""


class Facets(NamedTuple):
    """Small charts side by side."""

    charts: tuple[Chart, ...]


class Table(NamedTuple):
    """A table; its first column names the rows."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[Any]]
    note: str = ""
    closed: bool = False
    """Whether it is shown only when opened."""


class Text(NamedTuple):
    """A paragraph."""

    text: str
    warns: bool = False


class Heading(NamedTuple):
    """The heading of what follows within a section."""

    text: str


class Picture(NamedTuple):
    """A GIF."""

    title: str
    data: bytes
    note: str
    width: int
    height: int


Part: TypeAlias = Chart | Facets | Table | Text | Heading | Picture


class Section(NamedTuple):
    """A part of the page that its contents list."""

    id: str
    title: str
    parts: tuple[Part, ...]


class Page(NamedTuple):
    """All that is written."""

    title: str
    facts: tuple[str, ...]
    """Short lines below the title."""
    sections: tuple[Section, ...]


def chosen(count: int, most: int) -> list[int]:
    """At most `most` of `count` indices, evenly spread, with the first and the last."""
    return list(range(count)) if count <= most else np.unique(np.linspace(0, count - 1, most).round().astype(int)).tolist()


def number(value: Any) -> float | None:
    """A number with `DIGITS` significant digits; None for what is not finite."""
    value = float(value)
    return float(f"{value:.{DIGITS}g}") if np.isfinite(value) else None


def numbers(values: Iterable[Any]) -> list[float | None]:
    """`number` of each."""
    return [number(value) for value in values]


def as_json(chart: Chart) -> dict[str, Any]:
    """What the page's script is given of a chart."""
    series = []
    for one in chart.series:
        held: dict[str, Any] = {"name": one.name, "key": one.key, "kind": one.kind, "color": one.color}
        held |= {name: numbers(getattr(one, name)) for name in ("x", "y", "low", "high")}
        series.append(held | {"thin": one.thin, "dashed": one.dashed})
    return {**chart._asdict(), "series": series}


def table_of(chart: Chart) -> Table:
    """The numbers of a chart as a table: a row for each x of its lines, a column for each series; of bars and points alone
    a row for each. Where there are more than `MOST_ROWS`, some of them, evenly spread."""
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
    note = f"{len(kept)} of {len(rows):,} rows, evenly spread" if len(kept) < len(rows) else ""
    return Table(title, head, [rows[i] for i in kept], note, closed=True)
