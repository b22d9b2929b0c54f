"""The store: its layout, what it says of bad input, and that order, workers and interruptions change nothing."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from ehrjax.data.store import NULL_TIME, SCHEMA_VERSION, Shard, StoreSettings, open_store, shard_of, write_store

from .helpers import make_batch, make_store, seconds

DAY = 86_400


def many_events(num_subjects=60, seed=0):
    """Events of all kinds, some of which are quarantined."""
    rng = np.random.default_rng(seed)
    codes = ["DIAGNOSIS//SNOMED//1", "LAB//LOINC//2", "VITAL//LOINC//3", "OTHER"]
    events = []
    for subject in range(num_subjects):
        birth = 1940 + subject % 50
        events += [(subject, f"{birth}-01-01", "MEDS_BIRTH", None, None), (subject, None, "GENDER//F", None, None)]
        if subject % 7 == 0:
            events.append((subject, "2005-06-01", "MEDS_DEATH", None, None))
        for visit in range(rng.integers(0, 5)):
            day, number = f"20{rng.integers(0, 20):02d}-0{rng.integers(1, 9)}-1", 100 * subject + visit
            events += [
                (subject, f"{day}1T09:00:00", "ENCOUNTER//inpatient", None, number),
                (subject, f"{day}3T09:00:00", "ENCOUNTER_END//inpatient", None, number),
            ]
            for _ in range(rng.integers(0, 6)):
                value = round(float(rng.normal()), 2) if rng.random() < 0.5 else None
                at = f"{day}{rng.integers(0, 4)}T10:00:0{rng.integers(0, 2)}"
                events.append((subject, at, codes[rng.integers(4)], value, number if rng.random() < 0.5 else None))
    events.append((3, "1930-01-01", "OTHER", None, None))  # before birth
    return events + events[10:40:7]  # and duplicates


def batches_of(events, size=50):
    """Several batches of two files."""
    starts = list(range(0, len(events), size))
    files = [f"hand/{'abc'[i % 3]}.csv" for i in range(len(starts))]
    return [make_batch(events[s : s + size], file=f, first_row=s + 1) for s, f in zip(starts, files, strict=True)]


def test_no_batches(tmp_path):
    with pytest.raises(ValueError, match="No patient is left of 0 rows read"):
        write_store([], tmp_path / "store")
    assert list(tmp_path.iterdir()) == []


def test_no_patient_is_left(tmp_path):
    with pytest.raises(ValueError, match=r"No patient is left of 1 rows read \(quarantined: 1 missing_time\)"):
        make_store(tmp_path, [(1, None, "MEDS_BIRTH", None, None)])
    assert list(tmp_path.iterdir()) == []


def test_a_single_patient_without_visits(tmp_path):
    store = make_store(tmp_path, [(5, "1980-01-01", "MEDS_BIRTH", None, None), (5, None, "GENDER//F", None, None)])
    shard = store.shards[0]
    assert shard.subject_ids.tolist() == [5]
    assert shard.birth.tolist() == [seconds("1980-01-01")]
    assert shard.death.tolist() == [NULL_TIME]
    assert shard.visit_offsets.tolist() == shard.static_offsets.tolist()[:1] * 2 == [0, 0]
    assert store.codes[shard.static_codes].tolist() == ["GENDER//F"]
    assert len(shard.visit_start) == len(shard.event_codes) == 0
    assert store.report["num_patients_with_visits"] == 0
    assert store.manifest["last_time"] is store.report["last_time"] is None


def test_a_patient_whose_events_were_all_dropped_is_not_in_the_store(tmp_path):
    store = make_store(tmp_path, [(1, None, "MEDS_DEATH", None, None), (2, "2000-01-01", "X", None, None)])
    assert store.subject_ids.tolist() == [2]
    assert store.shards[0].visit_offsets.tolist() == [0, 1]


def test_layout_and_order_within_a_visit(tmp_path):
    events = [
        (7, "2010-01-01T10:00:00", "ENCOUNTER//inpatient", None, 70),
        (7, "2010-01-03T10:00:00", "ENCOUNTER_END//inpatient", None, 70),
        (7, "2010-01-01T12:00:00", "LAB//B", 2.0, 70),
        (7, "2010-01-01T12:00:00", "LAB//A", 1.0, 70),
        (7, "2010-01-01T11:00:00", "LAB//C", None, 70),
        (7, "2010-01-02T00:00:00", "DIAGNOSIS//X", None, 70),
        (7, "2010-01-01T09:59:59.5", "MEDICATION//M", None, 70),
        (7, "2008-01-01T00:00:00", "DIAGNOSIS//X", None, None),
        (2, "2011-01-01T00:00:00", "DIAGNOSIS//X", None, None),
        (7, None, "RACE//white", None, None),
        (7, None, "GENDER//F", None, None),
    ]
    store = make_store(tmp_path, events)
    (shard,) = store.shards
    assert shard.subject_ids.tolist() == [2, 7]
    assert shard.visit_offsets.tolist() == [0, 1, 3]
    assert shard.visit_ids.tolist()[2] == 70
    start = seconds("2010-01-01T10:00:00")
    assert shard.visit_start.tolist() == [seconds("2011-01-01"), seconds("2008-01-01"), start]
    assert shard.visit_end.tolist()[1:] == [seconds("2008-01-01"), start + 2 * DAY]
    assert [store.codes[c] if c >= 0 else None for c in shard.visit_class] == [None, None, "ENCOUNTER//inpatient"]
    assert shard.event_offsets.tolist() == [0, 1, 2, 8]
    names = ["DIAGNOSIS//X", "LAB//C", "LAB//A", "LAB//B", "MEDICATION//M", "ENCOUNTER//inpatient"]
    assert store.codes[shard.event_codes[2:]].tolist() == names
    assert shard.event_times[2:].tolist() == [50_400, 3_600, 7_200, 7_200, 0, 0]
    assert np.array_equal(shard.event_values[2:], [np.nan, np.nan, 1, 2, np.nan, np.nan], equal_nan=True)
    assert store.codes[shard.static_codes].tolist() == ["GENDER//F", "RACE//white"]
    assert shard.static_offsets.tolist() == [0, 0, 2]


def test_files_memory_maps_and_types(tmp_path):
    store = make_store(tmp_path, many_events())
    kinds = {"i8", "i4", "f4"}
    for name, column in store.shards[0]._asdict().items():
        assert isinstance(column, np.memmap)
        assert not column.flags.writeable
        assert column.dtype.str[1:] in kinds, name
        assert (store.path / "shard-00000" / f"{name}.npy").exists()
    codes = pq.read_table(store.path / "codes.parquet")
    assert codes.column_names == ["code", "description", "parent_codes", "count"]
    assert store.codes.tolist() == sorted(store.codes.tolist())
    assert {path.name for path in tmp_path.iterdir()} == {"store"}


def test_ledger(tmp_path):
    events = many_events()
    store = write_store(batches_of(events), tmp_path / "store", num_shards=3)
    report, table = store.report, pq.read_table(store.path / "quarantine.parquet").to_pylist()
    assert report["rows_read"] == len(events) == report["rows_kept"] + report["rows_quarantined"]
    assert report["rows_quarantined"] == len(table) == sum(report["rows_by_reason"].values())
    assert set(report["rows_by_reason"]) == {"before_birth", "after_death", "duplicate_row"}
    assert sum(file["rows_read"] for file in report["files"]) == len(events)
    born_before = next(i for i, event in enumerate(events) if event[1] == "1930-01-01") + 1
    assert [row["row"] for row in table if row["reason"] == "before_birth"] == [born_before]
    assert [(row["file"], row["row"]) for row in table] == sorted((row["file"], row["row"]) for row in table)
    counts = dict(zip(store.codes.tolist(), store.code_counts.tolist(), strict=True))
    assert sum(counts.values()) == report["num_events"] == report["rows_kept"]
    assert store.manifest["last_time"] == max(
        int((shard.visit_end).max()) for shard in store.shards if len(shard.visit_end)
    )


def test_reader_quarantine_is_counted(tmp_path):
    batch = make_batch([(1, "2000-01-01", "X", None, None)], first_row=2)
    batch = batch._replace(rows_read=3, quarantined={"missing_code": np.array([1, 3])})
    store = write_store([batch], tmp_path / "store")
    assert store.report["rows_by_reason"] == {"missing_code": 2}
    assert pq.read_table(store.path / "quarantine.parquet")["row"].to_pylist() == [1, 3]
    with pytest.raises(ValueError, match="read 4 rows, but 1 gave events and 2 are quarantined"):
        write_store([batch._replace(rows_read=4)], tmp_path / "other")


def test_rows_of_several_events(tmp_path):
    events = [(1, "1980-01-01", "MEDS_BIRTH", None, None), (1, "1970-01-01", "A", None, None)]
    events += [(1, "1990-01-01", "B", None, None), (1, "1970-01-01", "A", None, None)]
    batch = make_batch(events)._replace(row=np.array([1, 2, 2, 3]), rows_read=3)
    store = write_store([batch], tmp_path / "store")
    assert store.report["rows_by_reason"] == {"before_birth": 1}  # row 3; row 2 still gave B
    assert (store.report["rows_kept"], store.report["num_events"]) == (2, 2)


def test_codes_that_do_not_occur_are_left_out(tmp_path):
    batch = make_batch([(1, "2000-01-01", "B", None, None)])
    batch = batch._replace(codes=["A", "B"], code=np.array([1], np.int32), descriptions={"B": "second", "A": "first"})
    store = write_store([batch], tmp_path / "store")
    assert store.codes.tolist() == ["B"]
    assert store.descriptions == {"B": "second"}


def test_subjects_lie_in_the_shard_of_their_hash(tmp_path):
    store = write_store(batches_of(many_events()), tmp_path / "store", num_shards=4)
    for number, shard in enumerate(store.shards):
        assert (shard_of(shard.subject_ids, 4) == number).all()
        assert (np.diff(shard.subject_ids) > 0).all()
    assert sorted(store.subject_ids.tolist()) == list(range(60))
    with pytest.raises(IndexError):
        store.shards[4]


def test_more_shards_than_stay_open(tmp_path):
    store = write_store(batches_of(many_events()), tmp_path / "store", num_shards=70)
    assert sum(len(shard.subject_ids) for shard in store.shards) == 60
    assert len(store.shards._open) <= 32


def all_bytes(store):
    return [column.tobytes() for shard in store.shards for column in shard]


def test_the_order_of_batches_does_not_matter(tmp_path):
    events = many_events()
    first = write_store(batches_of(events), tmp_path / "a", num_shards=3)
    batches = batches_of(events, size=17)
    random.Random(0).shuffle(batches)
    renamed = {f"hand/{name}.csv": f"other/{name}.csv" for name in "abc"}
    second = write_store([b._replace(file=renamed[b.file]) for b in batches], tmp_path / "b", num_shards=3)
    assert first.manifest["content_hash"] == second.manifest["content_hash"]
    assert all_bytes(first) == all_bytes(second)


def test_the_content_hash_sees_every_change(tmp_path):
    events = [(1, "2000-01-01", "A", 1.0, None), (2, "2000-01-01", "B", None, None)]
    changed = [
        [(1, "2000-01-01", "A", 2.0, None), events[1]],
        [(1, "2000-01-02", "A", 1.0, None), events[1]],
        [(1, "2000-01-01", "C", 1.0, None), events[1]],
        [(3, "2000-01-01", "A", 1.0, None), events[1]],
        [(1, "2000-01-01", "A", 1.0, 9), events[1]],
    ]
    hashes = {make_store(tmp_path, version).manifest["content_hash"] for version in [events, *changed]}
    assert len(hashes) == 6


def test_executors_do_not_matter(tmp_path):
    events = many_events()
    plain = write_store(batches_of(events), tmp_path / "plain", num_shards=4)
    with ThreadPoolExecutor(3) as executor:
        threads = write_store(batches_of(events), tmp_path / "threads", num_shards=4, executor=executor)
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as executor:
        processes = write_store(batches_of(events), tmp_path / "processes", num_shards=4, executor=executor)
    assert all_bytes(plain) == all_bytes(threads) == all_bytes(processes)
    reports = [store.report | {name: 0 for name in plain.report if "second" in name} for store in (plain, processes)]
    assert reports[0] == reports[1]


def test_a_visit_of_fifty_thousand_codes(tmp_path):
    events = [(1, "2000-01-01T10:00:00", f"LAB//{i}", float(i), 4) for i in range(50_000)]
    store = make_store(tmp_path, [*events, (1, "2001-01-01", "X", None, None)])
    assert store.shards[0].event_offsets.tolist() == [0, 50_000, 50_001]
    assert store.report["codes_per_visit"]["max"] == 50_000
    names = store.codes[store.shards[0].event_codes[:50_000]]
    assert (names[1:] > names[:-1]).all()
    assert (np.char.replace(names, "LAB//", "").astype(float) == store.shards[0].event_values[:50_000]).all()


def test_values_settle_the_order_of_equal_times_and_codes(tmp_path):
    values = [3.0, None, 1.0, -2.0, 2.0]
    events = [(1, "2000-01-01", "X", value, None) for value in values]
    forward = make_store(tmp_path / "a", events)
    backward = make_store(tmp_path / "b", events[::-1])
    assert all_bytes(forward) == all_bytes(backward)


def test_splits(tmp_path):
    events = [(1, "2000-01-01", "X", None, None), (2, "2000-01-01", "X", None, None)]
    assert make_store(tmp_path / "a", events).splits is None
    assert make_store(tmp_path / "b", events, splits={2: "test", 1: "train"}).splits == {1: "train", 2: "test"}


def test_settings(tmp_path):
    events = [(1, "2000-01-01T00:00:00", "X", None, None), (1, "2000-01-01T20:00:00", "Y", None, None)]
    assert make_store(tmp_path, events).manifest["num_visits"] == 1
    store = make_store(tmp_path, events, settings=StoreSettings("time_window", window_hours=10))
    assert store.manifest["num_visits"] == 2
    assert store.manifest["settings"]["visits"] == "time_window"
    with pytest.raises(ValueError, match="visits='daily' is not a strategy"):
        StoreSettings("daily")
    far = [*events, (1, "2090-01-01T20:00:00", "Y", None, None)]
    with pytest.raises(ValueError, match="window_hours=1000000 is too long"):
        make_store(tmp_path, far, settings=StoreSettings("time_window", window_hours=1_000_000))


def test_opening_what_is_no_store(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing does not exist\. Build one with"):
        open_store(tmp_path / "nothing")
    (tmp_path / "folder").mkdir()
    with pytest.raises(FileNotFoundError, match=r"folder is not a store: it has no manifest\.json"):
        open_store(tmp_path / "folder")
    (tmp_path / "folder" / "manifest.json").write_text('{"schema_')
    with pytest.raises(ValueError, match="is not readable JSON"):
        open_store(tmp_path / "folder")


def test_opening_a_store_of_another_version(tmp_path):
    store = make_store(tmp_path, many_events())
    manifest = store.manifest | {"schema_version": SCHEMA_VERSION + 1}
    (store.path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=f"written with store schema {SCHEMA_VERSION + 1}; .* Build it again"):
        open_store(store.path)


def test_only_stores_are_replaced(tmp_path):
    (tmp_path / "store").mkdir()
    events = [(1, "2000-01-01", "X", None, None)]
    make_store(tmp_path, events)  # an empty folder is taken
    assert make_store(tmp_path, [*events, (2, "2000-01-01", "X", None, None)]).manifest["num_patients"] == 2
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("two years of work")
    with pytest.raises(ValueError, match="mine exists and is not a store; it is left alone"):
        write_store([make_batch(events)], tmp_path / "mine")
    with pytest.raises(ValueError, match=r"thesis.tex exists and is not a store"):
        write_store([make_batch(events)], tmp_path / "mine" / "thesis.tex")
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "two years of work"


def test_an_error_of_the_reader_leaves_the_old_store(tmp_path):
    events = [(1, "2000-01-01", "X", None, None)]
    old = make_store(tmp_path, events)

    def failing():
        yield make_batch(events)
        raise OSError("observations.csv: cut")

    with pytest.raises(OSError, match=r"^observations.csv: cut$"):  # not blamed on the folder written to
        write_store(failing(), tmp_path / "store")
    assert open_store(tmp_path / "store").manifest == old.manifest
    assert {path.name for path in tmp_path.iterdir()} == {"store"}


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"cannot write .*file/store: (File exists|Not a directory). Choose a folder"):
        make_store(tmp_path / "file", [(1, "2000-01-01", "X", None, None)])


@pytest.mark.skipif(not Path("/sys/kernel").is_dir(), reason="needs a folder in which not even root may write")
def test_a_read_only_folder():
    with pytest.raises(OSError, match=r"cannot write /sys/kernel/store: .*Choose a folder"):
        make_store(Path("/sys/kernel"), [(1, "2000-01-01", "X", None, None)])


@pytest.mark.parametrize("limit", [1_000, 60_000])  # bytes a file may have: fails in the first pass, in the second
def test_a_full_disk(tmp_path, limit, limit_file_size):
    events = [(1, "2000-01-01T10:00:00", f"LAB//{i % 100}", float(i), 4) for i in range(20_000)]
    batches = [make_batch(events[i : i + 1_000], first_row=i + 1) for i in range(0, 20_000, 1_000)]
    num_shards = 1 if limit == 1_000 else 16
    if num_shards > 1:  # spread in the first pass so that only a column in the second is too large
        batches = [b._replace(subject_id=np.full(1_000, i % 16)) for i, b in enumerate(batches)]
    with (
        limit_file_size(limit),
        pytest.raises(OSError, match=r"cannot write .*store: .*Choose a folder with free space"),
    ):
        write_store(batches, tmp_path / "store", num_shards=num_shards)
    assert list(tmp_path.iterdir()) == []


KILLED_BUILD = """
import sys, time
from pathlib import Path
from tests.data.test_store import batches_of, many_events
from ehrjax.data import store

