"""Which metrics a kind of task has, and their table with intervals as results.json holds it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from ehrjax.metrics import calibration, classification, multioutput, ranking, regression
from ehrjax.metrics.bootstrap import NUM_RESAMPLES, bootstrap
from ehrjax.metrics.survival import survival_metrics
from ehrjax.metrics.weighted import bind, weighted
from ehrjax.types import Array
from ehrjax.wording import counted

KINDS = ("binary", "multiclass", "multilabel", "regression", "survival")
TOP_K = (5, 10)


class Horizons(NamedTuple):
    """What the scores of a survival task are: the incidence of each cause at each horizon, causes first [n, R * H]."""

    causes: tuple[str, ...]
    days: tuple[float, ...]

    def columns(self, cause: int) -> slice:
        """Columns of the cause numbered from 1."""
        return slice((cause - 1) * len(self.days), cause * len(self.days))


def metrics_for(
    kind: str,
    *,
    threshold: float = 0.5,
    event1_threshold: float | None = None,
    num_outputs: int | None = None,
    horizons: Horizons | None = None,
) -> dict[str, Callable[..., Any]]:
    """Metric functions of a kind of task by their name in results.json.

    `threshold` decides F1 and its kin, and the event-1 score where that has none of its own; top-k metrics with
    k >= num_outputs, which say nothing, are left out. Survival needs `horizons`; the metrics of its first cause have
    plain names, those of others end in the cause's.
    """
    if kind == "survival":
        return _survival_metrics(horizons)
    if kind == "binary":
        return _binary_metrics(threshold, threshold if event1_threshold is None else event1_threshold)
    if kind == "multiclass":
        return _multiclass_metrics(num_outputs)
    if kind == "multilabel":
        return _multilabel_metrics(threshold, num_outputs)
    if kind == "regression":
        return {name: getattr(regression, name) for name in ("mae", "rmse", "r2", "spearman")}
    raise ValueError(f"kind={kind!r} is unknown: use one of {', '.join(KINDS)}.")


def best_threshold(
    kind: str, labels: Shaped[Array, "n K"], scores: Float[Array, "n K"], mask: Bool[Array, "n K"] | None = None
) -> float:
    """The decision threshold of highest (micro) F1 on validation rows; 0.5 for kinds that have none."""
    return _threshold(classification.best_f1_threshold, ("binary", "multilabel"), kind, labels, scores, mask)


def best_event1_threshold(
    kind: str, labels: Shaped[Array, "n K"], scores: Float[Array, "n K"], mask: Bool[Array, "n K"] | None = None
) -> float:
    """The same of the highest event-1 score, which only binary tasks have."""
    return _threshold(classification.best_event1_threshold, ("binary",), kind, labels, scores, mask)


def _threshold(choose: Callable[..., float], kinds: tuple[str, ...], kind: str, labels, scores, mask) -> float:
    if kind not in kinds:
        return 0.5
    labels, scores = np.ravel(labels), np.ravel(scores)
    known = np.ones(len(labels), bool) if mask is None else np.ravel(np.asarray(mask, bool))
    return choose(labels[known], scores[known])


def evaluate(
    kind: str,
    labels: Shaped[Array, "n K"],
    scores: Float[Array, "n K"],
    mask: Bool[Array, "n K"] | None,
    subject_ids: Int[Array, "n"],
    *,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
    threshold: float = 0.5,
    event1_threshold: float | None = None,
    horizons: Horizons | None = None,
) -> dict[str, dict[str, Any]]:
    """Every metric of the kind as {"value", "low", "high"}, 95 % interval from a patient-level bootstrap.

    Labels [n] or [n, K]; multi-class labels are class numbers, [n] or [n, 1], those of survival (days, event). Rows
    (multi-label: entries) masked False do not count. An undefined metric has value null and a "reason";
    "resamples_undefined" counts dropped resamples.
    """
    labels, scores, subject_ids = known_rows(kind, labels, scores, mask, subject_ids)
    num_outputs = scores.shape[1] if scores.ndim == 2 else None
    options = {"threshold": threshold, "event1_threshold": event1_threshold, "horizons": horizons}
    metrics = metrics_for(kind, num_outputs=num_outputs, **options)
    intervals = bootstrap(metrics, labels, scores, subject_ids, num_resamples=num_resamples, seed=seed)
    table = {}
    for name, interval in intervals.items():
        row = {key: _or_none(getattr(interval, key)) for key in ("value", "low", "high")}
        if row["value"] is None:
            row["reason"] = _reason_undefined(kind, labels, scores)
        elif interval.num_undefined:
            row["resamples_undefined"] = interval.num_undefined
        table[name] = row
    return table


def known_rows(
    kind: str, labels: Array, scores: Array, mask: Array | None, subject_ids: Array
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, scores and subject ids in the shapes the metrics take, without masked rows (multi-label: NaN entries)."""
    labels, scores, subject_ids = np.asarray(labels), np.asarray(scores), np.asarray(subject_ids)
    known = np.ones(labels.shape, bool) if mask is None else np.asarray(mask, bool)
    if known.shape != labels.shape:
        raise ValueError(f"mask has shape {known.shape} but labels {labels.shape}: give one flag a label.")
    if kind == "multilabel":
        labels = np.where(known, labels, np.nan).astype(np.float64)
        rows = np.flatnonzero(known.any(axis=1))
        return labels[rows], scores[rows], subject_ids[rows]
    if kind == "survival":
        rows = np.flatnonzero(known.all(axis=1))
        return labels[rows].astype(np.float64), scores[rows], subject_ids[rows]
    labels, known = (x[:, 0] if x.ndim == 2 else x for x in (labels, known))
    if kind != "multiclass" and scores.ndim == 2:
        scores = scores[:, 0]
    rows = np.flatnonzero(known)
    return labels[rows], scores[rows], subject_ids[rows]


