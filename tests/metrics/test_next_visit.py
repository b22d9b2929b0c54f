"""Metrics of next-visit prediction: no rows, ties, equality with plain loops, `ranking` and resampling."""

import numpy as np
import pytest

from ehrjax.metrics import ranking
from ehrjax.metrics.bootstrap import resample_weights
from ehrjax.metrics.next_visit import NextVisitChunk, best_f1_threshold, evaluate_next_visit, metric_names

NUM_CODES = 30
TYPES = ["other"] * 5 + ["diagnosis", "lab", "medication"] * 8 + ["vital"]


def _rows(num_rows=40, num_patients=9, seed=0, levels=12):
    """Scores with many ties, of both signs."""
    rng = np.random.default_rng(seed)
    scores = (rng.integers(-3, levels, (num_rows, NUM_CODES)) / levels).astype(np.float32)
    targets = rng.random((num_rows, NUM_CODES)) < 0.04 + 0.2 * (scores > 0.6)
    targets[:, :5] = False
    targets[np.arange(num_rows), rng.integers(5, NUM_CODES, num_rows)] = True
    history = rng.random((num_rows, NUM_CODES)) < 0.4
    history[:, :5] = False
    history[0] = False
    return NextVisitChunk(scores, targets, history, np.sort(rng.integers(0, num_patients, num_rows)) * 2 + 5)


def _in_chunks(rows, size=7, seed=0):
    """The rows in another order and in chunks."""
    order = np.random.default_rng(seed).permutation(len(rows.scores))
    for first in range(0, len(order), size):
        yield NextVisitChunk(*(np.asarray(x)[order[first : first + size]] for x in rows))


def _at_k_by_loops(rows, k, candidates):
    """Mean recall and precision at k by plain loops; `candidates` [n, G]."""
    recalls, precisions = [], []
    for score, target, allowed in zip(rows.scores, rows.targets, candidates, strict=True):
        columns = [c for c in range(5, NUM_CODES) if allowed[c]]
        top = sorted(columns, key=lambda c: (-score[c], c))[:k]
        num_true = sum(target[c] for c in columns)
        hits = sum(target[c] for c in top)
        if num_true:
            recalls.append(hits / num_true)
        if columns:
            precisions.append(hits / min(k, len(columns)))
    return np.mean(recalls), np.mean(precisions)


def _f1s_by_loops(rows, threshold):
    """Micro-F1, and macro-F1 over the codes that occur."""
    tp, pred, true = np.zeros(NUM_CODES), np.zeros(NUM_CODES), np.zeros(NUM_CODES)
    for score, target in zip(rows.scores, rows.targets, strict=True):
        for c in range(5, NUM_CODES):
            tp[c] += target[c] and score[c] >= threshold
            pred[c] += score[c] >= threshold
            true[c] += target[c]
    macro = [2 * tp[c] / (pred[c] + true[c]) for c in range(NUM_CODES) if true[c]]
    return 2 * tp.sum() / (pred.sum() + true.sum()), np.mean(macro)


def test_no_rows():
    nothing = NextVisitChunk(*(np.zeros((0, NUM_CODES), kind) for kind in (np.float32, bool, bool)), np.zeros(0, int))
    for chunks in ([], [nothing]):
        table = evaluate_next_visit(chunks, threshold=0.5, types=TYPES, num_resamples=10)
        assert list(table) == metric_names(TYPES)
        for row in table.values():
            assert row == {"value": None, "low": None, "high": None, "reason": "no visit to predict has such a code"}
    assert best_f1_threshold([]) == best_f1_threshold([nothing]) == 0.5


def test_an_empty_chunk_among_others_changes_nothing():
    rows = _rows()
    nothing = NextVisitChunk(*(np.asarray(x)[:0] for x in rows))
    alone, both = (evaluate_next_visit(c, threshold=0.4, num_resamples=20) for c in ([rows], [nothing, rows, nothing]))
    assert alone == both


