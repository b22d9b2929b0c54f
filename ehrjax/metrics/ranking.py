"""Ranking metrics of multi-label predictions: which codes come next, judged by the top of the list.

Labels are [n, K] of 0, 1 or NaN (unknown), scores [n, K]; `metric(labels, scores, weights=None, k=10)` with weights [n]
or [R, n] over rows. Unknown labels cannot be recommended. Equal scores rank the lower column first.
"""

import numpy as np

from ehrjax.metrics.multioutput import check_multilabel
from ehrjax.metrics.weighted import Prepared, mean_of_rows, weighted
from ehrjax.types import Array


@weighted
def recall_at_k(labels: Array, scores: Array, k: int = 10) -> Prepared:
    """Share of a row's true labels among its k highest scores, averaged over rows that have a true label."""
    labels, hits = _hits(labels, scores, k)
    num_true = np.nansum(labels, axis=1)
    return mean_of_rows(np.divide(hits, num_true, out=np.full(len(labels), np.nan), where=num_true > 0))


@weighted
def precision_at_k(labels: Array, scores: Array, k: int = 10) -> Prepared:
    """Share of true labels among a row's k highest scores, averaged over rows with any known label.

    Rows with fewer than k known labels are judged on those.
    """
    labels, hits = _hits(labels, scores, k)
    num_shown = np.minimum(np.isfinite(labels).sum(axis=1), k)
    return mean_of_rows(np.divide(hits, num_shown, out=np.full(len(labels), np.nan), where=num_shown > 0))


def _hits(labels: Array, scores: Array, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Checked labels, and how many true labels are in the top k of each row."""
    if k < 1:
        raise ValueError(f"k={k} must be at least 1.")
    labels, scores = check_multilabel(labels, scores)
    scores = np.where(np.isfinite(labels), scores, -np.inf)
    top = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return labels, np.nansum(np.take_along_axis(labels, top, axis=1), axis=1)
