"""The account of a build: every source row kept or quarantined with its reason, and what the store holds.

`data_report.json` is this account; `rows_read == rows_kept + rows_quarantined` is checked file by file.
"""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa

from ehrjax.data.clean import REASONS
from ehrjax.data.shards import ROW_BITS, ShardSummary
from ehrjax.data.spill import Spill

_QUANTILES = {"min": 0.0, "p05": 0.05, "p25": 0.25, "median": 0.5, "p75": 0.75, "p95": 0.95, "max": 1.0}


def make_report(summaries: Sequence[ShardSummary], spill: Spill, settings: dict[str, Any]) -> dict[str, Any]:
    """Counts, the ledger by reason and by file, and distributions, without the times that the build took."""
    files = _file_table(summaries, spill)
    by_reason: dict[str, int] = {}
    for file in files:
        for reason, count in file["rows_by_reason"].items():
            by_reason[reason] = by_reason.get(reason, 0) + count
    visits_per_patient = merge_counts([s.visits_per_subject for s in summaries])
    return {
        "num_patients": sum(s.num_subjects for s in summaries),
        "num_patients_with_visits": int(visits_per_patient[1][visits_per_patient[0] > 0].sum()),
        "num_events": sum(s.num_kept for s in summaries),
        "num_visits": sum(s.num_visits for s in summaries),
        "num_codes": len(spill.codes),
        "rows_read": sum(file["rows_read"] for file in files),
        "rows_kept": sum(file["rows_kept"] for file in files),
        "rows_quarantined": sum(file["rows_quarantined"] for file in files),
        "rows_by_reason": dict(sorted(by_reason.items(), key=lambda item: (-item[1], item[0]))),
        "files": files,
        "settings": settings,
        "visits_per_patient": describe_counts(visits_per_patient),
        "codes_per_visit": describe_counts(merge_counts([s.codes_per_visit for s in summaries])),
        **{name: iso_time(seconds) for name, seconds in time_range(summaries).items()},
    }


def quarantine_table(summaries: Sequence[ShardSummary], spill: Spill) -> pa.Table:
    """Columns file, row (1-based, the header not counted) and reason, sorted by file and row."""
    position = {file: i for i, file in enumerate(spill.files)}
    reasons = sorted({reason for _, reason, _ in spill.quarantined} | set(REASONS[1:]))
    number = {reason: i for i, reason in enumerate(reasons)}
    of_store = np.array([0] + [number[reason] for reason in REASONS[1:]], np.int32)
    file = [np.full(len(rows), position[name], np.int32) for name, _, rows in spill.quarantined]
    file += [(s.quarantined >> ROW_BITS).astype(np.int32) for s in summaries]
    row = [rows.astype(np.int64) for *_, rows in spill.quarantined]
    row += [s.quarantined & ((1 << ROW_BITS) - 1) for s in summaries]
    reason = [np.full(len(rows), number[name], np.int32) for _, name, rows in spill.quarantined]
    reason += [of_store[s.quarantine_reason] for s in summaries]
    file, row, reason = (np.concatenate(column) for column in (file, row, reason))
    order = np.lexsort((row, file))
    names = [
        pa.DictionaryArray.from_arrays(pa.array(numbers[order]), pa.array(values, pa.string()))
        for numbers, values in ((file, spill.files), (reason, reasons))
    ]
    return pa.table({"file": names[0], "row": row[order], "reason": names[1]})


def merge_counts(parts: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Distinct values and how often each occurs, from the same of several parts.

    >>> [x.tolist() for x in merge_counts([(np.array([1, 2]), np.array([1, 1])), (np.array([2]), np.array([5]))])]
    [[1, 2], [1, 6]]
    """
    values, inverse = np.unique(np.concatenate([part[0] for part in parts]), return_inverse=True)
    counts = np.bincount(inverse, weights=np.concatenate([part[1] for part in parts]), minlength=len(values))
    return values, counts.astype(np.int64)


def describe_counts(counted: tuple[np.ndarray, np.ndarray]) -> dict[str, float]:
    """Mean and quantiles (the smallest value that at least that share does not exceed); {} where there is nothing."""
    values, counts = counted
    if not len(values):
        return {}
    cumulative = np.cumsum(counts)
    places = {name: int(np.searchsorted(cumulative, q * cumulative[-1])) for name, q in _QUANTILES.items()}
    summary = {name: int(values[min(place, len(values) - 1)]) for name, place in places.items()}
    return {"mean": round(float(values @ counts / cumulative[-1]), 3), **summary}


def time_range(summaries: Sequence[ShardSummary]) -> dict[str, int | None]:
    """`first_time` and `last_time` (seconds since 1970) of visits and deaths, None where there are none."""
    first, last = min(s.first_time for s in summaries), max(s.last_time for s in summaries)
    return {"first_time": first, "last_time": last} if first <= last else {"first_time": None, "last_time": None}


def iso_time(seconds: int | None) -> str | None:
    """Seconds since 1970 as text, None outside the years that a date can have."""
    try:
        return (
            None
            if seconds is None
            else (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")
        )
    except OverflowError:
        return None


def _file_table(summaries: Sequence[ShardSummary], spill: Spill) -> list[dict[str, Any]]:
    kept = sum(s.kept_rows_per_file for s in summaries)
    reasons: list[dict[str, int]] = [{} for _ in spill.files]
    position = {file: i for i, file in enumerate(spill.files)}
    for name, reason, rows in spill.quarantined:
        counts = reasons[position[name]]
        counts[reason] = counts.get(reason, 0) + len(rows)
    for summary in summaries:
        pairs, counts = np.unique(
            (summary.quarantined >> ROW_BITS) * 256 + summary.quarantine_reason, return_counts=True
        )
        for pair, count in zip(pairs.tolist(), counts.tolist(), strict=True):
            file, reason = reasons[pair // 256], REASONS[pair % 256]
            file[reason] = file.get(reason, 0) + count
    table = []
    for i, name in enumerate(spill.files):
        read, quarantined = spill.rows_read[name], sum(reasons[i].values())
        if read != kept[i] + quarantined:
            raise AssertionError(f"{name}: {read} rows read, but {kept[i]} kept and {quarantined} quarantined.")
        by_reason = dict(sorted(reasons[i].items()))
        row_counts = {"rows_read": read, "rows_kept": int(kept[i]), "rows_quarantined": quarantined}
        table.append({"file": name, **row_counts, "rows_by_reason": by_reason})
    return table
