"""Tables of clinical notes (CSV, JSON lines, parquet, or MEDS events with text) -> batches, every row accounted for.

Columns are found by name (`FIELDS`; the names of MIMIC, OMOP and MEDS are known) or given by the user.

- A note counts from when it was known: the later of the time it is about and the time it was stored. Where there is
  only a day, that is the end of the day; OMOP and MIMIC write such a day as a midnight.
- Identifiers are whole numbers or text; the first one of a file decides. Text is hashed as the other readers do.
- Bytes that are no UTF-8 read U+FFFD; such notes are kept and named in the report.
- A MEDS event with text is a note if its code begins with one of `note_codes`; the others are only counted.

Rows are quarantined as `no_patient`, `invalid_subject_id`, `invalid_visit_id`, `missing_time`, `unparseable_time`,
`missing_text` or `malformed_row`.
"""

import gzip
import itertools
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ehrjax.data.events import NO_VISIT, STATIC_TIME, EventBatch
from ehrjax.data.readers.clinical import end_of_day
from ehrjax.data.readers.columns import Column, encode_column, has_value, parse_ints
from ehrjax.data.readers.tables import Block, EventPart, Field, Table, read_table

FIELDS = {
    "subject_id": ("subject_id", "person_id", "patient_id", "patient", "subject"),
    "time": ("time", "note_time", "note_datetime", "datetime", "timestamp", "charttime"),
    "stored": ("storetime", "stored_time"),
    "day": ("note_date", "chartdate", "date"),
    "visit_id": ("visit_id", "encounter_id", "visit_occurrence_id", "hadm_id", "encounter"),
    "text": ("text", "note_text", "note", "text_value"),
    "code": ("code",),
}
_CONFIGURABLE = ("subject_id", "time", "visit_id", "text")
_TIMES = ("time", "stored", "day")
_MIDNIGHT_IS_DAY = {"note_datetime", "note_date", "charttime", "chartdate"}
_CSV, _PARQUET = (".csv", ".csv.gz", ".tsv", ".tsv.gz"), (".parquet",)
_JSON = (".jsonl", ".jsonl.gz", ".ndjson", ".ndjson.gz")
_BATCH_ROWS = 4096  # notes run to 100 kB, so a batch stays below some 400 MB
_DAY = 86_400_000_000
_REPLACED = "\ufffd"


class NoteBatch(NamedTuple):
    """Notes read from one block of a file: an event each, whose code is the text (`codes` are the distinct texts)."""

    events: EventBatch
    replaced_rows: np.ndarray  # int64, rows of kept notes with bytes that were no UTF-8
    num_other_events: int  # MEDS events that are no notes: not among the rows read


def read_notes(
    path: str | Path,
    *,
    columns: Mapping[str, str] | None = None,
    note_codes: Sequence[str] = ("NOTE",),
    label: str | None = None,
) -> Iterator[NoteBatch]:
    """Notes of a file, or of every table below a folder (sorted by name; `metadata/` and hidden files left out).

    `columns` names columns that are called otherwise, by field: subject_id, time, visit_id, text. `label` is what the
    ledger calls the data set (default: the folder's name). Raises FileNotFoundError where there is nothing to read, and
    ValueError for an unknown format, a missing column, a damaged file or a file none of whose rows is a note.
    """
    fields = _fields(columns or {})
    root = Path(path).absolute()
    for file in _tables(root):
        inside = file.relative_to(root).as_posix() if root.is_dir() else file.name
        name = f"{label or (root.name if root.is_dir() else root.parent.name)}/{inside}"
        yield from _read_file(file, name, fields, tuple(note_codes))


# Files


def _fields(columns: Mapping[str, str]) -> list[Field]:
    if unknown := set(columns) - set(_CONFIGURABLE):
        raise ValueError(f"columns: {sorted(unknown)[0]!r} is no field: use {', '.join(_CONFIGURABLE)}.")
    # A time column that the user names is the time: another one beside it would not be expected to count.
    left_out = {"stored", "day"} if "time" in columns else set()
    return [
        Field(name, (columns[name],) if name in columns else aliases, required=False, is_free_text=name == "text")
        for name, aliases in FIELDS.items()
        if name not in left_out
    ]


