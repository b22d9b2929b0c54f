"""What a run left in its workdir, read as it lies there, for the audit to judge."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ehrjax.data.cutoff import StoreUntil, find_cutoff, whole_of
from ehrjax.data.splits import SPLITS
from ehrjax.data.store import Store, open_store
from ehrjax.data.tasks import TASKS, Task, get_task, task_from_dict
from ehrjax.data.vocab import Vocabulary

NAME_OF_SPLIT = {"tuning": "val", "validation": "val", "held_out": "test"} | {name: name for name in SPLITS}


class Finding(NamedTuple):
    """`passed` is None where the data cannot tell, or where something is only to be looked at."""

    passed: bool | None
    detail: str


class Rows(NamedTuple):
    """Label rows of a task as they lie in its files, sorted by (subject, time)."""

    subject_ids: np.ndarray  # int64 [n]
    times: np.ndarray  # int64 [n], seconds since 1970-01-01
    values: np.ndarray  # [n, L] float64, NaN where unknown; categories as strings

    def take(self, rows: np.ndarray) -> "Rows":
        """The rows chosen by an index or mask."""
        return Rows(*(column[rows] for column in self))


@dataclass(frozen=True)
class TaskRecord:
    """One evaluated task: its definition (None for label files made elsewhere), labels and test predictions."""

    name: str
    kind: str
    task: Task | None
    labels: dict[str, Rows]  # output -> rows of the first store; survival has "days" and "event"
    tested: Rows
    outputs: tuple[str, ...]  # of the columns of `tested`

    def labels_of(self, subject_ids: np.ndarray) -> dict[str, Rows]:
        """The label rows of these patients, by output."""
        return {name: rows.take(np.isin(rows.subject_ids, subject_ids)) for name, rows in self.labels.items()}

    def index_rows(self, subject_ids: np.ndarray) -> Rows:
        """Distinct (patient, time) of these patients' labels, whatever the output; values are empty."""
        parts = list(self.labels_of(subject_ids).values())
        pairs = np.unique(np.concatenate([np.stack([p.subject_ids, p.times], 1) for p in parts]), axis=0)
        return Rows(pairs[:, 0], pairs[:, 1], np.zeros((len(pairs), 0)))


@dataclass(frozen=True)
class Run:
    """A run's config (dotted key -> value), stores (train's first, test's last), splits, vocabulary and tasks.

    With a `cutoff` (seconds; a temporal hold-out) the first store is a store as it stood then.
    """

    workdir: Path
    config: dict[str, Any]
    stores: tuple[Store, ...]
    splits: dict[str, np.ndarray]  # as the file says, a patient named twice included
    vocab: Vocabulary
    tasks: dict[str, TaskRecord]
    cutoff: int | None = None

    @property
    def whole_stores(self) -> tuple[Store, ...]:
        """The distinct stores on disk."""
        return tuple(dict.fromkeys(whole_of(store) for store in self.stores))


def read_run(workdir: str | Path) -> Run:
    """Read a workdir; FileNotFoundError or ValueError, naming the file, where a part is missing or unreadable."""
    workdir = Path(workdir)
    for name in ("config.json", "splits.parquet", "vocab.json"):
        if not (workdir / name).is_file():
            raise FileNotFoundError(f"{workdir / name} is missing: name the --workdir of a run that has been started.")
    config = json.loads((workdir / "config.json").read_text(encoding="utf-8"))
    stores = (open_store(workdir / "data" / "store"),)
    if config["data.test_path"]:
        stores += (open_store(workdir / "data" / "test_store"),)
    cutoff = None
    if config.get("data.split") == "temporal":
        cutoff = find_cutoff(stores[0], config["data.cutoff"])
        stores = (StoreUntil(stores[0], cutoff), stores[-1])
    files = sorted((workdir / "predictions").glob("*.parquet"))
    tasks = {file.stem: _read_task(file, workdir / "labels", config) for file in files}
    splits = _read_splits(workdir / "splits.parquet")
    return Run(workdir, config, stores, splits, Vocabulary.load(workdir / "vocab.json"), tasks, cutoff)


def _read_splits(path: Path) -> dict[str, np.ndarray]:
    table = pq.read_table(path)
    names = np.array([NAME_OF_SPLIT.get(str(name), "") for name in table["split"].to_pylist()])
    if (names == "").any():
        raise ValueError(f"{path}: a split is none of {', '.join(NAME_OF_SPLIT)}.")
    return {split: table["subject_id"].to_numpy()[names == split] for split in SPLITS}


def _read_task(file: Path, labels: Path, config: dict[str, Any]) -> TaskRecord:
    name, table = file.stem, pq.read_table(file)
    kind, outputs = _kind_and_outputs(file, table)
    columns = [column for column in table.column_names[2:] if not column.startswith("predicted_")]
    tested = _rows(table, columns)
    return TaskRecord(name, kind, _task(name, config), _read_labels(labels, name), tested, outputs or (name,))


def _kind_and_outputs(file: Path, table: pa.Table) -> tuple[str, tuple[str, ...]]:
    metadata = table.schema.metadata or {}
    if b"kind" not in metadata:
        raise ValueError(f"{file} has no 'kind' in its metadata: it was not written by a run.")
    return metadata[b"kind"].decode(), tuple(json.loads(metadata[b"names"]))


def _task(name: str, config: dict[str, Any]) -> Task | None:
    own = config["custom_tasks"].get(name, {})
    if "labels" in own or not (own or name in TASKS):
        return None
    return task_from_dict(name, own) if own else get_task(name)


def _read_labels(folder: Path, name: str) -> dict[str, Rows]:
    """Rows by output: of `TASK/`, or of each `TASK--OUTPUT/`."""
    found = {}
    for file in sorted(folder.glob("*/0.parquet")):
        task, _, output = file.parent.name.partition("--")
        if task == name:
            table = pq.read_table(file)
            found[unquote(output) or name] = _rows(table, table.column_names[2:])
    return found


def _rows(table: pa.Table, columns: list[str]) -> Rows:
    subjects = table["subject_id"].to_numpy()
    times = table["prediction_time"].cast(pa.int64()).to_numpy() // 1_000_000
    values = np.concatenate([_matrix(table[column].combine_chunks(), len(table)) for column in columns], axis=1)
    order = np.lexsort((times, subjects))
    return Rows(subjects[order], times[order], values[order])


def _matrix(column: pa.Array, num_rows: int) -> np.ndarray:
    if pa.types.is_string(column.type):
        return np.array(column.to_pylist(), dtype=object).reshape(num_rows, 1)
    flat = column.flatten() if pa.types.is_fixed_size_list(column.type) else column
    values = np.array(flat.cast(pa.float64()).to_numpy(zero_copy_only=False))
    return values.reshape(num_rows, -1 if num_rows else 1)
