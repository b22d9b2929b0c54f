"""Clusters of patients: none, one, all alike; recovery of groups; enriched codes against SciPy's tests."""

import json

import numpy as np
import pytest
import scipy.sparse as sp
from scipy.stats import false_discovery_control, fisher_exact

from ehrjax.evaluate import clusters as module
from ehrjax.evaluate.clusters import (
    agreement,
    characterise_clusters,
    cluster_patients,
    clusters_text,
    enriched_codes,
    sample_rows,
)


def _groups(sizes=(40, 25, 15), seed=0):
    labels = np.repeat(np.arange(len(sizes)), sizes)
    noise = np.random.default_rng(seed).normal(size=(len(labels), 4))
    return noise + 9 * np.eye(4)[labels], labels


@pytest.mark.parametrize("num_clusters", [None, 3])
def test_no_patient_one_patient_and_patients_all_alike(num_clusters):
    assert cluster_patients(np.zeros((0, 3)), num_clusters=num_clusters).assignments.shape == (0,)
    for num_patients in (1, 6):
        found = cluster_patients(np.ones((num_patients, 3)), num_clusters=num_clusters)
        assert found.assignments.tolist() == [0] * num_patients
        assert found.summary()["silhouette"] is None and found.summary()["sizes"] == [num_patients]


def test_number_of_groups_is_found_and_clusters_are_numbered_by_size():
    vectors, labels = _groups()
    shuffled = np.random.default_rng(1).permutation(len(labels))
    found = cluster_patients(vectors[shuffled])
    assert found.assignments.tolist() == labels[shuffled].tolist()
    assert found.summary()["num_clusters"] == 3 and found.summary()["sizes"] == [40, 25, 15]
    assert found.summary()["silhouette"] == max(found.silhouettes.values()) > 0.5
    assert set(found.silhouettes) == set(range(2, 11))
    assert cluster_patients(vectors, num_clusters=2).summary()["num_clusters"] == 2
    json.dumps(found.summary())


def test_of_many_patients_some_are_fitted_and_all_assigned(monkeypatch):
    monkeypatch.setattr(module, "MAX_FITTED", 50)
    monkeypatch.setattr(module, "MAX_SCORED", 30)
    vectors, labels = _groups()
    found = cluster_patients(vectors, num_clusters=3)
    assert (found.num_fitted, found.num_scored) == (50, 30)
    assert found.assignments.tolist() == labels.tolist()
    assert sample_rows(9, 4, 0).tolist() != sample_rows(9, 4, 1).tolist() and len(set(sample_rows(9, 4, 0))) == 4


def test_agreement():
    same = agreement(np.array([5, 5, 2, 2, 2]), np.array([0, 0, 1, 1, -1]))
    assert same["ari"] == same["nmi"] == 1
    assert (same["clusters"], same["labels"], same["counts"]) == ([2, 5], [0, 1], [[0, 2], [2, 0]])
    rng = np.random.default_rng(0)
    assert abs(agreement(rng.integers(0, 3, 2000), rng.integers(0, 4, 2000))["ari"]) < 0.01
    assert agreement(np.zeros(3, int), np.full(3, -1))["ari"] is None
    with pytest.raises(ValueError, match="3 assignments and 2 labels"):
        agreement(np.zeros(3, int), np.zeros(2, int))


def _coded(seed=0):
    """80 patients: code 0 marks cluster 0, code 1 everybody, code 2 nobody, code 3 chance, code 4 few of cluster 1."""
    assignments = np.repeat([0, 1], [30, 50])
    rng = np.random.default_rng(seed)
    share = np.array([[0.9, 1, 0, 0.4, 0.0], [0.1, 1, 0, 0.4, 0.1]])
    return assignments, rng.random((80, 5)) < share[assignments]


def test_enrichment_equals_scipy_test_by_test(monkeypatch):
    monkeypatch.setattr(module, "MAX_ADJUSTED_P", 1.0)
    assignments, has_code = _coded()
    found = enriched_codes(assignments, has_code, list("abcde"))
    expected = {}
    for cluster in (0, 1):
        inside = assignments == cluster
        for code in range(5):
            a, c = has_code[inside, code].sum(), has_code[~inside, code].sum()
            if a >= 10:
                table = [[a, inside.sum() - a], [c, (~inside).sum() - c]]
                expected[cluster, "abcde"[code]] = fisher_exact(table, alternative="greater")
    adjusted = dict(zip(expected, false_discovery_control([e.pvalue for e in expected.values()]), strict=True))
    got = {(cluster, row["code"]): row for cluster, rows in found.items() for row in rows}
    assert got.keys() == expected.keys() and (0, "a") in got and (1, "e") not in got
    for key, row in got.items():
        assert row["p_adjusted"] == pytest.approx(adjusted[key], rel=1e-9)
        if 0 < expected[key].statistic < np.inf:
            assert row["odds_ratio"] == pytest.approx(expected[key].statistic)
        assert np.isfinite(row["odds_ratio"])