def _tables(root: Path) -> list[Path]:
    known = _CSV + _PARQUET + _JSON
    if root.is_file():
        if not root.name.lower().endswith(known):
            raise ValueError(f"{root}: not a format for notes: use one of {', '.join(known)}.")
        return [root]
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such file or folder: give a table of notes, or the folder that holds it.")
    below = ((file, file.relative_to(root).parts) for file in sorted(root.rglob("*")) if file.is_file())
    visible = [f for f, parts in below if "metadata" not in parts and not any(p.startswith(".") for p in parts)]
    files = [file for file in visible if file.name.lower().endswith(known)]
    if not files:
        raise FileNotFoundError(f"{root}: no table of notes in it: expected files that end in {', '.join(known)}.")
    return files


def _read_file(file: Path, name: str, fields: Sequence[Field], note_codes: tuple[str, ...]) -> Iterator[NoteBatch]:
    kinds: dict[str, bool] = {}
    num_notes, reasons = 0, {}
    is_meds = None
    for block in _blocks(file, name, fields):
        is_meds = _check_columns(block, fields) if is_meds is None else is_meds
        batch = _to_notes(block, kinds, note_codes if is_meds else ())
        num_notes += len(batch.events.row)
        for reason, rows in batch.events.quarantined.items():
            reasons.setdefault(reason, rows[0])
        yield batch
    if reasons and not num_notes:
        found = ", ".join(f"{reason} (first in row {row})" for reason, row in reasons.items())
        raise ValueError(f"{name}: none of its rows is a note: {found}. Repair the file, or name its columns.")


def _check_columns(block: Block, fields: Sequence[Field]) -> bool:
    """Refuse a table that cannot hold notes; whether it holds MEDS events, of which only some are notes."""
    aliases = {field.name: " or ".join(field.aliases) for field in fields}
    is_meds = "code" in block.present and block.present.get("text", "text_value").lower() == "text_value"
    wanted = {"subject_id": block.present, "time": set(_TIMES) & set(block.present)}
    wanted |= {} if is_meds else {"text": block.present}
    for name, found in wanted.items():
        if not found or (name != "time" and name not in found):
            present = ", ".join(block.present.values()) or "none that is known"
            raise ValueError(f"{block.file}: no column {aliases[name]} (recognised: {present}): name it in `columns`.")
    return is_meds


def _blocks(file: Path, name: str, fields: Sequence[Field]) -> Iterator[Block]:
    if name.lower().endswith(_CSV):
        return read_table(Table(file, name), fields)
    return (_parquet_blocks if name.lower().endswith(_PARQUET) else _json_blocks)(file, name, fields)


def _present(fields: Sequence[Field], header: Sequence[str]) -> dict[str, str]:
    by_name = {name.strip().lower(): name for name in reversed(header)}
    found = {f.name: next((by_name[a.lower()] for a in f.aliases if a.lower() in by_name), None) for f in fields}
    return {field: name for field, name in found.items() if name is not None}


def _block(name: str, fields: Sequence[Field], arrays: dict[str, pa.Array], row: np.ndarray, present: dict) -> Block:
    nothing = pa.nulls(len(row), pa.string())
    columns = {field.name: encode_column(arrays.get(field.name, nothing)) for field in fields}
    return Block(name, columns, row, present, {})


def _parquet_blocks(file: Path, name: str, fields: Sequence[Field]) -> Iterator[Block]:
    try:
        with pq.ParquetFile(file) as parquet:
            present = _present(fields, parquet.schema_arrow.names)
            first = 1
            for batch in parquet.iter_batches(_BATCH_ROWS, columns=list(dict.fromkeys(present.values()))):
                arrays = {field: _decoded(batch.column(column)) for field, column in present.items()}
                yield _block(name, fields, arrays, np.arange(first, first + len(batch)), present)
                first += len(batch)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{name}: not a readable parquet file ({error}): fetch it again.") from error


def _decoded(array: pa.Array) -> pa.Array:
    """Text that a writer did not mark as text (Spark's default), as text."""
    if not (pa.types.is_binary(array.type) or pa.types.is_large_binary(array.type)):
        return array
    return pa.array([None if v is None else v.decode("utf-8", "replace") for v in array.to_pylist()], pa.string())


