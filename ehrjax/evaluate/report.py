"""The end of a run in words: the text table, results.json, and a report.html that needs no other file."""

import base64
import html
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ehrjax.evaluate.files import replaced
from ehrjax.evaluate.tables import cell, embedding_note, heading, notes, pretrain_rows, results_table, systems_of

__all__ = ["results_table", "write_json", "write_report"]

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; color: #1a1a1a; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.25rem; margin-top: 2.2rem; border-bottom: 1px solid #ccc; }
table { border-collapse: collapse; margin: .6rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .8rem .2rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid #eee; }
td:nth-child(2), th:nth-child(2) { font-weight: 600; } .plain td:nth-child(2) { font-weight: 400; }
figure { display: inline-block; margin: .5rem 1rem .5rem 0; } img { max-width: 100%; }
figcaption { color: #555; font-size: .85rem; } .wide { overflow-x: auto; } details { margin: .4rem 0; }
"""


def write_json(path: str | Path, content: Mapping[str, Any]) -> None:
    """Write JSON whole or not at all; NumPy numbers become plain ones, NaN and infinity null."""
    text = json.dumps(_plain(content), indent=1, allow_nan=False)
    with replaced(path) as partial:
        partial.write_text(text + "\n", encoding="utf-8")


def write_report(workdir: str | Path, results: Mapping[str, Any], config: Mapping[str, Any]) -> Path:
    """Write `workdir/report.html`: results, plots/*.png embedded, data report, config and environment.json."""
    workdir = Path(workdir)
    environment = workdir / "environment.json"
    about = json.loads(environment.read_text(encoding="utf-8")) if environment.exists() else {}
    pngs = sorted((workdir / "plots").glob("*.png"))
    of_pretraining = [png for png in pngs if png.stem == "pretrain"]
    of_task = {name: [png for png in pngs if png.stem.startswith(f"{name}_")] for name in results["tasks"]}
    others = [png for png in pngs if not any(png in group for group in (of_pretraining, *of_task.values()))]
    title = html.escape(str(config.get("name", workdir.name)))
    sections = [f"<h1>{title}</h1>", _model_line(results)]
    if results.get("pretrain"):
        sections.append(_pretrain_section(results, of_pretraining))
    sections += [_task_section(name, task, of_task[name]) for name, task in results["tasks"].items()]
    sections += [
        "<h2>Data and training</h2>",
        *map(_figure, others),
        _details("data report", results.get("data"), True),
    ]
    sections += [_details(name, part) for name, part in (("training", results.get("train")), ("config", config))]
    sections.append(_details("environment", about))
    head = f'<meta charset="utf-8"><title>{title}</title><style>{STYLE}</style>'
    page = [f'<!doctype html>\n<html lang="en"><head>{head}</head><body>', *sections, "</body></html>\n"]
    with replaced(workdir / "report.html") as partial:
        partial.write_text("\n".join(page), encoding="utf-8")
    return workdir / "report.html"


def _model_line(results: Mapping[str, Any]) -> str:
    model = results.get("model") or {}
    parts = [f"{model['name']}, {model['num_params']:,} parameters"] if model else ["no model was trained"]
    return f"<p>{html.escape('; '.join(parts))}. Test figures with 95 % intervals (bootstrap over patients).</p>"


def _pretrain_section(results: Mapping[str, Any], pngs: Sequence[Path]) -> str:
    head, *rows = pretrain_rows(results["pretrain"])
    note = html.escape(embedding_note(results))
    return f"<h2>Pre-training</h2>{_table(rows, head)}<p>{note}</p>{''.join(map(_figure, pngs))}"


def _task_section(name: str, task: Mapping[str, Any], pngs: Sequence[Path]) -> str:
    if not task.get("kind"):
        return f"<h2>{html.escape(name)}</h2><p>Not trained. {html.escape(str(task.get('skipped', '')))}</p>"
    systems = systems_of(task)
    rows = [[metric, *(cell(row.get(metric)) for row in systems.values())] for metric in task["test"]]
    listed = "".join(f"<li>{html.escape(note)}</li>" for note in notes(task))
    parts = [f"<h2>{html.escape(name)}</h2><p>{html.escape(heading(name, task))}</p>", _table(rows, ["", *systems])]
    return "\n".join([*parts, f"<ul>{listed}</ul>" if listed else "", *map(_figure, pngs)])


def _table(rows: Sequence[Sequence[str]], header: Sequence[str]) -> str:
    head = "".join(f"<th>{html.escape(text)}</th>" for text in header)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(text)}</td>" for text in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _figure(png: Path) -> str:
    name = html.escape(png.stem.replace("_", " "))
    data = base64.b64encode(png.read_bytes()).decode("ascii")
    return f'<figure><img alt="{name}" src="data:image/png;base64,{data}"><figcaption>{name}</figcaption></figure>'


def _details(name: str, content: Any, is_open: bool = False) -> str:
    """A foldable part; nothing where there is no content."""
    if not content:
        return ""
    opened = " open" if is_open else ""
    return f"<details{opened}><summary>{html.escape(name)}</summary>{_nested(content)}</details>"


def _nested(content: Any) -> str:
    """Mappings as two-column tables, long lists folded, everything else as text."""
    if isinstance(content, Mapping):
        rows = (f"<tr><td>{html.escape(str(key))}</td><td>{_nested(value)}</td></tr>" for key, value in content.items())
        return f'<table class="plain">{"".join(rows)}</table>'
    if isinstance(content, list | tuple) and any(isinstance(item, Mapping) for item in content):
        return f"<details><summary>{len(content)} entries</summary>{''.join(map(_nested, content))}</details>"
    if isinstance(content, bool) or not isinstance(content, int | float):
        return html.escape(str(content))
    return f"{content:,}" if isinstance(content, int) else f"{content:,.6g}"


def _plain(content: Any) -> Any:
    if isinstance(content, Mapping):
        return {str(key): _plain(value) for key, value in content.items()}
    if isinstance(content, list | tuple | np.ndarray):
        return [_plain(value) for value in content]
    if isinstance(content, np.generic):
        content = content.item()
    return None if isinstance(content, float) and not math.isfinite(content) else content