def _binary_metrics(threshold: float, event1_threshold: float) -> dict[str, Callable[..., Any]]:
    at_threshold = ("accuracy", "f1", "precision", "recall", "specificity")
    return {
        "auroc": classification.auroc,
        "auprc": classification.auprc,
        "brier": classification.brier,
        "log_loss": classification.log_loss,
        **{name: bind(getattr(classification, name), threshold=threshold) for name in at_threshold},
        "event1": bind(classification.event1, threshold=event1_threshold),
        "calibration_slope": calibration.calibration_slope,
        "calibration_intercept": calibration.calibration_intercept,
        "ece": calibration.ece,
    }


def _multiclass_metrics(num_outputs: int | None) -> dict[str, Callable[..., Any]]:
    metrics = {
        "accuracy": multioutput.multiclass_accuracy,
        "top3_accuracy": bind(multioutput.top_k_accuracy, k=3),
        "macro_auroc": multioutput.multiclass_macro_auroc,
        "micro_auroc": multioutput.multiclass_micro_auroc,
        "macro_f1": multioutput.multiclass_macro_f1,
        "log_loss": multioutput.multiclass_log_loss,
        "brier": multioutput.multiclass_brier,
        "ece": multioutput.multiclass_ece,
    }
    if num_outputs is not None and num_outputs <= 3:
        del metrics["top3_accuracy"]
    return metrics


def _multilabel_metrics(threshold: float, num_outputs: int | None) -> dict[str, Callable[..., Any]]:
    metrics = {
        "macro_auroc": multioutput.macro_auroc,
        "micro_auroc": multioutput.micro_auroc,
        "macro_auprc": multioutput.macro_auprc,
        "macro_f1": bind(multioutput.macro_f1, threshold=threshold),
        "micro_f1": bind(multioutput.micro_f1, threshold=threshold),
        "brier": multioutput.multilabel_brier,
    }
    for k in TOP_K:
        if num_outputs is None or k < num_outputs:
            metrics[f"recall_at_{k}"] = bind(ranking.recall_at_k, k=k)
            metrics[f"precision_at_{k}"] = bind(ranking.precision_at_k, k=k)
    return metrics


def _survival_metrics(horizons: Horizons | None) -> dict[str, Callable[..., Any]]:
    if horizons is None:
        raise ValueError("survival metrics need the horizons of the scores: pass horizons=Horizons(causes, days).")
    table = {}
    for cause, name in enumerate(horizons.causes, 1):
        suffix = "" if cause == 1 else f"_{name}"
        for metric_name, metric in survival_metrics(horizons.days, cause=cause).items():
            table[metric_name + suffix] = _on_columns(metric, horizons.columns(cause))
    return table


def _on_columns(metric: Callable[..., Any], columns: slice) -> Callable[..., Any]:
    """The metric on some columns of the scores."""

    def prepare(labels, scores):
        return metric.prepare(labels, np.asarray(scores)[:, columns])

    prepare.__name__, prepare.__doc__ = metric.__name__, metric.__doc__
    return weighted(prepare)


def _or_none(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _reason_undefined(kind: str, labels: np.ndarray, scores: np.ndarray) -> str:
    """Why a metric has no value on these rows, in words."""
    num_rows = len(labels)
    if num_rows == 0:
        return "no row has a known label"
    rows = f"{'this' if num_rows == 1 else 'these'} {counted(num_rows, 'row')}"
    if kind == "binary" and len(np.unique(labels)) == 1:
        return f"only {labels[0]:g} among {counted(num_rows, 'label')}: both classes are needed"
    if kind == "survival":
        events = counted(int((labels[:, 1] > 0).sum()), "event")
        return f"not defined on {rows} with {events}: no pair or no follow-up to compare"
    if kind == "regression" and len(np.unique(labels)) == 1:
        return f"only {labels[0]:g} among {counted(num_rows, 'label')}"
    if np.all(scores == scores[:1]):
        return "the scores are the same for every row"
    return f"not defined on {rows}: nothing predicted, one class only, or no converging fit"
