"""Cleaning of one partition of events: what contradicts birth or death, and what was recorded twice.

Everything is vectorised over the partition; nothing is removed here, each event only gets a reason (0 = keep), from
which `quarantined_rows` works out which source rows gave no event at all.
"""

from typing import NamedTuple

import numpy as np

from ehrjax.data.events import BIRTH_CODE, DEATH_CODE, ENCOUNTER_END_PREFIX, ENCOUNTER_PREFIX, STATIC_TIME

# Position 0 means "kept": an int8 of these positions is what travels between processes.
REASONS = (
    "",
    "before_birth",
    "after_death",
    "duplicate_row",
    "missing_time",
    "conflicting_birth",
    "conflicting_death",
)
_BEFORE_BIRTH, _AFTER_DEATH, _DUPLICATE, _MISSING_TIME, _OTHER_BIRTH, _OTHER_DEATH = range(1, 7)

# What a code does in the store; only EVENT and ENCOUNTER_START become codes of a visit.
EVENT, ENCOUNTER_START, ENCOUNTER_END, BIRTH, DEATH = range(5)
DAY_MICROSECONDS = 86_400_000_000
_LATEST = np.iinfo(np.int64).max
_HASH_FACTORS = (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0xD6E8FEB86659FD93, 0xFF51AFD7ED558CCD)


class Events(NamedTuple):
    """Events of one partition, in any order; all columns have the same length n."""

    subject: np.ndarray  # int32 [n], position in the partition's sorted subject ids
    time: np.ndarray  # int64 [n], microseconds since 1970, or STATIC_TIME
    code: np.ndarray  # int32 [n]
    value: np.ndarray  # float32 [n], NaN where there is none
    visit_id: np.ndarray  # int64 [n], negative where there is none
    source: np.ndarray  # int64 [n], the source row: ordered by (file, row)

    def take(self, index: np.ndarray) -> "Events":
        """Events at `index` (positions or a mask)."""
        index = np.flatnonzero(index) if index.dtype == bool else index
        return Events(*(column.take(index) for column in self))


def code_roles(codes: list[str]) -> np.ndarray:
    """Role (int8 [n]) of each code: EVENT, ENCOUNTER_START, ENCOUNTER_END, BIRTH or DEATH.

    >>> code_roles(["LAB//LOINC//1", "ENCOUNTER//inpatient", "MEDS_DEATH//hospital"]).tolist()
    [0, 1, 4]
    """
    roles = {ENCOUNTER_PREFIX: ENCOUNTER_START, ENCOUNTER_END_PREFIX: ENCOUNTER_END}
    roles |= {BIRTH_CODE + "//": BIRTH, DEATH_CODE + "//": DEATH}
    return np.array([next((r for p, r in roles.items() if (c + "//").startswith(p)), EVENT) for c in codes], np.int8)


def find_faults(
    events: Events, role: np.ndarray, num_subjects: int, *, death_tolerance_days: float = 30.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Reason (int8 [n], position in REASONS, 0 = keep) of each event; birth and death of each subject (int64 [S]).

    Birth and death are microseconds, STATIC_TIME where unknown: the earliest recorded of each. An event is before
    birth if it is before that day, since many sources know births only to the day.
    """
    reason = np.zeros(len(events.time), np.int8)
    dated = events.time != STATIC_TIME
    reason[~dated & (role >= ENCOUNTER_END)] = _MISSING_TIME

    birth = _earliest(events, dated & (role == BIRTH), num_subjects)
    birth_day = np.where(birth == _LATEST, STATIC_TIME, birth - birth % DAY_MICROSECONDS)
    reason[dated & (events.time < birth_day[events.subject])] = _BEFORE_BIRTH

    death = _earliest(events, dated & (role == DEATH) & (reason == 0), num_subjects)
    tolerance = round(death_tolerance_days * DAY_MICROSECONDS)
    limit = np.where(death > _LATEST - tolerance, _LATEST, death + tolerance)
    reason[(events.time > limit[events.subject]) & (reason == 0)] = _AFTER_DEATH

    for kind, chosen, other in ((BIRTH, birth, _OTHER_BIRTH), (DEATH, death, _OTHER_DEATH)):
        index = np.flatnonzero((role == kind) & (reason == 0))
        reason[index[events.time[index] != chosen[events.subject[index]]]] = other

    reason[_later_copies(events, reason == 0)] = _DUPLICATE
    return reason, _null_latest(birth), _null_latest(death)


def quarantined_rows(source: np.ndarray, reason: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Source rows none of whose events is kept (int64 [q], sorted), and each row's reason: that of its first event."""
    dropped = np.flatnonzero(reason)
    rows, first = np.unique(source[dropped], return_index=True)
    if not len(rows):
        return rows, np.zeros(0, np.int8)
    has_kept = np.zeros(len(rows), bool)
    found = _find(source, rows)
    has_kept[np.searchsorted(rows, source[found[reason[found] == 0]])] = True
    return rows[~has_kept], reason[dropped[first[~has_kept]]]


def _earliest(events: Events, mask: np.ndarray, num_subjects: int) -> np.ndarray:
    earliest = np.full(num_subjects, _LATEST)
    index = np.flatnonzero(mask)
    np.minimum.at(earliest, events.subject[index], events.time[index])
    return earliest


def _null_latest(times: np.ndarray) -> np.ndarray:
    return np.where(times == _LATEST, STATIC_TIME, times)


def _later_copies(events: Events, mask: np.ndarray) -> np.ndarray:
    """Positions of the events of `mask` that repeat another one in all columns but the source row.

    Sorting one hash is ten times cheaper than sorting five columns; equal hashes are then compared in full.
    """
    columns = (*events[:3], events.value.view(np.int32), events.visit_id)
    hashed = np.zeros(len(mask), np.uint64)
    for column, factor in zip(columns, _HASH_FACTORS, strict=True):
        hashed += column.astype(np.int64, copy=False).view(np.uint64)
        hashed *= np.uint64(factor)
        hashed ^= hashed >> np.uint64(29)
    hashed = hashed.view(np.int64)
    ordered = np.sort(hashed)
    repeated = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    if not len(repeated):
        return repeated
    candidates = _find(hashed, repeated)
    candidates = candidates[mask[candidates]]
    keys = [column.take(candidates) for column in columns]
    source, hashed = events.source.take(candidates), hashed.take(candidates)
    order = np.lexsort((source, hashed))
    same = _equal_to_previous(keys, order)
    if not np.array_equal(same, _equal_to_previous([hashed], order)):
        order = np.lexsort((source, *keys))  # two different events share a hash
        same = _equal_to_previous(keys, order)
    return candidates[order[same]]


def _find(values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Positions of the `values` that are among the sorted `wanted`: int64, usually few.

    A table of the last 16 bits, small enough for the cache, spares most values the binary search.
    """
    table = np.zeros(1 << 16, bool)
    table[wanted & 0xFFFF] = True
    maybe = np.flatnonzero(table.take(values & 0xFFFF))
    looked_up = values.take(maybe)
    position = np.minimum(np.searchsorted(wanted, looked_up), len(wanted) - 1)
    return maybe[wanted.take(position) == looked_up]


def _equal_to_previous(keys: list[np.ndarray], order: np.ndarray) -> np.ndarray:
    same = np.ones(len(order), bool)
    same[:1] = False
    for key in keys:
        values = key.take(order)
        same[1:] &= values[1:] == values[:-1]
    return same
