"""Bags of codes: what the baselines see of each example, which is exactly what the model is shown."""

from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
from jaxtyping import Float, Int

from ehrjax.types import Array, VisitSequences

DENSE_NAMES = ("age_years", "num_visits", "num_codes", "history_days", "last_gap_days")


class Features(NamedTuple):
    """One row an example (visit-level tasks: a visit, with the codes up to and including it)."""

    counts: sp.csr_matrix  # [n, G] how often each code occurs
    dense: Float[Array, "n D"]


def bag_of_codes(
    sequences: VisitSequences, vocab_size: int, *, level: str = "patient", rows: Int[Array, "n"] | None = None
) -> Features:
    """Bags of codes of all examples; a visit-level bag (`level="visit"`) is cumulative over the example's visits.

    `rows` chooses examples (or visits): of a large data set the cumulative bags of all visits do not fit into memory.
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
    return Features((_sums_of_runs(first, last, num_visits) @ by_visit).tocsr(), _dense(sequences, first, last))


def _sums_of_runs(first: np.ndarray, last: np.ndarray, num_visits: int) -> sp.csr_matrix:
    """The matrix [n, num_visits] whose product with visits sums visits first..last of each row."""
    lengths = last - first + 1
    offsets = np.r_[0, np.cumsum(lengths)]
    columns = np.arange(offsets[-1]) + np.repeat(first - offsets[:-1], lengths)
    return sp.csr_matrix((np.ones(len(columns), np.float32), columns, offsets), shape=(len(first), num_visits))


def _dense(sequences: VisitSequences, first: np.ndarray, last: np.ndarray) -> np.ndarray:
    days = np.cumsum(sequences.gap_days, dtype=np.float64)
    columns = (
        sequences.ages[last],
        last - first + 1,
        sequences.visit_offsets[last + 1] - sequences.visit_offsets[first],
        days[last] - days[first],
        np.where(last > first, sequences.gap_days[last], 0.0),
    )
    return np.stack(columns, axis=1).astype(np.float32)
