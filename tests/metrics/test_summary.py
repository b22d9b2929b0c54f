"""The results table of each kind: nulls with reasons, masks, thresholds, JSON."""

import json

import numpy as np
import pytest

from ehrjax.metrics import best_threshold, classification, evaluate, metrics_for, multioutput
from ehrjax.metrics.summary import Horizons
from ehrjax.metrics.survival import concordance


def test_single_class_gives_null_with_a_reason():
    table = evaluate("binary", [0, 0, 0], [0.1, 0.2, 0.3], None, [1, 2, 3], num_resamples=10)
    assert table["auroc"]["value"] is None and "only 0 among 3 labels: both" in table["auroc"]["reason"]
    assert table["brier"]["value"] == pytest.approx(0.14 / 3) and "reason" not in table["brier"]


def test_constant_scores_have_no_slope():
    table = evaluate("binary", [0, 1, 0], [0.3] * 3, None, [1, 2, 3], num_resamples=10)
    assert table["calibration_slope"] == {
        "value": None,
        "low": None,
        "high": None,
        "reason": "the scores are the same for every row",
    }
    assert table["auroc"]["value"] == 0.5


def test_everything_masked():
    for kind, outputs in (("binary", 1), ("regression", 1), ("multilabel", 2), ("multiclass", 1)):
        zeros = np.zeros((3, outputs))
        scores = np.full((3, 4), 0.25) if kind == "multiclass" else zeros
        table = evaluate(kind, zeros, scores, np.zeros((3, outputs), bool), [1, 2, 3], num_resamples=5)
        assert {row["reason"] for row in table.values()} == {"no row has a known label"}


def test_unknown_kind_and_wrong_mask_are_refused():
    with pytest.raises(ValueError, match="kind='ordinal' is unknown: use one of binary"):
        metrics_for("ordinal")
    with pytest.raises(ValueError, match="need the horizons"):
        metrics_for("survival")
    with pytest.raises(ValueError, match="mask has shape"):
        evaluate("binary", [0, 1], [0.1, 0.2], [True], [1, 2])


@pytest.mark.parametrize("kind", ["binary", "multiclass", "multilabel", "regression"])
def test_table_is_json_with_ordered_intervals(kind):
    rng = np.random.default_rng(0)
    subject_ids = np.repeat(np.arange(40), 2)
    num_outputs = {"binary": 1, "regression": 1}.get(kind, 12)
    scores = rng.dirichlet(np.ones(12), 80)[:, :num_outputs].astype(np.float32)
    labels = rng.integers(0, 2, (80, 1 if kind == "multiclass" else num_outputs)).astype(np.float32)
    table = evaluate(kind, labels, scores, labels >= 0, subject_ids, num_resamples=50, threshold=0.1)
    assert set(table) == set(metrics_for(kind, num_outputs=num_outputs))
    for name, row in json.loads(json.dumps(table)).items():
        assert row["low"] <= row["value"] <= row["high"], name


def test_masked_rows_and_entries_do_not_count():
    rng = np.random.default_rng(0)
    labels, scores = rng.integers(0, 2, (50, 6)).astype(float), rng.random((50, 6))
    mask = rng.random((50, 6)) < 0.7
    first = evaluate("multilabel", labels, scores, mask, np.arange(50), num_resamples=5)
    labels[~mask] = 9
    assert evaluate("multilabel", labels, scores, mask, np.arange(50), num_resamples=5) == first
    one = evaluate("binary", labels[:, :1], scores[:, :1], mask[:, :1], np.arange(50), num_resamples=5)
    keep = mask[:, 0]
    assert one["auroc"]["value"] == classification.auroc(labels[keep, 0], scores[keep, 0])


def test_top_k_that_covers_every_output_is_left_out():
    assert "recall_at_5" in metrics_for("multilabel", num_outputs=6)
    assert "recall_at_5" not in metrics_for("multilabel", num_outputs=5)
    assert "top3_accuracy" not in metrics_for("multiclass", num_outputs=3)


def test_threshold_is_chosen_on_known_entries():
    labels, scores = np.array([[0.0, 1.0], [1.0, 7.0]]), np.array([[0.2, 0.6], [0.8, 0.1]])
    mask = np.array([[True, True], [True, False]])
    threshold = best_threshold("multilabel", labels, scores, mask)
    assert 0.2 < threshold < 0.6
    table = evaluate("multilabel", labels, scores, mask, [1, 2], num_resamples=0, threshold=threshold)
    assert table["micro_f1"]["value"] == 1.0
    assert table["micro_f1"]["low"] is None
    assert best_threshold("regression", labels, scores) == 0.5
    assert multioutput.micro_f1(np.where(mask, labels, np.nan), scores, threshold=threshold) == 1.0


def test_survival_judges_each_cause_by_its_own_columns():
    rng = np.random.default_rng(0)
    labels = np.stack([rng.integers(1, 30, 200), rng.integers(0, 3, 200)], axis=1).astype(np.float32)
    horizons = Horizons(("relapse", "death"), (10.0, 20.0))
    scores = np.full((200, 4), 0.3)
    scores[:, 2:] = np.where(labels[:, 1:] == 2, 0.9, 0.1)  # knows who dies, nothing of relapse
    mask = np.ones(labels.shape, bool)
    mask[:20, 1] = False
    table = evaluate("survival", labels, scores, mask, np.arange(200), num_resamples=20, horizons=horizons)
    assert table["c_index"]["value"] == 0.5 and table["c_index_death"]["value"] > 0.8
    assert {"brier_10d", "brier_20d_death", "mean_auc", "integrated_brier_death"} <= set(table)
    alone = concordance(labels[20:], scores[20:, 2:], cause=2)
    assert table["c_index_death"]["value"] == alone
    labels[:, 1] = 0
    table = evaluate("survival", labels, scores, None, np.arange(200), num_resamples=5, horizons=horizons)
    assert table["c_index"]["value"] is None and "200 rows with 0 events" in table["c_index"]["reason"]


def test_event1_has_a_threshold_of_its_own():
    labels, scores = [0, 1, 0, 1], [0.1, 0.2, 0.3, 0.9]
    table = evaluate(
        "binary", labels, scores, None, [1, 2, 3, 4], num_resamples=5, threshold=0.5, event1_threshold=0.15
    )
    assert table["event1"]["value"] == pytest.approx(2 / 3)
    assert table["precision"]["value"] == 1.0
    table = evaluate("binary", labels, scores, None, [1, 2, 3, 4], num_resamples=5, threshold=0.5)
    assert table["event1"]["value"] == 0.5
