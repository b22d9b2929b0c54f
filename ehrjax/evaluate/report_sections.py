"""The parts of a report that are about the run: data, cohorts, training, embeddings, audit, environment."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ehrjax.evaluate.plots import HIDDEN_CURVES, read_metrics
from ehrjax.evaluate.report_blocks import (
    Bullets,
    Charts,
    Fold,
    Heading,
    Paragraph,
    Section,
    Table,
    figure_text,
    fold,
    listing,
    words,
)
from ehrjax.evaluate.report_charts import Bar, Series, bar_chart, line_chart
from ehrjax.evaluate.report_map import map_block
from ehrjax.evaluate.report_task import interval_charts
from ehrjax.evaluate.tables import cell, digits, number, pretrain_rows
from ehrjax.wording import counted

DATA_COUNTS = (
    *("num_patients", "num_events", "num_visits", "vocab_size", "rows_read", "rows_kept", "rows_quarantined"),
    *("first_time", "last_time"),
)
# The order of a cohort's flow; every other count in between says how many candidates a reason took.
FLOW_STAGES = {
    "subjects": "patients",
    "subjects_with_visits": "patients with visits",
    "index_times": "possible index times",
    "eligible": "eligible",
    "subjects_eligible": "patients eligible",
    "subjects_drawn": "patients drawn",
    "kept": "labelled",
    "subjects_kept": "patients labelled",
    "positives": "with the outcome",
}
DRAWN_STAGES = ("index_times", "eligible", "kept", "positives")
MAX_POINTS = 300  # of a training curve; a screen has no more columns
MAX_FILES = 100  # ICU stays come as thousands of files
HEADLINES = ("auroc", "macro_auroc", "c_index", "concordance", "rmse", "accuracy")
AUDIT_WORDS = {True: "pass", False: "FAIL", None: "not checked"}


def run_section(results: Mapping[str, Any], config: Mapping[str, Any], environment: Mapping[str, Any]) -> Section:
    """What was run, and each task's first figure."""
    model = results.get("model") or {}
    rows = [["command", environment.get("command")], ["started", environment.get("started")]]
    rows.append(
        ["model", f"{model['name']}, {counted(model['num_params'], 'parameter')}" if model else "no model was trained"]
    )
    rows += [["data", (config.get("data") or {}).get("source") or config.get("data.source")]]
    rows += [["device", ", ".join(environment.get("devices", []))]]
    blocks: list[Any] = [Table(("", "run"), [[name, str(text)] for name, text in rows if text])]
    headlines = [row for name, task in results["tasks"].items() for row in _headline(name, task)]
    if headlines:
        blocks.append(Table(("task", "figure", "model", "best baseline", "difference", "oracle"), headlines))
        blocks.append(Paragraph("Test split, 95 % intervals from a bootstrap over patients."))
    return Section("Run", blocks)


def _headline(name: str, task: Mapping[str, Any]) -> Iterator[list[str]]:
    if not task.get("kind"):
        yield [name, "not trained", "-", "-", "-", "-"]
        return
    metric = next((metric for metric in HEADLINES if number(task["test"].get(metric)) is not None), None)
    if metric is None:
        return
    difference = task.get("difference") or {}
    best = difference.get("baseline")
    baseline = (task.get("baselines") or {}).get(best) or {}
    against = f"{best} {cell(baseline.get(metric))}" if best else "-"
    oracle = cell((task.get("oracle") or {}).get(metric))
    yield [name, words(metric), cell(task["test"][metric]), against, cell(difference.get(metric), signed=True), oracle]


