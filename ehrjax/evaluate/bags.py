"""Bags of codes: what the baselines see of each example, which is exactly what the model is shown."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
from jaxtyping import Float, Int

from ehrjax.types import Array, VisitSequences

DENSE_NAMES = ("age_years", "num_visits", "num_codes", "history_days", "last_gap_days")
# A month, half a year and a year back from the last visit that the model is shown.
WINDOW_DAYS = (30.0, 180.0, 365.0)


class Features(NamedTuple):
    """One row an example (visit-level tasks: a visit, with the codes up to and including it)."""

    counts: sp.csr_matrix  # [n, G] how often each code occurs
    dense: Float[Array, "n D"]
    recent: tuple[sp.csr_matrix, ...] = ()  # the same counts, [n, G] each, within so many days of the last visit


def bag_of_codes(
    sequences: VisitSequences,
    vocab_size: int,
    *,
    level: str = "patient",
    rows: Int[Array, "n"] | None = None,
    windows: Sequence[float] = (),
) -> Features:
    """Bags of codes of all examples; a visit-level bag (`level="visit"`) is cumulative over the example's visits.

    `rows` chooses examples (or visits): of a large data set the cumulative bags of all visits do not fit into memory.
    `windows` (days) asks for counts of recent visits too, those that began at most so long before the last one: the
    model is not shown how long ago that was at the index time, so neither are the baselines.
    """
    if level not in ("patient", "visit"):
        raise ValueError(f"level={level!r} is unknown: use 'patient' or 'visit'.")
    offsets = np.asarray(sequences.example_offsets, np.int64)
    if level == "patient":
        first, last = offsets[:-1], offsets[1:] - 1
    else:
        first, last = np.repeat(offsets[:-1], np.diff(offsets)), np.arange(offsets[-1])
    if rows is not None:
        first, last = first[rows], last[rows]
    num_visits = len(sequences.visit_offsets) - 1
    ones = np.ones(len(sequences.codes), np.float32)
    by_visit = sp.csr_matrix((ones, sequences.codes, sequences.visit_offsets), shape=(num_visits, vocab_size))
    days = np.cumsum(sequences.gap_days, dtype=np.float64)

    def counts_from(earliest: np.ndarray) -> sp.csr_matrix:
        return (_sums_of_runs(earliest, last, num_visits) @ by_visit).tocsr()

    recent = tuple(counts_from(np.maximum(np.searchsorted(days, days[last] - window), first)) for window in windows)
    return Features(counts_from(first), _dense(sequences, days, first, last), recent)


def _sums_of_runs(first: np.ndarray, last: np.ndarray, num_visits: int) -> sp.csr_matrix:
    """The matrix [n, num_visits] whose product with visits sums visits first..last of each row."""
    lengths = last - first + 1
    offsets = np.r_[0, np.cumsum(lengths)]
    columns = np.arange(offsets[-1]) + np.repeat(first - offsets[:-1], lengths)
    return sp.csr_matrix((np.ones(len(columns), np.float32), columns, offsets), shape=(len(first), num_visits))


def _dense(sequences: VisitSequences, days: np.ndarray, first: np.ndarray, last: np.ndarray) -> np.ndarray:
    columns = (
        sequences.ages[last],
        last - first + 1,
        sequences.visit_offsets[last + 1] - sequences.visit_offsets[first],
        days[last] - days[first],
        np.where(last > first, sequences.gap_days[last], 0.0),
    )
    return np.stack(columns, axis=1).astype(np.float32)
