"""Regression metrics: constants and single rows first, then scikit-learn and scipy."""

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sk

from ehrjax.metrics import regression as ours

METRICS = (ours.mae, ours.rmse, ours.r2, ours.spearman)


@pytest.mark.parametrize("metric", METRICS)
def test_no_rows_is_nan(metric):
    assert np.isnan(metric([], []))


def test_constants_have_no_correlation():
    assert np.isnan(ours.r2([2.1, 2.1, 2.1], [1, 2, 3]))
    assert np.isnan(ours.spearman([2.1, 2.1, 2.1], [1, 2, 3]))
    assert np.isnan(ours.spearman([1, 2, 3], [0.1, 0.1, 0.1]))
    # Constant under these weights only.
    assert np.isnan(ours.r2([5.3, 5.3, 1e6], [1, 2, 3], [1, 3, 0]))
    assert np.isnan(ours.spearman([5.3, 5.3, 1e6], [1, 2, 3], [1, 3, 0]))


def test_nan_label_is_named():
    with pytest.raises(ValueError, match="labels hold a non-finite value in row 1"):
        ours.mae([1, np.nan], [1, 2])


@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_agrees_with_scikit_learn_and_scipy(offset):
    rng = np.random.default_rng(0)
    labels = np.round(rng.normal(size=80), 1) + offset
    scores = np.round(labels + rng.normal(size=80), 1)
    weights = rng.integers(0, 4, 80)
    rows = np.repeat(np.arange(80), weights)
    expected = {
        ours.mae: sk.mean_absolute_error(labels, scores, sample_weight=weights),
        ours.rmse: sk.root_mean_squared_error(labels, scores, sample_weight=weights),
        ours.r2: sk.r2_score(labels, scores, sample_weight=weights),
        ours.spearman: stats.spearmanr(labels[rows], scores[rows]).statistic,
    }
    for metric, value in expected.items():
        both = metric(labels, scores, np.stack([weights, np.ones(80)]))
        np.testing.assert_allclose(both, [value, metric(labels, scores)], rtol=1e-6)
