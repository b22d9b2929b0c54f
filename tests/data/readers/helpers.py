"""What tests of readers share: tables written from text, and events read back with their ledger checked."""

import gzip
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from ehrjax.data.events import STATIC_TIME, EventBatch


def write_table(path: Path, text: str) -> None:
    """Write lines (indentation and blank lines dropped) to `path`, gzipped where it ends in .gz."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [line.strip() for line in text.strip().splitlines()]
    data = ("\n".join(line for line in lines if line) + "\n").encode()
    path.write_bytes(gzip.compress(data) if path.name.endswith(".gz") else data)


def iso(time: int) -> str | None:
    """Microseconds as an ISO time, None for STATIC_TIME."""
    return None if time == STATIC_TIME else str(np.datetime64(int(time), "us").astype("datetime64[s]"))


def collect(batches: Iterable[EventBatch]) -> tuple[list[tuple], list[tuple], dict[str, str]]:
    """Events (file, subject, iso time, code, value, visit), quarantine (file, reason, row), descriptions.

    Files are named without the data set. Every row must be behind an event or in the quarantine, once.
    """
    events, quarantine, descriptions = [], [], {}
    for batch in batches:
        file = batch.file.split("/", 1)[1]
        lost = [(file, reason, row) for reason, rows in batch.quarantined.items() for row in rows.tolist()]
        used, dropped = set(batch.row.tolist()), [row for *_, row in lost]
        assert not used & set(dropped) and len(set(dropped)) == len(dropped)
        assert batch.rows_read == len(used) + len(dropped)
        assert batch.code.dtype == np.int32 and batch.numeric_value.dtype == np.float32
        quarantine += lost
        descriptions |= batch.descriptions or {}
        columns = (batch.subject_id, batch.time, batch.code, batch.numeric_value, batch.visit_id)
        for subject, time, code, value, visit in zip(*(column.tolist() for column in columns), strict=True):
            number = None if np.isnan(value) else round(value, 4)
            events.append((file, subject, iso(time), batch.codes[code], number, visit))
    return events, quarantine, descriptions
