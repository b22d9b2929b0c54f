"""Next visits to be predicted, and what a model of them has to beat: counting codes of the visits before.

Records are whole patient records (one example a patient). Every visit but a record's first is a row where it has a
code; its targets are its distinct codes, special tokens aside. Model and baselines give the same rows as chunks for
`ehrjax.metrics.next_visit`.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
from jaxtyping import Bool, Float, Int

from ehrjax.evaluate.bags import bag_of_codes
from ehrjax.metrics.next_visit import NextVisitChunk
from ehrjax.types import FIRST_CODE, VisitSequences

CHUNK_VALUES = 2**21  # scores in a chunk: 8 MB
# Frequency in train only orders codes that the patient's own visits leave equal.
TIE_WEIGHT = {"repeat_last": 0.5, "patient_history": 1e-4}


class NextVisits(NamedTuple):
    """The visits of some records that are to be predicted, in the records' order."""

    visits: Int[np.ndarray, "n"]  # number of the visit to be predicted among all visits of the records
    patients: Int[np.ndarray, "n"]  # number of its record
    distinct: VisitSequences  # the records with each visit's codes once, ascending, without special tokens
    vocab_size: int

    def held(self, visits: Int[np.ndarray, "n"]) -> sp.csr_matrix:
        """Which codes [n, G] these visits hold (any visits of the records): 1 where they do."""
        codes, offsets = self.distinct.codes, self.distinct.visit_offsets
        shape = (len(offsets) - 1, self.vocab_size)
        return sp.csr_matrix((np.ones(len(codes), np.float32), codes, offsets), shape)[visits]

    def counts_before(self, visits: Int[np.ndarray, "n"]) -> sp.csr_matrix:
        """How many visits of the record before each of these (none a record's first) hold each code [n, G]."""
        return bag_of_codes(self.distinct, self.vocab_size, level="visit", rows=visits - 1).counts

    def num_before(self, visits: Int[np.ndarray, "n"]) -> Int[np.ndarray, "n"]:
        """How many visits the record has before each of these."""
        offsets = np.asarray(self.distinct.example_offsets, np.int64)
        return visits - offsets[np.searchsorted(offsets, visits, side="right") - 1]


def next_visit_targets(records: VisitSequences, vocab_size: int) -> NextVisits:
    """Every visit with a code that has a visit of its record before it."""
    distinct = _distinct_codes(records, vocab_size)
    offsets = np.asarray(records.example_offsets, np.int64)
    owner = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    is_target = np.diff(distinct.visit_offsets) > 0
    is_target[offsets[:-1][np.diff(offsets) > 0]] = False
    visits = np.flatnonzero(is_target)
    return NextVisits(visits, owner[visits], distinct, vocab_size)


def code_frequency(records: VisitSequences, vocab_size: int) -> Float[np.ndarray, "G"]:
    """Share of all visits that hold each code; 0 for special tokens."""
    counts = np.bincount(_distinct_codes(records, vocab_size).codes, minlength=vocab_size)
    return counts / max(len(records.visit_offsets) - 1, 1)


def global_frequency(targets: NextVisits, frequency: Float[np.ndarray, "G"]) -> Iterator[NextVisitChunk]:
    """The same for every visit: how frequent the code is in train (`frequency` of `code_frequency`)."""
    return _chunks(targets, lambda visits: np.tile(np.float32(frequency), (len(visits), 1)))


def repeat_last(targets: NextVisits, frequency: Float[np.ndarray, "G"]) -> Iterator[NextVisitChunk]:
    """Codes of the visit just before first, then all others, both by their frequency in train."""
    ties = np.float32(TIE_WEIGHT["repeat_last"] * frequency)
    return _chunks(targets, lambda visits: targets.held(visits - 1).toarray() + ties)


def patient_history(targets: NextVisits, frequency: Float[np.ndarray, "G"]) -> Iterator[NextVisitChunk]:
    """Share of the patient's visits so far that hold the code, then its frequency in train."""
    ties = np.float32(TIE_WEIGHT["patient_history"] * frequency)

    def score(visits: np.ndarray) -> np.ndarray:
        return targets.counts_before(visits).toarray() / np.float32(targets.num_before(visits))[:, None] + ties

    return _chunks(targets, score)


BASELINES: dict[str, Callable[[NextVisits, np.ndarray], Iterator[NextVisitChunk]]] = {
    "global_frequency": global_frequency,
    "repeat_last": repeat_last,
    "patient_history": patient_history,
}


def chunks_from_scores(
    targets: NextVisits, scores: Iterable[tuple[Int[np.ndarray, "n"], Float[np.ndarray, "n G"]]]
) -> Iterator[NextVisitChunk]:
    """A model's scores, in any order, as chunks: pairs of the visits that are predicted and their scores.

    Visits are numbered among all visits of the records; those that are no rows (a record's first, one without codes)
    are passed over. Raises ValueError at the end where a row has no score, or at once where one comes twice.
    """
    row_of_visit = np.full(len(targets.distinct.visit_offsets) - 1, -1)
    row_of_visit[targets.visits] = np.arange(len(targets.visits))
    is_seen = np.zeros(len(targets.visits), bool)
    for visits, values in scores:
        visits, values = np.asarray(visits), np.asarray(values, np.float32)
        if values.shape != (len(visits), targets.vocab_size):
            raise ValueError(f"scores have shape {values.shape}: {len(visits)} visits x {targets.vocab_size} codes.")
        rows = row_of_visit[visits]
        chosen = np.flatnonzero(rows >= 0)
        rows, visits = rows[chosen], visits[chosen]
        twice = is_seen[rows] | (np.bincount(rows, minlength=1)[rows] > 1)
        if twice.any():
            raise ValueError(f"visit {visits[twice][0]} is predicted twice: score each visit once.")
        is_seen[rows] = True
        if len(rows):
            yield _chunk(targets, rows, values[chosen])
    if not is_seen.all():
        missing = targets.visits[np.flatnonzero(~is_seen)[0]]
        raise ValueError(f"visit {missing} has no scores ({(~is_seen).sum()} such): predict every visit but the first.")


def _chunks(targets: NextVisits, score: Callable[[np.ndarray], np.ndarray]) -> Iterator[NextVisitChunk]:
    size = max(CHUNK_VALUES // targets.vocab_size, 1)
    for first in range(0, len(targets.visits), size):
        rows = np.arange(first, min(first + size, len(targets.visits)))
        yield _chunk(targets, rows, score(targets.visits[rows]))


def _chunk(targets: NextVisits, rows: np.ndarray, scores: np.ndarray) -> NextVisitChunk:
    visits = targets.visits[rows]
    held: Bool[np.ndarray, "n G"] = targets.held(visits).toarray() > 0
    return NextVisitChunk(scores, held, targets.counts_before(visits).toarray() > 0, targets.patients[rows])


def _distinct_codes(records: VisitSequences, vocab_size: int) -> VisitSequences:
    codes, offsets = np.asarray(records.codes), np.asarray(records.visit_offsets, np.int64)
    if len(codes) and codes.max() >= vocab_size:
        raise ValueError(f"code {codes.max()} is not below vocab_size={vocab_size}: give the model's vocabulary size.")
    visits = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    pairs = np.unique(visits[codes >= FIRST_CODE] * vocab_size + codes[codes >= FIRST_CODE])
    sizes = np.bincount(pairs // vocab_size, minlength=len(offsets) - 1)
    return records._replace(codes=(pairs % vocab_size).astype(np.int32), visit_offsets=np.r_[0, np.cumsum(sizes)])
