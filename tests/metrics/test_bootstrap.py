"""The patient-level bootstrap: degenerate sets, equality with explicit resampling, coverage, pairing."""

import numpy as np
import pytest

from ehrjax.metrics import Interval, evaluate, paired_difference
from ehrjax.metrics.bootstrap import bootstrap, resample_weights
from ehrjax.metrics.calibration import ece
from ehrjax.metrics.classification import auprc, auroc, brier


def _rows(num_subjects=30, rows_each=3, seed=0):
    rng = np.random.default_rng(seed)
    subject_ids = np.repeat(rng.permutation(num_subjects) + 7, rows_each)
    labels = rng.integers(0, 2, num_subjects * rows_each)
    return labels, np.clip(0.4 * labels + rng.random(len(labels)) * 0.6, 0, 1), subject_ids


def test_no_rows():
    interval = bootstrap({"auroc": auroc}, [], [], [])["auroc"]
    assert np.isnan(interval[:3]).all() and interval.num_undefined == 0


def test_single_class_set_is_undefined_with_all_resamples_counted():
    interval = bootstrap({"auroc": auroc}, [1, 1, 1], [0.1, 0.2, 0.3], [1, 2, 3], num_resamples=20)["auroc"]
    assert np.isnan(interval[:3]).all() and interval.num_undefined == 20


def test_single_class_resamples_are_dropped_and_counted():
    labels, scores = np.array([1, 0, 0, 0]), np.array([0.9, 0.1, 0.95, 0.3])
    interval = bootstrap({"auroc": auroc}, labels, scores, np.arange(4), num_resamples=400)["auroc"]
    # A resample lacks the only positive with chance (3/4)^4, or is nothing but it with (1/4)^4.
    assert interval.num_undefined / 400 == pytest.approx(0.75**4 + 0.25**4, abs=0.07)
    assert 0 <= interval.low <= interval.value <= interval.high <= 1


def test_a_single_subject_has_an_interval_of_no_width():
    interval = bootstrap({"brier": brier}, [0, 1], [0.2, 0.4], [5, 5], num_resamples=10)["brier"]
    assert interval.low == pytest.approx(interval.value) and interval.high == pytest.approx(interval.value)


def test_unequal_lengths_are_refused():
    with pytest.raises(ValueError, match=r"\[2, 2, 3\] rows"):
        bootstrap({"auroc": auroc}, [0, 1], [0.1, 0.2], [1, 2, 3])


def test_all_rows_of_a_subject_come_together_and_subjects_sum_up():
    _, _, subject_ids = _rows()
    weights = np.concatenate(list(resample_weights(subject_ids, num_resamples=50, seed=1)), axis=1).T
    assert weights.shape == (50, 90)
    for subject in np.unique(subject_ids):
        columns = weights[:, subject_ids == subject]
        assert (columns == columns[:, :1]).all()
    assert (weights.sum(axis=1) == 90).all()
    assert weights.mean() == pytest.approx(1.0) and weights.std() == pytest.approx(1.0, abs=0.1)


def test_equals_explicit_resampling():
    labels, scores, subject_ids = _rows()
    metrics = {"auroc": auroc, "auprc": auprc, "brier": brier}
    intervals = bootstrap(metrics, labels, scores, subject_ids, num_resamples=100, seed=3)
    weights = np.concatenate(list(resample_weights(subject_ids, num_resamples=100, seed=3)), axis=1).T.astype(int)
    for name, metric in metrics.items():
        values = np.array([metric(np.repeat(labels, row), np.repeat(scores, row)) for row in weights])
        if name == "auprc":  # its resamples are shifted to have the value as their mean
            values += metric(labels, scores) - values.mean()
        expected = [metric(labels, scores), *np.quantile(values, [0.025, 0.975])]
        np.testing.assert_allclose(intervals[name][:3], expected)


def test_same_seed_same_intervals_and_any_callable_is_a_metric():
    labels, scores, subject_ids = _rows()

    def mean_score(labels, scores, weights):
        return weights @ scores / weights.sum(axis=1)

    first, second = (bootstrap({"m": mean_score}, labels, scores, subject_ids, num_resamples=50) for _ in range(2))
    assert first == second
    assert first["m"].low < scores.mean() < first["m"].high


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    rng = np.random.default_rng(0)
    num_subjects, num_sets, covered = 80, 150, 0
    for _ in range(num_sets):
        # Four rows a subject share the subject's rate: treating rows as independent would cover far less.
        rates = np.repeat(rng.beta(0.5, 0.5, num_subjects), 4)
        labels = (rng.random(num_subjects * 4) < rates).astype(int)
        scores = np.full(len(labels), 0.0)
        interval = bootstrap(
            {"brier": brier}, labels, scores, np.repeat(np.arange(num_subjects), 4), num_resamples=200
        )["brier"]
        covered += interval.low <= 0.5 <= interval.high
    assert 0.88 <= covered / num_sets <= 0.99


def test_intervals_of_metrics_that_shift_under_resampling_hold_their_value():
    rng = np.random.default_rng(0)
    scores = 0.02 * rng.random(600)
    labels = rng.random(600) < scores
    for metric in (ece, auprc):
        interval = bootstrap({"m": metric}, labels, scores, np.arange(600), num_resamples=200)["m"]
        assert 0 <= interval.low < interval.value < interval.high <= 1


def test_paired_difference_is_narrower_than_its_parts():
    labels, scores, subject_ids = _rows(num_subjects=100)
    other = np.clip(scores + 0.02 * np.sin(np.arange(len(scores))), 0, 1)
    metrics = {"auroc": auroc}
    alone = bootstrap(metrics, labels, scores, subject_ids, num_resamples=200)["auroc"]
    difference = paired_difference(metrics, labels, scores, other, subject_ids, num_resamples=200)["auroc"]
    assert difference.value == pytest.approx(auroc(labels, scores) - auroc(labels, other))
    assert difference.high - difference.low < 0.3 * (alone.high - alone.low)
    same = paired_difference(metrics, labels, scores, scores, subject_ids, num_resamples=20)["auroc"]
    assert same == Interval(0.0, 0.0, 0.0, 0)


def test_many_resamples_come_in_blocks_of_bounded_memory():
    blocks = list(resample_weights(np.arange(100_000), num_resamples=6))
    assert [block.shape for block in blocks] == [(100_000, 4), (100_000, 2)]
    assert evaluate("binary", [0, 1], [0.1, 0.9], None, [1, 2], num_resamples=0)["auroc"]["value"] == 1.0
