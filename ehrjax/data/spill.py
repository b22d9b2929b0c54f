"""The first pass over the sources: batches of events are split by patient and appended to one file a partition.

Codes and files get provisional numbers in the order they are met; `Renumbering` says what these become once all are
known, so that nothing in the store depends on the order in which files or batches came.
"""

from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ehrjax.data.clean import Events
from ehrjax.data.events import EventBatch
from ehrjax.data.shards import ROW_BITS, shard_of
from ehrjax.data.visits import distinct

# One block of a spill file: number of events, then these columns (8-byte ones first, which keeps them aligned).
_COLUMNS = (
    ("subject_id", np.int64),
    ("time", np.int64),
    ("visit_id", np.int64),
    ("source", np.int64),
    ("code", np.int32),
    ("value", np.float32),
)


class Renumbering(NamedTuple):
    """From provisional numbers to final ones: rows in the sorted lists of codes and of files."""

    code_ids: np.ndarray  # int32 [num_codes]
    file_ids: np.ndarray  # int64 [num_files]


class Spill:
    """Writes batches into `folder`, one file a partition; keeps the ledger of rows that readers could not use."""

    def __init__(self, folder: Path, num_shards: int):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.num_shards = folder, num_shards
        self.rows_read: Counter[str] = Counter()
        self.quarantined: list[tuple[str, str, np.ndarray]] = []  # file, reason, rows
        self.descriptions: dict[str, str] = {}
        self._codes: dict[str, int] = {}
        self._files: dict[str, int] = {}
        for i in range(num_shards):
            _partition_file(folder, i).touch()

    def add(self, batch: EventBatch) -> None:
        """Append one batch. Raises ValueError where its rows do not add up, which is a fault of its reader."""
        _check(batch)
        self.rows_read[batch.file] += batch.rows_read
        self.quarantined += [(batch.file, reason, rows) for reason, rows in batch.quarantined.items() if len(rows)]
        for code, text in (batch.descriptions or {}).items():
            # Of several names the first in the alphabet, so that the order of the files does not matter.
            self.descriptions[code] = min(text, self.descriptions.get(code, text))
        file = self._files.setdefault(batch.file, len(self._files))
        columns = (
            batch.subject_id.astype(np.int64, copy=False),
            batch.time.astype(np.int64, copy=False),
            batch.visit_id.astype(np.int64, copy=False),
            batch.row.astype(np.int64, copy=False) | (file << ROW_BITS),
            self._code_numbers(batch).take(batch.code),
            batch.numeric_value.astype(np.float32, copy=False),
        )
        self._append(columns)

    @property
    def codes(self) -> list[str]:
        """All codes met, sorted: their final numbers are their places here."""
        return sorted(self._codes)

    @property
    def files(self) -> list[str]:
        """All files met, sorted likewise."""
        return sorted(self._files)

    def renumbering(self) -> Renumbering:
        """Final numbers of the codes and files met so far."""
        return Renumbering(_places(self._codes).astype(np.int32), _places(self._files))

    def _code_numbers(self, batch: EventBatch) -> np.ndarray:
        # Only codes that occur: which others a batch lists may depend on how its reader cut the file.
        numbers = np.full(len(batch.codes), -1, np.int32)
        for i in np.flatnonzero(np.bincount(batch.code, minlength=len(batch.codes))):
            numbers[i] = self._codes.setdefault(batch.codes[i], len(self._codes))
        return numbers

    def _append(self, columns: tuple[np.ndarray, ...]) -> None:
        if self.num_shards == 1:
            return self._write(0, columns)
        shard = shard_of(columns[0], self.num_shards).astype(np.min_scalar_type(self.num_shards))
        order = np.argsort(shard, kind="stable")  # small integers: a radix sort
        columns = tuple(column.take(order) for column in columns)
        ends = np.cumsum(np.bincount(shard, minlength=self.num_shards))
        for i, (start, end) in enumerate(zip(np.insert(ends[:-1], 0, 0), ends, strict=True)):
            self._write(i, tuple(column[start:end] for column in columns))

    def _write(self, shard: int, columns: tuple[np.ndarray, ...]) -> None:
        if not len(columns[0]):
            return
        # Opened anew each time: a large source has more partitions than a process may hold open files.
        with open(_partition_file(self.folder, shard), "ab") as out:
            out.write(np.int64(len(columns[0])).tobytes())
            for column in columns:
                out.write(np.ascontiguousarray(column).data)


def read_partition(folder: Path, shard: int, final: Renumbering) -> tuple[np.ndarray, Events]:
    """Subject ids (int64 [n]) and events of one partition, with final code and file numbers."""
    blocks = _blocks(np.fromfile(_partition_file(folder, shard), np.uint8))
    columns = [np.concatenate([np.zeros(0, kind), *(b[i] for b in blocks)]) for i, (_, kind) in enumerate(_COLUMNS)]
    subject_id, time, visit_id, source, code, value = columns
    del blocks
    value += np.float32(0)  # -0.0 and 0.0 are one value; so are all NaNs
    value[np.isnan(value)] = np.nan
    source = (final.file_ids.take(source >> ROW_BITS) << ROW_BITS) | (source & ((1 << ROW_BITS) - 1))
    return subject_id, Events(subject_id, time, final.code_ids.take(code), value, visit_id, source)


def _places(numbers: dict[str, int]) -> np.ndarray:
    places = np.empty(len(numbers), np.int64)
    places[[numbers[name] for name in sorted(numbers)]] = np.arange(len(numbers))
    return places


def _blocks(raw: np.ndarray) -> list[list[np.ndarray]]:
    blocks, at = [], 0
    while at < len(raw):
        length, at = int(raw[at : at + 8].view(np.int64)[0]), at + 8
        block = []
        for _, kind in _COLUMNS:
            size = length * np.dtype(kind).itemsize
            block.append(raw[at : at + size].view(kind))
            at += size
        blocks.append(block)
    return blocks


def _partition_file(folder: Path, shard: int) -> Path:
    return folder / f"{shard:05d}.bin"


def _check(batch: EventBatch) -> None:
    columns = (batch.time, batch.code, batch.numeric_value, batch.visit_id, batch.row)
    if any(len(column) != len(batch.subject_id) for column in columns):
        raise ValueError(f"{batch.file}: the columns of a batch differ in length: {[len(c) for c in columns]}.")
    rows = batch.row
    is_ordered = bool((rows[1:] >= rows[:-1]).all())
    with_events = int((rows[1:] != rows[:-1]).sum()) + bool(len(rows)) if is_ordered else len(distinct(rows))
    without = sum(len(rows) for rows in batch.quarantined.values())
    if with_events + without != batch.rows_read:
        raise ValueError(
            f"{batch.file}: the reader read {batch.rows_read} rows, but {with_events} gave events and {without} are "
            "quarantined; each row must be one or the other."
        )
