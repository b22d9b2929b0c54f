"""What a report consists of, before it is a page or a Markdown file; every string in it is plain, untrusted text."""

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

MAX_LISTED = 200  # entries of nested figures that a fold shows; results.json has all


class Heading(NamedTuple):
    """A heading within a section."""

    text: str


class Paragraph(NamedTuple):
    """A paragraph."""

    text: str


class Bullets(NamedTuple):
    """A list."""

    items: Sequence[str]


class Table(NamedTuple):
    """Rows of cells under a header; the first cell of a row names it."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""


class Key(NamedTuple):
    """An entry of a legend: `mark` is "line", "dot" or "bar", `style` the number of its colour and dash."""

    mark: str
    style: str
    name: str


class Chart(NamedTuple):
    """An inline SVG made by `report_charts` or `report_map`, the only markup that is not escaped.

    `text` says what it shows where charts are not drawn; empty where a table beside it does.
    """

    title: str
    svg: str
    text: str
    legend: Sequence[Key] = ()


class Charts(NamedTuple):
    """Charts side by side as far as the page is wide enough."""

    charts: Sequence[Chart]


class Image(NamedTuple):
    """A PNG plot."""

    path: Path


class EmbeddingMap(NamedTuple):
    """The map of patients as drawn, and what the page's script needs to recolour and describe it (JSON-ready)."""

    chart: Chart
    colourings: Sequence[str]
    data: Mapping[str, Any]


class Fold(NamedTuple):
    """Blocks that a reader opens."""

    title: str
    blocks: Sequence[Any]


class Section(NamedTuple):
    """A part of the report; one without blocks is left out."""

    title: str
    blocks: Sequence[Any]


def escape(text: Any) -> str:
    """Text as HTML that holds no markup, in elements and in quoted attributes."""
    return html.escape(str(text), quote=True)


def shortened(text: str, limit: int) -> str:
    """At most `limit` characters; an ellipsis says where some were cut."""
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def words(name: str) -> str:
    """`rows_by_reason` as a reader would write it."""
    return str(name).replace("_", " ")


def figure_text(value: Any) -> str:
    """A figure or a text for a table's cell."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return str(value)


def listing(content: Any, header: Sequence[str] = ("", "value")) -> list[Table]:
    """Nested figures as one table of dotted names and values; nothing where there is nothing."""
    rows = list(_flat(content, ""))
    if len(rows) > MAX_LISTED:
        rows = [*rows[:MAX_LISTED], ["…", f"{len(rows) - MAX_LISTED:,} more in results.json"]]
    return [Table(header, rows)] if rows else []


def fold(title: str, content: Any) -> list[Fold]:
    """The listing of nested figures, folded; nothing where there is nothing."""
    tables = listing(content)
    return [Fold(title, tables)] if tables else []


def _flat(content: Any, name: str):
    if isinstance(content, Mapping):
        for key, value in content.items():
            yield from _flat(value, f"{name}.{key}" if name else str(key))
    elif isinstance(content, list | tuple) and any(isinstance(item, Mapping | list | tuple) for item in content):
        for number, value in enumerate(content):
            yield from _flat(value, f"{name}[{number}]")
    elif isinstance(content, list | tuple):
        yield [name, shortened(", ".join(map(figure_text, content)), 200)]
    else:
        yield [name, figure_text(content)]
