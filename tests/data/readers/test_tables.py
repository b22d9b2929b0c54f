import io
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ehrjax.data.events import STATIC_TIME
from ehrjax.data.readers import csv_stream
from ehrjax.data.readers.columns import hash_ids
from ehrjax.data.readers.tables import EventPart, Field, Table, find_table, read_table

FIELDS = (
    Field("patient", ("PATIENT", "PERSON_ID")),
    Field("time", ("START", "DATE")),
    Field("code", ("CODE",)),
    Field("value", ("VALUE",), required=False),
    Field("note", ("NOTE",), required=False, is_free_text=True),
)


def table(text: str | bytes, name: str = "set/x.csv") -> Table:
    return Table(io.BytesIO(text if isinstance(text, bytes) else text.encode()), name)


def blocks(text: str | bytes):
    return list(read_table(table(text), FIELDS))


def events(block):
    subject = block.hashed_ids("patient", reason="no_patient")
    time = block.times("time")
    index, codes = block.texts("code")
    return block.events(subject, [EventPart(time, index, codes, block.numbers("value"))])


def ledger(batch) -> dict[str, list[int]]:
    return {reason: rows.tolist() for reason, rows in batch.quarantined.items()}


def test_no_rows():
    assert blocks("PATIENT,START,CODE\n") == []


def test_only_malformed_rows_still_give_a_ledger():
    (block,) = blocks("PATIENT,START,CODE\np,2020-01-01\n")
    batch = events(block)
    assert (batch.rows_read, len(batch.time), ledger(batch)) == (1, 0, {"malformed_row": [1]})


def test_every_row_is_kept_or_quarantined_once():
    (block,) = blocks(
        "person_id,Start,code,value\n"
        "p,2020-01-01,a,1e-5\n"
        ",bad,a,1\n"  # two faults: the first found counts
        "p,bad,a,1\n"
        "p,,a,1\n"
        "p,2020-01-02,,1\n"
        "p,2020-01-02\n"
        "q,2020-01-03T10:00:00Z,b,<5\n"
    )
    batch = events(block)
    assert batch.rows_read == 7
    assert batch.row.tolist() == [1, 7]
    assert ledger(batch) == {
        "malformed_row": [6],
        "no_patient": [2],
        "unparseable_time": [3],
        "missing_time": [4],
        "missing_code": [5],
    }
    assert batch.subject_id.tolist() == hash_ids(["p", "q"]).tolist()
    assert batch.time.tolist() == [1_577_836_800_000_000, 1_578_045_600_000_000]
    assert [batch.codes[i] for i in batch.code] == ["a", "b"]
    np.testing.assert_allclose(batch.numeric_value, [1e-5, np.nan])
    assert batch.visit_id.tolist() == [-1, -1]


def test_several_events_of_a_row_share_its_number_and_its_code_table():
    (block,) = blocks("PATIENT,START,CODE\np,2020-01-01,a\nq,2020-01-01,b\n")
    index, codes = block.texts("code")
    time = block.times("time")
    none = np.full(2, -1, np.int32)
    parts = [
        EventPart(time, index, codes, visit_id=np.array([5, 6])),
        EventPart(time, np.array([0, -1]), ["b", "unused"]),
        EventPart(time, none, []),
    ]
    batch = block.events(block.hashed_ids("patient"), parts, descriptions={"a": "A", "unused": "U"})
    assert batch.row.tolist() == [1, 2, 1]
    assert batch.codes == ["a", "b"] and batch.code.tolist() == [0, 1, 1]
    assert batch.visit_id.tolist() == [5, 6, -1]
    assert batch.descriptions == {"a": "A"}
    assert batch.numeric_value.dtype == np.float32 and np.isnan(batch.numeric_value).all()


def test_missing_column_names_file_wanted_and_found():
    with pytest.raises(ValueError, match=r"set/x\.csv: no column START or DATE; found PATIENT, WHEN, CODE"):
        blocks("PATIENT,WHEN,CODE\np,2020-01-01,a\n")


def test_missing_file_names_it(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"set/x\.csv: no such file"):
        next(read_table(Table(tmp_path / "x.csv", "set/x.csv"), FIELDS))


def test_times_all_in_another_format_are_an_error_not_a_guess():
    text = "PATIENT,START,CODE\np,31/12/2019,a\np,,a\np,30/12/2019,a\n"
    with pytest.raises(
        ValueError, match=r"set/x\.csv: no value of column START .* first is '31/12/2019', expected ISO"
    ):
        for block in read_table(table(text), FIELDS):
            block.times("time")


