"""MEDS 0.4 and 0.3 data sets (parquet) -> event batches, row group by row group; and the splits that come with them.

Lenient in types, strict in order. Any timestamp or date type is cast to microseconds (a time zone to UTC, with a
warning), any integer to int64, any float to float32, strings may be large or dictionary-encoded; columns we do not
know, and `text_value`, are ignored. A subject whose rows are in two places or go back in time is a structural fault: a
ValueError names file, row and subject. Static rows (null time) may stand anywhere among their subject's rows.

Codes are kept as they are, except that `MEDS_BIRTH//...`, `DOB` and `MEDS_DEATH//...`, `DOD` become MEDS_BIRTH and
MEDS_DEATH. Rows without subject (`no_patient`), without code (`missing_code`), and births or deaths without time
(`missing_time`) are quarantined.
"""

import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ehrjax.data.events import BIRTH_CODE, DEATH_CODE, NO_VISIT, STATIC_TIME, EventBatch, EventStream
from ehrjax.data.readers.columns import hash_ids

BATCH_ROWS = 200_000
VISIT_COLUMNS = ("visit_id", "encounter_id", "visit_occurrence_id", "hadm_id")  # the first present is the encounter
SPLIT_NAMES = {"train": "train", "tuning": "val", "held_out": "test"}  # MEDS's name -> ours
_REQUIRED = ("subject_id", "time", "code")
_NUMBERS = (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal, pa.types.is_boolean, pa.types.is_null)
_SAME_CODE = {"DOB": BIRTH_CODE, "DOD": DEATH_CODE}


def read_meds(path: str | Path, *, label: str | None = None) -> EventStream:
    """Events of the MEDS data set at `path`: `path/data/**/*.parquet`, or parquet files anywhere below `path`.

    `label` names the data set in `EventBatch.file` (default: the folder's name). Raises FileNotFoundError where there
    is no folder or no parquet file, and ValueError naming file (and row, subject) for a missing or mistyped column, an
    unreadable file, and subjects that are split up or out of order.
    """
    root, files = _data_files(path)
    label = label or _data_set_folder(root).name
    descriptions = _read_descriptions(root)
    subjects = _SubjectLog()
    num_rows = 0
    for file in files:
        name = f"{label}/{file.relative_to(_data_set_folder(root)).as_posix()}"
        for batch in _read_file(file, name, subjects):
            num_rows += batch.rows_read
            known = {code: descriptions.pop(code) for code in batch.codes if code in descriptions}
            yield batch._replace(descriptions=known) if known else batch
    if not num_rows:
        raise ValueError(f"{root}: {len(files)} parquet files, all without rows: point at a MEDS data set with data.")


def read_meds_splits(path: str | Path) -> dict[int, str] | None:
    """Split ("train", "val", "test") of each subject, or None where the data set has none.

    From `metadata/subject_splits.parquet`, else from folders named train, tuning and held_out. Where both exist they
    must agree (ValueError naming a subject otherwise); a subject missing from the file keeps its folder's split.
    """
    root, files = _data_files(path)
    splits = _read_split_file(root)
    from_file = set(splits)
    for file in files:
        folder = next((part for part in file.relative_to(root).parts[:-1] if part in SPLIT_NAMES), None)
        if folder is None:
            continue
        for subject in _subjects_of(file).tolist():
            found = splits.setdefault(subject, SPLIT_NAMES[folder])
            if found != SPLIT_NAMES[folder]:
                other = "metadata/subject_splits.parquet" if subject in from_file else "another folder"
                raise ValueError(
                    f"{file}: subject {subject} is in folder {folder!r} ({SPLIT_NAMES[folder]}) but {other} puts it in"
                    f" {found!r}: correct the splits file, or remove one of the two."
                )
    return splits or None


# Files


def _data_files(path: str | Path) -> tuple[Path, list[Path]]:
    """The folder that holds the data shards, and the shards in a reproducible order."""
    root = Path(path).absolute()
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder: give the folder of a MEDS data set (the one with data/).")
    root = root / "data" if (root / "data").is_dir() else root
    inside = ((file, file.relative_to(root).parts) for file in sorted(root.rglob("*.parquet")))
    files = [f for f, parts in inside if parts[0] != "metadata" and not any(p.startswith((".", "_")) for p in parts)]
    if not files:
        found = ", ".join(sorted(p.name for p in root.iterdir())[:8]) or "nothing"
        raise FileNotFoundError(f"{root}: no *.parquet file in it (found {found}): is this a MEDS data set?")
    return root, files


