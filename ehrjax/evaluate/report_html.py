"""A report's sections as one HTML page that fetches nothing: style, script, charts and plots are inside it."""

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from importlib import resources
from typing import Any

from ehrjax.evaluate import report_blocks as blocks
from ehrjax.evaluate.report_blocks import escape

KEY_SHAPES = {
    "line": '<line x1="0" y1="6" x2="24" y2="6" class="line s{}"/>',
    "dot": '<circle cx="12" cy="6" r="5" class="d{}"/>',
    "bar": '<rect x="4" y="1" width="16" height="10" class="d{}"/>',
}
VERDICTS = {"pass": "pass", "FAIL": "fail"}
_FIGURES = re.compile(r"[-+0-9.,%<>e\[\] ]+")  # figures with their intervals stay on one line


def page(title: str, subtitle: str, sections: Sequence[blocks.Section]) -> str:
    """The document. Its content policy runs this one script and loads nothing, whatever a description says."""
    style, script = (_packaged(name) for name in ("report.css", "report.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    anchors = [anchor(number, section.title) for number, section in enumerate(sections)]
    links = "".join(
        f'<li><a href="#{name}">{escape(section.title)}</a></li>'
        for name, section in zip(anchors, sections, strict=True)
    )
    body = "\n".join(_section(name, section) for name, section in zip(anchors, sections, strict=True))
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,"><title>{escape(title)}</title><style>{style}</style></head>
<body><a class="skip" href="#content">Skip to the report</a>
<header><h1>{escape(title)}</h1><p>{escape(subtitle)}</p></header>
<nav aria-label="Sections"><ul>{links}</ul></nav>
<main id="content">{body}</main>
<script>{script}</script></body></html>
"""


def anchor(number: int, title: str) -> str:
    """A section's id: letters, digits and dashes, no two alike.

    >>> anchor(3, "Task: <b>death</b>")
    'task-b-death-b-3'
    """
    return f"{re.sub('[^a-z0-9]+', '-', title.lower()).strip('-')}-{number}"


def data_script(name: str, data: Any) -> str:
    """JSON inside the page; `<`, `>` and `&` are written as escapes, so that no text in it can end the element."""
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return f'<script type="application/json" id="{name}">{text}</script>'


def _section(name: str, section: blocks.Section) -> str:
    content = "\n".join(map(_markup, section.blocks))
    return f'<section id="{name}"><h2>{escape(section.title)}</h2>\n{content}</section>'


def _markup(block: Any) -> str:
    match block:
        case blocks.Heading(text):
            return f"<h3>{escape(text)}</h3>"
        case blocks.Paragraph(text):
            return f"<p>{escape(text)}</p>"
        case blocks.Bullets(items):
            return f"<ul>{''.join(f'<li>{escape(item)}</li>' for item in items)}</ul>"
        case blocks.Table():
            return _table(block)
        case blocks.Chart():
            return _chart(block)
        case blocks.Charts(charts):
            return f'<div class="charts">{"".join(map(_chart, charts))}</div>'
        case blocks.EmbeddingMap():
            return _embedding_map(block)
        case blocks.Image(path):
            name = escape(blocks.words(path.stem))
            data = base64.b64encode(path.read_bytes()).decode("ascii")
            image = f'<img alt="{name}" src="data:image/png;base64,{data}">'
            return f"<figure><figcaption>{name}</figcaption>{image}</figure>"
        case blocks.Fold(title, content):
            return f"<details><summary>{escape(title)}</summary>{''.join(map(_markup, content))}</details>"
    raise TypeError(f"{type(block).__name__} is no block of a report.")


def _table(table: blocks.Table) -> str:
    caption = f'<p class="caption">{escape(table.caption)}</p>' if table.caption else ""
    head = "".join(f'<th scope="col">{escape(text)}</th>' for text in table.header)
    label = escape(table.caption or f"table of {', '.join(filter(None, table.header))}")
    rows = "".join(map(_row, table.rows))
    # A region that scrolls must be reachable by keyboard.
    return (
        f'{caption}<div class="wide" tabindex="0" role="region" aria-label="{label}"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _row(row: Sequence[str]) -> str:
    first, *rest = row
    cells = "".join(f"<td{_style(text)}>{escape(text)}</td>" for text in rest)
    return f'<tr><th scope="row">{escape(first)}</th>{cells}</tr>'


def _style(text: str) -> str:
    style = VERDICTS.get(text) or ("num" if _FIGURES.fullmatch(text) else "")
    return f' class="{style}"' if style else ""


def _chart(chart: blocks.Chart, controls: str = "") -> str:
    return (
        f"<figure><figcaption>{escape(chart.title)}</figcaption>{controls}{chart.svg}{_legend(chart.legend)}</figure>"
    )


def _legend(keys: Sequence[blocks.Key]) -> str:
    if not keys:
        return ""
    items = "".join(
        f'<li><svg viewBox="0 0 24 12" class="key" aria-hidden="true">{KEY_SHAPES[key.mark].format(key.style)}</svg>'
        f"{escape(key.name)}</li>"
        for key in keys
    )
    return f'<ul class="legend">{items}</ul>'


def _embedding_map(block: blocks.EmbeddingMap) -> str:
    options = "".join(f"<option>{escape(name)}</option>" for name in block.colourings)
    controls = f'<p><label>Colour by <select id="map-colour">{options}</select></label></p>'
    hint = "Point at a patient, tap one, or use the arrow keys."
    return (
        f'<div id="embedding-map">{_chart(block.chart, controls)}'
        f'<p id="map-patient" role="status">{hint}</p>{data_script("map-data", block.data)}</div>'
    )


def _packaged(name: str) -> str:
    return resources.files("ehrjax.evaluate").joinpath(name).read_text(encoding="utf-8")
