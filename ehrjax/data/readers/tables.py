"""Streaming of tables (CSV, .csv.gz, zip members, parquet) as dictionary-encoded blocks with a ledger of rows.

A reader names the fields it needs; `read_table` yields `Block`s of some 100k rows. In a block the reader parses times
and ids, rejects rows with a reason, and turns the rest into an `EventBatch`. Parsing runs in a second thread, outside
the interpreter lock, while the caller converts the block before.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet

from ehrjax.data.events import NO_VISIT, STATIC_TIME, EventBatch
from ehrjax.data.readers import columns as columns_lib
from ehrjax.data.readers.columns import TIME_FORMAT, Column
from ehrjax.data.readers.csv_stream import RawBatch, stream_csv

_PARQUET_ROWS = 1 << 17
_END: Any = object()


class Field(NamedTuple):
    """A column that a reader asks for, under any of `aliases` (case-insensitive; the first one present is taken)."""

    name: str
    aliases: tuple[str, ...]
    required: bool = True
    is_free_text: bool = False  # undecodable bytes are replaced instead of costing the row


class Table(NamedTuple):
    """A source table: a path, or an open binary file (say a zip member), and the name that reports give it."""

    source: Path | BinaryIO
    file: str


class EventPart(NamedTuple):
    """Events of a block, at most one a row: arrays of the block's length, `code` -1 where a row gives no event."""

    time: np.ndarray  # int64 [n] microseconds, or STATIC_TIME
    code: np.ndarray  # int32 [n] into codes
    codes: Sequence[str]  # may repeat
    value: np.ndarray | None = None  # float32 [n]
    visit_id: np.ndarray | None = None  # int64 [n]


def find_table(folder: Path, stem: str, suffixes: Sequence[str] = (".csv", ".csv.gz", ".parquet")) -> Path | None:
    """The file of `folder` called `stem` (case-insensitive) with the first of `suffixes` present, or None."""
    names = {p.name.lower(): p for p in sorted(folder.iterdir(), reverse=True) if p.is_file()}
    return next((names[stem.lower() + s] for s in suffixes if stem.lower() + s in names), None)


def read_table(table: Table, fields: Sequence[Field]) -> Iterator["Block"]:
    """Stream a table as blocks of at most some 100k rows; the last block may hold no rows but malformed ones.

    Raises FileNotFoundError for a missing file and ValueError for an empty file, a missing required column, a
    truncated or corrupt archive, a table in which no row fits the header, or a time column of which no value could be
    read; each names the file and the way out.
    """
    if isinstance(table.source, Path) and not table.source.is_file():
        raise FileNotFoundError(f"{table.file}: no such file ({table.source})")
    stream = _stream_parquet if table.file.lower().endswith(".parquet") else stream_csv
    seen_times: dict[str, _SeenTimes] = {}
    for raw in _prefetch(stream(table.source, table.file, lambda header: _locate(table.file, fields, header))):
        yield _make_block(table.file, raw, fields, seen_times)
    for name, seen in seen_times.items():
        # One unreadable date of death among missing ones is a slip; a column full of them is another format.
        if seen.num_bad > (not seen.is_required) and not seen.num_parsed:
            raise ValueError(
                f"{table.file}: no value of column {name} could be read as a time; the first is {seen.example!r}, "
                f"expected {TIME_FORMAT}. Other formats are not guessed: convert the column."
            )


class _SeenTimes(NamedTuple):
    """Distinct values of a time column so far."""

    num_parsed: int = 0
    num_bad: int = 0
    example: str = ""  # the first bad one
    is_required: bool = False