def _data_set_folder(root: Path) -> Path:
    return root.parent if root.name == "data" else root


def _open(file: Path) -> pq.ParquetFile:
    try:
        dictionary = [column for column in pq.read_schema(file).names if column == "code"]
        return pq.ParquetFile(file, read_dictionary=dictionary)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{file}: not a readable parquet file ({error}): copy it again.") from error


def _read_metadata(root: Path, name: str) -> pa.Table | None:
    file = _data_set_folder(root) / "metadata" / name
    if not file.is_file():
        return None
    try:
        return pq.read_table(file)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{file}: not a readable parquet file ({error}): copy it again, or remove it.") from error


def _read_descriptions(root: Path) -> dict[str, str]:
    table = _read_metadata(root, "codes.parquet")
    if table is None or not {"code", "description"} <= set(table.column_names):
        return {}
    pairs = zip(table["code"].to_pylist(), table["description"].to_pylist(), strict=True)
    return {_normalise(code): text for code, text in pairs if code and text}


def _read_split_file(root: Path) -> dict[int, str]:
    table = _read_metadata(root, "subject_splits.parquet")
    if table is None:
        return {}
    if missing := {"subject_id", "split"} - set(table.column_names):
        raise ValueError(f"metadata/subject_splits.parquet of {root}: no column {sorted(missing)[0]!r}.")
    splits = {}
    for subject, split in zip(table["subject_id"].to_pylist(), table["split"].to_pylist(), strict=True):
        if split not in SPLIT_NAMES:
            raise ValueError(
                f"metadata/subject_splits.parquet of {root}: subject {subject} has split {split!r}:"
                f" MEDS knows {', '.join(SPLIT_NAMES)}."
            )
        if splits.setdefault(int(subject), SPLIT_NAMES[split]) != SPLIT_NAMES[split]:
            raise ValueError(f"metadata/subject_splits.parquet of {root}: subject {subject} is in two splits.")
    return splits


def _subjects_of(file: Path) -> np.ndarray:
    """Distinct subjects of a shard (int64, sorted), reading that column alone."""
    with _open(file) as parquet:
        _check_columns(parquet.schema_arrow, str(file))
        batches = parquet.iter_batches(BATCH_ROWS, columns=["subject_id"], use_threads=False)
        ids = [np.unique(_integers(batch.column(0).drop_null(), str(file), "subject_id")) for batch in batches]
    return np.unique(np.concatenate(ids)) if ids else np.empty(0, np.int64)


# Events of one file


def _read_file(file: Path, name: str, subjects: "_SubjectLog") -> Iterator[EventBatch]:
    order = _OrderCheck(name)
    with _open(file) as parquet:
        visit_column = _check_columns(parquet.schema_arrow, name)
        optional = [c for c in ("numeric_value", visit_column) if c in parquet.schema_arrow.names]
        batches = parquet.iter_batches(BATCH_ROWS, columns=[*_REQUIRED, *optional])
        first_row = 1
        while (record := _next_batch(batches, name)) is not None:
            if record.num_rows:
                yield _to_events(record, name, visit_column, first_row, subjects, order)
            first_row += record.num_rows


def _next_batch(batches: Iterator[pa.RecordBatch], name: str) -> pa.RecordBatch | None:
    try:
        return next(batches, None)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{name}: damaged parquet data ({error}): copy the file again.") from error


