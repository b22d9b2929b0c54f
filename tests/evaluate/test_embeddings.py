"""Patient vectors against diagnoses: too few patients, plain loops, and vectors that separate or do not."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import davies_bouldin_score, silhouette_score

from ehrjax.evaluate import embeddings as module
from ehrjax.evaluate.clusters import cluster_patients
from ehrjax.evaluate.embeddings import (
    PatientEmbeddings,
    diagnosis_tokens,
    embedding_metrics,
    evaluate_embeddings,
    neighbour_overlap,
    next_new_diagnosis,
    patients_with,
    read_embeddings,
    write_embeddings,
)
from ehrjax.wording import counted
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
    assert table["reason"].startswith(counted(num_patients, "patient"))


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


@pytest.mark.parametrize("num_patients", [0, 1, 5])
def test_embeddings_come_back_from_the_file_as_they_were(num_patients, tmp_path):
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(num_patients, 3)).astype(np.float32)
    ids, times = np.arange(num_patients) + 2**40, rng.integers(-(10**9), 10**9, num_patients)
    path = tmp_path / "folder" / "e.parquet"
    write_embeddings(path, PatientEmbeddings(ids, times, vectors), metadata={"model": "behrt"})
    again = read_embeddings(path)
    for written, read in zip((ids, times, vectors), again, strict=True):
        assert written.dtype == read.dtype
        np.testing.assert_array_equal(written, read)
    schema = pq.read_schema(path)
    assert schema.field("embedding").type.list_size == 3 and schema.metadata[b"model"] == b"behrt"


def test_a_slice_of_a_table_is_read_as_itself(tmp_path):
    embeddings = PatientEmbeddings(np.arange(6), np.zeros(6, int), np.arange(12.0, dtype=np.float32).reshape(6, 2))
    write_embeddings(tmp_path / "e.parquet", embeddings)
    pq.write_table(pq.read_table(tmp_path / "e.parquet").slice(2, 3), tmp_path / "part.parquet")
    assert read_embeddings(tmp_path / "part.parquet").vectors.tolist() == [[4, 5], [6, 7], [8, 9]]


def test_files_of_something_else_and_misfitting_columns_are_refused(tmp_path):
    pq.write_table(pa.table({"subject_id": [1], "time": [1], "embedding": [[1.0, 2.0]]}), tmp_path / "ragged.parquet")
    pq.write_table(pa.table({"code": ["a"]}), tmp_path / "other.parquet")
    (tmp_path / "text.parquet").write_text("subject_id,time\n")
    for name in ("ragged", "other", "text"):
        with pytest.raises(ValueError, match=rf"{name}.parquet: not a table of patient embeddings"):
            read_embeddings(tmp_path / f"{name}.parquet")
    with pytest.raises(FileNotFoundError):
        read_embeddings(tmp_path / "absent.parquet")
    with pytest.raises(ValueError, match=r"2 subjects, 1 times and vectors of shape \(2, 3\)"):
        write_embeddings(tmp_path / "e.parquet", PatientEmbeddings(np.arange(2), np.arange(1), np.zeros((2, 3))))
    with pytest.raises(ValueError, match="patient 1 is not finite"):
        bad = PatientEmbeddings(np.arange(2), np.arange(2), np.array([[0.0], [np.nan]]))
        write_embeddings(tmp_path / "e.parquet", bad)
    assert not (tmp_path / "e.parquet").exists()


def test_the_next_new_diagnosis():
    records = make_records(
        [[5], [6], [7, 6]],  # 7 is new in the third visit
        [[5], [7, 6]],  # two new in one visit: 6 comes first in tokens
        [[6], [5, 7], [7]],
        [[5, 6, 7], [5]],  # nothing new
        [[6]],  # no visit to come
        [[9], [9]],  # none of the tokens
    )
    seen = np.array([2, 1, 1, 1, 1, 0])
    assert next_new_diagnosis(records, seen, np.array([6, 7])).tolist() == [1, 0, 1, -1, -1, -1]
    assert next_new_diagnosis(records, np.zeros(6, int), np.array([6, 7])).tolist() == [0, 0, 0, 0, 0, -1]
    assert next_new_diagnosis(records, seen, np.zeros(0, int)).tolist() == [-1] * 6
    assert next_new_diagnosis(make_records(), np.zeros(0, int), np.array([6])).tolist() == []


def test_overlap_of_neighbours_equals_plain_loops():
    vectors, labels = _patients()
    labels[:5] = False
    table = neighbour_overlap(vectors, labels)
    overlap, same = [], []
    for p in np.flatnonzero(labels.any(axis=1)):
        cosine = vectors @ vectors[p] / np.linalg.norm(vectors, axis=1) / np.linalg.norm(vectors[p])
        others = sorted((q for q in range(60) if q != p), key=lambda q: -cosine[q])[:10]
        overlap += [(labels[p] & labels[q]).sum() / (labels[p] | labels[q]).sum() for q in others]
        same += [(labels[p] == labels[q]).all() for q in others]
    assert table["overlap"] == pytest.approx(np.mean(overlap)) and table["same_set"] == pytest.approx(np.mean(same))
    assert table["num_queries"] == labels.any(axis=1).sum()
    assert table["overlap"] > table["overlap_chance"] > 0 and table["same_set"] > table["same_set_chance"]


@pytest.mark.parametrize("num_patients", [0, 1, 10, 20])
def test_no_overlap_of_few_patients_or_none_with_a_diagnosis(num_patients):
    labels = np.full((num_patients, 2), num_patients < 20)
    assert neighbour_overlap(np.ones((num_patients, 3)), labels)["reason"].startswith(counted(num_patients, "patient"))


def test_queries_are_sampled_by_seed_and_counted(monkeypatch):
    monkeypatch.setattr(module, "MAX_QUERIES", 20)
    vectors, labels = _patients()
    tables = [evaluate_embeddings(vectors, labels, seed=seed) for seed in (0, 0, 1)]
    assert tables[0] == tables[1] and tables[0]["num_queries"] == 20
    assert tables[0]["knn_precision_at_10"] != tables[2]["knn_precision_at_10"]
    assert tables[0]["knn_precision_at_10_chance"] == tables[2]["knn_precision_at_10_chance"]
    assert neighbour_overlap(vectors, labels)["num_queries"] == 20


def _embeddings(vectors):
    return PatientEmbeddings(np.arange(len(vectors)), np.zeros(len(vectors), int), vectors)


def test_all_figures_of_two_labellings():
    vectors, labels = _patients(120)
    classes = np.where(np.arange(120) % 10, labels @ [1, 2, 4] // 4, -1)
    train, test = _embeddings(vectors[:60]), _embeddings(vectors[60:])
    labellings = {"diagnoses": (labels[:60], labels[60:]), "class": (classes[:60], classes[60:])}
    table = embedding_metrics(train, test, labellings, cluster_patients(test.vectors), num_resamples=30)
    assert (table["num_train"], table["num_test"]) == (60, 60) and table["clustering"]["num_clusters"] >= 2
    diagnoses, by_class = table["by"]["diagnoses"], table["by"]["class"]
    assert diagnoses.keys() == {"geometry", "retrieval", "probe", "few_shot"}
    assert by_class.keys() == {"geometry", "agreement", "probe", "few_shot"}
    assert diagnoses["geometry"] == evaluate_embeddings(vectors[60:], labels[60:])
    assert diagnoses["probe"]["macro_auroc"]["value"] > 0.7 and by_class["probe"]["auroc"]["value"] > 0.7
    assert np.sum(by_class["agreement"]["k_given"]["counts"]) == (classes[60:] >= 0).sum()
    assert np.shape(by_class["agreement"]["k_given"]["counts"]) == (2, 2)
    json.dumps(table, allow_nan=False)


@pytest.mark.parametrize("num_patients", [0, 1])
def test_figures_of_nobody_are_reasons(num_patients):
    few = _embeddings(np.zeros((num_patients, 2)))
    unknown, sets = np.full(num_patients, -1), np.zeros((num_patients, 2), bool)
    table = embedding_metrics(
        few, few, {"class": (unknown, unknown), "diagnoses": (sets, sets)}, cluster_patients(few.vectors)
    )
    assert all("reason" in row["probe"] and "reason" in row["geometry"] for row in table["by"].values())
