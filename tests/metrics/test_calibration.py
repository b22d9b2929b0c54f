"""Calibration metrics: where no fit exists, then agreement with an unpenalised logistic regression."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from ehrjax.metrics import calibration as ours

METRICS = (ours.calibration_slope, ours.calibration_intercept, ours.ece)


@pytest.mark.parametrize("metric", METRICS)
def test_no_rows_is_nan(metric):
    assert np.isnan(metric([], []))


def test_no_slope_without_two_classes_two_scores_or_overlap():
    assert np.isnan(ours.calibration_slope([1, 1, 1], [0.1, 0.2, 0.3]))
    assert np.isnan(ours.calibration_intercept([1, 1, 1], [0.1, 0.2, 0.3]))
    assert np.isnan(ours.calibration_slope([0, 1, 0], [0.1, 0.1, 0.1]))
    assert np.isnan(ours.calibration_slope([0, 0, 1, 1], [0.1, 0.2, 0.3, 0.4]))


def test_probabilities_of_zero_and_one_stay_finite():
    labels, scores = np.array([0, 1, 0, 1, 1, 0]), np.array([0.0, 1.0, 1.0, 0.0, 1.0, 0.0])
    assert np.isfinite([metric(labels, scores) for metric in METRICS]).all()


def test_a_score_outside_zero_and_one_is_refused():
    with pytest.raises(ValueError, match="not a probability"):
        ours.ece([0, 1], [0.1, 1.1])


def _overconfident(num_rows=400, slope=0.5, shift=-1.0, seed=0):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=num_rows) * 2
    labels = (rng.random(num_rows) < 1 / (1 + np.exp(-(slope * logits + shift)))).astype(float)
    return labels, 1 / (1 + np.exp(-logits)), logits, rng.integers(0, 3, num_rows).astype(float)


@pytest.mark.parametrize("shift", [-4.0, 0.0, 3.0])
def test_recalibration_agrees_with_unpenalised_logistic_regression(shift):
    labels, scores, logits, weights = _overconfident(shift=shift)
    reference = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(logits[:, None], labels, weights)
    intercept, slope = ours.logistic_recalibration(labels, scores, weights)
    np.testing.assert_allclose([intercept, slope], [reference.intercept_[0], reference.coef_[0, 0]], rtol=1e-4)
    both = ours.calibration_slope(labels, scores, np.stack([weights, weights]))
    np.testing.assert_allclose(both, slope)


def test_intercept_makes_the_mean_risk_right():
    labels, scores, logits, weights = _overconfident()
    intercept = ours.calibration_intercept(labels, scores, weights)
    assert intercept < 0  # too high a risk was predicted
    shifted = 1 / (1 + np.exp(-(logits + intercept)))
    assert np.average(shifted, weights=weights) == pytest.approx(np.average(labels, weights=weights))


def test_perfect_probabilities_have_slope_one_and_intercept_zero():
    labels, scores, _, _ = _overconfident(num_rows=40_000, slope=1.0, shift=0.0)
    assert ours.calibration_slope(labels, scores) == pytest.approx(1.0, abs=0.05)
    assert ours.calibration_intercept(labels, scores) == pytest.approx(0.0, abs=0.05)
    assert ours.ece(labels, scores) < 0.01


def test_ece_is_the_mean_gap_of_equal_bins():
    labels, scores, _, _ = _overconfident(num_rows=200)
    bins = np.array_split(np.argsort(scores), 10)
    expected = np.mean([abs(labels[rows].mean() - scores[rows].mean()) for rows in bins])
    assert ours.ece(labels, scores) == pytest.approx(expected)
    curve = ours.reliability_curve(labels, scores)
    np.testing.assert_allclose(curve.mean_score, [scores[rows].mean() for rows in bins])
    np.testing.assert_allclose(curve.observed_rate, [labels[rows].mean() for rows in bins])
    assert curve.weight.tolist() == [20] * 10


def test_equal_scores_share_a_bin_and_weights_are_repeated_rows():
    labels, scores, _, weights = _overconfident(num_rows=90)
    scores = np.round(scores, 1)
    rows = np.repeat(np.arange(90), weights.astype(int))
    shuffled = np.random.default_rng(1).permutation(rows)
    assert ours.ece(labels, scores, weights) == pytest.approx(ours.ece(labels[shuffled], scores[shuffled]))
    constant = ours.reliability_curve(labels, np.full(90, 0.3))
    assert constant.weight.tolist() == [90] and constant.observed_rate[0] == pytest.approx(labels.mean())
