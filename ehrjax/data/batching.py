"""Visit sequences to padded batches, on the host: `batch_at(step)` is a pure function of the seed and the step.

Shapes come from a short list of buckets (visits, codes), so that a run compiles once for each and padding stays low.
"""

from collections.abc import Iterator
from functools import cached_property

import numpy as np
from jaxtyping import Int

from ehrjax.types import VisitBatch, VisitSequences

LEVELS = ("patient", "visit")
USUAL_SHARE = 0.98  # of a bucket's patients set its number of codes; the few with far more share one shape of their own


class VisitBatches:
    """Batches of `batch_size` patients (at most the number of examples), of similar length.

    An epoch covers each example once: a permutation drawn from (seed, epoch), sorted by bucket and cut into batches,
    which then come in random order. One batch an epoch may have padding rows. `level` says whether labels have one row
    an example ("patient") or a visit ("visit"). `shapes` lists the (V, T) that batches can have.

    Raises ValueError for no examples, a patient without visits, a visit of more than `max_codes` codes, and labels that
    do not fit `level`.
    """

    def __init__(
        self,
        sequences: VisitSequences,
        *,
        batch_size: int,
        seed: int = 0,
        level: str = "patient",
        num_buckets: int = 6,
        max_codes: int = 1024,
    ):
        _check(sequences, batch_size, level, max_codes)
        self.sequences = sequences
        self.num_examples = len(sequences.subject_ids)
        self.batch_size = min(batch_size, self.num_examples)
        self.seed = seed
        self.level = level
        self.num_batches_per_epoch = -(-self.num_examples // self.batch_size)
        self._num_visits = np.diff(sequences.example_offsets)
        self._code_offsets = sequences.visit_offsets[sequences.example_offsets]
        self._num_codes = np.diff(self._code_offsets)
        self.shapes, self._buckets = _bucket(self._num_visits, self._num_codes, num_buckets)
        self._plan = (-1, [])

    def batch_at(self, step: int) -> VisitBatch:
        """The batch of training step `step` (from 0)."""
        epoch, index = divmod(step, self.num_batches_per_epoch)
        return self.collate(self._epoch(epoch)[index])

    def eval_batches(self) -> Iterator[VisitBatch]:
        """Every example once, those of like length together (`example_ids` tell which they are)."""
        order = np.argsort(self._buckets, kind="stable")
        for start in range(0, self.num_examples, self.batch_size):
            yield self.collate(order[start : start + self.batch_size])

    @cached_property
    def padding_fraction(self) -> float:
        """Share of visit slots in the batches of the first epoch that hold no visit."""
        slots = sum(self._shape(ids)[0] * self.batch_size for ids in self._epoch(0))
        return 1.0 - float(self._num_visits.sum()) / slots

    def collate(self, ids: Int[np.ndarray, "N"]) -> VisitBatch:
        """The batch of these examples, in this order, padded to `batch_size` rows and the smallest shape that fits."""
        sequences, rows = self.sequences, self.batch_size
        num_visits, num_codes = _padded(self._num_visits[ids], rows), _padded(self._num_codes[ids], rows)
        max_visits, max_codes = self._shape(ids)
        visit_mask = np.arange(max_visits) < num_visits[:, None]
        code_mask = np.arange(max_codes) < num_codes[:, None]
        visits = _ranges(sequences.example_offsets[ids], self._num_visits[ids])
        columns = np.nonzero(visit_mask)[1].astype(np.int32)
        codes = sequences.codes[_ranges(self._code_offsets[ids], self._num_codes[ids])]
        codes_a_visit = sequences.visit_offsets[visits + 1] - sequences.visit_offsets[visits]
        label_rows, label_slots = (ids, np.arange(rows) < len(ids)) if self.level == "patient" else (visits, visit_mask)
        return VisitBatch(
            codes=_fill(code_mask, codes.astype(np.int32)),
            code_visits=_fill(code_mask, np.repeat(columns, codes_a_visit), empty=-1),
            visit_mask=visit_mask,
            ages=_fill(visit_mask, sequences.ages[visits].astype(np.float32)),
            gap_days=_fill(visit_mask, sequences.gap_days[visits].astype(np.float32)),
            labels=_fill(label_slots, sequences.labels[label_rows]),
            label_mask=_fill(label_slots, sequences.label_mask[label_rows]),
            example_mask=np.arange(rows) < len(ids),
            example_ids=_padded(ids.astype(np.int32), rows, empty=-1),
            segment_ids=None if sequences.segment_ids is None else _fill(visit_mask, sequences.segment_ids[visits]),
        )

    def _epoch(self, epoch: int) -> list[Int[np.ndarray, "N"]]:
        """Example ids of each batch of an epoch; the last epoch asked for is kept."""
        if self._plan[0] != epoch:
            rng = np.random.default_rng([self.seed, epoch])
            order = rng.permutation(self.num_examples)
            # A batch that straddles two buckets takes the larger shape, so only one batch an epoch is not full.
            order = order[np.argsort(self._buckets[order], kind="stable")]
            starts = rng.permutation(self.num_batches_per_epoch) * self.batch_size
            self._plan = (epoch, [order[start : start + self.batch_size] for start in starts])
        return self._plan[1]

    def _shape(self, ids: Int[np.ndarray, "N"]) -> tuple[int, int]:
        visits, codes = self._num_visits[ids].max(), self._num_codes[ids].max()
        return next(shape for shape in self.shapes if shape[0] >= visits and shape[1] >= codes)


def _check(sequences: VisitSequences, batch_size: int, level: str, max_codes: int) -> None:
    if level not in LEVELS:
        raise ValueError(f"level={level!r} is not known: use 'patient' or 'visit'.")
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be at least 1.")
    if len(sequences.subject_ids) == 0:
        raise ValueError("there are no examples to batch: the cohort is empty.")
    empty = np.flatnonzero(np.diff(sequences.example_offsets) == 0)
    if len(empty):
        raise ValueError(
            f"subject {sequences.subject_ids[empty[0]]} has no visits ({len(empty)} such examples): exclude them."
        )
    sizes = np.diff(sequences.visit_offsets)
    if len(sizes) and sizes.max() > max_codes:
        example = np.searchsorted(sequences.example_offsets, sizes.argmax(), side="right") - 1
        raise ValueError(
            f"subject {sequences.subject_ids[example]} has a visit of {sizes.max()} codes, over max_codes={max_codes}: "
            "truncate visits when the sequences are built, or raise max_codes."
        )
    expected = len(sequences.subject_ids) if level == "patient" else len(sizes)
    if len(sequences.labels) != expected:
        raise ValueError(
            f"level={level!r} needs {expected} rows of labels, one a {level}; there are {len(sequences.labels)}."
        )


def _bucket(
    num_visits: Int[np.ndarray, "E"], num_codes: Int[np.ndarray, "E"], num_buckets: int
) -> tuple[list[tuple[int, int]], Int[np.ndarray, "E"]]:
    """Shapes (V, T), one a bucket (of about as many examples each) and a last that fits all; the example's bucket."""
    visit_edges = np.unique(np.quantile(num_visits, np.linspace(0, 1, num_buckets + 1)[1:], method="higher"))
    buckets = np.searchsorted(visit_edges, num_visits)
    members = [num_codes[buckets == bucket] for bucket in range(len(visit_edges))]
    code_edges = np.array([max(np.quantile(each, USUAL_SHARE, method="higher"), 1) for each in members])
    buckets = np.where(num_codes > code_edges[buckets], len(visit_edges), buckets)
    shapes = list(zip(visit_edges.tolist(), code_edges.tolist(), strict=True))
    last = (int(num_visits.max()), max(int(num_codes.max()), 1))
    return shapes + ([last] if last != shapes[-1] else []), buckets


def _ranges(starts: Int[np.ndarray, "N"], counts: Int[np.ndarray, "N"]) -> Int[np.ndarray, "M"]:
    """Concatenation of arange(start, start + count)."""
    ends = np.cumsum(counts)
    return np.arange(counts.sum()) + np.repeat(starts - (ends - counts), counts)


def _padded(values: np.ndarray, size: int, empty: int = 0) -> np.ndarray:
    return np.concatenate([values, np.full(size - len(values), empty, values.dtype)])


def _fill(mask: np.ndarray, values: np.ndarray, empty: int = 0) -> np.ndarray:
    """Array of the mask's shape (and the values' trailing axes) with the values where it is True, in row order."""
    filled = np.full((*mask.shape, *values.shape[1:]), empty, values.dtype)
    filled[mask] = values
    return filled
