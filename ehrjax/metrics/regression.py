"""Regression metrics `metric(labels, scores, weights=None)`: all [n], weights [n] or [R, n]; undefined is NaN."""

import numpy as np

from ehrjax.metrics.weighted import Prepared, check_scores, divide, mean_of_rows, rank, weighted
from ehrjax.types import Array


@weighted
def mae(labels: Array, scores: Array) -> Prepared:
    """Mean absolute error, in the labels' unit."""
    labels, scores = check_scores(labels, scores)
    return mean_of_rows(np.abs(labels - scores))


@weighted
def rmse(labels: Array, scores: Array) -> Prepared:
    """Root mean squared error, in the labels' unit."""
    labels, scores = check_scores(labels, scores)
    mean_square = mean_of_rows((labels - scores) ** 2)
    return lambda weights: np.sqrt(mean_square(weights))


@weighted
def r2(labels: Array, scores: Array) -> Prepared:
    """Coefficient of determination, 1 - residual / total sum of squares; NaN where the labels are constant."""
    labels, scores = check_scores(labels, scores)
    residual = (labels - scores) ** 2

    def value(weights: np.ndarray) -> np.ndarray:
        return 1 - divide(residual @ weights, _spread(weights, labels))

    return value


@weighted
def spearman(labels: Array, scores: Array) -> Prepared:
    """Spearman's rank correlation with mid-ranks for ties; NaN where labels or scores are constant."""
    labels, scores = check_scores(labels, scores)
    rankings = [(ranking, ranking.group_ids()) for ranking in (rank(labels), rank(scores))]

    def value(weights: np.ndarray) -> np.ndarray:
        ranks = []
        for ranking, group_ids in rankings:
            grouped = ranking.group(weights)
            ranks.append((np.cumsum(grouped, axis=0) - 0.5 * grouped).take(group_ids, axis=0))
        return _correlation(weights, *ranks)

    return value


def _spread(weights: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Weighted sum of squares about the weighted mean [R]; exactly 0 where all values of positive weight are equal."""
    if not len(values):
        return np.zeros(weights.shape[1])
    # Centred first, so that large values do not cancel; what is left of a constant is rounding, hence the floor.
    centred = values - np.median(values)
    totals = np.maximum(weights.sum(axis=0), np.finfo(np.float64).tiny)
    first, second = centred @ weights, centred**2 @ weights
    spread = second - first**2 / totals
    return np.where(spread > 1e-12 * second, spread, 0.0)


def _correlation(weights: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Weighted Pearson correlation [R] of values [n, R] that differ by weighting."""
    totals = np.maximum(weights.sum(axis=0), np.finfo(np.float64).tiny)
    left, right = (x - np.einsum("nr,nr->r", weights, x) / totals for x in (left, right))
    covariance, left_square, right_square = (
        np.einsum("nr,nr,nr->r", weights, a, b) for a, b in ((left, right), (left, left), (right, right))
    )
    smallest = 1e-20 * totals**3  # ranks are about as large as the total weight
    is_constant = (left_square <= smallest) | (right_square <= smallest)
    return np.where(is_constant, np.nan, divide(covariance, np.sqrt(left_square * right_square)))