class Block:
    """Rows of one table and what became of them. Rows are rejected with a reason; the first reason counts."""

    def __init__(
        self, file: str, columns: dict[str, Column], row: np.ndarray, present: dict[str, str], seen_times: dict
    ):
        self.file = file
        self.columns = columns
        self.row = row  # int64 [n], 1-based data row
        self.present = present  # field -> header name; a field that the file lacks is absent
        self.keep = np.ones(len(row), bool)
        self._rejected: dict[str, list[np.ndarray]] = {}
        self._seen_times = seen_times  # by header name; of the whole file

    def __len__(self) -> int:
        return len(self.row)

    def reject(self, reason: str, mask: np.ndarray) -> None:
        """Quarantine the kept rows where `mask` (bool [n]) is True."""
        mask = mask & self.keep
        if mask.any():
            self.reject_rows(reason, self.row[mask])
            self.keep &= ~mask

    def reject_rows(self, reason: str, rows: np.ndarray) -> None:
        """Quarantine rows by number, such as malformed ones, which are not among the block's `n`."""
        if len(rows):
            self._rejected.setdefault(reason, []).append(np.asarray(rows, np.int64))

    def times(self, name: str, *, required: bool = True) -> np.ndarray:
        """Microseconds since 1970 UTC (int64 [n]); STATIC_TIME where missing. Rejects `unparseable_time`, and
        `missing_time` where `required`."""
        column = self.columns[name]
        parsed, bad = columns_lib.parse_times(column.values)
        self._note_times(name, column, bad, required)
        self.reject("unparseable_time", column.take(bad, False))
        times = column.take(parsed, STATIC_TIME)
        if required:
            self.reject("missing_time", times == STATIC_TIME)
        return times

    def is_date_only(self, name: str) -> np.ndarray:
        """Mask (bool [n]) of times given as a day without a time of day."""
        column = self.columns[name]
        return column.take(columns_lib.is_date_only(column.values), False)

    def numbers(self, name: str) -> np.ndarray:
        """float32 [n], NaN where the value is no finite number."""
        column = self.columns[name]
        return column.take(columns_lib.parse_numbers(column.values), np.nan)

    def ints(self, name: str, *, reason: str | None = None) -> np.ndarray:
        """int64 [n], -1 where missing or no whole number; with a `reason` such rows are rejected."""
        column = self.columns[name]
        parsed, bad = columns_lib.parse_ints(column.values)
        if reason is not None:
            self.reject(reason, ~column.filled() | column.take(bad, False))
        return column.take(parsed, -1)

    def hashed_ids(self, name: str, *, reason: str | None = None) -> np.ndarray:
        """int64 [n] ids by `hash_ids`, -1 where missing; with a `reason` such rows are rejected."""
        column = self.columns[name]
        ids = column.take(columns_lib.hash_values(column.values), -1)
        if reason is not None:
            self.reject(reason, ids < 0)
        return ids

    def texts(self, name: str) -> tuple[np.ndarray, list[str]]:
        """(index int32 [n], distinct texts): trimmed, whole floats without ".0"; index -1 where there is none."""
        column = self.columns[name]
        index, texts = columns_lib.distinct(column.index, columns_lib.to_texts(column.values))
        if "" in texts:
            index = np.where(index == texts.index(""), np.int32(-1), index)
        return index, texts

    def events(
        self, subject_id: np.ndarray, parts: Sequence[EventPart], *, descriptions: dict[str, str] | None = None
    ) -> EventBatch:
        """The kept rows' events, and the ledger. A kept row without any event is rejected as `missing_code`."""
        has_event = np.zeros(len(self), bool)
        for part in parts:
            has_event |= part.code >= 0
        self.reject("missing_code", ~has_event)
        chosen = [np.flatnonzero(self.keep & (part.code >= 0)) for part in parts]
        code, codes = _merge_codes(parts, chosen)
        quarantined = {reason: np.sort(np.concatenate(rows)) for reason, rows in self._rejected.items()}

        def gather(name: str, fill: Any, dtype: Any) -> np.ndarray:
            columns = [getattr(part, name) for part in parts]
            pieces = [np.full(len(i), fill, dtype) if c is None else c[i] for c, i in zip(columns, chosen, strict=True)]
            return np.concatenate(pieces).astype(dtype, copy=False)

        used = None if descriptions is None else {c: descriptions[c] for c in codes if descriptions.get(c)}
        rows = np.concatenate(chosen)
        return EventBatch(
            file=self.file,
            rows_read=int(self.keep.sum()) + sum(map(len, quarantined.values())),
            subject_id=subject_id[rows],
            time=gather("time", STATIC_TIME, np.int64),
            code=code,
            codes=codes,
            numeric_value=gather("value", np.nan, np.float32),
            visit_id=gather("visit_id", NO_VISIT, np.int64),
            row=self.row[rows],
            quarantined=quarantined,
            descriptions=used,
        )

    def _note_times(self, name: str, column: Column, bad: np.ndarray, required: bool) -> None:
        header = self.present.get(name, name)
        seen = self._seen_times.get(header, _SeenTimes())
        num_bad = int(bad.sum())
        first_bad = column.values[int(bad.argmax())].as_py() if num_bad and not seen.num_bad else seen.example
        num_parsed = int(columns_lib.has_value(column.values).sum()) - num_bad
        self._seen_times[header] = _SeenTimes(
            seen.num_parsed + num_parsed, seen.num_bad + num_bad, first_bad, seen.is_required or required
        )


