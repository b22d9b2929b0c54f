"""Metrics of predictions with several outputs: multi-class and multi-label.

Every metric is `metric(labels, scores, weights=None) -> float` with weights [n] or [R, n] over rows (see `weighted`).
Multi-class labels are class numbers [n], scores probabilities [n, K]. Multi-label labels are [n, K] with NaN where a
label is unknown, scores [n, K]. Undefined values are NaN; a macro average is over the outputs that are defined.
"""

from collections.abc import Callable, Sequence

import numpy as np

from ehrjax.metrics.areas import places, precision_area, roc_area
from ehrjax.metrics.calibration import ece
from ehrjax.metrics.classification import f1_of_decisions
from ehrjax.metrics.weighted import Prepared, clip_probabilities, divide, mean_of_rows, weighted
from ehrjax.types import Array

# Multi-class.


@weighted
def multiclass_accuracy(labels: Array, scores: Array) -> Prepared:
    """Share of rows whose most probable class is the true one."""
    classes, scores = check_multiclass(labels, scores)
    return mean_of_rows((np.argmax(scores, axis=1) == classes).astype(np.float64))


@weighted
def top_k_accuracy(labels: Array, scores: Array, k: int = 3) -> Prepared:
    """Share of rows whose true class is among the k most probable; ties rank the lower class number first."""
    classes, scores = check_multiclass(labels, scores)
    top = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return mean_of_rows((top == classes[:, None]).any(axis=1).astype(np.float64))


@weighted
def multiclass_log_loss(labels: Array, scores: Array) -> Prepared:
    """Mean negative log probability of the true class in nats."""
    classes, probabilities = check_multiclass(labels, scores)
    probabilities = clip_probabilities(scores, probabilities)
    return mean_of_rows(-np.log(np.take_along_axis(probabilities, classes[:, None], axis=1)[:, 0]))


@weighted
def multiclass_brier(labels: Array, scores: Array) -> Prepared:
    """Squared distance between probabilities and the one-hot outcome, summed over classes (range 0 to 2)."""
    classes, scores = check_multiclass(labels, scores)
    return mean_of_rows(((scores - one_hot(classes, scores.shape[1])) ** 2).sum(axis=1))


@weighted
def multiclass_ece(labels: Array, scores: Array, num_bins: int = 10) -> Prepared:
    """Expected calibration error of the most probable class's probability as the chance that it is right."""
    classes, scores = check_multiclass(labels, scores)
    return ece.prepare(np.argmax(scores, axis=1) == classes, scores.max(axis=1), num_bins)


multiclass_ece.shifts_under_resampling = True


@weighted
def multiclass_macro_auroc(labels: Array, scores: Array) -> Prepared:
    """One-versus-rest AUROC, averaged over the classes for which it is defined."""
    classes, scores = check_multiclass(labels, scores)
    return _average_columns(roc_area, one_hot(classes, scores.shape[1]), scores)


@weighted
def multiclass_micro_auroc(labels: Array, scores: Array) -> Prepared:
    """AUROC over all (row, class) pairs pooled."""
    classes, scores = check_multiclass(labels, scores)
    return _pool_columns(roc_area, one_hot(classes, scores.shape[1]), scores)


@weighted
def multiclass_macro_f1(labels: Array, scores: Array) -> Prepared:
    """F1 of the most probable class, averaged over the classes that occur as label or as prediction."""
    classes, scores = check_multiclass(labels, scores)
    num_classes = scores.shape[1]
    predicted = one_hot(np.argmax(scores, axis=1), num_classes)
    actual = one_hot(classes, num_classes)
    values = [f1_of_decisions(actual[:, k], predicted[:, k]) for k in range(num_classes)]
    return lambda weights: _nan_mean([value(weights) for value in values])


# Multi-label.


@weighted
def macro_auroc(labels: Array, scores: Array) -> Prepared:
    """AUROC of each label over its known rows, averaged over the labels for which it is defined."""
    return _average_columns(roc_area, *check_multilabel(labels, scores))


@weighted
def micro_auroc(labels: Array, scores: Array) -> Prepared:
    """AUROC over all known (row, label) pairs pooled."""
    return _pool_columns(roc_area, *check_multilabel(labels, scores))


@weighted
def macro_auprc(labels: Array, scores: Array) -> Prepared:
    """Average precision of each label over its known rows, averaged over the labels for which it is defined."""
    return _average_columns(precision_area, *check_multilabel(labels, scores))


macro_auprc.shifts_under_resampling = True