out, phase = Path(sys.argv[1]), sys.argv[2]

def stall():
    print("stalled", flush=True)
    time.sleep(600)

def batches():
    for i, batch in enumerate(batches_of(many_events())):
        if phase == "reading" and i == 3:
            stall()
        yield batch

if phase == "shards":
    build, count = store.build_partition, []
    def build_some(*args):
        count.append(1)
        return stall() if len(count) == 3 else build(*args)
    store.build_partition = build_some
if phase == "finishing":
    store._write_tables = lambda *args: stall()
store.write_store(batches(), out, num_shards=4)
"""


@pytest.mark.parametrize("phase", ["reading", "shards", "finishing"])
def test_a_killed_build_leaves_nothing_to_the_next(tmp_path, phase):
    out = tmp_path / "store"
    undisturbed = write_store(batches_of(many_events()), tmp_path / "other" / "store", num_shards=4)
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", KILLED_BUILD, str(out), phase]
    process = subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "stalled\n"
        during = write_store(batches_of(many_events()), out, num_shards=4)  # does not touch the living one's folder
        assert process.poll() is None
        assert len(hidden(tmp_path)) == 1
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
    assert len(hidden(tmp_path)) == 1
    again = write_store(batches_of(many_events()), out, num_shards=4)
    assert hidden(tmp_path) == []
    hashes = {store.manifest["content_hash"] for store in (undisturbed, during, again)}
    assert len(hashes) == 1


def hidden(folder):
    return [path.name for path in folder.iterdir() if path.name.startswith(".store.building-")]


def test_shard_fields_are_the_documented_ones():
    assert Shard._fields[:3] == ("subject_ids", "birth", "death")
    assert len(Shard._fields) == 15


def test_building_is_quick(tmp_path):
    """A guard against a loop over patients or events: 200,000 events, generously timed."""
    rng = np.random.default_rng(0)
    n = 200_000
    batch = make_batch([(0, "2000-01-01", "A", None, None)])._replace(
        rows_read=n,
        subject_id=rng.integers(0, 5_000, n),
        time=rng.integers(0, 10**15, n),
        code=rng.integers(0, 300, n).astype(np.int32),
        codes=[f"LAB//{i}" for i in range(300)],
        numeric_value=rng.normal(size=n).astype(np.float32),
        visit_id=rng.integers(-1, 5, n),
        row=np.arange(1, n + 1),
    )
    start = time.process_time()
    write_store([batch], tmp_path / "store")
    assert time.process_time() - start < 5
    assert os.path.getsize(tmp_path / "store" / "shard-00000" / "event_codes.npy") > 4 * n
