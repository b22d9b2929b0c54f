"""Multi-class, multi-label and top-k metrics: missing classes and labels first, then scikit-learn."""

import numpy as np
import pytest
from sklearn import metrics as sk

from ehrjax.metrics import multioutput as ours
from ehrjax.metrics import ranking
from ehrjax.metrics.calibration import ece

MULTICLASS = [getattr(ours, name) for name in dir(ours) if name.startswith("multiclass_")] + [ours.top_k_accuracy]
MULTILABEL = [ours.macro_auroc, ours.micro_auroc, ours.macro_auprc, ours.multilabel_brier, ours.macro_f1, ours.micro_f1]
AT_K = [ranking.recall_at_k, ranking.precision_at_k]


@pytest.fixture
def classes():
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 4, 50)
    scores = rng.dirichlet(np.ones(4), 50)
    return labels, scores, rng.integers(0, 3, 50).astype(float)


@pytest.fixture
def indicators():
    rng = np.random.default_rng(2)
    labels = (rng.random((50, 6)) < 0.3).astype(float)
    return labels, np.round(rng.random((50, 6)), 1), rng.integers(0, 3, 50).astype(float)


@pytest.mark.parametrize("metric", MULTICLASS)
def test_no_rows_of_classes(metric):
    assert np.isnan(metric(np.zeros(0, int), np.zeros((0, 3))))


@pytest.mark.parametrize("metric", MULTILABEL + AT_K)
def test_no_rows_or_no_known_label(metric):
    assert np.isnan(metric(np.zeros((0, 3)), np.zeros((0, 3))))
    assert np.isnan(metric(np.full((2, 3), np.nan), np.zeros((2, 3))))


def test_absent_class_is_left_out_of_the_macro_average(classes):
    labels, scores, _ = classes
    labels = np.minimum(labels, 2)
    expected = np.mean([sk.roc_auc_score(labels == k, scores[:, k]) for k in range(3)])
    assert ours.multiclass_macro_auroc(labels, scores) == pytest.approx(expected)


def test_only_one_class_has_no_auroc():
    assert np.isnan(ours.multiclass_macro_auroc([1, 1], [[0.4, 0.6], [0.5, 0.5]]))


def test_bad_labels_are_named():
    with pytest.raises(ValueError, match="label 4 in row 1 is not a class number below 2"):
        ours.multiclass_accuracy([0, 4], [[0.5, 0.5], [0.5, 0.5]])
    with pytest.raises(ValueError, match="label 2 in row 0, column 1"):
        ours.macro_auroc([[0, 2]], [[0.5, 0.5]])
    with pytest.raises(ValueError, match="row 0, column 1 is not finite"):
        ours.macro_auroc([[0, 1]], [[0.5, np.inf]])
    with pytest.raises(ValueError, match="k=0"):
        ranking.recall_at_k([[0, 1]], [[0.5, 0.1]], k=0)


def test_multiclass_agrees_with_scikit_learn(classes):
    labels, scores, weights = classes
    one_hot = ours.one_hot(labels, 4)
    decided = scores.argmax(axis=1)
    options = {"sample_weight": weights}
    expected = {
        ours.multiclass_accuracy: sk.accuracy_score(labels, decided, **options),
        ours.top_k_accuracy: sk.top_k_accuracy_score(labels, scores, k=3, **options),
        ours.multiclass_log_loss: sk.log_loss(labels, scores, **options),
        ours.multiclass_brier: np.average(((scores - one_hot) ** 2).sum(axis=1), weights=weights),
        ours.multiclass_macro_auroc: np.mean(
            [sk.roc_auc_score(one_hot[:, k], scores[:, k], **options) for k in range(4)]
        ),
        ours.multiclass_micro_auroc: sk.roc_auc_score(one_hot.ravel(), scores.ravel(), sample_weight=weights.repeat(4)),
        ours.multiclass_macro_f1: sk.f1_score(labels, decided, average="macro", **options),
        ours.multiclass_ece: ece(labels == decided, scores.max(axis=1), weights),
    }
    for metric, value in expected.items():
        assert metric(labels[:, None], scores, weights) == pytest.approx(value), metric.__name__


def test_multilabel_agrees_with_scikit_learn(indicators):
    labels, scores, weights = indicators
    decided = (scores >= 0.5).astype(int)
    options = {"sample_weight": weights}
    expected = {
        ours.macro_auroc: sk.roc_auc_score(labels, scores, average="macro", **options),
        ours.micro_auroc: sk.roc_auc_score(labels, scores, average="micro", **options),
        ours.macro_auprc: sk.average_precision_score(labels, scores, average="macro", **options),
        ours.macro_f1: sk.f1_score(labels, decided, average="macro", **options),
        ours.micro_f1: sk.f1_score(labels, decided, average="micro", **options),
        ours.multilabel_brier: np.average(((scores - labels) ** 2).mean(axis=1), weights=weights),
    }
    for metric, value in expected.items():
        assert metric(labels, scores, weights) == pytest.approx(value), metric.__name__


@pytest.mark.parametrize("metric", MULTILABEL)
def test_unknown_labels_do_not_count(metric, indicators):
    labels, scores, weights = indicators
    labels[::3, 1] = np.nan
    changed = np.where(np.isnan(labels), 1 - scores, scores)
    values = metric(labels, scores, np.stack([weights, weights + 1]))
    np.testing.assert_allclose(metric(labels, changed, np.stack([weights, weights + 1])), values)
    assert np.isfinite(values).all()


@pytest.mark.parametrize("metric", [*MULTILABEL, *AT_K])
def test_whole_weights_are_repeated_rows(metric, indicators):
    labels, scores, weights = indicators
    rows = np.repeat(np.arange(len(labels)), weights.astype(int))
    assert metric(labels, scores, weights) == pytest.approx(metric(labels[rows], scores[rows]))


def test_recall_and_precision_at_k_by_hand():
    labels = [[1, 0, 1, 0], [0, 0, 0, 0], [np.nan, 1, 1, 1]]
    scores = [[0.9, 0.8, 0.1, 0.0], [0.1, 0.2, 0.3, 0.4], [0.9, 0.5, 0.5, 0.5]]
    assert ranking.recall_at_k(labels, scores, k=2) == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert ranking.precision_at_k(labels, scores, k=2) == pytest.approx((1 / 2 + 0 + 1) / 3)
    assert ranking.precision_at_k(labels, scores, k=4) == pytest.approx((2 / 4 + 0 + 3 / 3) / 3)