def _check_columns(schema: pa.Schema, name: str) -> str | None:
    """Refuse a schema without the required columns; return the encounter column's name, if there is one."""
    for column in _REQUIRED:
        if column not in schema.names:
            raise ValueError(
                f"{name}: no column {column!r} (found {', '.join(schema.names)}): is this a MEDS data file?"
            )
    kind = schema.field("time").type
    if not (pa.types.is_timestamp(kind) or pa.types.is_date(kind) or pa.types.is_null(kind)):
        raise ValueError(f"{name}: column 'time' is {kind}, MEDS wants timestamp[us]: cast it when writing the file.")
    if pa.types.is_timestamp(kind) and kind.tz:
        data_set = name.split("/")[0]  # not the file: one warning a data set is enough
        warnings.warn(f"{data_set}: times have time zone {kind.tz}; converted to UTC.", stacklevel=2)
    return next((c for c in VISIT_COLUMNS if c in schema.names), None)


def _to_events(record, name, visit_column, first_row, subjects, order) -> EventBatch:
    """One record batch as events, its subjects and times checked against what came before it in the file."""
    rows = np.arange(first_row, first_row + record.num_rows, dtype=np.int64)
    ids = _integers(record["subject_id"], name, "subject_id", null=0)
    has_subject = ~_null_mask(record["subject_id"])
    time = _times(record["time"])
    subjects.add(name, *order.check(ids[has_subject], time[has_subject], rows[has_subject]))
    code, codes = _encode_codes(record["code"], name)
    is_vital = np.isin(code, [i for i, c in enumerate(codes) if c in (BIRTH_CODE, DEATH_CODE)])
    reasons = {
        "no_patient": ~has_subject,
        "missing_code": has_subject & (code < 0),
        "missing_time": has_subject & is_vital & (time == STATIC_TIME),
    }
    keep = ~np.logical_or.reduce(list(reasons.values()))
    visit = np.full(len(ids), NO_VISIT)
    if visit_column:
        visit = _visit_ids(record[visit_column], name, visit_column)
    return EventBatch(
        file=name,
        rows_read=len(ids),
        subject_id=ids[keep],
        time=time[keep],
        code=code[keep],
        codes=codes,
        numeric_value=_values(record, name)[keep],
        visit_id=visit[keep],
        row=rows[keep],
        quarantined={reason: rows[mask] for reason, mask in reasons.items() if mask.any()},
    )


# Columns: Arrow -> NumPy


def _null_mask(column: pa.Array) -> np.ndarray:
    return np.asarray(column.is_null())


def _integers(column: pa.Array, name: str, label: str, null: int = 0) -> np.ndarray:
    """int64 of any integer type, or of floats that hold whole numbers (pandas writes those where there are nulls)."""
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type) or pa.types.is_null(column.type)):
        raise ValueError(f"{name}: column {label!r} is {column.type}, MEDS wants int64: map the ids to integers.")
    try:
        return np.asarray(column.cast(pa.int64()).fill_null(null))
    except pa.ArrowInvalid as error:
        raise ValueError(f"{name}: column {label!r} does not hold whole numbers ({error}).") from error


def _visit_ids(column: pa.Array, name: str, label: str) -> np.ndarray:
    """Encounter ids (NO_VISIT where null or negative); text ids are hashed, as the other readers do."""
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        column = column.dictionary_encode()
    if pa.types.is_dictionary(column.type):
        hashed = np.append(hash_ids(column.dictionary), NO_VISIT)
        return hashed[np.asarray(column.indices.cast(pa.int64()).fill_null(-1))]
    return np.maximum(_integers(column, name, label, null=NO_VISIT), NO_VISIT)


def _times(column: pa.Array) -> np.ndarray:
    kind = column.type
    if pa.types.is_timestamp(kind):
        column = column.cast(pa.timestamp("us", kind.tz), safe=False)  # nanoseconds are cut off
    else:
        column = column.cast(pa.timestamp("us"))
    return np.asarray(column.cast(pa.int64()).fill_null(STATIC_TIME))


def _values(record: pa.RecordBatch, name: str) -> np.ndarray:
    """float32 values; null, missing, and what float32 cannot hold are NaN."""
    if "numeric_value" not in record.schema.names:
        return np.full(record.num_rows, np.nan, np.float32)
    kind = record.schema.field("numeric_value").type
    if not any(check(kind) for check in _NUMBERS):
        raise ValueError(f"{name}: column 'numeric_value' is {kind}, MEDS wants float32.")
    values = np.asarray(record["numeric_value"].cast(pa.float64(), safe=False).fill_null(np.nan))
    with np.errstate(over="ignore"):
        values = values.astype(np.float32)
    return np.where(np.isfinite(values), values, np.float32(np.nan))


