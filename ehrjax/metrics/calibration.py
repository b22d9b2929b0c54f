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
TOLERANCE = 1e-6  # of the last step; Newton converges quadratically, so the error left is about its square


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

    def value(weights: np.ndarray) -> np.ndarray:
        intercept = np.zeros(len(weights))
        for _ in range(MAX_NEWTON_STEPS):
            fitted = _sigmoid(intercept[:, None] + logits)
            gradient = np.einsum("rn,rn->r", weights, checked_labels - fitted)
            curvature = np.einsum("rn,rn->r", weights, fitted * (1 - fitted))
            step = np.clip(divide(gradient, curvature), -2.0, 2.0)  # bounded, or a far start would overshoot
            intercept = intercept + step
            if not np.any(np.abs(step) > TOLERANCE):
                break
        return np.where(np.abs(step) <= TOLERANCE, intercept, np.nan)

    return value


def logistic_recalibration(labels: Array, scores: Array, weights: Array = None) -> tuple[float, float]:
    """Intercept and slope (a, b) fitted together in logit P(y = 1) = a + b logit(score); NaN where there is no fit."""
    weights = np.ones(len(labels)) if weights is None else np.asarray(weights, np.float64)
    intercept, slope = _prepare_recalibration(labels, scores)(weights[None])
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
        gaps = _sum_by_bin(bins, ranking.group(weights * gap), num_bins)
        return divide(np.abs(gaps).sum(axis=1), weights.sum(axis=1))

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
    weights = np.ones((1, len(labels))) if weights is None else np.asarray(weights, np.float64)[None]
    ranking = rank(scores)
    bins = _equal_mass_bins(ranking, weights, num_bins)
    totals = [_sum_by_bin(bins, ranking.group(weights * x), num_bins)[0, ::-1] for x in (scores, labels, 1.0)]
    filled = totals[2] > 0
    score_sum, label_sum, weight = (total[filled] for total in totals)
    return ReliabilityCurve(score_sum / weight, label_sum / weight, weight)


def _equal_mass_bins(ranking: Ranking, weights: np.ndarray, num_bins: int) -> np.ndarray:
    """Bin of each group of equal scores [R, groups]: where the middle of its mass lies."""
    grouped = ranking.group(weights)
    upper = np.cumsum(grouped, axis=1)
    total = np.maximum(upper[:, -1:], np.finfo(np.float64).tiny) if upper.shape[1] else 1.0
    return np.minimum((upper - 0.5 * grouped) * (num_bins / total), num_bins - 1).astype(np.int64)


def _sum_by_bin(bins: np.ndarray, values: np.ndarray, num_bins: int) -> np.ndarray:
    flat = bins + num_bins * np.arange(len(bins))[:, None]
    return np.bincount(flat.ravel(), values.ravel(), minlength=num_bins * len(bins)).reshape(len(bins), num_bins)


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(0.5 * logits))


def _logits(labels: Array, scores: Array) -> tuple[np.ndarray, np.ndarray]:
    checked_labels, probabilities = check_probabilities(labels, scores)
    probabilities = clip_probabilities(scores, probabilities)
    return checked_labels, np.log(probabilities) - np.log1p(-probabilities)


def _prepare_recalibration(labels: Array, scores: Array):
    """Weights [R, n] -> intercept [R] and slope [R], by Newton steps that start at the unweighted fit."""
    checked_labels, logits = _logits(labels, scores)
    centre, scale = (logits.mean(), logits.std()) if len(logits) else (0.0, 0.0)
    # A spread that is only rounding means constant scores: there is no slope.
    is_constant = scale <= 1e-9 * max(1.0, abs(centre))
    inputs = np.zeros_like(logits) if is_constant else (logits - centre) / scale
    start = _newton(checked_labels, inputs, np.ones((1, len(logits))), np.zeros((1, 2)))
    start = np.nan_to_num(start)

    def value(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        fit = _newton(checked_labels, inputs, weights, np.repeat(start, len(weights), axis=0))
        slope = fit[:, 1] / (np.nan if is_constant else scale)
        return fit[:, 0] - slope * centre, slope

    return value


def _newton(labels: np.ndarray, inputs: np.ndarray, weights: np.ndarray, coefficients: np.ndarray) -> np.ndarray:
    """Weighted logistic regression on one standardised input, for each row of weights; [R, 2], NaN unless converged."""
    powers = np.stack([np.ones_like(inputs), inputs, inputs**2], axis=1)
    for _ in range(MAX_NEWTON_STEPS):
        fitted = _sigmoid(coefficients[:, :1] + coefficients[:, 1:] * inputs)
        gradient = (weights * (labels - fitted)) @ powers[:, :2]
        h0, h1, h2 = ((weights * fitted * (1 - fitted)) @ powers).T
        determinant = h0 * h2 - h1**2
        determinant = np.where(determinant > 1e-12 * h0 * h2, determinant, 0.0)
        step = np.stack([h2 * gradient[:, 0] - h1 * gradient[:, 1], h0 * gradient[:, 1] - h1 * gradient[:, 0]], axis=1)
        step = np.clip(divide(step, determinant[:, None]), -4.0, 4.0)  # bounded, or a far start would overshoot
        coefficients = coefficients + step
        if not np.any(np.abs(step) > TOLERANCE):
            break
    converged = np.all(np.abs(step) <= TOLERANCE, axis=1)
    return np.where(converged[:, None], coefficients, np.nan)
