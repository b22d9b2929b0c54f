"""A report's sections as Markdown: the tables and sentences of the page; its charts are named, PNG plots linked."""

import re
from collections.abc import Iterator, Sequence
from typing import Any

from ehrjax.evaluate import report_blocks as blocks

_SPECIAL = re.compile(r"([\\`*\[\]|#])")


def markdown(title: str, sections: Sequence[blocks.Section]) -> str:
    """The whole file; plots are linked in `plots/` beside it."""
    parts = [f"# {plain(title)}"]
    for section in sections:
        parts += [f"## {plain(section.title)}", *(text for block in section.blocks for text in _texts(block))]
    return "\n\n".join(parts) + "\n"


def plain(text: Any) -> str:
    """Text on one line in which Markdown and HTML see no markup."""
    line = " ".join(str(text).split())
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _SPECIAL.sub(r"\\\1", line)


def _texts(block: Any) -> Iterator[str]:
    match block:
        case blocks.Heading(text):
            yield f"### {plain(text)}"
        case blocks.Paragraph(text):
            yield plain(text)
        case blocks.Bullets(items):
            yield "\n".join(f"- {plain(item)}" for item in items)
        case blocks.Table():
            yield from _table(block)
        case blocks.Chart(title=title, text=text):
            if text:
                yield f"Chart, {plain(title)}: {plain(text)}"
        case blocks.Charts(charts):
            if texts := [text for chart in charts for text in _texts(chart)]:
                yield "\n".join(f"- {text}" for text in texts)
        case blocks.EmbeddingMap(chart=chart):
            yield from _texts(chart)
        case blocks.Image(path):
            yield f"![{plain(blocks.words(path.stem))}](plots/{path.name.replace(' ', '%20')})"
        case blocks.Fold(title, content):
            yield f"#### {plain(title)}"
            yield from (text for inner in content for text in _texts(inner))


def _table(table: blocks.Table) -> Iterator[str]:
    if table.caption:
        yield plain(table.caption)
    rows = [table.header, ["---"] * len(table.header), *table.rows]
    cells = [[cell if number == 1 else plain(cell) for cell in row] for number, row in enumerate(rows)]
    yield "\n".join(f"| {' | '.join(row)} |" for row in cells)