@weighted
def multilabel_brier(labels: Array, scores: Array) -> Prepared:
    """Mean squared difference over all known (row, label) pairs."""
    labels, scores = check_multilabel(labels, scores)
    squared, known = np.nansum((scores - labels) ** 2, axis=1), np.isfinite(labels).sum(axis=1)
    return lambda weights: divide(squared @ weights, known @ weights)


@weighted
def macro_f1(labels: Array, scores: Array, threshold: float = 0.5) -> Prepared:
    """F1 of each label, averaged over the labels that occur as label or as prediction."""
    labels, scores = check_multilabel(labels, scores)
    predicted = (scores >= threshold).astype(np.float64)
    values = [f1_of_decisions(labels[:, k], predicted[:, k]) for k in range(labels.shape[1])]
    return lambda weights: _nan_mean([value(weights) for value in values])


@weighted
def micro_f1(labels: Array, scores: Array, threshold: float = 0.5) -> Prepared:
    """F1 over all known (row, label) pairs pooled."""
    labels, scores = check_multilabel(labels, scores)
    known, predicted = np.isfinite(labels), scores >= threshold
    hit = np.nansum(labels * predicted, axis=1)
    total = np.where(known, labels + predicted, 0.0).sum(axis=1)
    return lambda weights: divide(2 * (hit @ weights), total @ weights)


def one_hot(classes: np.ndarray, num_classes: int) -> np.ndarray:
    """Class numbers [n] as float64 indicators [n, K]."""
    return (classes[:, None] == np.arange(num_classes)).astype(np.float64)


def check_multiclass(labels: Array, scores: Array) -> tuple[np.ndarray, np.ndarray]:
    """Class numbers int64 [n] (a column [n, 1] is accepted) and float64 probabilities [n, K]; ValueError otherwise."""
    labels, scores = np.asarray(labels), np.asarray(scores, np.float64)
    labels = labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels
    if scores.ndim != 2 or labels.shape != scores.shape[:1]:
        raise ValueError(
            f"labels have shape {labels.shape} and scores {scores.shape}: multi-class needs [n] and [n, K]."
        )
    wrong = np.flatnonzero(~np.isin(labels, np.arange(scores.shape[1])))
    if len(wrong):
        raise ValueError(f"label {labels[wrong[0]]} in row {wrong[0]} is not a class number below {scores.shape[1]}.")
    _check_finite_rows(scores)
    return labels.astype(np.int64), scores


def check_multilabel(labels: Array, scores: Array) -> tuple[np.ndarray, np.ndarray]:
    """Float64 labels [n, K] of 0, 1 or NaN (unknown) and scores [n, K]; ValueError otherwise."""
    labels, scores = np.asarray(labels, np.float64), np.asarray(scores, np.float64)
    if scores.ndim != 2 or labels.shape != scores.shape:
        raise ValueError(f"labels have shape {labels.shape} and scores {scores.shape}: multi-label needs [n, K] twice.")
    wrong = np.argwhere(~(np.isnan(labels) | (labels == 0) | (labels == 1)))
    if len(wrong):
        row, column = wrong[0]
        raise ValueError(f"label {labels[row, column]:g} in row {row}, column {column} is none of 0, 1 and NaN.")
    _check_finite_rows(scores)
    return labels, scores


def _check_finite_rows(scores: np.ndarray) -> None:
    wrong = np.argwhere(~np.isfinite(scores))
    if len(wrong):
        row, column = wrong[0]
        raise ValueError(f"score {scores[row, column]} in row {row}, column {column} is not finite: mend the model.")


def _average_columns(area: Callable[..., np.ndarray], labels: np.ndarray, scores: np.ndarray) -> Prepared:
    known = [np.flatnonzero(np.isfinite(column)) for column in labels.T]
    columns = [places(labels[rows, k], scores[rows, k], rows, len(labels)) for k, rows in enumerate(known)]
    return lambda weights: _nan_mean([area(column, weights) for column in columns])


def _pool_columns(area: Callable[..., np.ndarray], labels: np.ndarray, scores: np.ndarray) -> Prepared:
    rows, columns = np.nonzero(np.isfinite(labels))
    pooled = places(labels[rows, columns], scores[rows, columns], rows, len(labels))
    return lambda weights: area(pooled, weights)


def _nan_mean(values: Sequence[np.ndarray]) -> np.ndarray:
    stacked = np.stack(values)
    defined = np.isfinite(stacked)
    return divide(np.where(defined, stacked, 0.0).sum(axis=0), defined.sum(axis=0))
