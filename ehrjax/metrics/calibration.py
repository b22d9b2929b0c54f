"""Calibration of binary probabilities: recalibration slope and intercept, calibration error, reliability curve.

Metrics are `metric(labels, scores, weights=None) -> float`; labels 0/1 [n], scores probabilities [n], weights [n] or
[R, n]. Slope and intercept follow Van Calster et al., 2019, BMC Medicine 17:230.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from ehrjax.metrics.weighted import Prepared, Ranking, check_probabilities, clip_probabilities, divide, rank, weighted
from ehrjax.types import Array

MAX_NEWTON_STEPS = 30
TOLERANCE = 1e-4  # of the last step; Newton converges quadratically, so the error left is about its square


@weighted
def calibration_slope(labels: Array, scores: Array) -> Prepared:
    """Slope b of logit P(y = 1) = a + b logit(score): 1 is right, below 1 is over-confident.

    NaN where it does not exist: one class, constant scores, or scores that separate the classes.
    """
    prepared = _prepare_recalibration(labels, scores)
    return lambda weights: prepared(weights)[1]


@weighted
def calibration_intercept(labels: Array, scores: Array) -> Prepared:
    """Calibration-in-the-large: intercept a of logit P(y = 1) = a + logit(score), the slope held at 1; 0 is right.

    Above 0 the risk is under-estimated. NaN with one class only.
    """
    checked_labels, logits = _logits(labels, scores)

    def fit(weights: np.ndarray, intercept: np.ndarray) -> np.ndarray:
        for _ in range(MAX_NEWTON_STEPS):
            fitted = _sigmoid(intercept + logits[:, None])
            gradient = np.einsum("nr,nr->r", weights, checked_labels[:, None] - fitted)
            curvature = np.einsum("nr,nr->r", weights, fitted * (1 - fitted))
            step = np.clip(divide(gradient, curvature), -2.0, 2.0)  # bounded, or a far start would overshoot
            intercept = intercept + step
            if not np.any(np.abs(step) > TOLERANCE):
                break
        return np.where(np.abs(step) <= TOLERANCE, intercept, np.nan)

    start = np.nan_to_num(fit(np.ones((len(logits), 1)), np.zeros(1)))
    return lambda weights: fit(weights, np.repeat(start, weights.shape[1]))


def logistic_recalibration(labels: Array, scores: Array, weights: Array = None) -> tuple[float, float]:
    """Intercept and slope (a, b) fitted together in logit P(y = 1) = a + b logit(score); NaN where there is no fit."""
    weights = np.ones(len(labels)) if weights is None else np.asarray(weights, np.float64)
    intercept, slope = _prepare_recalibration(labels, scores)(weights[:, None])
    return float(intercept[0]), float(slope[0])


@weighted
def ece(labels: Array, scores: Array, num_bins: int = 10) -> Prepared:
    """Expected calibration error: mean |observed rate - mean score| over bins of equal mass.

    Rows of equal score share a bin. The finite-sample value is above 0 even for perfect probabilities.
    """
    labels, scores = check_probabilities(labels, scores)
    ranking, gap = rank(scores), labels - scores

    def value(weights: np.ndarray) -> np.ndarray:
        bins = _equal_mass_bins(ranking, weights, num_bins)
        gaps = _sum_by_bin(bins, ranking.group(weights * gap[:, None]), num_bins)
        return divide(np.abs(gaps).sum(axis=0), weights.sum(axis=0))

    return value


# Resampling adds noise to every bin, and the error is a sum of absolute values: resamples lie above the value by that
# much on average. `bootstrap` takes this shift out, or an interval could miss its own estimate.
ece.shifts_under_resampling = True


class ReliabilityCurve(NamedTuple):
    """One point a non-empty bin, in ascending order of score."""

    mean_score: Float[Array, "bins"]
    observed_rate: Float[Array, "bins"]
    weight: Float[Array, "bins"]  # number of rows


def reliability_curve(labels: Array, scores: Array, weights: Array = None, num_bins: int = 10) -> ReliabilityCurve:
    """Mean score and observed rate in bins of equal mass, the bins of `ece`."""
    labels, scores = check_probabilities(labels, scores)
    weights = np.ones(len(labels)) if weights is None else np.asarray(weights, np.float64)
    ranking = rank(scores)
    bins = _equal_mass_bins(ranking, weights[:, None], num_bins)
    columns = [(weights * values)[:, None] for values in (scores, labels, 1.0)]
    totals = [_sum_by_bin(bins, ranking.group(column), num_bins)[::-1, 0] for column in columns]
    filled = totals[2] > 0
    score_sum, label_sum, weight = (total[filled] for total in totals)
    return ReliabilityCurve(score_sum / weight, label_sum / weight, weight)


def _equal_mass_bins(ranking: Ranking, weights: np.ndarray, num_bins: int) -> np.ndarray:
    """Bin of each group of equal scores [groups, R]: where the middle of its mass lies."""
    grouped = ranking.group(weights)
    upper = np.cumsum(grouped, axis=0)
    total = np.maximum(upper[-1:], np.finfo(np.float64).tiny)
    return np.minimum((upper - 0.5 * grouped) * (num_bins / total), num_bins - 1).astype(np.int64)


def _sum_by_bin(bins: np.ndarray, values: np.ndarray, num_bins: int) -> np.ndarray:
    """Values [groups, R] summed to [num_bins, R]."""
    num_columns = bins.shape[1]
    flat = bins * num_columns + np.arange(num_columns)
    sums = np.bincount(flat.ravel(), values.ravel(), minlength=num_bins * num_columns)
    return sums.reshape(num_bins, num_columns)


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    values = 0.5 * logits
    np.tanh(values, out=values)  # in place, for fresh arrays of this size cost more than the arithmetic
    values += 1.0
    values *= 0.5
    return values


def _logits(labels: Array, scores: Array) -> tuple[np.ndarray, np.ndarray]:
    checked_labels, probabilities = check_probabilities(labels, scores)
    probabilities = clip_probabilities(scores, probabilities)
    return checked_labels, np.log(probabilities) - np.log1p(-probabilities)


def _prepare_recalibration(labels: Array, scores: Array):
    """Weights [n, R] -> intercept [R] and slope [R], by Newton steps that start at the unweighted fit."""
    checked_labels, logits = _logits(labels, scores)
    centre, scale = (logits.mean(), logits.std()) if len(logits) else (0.0, 0.0)
    # A spread that is only rounding means constant scores: there is no slope.
    is_constant = scale <= 1e-9 * max(1.0, abs(centre))
    inputs = np.zeros_like(logits) if is_constant else (logits - centre) / scale
    start = np.nan_to_num(_newton(checked_labels, inputs, np.ones((len(logits), 1)), np.zeros((2, 1))))

    def value(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        fit = _newton(checked_labels, inputs, weights, np.repeat(start, weights.shape[1], axis=1))
        slope = fit[1] / (np.nan if is_constant else scale)
        return fit[0] - slope * centre, slope

    return value


def _newton(labels: np.ndarray, inputs: np.ndarray, weights: np.ndarray, coefficients: np.ndarray) -> np.ndarray:
    """Logistic regression on one standardised input under each column of weights; [2, R], NaN unless converged."""
    powers = np.stack([np.ones_like(inputs), inputs, inputs**2])
    for _ in range(MAX_NEWTON_STEPS):
        fitted = _sigmoid(coefficients[0] + coefficients[1] * inputs[:, None])
        g0, g1 = powers[:2] @ (weights * (labels[:, None] - fitted))
        h0, h1, h2 = powers @ (weights * fitted * (1 - fitted))
        determinant = h0 * h2 - h1**2
        determinant = np.where(determinant > 1e-12 * h0 * h2, determinant, 0.0)
        step = divide(np.stack([h2 * g0 - h1 * g1, h0 * g1 - h1 * g0]), determinant)
        step = np.clip(step, -4.0, 4.0)  # bounded, or a far start would overshoot
        coefficients = coefficients + step
        if not np.any(np.abs(step) > TOLERANCE):
            break
    converged = np.all(np.abs(step) <= TOLERANCE, axis=0)
    return np.where(converged, coefficients, np.nan)
