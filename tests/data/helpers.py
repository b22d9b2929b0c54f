"""Stores and batches from events written by hand."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from ehrjax.data.events import NO_VISIT, STATIC_TIME, EventBatch
from ehrjax.data.store import Store, write_store

# subject_id, ISO time (UTC) or None for static, code, value or None, visit_id or None
HandEvent = tuple[int, str | None, str, float | None, int | None]


def microseconds(iso: str | None) -> int:
    """Microseconds since 1970 of an ISO time in UTC; STATIC_TIME for None."""
    if iso is None:
        return STATIC_TIME
    delta = datetime.fromisoformat(iso).replace(tzinfo=UTC) - datetime(1970, 1, 1, tzinfo=UTC)
    return (delta.days * 86_400 + delta.seconds) * 1_000_000 + delta.microseconds


def seconds(iso: str) -> int:
    """Whole seconds since 1970 of an ISO time in UTC."""
    return microseconds(iso) // 1_000_000


def make_batch(events: Sequence[HandEvent], *, file: str = "hand/events.csv", first_row: int = 1) -> EventBatch:
    """One batch, one source row an event."""
    codes = sorted({event[2] for event in events})
    number = {code: i for i, code in enumerate(codes)}
    return EventBatch(
        file=file,
        rows_read=len(events),
        subject_id=np.array([event[0] for event in events], np.int64),
        time=np.array([microseconds(event[1]) for event in events], np.int64),
        code=np.array([number[event[2]] for event in events], np.int32),
        codes=codes,
        numeric_value=np.array([np.nan if event[3] is None else event[3] for event in events], np.float32),
        visit_id=np.array([NO_VISIT if event[4] is None else event[4] for event in events], np.int64),
        row=np.arange(first_row, first_row + len(events)),
        quarantined={},
    )


def make_store(tmp_path: Path, events: Sequence[HandEvent], **options) -> Store:
    """A store of hand-written events at `tmp_path / "store"`; `options` go to `write_store`."""
    return write_store([make_batch(events)], tmp_path / "store", **options)