def test_only_the_code_that_marks_a_cluster_is_enriched():
    assignments, has_code = _coded()
    for form in (has_code, sp.csr_matrix(has_code * 3), sp.csc_array(has_code.astype(np.float32))):
        found = enriched_codes(assignments, form, list("abcde"))
        assert [row["code"] for row in found[0]] == ["a"] and found[1] == []
    row = found[0][0]
    assert row["share"] > 0.8 > 0.3 > row["share_elsewhere"] and row["odds_ratio"] > 10


@pytest.mark.parametrize("num_patients", [0, 1, 9])
def test_small_clusters_have_their_size_only(num_patients):
    table = characterise_clusters(np.zeros(num_patients, int), np.ones((num_patients, 2)), ["a", "b"])
    assert [row["num_patients"] for row in table["clusters"]] == [num_patients] * (num_patients > 0)
    assert all("fewer than 10" in row["reason"] and "enriched_codes" not in row for row in table["clusters"])
    assert clusters_text(table).startswith("cluster")
    assert enriched_codes(np.zeros(0, int), np.zeros((0, 0)), []) == {}


def _curve(times, events):
    order = np.argsort(times)
    return times[order], np.cumprod(1 - events[order] / np.arange(len(times), 0, -1))


def test_characterisation():
    assignments, has_code = _coded()
    ages = np.where(assignments == 0, 70.0, 40.0)
    ages[0] = np.nan
    times = np.where(assignments == 0, 1.0, 4.0)
    times[:2] = [np.nan, 0.0]
    outcomes = {"death": (times, assignments == 0), "none": (times, np.zeros(80, bool))}
    sexes = np.where(np.arange(80) % 2, "F", "M")
    table = characterise_clusters(
        assignments, has_code, list("abcde"), ages=ages, sexes=sexes, outcomes=outcomes, survival_curve=_curve
    )
    first, second = table["clusters"]
    assert first["age"] == {"mean": 70, "sd": 0} and first["sex"] == {"F": 0.5, "M": 0.5}
    death = first["outcomes"]["death"]
    assert (death["num_patients"], death["num_events"], death["years"], death["per_100_years"]) == (28, 28, 28, 100)
    assert death["curve"]["survival"][-1] == 0 and second["outcomes"]["none"]["curve"]["survival"] == [1] * 50
    assert second["outcomes"]["death"]["per_100_years"] == 0
    text = clusters_text(table)
    assert "70.0" in text and "100.0" in text and "cluster 0: a, " in text and "F 50%" in text
    json.dumps(table, allow_nan=False)
    assert (
        "curve"
        not in characterise_clusters(assignments, has_code, list("abcde"), outcomes=outcomes)["clusters"][0][
            "outcomes"
        ]["death"]
    )


def test_columns_of_other_lengths_are_refused():
    assignments, has_code = _coded()
    with pytest.raises(ValueError, match="ages has 79 rows"):
        characterise_clusters(assignments, has_code, list("abcde"), ages=np.zeros(79))
    with pytest.raises(ValueError, match="events of death has 3 rows"):
        characterise_clusters(assignments, has_code, list("abcde"), outcomes={"death": (np.ones(80), np.ones(3))})
    with pytest.raises(ValueError, match="5 columns of codes and 4 names"):
        characterise_clusters(assignments, has_code, list("abcd"))


def test_a_long_curve_is_thinned(monkeypatch):
    monkeypatch.setattr(module, "MAX_CURVE_POINTS", 7)
    assignments, has_code = _coded()
    outcomes = {"death": (np.arange(1.0, 81), np.ones(80))}
    table = characterise_clusters(assignments, has_code, list("abcde"), outcomes=outcomes, survival_curve=_curve)
    curve = table["clusters"][0]["outcomes"]["death"]["curve"]
    assert len(curve["times"]) == 7 and (curve["times"][0], curve["times"][-1], curve["survival"][-1]) == (1, 30, 0)
    empty = characterise_clusters(
        assignments, has_code, list("abcde"), outcomes=outcomes, survival_curve=lambda t, e: (t[:0], t[:0])
    )
    assert empty["clusters"][0]["outcomes"]["death"]["curve"] == {"times": [], "survival": []}
