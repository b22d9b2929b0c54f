"""Notes: every row accounted for, and nothing after the index time is joined."""

import gzip
import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ehrjax.data.events import NO_VISIT
from ehrjax.data.notes import Stays, build_notes, make_notes, notes_until, open_notes, recent_vectors
from tests.data.helpers import microseconds, seconds

HOUR = 3_600_000_000
ROWS = [
    {"subject_id": 1, "time": "2020-01-01T08:00:00", "visit_id": 10, "text": "Cough, no fever."},
    {"subject_id": 1, "time": "2020-01-02T08:00:00", "visit_id": 10, "text": "Worse.\nOn 4 L oxygen."},
    {"subject_id": 2, "time": "2020-01-01T09:30:00.000001", "visit_id": None, "text": "Stable"},
]


def write_jsonl(path, rows):
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    data = "\n".join(lines).encode() + b"\n"
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def write(path, rows=ROWS):
    frame = pd.DataFrame(rows)
    if "visit_id" in frame:
        frame["visit_id"] = frame["visit_id"].astype("Int64")
    if ".json" in path.name:
        return write_jsonl(path, rows)
    if path.suffix == ".parquet":
        frame["time"] = pd.to_datetime(frame["time"], format="ISO8601")
        frame.to_parquet(path)
    else:
        frame.to_csv(path, index=False)
    return path


def content(notes):
    texts = notes.text_of(np.arange(len(notes)))
    return list(zip(notes.subject_ids.tolist(), notes.times.tolist(), notes.visit_ids.tolist(), texts, strict=True))


def quarantine(folder):
    return {(r["file"], r["row"], r["reason"]) for r in pq.read_table(folder / "quarantine.parquet").to_pylist()}


@pytest.mark.parametrize("name", ["n.csv", "n.csv.gz", "n.parquet", "n.jsonl", "n.jsonl.gz"])
def test_all_formats_read_alike(tmp_path, name):
    notes = build_notes(write(tmp_path / name), tmp_path / "out")
    expected = [(r["subject_id"], microseconds(r["time"]), r["visit_id"] or NO_VISIT, r["text"]) for r in ROWS]
    assert content(notes) == expected
    assert notes.report["rows_read"] == notes.report["rows_kept"] == 3
    assert content(open_notes(tmp_path / "out")) == expected


@pytest.mark.parametrize("name", ["n.csv", "n.jsonl"])
def test_bad_rows_are_quarantined_by_file_and_row(tmp_path, name):
    bad = [
        ROWS[0],
        ROWS[0] | {"subject_id": None},
        ROWS[0] | {"time": None},
        ROWS[0] | {"time": "31/12/2019"},
        ROWS[0] | {"text": " \n "},
        ROWS[0] | {"subject_id": "x7"},
        ROWS[0],
        ROWS[1],
    ]
    frame = pd.DataFrame(bad).astype({"visit_id": "Int64"})
    path = tmp_path / name
    frame.to_csv(path, index=False) if name.endswith("csv") else write_jsonl(path, bad)
    notes = build_notes(path, tmp_path / "out")
    reasons = ["no_patient", "missing_time", "unparseable_time", "missing_text", "invalid_subject_id", "duplicate_row"]
    file = f"{tmp_path.name}/{name}"
    assert quarantine(tmp_path / "out") == {(file, row, reason) for row, reason in enumerate(reasons, start=2)}
    assert (notes.report["rows_read"], len(notes), notes.report["rows_quarantined"]) == (8, 2, 6)
    assert notes.report["rows_by_reason"] == dict.fromkeys(sorted(reasons), 1)


def test_json_that_is_none_is_counted_and_a_json_array_is_refused(tmp_path):
    path = write_jsonl(tmp_path / "n.jsonl", [ROWS[0], "{broken", "[1, 2]", "", ROWS[1]])
    build_notes(path, tmp_path / "out")
    file = f"{tmp_path.name}/n.jsonl"
    assert quarantine(tmp_path / "out") == {(file, 2, "malformed_row"), (file, 3, "malformed_row")}
    (tmp_path / "array.jsonl").write_text(json.dumps(ROWS))
    with pytest.raises(ValueError, match=r"array\.jsonl: no column subject_id"):
        build_notes(tmp_path / "array.jsonl", tmp_path / "other")


