"""Simulated hospital stays with vital signs, notes and known risks: will the patient deteriorate within 24 hours?

    python -m ehrjax.data.simulate --stays --out=DIR --num-patients=N --seed=S

    DIR/data/0.parquet              MEDS events: vital signs, and what ended each stay; --source=meds builds a store
    DIR/metadata/codes.parquet      the names of their codes
    DIR/notes.csv                   subject_id, time, visit_id, kind, text
    DIR/labels/TASK/0.parquet       MEDS labels, one row an index time
    DIR/oracle.parquet              the true probability at each index time, by what is read (`stay_oracle`)
    DIR/stays.parquet               one row a stay: admission, end, how it ended, what is charted of it
    DIR/simulation.json             settings and counts

The generative model is in `simulate_stay_chain` (states, hazards, vital signs), `simulate_stay_notes` and
`simulate_stay_paths`. A patient is a pure function of (seed, number): the first patients stay the same when more are
asked for. Stays of one patient share age and sex only, which have no bearing on the risk.
"""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
from tqdm import tqdm

from ehrjax.data import simulate_stay_tables as tables
from ehrjax.data.labels import Labels, concatenate, write_meds_labels
from ehrjax.data.simulate import is_same_simulation
from ehrjax.data.simulate_stay_notes import word_notes
from ehrjax.data.simulate_stay_paths import (
    DISCHARGE,
    HOUR,
    LAST_MINUTE,
    Stays,
    draw_stays,
    draws_of_hours,
    draws_of_patients,
    hours_of,
)
from ehrjax.data.stay_oracle import HORIZON_HOURS, IndexRows, index_rows, oracle_probabilities
from ehrjax.data.workspace import flush_to_disk, naming_the_folder, workspace

MODEL_VERSION = "stays-1"  # raised whenever the same seed gives other files; unlike those of `simulate`
TASK = f"deterioration_{HORIZON_HOURS}h"
BLOCK_PATIENTS = 2048


class StaySimulation(NamedTuple):
    """Some patients' stays. Labels and oracle have the same rows: all index times by subject, then time."""

    events: pa.Table
    notes: pa.Table
    stays: pa.Table
    labels: Labels
    oracle: pa.Table  # subject_id, visit_id, prediction_time, probability_{vitals, notes, both, latent}


def simulate_stays(num_patients: int, seed: int = 0, *, first: int = 0) -> StaySimulation:
    """Stays of patients `first .. first + num_patients - 1` of this seed, in memory.

    Raises ValueError where `num_patients` is not positive.
    """
    blocks = list(_blocks(num_patients, seed, first))
    columns = zip(*blocks, strict=True)
    return StaySimulation(
        *(concatenate(part) if isinstance(part[0], Labels) else pa.concat_tables(part) for part in columns)
    )


def _blocks(num_patients: int, seed: int, first: int = 0, progress: bool = False) -> Iterator[StaySimulation]:
    if num_patients < 1:
        raise ValueError(f"num_patients={num_patients} must be at least 1.")
    with tqdm(total=num_patients, desc="simulate", unit="patient", disable=not progress) as bar:
        for begin in range(0, num_patients, BLOCK_PATIENTS):
            count = min(BLOCK_PATIENTS, num_patients - begin)
            yield _simulate_block(np.arange(first + begin, first + begin + count), seed)
            bar.update(count)


def _simulate_block(patients: np.ndarray, seed: int) -> StaySimulation:
    stays, record = draw_stays(patients, seed)
    stay, hour = hours_of(record.offsets)
    at_hour = draws_of_hours(stays, record.offsets, seed)
    at_patient = draws_of_patients(stays.patient, seed)
    is_female = at_patient.uniform("sex") < 0.5
    age_years = 35 + 55 * np.sqrt(at_patient.uniform("age"))
    times = stays.admission[stay] + HOUR * hour
    taken = times + _minute(at_hour.uniform("minute"))
    at_note, noted = at_hour.take(record.note_row), stay[record.note_row]
    written = times[record.note_row] + _minute(at_note.uniform("note minute"))
    texts = word_notes(record.statements, record.note_kind, is_female[noted], at_note)
    index = index_rows(np.diff(record.offsets))
    return StaySimulation(
        tables.event_table(stays, record.vitals, stay, taken, is_female, age_years),
        tables.note_table(stays, noted, written, record.note_kind, texts),
        tables.stay_table(stays),
        _labels(stays, index),
        _oracle_table(stays, index, oracle_probabilities(record, index)),
    )