def data_section(data: Mapping[str, Any]) -> Section:
    """What was read and kept, and what was not and why."""
    counts = [[words(name), figure_text(data[name])] for name in DATA_COUNTS if data.get(name) is not None]
    blocks: list[Any] = [Table(("", "count"), counts)] if counts else []
    reasons = data.get("rows_by_reason") or {}
    if reasons:
        bars = [Bar(words(reason), count, f"{count:,}") for reason, count in reasons.items()]
        blocks += [chart._replace(text="") for chart in bar_chart("Rows quarantined, by reason", bars)]
        blocks.append(Table(("reason", "rows quarantined"), [[r, f"{n:,}"] for r, n in reasons.items()]))
    elif data.get("rows_quarantined") == 0:
        blocks.append(Paragraph("No row was quarantined."))
    files = data.get("files")
    if files and all(isinstance(file, Mapping) for file in files):
        header = list(dict.fromkeys(key for file in files for key in file if not isinstance(file[key], Mapping)))
        rows = [[figure_text(file.get(key)) for key in header] for file in files[:MAX_FILES]]
        cut = f", the first {MAX_FILES} shown" if len(files) > MAX_FILES else ""
        blocks.append(Fold(counted(len(files), "file") + cut, [Table([words(key) for key in header], rows)]))
    shown = {*DATA_COUNTS, "rows_by_reason", "files"}
    return Section("Data", blocks + fold("more about the data", {k: v for k, v in data.items() if k not in shown}))


def cohort_section(tasks: Mapping[str, Any]) -> Section:
    """How each task's cohort came about, from patients to labelled rows."""
    blocks: list[Any] = []
    for name, task in tasks.items():
        flow = {key: count for key, count in (task.get("flow") or {}).items() if count or key in FLOW_STAGES}
        if not flow:
            continue
        drawn = [(FLOW_STAGES[key], flow[key]) for key in DRAWN_STAGES if key in flow]
        rows = [_flow_row(key, count) for key, count in flow.items()]
        blocks.append(Heading(name))
        blocks += bar_chart(f"Cohort of {name}", [Bar(stage, count, f"{count:,}") for stage, count in drawn])
        blocks.append(Fold("each step", [Table(("step", "count", "left out"), rows)]))
    return Section("Cohorts", blocks)


def _flow_row(key: str, count: int) -> list[str]:
    if key in FLOW_STAGES or key.startswith("events_"):
        return [FLOW_STAGES.get(key, words(key)), f"{count:,}", ""]
    return [words(key), "", f"{count:,}"]


def training_section(train: Mapping[str, Any] | None, metrics_path: Path) -> Section:
    """Curves of metrics.jsonl by part of the run, and what training took."""
    rows = read_metrics(metrics_path)
    blocks: list[Any] = []
    for part in dict.fromkeys(row.get("part", "") for row in rows):
        of_part = [row for row in rows if row.get("part", "") == part]
        names = {key.partition("/")[2] for row in of_part for key in row} - {"", *HIDDEN_CURVES}
        order = sorted(names, key=lambda name: (name != "loss", name))
        charts = [chart for name in order for chart in _training_chart(name, of_part)]
        if charts:
            blocks += [Heading(part), Charts(charts)] if part else [Charts(charts)]
    return Section("Training", blocks + listing(train or {}))


