"""A shard's records along time, as arrays: what was known when, without a loop over patients."""

from typing import NamedTuple

import numpy as np

from ehrjax.data.shards import NULL_TIME

NEVER = np.iinfo(np.int64).max
DAY = 86_400
YEAR = 365.25 * DAY


def expand(starts: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Indices of all ranges [start, start + length) one after another, and the range that each belongs to.

    >>> expand(np.array([5, 0]), np.array([2, 3]))
    (array([5, 6, 0, 1, 2]), array([0, 0, 1, 1, 1]))
    """
    lengths = np.asarray(lengths, np.int64)
    owner = np.repeat(np.arange(len(lengths)), lengths)
    first = np.cumsum(lengths) - lengths
    return np.arange(len(owner)) + np.repeat(np.asarray(starts, np.int64) - first, lengths), owner


def rank_in_group(groups: np.ndarray) -> np.ndarray:
    """Position of each element within its run of equal values (groups must be contiguous).

    >>> rank_in_group(np.array([4, 4, 7, 9, 9, 9]))
    array([0, 1, 0, 0, 1, 2])
    """
    if not len(groups):
        return np.zeros(0, np.int64)
    is_start = np.append(True, groups[1:] != groups[:-1])
    starts = np.flatnonzero(is_start)
    return np.arange(len(groups)) - starts[np.cumsum(is_start) - 1]


def running_max(groups: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Largest value so far within each run of equal groups (numbers that ascend), int64.

    >>> running_max(np.array([0, 0, 0, 1, 1]), np.array([5, 3, 6, -1, -2]))
    array([ 5,  5,  6, -1, -1])
    """
    if not len(values):
        return np.zeros(0, np.int64)
    # Lifting every group above the one before makes them a single run.
    low = int(values.min())
    lift = groups * (int(values.max()) - low + 1)
    return np.maximum.accumulate(values - low + lift) + low - lift


class Timeline(NamedTuple):
    """Per visit of a shard: whose it is, and when it was first and last heard of (seconds)."""

    visit_rows: np.ndarray  # int64 [V], row of its patient in the shard
    known: np.ndarray  # int64 [V], the visit has begun and one of its events is recorded; NEVER where it has none
    last: np.ndarray  # int64 [V], end of the visit or its latest event

    @classmethod
    def of(cls, shard) -> "Timeline":
        """From a store's shard."""
        offsets = np.asarray(shard.event_offsets)
        start = np.asarray(shard.visit_start)
        filled = np.flatnonzero(offsets[1:] > offsets[:-1])
        known, last = np.full(len(start), NEVER), np.asarray(shard.visit_end).copy()
        if len(filled):
            times = np.asarray(shard.event_times)
            earliest = np.minimum.reduceat(times, offsets[filled]).astype(np.int64)
            latest = np.maximum.reduceat(times, offsets[filled]).astype(np.int64)
            known[filled] = start[filled] + np.maximum(earliest, 0)
            last[filled] = np.maximum(last[filled], start[filled] + latest)
        rows = np.repeat(np.arange(len(shard.subject_ids)), np.diff(shard.visit_offsets))
        return cls(rows, known, last)


def events_of_codes(shard, is_code: np.ndarray, visit_rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Patient row and time (seconds) of every timed event whose code id is marked in `is_code` (bool [num_codes])."""
    found = np.flatnonzero(is_code[shard.event_codes])
    visits = np.searchsorted(shard.event_offsets, found, side="right") - 1
    return visit_rows[visits], np.asarray(shard.visit_start)[visits] + np.asarray(shard.event_times)[found]


class SortedTimes:
    """Times grouped by patient row, for as-of look-ups: one sort, then one binary search a query.

    `rows` and `times` are kept sorted by (row, time); `order` says where each came from.
    """

    def __init__(self, rows: np.ndarray, times: np.ndarray):
        self.order = np.lexsort((times, rows))
        self.rows, self.times = np.asarray(rows)[self.order], np.asarray(times)[self.order]
        self.low = int(self.times.min()) if len(self.times) else 0
        self.high = int(self.times.max()) if len(self.times) else 0
        self._keys = self._key(self.rows, self.times)

    def _key(self, rows, times):
        # One int64 a (row, time): 0 stands for "before all times", so a query may lie anywhere.
        return rows * (self.high - self.low + 2) + (np.clip(times, self.low - 1, self.high) - (self.low - 1))

    def _rank(self, rows, times):
        return np.searchsorted(self._keys, self._key(rows, times), side="right")

    def count_until(self, rows: np.ndarray, times: np.ndarray) -> np.ndarray:
        """How many of a row's times are <= the query's (int64 [n])."""
        return self._rank(rows, times) - np.searchsorted(self.rows, rows, side="left")

    def last_until(self, rows: np.ndarray, times: np.ndarray) -> np.ndarray:
        """A row's latest time <= the query's; NULL_TIME where there is none."""
        return self._pick(self._rank(rows, times) - 1, rows, NULL_TIME)

    def next_after(self, rows: np.ndarray, times: np.ndarray) -> np.ndarray:
        """A row's earliest time > the query's; NEVER where there is none."""
        return self._pick(self._rank(rows, times), rows, NEVER)

    def index_after(self, rows: np.ndarray, times: np.ndarray) -> np.ndarray:
        """Where that earliest later time stood in the input; -1 where there is none."""
        return self._pick(self._rank(rows, times), rows, -1, self.order)

    def _pick(self, at, rows, otherwise, values=None):
        values = self.times if values is None else values
        if not len(values):
            return np.full(len(at), otherwise)
        inside = np.clip(at, 0, len(values) - 1)
        return np.where((at == inside) & (self.rows[inside] == rows), values[inside], otherwise)


def find_stays(
    shard, line: Timeline, is_class: np.ndarray, is_admission: np.ndarray, is_discharge: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Patient row, start and end (seconds; NEVER where not recorded) of each hospital stay.

    Stays are the visits of some classes; where the shard has none, from an admission event to the next discharge
    event. The codes of each are marked in a bool [num_codes].
    """
    visits = np.flatnonzero(np.append(is_class, False)[shard.visit_class])  # class -1 is none
    if len(visits) or not is_admission.any():
        return line.visit_rows[visits], np.asarray(shard.visit_start)[visits], np.asarray(shard.visit_end)[visits]
    rows, starts = events_of_codes(shard, is_admission, line.visit_rows)
    ends = SortedTimes(*events_of_codes(shard, is_discharge, line.visit_rows)).next_after(rows, starts - 1)
    # A discharge after the next admission belongs to that one.
    return rows, starts, np.where(ends <= SortedTimes(rows, starts).next_after(rows, starts), ends, NEVER)
