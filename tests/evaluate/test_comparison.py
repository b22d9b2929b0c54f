"""The model against the best baseline: chosen on val, paired on test."""

import numpy as np
import pytest

from ehrjax.evaluate.comparison import best_baseline, difference_to
from ehrjax.metrics import evaluate


def _scores(labels, strength, seed):
    rng = np.random.default_rng(seed)
    return 1 / (1 + np.exp(-(strength * (labels - 0.5) + rng.normal(size=labels.shape))))


@pytest.fixture
def binary():
    labels = np.random.default_rng(0).integers(0, 2, (300, 1)).astype(float)
    return labels, {name: _scores(labels, s, k) for k, (name, s) in enumerate({"weak": 0.5, "strong": 2.0}.items())}


def test_the_best_on_val_is_chosen_also_for_losses(binary):
    labels, scores = binary
    assert best_baseline("binary", labels, scores) == "strong"
    values = {"near": labels + 0.1, "far": labels + 3.0}
    assert best_baseline("regression", labels, values) == "near"
    many = {name: np.hstack([column, column]) for name, column in scores.items()}
    assert best_baseline("multilabel", np.hstack([labels, labels]), many) == "strong"
    classes = {name: np.hstack([1 - column, column]) for name, column in scores.items()}
    assert best_baseline("multiclass", labels.astype(int), classes) == "strong"


def test_masked_rows_do_not_choose(binary):
    labels, _ = binary
    mask = np.zeros(labels.shape, bool)
    mask[:20] = True
    misled = {"weak": np.where(mask, labels, 0.5), "strong": np.where(mask, 0.5, labels)}
    assert best_baseline("binary", labels, misled, mask) == "weak"


def test_no_baseline_no_row_and_one_class(binary):
    labels, scores = binary
    assert best_baseline("binary", labels, {}) is None
    assert best_baseline("binary", labels, scores, np.zeros(labels.shape, bool)) is None
    # One class has no AUROC: the log loss decides.
    one_class = {"low": np.full(labels.shape, 0.1), "high": np.full(labels.shape, 0.9)}
    assert best_baseline("binary", np.ones(labels.shape), one_class) == "high"


def test_difference_is_that_of_the_figures_and_its_interval_is_paired(binary):
    labels, scores = binary
    subjects = np.repeat(np.arange(100), 3)
    found = difference_to("binary", labels, scores["strong"], "weak", scores["weak"], subjects, num_resamples=200)
    figures = {name: evaluate("binary", labels, s, None, subjects, num_resamples=0) for name, s in scores.items()}
    for metric, row in found.items():
        assert row["value"] == pytest.approx(figures["strong"][metric]["value"] - figures["weak"][metric]["value"])
        assert row["low"] <= row["value"] <= row["high"] and row["baseline"] == "weak"
    assert set(found) == {"auroc", "auprc", "brier", "log_loss", "ece"}
    assert found["auroc"]["low"] > 0 and found["brier"]["high"] < 0
    same = difference_to("binary", labels, scores["weak"], "weak", scores["weak"], subjects, num_resamples=50)
    assert all(row["value"] == row["low"] == row["high"] == 0 for row in same.values())


def test_one_class_on_test_is_none_not_a_number(binary):
    _, scores = binary
    found = difference_to(
        "binary", np.ones((300, 1)), scores["strong"], "weak", scores["weak"], np.arange(300), num_resamples=20
    )
    assert found["auroc"] == {"value": None, "low": None, "high": None, "baseline": "weak"}
    assert found["brier"]["value"] is not None


def test_classes_are_compared_by_accuracy_too(binary):
    labels, scores = binary
    classes = {name: np.hstack([1 - column, column]) for name, column in scores.items()}
    found = difference_to(
        "multiclass", labels.astype(int), classes["strong"], "weak", classes["weak"], np.arange(300), num_resamples=50
    )
    assert found["accuracy"]["value"] > 0 and {"macro_auroc", "macro_f1", "log_loss"} <= set(found)