def _training_chart(name: str, rows: Sequence[Mapping[str, Any]]) -> list[Any]:
    series = []
    for style, split in enumerate(("train", "val")):
        points = [(row["step"], row[f"{split}/{name}"]) for row in rows if row.get(f"{split}/{name}") is not None]
        points = [*points[:: max(1, len(points) // MAX_POINTS)], *points[-1:]]
        if points:
            steps, values = zip(*points, strict=True)
            series.append(Series(split, steps, values, has_points=len(points) <= 40, style=style))
    return line_chart(words(name), series, xlabel="step", ylabel=words(name))


def pretraining_section(pretrained: Mapping[str, Any] | None) -> Section:
    """Masked codes and next visits, model beside baselines."""
    if not pretrained:
        return Section("Pre-training", [])
    header, *rows = pretrain_rows(pretrained)
    charts = interval_charts(pretrained, ("mlm_accuracy", "next_visit_f1", "next_visit_recall_at_10"))
    return Section("Pre-training", [Table(header, rows), *charts] if rows else [])


def embedding_section(embeddings: Mapping[str, Any] | None, map_path: Path) -> Section:
    """The map of patients, figures of the vectors, and who is in each cluster."""
    embeddings = embeddings or {}
    blocks: list[Any] = []
    if map_path.exists():
        blocks += map_block(json.loads(map_path.read_text(encoding="utf-8")))
    figures = [[words(name), digits(value)] for name, value in embeddings.items() if isinstance(value, float)]
    if figures:
        blocks.append(Table(("figure", "value"), figures))
    if embeddings.get("reason"):
        blocks.append(Paragraph(f"Not judged: {embeddings['reason']}"))
    clusters = embeddings.get("clusters")
    if isinstance(clusters, Mapping) and clusters.get("clusters"):
        blocks += _cluster_blocks(clusters["clusters"])
    rest = {name: value for name, value in embeddings.items() if isinstance(value, Mapping) and name != "clusters"}
    return Section("Patient embeddings", blocks + fold("more figures", rest))


def _cluster_blocks(clusters: Sequence[Mapping[str, Any]]) -> list[Any]:
    outcomes = sorted({name for row in clusters for name in row.get("outcomes") or {}})
    header = ["cluster", "patients", "share", "mean age", *(f"{words(name)} / 100 years" for name in outcomes), "sex"]
    blocks: list[Any] = [Heading("Clusters"), Table(header, [_cluster_row(row, outcomes) for row in clusters])]
    charts = [chart for name in outcomes for chart in _cluster_curves(name, clusters)]
    blocks += [Charts(charts)] if charts else []
    for row in clusters:
        codes = [
            [
                *(code["code"], f"{code['num_patients']:,}", f"{code['share']:.0%}", f"{code['share_elsewhere']:.0%}"),
                *(digits(code["odds_ratio"]), f"{code['p_adjusted']:.1e}"),
            ]
            for code in row.get("enriched_codes") or []
        ]
        if codes:
            columns = ("code", "patients", "share", "elsewhere", "odds ratio", "adjusted p")
            blocks.append(Fold(f"Codes of cluster {row['cluster']}", [Table(columns, codes)]))
    reasons = [f"cluster {row['cluster']}: {row['reason']}" for row in clusters if row.get("reason")]
    return [*blocks, *([Bullets(reasons)] if reasons else [])]


def _cluster_row(row: Mapping[str, Any], outcomes: Sequence[str]) -> list[str]:
    rates = [((row.get("outcomes") or {}).get(name) or {}).get("per_100_years") for name in outcomes]
    sexes = ", ".join(f"{sex} {share:.0%}" for sex, share in (row.get("sex") or {}).items())
    age = (row.get("age") or {}).get("mean")
    texts = ["-" if value is None else f"{value:.1f}" for value in (age, *rates)]
    return [str(row["cluster"]), f"{row['num_patients']:,}", f"{row['share']:.1%}", *texts, sexes or "-"]


def _cluster_curves(outcome: str, clusters: Sequence[Mapping[str, Any]]) -> list[Any]:
    series = []
    for row in clusters:
        curve = ((row.get("outcomes") or {}).get(outcome) or {}).get("curve")
        if curve:
            name = f"cluster {row['cluster']}"
            series.append(Series(name, [0.0, *curve["times"]], [1.0, *curve["survival"]], is_step=True))
    return line_chart(f"Free of {words(outcome)}, by cluster", series, xlabel="years", ylabel="share without the event")


def audit_section(audit: Mapping[str, Any] | None) -> Section:
    """Each check of the leakage audit."""
    if not audit or not audit.get("checks"):
        return Section("Leakage audit", [])
    rows = [
        [words(check["name"]), AUDIT_WORDS[check.get("passed")], str(check.get("detail") or "")]
        for check in audit["checks"]
    ]
    num_failed = sum(row[1] == "FAIL" for row in rows)
    verdict = (
        "The audit passed."
        if audit.get("passed")
        else f"The audit did not pass: {num_failed} of {counted(len(rows), 'check')} failed."
    )
    return Section("Leakage audit", [Paragraph(verdict), Table(("check", "result", "detail"), rows)])


def environment_section(environment: Mapping[str, Any], config: Mapping[str, Any]) -> Section:
    """Versions, devices and the recipe."""
    return Section("Environment", [*listing(environment), *fold("config", config)])
