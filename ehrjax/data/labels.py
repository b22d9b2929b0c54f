"""Labels: what to predict for whom and when; and MEDS label files, written and read.

MEDS keeps one outcome a file (subject_id int64, prediction_time timestamp[us], one `*_value` column), so a multi-label
task becomes one folder an output, and a survival task, for which MEDS has no column, two that belong together row by
row: `TASK--days` (float) and `TASK--event` (integer, 0 = censored). `prediction_time` is the last instant whose data
may be used.
"""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq

KINDS = ("binary", "multilabel", "multiclass", "regression", "survival")
_COLUMN_OF_KIND = {"binary": "boolean", "multiclass": "categorical", "regression": "float"}
_TYPES = {"boolean": pa.bool_(), "integer": pa.int64(), "float": pa.float32(), "categorical": pa.string()}
_KIND_OF_COLUMN = {"boolean": "binary", "integer": "regression", "float": "regression", "categorical": "multiclass"}


class Labels(NamedTuple):
    """E label rows, sorted by (subject, time) where the cohort engine made them.

    `values` is float32 [E, K] (0 / 1, or the quantity), for "multiclass" int32 [E, 1] with the index into `names`, for
    "survival" float32 [E, 2]: days from the index time to the event or to censoring, and the event's number, 0 for
    censored or r for `names[r - 1]`.
    """

    name: str
    kind: str  # one of KINDS
    names: tuple[str, ...]  # the K outputs, the classes, or the R causes
    subject_ids: np.ndarray  # int64 [E]
    times: np.ndarray  # int64 [E], index time, seconds since 1970-01-01
    values: np.ndarray
    mask: np.ndarray  # bool, shape of values: True where the value counts
    end_times: np.ndarray  # int64 [E], seconds: when the outcome is settled whatever it is (index time: not known)
    flow: dict[str, int]  # cohort flow: what -> count, in order

    def take(self, rows: np.ndarray) -> "Labels":
        """The rows chosen by an index or mask, with the same name, outputs and flow."""
        columns = ("subject_ids", "times", "values", "mask", "end_times")
        return self._replace(**{column: getattr(self, column)[rows] for column in columns})

    @property
    def num_outputs(self) -> int:
        """One a label, a class, or a cause; of the latter, a survival objective asks its model for several logits."""
        return len(self.names)


def shortage(labels: Labels, row_splits: np.ndarray, minimum: dict[str, int]) -> str | None:
    """Why there is too little to train and test on, as one sentence; None where each split has enough.

    `row_splits` str [E] is each row's split; `minimum` its least number of positives and of negatives (binary), of rows
    (regression, multiclass), of rows with a positive (multilabel), or of events of the first cause (survival).
    """
    problems = []
    for split, least in minimum.items():
        rows = labels.take(row_splits == split)
        valid = rows.mask.any(axis=1)
        if labels.kind == "binary":
            positives = int((rows.values[valid] > 0).sum())
            counts = {"positives": positives, "negatives": int(valid.sum()) - positives}
        elif labels.kind == "multilabel":
            counts = {"rows with a positive": int(((rows.values > 0) & rows.mask).any(axis=1).sum())}
        elif labels.kind == "survival":
            counts = {f"{labels.names[0]} events": int((rows.values[valid, 1] == 1).sum())}
        else:
            counts = {"rows": int(valid.sum())}
        problems += [f"{n} {what} in {split} (needs {least})" for what, n in counts.items() if n < least]
    if not problems:
        return None
    flow = ", ".join(f"{key} {n:,}" for key, n in labels.flow.items() if n)
    return f"{labels.name} has too few outcomes: {'; '.join(problems)}. Cohort: {flow or 'no flow recorded'}."


def write_meds_labels(directory: str | Path, labels: Labels) -> list[Path]:
    """Write `directory/TASK/0.parquet`, or `directory/TASK--OUTPUT/0.parquet` of each output; returns the paths.

    Multi-label tasks have several outputs, survival tasks two, "days" and "event". Masked labels are left out.
    Characters of an output's name that cannot stand in a file name are percent-encoded.
    """
    targets = [(labels.name, 0, _COLUMN_OF_KIND.get(labels.kind))]
    if labels.kind == "survival":
        targets = [(f"{labels.name}--days", 0, "float"), (f"{labels.name}--event", 1, "integer")]
    elif labels.kind == "multilabel":
        targets = [(f"{labels.name}--{quote(name, safe=' ')}", k, "boolean") for k, name in enumerate(labels.names)]
    paths = []
    for name, k, column in targets:
        rows = np.flatnonzero(labels.mask[:, k])
        path = Path(directory) / name / "0.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(_label_table(labels.take(rows), k, column), path)
        paths.append(path)
    return paths


def _label_table(labels: Labels, k: int, column: str) -> pa.Table:
    values = labels.values[:, k]
    if column == "categorical":
        values = [labels.names[int(v)] for v in values]
    elif column == "boolean":
        values = values > 0
    elif column == "integer":
        values = values.astype(np.int64)
    return pa.table(
        {
            "subject_id": pa.array(labels.subject_ids, pa.int64()),
            "prediction_time": pa.array(labels.times * 1_000_000, pa.int64()).cast(pa.timestamp("us")),
            f"{column}_value": pa.array(values, _TYPES[column]),
        }
    )