def test_bytes_that_are_no_utf8_are_kept_and_named(tmp_path):
    lines = ["subject_id,time,text", "1,2020-01-01 08:00:00,ok", "1,2020-01-02 08:00:00,fièvre"]
    (tmp_path / "n.csv").write_bytes("\n".join(lines).encode("latin-1"))
    notes = build_notes(tmp_path / "n.csv", tmp_path / "out")
    assert notes.text_of(np.array([1])) == ["fi\ufffdvre"]
    (file,) = notes.report["files"]
    assert (file["num_replaced"], file["first_replaced_row"]) == (1, 2)


def test_structural_faults_name_the_file_and_the_way_out(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere"):
        build_notes(tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(FileNotFoundError, match=r"no table of notes"):
        (tmp_path / "empty").mkdir()
        build_notes(tmp_path / "empty", tmp_path / "out")
    (tmp_path / "a.csv").write_text("subject_id,time,body\n1,2020-01-01,hello\n")
    with pytest.raises(ValueError, match=r"a\.csv: no column text.*name it in `columns`"):
        build_notes(tmp_path / "a.csv", tmp_path / "out")
    with pytest.raises(ValueError, match=r"'note' is no field"):
        build_notes(tmp_path / "a.csv", tmp_path / "out", columns={"note": "body"})
    (tmp_path / "b.csv").write_text("subject_id,time,text\n1,31/12/2019,hello\n1,30/12/2019,hi\n")
    with pytest.raises(ValueError, match=r"b\.csv.*31/12/2019"):
        build_notes(tmp_path / "b.csv", tmp_path / "out")
    (tmp_path / "c.parquet").write_bytes(b"no parquet")
    with pytest.raises(ValueError, match=r"c\.parquet: not a readable parquet"):
        build_notes(tmp_path / "c.parquet", tmp_path / "out")
    (tmp_path / "d.jsonl.gz").write_bytes(gzip.compress(b'{"a": 1}\n' * 99)[:-9])
    with pytest.raises(ValueError, match=r"d\.jsonl\.gz: cannot be read to its end"):
        build_notes(tmp_path / "d.jsonl.gz", tmp_path / "out")
    (tmp_path / "e.jsonl").write_text("")
    with pytest.raises(ValueError, match=r"e\.jsonl: no note"):
        build_notes(tmp_path / "e.jsonl", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_columns_can_be_named_and_text_ids_are_hashed_as_the_readers_do(tmp_path):
    from ehrjax.data.readers.columns import hash_ids

    (tmp_path / "n.csv").write_text("who,when,body,stay\np1,2020-01-01T00:00:00,hello,s1\n22,2020-01-01T00:00:00,hi,\n")
    columns = {"subject_id": "who", "time": "when", "text": "body", "visit_id": "stay"}
    notes = build_notes(tmp_path / "n.csv", tmp_path / "out", columns=columns)
    assert notes.subject_ids.tolist() == hash_ids(["p1", "22"]).tolist()
    assert notes.visit_ids.tolist() == [*hash_ids(["s1"]).tolist(), NO_VISIT]


def test_a_note_counts_from_when_it_was_known(tmp_path):
    """The later of charted and stored; a day, and MIMIC's and OMOP's midnight, last to the end of the day."""
    (tmp_path / "n.csv").write_text(
        "subject_id,charttime,storetime,chartdate,text\n"
        "1,2020-01-01 08:00:00,2020-01-01 11:00:00,2020-01-01,later stored\n"
        "1,2020-01-01 08:00:00,,2020-01-01,charted\n"
        "1,2020-01-02 00:00:00,,2020-01-02,midnight\n"
        "1,,,2020-01-03,day\n"
    )
    known = build_notes(tmp_path / "n.csv", tmp_path / "out").times
    times = ["2020-01-01T11:00:00", "2020-01-01T08:00:00", "2020-01-02T23:59:59", "2020-01-03T23:59:59"]
    assert known.tolist() == [microseconds(time) for time in times]


def test_meds_events_with_text_are_notes_if_their_code_says_so(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "metadata").mkdir()
    table = {
        "subject_id": pa.array([1, 1, 1, 2]),
        "time": pa.array([0, HOUR, 2 * HOUR, 0], pa.timestamp("us")),
        "code": ["NOTE//DS", "LAB//X", "NOTE//RR", "LAB//Y"],
        "text_value": ["Discharged home", "POSITIVE", "", None],
    }
    pq.write_table(pa.table(table), tmp_path / "data" / "0.parquet")
    pq.write_table(pa.table({"code": ["LAB//X"]}), tmp_path / "metadata" / "codes.parquet")
    notes = build_notes(tmp_path, tmp_path.parent / "out")
    assert content(notes) == [(1, 0, NO_VISIT, "Discharged home")]
    assert (notes.report["rows_read"], notes.report["num_other_events"]) == (1, 3)


def test_reuse_and_rebuild(tmp_path):
    path = write(tmp_path / "n.csv")
    build_notes(path, tmp_path / "out")
    stamp = (tmp_path / "out" / "notes.parquet").stat().st_mtime_ns
    build_notes(path, tmp_path / "out")
    assert (tmp_path / "out" / "notes.parquet").stat().st_mtime_ns == stamp
    write(path, [*ROWS, ROWS[2] | {"text": "New"}])
    assert len(build_notes(path, tmp_path / "out")) == 4
    with pytest.raises(ValueError, match="holds no notes"):
        open_notes(tmp_path / "nothing")


def test_a_text_is_stored_once_and_its_hash_depends_on_it_alone(tmp_path):
    rows = [*ROWS, ROWS[0] | {"time": "2020-01-05T00:00:00"}]
    notes = build_notes(write(tmp_path / "n.csv", rows), tmp_path / "out")
    assert notes.text_ids.tolist() == [0, 1, 2, 0] and len(notes.texts) == 3
    other = make_notes(np.array([9]), np.array([0]), ["Stable"])
    assert other.hashes.to_pylist() == notes.hashes.to_pylist()[2:]


# Joining


def hand_notes(times, subjects=None, visits=None):
    subjects = [1] * len(times) if subjects is None else subjects
    texts = [f"note {i}" for i in range(len(times))]
    return make_notes(np.array(subjects, np.int64), np.array(times, np.int64), texts, visits)


def joined(join):
    return [join.rows[a:b].tolist() for a, b in zip(join.offsets[:-1], join.offsets[1:], strict=True)]


def test_no_note_after_the_index_not_even_by_a_microsecond():
    index = microseconds("2150-06-01T12:00:00")
    notes = hand_notes([index + 1, index, index - 1])
    for times in (np.array([index // 1_000_000]), np.array([index]).astype("datetime64[us]")):
        assert joined(notes_until(notes, np.array([1]), times)) == [[2, 1]]
    assert joined(notes_until(notes, np.array([1]), np.array([index + 1]).astype("datetime64[us]"))) == [[2, 1, 0]]


def test_window_is_closed_at_both_ends():
    notes = hand_notes([0, 1, 24 * HOUR, 24 * HOUR + 1])
    index = np.array([24 * HOUR, 24 * HOUR + 1]).astype("datetime64[us]")
    assert joined(notes_until(notes, np.array([1, 1]), index, window_hours=24)) == [[0, 1, 2], [1, 2, 3]]


def test_a_later_note_leaves_the_join_as_it_was():
    rng = np.random.default_rng(0)
    times, subjects = rng.integers(0, 100 * HOUR, 200), rng.integers(0, 9, 200)
    index, who = rng.integers(0, 100 * 3600, 50), rng.integers(0, 12, 50)
    late = [int(index[who == subject].max(initial=0)) * 1_000_000 + 1 for subject in range(9)]
    before = notes_until(hand_notes(times, subjects), who, index)
    after = notes_until(hand_notes([*times, *late], [*subjects, *range(9)]), who, index)
    assert joined(before) == joined(after)


@pytest.mark.parametrize("window_hours", [None, 5.0])
def test_join_equals_a_loop(window_hours):
    rng = np.random.default_rng(1)
    n, m = 300, 80
    times, subjects, visits = rng.integers(-50, 50, n) * HOUR, rng.integers(0, 20, n), rng.integers(-1, 4, n)
    index, who = rng.integers(-50, 50, m) * 3600, rng.integers(0, 25, m)
    start = index - rng.integers(0, 30, m) * 3600
    stays = Stays(start, start + rng.integers(0, 40, m) * 3600, rng.integers(-1, 4, m))
    join = notes_until(hand_notes(times, subjects, visits), who, index, window_hours=window_hours, stays=stays)
    for j, rows in enumerate(joined(join)):
        want = []
        for i in range(n):
            t, same = times[i] // 1_000_000, visits[i] == stays.visit_ids[j] >= 0
            by_time = (visits[i] < 0 or stays.visit_ids[j] < 0) and t >= start[j]
            in_window = window_hours is None or t >= index[j] - window_hours * 3600
            if subjects[i] == who[j] and t <= index[j] and in_window and (same or by_time) and t <= stays.ends[j]:
                want.append(i)
        assert sorted(rows) == want and (np.diff(times[rows]) >= 0).all()
    assert join.num_unknown_subject == (~np.isin(subjects, who)).sum()


def test_a_note_after_discharge_does_not_join_its_stay_and_is_counted():
    notes = hand_notes([HOUR, 3 * HOUR, 3 * HOUR, HOUR], visits=np.array([10, 10, 11, 99]))
    stays = Stays(np.array([0, 0]), np.array([2 * 3600, 4 * 3600]), np.array([10, 11]))
    join = notes_until(notes, np.array([1, 1]), np.array([5 * 3600, 5 * 3600]), stays=stays)
    assert joined(join) == [[0], [2]] and join.num_after_discharge == 1
    still_there = stays._replace(starts=np.zeros(2, "datetime64[s]"), ends=np.full(2, "NaT", "datetime64[s]"))
    join = notes_until(notes, np.array([1, 1]), np.array([5 * 3600, 5 * 3600]), stays=still_there)
    assert joined(join) == [[0, 1], [2]] and join.num_after_discharge == 0


def test_empty_sides_and_faulty_input():
    notes, none = hand_notes([0, HOUR]), hand_notes([])
    assert joined(notes_until(none, np.array([1, 2]), np.array([0, 5]))) == [[], []]
    assert joined(notes_until(notes, np.array([], np.int64), np.array([], np.int64))) == []
    assert joined(notes_until(notes, np.array([7, 1, 0]), np.array([9, 0, 9]))) == [[], [0], []]
    with pytest.raises(ValueError, match="index row 1 has no time"):
        notes_until(notes, np.array([1, 1]), np.array(["2020-01-01", "NaT"], "datetime64[s]"))
    with pytest.raises(ValueError, match="2 index times, but 1 subjects"):
        notes_until(notes, np.array([1]), np.array([0, 1]))
    with pytest.raises(ValueError, match="float64"):
        notes_until(notes, np.array([1]), np.array([0.5]))
    with pytest.raises(ValueError, match="note 1 has no text"):
        make_notes(np.array([1, 1]), np.array([0, 1]), ["a", " "])


def test_a_note_weighs_half_of_one_that_is_a_half_life_later():
    notes = make_notes(np.array([1, 1, 1, 3]), np.array([0, 10, 30, 0]) * HOUR, ["a", "b", "a", "c"])
    embeddings = np.array([[7, 0], [0, 7], [5, 5]], np.float32)  # of "a", "b", "c"
    subjects, index = np.array([1, 2, 3, 1, 1]), np.array([10, 10, 99, 30, 40]) * 3600
    join = notes_until(notes, subjects, index)
    vectors, has_notes = recent_vectors(join, notes, embeddings, half_life_hours=10)
    expected = [[7 / 3, 14 / 3], [0, 0], [5, 5], [63 / 11, 14 / 11], [63 / 11, 14 / 11]]
    np.testing.assert_allclose(vectors, expected, rtol=1e-6)
    assert vectors.dtype == np.float32 and has_notes.tolist() == [True, False, True, True, True]
    evenly, _ = recent_vectors(join, notes, embeddings, half_life_hours=1e9)
    np.testing.assert_allclose(evenly[3], [14 / 3, 7 / 3], rtol=1e-6)


def test_weights_of_notes_that_are_years_apart_or_old_are_finite():
    notes = make_notes(np.array([1, 1]), np.array([0, 90_000]) * HOUR, ["a", "b"])
    join = notes_until(notes, np.array([1, 1]), np.array([80_000, 190_000]) * 3600)
    vectors, _ = recent_vectors(join, notes, np.eye(2, dtype=np.float32), half_life_hours=1)
    np.testing.assert_array_equal(vectors, [[1, 0], [0, 1]])


def test_vectors_of_no_rows_no_notes_and_too_few_texts():
    notes = make_notes(np.array([1]), np.array([0]), ["a"])
    for subjects in (np.array([], np.int64), np.array([2, 2])):
        join = notes_until(notes, subjects, np.zeros(len(subjects), np.int64))
        vectors, has_notes = recent_vectors(join, notes, np.ones((1, 3), np.float32), half_life_hours=1)
        assert vectors.shape == (len(subjects), 3) and not vectors.any() and not has_notes.any()
    join = notes_until(notes, np.array([1]), np.array([0]))
    with pytest.raises(ValueError, match="row 0 of the notes has no values"):
        recent_vectors(join, notes, np.ones((0, 3), np.float32), half_life_hours=1)


def test_seconds_and_datetimes_agree():
    index = "2020-01-01T08:00:00"
    notes = hand_notes([microseconds(index)])
    by_seconds = notes_until(notes, np.array([1]), np.array([seconds(index)]))
    assert joined(by_seconds) == joined(notes_until(notes, np.array([1]), np.array([index], "datetime64[ns]"))) == [[0]]