def _minute(uniform: np.ndarray) -> np.ndarray:
    """Seconds since the full hour."""
    return 60 * np.floor(uniform * (LAST_MINUTE + 1)).astype(np.int64)


def _labels(stays: Stays, index: IndexRows) -> Labels:
    """Deterioration in (t, t + horizon]: who goes home in that time did not deteriorate."""
    times = stays.admission[index.stay] + HOUR * index.hour
    settled = times + HORIZON_HOURS * HOUR
    positive = (stays.ending[index.stay] != DISCHARGE) & (stays.end[index.stay] <= settled)
    flow = {"stays": len(stays.patient), "index_times": len(times), "positives": int(positive.sum())}
    values = positive.astype(np.float32)[:, None]
    mask = np.ones(values.shape, bool)
    return Labels(TASK, "binary", (TASK,), stays.patient[index.stay], times, values, mask, settled, flow)


def _oracle_table(stays: Stays, index: IndexRows, probabilities: dict[str, np.ndarray]) -> pa.Table:
    times = stays.admission[index.stay] + HOUR * index.hour
    columns = {
        "subject_id": stays.patient[index.stay],
        "visit_id": tables.visit_ids(stays)[index.stay],
        "prediction_time": tables.timestamps(times),
    }
    return pa.table(columns | {f"probability_{name}": column for name, column in probabilities.items()})


def write(out: str | Path, *, num_patients: int, seed: int = 0, progress: bool = False) -> Path:
    """Simulate into a new folder (its files: see the module's docstring); returns the folder.

    `out` is complete or absent, whenever the process is killed. A folder that holds this very simulation is left as it
    is. Raises ValueError where `num_patients` is not positive, FileExistsError for a folder that holds something else,
    OSError where `out` cannot be written.
    """
    out = Path(out)
    settings = {"num_patients": num_patients, "seed": seed, "model_version": MODEL_VERSION}
    if out.exists() and is_same_simulation(out, settings):
        return out
    with workspace(out) as folder, naming_the_folder(out):
        _write_files(folder / "store", settings, progress)
    return out


def _write_files(folder: Path, settings: dict, progress: bool) -> None:
    for name in ("data", "metadata"):
        (folder / name).mkdir()
    rest, num_rows = [], Counter()
    with (
        pq.ParquetWriter(folder / "data" / "0.parquet", tables.EVENTS) as events,
        pa_csv.CSVWriter(folder / "notes.csv", tables.NOTES) as notes,
    ):
        for block in _blocks(settings["num_patients"], settings["seed"], progress=progress):
            events.write_table(block.events)
            notes.write_table(block.notes)
            num_rows.update(events=len(block.events), notes=len(block.notes), stays=len(block.stays))
            rest.append((block.stays, block.labels, block.oracle))
    stays, labels, oracle = zip(*rest, strict=True)
    pq.write_table(tables.code_table(), folder / "metadata" / "codes.parquet")
    pq.write_table(pa.concat_tables(stays), folder / "stays.parquet")
    pq.write_table(pa.concat_tables(oracle), folder / "oracle.parquet")
    labels = concatenate(labels)
    for path in write_meds_labels(folder / "labels", labels):
        flush_to_disk(path.parent)
    flush_to_disk(folder / "data")
    flush_to_disk(folder / "metadata")
    manifest = {**settings, "num_rows": dict(num_rows), "flow": labels.flow}
    (folder / "simulation.json").write_text(json.dumps(manifest, indent=1) + "\n")
