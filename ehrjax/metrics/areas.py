"""Areas under curves from what lies between the positives: the kernel of AUROC and average precision.

Rows whose scores lie between two neighbouring positives only matter by their total weight. So a set of rows becomes a
sparse matrix that sums weights by place among the distinct scores of positives, and many weightings are one sparse
product. Pairs (row, label) of a multi-label task are pooled by the same matrix, for a pair weighs what its row weighs.
"""

from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
from jaxtyping import Float, Int

from ehrjax.metrics.weighted import divide
from ehrjax.types import Array


class Places(NamedTuple):
    """G distinct scores of positives in ascending order, and the 2G + 1 places that all scores take among them.

    Place 2g + 1 is the score g itself, place 2g is strictly below it and above the one before.
    """

    all_rows: sp.csr_matrix  # [2G+1, n]: times weights, the weight in each place
    positives: sp.csr_matrix  # [G, n]: times weights, the weight of positives at each score


def places(
    labels: Float[Array, "pairs"], scores: Float[Array, "pairs"], rows: Int[Array, "pairs"], num_rows: int
) -> Places:
    """Places of pairs with labels 0/1, each of which belongs to one of `num_rows` weighted rows."""
    is_positive = labels == 1
    levels = np.unique(scores[is_positive])
    place = np.searchsorted(levels, scores, side="left") + np.searchsorted(levels, scores, side="right")
    positive_place = place[is_positive] // 2
    return Places(
        _summing(place, rows, (2 * len(levels) + 1, num_rows)),
        _summing(positive_place, rows[is_positive], (len(levels), num_rows)),
    )


def roc_area(found: Places, weights: Float[Array, "n R"]) -> Float[Array, "R"]:
    """P(score of a positive > score of a negative), ties counting one half; NaN unless both classes have weight."""
    positives, negatives = found.positives @ weights, found.all_rows @ weights
    negatives[1::2] -= positives
    below = np.cumsum(negatives, axis=0)[1::2] - 0.5 * negatives[1::2]
    won = np.einsum("gr,gr->r", positives, below)
    return divide(won, positives.sum(axis=0) * negatives.sum(axis=0))


def precision_area(found: Places, weights: Float[Array, "n R"]) -> Float[Array, "R"]:
    """Average precision: the precision at each positive's score, averaged over positives; NaN without a positive."""
    positives = found.positives @ weights
    at_or_above = np.cumsum((found.all_rows @ weights)[:0:-1], axis=0)[1::2]
    true_positives = np.cumsum(positives[::-1], axis=0)
    # A score that has no weight contributes nothing; the floor only keeps 0/0 out.
    precision = true_positives / np.maximum(at_or_above, np.finfo(np.float64).tiny)
    return divide(np.einsum("gr,gr->r", positives[::-1], precision), positives.sum(axis=0))


def _summing(place: np.ndarray, rows: np.ndarray, shape: tuple[int, int]) -> sp.csr_matrix:
    matrix = sp.csr_matrix((np.ones(len(place)), (place, rows)), shape=shape)
    matrix.sum_duplicates()
    return matrix
