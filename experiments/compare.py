"""Finished runs side by side: each task's figures, and paired differences to the first run on the test rows they share.

    python -m experiments.compare DIR DIR [DIR ...] [--out=DIR]

Differences are on the same patients and index times, with intervals from a bootstrap over patients; `--out` also writes
compare.json, compare.md and compare.html there.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from ehrjax.evaluate.comparison import difference_to
from ehrjax.evaluate.files import replaced
from ehrjax.evaluate.report import write_json
from ehrjax.evaluate.report_blocks import Paragraph, Section, Table
from ehrjax.evaluate.report_html import page
from ehrjax.evaluate.report_markdown import markdown
from ehrjax.evaluate.saved_predictions import Predictions, horizons_of, read_predictions
from ehrjax.evaluate.tables import aligned, cell
from ehrjax.metrics.bootstrap import NUM_RESAMPLES
from ehrjax.metrics.summary import metrics_for
from ehrjax.wording import counted

FIGURES_OF_PRETRAINING = "pre-training"


class Run(NamedTuple):
    """A finished run."""

    name: str
    workdir: Path
    results: dict[str, Any]


def read_runs(workdirs: Sequence[str | Path]) -> list[Run]:
    """The runs by the names of their folders (whole paths where two are alike); ValueError where one is unfinished."""
    paths = [Path(workdir) for workdir in workdirs]
    names = [path.resolve().name for path in paths]
    runs = []
    for path, name in zip(paths, names, strict=True):
        if not (path / "results.json").exists():
            state = "is not finished: run its command again to resume it" if path.is_dir() else "does not exist"
            raise ValueError(f"{path} {state}. Name workdirs that hold a results.json.")
        results = json.loads((path / "results.json").read_text(encoding="utf-8"))
        runs.append(Run(name if names.count(name) == 1 else str(path), path, results))
    if len({run.workdir.resolve() for run in runs}) < max(len(runs), 2):
        raise ValueError(f"{', '.join(map(str, paths))}: name two or more different workdirs.")
    return runs


def compare(runs: Sequence[Run], *, num_resamples: int = NUM_RESAMPLES, seed: int = 0) -> dict[str, Any]:
    """{"runs", "pretrain", "tasks": {NAME: {"kind", "test": {RUN: metrics}, "differences": {RUN: row}}}}.

    A difference row has {"num_shared", "num_first", "num_other"} rows and METRIC: {"value", "low", "high"}, the run
    minus the first run that has the task, or a "reason". Raises ValueError where no task was trained in two runs, or
    where two runs of a task share no test row or disagree about its labels.
    """
    trained = {
        name: [run for run in runs if run.results["tasks"].get(name, {}).get("kind")]
        for name in dict.fromkeys(name for run in runs for name in run.results["tasks"])
    }
    pretrained = {run.name: run.results["pretrain"]["test"] for run in runs if run.results.get("pretrain")}
    if not any(len(having) > 1 for having in trained.values()) and len(pretrained) < 2:
        raise ValueError("no task was trained in two of these runs: there is nothing to compare.")
    tasks = {
        name: _compare_task(name, having, num_resamples=num_resamples, seed=seed)
        for name, having in trained.items()
        if having
    }
    about = [{"name": run.name, "workdir": str(run.workdir), "model": run.results.get("model")} for run in runs]
    return {"runs": about, "pretrain": pretrained if len(pretrained) > 1 else None, "tasks": tasks}


def _compare_task(name: str, runs: Sequence[Run], **options: Any) -> dict[str, Any]:
    first, *others = runs
    row = {
        "kind": first.results["tasks"][name]["kind"],
        "test": {run.name: run.results["tasks"][name]["test"] for run in runs},
        "differences": {},
    }
    for other in others:
        row["differences"][other.name] = {"first": first.name, **_difference(name, first, other, **options)}
    return row


def _difference(name: str, first: Run, other: Run, **options: Any) -> dict[str, Any]:
    found = []
    for run in (first, other):
        path = run.workdir / "predictions" / f"{name}.parquet"
        if not path.exists():
            return {"reason": f"{path} is missing"}
        try:
            found.append(read_predictions(path))
        except ValueError as error:
            return {"reason": str(error)}
    ours, theirs = found
    if (ours.kind, ours.names) != (theirs.kind, theirs.names):
        return {"reason": f"{first.name} predicts {ours.kind} {ours.names}, {other.name} {theirs.kind} {theirs.names}"}
    left, right = shared_rows(ours, theirs)
    where = f"task {name!r}: {first.name} ({len(ours.times):,} test rows) and {other.name} ({len(theirs.times):,})"
    if not len(left):
        raise ValueError(f"{where} share no patient and index time: compare runs of the same data and split.")
    known = ours.mask[left] & theirs.mask[right]
    differing = int((known & (ours.labels[left] != theirs.labels[right])).any(axis=1).sum())
    if differing:
        raise ValueError(f"{where} disagree about the labels of {differing:,} shared rows: their data or tasks differ.")
    sizes = {"num_shared": len(left), "num_first": len(ours.times), "num_other": len(theirs.times)}
    rows = (theirs.scores[right], first.name, ours.scores[left], ours.subject_ids[left], known)
    if ours.kind == "survival":
        options["metrics"] = metrics_for("survival", horizons=horizons_of(ours.names))
    found = difference_to(ours.kind, ours.labels[left], *rows, **options)
    return sizes | {metric: {key: row[key] for key in ("value", "low", "high")} for metric, row in found.items()}


def shared_rows(ours: Predictions, theirs: Predictions) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers of the same patient and index time in both; of several such rows the first with the first."""
    tables = []
    for side, found in (("ours", ours), ("theirs", theirs)):
        table = pd.DataFrame({"subject": found.subject_ids, "time": found.times})
        table["occurrence"] = table.groupby(["subject", "time"]).cumcount()
        tables.append(table.assign(**{side: np.arange(len(table))}))
    joined = tables[0].merge(tables[1], on=["subject", "time", "occurrence"])
    return joined["ours"].to_numpy(np.int64), joined["theirs"].to_numpy(np.int64)