def read_meds_labels(
    path: str | Path, *, subject_ids: np.ndarray | None = None, name: str | None = None, horizon_days: float = 0.0
) -> Labels:
    """Read a MEDS label file, or all `**/*.parquet` of a task's folder (shards may be missing).

    Times are cut to whole seconds, integers and floats are regression targets, categories get sorted class indices.
    Rows without subject, time or value, and patients not in `subject_ids`, are dropped with a warning and counted.
    `horizon_days` is the outcome window that the file does not tell, for a temporal split. Raises FileNotFoundError, or
    ValueError naming the file and column.
    """
    path = Path(path)
    files = sorted(path.rglob("*.parquet")) if path.is_dir() else [path]
    if not path.exists() or not files:
        found = "no such file or folder" if not path.exists() else "no *.parquet file in it"
        raise FileNotFoundError(f"{path}: {found}: give a MEDS label file or a task's folder of them.")
    table = pa.concat_tables([_read_label_file(file) for file in files], promote_options="permissive")
    if len(table.column_names) != 3:
        found = ", ".join(table.column_names[2:]) or "none"
        raise ValueError(f"{path}: needs one filled *_value column, found {found}: keep one outcome a folder.")
    subjects, times, value = (table.column(i) for i in range(3))
    complete = ~(np.asarray(subjects.is_null()) | np.asarray(times.is_null()) | np.asarray(value.is_null()))
    subjects = np.asarray(subjects.fill_null(0))
    known = complete if subject_ids is None else complete & np.isin(subjects, subject_ids)
    flow = {"rows": len(table), "incomplete": int((~complete).sum()), "unknown_subject": int((complete & ~known).sum())}
    flow["kept"] = int(known.sum())
    if not known.all():
        warnings.warn(
            f"{path}: of {flow['rows']} labels {flow['unknown_subject']} have a subject that is not in the store and"
            f" {flow['incomplete']} lack subject, time or value; they were dropped.",
            stacklevel=2,
        )
    if not known.any():
        raise ValueError(f"{path}: none of its {flow['rows']} labels can be used: are these labels of this data set?")
    rows = np.flatnonzero(known)
    seconds = np.asarray(times.cast(pa.int64()).fill_null(0)).take(rows) // 1_000_000
    column = table.column_names[2]
    kind = _KIND_OF_COLUMN[column.removesuffix("_value")]
    names, values = _values(value.take(pa.array(rows)), kind, column)
    name = name or (path.name if path.is_dir() else path.stem)
    ends = seconds + round(horizon_days * 86_400)
    return Labels(name, kind, names, subjects[rows], seconds, values, np.ones(values.shape, bool), ends, flow)


def _values(column: pa.ChunkedArray, kind: str, name: str) -> tuple[tuple[str, ...], np.ndarray]:
    if kind == "multiclass":
        classes, index = np.unique(np.asarray(column.to_pylist(), dtype=str), return_inverse=True)
        return tuple(classes.tolist()), index.astype(np.int32)[:, None]
    return (name,), np.asarray(column.cast(pa.float32(), safe=False))[:, None]


def _read_label_file(file: Path) -> pa.Table:
    """subject_id, prediction_time and the value columns that hold something, in MEDS's types."""
    try:
        table = pads.dataset(file, format="parquet").to_table()
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{file}: not a readable parquet file ({error}): copy it again.") from error
    for column in ("subject_id", "prediction_time"):
        if column not in table.column_names:
            raise ValueError(f"{file}: no column {column!r} (found {', '.join(table.column_names)}).")
    columns = {"subject_id": _cast(table, "subject_id", pa.int64(), file), "prediction_time": _times(table, file)}
    for value, kind in _TYPES.items():
        name = f"{value}_value"
        if name in table.column_names and table[name].null_count < len(table):
            columns[name] = _cast(table, name, kind, file)
    return pa.table(columns)


def _times(table: pa.Table, file: Path) -> pa.ChunkedArray:
    kind = table["prediction_time"].type
    if pa.types.is_timestamp(kind) and kind.tz:
        warnings.warn(f"{file}: prediction_time has time zone {kind.tz}; converted to UTC.", stacklevel=2)
        table = table.set_column(
            table.column_names.index("prediction_time"),
            "prediction_time",
            table["prediction_time"].cast(pa.timestamp(kind.unit, "UTC")).cast(pa.timestamp(kind.unit)),
        )
    return _cast(table, "prediction_time", pa.timestamp("us"), file)


def _cast(table: pa.Table, name: str, kind: pa.DataType, file: Path) -> pa.ChunkedArray:
    column = table[name]
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    try:
        return column.cast(kind, safe=not pa.types.is_timestamp(kind))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise ValueError(f"{file}: column {name!r} is {column.type}, MEDS wants {kind} ({error}).") from error


def concatenate(parts: Sequence[Labels]) -> Labels:
    """Rows of several Labels of one task (one a shard) in the order of subject and time; their flows are summed."""
    order = np.lexsort(
        (np.concatenate([p.times for p in parts]), np.concatenate([p.subject_ids for p in parts])),
    )
    columns = ("subject_ids", "times", "values", "mask", "end_times")
    joined = {c: np.concatenate([getattr(p, c) for p in parts])[order] for c in columns}
    flow = {key: sum(p.flow.get(key, 0) for p in parts) for key in parts[0].flow}
    return parts[0]._replace(**joined, flow=flow)
