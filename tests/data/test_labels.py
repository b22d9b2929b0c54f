"""Label containers and MEDS label files."""

import warnings

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ehrjax.data.labels import Labels, concatenate, read_meds_labels, shortage, write_meds_labels

T = 1_600_000_000


def make(kind="binary", values=((1.0,), (0.0,), (1.0,)), names=("onset",), mask=None):
    values = np.array(values, np.int32 if kind == "multiclass" else np.float32)
    n = len(values)
    mask = np.ones(values.shape, bool) if mask is None else np.array(mask)
    times = T + np.arange(n)
    return Labels("task", kind, names, np.arange(n), times, values, mask, times + 9, {"kept": n})


def write(path, **columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)


def times(*values, kind=None):
    return pa.array([np.datetime64(v, "us") if v else None for v in values], kind or pa.timestamp("us"))


# Edge cases


def test_missing_and_empty_places_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="gone: no such file or folder"):
        read_meds_labels(tmp_path / "gone")
    with pytest.raises(FileNotFoundError, match=r"no \*\.parquet file in it"):
        read_meds_labels(tmp_path)


def test_file_without_rows_is_refused(tmp_path):
    write(tmp_path / "t" / "0.parquet", subject_id=pa.array([], pa.int64()), prediction_time=times())
    with pytest.raises(ValueError, match=r"needs one filled \*_value column, found none"):
        read_meds_labels(tmp_path / "t")


def test_text_file_is_no_label_file(tmp_path):
    (tmp_path / "a.parquet").write_text("no")
    with pytest.raises(ValueError, match=r"a\.parquet: not a readable parquet file"):
        read_meds_labels(tmp_path)


def test_missing_column_is_named(tmp_path):
    write(tmp_path / "a.parquet", subject_id=[1], boolean_value=[True])
    with pytest.raises(ValueError, match=r"a\.parquet: no column 'prediction_time' \(found subject_id, boolean_value"):
        read_meds_labels(tmp_path / "a.parquet")


def test_two_outcomes_in_one_folder_are_refused(tmp_path):
    write(tmp_path / "a.parquet", subject_id=[1], prediction_time=times("2020-01-01"), boolean_value=[True])
    write(tmp_path / "b.parquet", subject_id=[1], prediction_time=times("2020-01-01"), integer_value=[3])
    with pytest.raises(ValueError, match="found boolean_value, integer_value: keep one outcome a folder"):
        read_meds_labels(tmp_path)


def test_wrong_type_is_named(tmp_path):
    write(tmp_path / "a.parquet", subject_id=["x1"], prediction_time=times("2020-01-01"), boolean_value=[True])
    with pytest.raises(ValueError, match=r"column 'subject_id' is string, MEDS wants int64"):
        read_meds_labels(tmp_path)


# There and back


def test_survival_labels_are_two_files_that_belong_together(tmp_path):
    labels = make("survival", [[3.5, 1], [1095, 0], [0.25, 2]], ("diabetes", "death"))
    days, event = write_meds_labels(tmp_path, labels)
    assert [path.parent.name for path in (days, event)] == ["task--days", "task--event"]
    assert pq.read_table(days)["float_value"].to_pylist() == [3.5, 1095, 0.25]
    assert pq.read_table(event).schema.field("integer_value").type == pa.int64()
    assert pq.read_table(event)["integer_value"].to_pylist() == [1, 0, 2]
    back = read_meds_labels(tmp_path / "task--event")
    assert (back.subject_ids.tolist(), back.times.tolist()) == (labels.subject_ids.tolist(), labels.times.tolist())


def test_shortage_of_survival_counts_events_of_the_first_cause():
    labels = make("survival", [[3, 1], [9, 0], [2, 2], [5, 1]], ("diabetes", "death"))
    assert labels.num_outputs == 2
    splits = np.array(["train", "train", "train", "test"])
    assert shortage(labels, splits, {"train": 1, "test": 1}) is None
    assert "1 diabetes events in train (needs 2)" in shortage(labels, splits, {"train": 2})


def test_binary_labels_come_back_in_the_meds_schema(tmp_path):
    (path,) = write_meds_labels(tmp_path, make())
    assert path == tmp_path / "task" / "0.parquet"
    expected = [("subject_id", pa.int64()), ("prediction_time", pa.timestamp("us")), ("boolean_value", pa.bool_())]
    assert pq.read_table(path).schema == pa.schema(expected)
    back = read_meds_labels(tmp_path / "task", horizon_days=2)
    assert (back.name, back.kind) == ("task", "binary")
    assert back.values.tolist() == [[1], [0], [1]]
    assert back.times.tolist() == make().times.tolist()
    assert (back.end_times - back.times).tolist() == [2 * 86_400] * 3


def test_regression_and_classes_come_back(tmp_path):
    write_meds_labels(tmp_path / "r", make("regression", [[0.5], [2.0]], ("log1p_days",)))
    assert read_meds_labels(tmp_path / "r" / "task").values.tolist() == [[0.5], [2.0]]
    write_meds_labels(tmp_path / "c", make("multiclass", [[1], [0]], ("b", "a")))
    back = read_meds_labels(tmp_path / "c" / "task")
    assert [back.names[i] for i in back.values[:, 0]] == ["a", "b"]
    assert (back.kind, back.num_outputs, back.values.dtype) == ("multiclass", 2, np.int32)