def test_names_and_undefined_subsets():
    rows = _rows()
    table = evaluate_next_visit(
        [rows._replace(history=np.zeros_like(rows.history))], threshold=2.0, types=TYPES, num_resamples=5
    )
    assert list(table) == metric_names(TYPES)
    assert {"next_visit_recall_at_10", "next_visit_precision_at_10_new", "next_visit_recall_at_10_lab"} <= set(table)
    assert table["next_visit_recall_at_10_recurrent"]["value"] is None  # nothing was seen before
    assert table["next_visit_precision_at_10_recurrent"]["reason"] == "no visit to predict has such a code"
    assert table["next_visit_recall_at_10_new"] == table["next_visit_recall_at_10"]
    assert table["next_visit_f1"]["value"] == table["next_visit_macro_f1"]["value"] == 0.0  # nothing is predicted


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_equals_plain_loops_whatever_the_chunks(seed):
    rows = _rows(seed=seed)
    everything = np.ones_like(rows.targets)
    candidates = {"": everything, "_new": ~rows.history, "_recurrent": rows.history}
    for name in ("diagnosis", "lab", "medication", "vital"):
        candidates[f"_{name}"] = everything & (np.array(TYPES) == name)
    table = evaluate_next_visit(_in_chunks(rows, seed=seed), threshold=0.5, types=TYPES, num_resamples=0)
    for suffix, allowed in candidates.items():
        for k in (5, 10, 20) if suffix == "" else (10,):
            values = [table[f"next_visit_{name}_at_{k}{suffix}"]["value"] for name in ("recall", "precision")]
            assert values == pytest.approx(_at_k_by_loops(rows, k, allowed)), (suffix, k)
    f1s = [table["next_visit_f1"]["value"], table["next_visit_macro_f1"]["value"]]
    assert f1s == pytest.approx(_f1s_by_loops(rows, 0.5))


def test_equals_the_ranking_metrics_with_other_codes_unknown():
    rows = _rows()
    labels = np.where(rows.history, rows.targets, np.nan)
    labels[:, :5] = np.nan
    table = evaluate_next_visit([rows], threshold=0.5, num_resamples=0)
    assert table["next_visit_recall_at_10_recurrent"]["value"] == pytest.approx(
        ranking.recall_at_k(labels, rows.scores)
    )
    precision = ranking.precision_at_k(labels, rows.scores)
    assert table["next_visit_precision_at_10_recurrent"]["value"] == pytest.approx(precision)


def test_intervals_equal_explicit_resampling_of_patients():
    rows = _rows(num_rows=60)
    table = evaluate_next_visit(_in_chunks(rows), threshold=0.5, num_resamples=40, seed=2)
    distinct = np.unique(rows.patients)
    drawn = np.concatenate(list(resample_weights(distinct, num_resamples=40, seed=2)), axis=1).T.astype(int)
    resampled = []
    for counts in drawn:
        chosen = np.concatenate([np.flatnonzero(rows.patients == p) for p in np.repeat(distinct, counts)])
        sample = NextVisitChunk(*(np.asarray(x)[chosen] for x in rows))
        resampled.append([*_f1s_by_loops(sample, 0.5), _at_k_by_loops(sample, 10, ~sample.history)[0]])
    resampled = np.array(resampled)
    resampled[:, 1] += table["next_visit_macro_f1"]["value"] - resampled[:, 1].mean()  # as auprc in `bootstrap`
    for k, name in enumerate(("next_visit_f1", "next_visit_macro_f1", "next_visit_recall_at_10_new")):
        expected = np.quantile(resampled[:, k], [0.025, 0.975])
        np.testing.assert_allclose([table[name]["low"], table[name]["high"]], expected, err_msg=name)


@pytest.mark.parametrize("scale", [1.0, 1e-4, 300.0])
def test_the_threshold_has_the_highest_micro_f1(scale):
    rows = _rows(num_rows=80, seed=3)
    rows = rows._replace(scores=np.float32(scale) * rows.scores)
    values = np.unique(rows.scores[:, 5:])
    best = max(_f1s_by_loops(rows, value)[0] for value in values)
    threshold = best_f1_threshold(_in_chunks(rows))
    assert _f1s_by_loops(rows, threshold)[0] == pytest.approx(best)
    assert threshold not in values


def test_a_threshold_when_every_code_is_true_predicts_them_all():
    rows = _rows()
    targets = np.ones_like(rows.targets)
    threshold = best_f1_threshold([rows._replace(targets=targets)])
    assert threshold <= rows.scores[:, 5:].min()


def test_special_tokens_are_no_candidates():
    rows = _rows()
    scores = rows.scores.copy()
    scores[:, :5] = 99.0
    changed = rows._replace(scores=scores)
    assert evaluate_next_visit([changed], threshold=0.5, num_resamples=5) == evaluate_next_visit(
        [rows], threshold=0.5, num_resamples=5
    )
    assert best_f1_threshold([changed]) == best_f1_threshold([rows])


def test_what_cannot_be_is_refused():
    rows = _rows()
    scores = rows.scores.copy()
    scores[3, 8] = np.nan
    with pytest.raises(ValueError, match="row 3, column 8 is not finite"):
        evaluate_next_visit([rows._replace(scores=scores)], threshold=0.5)
    with pytest.raises(ValueError, match="types has 2 entries but the scores 30 columns"):
        evaluate_next_visit([rows], threshold=0.5, types=["lab", "vital"])
    with pytest.raises(ValueError, match=r"patients \(39,\)"):
        best_f1_threshold([rows._replace(patients=rows.patients[1:])])
