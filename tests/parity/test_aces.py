"""Label files of ACES (the es-aces package) are read as they are, and say what our own task says."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ehrjax.data.cohorts import make_labels
from ehrjax.data.labels import read_meds_labels
from ehrjax.data.readers.meds import read_meds
from ehrjax.data.store import write_store
from ehrjax.data.tasks import task_from_dict

READMISSION = """
predicates:
  admission: {code: {regex: "^ADMISSION//.*"}}
  discharge: {code: {regex: "^DISCHARGE//.*"}}
trigger: discharge
windows:
  input: {start: null, end: trigger, start_inclusive: True, end_inclusive: True, index_timestamp: end}
  target: {start: input.end, end: start + 30d, start_inclusive: False, end_inclusive: True, label: admission}
"""


def run_aces(folder: Path, data: Path, out: Path, name: str, criteria: str) -> Path:
    """The label files, in the shards of the data set, that the `aces-cli` of a folder writes of a task."""
    (out / f"{name}.yaml").write_text(criteria)
    shards = [str(file.relative_to(data).with_suffix("")) for file in sorted(data.rglob("*.parquet"))]
    options = [f"data.root={data}", f"data.shard={','.join(shards)}", f"cohort_dir={out}", f"cohort_name={name}"]
    command = [str(folder / "aces-cli"), "--multirun", "data=sharded", "data.standard=meds", *options]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    return out / name


def check_readmission(data: Path, labels_folder: Path, out: Path) -> int:
    """Number of rows on which a folder of ACES labels and our engine agree; raises where they do not."""
    store = write_store(read_meds(data), out / "store")
    theirs = read_meds_labels(labels_folder, subject_ids=store.subject_ids)
    assert (theirs.kind, theirs.name) == ("binary", "readmission")
    assert theirs.flow["kept"] == theirs.flow["rows"] > 150
    ours = make_labels(store, task_from_dict("readmission", {"base": "readmission_30d", "follow_up": "dataset_end"}))
    value_of = dict(zip(zip(theirs.subject_ids, theirs.times, strict=True), theirs.values[:, 0], strict=True))
    rows = zip(ours.subject_ids, ours.times, strict=True)
    np.testing.assert_array_equal([value_of[row] for row in rows], ours.values[:, 0])
    assert 0 < ours.values.mean() < 1
    return len(ours.times)


def test_aces_labels_equal_our_readmission_task(tmp_path, shared_data):
    pytest.importorskip("aces", reason="needs the es-aces package")
    data = shared_data / "meds" / "aces_100"
    assert (
        check_readmission(
            data, run_aces(Path(sys.executable).parent, data, tmp_path, "readmission", READMISSION), tmp_path
        )
        > 100
    )