def test_each_output_of_many_has_its_folder_and_masked_ones_are_left_out(tmp_path):
    labels = make("multilabel", [[1, 0], [0, 1]], ("DX//A/1", "DX//B"), mask=[[True, True], [False, True]])
    paths = write_meds_labels(tmp_path, labels)
    assert [p.parent.name for p in paths] == ["task--DX%2F%2FA%2F1", "task--DX%2F%2FB"]
    assert read_meds_labels(paths[0].parent).values.tolist() == [[1]]
    assert read_meds_labels(paths[1].parent).values.tolist() == [[0], [1]]


# Label files made elsewhere


def test_other_types_are_cast(tmp_path):
    write(
        tmp_path / "a.parquet",
        subject_id=pa.array([7, 8], pa.int32()),
        prediction_time=times("2020-01-01T00:00:00.9", "2020-01-02", kind=pa.timestamp("us")).cast(pa.timestamp("ns")),
        boolean_value=pa.array([None, None], pa.bool_()),
        categorical_value=pa.array(["x", "y"], pa.large_string()).dictionary_encode(),
    )
    labels = read_meds_labels(tmp_path)
    assert labels.subject_ids.dtype == np.int64
    assert labels.times.tolist() == [1_577_836_800, 1_577_923_200]  # cut to the second: nothing later may be used
    assert (labels.kind, labels.names) == ("multiclass", ("x", "y"))


def test_time_zone_is_converted_with_a_warning(tmp_path):
    moment = times("2020-01-01T12:00").cast(pa.timestamp("us", "UTC")).cast(pa.timestamp("us", "Asia/Tokyo"))
    write(tmp_path / "a.parquet", subject_id=[1], prediction_time=moment, integer_value=[4])
    with pytest.warns(UserWarning, match="time zone Asia/Tokyo; converted to UTC"):
        labels = read_meds_labels(tmp_path)
    assert labels.times.tolist() == [1_577_880_000]
    assert (labels.kind, labels.values.tolist()) == ("regression", [[4]])


def test_shards_may_be_missing_and_nested_and_empty(tmp_path):
    write(
        tmp_path / "t" / "train" / "3.parquet",
        subject_id=[1],
        prediction_time=times("2020-01-01"),
        boolean_value=[True],
    )
    none = pa.array([], pa.bool_())
    write(
        tmp_path / "t" / "9.parquet", subject_id=pa.array([], pa.int64()), prediction_time=times(), boolean_value=none
    )
    assert read_meds_labels(tmp_path / "t").subject_ids.tolist() == [1]


def test_unknown_subjects_and_gaps_are_dropped_and_counted(tmp_path):
    write(
        tmp_path / "a.parquet",
        subject_id=pa.array([1, 2, None, 1, 1], pa.int64()),
        prediction_time=times("2020-01-01", "2020-01-01", "2020-01-01", None, "2020-01-02"),
        boolean_value=[True, False, True, True, None],
    )
    with pytest.warns(UserWarning, match="of 5 labels 1 have a subject that is not in the store and 3 lack"):
        labels = read_meds_labels(tmp_path, subject_ids=np.array([1]))
    assert labels.subject_ids.tolist() == [1]
    assert labels.flow == {"rows": 5, "incomplete": 3, "unknown_subject": 1, "kept": 1}


def test_labels_of_another_data_set_are_refused(tmp_path):
    write(tmp_path / "a.parquet", subject_id=[1], prediction_time=times("2020-01-01"), boolean_value=[True])
    with warnings.catch_warnings(), pytest.raises(ValueError, match="labels of this data set"):
        warnings.simplefilter("ignore")
        read_meds_labels(tmp_path, subject_ids=np.array([5]))


# Handling


def test_parts_are_joined_in_order_and_flows_added():
    a, b = make().take(np.array([0, 2])), make().take(np.array([1]))
    joined = concatenate([a, b])
    assert joined.subject_ids.tolist() == [0, 1, 2]
    assert joined.values.tolist() == make().values.tolist()
    assert joined.flow == {"kept": 6}


def test_shortage_says_what_is_missing():
    splits = np.array(["train", "train", "test"])
    assert shortage(make(), splits, {"train": 1}) is None
    message = shortage(make(), splits, {"train": 2, "test": 1})
    assert message == (
        "task has too few outcomes: 1 positives in train (needs 2); 1 negatives in train (needs 2);"
        " 0 negatives in test (needs 1). Cohort: kept 3."
    )
    many = make("multilabel", [[0, 0], [1, 1]], ("a", "b"))
    assert "1 rows with a positive in train (needs 2)" in shortage(many, splits[:2], {"train": 2})
    assert "0 rows in test (needs 1)" in shortage(make("regression", [[1], [2]]), splits[:2], {"test": 1})
