"""Discrimination, threshold and proper-score metrics of binary predictions.

Every metric is `metric(labels, scores, weights=None) -> float`: labels 0/1 [n], scores [n], weights [n] or [R, n] (see
`weighted`). Undefined values are NaN. Several outputs: `multioutput`.
"""

from collections.abc import Callable

import numpy as np

from ehrjax.metrics.areas import places, precision_area, roc_area
from ehrjax.metrics.weighted import (
    Prepared,
    check_binary,
    check_probabilities,
    clip_probabilities,
    divide,
    mean_of_rows,
    weighted,
)
from ehrjax.types import Array


@weighted
def auroc(labels: Array, scores: Array) -> Prepared:
    """Area under the ROC curve: P(score of a positive > score of a negative), ties counting one half.

    NaN unless both classes are present. Equals the Mann-Whitney U statistic over its maximum (Hanley and McNeil, 1982).
    """
    labels, scores = check_binary(labels, scores)
    found = places(labels, scores, np.arange(len(labels)), len(labels))
    return lambda weights: roc_area(found, weights)


@weighted
def auprc(labels: Array, scores: Array) -> Prepared:
    """Area under the precision-recall curve as average precision (no interpolation); NaN without a positive."""
    labels, scores = check_binary(labels, scores)
    found = places(labels, scores, np.arange(len(labels)), len(labels))
    return lambda weights: precision_area(found, weights)


auprc.shifts_under_resampling = True  # a positive that is drawn twice stands beside itself in the ranking


@weighted
def brier(labels: Array, scores: Array) -> Prepared:
    """Mean squared difference between probability and outcome (Brier, 1950)."""
    labels, scores = check_probabilities(labels, scores)
    return mean_of_rows((scores - labels) ** 2)


@weighted
def log_loss(labels: Array, scores: Array) -> Prepared:
    """Mean negative log likelihood in nats, probabilities clipped by the machine epsilon of their dtype."""
    checked_labels, probabilities = check_probabilities(labels, scores)
    probabilities = clip_probabilities(scores, probabilities)
    return mean_of_rows(-np.where(checked_labels == 1, np.log(probabilities), np.log1p(-probabilities)))


@weighted
def accuracy(labels: Array, scores: Array, threshold: float = 0.5) -> Prepared:
    """Share of rows on the right side of the threshold (score >= threshold is positive)."""
    labels, scores = check_binary(labels, scores)
    return mean_of_rows(((scores >= threshold) == (labels == 1)).astype(np.float64))


@weighted
def precision(labels: Array, scores: Array, threshold: float = 0.5) -> Prepared:
    """Positive predictive value at the threshold; NaN where nothing is predicted positive."""
    labels, scores = check_binary(labels, scores)
    return mean_of_rows(np.where(scores >= threshold, labels, np.nan))


@weighted
def recall(labels: Array, scores: Array, threshold: float = 0.5) -> Prepared:
    """Sensitivity at the threshold; NaN without a positive."""
    labels, scores = check_binary(labels, scores)
    return mean_of_rows(np.where(labels == 1, scores >= threshold, np.nan))


@weighted
def specificity(labels: Array, scores: Array, threshold: float = 0.5) -> Prepared:
    """Share of negatives below the threshold; NaN without a negative."""
    labels, scores = check_binary(labels, scores)
    return mean_of_rows(np.where(labels == 0, scores < threshold, np.nan))


@weighted
def f1(labels: Array, scores: Array, threshold: float = 0.5) -> Prepared:
    """Harmonic mean of precision and recall; NaN with neither a positive nor a predicted positive."""
    labels, scores = check_binary(labels, scores)
    return f1_of_decisions(labels, (scores >= threshold).astype(np.float64))


@weighted
def event1(labels: Array, scores: Array, threshold: float = 0.5) -> Prepared:
    """Event-1 score of PhysioNet 2012 (Silva et al., 2012, CinC 39:245): the lesser of sensitivity and precision.

    0 where nothing is predicted positive, NaN without a positive.
    """
    labels, scores = check_binary(labels, scores)
    predicted = (scores >= threshold).astype(np.float64)
    hit = labels * predicted

    def value(weights):
        positives = labels @ weights  # both have the same numerator, so the lesser has the greater denominator
        return np.where(positives > 0, divide(hit @ weights, np.maximum(positives, predicted @ weights)), np.nan)

    return value


def best_event1_threshold(labels: Array, scores: Array) -> float:
    """The threshold of highest event-1 score, to be chosen on validation rows; 0.5 where these hold no positive."""
    return _best_threshold(labels, scores, lambda hits, predicted, positives: hits / np.maximum(predicted, positives))


def best_f1_threshold(labels: Array, scores: Array) -> float:
    """The threshold of highest F1, to be chosen on validation rows; 0.5 where these hold no positive.

    Lies half-way between two neighbouring scores, so that a score seen again at test time is not on the edge.
    """
    return _best_threshold(labels, scores, lambda hits, predicted, positives: 2 * hits / (predicted + positives))


def _best_threshold(labels: Array, scores: Array, value: Callable[..., np.ndarray]) -> float:
    """The highest threshold of the highest `value(true positives, predicted positives, positives)`."""
    labels, scores = check_binary(np.ravel(labels), np.ravel(scores))
    if not labels.any():
        return 0.5
    distinct, group = np.unique(-scores, return_inverse=True)
    true_positives = np.cumsum(np.bincount(group, labels))
    predicted = np.cumsum(np.bincount(group))
    best = int(np.argmax(value(true_positives, predicted, labels.sum())))
    return float(-distinct[best : best + 2].mean())


def f1_of_decisions(labels: np.ndarray, predicted: np.ndarray) -> Prepared:
    """Prepared F1 of 0/1 decisions; rows whose label is NaN do not count."""
    known = np.isfinite(labels)
    hit = np.where(known, labels, 0.0) * predicted
    total = np.where(known, labels + predicted, 0.0)
    return lambda weights: divide(2 * (hit @ weights), total @ weights)
