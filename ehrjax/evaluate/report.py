"""The end of a run in words: the text table, results.json, and a report as one HTML page and as Markdown.

    python -m ehrjax.evaluate.report --workdir=DIR

writes both reports of a finished run again, from what its workdir holds.
"""

import argparse
import json
import math
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ehrjax.evaluate import report_sections as sections_of
from ehrjax.evaluate.files import replaced
from ehrjax.evaluate.report_blocks import Bullets, Fold, Image, Section
from ehrjax.evaluate.report_html import page
from ehrjax.evaluate.report_markdown import markdown
from ehrjax.evaluate.report_task import task_section
from ehrjax.evaluate.tables import results_table

__all__ = ["results_table", "write_json", "write_report"]

MAX_PLOT_BYTES = 2_500_000  # of PNG plots in the page; base64 makes them a third larger
# Plots that a chart of the page replaces.
REPLACED_PLOTS = re.compile(
    r"training|pretrain|embeddings_tsne|cluster_survival|.+_(forest|reliability|decision|incidence|patient_\d+)"
)


def write_json(path: str | Path, content: Mapping[str, Any]) -> None:
    """Write JSON whole or not at all; NumPy numbers become plain ones, NaN and infinity null."""
    text = json.dumps(_plain(content), indent=1, allow_nan=False)
    with replaced(path) as partial:
        partial.write_text(text + "\n", encoding="utf-8")


def write_report(workdir: str | Path, results: Mapping[str, Any], config: Mapping[str, Any]) -> Path:
    """Write `workdir/report.html` and `report.md`; returns the former.

    Reads what else is there: environment.json, metrics.jsonl, predictions/*.parquet, embedding_map.json, plots/*.png.
    """
    workdir, results = Path(workdir), _plain(results)
    environment = _read(workdir / "environment.json")
    pngs, left_out = _plots(workdir / "plots")
    owners = {png: _task_of(png, results["tasks"]) for png in pngs}
    of_task = {name: [png for png in pngs if owners[png] == name] for name in results["tasks"]}
    others = [png for png in pngs if owners[png] is None]
    sections = [
        sections_of.run_section(results, config, environment),
        sections_of.data_section(results.get("data") or {}),
        sections_of.cohort_section(results["tasks"]),
        sections_of.training_section(results.get("train"), workdir / "metrics.jsonl"),
        sections_of.pretraining_section(results.get("pretrain")),
        *(
            task_section(name, task, workdir / "predictions" / f"{name}.parquet", of_task[name])
            for name, task in results["tasks"].items()
        ),
        sections_of.embedding_section(results.get("embeddings"), workdir / "embedding_map.json"),
        sections_of.audit_section(results.get("audit")),
        Section("Plots", [Fold("plots of the run", [Image(png) for png in others])] if others else []),
        sections_of.environment_section(environment, config),
    ]
    if left_out:
        sections.append(Section("Further plots", [Bullets([f"plots/{png.name}" for png in left_out])]))
    sections = [section for section in sections if section.blocks]
    title = str(config.get("name", workdir.name))
    subtitle = " · ".join(filter(None, ["Report of a run", str(environment.get("started") or "")]))
    for name, text in (("report.md", markdown(title, sections)), ("report.html", page(title, subtitle, sections))):
        with replaced(workdir / name) as partial:
            partial.write_text(text, encoding="utf-8")
    return workdir / "report.html"


def _plots(folder: Path) -> tuple[list[Path], list[Path]]:
    """PNG files that no chart replaces: those that fit into the page, and those that would make it too large."""
    chosen, left_out, size = [], [], 0
    for png in sorted(folder.glob("*.png")):
        if REPLACED_PLOTS.fullmatch(png.stem):
            continue
        size += png.stat().st_size
        (chosen if size <= MAX_PLOT_BYTES else left_out).append(png)
    return chosen, left_out


def _task_of(png: Path, tasks: Iterable[str]) -> str | None:
    """The task with the longest name that starts the plot's: `death` has not the plots of `death_1y`."""
    return max((name for name in tasks if png.stem.startswith(f"{name}_")), key=len, default=None)


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _plain(content: Any) -> Any:
    if isinstance(content, Mapping):
        return {str(key): _plain(value) for key, value in content.items()}
    if isinstance(content, list | tuple | np.ndarray):
        return [_plain(value) for value in content]
    if isinstance(content, np.generic):
        content = content.item()
    return None if isinstance(content, float) and not math.isfinite(content) else content


def main(argv: Sequence[str] | None = None) -> None:
    """Write the reports of a finished run again."""
    parser = argparse.ArgumentParser(prog="python -m ehrjax.evaluate.report", description="Write a run's report again.")
    parser.add_argument("--workdir", required=True, type=Path, help="a folder that experiments.run has finished")
    workdir = parser.parse_args(argv).workdir
    if not (workdir / "results.json").exists():
        sys.exit(f"{workdir} holds no results.json: name the workdir of a finished run.")
    path = write_report(workdir, _read(workdir / "results.json"), _read(workdir / "config.json"))
    print(f"written: {path}, {path.with_suffix('.md')}")


if __name__ == "__main__":
    main()