def _normalise(code: str) -> str:
    for vital in (BIRTH_CODE, DEATH_CODE):
        if code.startswith(vital + "//"):
            return vital
    return _SAME_CODE.get(code, code)


def _encode_codes(column: pa.Array, name: str) -> tuple[np.ndarray, list[str]]:
    """Index (int32, -1 where null or empty) into the distinct codes that this batch uses."""
    if not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    if not (pa.types.is_string(column.type.value_type) or pa.types.is_large_string(column.type.value_type)):
        raise ValueError(f"{name}: column 'code' is {column.type.value_type}, MEDS wants string.")
    index = np.asarray(column.indices.cast(pa.int32()).fill_null(-1))
    used = np.bincount(index[index >= 0], minlength=len(column.dictionary)) > 0
    names = column.dictionary.filter(pa.array(used)).to_pylist()
    position = {}
    new = [position.setdefault(_normalise(n), len(position)) if n and n.strip() else -1 for n in names]
    table = np.full(len(used) + 1, -1, np.int32)  # the last entry serves index -1
    table[:-1][used] = new
    return table[index], list(position)


# Order


class _OrderCheck:
    """Follows one file's rows: where a subject's run of rows starts, and that its times never go back."""

    def __init__(self, name: str):
        self.name = name
        self.last_id = None
        self.last_timed = (None, STATIC_TIME)  # (subject, time) of the last row that has a time

    def check(self, ids: np.ndarray, time: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Subjects whose run starts in this block, and the rows where; ValueError where times go back."""
        if not len(ids):
            return ids, rows
        is_start = np.append(ids[0] != self.last_id, ids[1:] != ids[:-1])
        self.last_id = ids[-1]
        timed = np.flatnonzero(time != STATIC_TIME)
        if len(timed):
            before_id, before = self.last_timed
            previous_id = np.append(ids[timed[0]] if before_id is None else before_id, ids[timed[:-1]])
            previous = np.append(before, time[timed[:-1]])
            back = np.flatnonzero((previous_id == ids[timed]) & (time[timed] < previous))
            if len(back):
                at, earlier = timed[back[0]], previous[back[0]]
                times = " after ".join(str(np.datetime64(int(t), "us")) for t in (time[at], earlier))
                raise ValueError(
                    f"{self.name}: row {rows[at]}: subject {ids[at]} has {times}:"
                    " sort the rows by subject_id and time when writing the file."
                )
            self.last_timed = (ids[timed[-1]], time[timed[-1]])
        return ids[is_start], rows[is_start]


class _SubjectLog:
    """Every subject met so far and the file it was in, sorted by subject: 12 bytes each."""

    def __init__(self):
        self.ids = np.empty(0, np.int64)
        self.file = np.empty(0, np.int32)
        self.names: list[str] = []

    def add(self, name: str, ids: np.ndarray, rows: np.ndarray) -> None:
        """Note subjects whose rows start here; ValueError for one that was met before."""
        if name not in self.names[-1:]:
            self.names.append(name)
        order = np.argsort(ids, kind="stable")
        ids, rows = ids[order], rows[order]
        at = np.searchsorted(self.ids, ids)
        known = np.zeros(len(ids), bool)
        known[at < len(self.ids)] = self.ids[at[at < len(self.ids)]] == ids[at < len(self.ids)]
        repeated = np.append(False, ids[1:] == ids[:-1]) if len(ids) else known
        fault = np.flatnonzero(known | repeated)
        if len(fault):
            first = fault[np.argmin(rows[fault])]
            earlier = self.names[self.file[at[first]]] if known[first] else name
            place = "an earlier place of this file" if earlier == name else earlier
            raise ValueError(
                f"{name}: row {rows[first]}: subject {ids[first]} has rows in {place} too:"
                " MEDS wants a subject's rows together in one file; sort by subject_id and time, then split by subject."
            )
        self.ids = np.insert(self.ids, at, ids)
        self.file = np.insert(self.file, at, np.int32(len(self.names) - 1))
