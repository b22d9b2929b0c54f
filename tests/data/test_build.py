"""The build command: reuse, rebuilding, pooling, its account of a build, and what it says of bad input."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ehrjax.data import build
from ehrjax.data.build import build_store, list_files, num_partitions, summarise
from ehrjax.data.store import SCHEMA_VERSION, StoreSettings, open_store
from experiments.benchmarks.ingestion import ROWS, write_csvs

PATIENTS = "Id,BIRTHDATE,DEATHDATE,GENDER,RACE\na,1950-01-01,,F,white\nb,1960-01-01,2015-01-01,M,black\n"
ENCOUNTERS = (
    "Id,START,STOP,PATIENT,ENCOUNTERCLASS,CODE,DESCRIPTION\n"
    "e1,2010-01-01T10:00:00Z,2010-01-01T11:00:00Z,a,ambulatory,185345009,Encounter for symptom\n"
    "e2,2012-01-01T10:00:00Z,2012-01-05T11:00:00Z,b,inpatient,185345009,Encounter for symptom\n"
)
CONDITIONS = (
    "START,STOP,PATIENT,ENCOUNTER,CODE,DESCRIPTION\n"
    "2010-01-01,,a,e1,44054006,Diabetes\n"
    "2010-01-01,,a,e1,44054006,Diabetes\n"
    "2012-01-01,,c,e2,44054006,Diabetes\n"
    "2019-01-01,,b,e2,44054006,Diabetes\n"
)


def write_synthea(folder):
    folder.mkdir(parents=True)
    for name, text in (("patients", PATIENTS), ("encounters", ENCOUNTERS), ("conditions", CONDITIONS)):
        (folder / f"{name}.csv").write_text(text)
    return folder


def write_meds(folder, subjects, splits=None):
    (folder / "data").mkdir(parents=True)
    columns = {
        "subject_id": pa.array(subjects, pa.int64()),
        "time": pa.array([10**15] * len(subjects), pa.timestamp("us")),
        "code": ["DIAGNOSIS//X"] * len(subjects),
        "numeric_value": pa.array([None] * len(subjects), pa.float32()),
    }
    pq.write_table(pa.table(columns), folder / "data" / "0.parquet")
    if splits:
        (folder / "metadata").mkdir()
        table = pa.table({"subject_id": list(splits), "split": list(splits.values())})
        pq.write_table(table, folder / "metadata" / "subject_splits.parquet")
    return folder


def test_no_path(tmp_path):
    with pytest.raises(ValueError, match="no path given"):
        build_store("synthea", " , ", tmp_path / "store")


def test_bad_paths(tmp_path):
    folder = write_synthea(tmp_path / "a")
    with pytest.raises(FileNotFoundError, match="missing does not exist: give the folder"):
        build_store("synthea", [folder, tmp_path / "missing"], tmp_path / "store")
    with pytest.raises(ValueError, match="is given twice"):
        build_store("synthea", f"{folder},{folder}/../a", tmp_path / "store")
    with pytest.raises(ValueError, match="lies inside the source folder"):
        build_store("synthea", folder, folder / "store")
    with pytest.raises(ValueError, match="source='fhir' is not known: use one of synthea, meds, mimic4, omop"):
        build_store("fhir", folder, tmp_path / "store")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"empty: no patients\.csv"):
        build_store("synthea", tmp_path / "empty", tmp_path / "store")
    assert {path.name for path in tmp_path.iterdir()} == {"a", "empty"}


def test_synthea_to_store(tmp_path):
    store = build_store("synthea", write_synthea(tmp_path / "a"), tmp_path / "store")
    report = store.report
    assert (report["num_patients"], report["num_visits"]) == (2, 2)
    assert report["rows_by_reason"] == {"after_death": 1, "duplicate_row": 1, "unknown_patient": 1}
    assert (report["rows_read"], report["rows_kept"]) == (8, 5)
    assert [file["file"] for file in report["files"]] == ["a/conditions.csv", "a/encounters.csv", "a/patients.csv"]
    assert "DIAGNOSIS//SNOMED//44054006" in store.codes
    text = summarise(store)
    assert "rows read 8 = kept 5 + quarantined 3, from 3 files" in text
    assert "2 patients (2 with visits), 2 visits, 14 events, 12 codes" in text
    assert "visits per patient  mean 1.0  min 1" in text


def test_nothing_changed_then_the_store_is_reused(tmp_path, capsys):
    folder = write_synthea(tmp_path / "a")
    first = build_store("synthea", folder, tmp_path / "store", progress=True)
    stamp = (tmp_path / "store" / "manifest.json").stat().st_mtime_ns
    capsys.readouterr()
    again = build_store("synthea", str(folder), tmp_path / "store", progress=True)
    assert "nothing has changed, the store is used as it is" in capsys.readouterr().out
    assert again.manifest == first.manifest
    assert (tmp_path / "store" / "manifest.json").stat().st_mtime_ns == stamp


def change_file(folder, store):
    with open(folder / "conditions.csv", "a") as file:
        file.write("2010-01-02,,a,e1,59621000,Hypertension\n")


def add_file(folder, store):
    shutil.copy(folder / "conditions.csv", folder / "allergies.csv")


def change_time(folder, store):
    os.utime(folder / "patients.csv", ns=(1, 1))


def change_version(folder, store):
    manifest = store.manifest | {"schema_version": SCHEMA_VERSION - 1}
    (store.path / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (change_file, "the source files have changed"),
        (add_file, "the source files have changed"),
        (change_time, "the source files have changed"),
        (change_version, f"it was written with store schema {SCHEMA_VERSION - 1}"),
        (None, "the settings have changed"),
    ],
)
def test_a_change_rebuilds(tmp_path, capsys, change, said):
    folder = write_synthea(tmp_path / "a")
    store = build_store("synthea", folder, tmp_path / "store")
    settings = StoreSettings() if change else StoreSettings("same_day")
    if change:
        change(folder, store)
    again = build_store("synthea", folder, tmp_path / "store", settings=settings, progress=True)
    assert said in capsys.readouterr().out
    assert open_store(tmp_path / "store").manifest == again.manifest
    assert again.manifest["schema_version"] == SCHEMA_VERSION


def test_a_failed_rebuild_leaves_the_old_store(tmp_path):
    folder = write_synthea(tmp_path / "a")
    store = build_store("synthea", folder, tmp_path / "store")
    (folder / "patients.csv").write_text("Name\nx\n")
    with pytest.raises(ValueError, match="no column ID"):
        build_store("synthea", folder, tmp_path / "store")
    assert open_store(tmp_path / "store").manifest == store.manifest


def test_pooled_folders_of_one_name_are_told_apart(tmp_path):
    write_synthea(tmp_path / "x" / "csv")
    write_synthea(tmp_path / "y" / "csv")
    store = build_store("synthea", f"{tmp_path}/x/csv,{tmp_path}/y/csv", tmp_path / "store")
    files = {file["file"]: file for file in store.report["files"]}
    assert set(files) == {f"{a}/csv/{b}.csv" for a in "xy" for b in ("patients", "encounters", "conditions")}
    # The same patients again: all that the second folder says is known.
    assert store.report["num_patients"] == 2
    assert files["x/csv/patients.csv"]["rows_kept"] == 2
    assert files["y/csv/patients.csv"]["rows_by_reason"] == {"duplicate_row": 2}
    alone = build_store("synthea", tmp_path / "x" / "csv", tmp_path / "alone")
    assert alone.manifest["content_hash"] == store.manifest["content_hash"]


def test_numbered_patients_of_two_sets_must_not_mix(tmp_path):
    one, two = write_meds(tmp_path / "one", [1, 2]), write_meds(tmp_path / "two", [2, 3])
    with pytest.raises(ValueError, match=r"subject 2 is in both .*one and .*two \(1 subjects are\)"):
        build_store("meds", [one, two], tmp_path / "store")
    three = write_meds(tmp_path / "three", [4])
    assert build_store("meds", [one, three], tmp_path / "store").manifest["num_patients"] == 3


def test_meds_splits_are_kept(tmp_path):
    one = write_meds(tmp_path / "one", [1, 2, 3], {1: "train", 2: "tuning", 3: "held_out"})
    two = write_meds(tmp_path / "two", [4])
    expected = {1: "train", 2: "val", 3: "test"}
    assert build_store("meds", one, tmp_path / "store").splits == expected
    assert build_store("meds", [one, two], tmp_path / "store").splits == expected
    assert build_store("meds", two, tmp_path / "store").splits is None


def test_partitions_grow_with_the_source():
    def parts(size, name="a.csv"):
        return num_partitions([(name, size, 0)])

    assert parts(0) == parts(1000) == 1
    assert parts(640 << 20) == 10
    assert parts(100 << 20, "a.csv.gz") == parts(600 << 20)
    assert parts(64 << 30) == 341  # 192 MiB each


def test_list_files_skips_hidden_ones(tmp_path):
    folder = write_synthea(tmp_path / "a")
    listed = list_files(folder)
    (folder / ".DS_Store").touch()
    (folder / ".cache").mkdir()
    (folder / ".cache" / "x").touch()
    assert list_files(folder) == listed
    assert list_files(folder / "patients.csv")[0][:2] == ("patients.csv", len(PATIENTS))


def test_command_line(tmp_path, capsys):
    folder = write_synthea(tmp_path / "a")
    build.main(["--source=synthea", f"--path={folder}", f"--out={tmp_path / 'store'}", "--visits=same_day"])
    out = capsys.readouterr().out
    assert "2 patients (2 with visits), 2 visits" in out
    assert "duplicate_row" in out
    assert "visits: same_day" in out
    with pytest.raises(SystemExit, match=r"^error: .*nowhere does not exist: give the folder"):
        build.main(["--source=synthea", f"--path={tmp_path / 'nowhere'}", f"--out={tmp_path / 'store'}"])
    with pytest.raises(SystemExit, match=r"^error: cannot write .*file/store: "):
        (tmp_path / "file").touch()
        build.main(["--source=synthea", f"--path={folder}", f"--out={tmp_path / 'file' / 'store'}"])
    with pytest.raises(SystemExit):
        build.main(["--source=synthea", f"--path={folder}", "--out=x", "--visits=weekly"])
    assert "invalid choice: 'weekly'" in capsys.readouterr().err


def test_the_command_needs_no_jax(tmp_path):
    """The data layer runs on machines that only prepare data; and help comes at once."""
    code = "import sys, ehrjax.data.build; sys.exit('jax' in sys.modules or 'torch' in sys.modules)"
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0
    command = [sys.executable, "-m", "ehrjax.data.build", "--help"]
    shown = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout
    assert "--death-tolerance-days" in shown


def test_the_benchmarks_files(tmp_path, monkeypatch):
    write_csvs(tmp_path / "csv", 20_000)
    rows = sum(len((tmp_path / "csv" / f"{name}.csv").read_bytes().splitlines()) - 1 for name in [*ROWS, "patients"])
    store = build_store("synthea", tmp_path / "csv", tmp_path / "one")
    assert store.report["rows_read"] == rows == 20_040
    assert set(store.report["rows_by_reason"]) <= {"duplicate_row"}
    assert store.report["rows_kept"] > 19_900
    assert len(store.shards) == 1
    monkeypatch.setattr(build, "_PARTITION_BYTES", 1 << 18)
    several = build_store("synthea", tmp_path / "csv", tmp_path / "several")
    assert len(several.shards) > 5
    for name in ("num_patients", "num_visits", "num_events", "rows_kept", "last_time"):
        assert several.manifest[name] == store.manifest[name]


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("synthea", ["synthea/whiterabbit_157"]),
        ("synthea", [f"synthea/{name}" for name in ("victor_105", "unmc_111", "swall_109")]),
        ("meds", ["meds/aces_100"]),
        ("mimic4", ["mimic4_demo"]),
        ("omop", ["omop/Synthea27Nj_5.4.zip"]),
    ],
)
def test_real_data(shared_data, tmp_path, source, names):
    store = build_store(source, [shared_data / name for name in names], tmp_path / "store")
    report = store.report
    assert report["rows_read"] == report["rows_kept"] + report["rows_quarantined"] > 0
    assert report["rows_quarantined"] == pq.read_metadata(store.path / "quarantine.parquet").num_rows
    assert report["num_patients"] >= 20
    assert report["codes_per_visit"]["max"] > 1
    for shard in store.shards:
        assert (shard.visit_end >= shard.visit_start).all()
