"""Patient-level bootstrap: subjects are drawn with replacement, and all rows of a subject come together.

A resample is a weight a row (how often its subject was drawn), so every metric is prepared and sorted once and then
evaluated under blocks of weightings. Percentile intervals (Efron and Tibshirani, 1993, chapter 13).
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from ehrjax.types import Array

NUM_RESAMPLES = 1000
CONFIDENCE = 0.95
# Weights of a block and what is made of them stay in a core's cache: 2**16 float64 values are 512 KB.
BLOCK_SIZE, MIN_BLOCK_COLUMNS = 2**16, 4


class Interval(NamedTuple):
    """A metric on the whole set and its bootstrap interval; NaN where undefined."""

    value: float
    low: float
    high: float
    num_undefined: int = 0  # resamples dropped because the metric does not exist there (one class only, ...)


def resample_weights(
    subject_ids: Int[Array, "n"], *, num_resamples: int = NUM_RESAMPLES, seed: int = 0
) -> Iterator[Float[Array, "n R"]]:
    """Blocks of row weights, `num_resamples` columns in all; the same subjects and seed give the same resamples."""
    subjects, subject_of_row = np.unique(np.asarray(subject_ids), return_inverse=True)
    if len(subjects) == 0:
        return
    rng = np.random.default_rng(seed)
    block = max(MIN_BLOCK_COLUMNS, BLOCK_SIZE // len(subject_of_row))
    for first in range(0, num_resamples, block):
        shape = (len(subjects), min(block, num_resamples - first))
        drawn = rng.integers(len(subjects), size=shape) * shape[1] + np.arange(shape[1])
        counts = np.bincount(drawn.ravel(), minlength=shape[0] * shape[1]).reshape(shape).astype(np.float64)
        yield counts.take(subject_of_row, axis=0)


def bootstrap(
    metrics: Mapping[str, Callable[..., Any]],
    labels: Array,
    scores: Array,
    subject_ids: Int[Array, "n"],
    *,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
    confidence: float = CONFIDENCE,
) -> dict[str, Interval]:
    """Value and interval of each metric; all metrics see the same resamples. See `weighted` for the shapes."""
    _check_rows(labels, scores, subject_ids)
    values, resampled = _evaluate(_prepare(metrics, labels, scores), subject_ids, num_resamples, seed)
    shifts = {name: getattr(metric, "shifts_under_resampling", False) for name, metric in metrics.items()}
    return {name: _interval(values[name], resampled[name], confidence, shifts=shifts[name]) for name in metrics}


def paired_difference(
    metrics: Mapping[str, Callable[..., Any]],
    labels: Array,
    scores: Array,
    other_scores: Array,
    subject_ids: Int[Array, "n"],
    *,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
    confidence: float = CONFIDENCE,
) -> dict[str, Interval]:
    """Metric of `scores` minus metric of `other_scores`, both on the same resamples of the same rows."""
    _check_rows(labels, scores, subject_ids)
    _check_rows(labels, other_scores, subject_ids)
    pairs = zip(
        _prepare(metrics, labels, scores).items(), _prepare(metrics, labels, other_scores).values(), strict=True
    )
    differences = {name: _difference(left, right) for (name, left), right in pairs}
    values, resampled = _evaluate(differences, subject_ids, num_resamples, seed)
    return {name: _interval(values[name], resampled[name], confidence) for name in metrics}


def _difference(left: Callable, right: Callable) -> Callable:
    return lambda weights: left(weights) - right(weights)


def _prepare(metrics: Mapping[str, Callable[..., Any]], labels: Array, scores: Array) -> dict[str, Callable]:
    """Each metric as a function of weights alone; a metric not made by `weighted` is called with all three."""

    def plain(metric: Callable) -> Callable:
        return lambda weights: metric(labels, scores, weights.T)

    return {
        name: metric.prepare(labels, scores) if hasattr(metric, "prepare") else plain(metric)
        for name, metric in metrics.items()
    }


def _evaluate(prepared: Mapping[str, Callable], subject_ids: Array, num_resamples: int, seed: int):
    values = {name: float(value(np.ones((len(subject_ids), 1)))[0]) for name, value in prepared.items()}
    blocks: dict[str, list[np.ndarray]] = {name: [] for name in prepared}
    for weights in resample_weights(subject_ids, num_resamples=num_resamples, seed=seed):
        for name, value in prepared.items():
            blocks[name].append(value(weights))
    return values, {name: np.concatenate([np.zeros(0), *parts]) for name, parts in blocks.items()}


def _interval(value: float, resampled: np.ndarray, confidence: float, *, shifts: bool = False) -> Interval:
    defined = resampled[np.isfinite(resampled)]
    num_undefined = len(resampled) - len(defined)
    if len(defined) == 0 or not np.isfinite(value):
        return Interval(value, np.nan, np.nan, num_undefined)
    if shifts:
        defined = np.clip(defined - (defined.mean() - value), 0.0, 1.0)
    tail = (1 - confidence) / 2
    low, high = np.quantile(defined, [tail, 1 - tail])
    return Interval(value, float(low), float(high), num_undefined)


def _check_rows(labels: Array, scores: Array, subject_ids: Array) -> None:
    lengths = [len(np.asarray(x)) for x in (labels, scores, subject_ids)]
    if len(set(lengths)) > 1:
        raise ValueError(f"labels, scores and subject_ids have {lengths} rows: give one of each a row.")
