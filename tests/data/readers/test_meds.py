"""MEDS reader: lenient in types, strict in order, every row accounted for."""

import datetime as dt
import warnings

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ehrjax.data.events import NO_VISIT, STATIC_TIME
from ehrjax.data.readers.meds import read_meds, read_meds_splits

DAY = 86_400_000_000


def write(path, rows, *, types=None, **columns):
    """rows: (subject_id, day or None, code, value or None); `columns` are extra or replacing Arrow arrays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    subject, day, code, value = zip(*rows, strict=True) if rows else ((), (), (), ())
    times = [None if d is None else dt.datetime(1970, 1, 1) + dt.timedelta(days=d) for d in day]
    table = {
        "subject_id": pa.array(subject, pa.int64()),
        "time": pa.array(times, pa.timestamp("us")),
        "code": pa.array(code, pa.string()),
        "numeric_value": pa.array(value, pa.float32()),
    }
    for name, kind in (types or {}).items():
        table[name] = table[name].cast(kind)
    table.update(columns)
    pq.write_table(pa.table({k: v for k, v in table.items() if v is not None}), path)


def events(path, **options):
    """All events as (subject, time, code, value or None, visit), with the ledger checked on the way."""
    found, quarantined = [], []
    for batch in read_meds(path, **options):
        rows = set(batch.row.tolist())
        lost = {(reason, row) for reason, rows_ in batch.quarantined.items() for row in rows_.tolist()}
        assert batch.rows_read == len(rows) + len(lost)
        assert batch.code.dtype == np.int32 and batch.numeric_value.dtype == np.float32
        quarantined += [(batch.file, *item) for item in sorted(lost)]
        names = [batch.codes[i] for i in batch.code]
        values = [None if np.isnan(v) else float(v) for v in batch.numeric_value]
        found += zip(
            batch.subject_id.tolist(), batch.time.tolist(), names, values, batch.visit_id.tolist(), strict=True
        )
    return found, quarantined


ROWS = [(1, None, "GENDER//F", None), (1, 0, "LAB//A", 1.5), (1, 2, "DX//B", None), (7, 1, "LAB//A", -2.0)]
WANT = [
    (1, STATIC_TIME, "GENDER//F", None, -1),
    (1, 0, "LAB//A", 1.5, -1),
    (1, 2 * DAY, "DX//B", None, -1),
    (7, DAY, "LAB//A", -2.0, -1),
]


def test_missing_and_empty_folders_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder"):
        next(read_meds(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match=r"no \*\.parquet file"):
        next(read_meds(tmp_path))
    write(tmp_path / "data" / "0.parquet", [])
    with pytest.raises(ValueError, match="without rows"):
        next(read_meds(tmp_path))


def test_damaged_file_is_named(tmp_path):
    write(tmp_path / "data" / "train" / "0.parquet", ROWS)
    whole = (tmp_path / "data" / "train" / "0.parquet").read_bytes()
    (tmp_path / "data" / "train" / "1.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"1\.parquet: not a readable parquet file"):
        list(read_meds(tmp_path))


@pytest.mark.parametrize("column", ["subject_id", "time", "code"])
def test_missing_column_is_named(tmp_path, column):
    write(tmp_path / "data" / "0.parquet", ROWS, **{column: None})
    with pytest.raises(ValueError, match=f"data/0.parquet: no column '{column}'"):
        next(read_meds(tmp_path))


def test_mistyped_columns_are_named(tmp_path):
    for column, array in {
        "subject_id": pa.array(["a", "b", "c", "d"]),
        "time": pa.array(["1", "2", "3", "4"]),
        "code": pa.array([1, 2, 3, 4]),
        "numeric_value": pa.array(["1", "2", "3", "4"]),
    }.items():
        write(tmp_path / "data" / "0.parquet", ROWS, **{column: array})
        with pytest.raises(ValueError, match=f"column '{column}' is"):
            next(read_meds(tmp_path))


@pytest.mark.parametrize(
    "types",
    [
        {},
        {"time": pa.timestamp("ns")},
        {"time": pa.timestamp("s")},
        {"time": pa.date32()},
        {"code": pa.large_string(), "subject_id": pa.int32(), "numeric_value": pa.float64()},
        {"code": pa.dictionary(pa.int8(), pa.string()), "subject_id": pa.float64()},
        {"code": pa.dictionary(pa.int32(), pa.large_string()), "subject_id": pa.uint32()},
    ],
    ids=str,
)
def test_types_are_cast(tmp_path, types):
    write(tmp_path / "set" / "data" / "train" / "0.parquet", ROWS, types=types, text_value=pa.array(["x"] * 4))
    assert events(tmp_path / "set") == (WANT, [])


def test_meds_without_values_and_static_rows_last(tmp_path):
    rows = [ROWS[1], ROWS[2], ROWS[0], ROWS[3]]
    write(tmp_path / "data" / "0.parquet", rows, numeric_value=None)
    assert [(s, t, c) for s, t, c, _, _ in events(tmp_path)[0]] == [WANT[i][:3] for i in (1, 2, 0, 3)]


def test_time_zone_is_converted_with_one_warning(tmp_path):
    zone = pa.timestamp("us", "Europe/Berlin")
    for i in (0, 1):
        rows = [(s + 10 * i, *rest) for s, *rest in ROWS]
        local = pa.array([None, 0, 2 * DAY, DAY], pa.int64()).cast(pa.timestamp("us", "UTC")).cast(zone)
        write(tmp_path / "set" / "data" / f"{i}.parquet", rows, time=local)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        found = events(tmp_path / "set")[0]
    assert found[:4] == WANT
    assert [str(w.message) for w in caught] == ["set: times have time zone Europe/Berlin; converted to UTC."]


def test_unusable_rows_are_quarantined_by_reason(tmp_path):
    rows = [
        (1, 0, "A", None),
        (1, 0, None, None),
        (None, 1, "A", None),
        (1, 2, " ", None),
        (1, None, "MEDS_DEATH", None),
    ]
    write(tmp_path / "x" / "data" / "0.parquet", rows)
    found, lost = events(tmp_path / "x")
    assert found == [(1, 0, "A", None, -1)]
    assert [(reason, row) for _, reason, row in lost] == [
        ("missing_code", 2), ("missing_code", 4), ("missing_time", 5), ("no_patient", 3),
    ]  # fmt: skip
    assert {file for file, _, _ in lost} == {"x/data/0.parquet"}


def test_values_float32_cannot_hold_are_missing(tmp_path):
    values = pa.array([1e300, float("inf"), float("nan"), 0.5], pa.float64())
    write(tmp_path / "data" / "0.parquet", ROWS, numeric_value=values)
    assert [v for *_, v, _ in events(tmp_path)[0]] == [None, None, None, 0.5]


def test_birth_and_death_are_normalised_other_codes_kept(tmp_path):
    codes = ["MEDS_BIRTH//x", "DOB", "MEDS_DEATH//ICU", "DOD", "MEDS_BIRTHDAY", "meds_birth", "MEDS_DEATH"]
    write(tmp_path / "data" / "0.parquet", [(1, 0, c, None) for c in codes])
    (tmp_path / "metadata").mkdir()
    table = {"code": ["MEDS_DEATH//ICU", "MEDS_BIRTHDAY", "never seen"], "description": ["Died", "Birthday", "no"]}
    pq.write_table(pa.table(table), tmp_path / "metadata" / "codes.parquet")
    (batch,) = read_meds(tmp_path)
    names = [batch.codes[i] for i in batch.code]
    assert names == ["MEDS_BIRTH"] * 2 + ["MEDS_DEATH"] * 2 + ["MEDS_BIRTHDAY", "meds_birth", "MEDS_DEATH"]
    assert len(set(batch.codes)) == len(batch.codes)
    assert batch.descriptions == {"MEDS_DEATH": "Died", "MEDS_BIRTHDAY": "Birthday"}


def test_encounter_column(tmp_path):
    write(tmp_path / "a" / "data" / "0.parquet", ROWS, hadm_id=pa.array([None, 5, -3, 6.0], pa.float64()))
    assert [e[4] for e in events(tmp_path / "a")[0]] == [NO_VISIT, 5, NO_VISIT, 6]
    ids = {"hadm_id": pa.array([1] * 4), "visit_id": pa.array([2] * 4)}
    write(tmp_path / "b" / "data" / "0.parquet", ROWS, **ids)
    assert {e[4] for e in events(tmp_path / "b")[0]} == {2}
    write(tmp_path / "c" / "data" / "0.parquet", ROWS, encounter_id=pa.array(["e", None, "f", "e"]))
    first, none, other, again = (e[4] for e in events(tmp_path / "c")[0])
    assert first == again != other and none == NO_VISIT and min(first, other) >= 0


@pytest.mark.parametrize("batch_rows", [1, 2, 3, 100])
def test_disorder_is_named(tmp_path, monkeypatch, batch_rows):
    monkeypatch.setattr("ehrjax.data.readers.meds.BATCH_ROWS", batch_rows)
    file = tmp_path / "set" / "data" / "0.parquet"
    write(file, ROWS)
    assert events(tmp_path / "set")[0] == WANT
    write(file, [(1, 3, "A", None), (1, None, "S", None), (1, 2, "A", None)])
    with pytest.raises(ValueError, match=r"set/data/0\.parquet: row 3: subject 1 has 1970-01-03\S* after 1970-01-04"):
        list(read_meds(tmp_path / "set"))
    write(file, [(5, 3, "A", None), (1, 2, "A", None), (2, 0, "A", None), (5, 4, "A", None)])
    with pytest.raises(ValueError, match=r"0\.parquet: row 4: subject 5 has rows in an earlier place of this file"):
        list(read_meds(tmp_path / "set"))
    write(file, [(5, 3, "A", None), (1, 2, "A", None)])
    write(tmp_path / "set" / "data" / "1.parquet", [(9, 3, "A", None), (1, 2, "A", None), (5, 2, "A", None)])
    with pytest.raises(ValueError, match=r"1\.parquet: row 2: subject 1 has rows in set/data/0\.parquet too"):
        list(read_meds(tmp_path / "set"))


def test_folders_without_data_and_other_files(tmp_path):
    write(tmp_path / "set" / "train" / "0.parquet", ROWS)
    write(tmp_path / "set" / "held_out" / "deep" / "0.parquet", [(8, 0, "A", None)])
    (tmp_path / "set" / "train" / "._0.parquet").write_bytes(b"junk of another system")
    write(tmp_path / "set" / "metadata" / "codes.parquet", ROWS)
    batches = list(read_meds(tmp_path / "set", label="mine"))
    assert [b.file for b in batches] == ["mine/held_out/deep/0.parquet", "mine/train/0.parquet"]
    assert read_meds_splits(tmp_path / "set") == {8: "test", 1: "train", 7: "train"}


def test_splits_file_decides_and_disagreement_is_named(tmp_path):
    def write_splits(*rows):
        table = dict(zip(("subject_id", "split"), map(list, zip(*rows, strict=True)), strict=True))
        (tmp_path / "metadata").mkdir(exist_ok=True)
        pq.write_table(pa.table(table), tmp_path / "metadata" / "subject_splits.parquet")

    write(tmp_path / "data" / "0.parquet", ROWS)
    assert read_meds_splits(tmp_path) is None
    write_splits((1, "tuning"), (7, "held_out"))
    assert read_meds_splits(tmp_path) == {1: "val", 7: "test"} == read_meds_splits(tmp_path / "data")
    write(tmp_path / "data" / "tuning" / "0.parquet", [(1, 0, "A", None)])
    assert read_meds_splits(tmp_path) == {1: "val", 7: "test"}
    write(tmp_path / "data" / "train" / "0.parquet", [(7, 0, "A", None)])
    with pytest.raises(ValueError, match=r"subject 7 is in folder 'train' \(train\) but metadata/subject_splits"):
        read_meds_splits(tmp_path)
    write_splits((1, "tuning"), (1, "train"))
    with pytest.raises(ValueError, match="subject 1 is in two splits"):
        read_meds_splits(tmp_path)
    write_splits((1, "dev"))
    with pytest.raises(ValueError, match="subject 1 has split 'dev'"):
        read_meds_splits(tmp_path)


def test_a_subject_in_two_split_folders_is_refused(tmp_path):
    write(tmp_path / "train" / "0.parquet", ROWS)
    write(tmp_path / "tuning" / "0.parquet", [(7, 0, "A", None)])
    with pytest.raises(ValueError, match="subject 7 is in folder 'tuning'"):
        read_meds_splits(tmp_path)


@pytest.mark.parametrize(
    ("name", "rows", "sizes"),
    [("correlated_10k", 806_965, (8_000, 1_000, 1_000)), ("aces_100", 77_542, (70, 15, 15))],
)
def test_shared_data_sets(shared_data, name, rows, sizes):
    read = kept = 0
    codes, subjects = set(), set()
    for batch in read_meds(shared_data / "meds" / name):
        read, kept = read + batch.rows_read, kept + len(batch.row)
        codes |= set(batch.codes)
        subjects |= set(batch.subject_id.tolist())
    splits = read_meds_splits(shared_data / "meds" / name)
    assert read == kept == rows
    assert tuple(list(splits.values()).count(s) for s in ("train", "val", "test")) == sizes
    assert subjects == set(splits)
    assert ("MEDS_BIRTH" in codes) == (name == "correlated_10k")