def _merge_codes(parts: Sequence[EventPart], chosen: Sequence[np.ndarray]) -> tuple[np.ndarray, list[str]]:
    """One code table for all parts, of the codes in use only."""
    names: dict[str, int] = {}
    merged = []
    for part, rows in zip(parts, chosen, strict=True):
        local = part.code[rows]
        used = np.flatnonzero(np.bincount(local, minlength=len(part.codes)))
        remap = np.full(len(part.codes), -1, np.int32)
        remap[used] = [names.setdefault(part.codes[i], len(names)) for i in used.tolist()]
        merged.append(remap[local])
    return np.concatenate(merged), list(names)


def _make_block(file: str, raw: RawBatch, fields: Sequence[Field], seen_times: dict) -> Block:
    block = Block(file, {}, raw.row, raw.present, seen_times)
    block.reject_rows("malformed_row", raw.malformed)
    for field in fields:
        if field.name not in raw.columns:
            block.columns[field.name] = columns_lib.empty_column(len(block))
            continue
        column = columns_lib.encode_column(raw.columns[field.name])
        block.columns[field.name] = column
        if raw.has_replaced and not field.is_free_text and columns_lib.is_string(column.values):
            bad = pc.match_substring(column.values, "\ufffd").to_numpy(zero_copy_only=False)
            block.reject("not_utf8", column.take(bad, False))
    return block


def _prefetch(items: Iterator) -> Iterator:
    """Run an iterator one item ahead, in a second thread."""
    with ThreadPoolExecutor(1, thread_name_prefix="ehrjax-read") as pool:
        future = pool.submit(next, items, _END)
        while (item := future.result()) is not _END:
            future = pool.submit(next, items, _END)
            yield item


def _locate(file: str, fields: Sequence[Field], header: Sequence[str]) -> dict[str, int]:
    """Position of each field's column; raises for a required one that is missing."""
    position = {name.strip().lower(): i for i, name in reversed(list(enumerate(header)))}
    found = {}
    for field in fields:
        match = next((position[alias.lower()] for alias in field.aliases if alias.lower() in position), None)
        if match is not None:
            found[field.name] = match
        elif field.required:
            wanted, names = " or ".join(field.aliases), ", ".join(header)[:500]
            raise ValueError(
                f"{file}: no column {wanted}; found {names}. Add the column or rename the one that holds it."
            )
    return found


def _stream_parquet(source: Path | BinaryIO, file: str, locate: Callable) -> Iterator[RawBatch]:
    try:
        parquet = pa.parquet.ParquetFile(source)
        header = parquet.schema_arrow.names
        present = {name: header[i] for name, i in locate(header).items()}
        first = 1
        for batch in parquet.iter_batches(_PARQUET_ROWS, columns=list(dict.fromkeys(present.values()))):
            rows = np.arange(first, first + len(batch), dtype=np.int64)
            first += len(batch)
            columns = {field: batch.column(name) for field, name in present.items()}
            yield RawBatch(columns, present, rows, np.zeros(0, np.int64))
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{file}: not a readable parquet file ({error}); fetch it again") from error