def tables_of(compared: Mapping[str, Any]) -> dict[str, tuple[list[list[str]], list[str]]]:
    """By task: header and a row a metric (each run's figure, then each difference), and sentences about the rows."""
    found = {}
    if compared["pretrain"]:
        found[FIGURES_OF_PRETRAINING] = (_figures(compared["pretrain"], {}), [])
    for name, task in compared["tasks"].items():
        paired = {run: row for run, row in task["differences"].items() if "reason" not in row}
        found[f"{name} ({task['kind']})"] = (_figures(task["test"], paired), _sentences(task))
    return found


def _figures(test: Mapping[str, Any], differences: Mapping[str, Any]) -> list[list[str]]:
    metrics = dict.fromkeys(metric for figures in test.values() for metric in figures)
    rows = [["", *test, *(f"{run} - {row['first']}" for run, row in differences.items())]]
    for metric in metrics:
        changes = [cell(row.get(metric), signed=True) for row in differences.values()]
        rows.append([metric, *(cell(figures.get(metric)) for figures in test.values()), *changes])
    return rows


def _sentences(task: Mapping[str, Any]) -> list[str]:
    lines = []
    for run, row in task["differences"].items():
        if "reason" in row:
            lines.append(f"{run} - {row['first']}: no paired difference, {row['reason']}")
        else:
            shared = counted(row["num_shared"], "is shared", "are shared")
            sizes = f"of {row['num_first']:,} and {row['num_other']:,} test rows {shared}"
            lines.append(f"{run} - {row['first']}: {sizes}; a run's own figures are of all its rows")
    return lines or [f"trained in {next(iter(task['test']))} only"]


def comparison_text(compared: Mapping[str, Any]) -> str:
    """The comparison as aligned plain text."""
    parts = [
        "\n".join([name, "", *aligned(rows), *(f"- {line}" for line in lines)])
        for name, (rows, lines) in tables_of(compared).items()
    ]
    return "\n\n".join(parts)


def write_comparison(out: str | Path, compared: Mapping[str, Any]) -> None:
    """Write compare.json, compare.md and compare.html into the folder `out`."""
    out = Path(out)
    about = [
        [
            run["name"],
            run["workdir"],
            (run["model"] or {}).get("name", "-"),
            f"{(run['model'] or {}).get('num_params', 0):,}",
        ]
        for run in compared["runs"]
    ]
    sections = [Section("Runs", [Table(("run", "workdir", "model", "parameters"), about)])]
    for name, (rows, lines) in tables_of(compared).items():
        sections.append(Section(name, [Table(rows[0], rows[1:]), *map(Paragraph, lines)]))
    title, subtitle = (
        "Runs compared",
        "Test split, 95 % intervals from a bootstrap over patients; differences are paired.",
    )
    write_json(out / "compare.json", compared)
    for name, text in (("compare.md", markdown(title, sections)), ("compare.html", page(title, subtitle, sections))):
        with replaced(out / name) as partial:
            partial.write_text(text, encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> None:
    """Compare the runs named on the command line."""
    parser = argparse.ArgumentParser(prog="python -m experiments.compare", description=__doc__.split("\n")[0])
    parser.add_argument(
        "workdirs", nargs="+", metavar="DIR", help="workdirs of finished runs; the first is compared with"
    )
    parser.add_argument("--out", metavar="DIR", help="folder for compare.json, compare.md and compare.html")
    options = parser.parse_args(argv)
    try:
        compared = compare(read_runs(options.workdirs))
        print(comparison_text(compared))
        if options.out:
            write_comparison(options.out, compared)
            print(f"\nwritten to {options.out}: compare.json, compare.md, compare.html")
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
