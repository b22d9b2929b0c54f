"""The run's figures as PNG files: training, discrimination, calibration, comparison with baselines, data overview.

Each function writes one file, whole or not at all. Figures are built without pyplot, so nothing is shown, kept open or
changed for a caller's own plots.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from ehrjax.evaluate.plot_style import (
    COLOURS,
    GREY,
    add_legend,
    colour_of,
    dash_of,
    panel_grid,
    save_figure,
    single_panel,
    wilson_interval,
)
from ehrjax.evaluate.tables import number, systems_of
from ehrjax.metrics.calibration import reliability_curve
from ehrjax.metrics.classification import auprc, auroc
from ehrjax.metrics.weighted import rank
from ehrjax.types import Array

SECONDS_A_YEAR = 365.25 * 86_400
HIDDEN_CURVES = ("seconds", "examples_per_second", "learning_rate", "grad_norm")
# Panels of the comparison with baselines, where a task has these metrics.
FOREST_METRICS = (
    *("auroc", "auprc", "brier", "macro_auroc", "micro_auroc", "accuracy", "recall_at_10", "rmse", "r2"),
    *("mlm_accuracy", "next_visit_f1", "next_visit_recall_at_10"),
)


def training_curves(path: str | Path, metrics_path: str | Path) -> None:
    """One panel a figure of metrics.jsonl (loss, accuracy, ...) for each part of a run: train and val over steps."""
    rows = read_metrics(Path(metrics_path))
    panels: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        for key in row:
            name = key.partition("/")[2]
            if name and name not in HIDDEN_CURVES:
                panels.setdefault((row.get("part", ""), name), []).append(row)
    order = sorted(panels, key=lambda panel: (panel[0], panel[1] != "loss", panel[1]))
    columns = max((sum(part == other for other, _ in order) for part, _ in order), default=1)
    axes_list, figure = panel_grid(max(len(order), 1), title="Training", columns=min(columns, 3))
    for axes, (part, name) in zip(axes_list, order, strict=False):
        _draw_curve(axes, panels[part, name], name)
        axes.set(xlabel="step", ylabel=name.replace("_", " "), title=part)
    save_figure(figure, path)


def _draw_curve(axes: Axes, rows: Sequence[Mapping[str, Any]], name: str) -> None:
    for index, split in enumerate(("train", "val")):
        points = [(row["step"], row[f"{split}/{name}"]) for row in rows if row.get(f"{split}/{name}") is not None]
        if points:
            marker = "o" if len(points) <= 40 else None  # with many, markers would hide the line
            axes.plot(*zip(*points, strict=True), color=COLOURS[index], label=split, marker=marker, markersize=3)
        if points and split == "val" and name == "loss":
            best = min(points, key=lambda point: point[1])[0]
            axes.axvline(best, color=GREY, linestyle=":", label=f"lowest at step {best:,}")
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    add_legend(axes, loc="upper right" if name == "loss" else "lower right")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The whole lines of metrics.jsonl; a line cut by a kill is left out, a missing file is empty."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return [row for row in rows if isinstance(row, dict) and "step" in row]


def roc(path: str | Path, labels: Shaped[Array, "n"], scores: Mapping[str, Float[Array, "n"]]) -> None:
    """ROC curves of several models on the same rows, AUROC in the legend."""
    figure, axes = single_panel("ROC, test split")
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, label="chance")
    for index, name, values in _varying(scores):
        positives, negatives = _cumulated(labels, values)
        label = f"{name}, AUROC {auroc(labels, values):.3f}"
        axes.plot(_share(negatives), _share(positives), color=colour_of(index), linestyle=dash_of(index), label=label)
    axes.set(xlabel="false positive rate", ylabel="true positive rate", xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
    axes.set_aspect("equal")
    add_legend(axes, loc="lower right")
    save_figure(figure, path)


def precision_recall(path: str | Path, labels: Shaped[Array, "n"], scores: Mapping[str, Float[Array, "n"]]) -> None:
    """Precision-recall curves of several models on the same rows, average precision in the legend."""
    figure, axes = single_panel("Precision and recall, test split")
    labels = np.asarray(labels, np.float64)
    if len(labels):
        axes.axhline(labels.mean(), color=GREY, linewidth=1, label=f"prevalence {labels.mean():.3f}")
    for index, name, values in _varying(scores):
        positives, negatives = _cumulated(labels, values)
        precision = positives[1:] / (positives + negatives)[1:]
        label = f"{name}, AUPRC {auprc(labels, values):.3f}"
        # Steps, since a recall between two thresholds cannot be had.
        axes.step(
            _share(positives)[1:], precision, where="pre", color=colour_of(index), linestyle=dash_of(index), label=label
        )
    axes.set(xlabel="recall", ylabel="precision", xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
    add_legend(axes, loc="upper right")
    save_figure(figure, path)


def reliability(
    path: str | Path, labels: Shaped[Array, "n"], scores: Mapping[str, Float[Array, "n"]], *, num_bins: int = 10
) -> None:
    """Observed rate against mean score in bins of equal mass; 95 % Wilson intervals (rows taken as independent)."""
    figure, axes = single_panel("Calibration, test split")
    top = 0.0
    for index, (name, values) in enumerate(scores.items()):
        curve = reliability_curve(labels, values, num_bins=num_bins)
        low, high = wilson_interval(curve.observed_rate, curve.weight)
        errors = np.maximum([curve.observed_rate - low, high - curve.observed_rate], 0.0)
        axes.errorbar(
            curve.mean_score,
            curve.observed_rate,
            yerr=errors,
            color=colour_of(index),
            linestyle=dash_of(index),
            marker="os^Dv"[index % 5],
            markersize=4,
            capsize=2,
            linewidth=1.2,
            label=name,
        )
        top = max(top, float(np.max(high, initial=0.0)), float(np.max(curve.mean_score, initial=0.0)))
    limit = min(1.0, 1.05 * top) or 1.0
    axes.plot([0, limit], [0, limit], color=GREY, linewidth=1, label="perfect", zorder=0)
    axes.set(xlabel="predicted probability (bin mean)", ylabel="observed rate", xlim=(0, limit), ylim=(0, limit))
    axes.set_aspect("equal")
    add_legend(axes, loc="upper left")
    save_figure(figure, path)


def score_histogram(
    path: str | Path, labels: Shaped[Array, "n"], scores: Float[Array, "n"], *, threshold: float | None = None
) -> None:
    """Predicted probabilities of positives and negatives, each as a share of its class."""
    figure, axes = single_panel("Scores by outcome, test split", pad=26)
    labels, scores = np.asarray(labels) > 0.5, np.asarray(scores, np.float64)
    edges = np.linspace(0, max(float(scores.max(initial=0.0)), 1e-6), 41)
    for index, (name, rows) in enumerate((("negative", ~labels), ("positive", labels))):
        if rows.any():
            share = np.full(int(rows.sum()), 1 / rows.sum())
            label = f"{name} (n = {rows.sum():,})"
            axes.hist(scores[rows], edges, weights=share, alpha=0.55, color=COLOURS[index], label=label)
    if threshold is not None:
        axes.axvline(threshold, color="black", linestyle="--", linewidth=1, label=f"threshold {threshold:.3f}")
    axes.set(xlabel="predicted probability", ylabel="share of class")
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    add_legend(axes)
    save_figure(figure, path)


def predicted_against_actual(path: str | Path, labels: Float[Array, "n"], scores: Float[Array, "n"]) -> None:
    """Predicted against actual values of a regression task, as counts in hexagons."""
    figure, axes = single_panel("Predicted and actual, test split")
    if len(labels):
        image = axes.hexbin(labels, scores, gridsize=35, mincnt=1, bins="log", cmap="cividis")
        figure.colorbar(image, ax=axes, label="examples")
        ends = [min(np.min(labels), np.min(scores)), max(np.max(labels), np.max(scores))]
        axes.plot(ends, ends, color=COLOURS[1], linestyle="--", label="equal")
        add_legend(axes, loc="upper left")
    axes.set(xlabel="actual", ylabel="predicted")
    save_figure(figure, path)


def confusion(path: str | Path, labels: Int[Array, "n"], scores: Float[Array, "n K"], names: Sequence[str]) -> None:
    """Confusion matrix of the most probable class: share of each true class (row) by prediction, and counts."""
    counts = np.zeros((len(names), len(names)))
    np.add.at(counts, (np.asarray(labels, np.int64).ravel(), np.argmax(scores, axis=1)), 1)
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    size = max(4.5, 0.6 * len(names) + 2.5)
    figure, axes = single_panel("Confusion, test split", size=(size + 1, size))
    image = axes.imshow(share, cmap="cividis", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, label="share of the true class", shrink=0.8)
    for (row, column), count in np.ndenumerate(counts if len(names) <= 12 else np.zeros((0, 0))):
        colour = "black" if share[row, column] > 0.5 else "white"
        axes.text(column, row, f"{count:,.0f}", ha="center", va="center", color=colour, fontsize=8)
    ticks = range(len(names))
    axes.set_xticks(ticks, names, rotation=45, ha="right")
    axes.set_yticks(ticks, names)
    axes.set(xlabel="predicted", ylabel="true")
    axes.grid(False)
    save_figure(figure, path)


def forest(path: str | Path, task: Mapping[str, Any], *, title: str = "") -> None:
    """Model, baselines and oracle of a task (or of pre-training) in results.json: value and 95 % interval."""
    systems = systems_of(task)
    names = [name for name in FOREST_METRICS if number(task["test"].get(name)) is not None][:3]
    axes_list, figure = panel_grid(max(len(names), 1), title=title, height=0.9 + 0.42 * len(systems))
    for axes, metric in zip(axes_list, names, strict=False):
        for row, (name, metrics) in enumerate(systems.items()):
            value = number(metrics.get(metric))
            if value is None:
                continue
            low, high = (number(metrics[metric], end) for end in ("low", "high"))
            if low is not None and high is not None:
                axes.plot([low, high], [row, row], color=colour_of(row), linewidth=2, solid_capstyle="butt")
            marker = "D" if name.startswith("oracle") else "o"
            axes.plot(value, row, marker, color=colour_of(row), markersize=7)
            axes.annotate(
                f"{value:.3f}", (value, row), xytext=(0, 7), textcoords="offset points", ha="center", fontsize=8
            )
        axes.set_yticks(range(len(systems)), list(systems))
        axes.set_ylim(len(systems) - 0.5, -0.7)
        axes.margins(x=0.15)
        axes.set_xlabel(metric.replace("_", " "))
        axes.xaxis.set_major_locator(MaxNLocator(5))
    save_figure(figure, path)


def data_overview(path: str | Path, *stores: Any) -> None:
    """Four histograms of event stores, pooled: visits a patient, codes a visit, days between visits, age at visits."""
    visits_per_patient, codes_per_visit, gap_days, ages = _distributions(*stores)
    axes_list, figure = panel_grid(4, title="Data overview", columns=2)
    _log_histogram(axes_list[0], visits_per_patient, "visits per patient", "patients")
    _log_histogram(axes_list[1], codes_per_visit, "codes per visit", "visits")
    _log_histogram(axes_list[2], gap_days, "days between visits", "gaps")
    axes_list[3].hist(ages, bins=np.arange(0, 106, 5), color=COLOURS[0], edgecolor="white", linewidth=0.5)
    _mark_median(axes_list[3], ages)
    axes_list[3].set(xlabel="age at visit (years)", ylabel="visits")
    save_figure(figure, path)


def _distributions(*stores: Any, max_visits: int = 2_000_000) -> list[np.ndarray]:
    """Visits a patient, codes a visit, days between visits, ages; from as many shards as hold `max_visits`."""
    parts: list[tuple[np.ndarray, ...]] = []
    num_visits = 0
    for shard in (shard for store in stores for shard in store.shards):
        if num_visits >= max_visits:
            break
        visits_each, start = np.diff(shard.visit_offsets), np.asarray(shard.visit_start)
        subject = np.repeat(np.arange(len(visits_each)), visits_each)
        birth = np.asarray(shard.birth)[subject]
        ages = (start - birth)[birth != np.iinfo(np.int64).min] / SECONDS_A_YEAR
        gaps = np.diff(start)[np.diff(subject) == 0] / 86_400
        parts.append((visits_each, np.diff(shard.event_offsets), gaps, ages))
        num_visits += len(start)
    return [np.concatenate(arrays) for arrays in zip(*parts, strict=True)] or [np.zeros(0)] * 4


def task_plots(
    folder: str | Path,
    name: str,
    kind: str,
    labels: Shaped[Array, "n L"],
    scores: Float[Array, "n K"],
    mask: Bool[Array, "n L"],
    baseline_scores: Mapping[str, Float[Array, "n K"]],
    *,
    names: Sequence[str] = (),
    threshold: float | None = None,
) -> list[Path]:
    """The figures that suit a task's kind, as `folder/NAME_FIGURE.png`; the paths written.

    Only labels whose mask is True are drawn; those of a multi-label task are pooled. `names` are those of the classes.
    """
    folder, labels, known = Path(folder), np.asarray(labels), np.asarray(mask, bool)
    if kind == "multiclass":
        path, rows = folder / f"{name}_confusion.png", known[:, 0]
        confusion(path, labels[rows, 0], scores[rows], names or [str(k) for k in range(scores.shape[1])])
        return [path]
    if kind == "regression":
        path = folder / f"{name}_predicted_actual.png"
        predicted_against_actual(path, labels[known], scores[known])
        return [path]
    paths = [folder / f"{name}_{figure}.png" for figure in ("roc", "precision_recall", "reliability", "scores")]
    systems = {"model": scores[known]} | {system: values[known] for system, values in baseline_scores.items()}
    roc(paths[0], labels[known], systems)
    precision_recall(paths[1], labels[known], systems)
    reliability(paths[2], labels[known], systems)
    score_histogram(paths[3], labels[known], systems["model"], threshold=threshold)
    return paths


def _varying(scores: Mapping[str, Array]) -> list[tuple[int, str, Array]]:
    """Scores that rank at all, with the place that decides their colour: a constant is on the line of chance."""
    return [
        (place, name, values)
        for place, (name, values) in enumerate(scores.items())
        if len(values) and np.ptp(values) > 0
    ]


def _log_histogram(axes: Axes, values: np.ndarray, xlabel: str, ylabel: str) -> None:
    """Histogram over a log axis; what is below a half (none, the same day) gets a bar of its own at the left."""
    small = values < 0.5
    edges = np.unique(np.round(np.geomspace(1, max(float(values.max(initial=1.0)), 2.0) + 1, 25))) - 0.5
    axes.hist(values[~small], edges, color=COLOURS[0], edgecolor="white", linewidth=0.5)
    if small.any():
        share = f"below 0.5: {small.mean():.1%}"
        axes.hist(np.full(small.sum(), 0.4), [0.33, 0.5], color=COLOURS[4], edgecolor="white", label=share)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    _mark_median(axes, values)
    axes.set(xlabel=xlabel, ylabel=ylabel)


def _mark_median(axes: Axes, values: np.ndarray) -> None:
    if len(values):
        median = float(np.median(values))
        axes.axvline(max(median, 0.4), color=COLOURS[1], linestyle="--", label=f"median {median:,.3g}")
        add_legend(axes)


def _cumulated(labels: Array, scores: Array) -> tuple[np.ndarray, np.ndarray]:
    """Positives and negatives at or above each distinct score, from the highest on, starting at (0, 0)."""
    labels, ranking = np.asarray(labels, np.float64), rank(np.asarray(scores, np.float64))
    return tuple(np.r_[0.0, np.cumsum(ranking.group(values))] for values in (labels, 1 - labels))


def _share(cumulated: np.ndarray) -> np.ndarray:
    return cumulated / max(cumulated[-1], 1e-300)