def test_a_single_slip_in_an_optional_time_is_no_other_format():
    stream = read_table(table("PATIENT,START,CODE\np,never,a\np,,a\n"), FIELDS)
    block = next(stream)
    block.times("time", required=False)
    assert block.keep.tolist() == [False, True] and next(stream, None) is None


def test_one_good_time_makes_bad_ones_quarantine():
    (block,) = blocks("PATIENT,START,CODE\np,31/12/2019,a\np,2019-12-31,a\n")
    batch = events(block)
    assert ledger(batch) == {"unparseable_time": [1]} and batch.row.tolist() == [2]


def test_optional_times_may_be_missing():
    (block,) = blocks("PATIENT,START,CODE\np,,a\n")
    assert block.times("time", required=False).tolist() == [STATIC_TIME] and block.keep.all()


def test_undecodable_bytes_cost_a_row_only_in_a_needed_column():
    text = "PATIENT,START,CODE,NOTE\np,2020-01-01,ä,x\np,2020-01-01,a,ä\np,2020-01-01,b,x\n".encode("latin-1")
    (block,) = blocks(text)
    assert block.texts("note")[1] == ["x", "\ufffd"]
    batch = events(block)
    assert ledger(batch) == {"not_utf8": [1]} and batch.row.tolist() == [2, 3]


def test_integer_ids():
    (block,) = blocks("PATIENT,START,CODE\n10.0,2020-01-01,a\nx,2020-01-01,a\n,2020-01-01,a\n")
    assert block.ints("patient", reason="no_patient").tolist() == [10, -1, -1]
    assert block.keep.tolist() == [True, False, False]


def test_blocks_number_their_rows_through(monkeypatch, tmp_path):
    monkeypatch.setattr(csv_stream, "_BLOCK_BYTES", 1 << 10)
    monkeypatch.setattr(csv_stream, "_HEADER_BYTES", 1 << 6)
    path = tmp_path / "x.csv"
    path.write_text("PATIENT,START,CODE\n" + "".join(f"{i},2020-01-01,a\n" for i in range(1, 1001)))
    found = list(read_table(Table(path, "set/x.csv"), FIELDS))
    assert len(found) > 5
    for block in found:
        assert block.ints("patient").tolist() == block.row.tolist()
    assert np.concatenate([block.row for block in found]).tolist() == list(range(1, 1001))


def test_a_reader_may_stop_early(monkeypatch):
    monkeypatch.setattr(csv_stream, "_BLOCK_BYTES", 1 << 10)
    stream = read_table(table("PATIENT,START,CODE\n" + "p,2020-01-01,a\n" * 5000), FIELDS)
    assert len(next(stream))
    stream.close()
    assert next(stream, None) is None


def test_zip_member():
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("X.csv", "PATIENT,START,CODE\np,2020-01-01,a\n")
    with zipfile.ZipFile(raw) as archive, archive.open("X.csv") as member:
        (block,) = read_table(Table(member, "set/X.csv"), FIELDS)
    assert events(block).codes == ["a"]


def test_parquet_reads_like_csv(tmp_path):
    path = tmp_path / "x.parquet"
    columns = {
        "person_id": pa.array([1, 2, None], pa.int64()),
        "start": pa.array([18262, None, 18263], pa.date32()),
        "code": pa.array([44054006, 7, 8]),
        "value": pa.array([1.5, None, 2.0], pa.float64()),
        "unread": pa.array(["x", "y", "z"]),
    }
    pq.write_table(pa.table(columns), path)
    (block,) = read_table(Table(path, "set/x.parquet"), FIELDS)
    subject = block.ints("patient", reason="no_patient")
    part = EventPart(block.times("time"), *block.texts("code"), block.numbers("value"))
    batch = block.events(subject, [part])
    assert (batch.subject_id.tolist(), batch.time.tolist()) == ([1], [18262 * 86_400_000_000])
    assert (batch.codes, batch.numeric_value.tolist()) == (["44054006"], [1.5])
    assert ledger(batch) == {"no_patient": [3], "missing_time": [2]} and batch.rows_read == 3


def test_broken_parquet_names_the_file(tmp_path):
    path = tmp_path / "x.parquet"
    path.write_bytes(b"PAR1 but no more")
    with pytest.raises(ValueError, match=r"set/x\.parquet: not a readable parquet file"):
        list(read_table(Table(path, "set/x.parquet"), FIELDS))


def test_find_table_ignores_case_and_prefers_plain_files(tmp_path):
    for name in ("PERSON.csv.gz", "Person.CSV", "death.parquet"):
        (tmp_path / name).touch()
    assert find_table(tmp_path, "person").name == "Person.CSV"
    assert find_table(tmp_path, "death").name == "death.parquet"
    assert find_table(tmp_path, "visit") is None
