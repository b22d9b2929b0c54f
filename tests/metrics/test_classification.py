"""Binary metrics: undefined cases, then agreement with scikit-learn under ties, weights and constant scores."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from ehrjax.metrics import classification as ours

RANKED = (ours.auroc, ours.auprc)
AT_THRESHOLD = (ours.accuracy, ours.precision, ours.recall, ours.specificity, ours.f1)
PROPER = (ours.brier, ours.log_loss)


@pytest.mark.parametrize("metric", RANKED + AT_THRESHOLD + PROPER)
def test_no_rows_is_nan(metric):
    assert np.isnan(metric([], []))


@pytest.mark.parametrize("label", [0, 1])
def test_single_class_has_no_auroc(label):
    assert np.isnan(ours.auroc([label] * 3, [0.1, 0.2, 0.3]))


def test_undefined_ratios_are_nan():
    assert np.isnan(ours.auprc([0, 0], [0.1, 0.9]))
    assert np.isnan(ours.recall([0, 0], [0.1, 0.9]))
    assert np.isnan(ours.specificity([1, 1], [0.1, 0.9]))
    assert np.isnan(ours.precision([0, 1], [0.1, 0.2]))
    assert np.isnan(ours.f1([0, 0], [0.1, 0.2]))
    assert ours.f1([0, 1], [0.1, 0.2]) == 0.0


def test_constant_scores_are_chance():
    assert ours.auroc([0, 1, 1], [0.3] * 3) == 0.5
    assert ours.auprc([0, 1, 1], [0.3] * 3) == pytest.approx(2 / 3)


def test_weight_zero_everywhere_is_nan():
    assert np.isnan(ours.brier([0, 1], [0.1, 0.9], np.zeros(2)))


@pytest.mark.parametrize(
    ("labels", "scores", "weights", "match"),
    [
        ([0, 2], [0.1, 0.2], None, "label 2 in row 1"),
        ([0, 1], [0.1, np.nan], None, "non-finite value in row 1"),
        ([0, 1], [0.1], None, "one score a label"),
        ([0, 1], [0.1, 0.2], np.ones(3), "weights have shape"),
    ],
)
def test_bad_input_is_named(labels, scores, weights, match):
    with pytest.raises(ValueError, match=match):
        ours.auroc(labels, scores, weights)


def test_proper_scores_refuse_what_is_no_probability():
    with pytest.raises(ValueError, match=r"score 1.5 in row 1"):
        ours.brier([0, 1], [0.5, 1.5])


@st.composite
def two_class_rows(draw):
    """Rows with both classes, few distinct scores (hence ties) and small whole weights."""
    num_rows = draw(st.integers(2, 40))
    labels = draw(st.lists(st.integers(0, 1), min_size=num_rows, max_size=num_rows))
    labels[0], labels[1] = 0, 1
    levels = draw(st.integers(1, 12))
    scores = draw(st.lists(st.integers(0, levels), min_size=num_rows, max_size=num_rows))
    weights = draw(st.lists(st.integers(0, 3), min_size=num_rows, max_size=num_rows))
    weights[0], weights[1] = 1, 2
    return np.array(labels), np.array(scores) / max(levels, 1), np.array(weights, float)


@settings(max_examples=60, deadline=None)
@given(two_class_rows())
def test_agrees_with_scikit_learn(rows):
    labels, scores, weights = rows
    decided = scores >= 0.4
    undefined = {"zero_division": np.nan}
    expected = {
        ours.auroc: sk.roc_auc_score(labels, scores, sample_weight=weights),
        ours.auprc: sk.average_precision_score(labels, scores, sample_weight=weights),
        ours.brier: sk.brier_score_loss(labels, scores, sample_weight=weights),
        ours.log_loss: sk.log_loss(labels, scores, sample_weight=weights),
    }
    expected_at_threshold = {
        ours.accuracy: sk.accuracy_score(labels, decided, sample_weight=weights),
        ours.precision: sk.precision_score(labels, decided, sample_weight=weights, **undefined),
        ours.recall: sk.recall_score(labels, decided, sample_weight=weights),
        ours.specificity: sk.recall_score(labels, decided, sample_weight=weights, pos_label=0),
        ours.f1: sk.f1_score(labels, decided, sample_weight=weights, **undefined),
    }
    for metric, value in expected.items():
        np.testing.assert_allclose(metric(labels, scores, weights), value, rtol=1e-9, atol=1e-12)
    for metric, value in expected_at_threshold.items():
        np.testing.assert_allclose(metric(labels, scores, weights, threshold=0.4), value, rtol=1e-9, atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(two_class_rows())
def test_whole_weights_are_repeated_rows_and_rows_of_weights_are_separate(rows):
    labels, scores, weights = rows
    repeated = np.repeat(np.arange(len(labels)), weights.astype(int))
    for metric in RANKED + AT_THRESHOLD + PROPER:
        both = metric(labels, scores, np.stack([weights, np.ones_like(weights)]))
        expected = [metric(labels[repeated], scores[repeated]), metric(labels, scores)]
        np.testing.assert_allclose(both, expected, rtol=1e-9, atol=1e-12)


def test_log_loss_clips_by_the_scores_precision():
    labels, scores = np.array([0, 1]), np.array([1.0, 0.5], np.float32)
    assert ours.log_loss(labels, scores) == pytest.approx(sk.log_loss(labels, scores), rel=1e-6)


def test_best_f1_threshold_beats_every_other():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 60)
    scores = np.round(rng.random(60) * 0.7 + 0.3 * labels, 2)
    best = ours.f1(labels, scores, threshold=ours.best_f1_threshold(labels, scores))
    assert best == max(ours.f1(labels, scores, threshold=t) for t in np.unique(scores))


def test_best_f1_threshold_without_a_positive_or_rows():
    assert ours.best_f1_threshold([0, 0], [0.1, 0.2]) == 0.5
    assert ours.best_f1_threshold([], []) == 0.5
    assert ours.best_f1_threshold([1], [0.2]) == 0.2


def test_event1_is_the_lesser_of_sensitivity_and_precision():
    labels, scores = np.array([1, 1, 1, 0, 0]), np.array([0.9, 0.6, 0.2, 0.7, 0.1])
    for threshold in (0.05, 0.5, 0.65, 0.8):
        both = ours.recall(labels, scores, threshold=threshold), ours.precision(labels, scores, threshold=threshold)
        assert ours.event1(labels, scores, threshold=threshold) == pytest.approx(min(both))


def test_event1_of_odd_rows():
    assert np.isnan(ours.event1([0, 0], [0.1, 0.9])) and np.isnan(ours.event1([], []))
    assert ours.event1([0, 1], [0.1, 0.2]) == 0.0, "nothing is predicted positive"


def test_the_event1_threshold_finds_as_many_as_there_are():
    rng = np.random.default_rng(0)
    scores = rng.random(400)
    labels = (rng.random(400) < scores).astype(int)
    best = ours.best_event1_threshold(labels, scores)
    every = [ours.event1(labels, scores, threshold=threshold) for threshold in scores]
    assert ours.event1(labels, scores, threshold=best) == pytest.approx(max(every))
    assert ours.best_event1_threshold([0, 0], [0.1, 0.2]) == 0.5
