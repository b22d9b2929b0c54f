"""The parts of a report that are about one task: figures, calibration, use, survival, subgroups, seeds."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ehrjax.evaluate.plot_style import wilson_interval
from ehrjax.evaluate.plots import FOREST_METRICS
from ehrjax.evaluate.report_blocks import (
    Bullets,
    Charts,
    Fold,
    Heading,
    Image,
    Paragraph,
    Section,
    Table,
    figure_text,
    words,
)
from ehrjax.evaluate.report_charts import NUM_STYLES, Bar, Series, interval_chart, line_chart
from ehrjax.evaluate.report_explanations import explanation_blocks
from ehrjax.evaluate.saved_predictions import Predictions, read_predictions
from ehrjax.evaluate.tables import cell, heading, modality_rows, notes, number, systems_of, task_rows
from ehrjax.metrics.calibration import reliability_curve
from ehrjax.wording import counted

SHOWN_METRICS = (*FOREST_METRICS, "c_index", "concordance", "c_index_ipcw", "integrated_brier")
MAX_PANELS = 3
NUM_BINS = 10


def task_section(name: str, task: Mapping[str, Any], predictions: Path, pngs: Sequence[Path]) -> Section:
    """All there is about a task; `predictions` is its Parquet file, `pngs` are plots that no chart here replaces."""
    if not task.get("kind"):
        return Section(f"Task {name}", [Paragraph(f"Not trained. {task.get('skipped', '')}".strip())])
    header, *rows = task_rows(task)
    said = notes(task)
    blocks = [Paragraph(heading(name, task)), Table(header, rows), *([Bullets(said)] if said else [])]
    parts = {
        "": interval_charts(task, SHOWN_METRICS),
        "Modalities": list(_modalities(task)),
        "Seeds": list(_seeds(task.get("seeds") or {}, task["test"])),
        "Calibration": [*_reliability(predictions), *_recalibration(task.get("recalibration") or {})],
        "Decision curve": _decision(task.get("decision_curve")),
        "Survival": _survival(task.get("survival") or {}),
        "Subgroups": list(_subgroups(task.get("subgroups") or {})),
        "Explanations of patients": list(explanation_blocks(task.get("explanations") or [])),
    }
    for title, content in parts.items():
        blocks += [Heading(title), *content] if title and content else content
    plots = [Fold("more plots", [Image(png) for png in pngs])] if pngs else []
    return Section(f"Task {name}", blocks + plots)


def interval_charts(task: Mapping[str, Any], metrics: Sequence[str]) -> list[Charts]:
    """Model, baselines and oracle with their intervals, a chart for each of the first metrics that the task has."""
    systems = systems_of(task)
    charts = []
    for metric in [name for name in metrics if number(task["test"].get(name)) is not None][:MAX_PANELS]:
        bars = [
            Bar(
                name,
                value,
                cell(row[metric]),
                number(row[metric], "low"),
                number(row[metric], "high"),
                place % NUM_STYLES,
            )
            for place, (name, row) in enumerate(systems.items())
            if (value := number(row.get(metric))) is not None
        ]
        charts += [chart._replace(text="") for chart in interval_chart(words(metric), bars)]
    return [Charts(charts)] if charts else []


def _modalities(task: Mapping[str, Any]) -> Iterator[Any]:
    """What each modality adds: a table of the forms, and their intervals side by side."""
    if not (rows := modality_rows(task)):
        return
    yield Table(rows[0], rows[1:], "The same rows read by vital signs alone, notes alone and both")
    metric, bars = rows[0][1], []
    for place, (form, row) in enumerate(task["modalities"].items()):
        value, low, high = (number(row["test"].get(metric), key) for key in ("value", "low", "high"))
        if value is not None:
            bars.append(Bar(form, value, cell(row["test"][metric]), low, high, place % NUM_STYLES))
    yield Charts([chart._replace(text="") for chart in interval_chart(f"{words(metric)} by what is read", bars)])


def _seeds(seeds: Mapping[str, Any], test: Mapping[str, Any]) -> Iterator[Any]:
    """Members' mean and spread beside their ensemble, and how much a patient's risk moves between seeds."""
    members, single = seeds.get("members") or {}, seeds.get("single") or {}
    if members:
        columns = ("mean", "std", "min", "max")
        rows = [
            [
                *(metric, cell(test.get(metric)), *([cell(single.get(metric))] if single else [])),
                *(cell(row.get(name)) for name in columns),
            ]
            for metric, row in members.items()
        ]
        header = ["", "ensemble", *(["one member"] if single else []), *(f"members' {name}" for name in columns)]
        yield Table(header, rows, f"{seeds.get('num_seeds', 'several')} members that differ by seed")
    spread = seeds.get("risk_spread") or {}
    if spread:
        rows = [[words(name), figure_text(value)] for name, value in spread.items() if not isinstance(value, Mapping)]
        yield Table(("", "value"), rows, "How much a patient's own risk moves between seeds")


def _reliability(path: Path) -> list[Any]:
    found = _readable(path)
    if found is None or found.kind not in ("binary", "multilabel"):
        return []
    labels, scores = found.labels[found.mask], found.scores[found.mask]
    curve = reliability_curve(labels, scores, num_bins=NUM_BINS)
    if not len(curve.weight):
        return []
    # Many equal scores leave slivers of bins between them, whose intervals span the chart.
    filled = curve.weight >= curve.weight.sum() / (4 * NUM_BINS)
    mean, rate, weight = (column[filled] for column in curve)
    low, high = wilson_interval(rate, weight)
    limit = min(1.0, 1.05 * float(np.max([*high, *mean]))) or 1.0
    model = Series("model", mean.tolist(), rate.tolist(), low.tolist(), high.tolist(), has_points=True)
    perfect = Series("perfect", [0.0, limit], [0.0, limit], is_reference=True)
    return line_chart(
        f"Calibration, {counted(len(labels), 'test label')} in bins of equal mass, 95 % intervals",
        [model, perfect],
        xlabel="predicted probability (bin mean)",
        ylabel="observed rate",
        xlim=(0.0, limit),
        ylim=(0.0, limit),
    )


def _readable(path: Path) -> Predictions | None:
    """Predictions of a kind that has columns of its own; None where there is no such file."""
    try:
        return read_predictions(path) if path.exists() else None
    except ValueError:
        return None


def _recalibration(table: Mapping[str, Any]) -> list[Any]:
    if isinstance(table.get("reason"), str):
        return [Paragraph(f"Recalibration: {table['reason']}")]
    of_output = {"": table} if "before" in table else table
    rows, reasons, columns = [], [], []
    for output, systems in of_output.items():
        for system, figures in systems.items():
            name = f"{output}, {system}" if output else system
            if figures.get("reason"):
                reasons.append(f"{name}: {figures['reason']}")
                continue
            columns = columns or list(figures)
            rows.append([name, *(cell(figures.get(column)) for column in columns)])
    tables = [Table(["", *map(words, columns)], rows, "Recalibration fitted on val, figures on test")] if rows else []
    return [*tables, *([Bullets(reasons)] if reasons else [])]


def _decision(curve: Any) -> list[Any]:
    """Net benefit where acting on any system, or on all patients, is of use."""
    if isinstance(curve, Mapping):
        curve = curve.get("thresholds"), curve.get("net_benefit")
    thresholds, systems = curve or (None, None)
    if not thresholds or not systems:
        return []
    finite = {name: [np.nan if value is None else value for value in values] for name, values in systems.items()}
    best = np.nanmax(list(finite.values()), axis=0, initial=0.0)
    if not best.max(initial=0.0) > 0:
        return []
    last, top = float(np.asarray(thresholds)[best > 0].max()), float(best.max())
    series = [Series(name, thresholds, y, is_reference=name.startswith("treat all")) for name, y in systems.items()]
    limits = {"xlim": (0.0, min(1.0, 1.1 * last)), "ylim": (-0.1 * top, 1.1 * top)}
    labels = {"xlabel": "threshold probability", "ylabel": "net benefit"}
    return line_chart("Net benefit of acting on the prediction", series, **labels, **limits)


def _survival(survival: Mapping[str, Any]) -> list[Any]:
    """Observed incidence of each group as steps, the predicted as dots of the same colour, at days or at horizons."""
    horizons, series = survival.get("horizons") or [], []
    for place, (group, curve) in enumerate((survival.get("curves") or {}).items()):
        days, predicted, style = curve["days"], curve["predicted"], place % NUM_STYLES
        name = words(group)
        at = horizons if len(predicted) == len(horizons) else days
        series.append(Series(f"{name}, observed", days, curve["observed"], is_step=True, style=style))
        dots = {"has_line": False, "has_points": True, "style": style}
        series.append(Series(f"{name}, predicted", at, predicted, **dots))
    title = f"{words(survival.get('cause') or 'event')} by predicted risk: observed (lines) and predicted (dots)"
    return line_chart(title.capitalize(), series, xlabel="days from the index time", ylabel="incidence")


def _subgroups(table: Mapping[str, Any]) -> Iterator[Table]:
    for attribute, groups in table.items():
        metrics = [k for row in groups.values() for k in row if k not in ("num_patients", "num_positive", "reason")]
        metrics = list(dict.fromkeys(metrics))
        has_events = any("num_positive" in row for row in groups.values())
        has_reason = any(row.get("reason") for row in groups.values())
        header = [attribute, "patients", *(["with the event"] if has_events else []), *map(words, metrics)]
        rows = [
            [
                *(group, figure_text(row.get("num_patients"))),
                *([figure_text(row.get("num_positive"))] if has_events else []),
                *(cell(row.get(metric)) for metric in metrics),
                *([str(row.get("reason") or "")] if has_reason else []),
            ]
            for group, row in groups.items()
        ]
        if rows:
            yield Table([*header, *(["note"] if has_reason else [])], rows)
