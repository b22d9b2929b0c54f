"""Splits: stable, disjoint, never empty without a word."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ehrjax.data.splits import (
    assert_disjoint,
    assign_splits,
    hash_uniform,
    load_splits,
    save_splits,
)


def test_single_patient_is_refused_with_a_way_out():
    with pytest.raises(ValueError, match=r"1 patient: .*at least 3 patients are needed"):
        assign_splits(np.array([7]))


def test_all_patients_in_one_source_split_are_refused():
    ids = np.arange(50)
    with pytest.raises(ValueError, match=r"no patient in split val and test \(50 patients: 50 train"):
        assign_splits(ids, source_splits=dict.fromkeys(range(50), "train"), fractions=(1.0 - 1e-9, 5e-10, 5e-10))


@pytest.mark.parametrize("fractions", [(0.5, 0.5), (0.7, 0.2, 0.2), (1.2, -0.1, -0.1)])
def test_bad_fractions_are_refused(fractions):
    with pytest.raises(ValueError, match="must be three shares"):
        assign_splits(np.arange(10), fractions=fractions)


def test_fractions_are_met():
    splits = assign_splits(np.arange(20_000), seed=3)
    shares = [(splits == name).mean() for name in ("train", "val", "test")]
    np.testing.assert_allclose(shares, (0.7, 0.15, 0.15), atol=0.01)


def test_adding_patients_moves_nobody():
    ids = np.arange(1000, 1500)
    more = np.concatenate([np.arange(500), ids[::-1]])
    before, after = assign_splits(ids), assign_splits(more)
    assert (after[500:][::-1] == before).all()


def test_another_seed_splits_otherwise():
    ids = np.arange(1000)
    assert (assign_splits(ids, seed=0) != assign_splits(ids, seed=1)).mean() > 0.3


def test_no_test_split_where_its_share_is_zero():
    splits = assign_splits(np.arange(100), fractions=(0.8, 0.2, 0.0))
    assert set(splits) == {"train", "val"}


def test_source_splits_are_kept_and_the_rest_hashed():
    ids = np.arange(300)
    given = {i: ("train", "val", "test")[i % 3] for i in range(150)}
    splits = assign_splits(ids, source_splits=given)
    assert [splits[i] for i in range(150)] == [given[i] for i in range(150)]
    assert (splits[150:] == assign_splits(ids)[150:]).all()


def test_missing_validation_split_is_taken_from_train_only():
    given = {i: "test" if i < 100 else "train" for i in range(1000)}
    splits = assign_splits(np.arange(1000), source_splits=given)
    assert (splits[:100] == "test").all()
    assert 0.1 < (splits[100:] == "val").mean() < 0.25
    assert not (splits[100:] == "test").any()


def test_hash_is_uniform_and_depends_on_every_key():
    draws = hash_uniform(0, np.arange(100_000))
    counts = np.histogram(draws, 20, (0, 1))[0]
    assert abs(counts - 5000).max() < 5 * np.sqrt(5000)
    assert (hash_uniform(0, np.arange(9), np.zeros(9)) != hash_uniform(0, np.arange(9), np.ones(9))).all()
    assert (hash_uniform(0, np.array([-1, 2**63 - 1])) < 1).all()


def test_disjoint_names_the_shared_patient():
    assert_disjoint(train=np.array([1, 2]), val=np.array([3]), test=np.array([], np.int64))
    with pytest.raises(ValueError, match=r"1 patients are in both train and test, the first is 2\."):
        assert_disjoint(train=np.array([1, 2]), val=np.array([3]), test=np.array([2]))


def test_saved_splits_come_back_in_meds_names(tmp_path):
    path = tmp_path / "subject_splits.parquet"
    save_splits(path, np.array([5, 3, 4]), np.array(["train", "val", "test"]))
    table = pq.read_table(path)
    assert table.schema == pa.schema([("subject_id", pa.int64()), ("split", pa.string())])
    assert table.to_pydict() == {"subject_id": [3, 4, 5], "split": ["tuning", "held_out", "train"]}
    assert load_splits(path) == {3: "val", 4: "test", 5: "train"}


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"subject_id": [1]}, "no column 'split'"),
        ({"subject_id": [1, 2], "split": ["train", "dev2"]}, "row 2: patient 2, split 'dev2'"),
        ({"subject_id": [1, 1], "split": ["train", "tuning"]}, "patient 1 is in two splits"),
    ],
)
def test_wrong_split_file_is_explained(tmp_path, columns, message):
    pq.write_table(pa.table(columns), tmp_path / "s.parquet")
    with pytest.raises(ValueError, match=message):
        load_splits(tmp_path / "s.parquet")


def test_missing_split_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="gone"):
        load_splits(tmp_path / "gone.parquet")
