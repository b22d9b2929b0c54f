"""Patient vectors against diagnoses: too few patients, plain loops, and vectors that separate or do not."""

import numpy as np
import pytest
from sklearn.metrics import davies_bouldin_score, silhouette_score

from ehrjax.evaluate import embeddings as module
from ehrjax.evaluate.embeddings import diagnosis_tokens, evaluate_embeddings, patients_with
from tests.evaluate.test_next_visit_baselines import make_records

NAMES = {"silhouette", "davies_bouldin", "knn_precision_at_10", "knn_precision_at_10_chance"}


def _patients(num_patients=60, num_labels=3, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.random((num_patients, num_labels)) < 0.4
    vectors = rng.normal(size=(num_patients, 5))
    vectors[:, :num_labels] += 1.5 * labels
    return vectors * [1, 1, 10, 1, 0], labels  # unlike scales, and a column that says nothing


@pytest.mark.parametrize("num_patients", [0, 1, 2, 3])
@pytest.mark.parametrize("as_clusters", [False, True])
def test_too_few_patients_have_no_figures_but_a_reason(num_patients, as_clusters):
    labels = np.zeros(num_patients, int) if as_clusters else np.ones((num_patients, 2), bool)
    table = evaluate_embeddings(np.zeros((num_patients, 4)), labels)
    assert {name: table[name] for name in NAMES} == dict.fromkeys(NAMES)
    assert f"{num_patients} patients" in table["reason"]


def test_no_diagnosis_to_judge_by():
    table = evaluate_embeddings(_patients()[0], np.zeros((60, 0), bool))
    assert table["silhouette"] is None and "0 groups" in table["reason"]


@pytest.mark.parametrize("block", [1, 1000, 2**22])
def test_neighbours_equal_plain_loops_whatever_the_blocks(block, monkeypatch):
    monkeypatch.setattr(module, "BLOCK_VALUES", block)
    vectors, labels = _patients()
    labels = np.hstack([labels, np.zeros((60, 1), bool), np.arange(60)[:, None] == 7])  # no member, a lone member
    table = evaluate_embeddings(vectors, labels)
    shares = []
    for column in labels.T[:3]:
        members = []
        for p in np.flatnonzero(column):
            cosine = vectors @ vectors[p] / np.linalg.norm(vectors, axis=1) / np.linalg.norm(vectors[p])
            others = sorted((q for q in range(60) if q != p), key=lambda q: -cosine[q])
            members.append(np.mean([column[q] for q in others[:10]]))
        shares.append(np.mean(members))
    assert table["knn_precision_at_10"] == pytest.approx(np.mean(shares))
    assert table["knn_precision_at_10_chance"] == pytest.approx(np.mean((labels.sum(axis=0)[:3] - 1) / 59))


def test_clusters_equal_scikit_learn_on_standardised_vectors():
    vectors, labels = _patients()
    standard = (vectors - vectors.mean(axis=0)) / np.where(vectors.std(axis=0) > 0, vectors.std(axis=0), 1)
    table = evaluate_embeddings(vectors, labels)
    assert table["silhouette"] == pytest.approx(np.mean([silhouette_score(standard, column) for column in labels.T]))
    expected = np.mean([davies_bouldin_score(standard, column) for column in labels.T])
    assert table["davies_bouldin"] == pytest.approx(expected)
    clusters = labels @ [1, 2, 4]
    assert evaluate_embeddings(vectors, clusters)["silhouette"] == pytest.approx(silhouette_score(standard, clusters))


def test_separate_groups_beat_shuffled_ones():
    rng = np.random.default_rng(0)
    clusters = np.repeat([4, 5, 7], 20)
    vectors = rng.normal(size=(60, 4)) + 8 * np.eye(4)[clusters % 4]
    apart, shuffled = (evaluate_embeddings(vectors, c) for c in (clusters, rng.permutation(clusters)))
    assert "reason" not in apart and apart["silhouette"] > 0.5 > shuffled["silhouette"]
    assert apart["davies_bouldin"] < 1 < shuffled["davies_bouldin"]
    assert apart["knn_precision_at_10_chance"] == pytest.approx(19 / 59)
    assert abs(shuffled["knn_precision_at_10"] - 19 / 59) < 0.1


def test_many_patients_are_sampled_by_seed(monkeypatch):
    monkeypatch.setattr(module, "MAX_CLUSTERED", 30)
    vectors, labels = _patients()
    tables = [evaluate_embeddings(vectors, labels, seed=seed) for seed in (0, 0, 1)]
    assert tables[0] == tables[1] and tables[0]["silhouette"] != tables[2]["silhouette"]
    assert tables[0]["knn_precision_at_10"] == tables[2]["knn_precision_at_10"]


def test_diagnoses_of_middling_share_the_most_widespread_first(monkeypatch):
    types = ["other"] * 5 + ["diagnosis"] * 5 + ["lab"]
    # 20 patients: 5 has 5 twice, 6 and 10 (a lab) in half, 7 in 11 of 20, 8 in one of 20, 9 in nobody.
    held = [[[5, 5] * (p < 5) + [6, 10] * (p % 2), [7] * (p < 11) + [8] * (p == 0)] for p in range(20)]
    train = make_records(*held)
    assert diagnosis_tokens(train, types).tolist() == [6, 5, 8]
    monkeypatch.setattr(module, "MAX_DIAGNOSES", 2)
    assert diagnosis_tokens(train, types).tolist() == [6, 5]
    assert patients_with(train, np.array([8, 5])).sum(axis=0).tolist() == [1, 5]
    assert patients_with(train, np.array([8, 5]))[0].tolist() == [True, True]
    assert diagnosis_tokens(make_records(), types).tolist() == []
    assert patients_with(make_records([[]], [[7]]), np.array([7, 30])).tolist() == [[False, False], [True, False]]


def test_what_cannot_be_is_refused():
    vectors, labels = _patients()
    with pytest.raises(ValueError, match=r"\(60, 5\) and labels \(59, 3\)"):
        evaluate_embeddings(vectors, labels[1:])
    vectors[7, 1] = np.nan
    with pytest.raises(ValueError, match="patient 7 is not finite"):
        evaluate_embeddings(vectors, labels)