def _json_blocks(file: Path, name: str, fields: Sequence[Field]) -> Iterator[Block]:
    try:
        with open(file, "rb") as raw, gzip.open(raw) if name.lower().endswith(".gz") else raw as lines:
            yield from _json_lines(lines, name, fields)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{name}: cannot be read to its end ({error}): fetch it again.") from error


def _json_lines(lines: BinaryIO, name: str, fields: Sequence[Field]) -> Iterator[Block]:
    first = 1
    filled = (line for line in lines if line.strip())
    while texts := list(itertools.islice(filled, _BATCH_ROWS)):
        records = [_parse_json(line) for line in texts]
        rows = np.arange(first, first + len(records))
        is_record = np.array([record is not None for record in records])
        records = [record for record in records if record is not None]
        present = _present(fields, list(dict.fromkeys(key for record in records for key in record)))
        arrays = {
            field: pa.array([_json_text(record.get(column)) for record in records], pa.string())
            for field, column in present.items()
        }
        block = _block(name, fields, arrays, rows[is_record], present)
        block.reject_rows("malformed_row", rows[~is_record])
        yield block
        first += len(texts)


def _parse_json(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line.decode("utf-8-sig", errors="replace"))
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def _json_text(value: Any) -> str | None:
    """A JSON scalar as text; a lone surrogate, which JSON can name and UTF-8 cannot, becomes "?"."""
    if value is None or isinstance(value, (dict, list)):
        return None
    return str(value).encode("utf-8", "replace").decode()


# Rows


def _to_notes(block: Block, kinds: dict[str, bool], note_codes: tuple[str, ...]) -> NoteBatch:
    num_rows = len(block)
    if note_codes:
        block = _select(block, _has_code(block.columns["code"], note_codes) & block.columns["text"].filled())
    subject = _identifiers(block, "subject_id", kinds)
    block.reject("no_patient", ~block.columns["subject_id"].filled())
    visit = np.maximum(_identifiers(block, "visit_id", kinds), NO_VISIT)
    time = _known_since(block)
    index, texts = block.texts("text")
    block.reject("missing_text", index < 0)
    events = block.events(subject, [EventPart(time, index, texts, visit_id=visit)])
    has_replaced = np.array([_REPLACED in text for text in events.codes], bool)
    replaced = events.row[has_replaced[events.code]] if has_replaced.any() else np.zeros(0, np.int64)
    return NoteBatch(events, replaced, num_rows - len(block))


def _has_code(column: Column, prefixes: tuple[str, ...]) -> np.ndarray:
    codes = pc.cast(column.values, pa.string()).to_pylist()
    return column.take(np.array([bool(code) and code.upper().startswith(prefixes) for code in codes], bool), False)


def _select(block: Block, mask: np.ndarray) -> Block:
    columns = {name: Column(column.index[mask], column.values) for name, column in block.columns.items()}
    return Block(block.file, columns, block.row[mask], block.present, {})


def _identifiers(block: Block, name: str, kinds: dict[str, bool]) -> np.ndarray:
    """int64 [n], -1 where missing; rejects what is no whole number in a file whose first identifier is one."""
    column = block.columns[name]
    parsed, is_text = parse_ints(column.values)
    filled = np.flatnonzero(column.filled())
    if name not in kinds and len(filled):
        kinds[name] = bool(is_text[column.index[filled[0]]])
    if kinds.get(name):
        return block.hashed_ids(name)
    block.reject(f"invalid_{name}", column.take(is_text & has_value(column.values), False))
    return column.take(parsed, NO_VISIT)


def _known_since(block: Block) -> np.ndarray:
    """Microseconds (int64 [n]) from which on a note may be used; rejects rows without a time."""
    known = {}
    for name in _TIMES:
        if name in block.columns:
            times = block.times(name, required=False)
            is_day = block.is_date_only(name)
            if block.present.get(name, "").lower() in _MIDNIGHT_IS_DAY:
                is_day |= times % _DAY == 0
            known[name] = np.where(is_day, end_of_day(times), times)
    time = np.maximum(known["time"], known.get("stored", STATIC_TIME))
    time = np.where(time == STATIC_TIME, known.get("day", STATIC_TIME), time)
    block.reject("missing_time", time == STATIC_TIME)
    return time
