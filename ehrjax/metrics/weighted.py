"""How a metric is written here: as a function of sample weights, prepared once for its labels and scores.

A bootstrap evaluates one metric under a thousand weightings of the same rows. So each metric is a factory
`prepare(labels, scores) -> (weights[n R] -> values[R])` that sorts and checks once, and the decorator `weighted` turns
it into the plain function `metric(labels, scores, weights=None)` that users call. Inside, weights have one column a
weighting, so that NumPy's inner loops run along it. A weight of k equals k copies of the row. A value that the data do
not define (one class only, nothing predicted) is NaN, never a made-up number.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from ehrjax.types import Array

Prepared = Callable[[np.ndarray], np.ndarray]


def weighted(prepare: Callable[..., Prepared]) -> Callable[..., Any]:
    """Turn a factory into `metric(labels, scores, weights=None, **options)`; weights are [n] or [R, n].

    Returns a float, or an array [R] where weights are [R, n]. The factory stays reachable as `metric.prepare`.
    `metric.shifts_under_resampling` tells `bootstrap` that resamples lie about another mean than the value.
    """

    def metric(labels, scores, weights=None, **options):
        value = prepare(labels, scores, **options)
        if weights is None:
            weights = np.ones(len(np.asarray(labels)))
        weights = np.asarray(weights, np.float64)
        if weights.ndim not in (1, 2) or weights.shape[-1] != len(np.asarray(labels)):
            raise ValueError(
                f"weights have shape {weights.shape}: give [n] or [R, n] with n={len(np.asarray(labels))}."
            )
        values = value(np.ascontiguousarray(np.atleast_2d(weights).T))
        return values if weights.ndim == 2 else float(values[0])

    metric.__name__ = metric.__qualname__ = prepare.__name__
    metric.__doc__ = prepare.__doc__
    metric.__module__ = prepare.__module__
    metric.prepare = prepare
    metric.shifts_under_resampling = False
    return metric


def bind(metric: Callable[..., Any], **options) -> Callable[..., Any]:
    """The same metric with options fixed (a threshold, a k), still prepared once."""

    def prepare(labels, scores):
        return metric.prepare(labels, scores, **options)

    prepare.__name__, prepare.__doc__ = metric.__name__, metric.__doc__
    bound = weighted(prepare)
    bound.shifts_under_resampling = metric.shifts_under_resampling
    return bound


def divide(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Element-wise quotient, NaN (without a warning) where the denominator is not positive."""
    numerator, denominator = np.broadcast_arrays(numerator, denominator)
    return np.divide(numerator, denominator, out=np.full(denominator.shape, np.nan), where=denominator > 0)


def mean_of_rows(row_values: Float[Array, "n"]) -> Prepared:
    """The prepared metric that is the weighted mean of one value a row; rows whose value is NaN do not count."""
    counts = np.isfinite(row_values).astype(np.float64)
    values = np.where(counts > 0, row_values, 0.0)
    return lambda weights: divide(values @ weights, counts @ weights)


class Ranking(NamedTuple):
    """Rows in descending order of score, with equal scores grouped."""

    order: Int[Array, "n"]
    starts: Int[Array, "groups"] | None  # first row of each group in `order`; None when all scores differ

    def group(self, row_values: Float[Array, "n R"]) -> Float[Array, "groups R"]:
        """Sum values given in the original row order over each group of equal scores."""
        ranked = row_values.take(self.order, axis=0)
        return ranked if self.starts is None else np.add.reduceat(ranked, self.starts, axis=0)

    def group_ids(self) -> Int[Array, "n"]:
        """Group number of each row, in the original row order."""
        ids = np.empty(len(self.order), np.int64)
        if self.starts is None:
            ids[self.order] = np.arange(len(self.order))
        else:
            is_start = np.zeros(len(self.order), np.int64)
            is_start[self.starts] = 1
            ids[self.order] = np.cumsum(is_start) - 1
        return ids


def rank(scores: Float[Array, "n"]) -> Ranking:
    """Sort once, best score first."""
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    starts = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]]) if len(scores) else np.zeros(0, np.int64)
    return Ranking(order, None if len(starts) == len(scores) else starts)


def check_scores(labels: Array, scores: Array) -> tuple[np.ndarray, np.ndarray]:
    """Both as float64 [n] of equal length; a column [n, 1] is accepted. Non-finite scores are a ValueError."""
    labels, scores = (_column(x) for x in (labels, scores))
    if labels.shape != scores.shape:
        raise ValueError(f"labels have shape {labels.shape} but scores {scores.shape}: give one score a label.")
    _check_finite("scores", scores)
    _check_finite("labels", labels)
    return labels, scores


def check_binary(labels: Array, scores: Array) -> tuple[np.ndarray, np.ndarray]:
    """`check_scores`, and the labels are 0 or 1."""
    labels, scores = check_scores(labels, scores)
    wrong = np.flatnonzero((labels != 0) & (labels != 1))
    if len(wrong):
        raise ValueError(f"label {labels[wrong[0]]:g} in row {wrong[0]} is neither 0 nor 1: binary metrics need 0/1.")
    return labels, scores


def check_probabilities(labels: Array, scores: Array) -> tuple[np.ndarray, np.ndarray]:
    """`check_binary`, and the scores are probabilities."""
    labels, scores = check_binary(labels, scores)
    wrong = np.flatnonzero((scores < 0) | (scores > 1))
    if len(wrong):
        raise ValueError(
            f"score {scores[wrong[0]]:g} in row {wrong[0]} is not a probability: this metric needs scores in [0, 1]."
        )
    return labels, scores


def clip_probabilities(scores: Array, probabilities: np.ndarray) -> np.ndarray:
    """Probabilities kept off 0 and 1 by the machine epsilon of the scores' own dtype, as scikit-learn's log_loss."""
    dtype = np.asarray(scores).dtype
    eps = np.finfo(dtype if dtype.kind == "f" else np.float64).eps
    return np.clip(probabilities, eps, 1 - eps)


def _column(values: Array) -> np.ndarray:
    values = np.asarray(values, np.float64)
    return values[:, 0] if values.ndim == 2 and values.shape[1] == 1 else values


def _check_finite(name: str, values: np.ndarray) -> None:
    wrong = np.argwhere(~np.isfinite(values))
    if len(wrong):
        raise ValueError(f"{name} hold a non-finite value in row {wrong[0][0]}: mask such rows out, or mend the model.")
