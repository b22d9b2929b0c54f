"""Subgroups: groups from a store, small counts hidden so that the total does not give them away, figures by group."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ehrjax.evaluate.subgroups import MIN_COUNT, SMALL, WITHHELD, _suppressed, patient_groups, subgroup_table
from ehrjax.metrics import evaluate

NULL_TIME = np.iinfo(np.int64).min
YEAR = round(365.25 * 86_400)


def _shard(subject_ids, births, static):
    return SimpleNamespace(
        subject_ids=np.array(subject_ids, np.int64),
        birth=np.array(births, np.int64),
        static_offsets=np.cumsum([0, *map(len, static)]),
        static_codes=np.array([code for codes in static for code in codes], np.int32),
    )


@pytest.fixture
def stores():
    codes = np.array(["GENDER//F", "GENDER//M", "RACE//white", "LAB//GENDER//x", "ETHNICITY//hispanic", "RACE//asian"])
    shards = [
        _shard([1, 5, 9], [0, NULL_TIME, -30 * YEAR], [[4, 0, 2], [3], [1, 5, 2]]),
        _shard([], [], []),
        _shard([2], [10 * YEAR], [[]]),
    ]
    other = SimpleNamespace(codes=np.array(["SEX//female"]), shards=[_shard([70], [0], [[0]])])
    return SimpleNamespace(codes=codes, shards=shards), other


def test_groups_at_the_index_time_from_all_stores(stores):
    times = np.array([18, 18 - 1, 50, 5, 30, 90, 40]) * YEAR
    groups = patient_groups(stores, np.array([1, 1, 9, 5, 2, 70, 404]), times)
    assert groups["age"].tolist() == [
        *("18 to 39", "under 18", "80 and over", "unknown", "18 to 39", "80 and over", "unknown")
    ]
    assert groups["sex"].tolist() == ["F", "F", "M", "unknown", "unknown", "female", "unknown"]
    assert groups["race"].tolist() == ["white", "white", "asian", "unknown", "unknown", "unknown", "unknown"]


def test_no_rows(stores):
    groups = patient_groups(stores, np.zeros(0, np.int64), np.zeros(0, np.int64))
    assert all(len(group) == 0 for group in groups.values())
    table = subgroup_table("binary", np.zeros((0, 1)), np.zeros((0, 1)), None, np.zeros(0), groups)
    assert table == {"age": {}, "sex": {}, "race": {}}


def _hidden(counts):
    return _suppressed(np.array(counts), np.array(counts) < MIN_COUNT)


def test_a_single_small_group_takes_the_smallest_other_one_with_it():
    assert _hidden([300, 4, 50]) == [300, SMALL, WITHHELD]
    assert _hidden([300, 40, 50]) == [300, 40, 50]
    assert _hidden([300, 4, 50, 7]) == [300, SMALL, 50, SMALL]
    # Two groups of which the total tells that they sum to 2 have one patient each.
    assert _hidden([300, 1, 50, 1]) == [300, SMALL, WITHHELD, SMALL]
    assert _hidden([4]) == [SMALL]


@given(st.lists(st.integers(1, 40), min_size=2, max_size=6))
def test_no_hidden_count_follows_from_the_total(counts):
    shown = _hidden(counts)
    hidden = [count for count, text in zip(counts, shown, strict=True) if isinstance(text, str)]
    assert all(text == SMALL for count, text in zip(counts, shown, strict=True) if count < MIN_COUNT)
    if hidden and len(hidden) < len(counts):
        assert len(hidden) >= 2 and sum(hidden) >= MIN_COUNT


def _rows(num_rows=240, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, (num_rows, 1)).astype(float)
    scores = np.clip(0.3 * labels + 0.6 * rng.random((num_rows, 1)), 0, 1)
    return labels, scores, np.arange(num_rows)


def test_figures_are_those_of_the_group_and_counts_are_of_patients():
    labels, scores, _ = _rows(480)
    subjects = np.repeat(np.arange(240), 2)
    mask = np.random.default_rng(1).random(labels.shape) < 0.9
    groups = np.where(subjects < 120, "a", "b")
    table = subgroup_table("binary", labels, scores, mask, subjects, {"x": groups}, num_resamples=100)["x"]
    rows = groups == "a"
    expected = evaluate("binary", labels[rows], scores[rows], mask[rows], subjects[rows], num_resamples=100)
    assert table["a"]["auroc"] == pytest.approx({key: expected["auroc"][key] for key in ("value", "low", "high")})
    assert table["a"]["num_patients"] == len(np.unique(subjects[rows & mask[:, 0]]))
    positive = rows & mask[:, 0] & (labels[:, 0] == 1)
    assert table["a"]["num_positive"] == len(np.unique(subjects[positive])) < positive.sum()


def test_small_groups_and_few_events_have_no_figures():
    labels, scores, subjects = _rows()
    groups = np.full(len(labels), "large", object)
    groups[:6], groups[6:60], groups[60:120] = "tiny", "rare", "fine"
    labels[6:60] = 0
    labels[6:9] = 1
    table = subgroup_table("binary", labels, scores, None, subjects, {"x": groups.astype(str)}, num_resamples=20)["x"]
    assert table["tiny"] == {"num_patients": SMALL, "num_positive": SMALL, "reason": "fewer than 10 patients"}
    assert table["rare"]["num_patients"] == WITHHELD and table["rare"]["num_positive"] == SMALL
    assert table["rare"]["reason"] == "fewer than 10 patients with an event" and "auroc" not in table["rare"]
    assert table["fine"]["num_patients"] == 60 and table["fine"]["auroc"]["value"] > 0.5


def test_few_without_an_event_are_as_telling():
    labels, scores, subjects = _rows()
    labels[:60] = 1
    labels[:3] = 0
    groups = np.where(subjects < 60, "a", "b")
    table = subgroup_table("binary", labels, scores, None, subjects, {"x": groups}, num_resamples=20)["x"]
    assert table["a"]["num_positive"] == WITHHELD == table["b"]["num_positive"]
    assert table["a"]["reason"] == "fewer than 10 patients without an event"


def test_age_bands_stand_in_order_with_unknown_last_and_masked_rows_do_not_count():
    labels, scores, subjects = _rows(60)
    mask = np.ones(labels.shape, bool)
    mask[:30] = False
    groups = np.repeat(["80 and over", "unknown", "under 18", "18 to 39"], 15)
    table = subgroup_table("regression", labels, scores, mask, subjects, {"age": groups}, num_resamples=5)["age"]
    assert list(table) == ["under 18", "18 to 39"] and table["under 18"]["num_patients"] == 15
    assert set(table["under 18"]) == {"num_patients", "mae", "rmse", "spearman"}


def test_several_labels():
    labels, scores, subjects = _rows()
    labels, scores = np.hstack([labels, 1 - labels]), np.hstack([scores, 1 - scores])
    labels[:, 1] = 0
    table = subgroup_table("multilabel", labels, scores, None, subjects, {"x": np.full(240, "all")}, num_resamples=5)[
        "x"
    ]["all"]
    assert table["num_positive"] == int(labels[:, 0].sum()) and table["macro_auroc"]["value"] > 0.5
