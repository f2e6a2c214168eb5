"""The page: sections as one HTML file that includes its style sheet, script and data.

Names and texts from runs are always escaped and never become markup. The Content-Security-Policy of the page allows no
requests, and no script except its own, which is identified by its digest.
"""

from __future__ import annotations

import base64
import hashlib
import html
import importlib.resources
import json
import math
import numbers
import string
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxmbrl.report.parts import (
    DIGITS,
    Chart,
    Facets,
    Heading,
    Page,
    Part,
    Picture,
    Section,
    Table,
    Text,
    as_json,
    table_of,
)

MARK = b'<meta name="generator" content="jaxmbrl report">'
"""Identifies a page that this module wrote."""
LONG = 40
"""Longer table entries (in characters) may be wrapped."""


def render(page: Page, footer: str) -> bytes:
    """The HTML file of `page`."""
    charts: list[Chart] = []
    sections = "\n".join(_section(section, charts) for section in page.sections)
    script = _asset("page.js").strip()
    links = "".join(f'<li><a href="#{section.id}">{_text(section.title)}</a></li>' for section in page.sections)
    parts = {
        "title": _text(page.title),
        "facts": "\n".join(f"<p>{_text(fact)}</p>" for fact in page.facts),
        "contents": f"<ul>{links}</ul>",
        "sections": sections,
        "footer": _text(footer),
        "style": _asset("page.css").strip(),
        "script": script,
        "digest": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        "data": inlined([as_json(chart) for chart in charts]),
    }
    return string.Template(_asset("page.html")).substitute(parts).encode(errors="replace")


def is_ours(path: Path) -> bool:
    """Whether the file at `path` is a page that `render` wrote."""
    with path.open("rb") as file:
        return MARK in file.read(1000)


def inlined(value: Any) -> str:
    """JSON in which no string can end a script element or open a comment."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _asset(name: str) -> str:
    return (importlib.resources.files("jaxmbrl.report") / "assets" / name).read_text(encoding="utf-8")


def _text(value: str) -> str:
    return html.escape(str(value), quote=True)


def _section(section: Section, charts: list[Chart]) -> str:
    parts = "\n".join(_part(part, charts) for part in section.parts)
    return f'<section id="{_text(section.id)}">\n<h2>{_text(section.title)}</h2>\n{parts}\n</section>'


def _part(part: Part, charts: list[Chart]) -> str:
    match part:
        case Chart():
            return _chart(part, charts)
        case Facets():
            inner = "\n".join(_chart(chart, charts) for chart in part.charts)
            # In rows of three, the last of four charts would be alone.
            pairs = " pairs" if len(part.charts) in (1, 2, 4) else ""
            return f'<div class="facets{pairs}">\n{inner}\n</div>'
        case Table():
            return _table(part)
        case Text():
            return f'<p class="warns">{_text(part.text)}</p>' if part.warns else f"<p>{_text(part.text)}</p>"
        case Heading():
            return f"<h3>{_text(part.text)}</h3>"
        case Picture():
            return _picture(part)


def _chart(chart: Chart, charts: list[Chart]) -> str:
    number = len(charts)
    charts.append(chart)
    note = f'<p class="note">{_text(chart.note)}</p>' if chart.note else ""
    return (
        f'<figure id="chart-{number}" data-chart="{number}"><figcaption>{_text(chart.title)}</figcaption>{note}'
        f'<div class="plot"></div>{_table(table_of(chart), "numbers")}</figure>'
    )


def _picture(picture: Picture) -> str:
    # The header of a GIF: six letters, then width and height.
    width, height = struct.unpack_from("<HH", picture.data, 6)
    data = base64.b64encode(picture.data).decode()
    return (
        f"<figure><figcaption>{_text(picture.title)}</figcaption>"
        f'<p class="note">{_text(picture.note)}</p>'
        f'<img src="data:image/gif;base64,{data}" width="{width}" height="{height}" '
        f'alt="{_text(picture.title)}: {_text(picture.note)}"></figure>'
    )


def _table(table: Table, opener: str = "") -> str:
    columns = [[row[i] for row in table.rows if i < len(row)] for i in range(len(table.head))]
    # The first column has the names of the rows. Another column is text if any of its entries is.
    text = [i == 0 or any(isinstance(entry, str) for entry in column) for i, column in enumerate(columns)]
    head = "".join(f'<th scope="col"{_class(text[i] and i > 0)}>{_text(name)}</th>' for i, name in enumerate(table.head))
    body = "\n".join(f"<tr>{_row(row, text)}</tr>" for row in table.rows)
    label = _text(table.title)
    note = f'<p class="note">{_text(table.note)}</p>' if table.note else ""
    caption = "" if opener else f"<caption>{label}</caption>"
    inner = (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{label}: table">'
        f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table></div>{note}"
    )
    if table.closed:
        return f"<details><summary>{_text(opener or table.title)}</summary>{inner}</details>"
    return f'<div class="table">{inner}</div>'


def _row(row: Sequence[Any], text: Sequence[bool]) -> str:
    first = f'<th scope="row">{shown(row[0])}</th>'
    return first + "".join(f"<td{_class(text[i], entry)}>{shown(entry)}</td>" for i, entry in enumerate(row[1:], start=1))


def _class(text: bool, entry: Any = "") -> str:
    return "" if not text else ' class="text long"' if len(str(entry)) > LONG else ' class="text"'


def shown(entry: Any) -> str:
    """A table entry as escaped text: whole numbers with thousands separators, missing values as a dash."""
    if entry is None or (isinstance(entry, float) and math.isnan(entry)):
        return "–"
    if isinstance(entry, bool | str) or not isinstance(entry, numbers.Real):
        return _text(str(entry).lower() if isinstance(entry, bool) else str(entry))
    value = float(entry)
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if value == int(value) and abs(value) < 1e12:
        return f"{int(value):,}"
    if abs(value) >= 1000:
        return f"{value:,.1f}"
    return _text(f"{value:.{DIGITS - 2}g}")
