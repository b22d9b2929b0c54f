"""Records as they might have gone on: everything after a patient's time removed, or replaced and added to.

Whatever uses only what was recorded by that time cannot tell the difference.
"""

import copy
from typing import NamedTuple

import numpy as np

from ehrjax.data.events import type_ranks
from ehrjax.data.shards import NO_CLASS, NULL_TIME, Shard
from ehrjax.data.timeline import DAY, expand

CHANGES = ("removed", "replaced")
_LATER_DAYS = 400  # new times lie within so many days after the patient's time
_LONGEST_WAIT = 60 * 365 * DAY  # from a visit to a result that joins it
_LATE_RESULTS, _NEW_VISIT_EVENTS = 5, 4  # events added a patient


class _Visits(NamedTuple):
    owner: np.ndarray  # position of the patient
    ids: np.ndarray
    start: np.ndarray
    end: np.ndarray
    classes: np.ndarray

    def take(self, index: np.ndarray) -> "_Visits":
        return _Visits(*(column[index] for column in self))


class _Events(NamedTuple):
    visit: np.ndarray  # position of the visit
    time: np.ndarray  # seconds since 1970-01-01
    code: np.ndarray
    value: np.ndarray

    def take(self, index: np.ndarray) -> "_Events":
        return _Events(*(column[index] for column in self))


def change_after(store, subject_ids: np.ndarray, times: np.ndarray, *, change: str, seed: int = 0):
    """A store in memory with these patients only, each with the record after the own time (seconds) changed.

    "removed": no later event, visit or death, and no end of a visit that was open. "replaced": later events have other
    codes, values and times (still later), visits other starts and ends, late results join earlier visits, a visit is
    added, and everybody who lived dies. Static codes and birth, which have no time, stay. Raises ValueError for a
    patient with two times or none in the store, and for an unknown `change`.
    """
    subject_ids, times = np.asarray(subject_ids, np.int64), np.asarray(times, np.int64)
    if change not in CHANGES:
        raise ValueError(f"change={change!r} is not known: use {' or '.join(CHANGES)}.")
    if len(np.unique(subject_ids)) != len(subject_ids):
        raise ValueError("a patient is given twice: one time a patient.")
    if not np.isin(subject_ids, store.subject_ids).all():
        raise ValueError("a patient is not in the store: name the store that the label rows are from.")
    rng, ranks = np.random.default_rng(seed), type_ranks([str(code) for code in store.codes])
    shards = []
    for shard in store.shards:
        chosen = np.flatnonzero(np.isin(shard.subject_ids, subject_ids))
        if len(chosen):
            order = np.argsort(subject_ids)
            cuts = times[order][np.searchsorted(subject_ids[order], np.asarray(shard.subject_ids)[chosen])]
            shards.append(_change_shard(shard, chosen, cuts, change, rng, ranks))
    changed = copy.copy(store)
    changed.shards = shards
    changed.__dict__.pop("subject_ids", None)  # computed from the shards
    return changed


def count_later_events(store, subject_ids: np.ndarray, times: np.ndarray) -> int:
    """Events of visits that are recorded after the patients' times, one time a patient."""
    total = 0
    for shard in store.shards:
        rows = np.flatnonzero(np.isin(subject_ids, shard.subject_ids))
        patients = np.searchsorted(shard.subject_ids, np.asarray(subject_ids)[rows])
        visits, events = _read(shard, patients)
        total += int((events.time > np.asarray(times)[rows][visits.owner[events.visit]]).sum())
    return total


def _read(shard, rows: np.ndarray) -> tuple[_Visits, _Events]:
    first = np.asarray(shard.visit_offsets)
    index, owner = expand(first[rows], first[rows + 1] - first[rows])
    columns = (shard.visit_ids, shard.visit_start, shard.visit_end, shard.visit_class)
    visits = _Visits(owner, *(np.asarray(column)[index] for column in columns))
    offsets = np.asarray(shard.event_offsets)
    events, visit = expand(offsets[index], offsets[index + 1] - offsets[index])
    times = visits.start[visit] + np.asarray(shard.event_times)[events]
    return visits, _Events(visit, times, np.asarray(shard.event_codes)[events], np.asarray(shard.event_values)[events])


def _change_shard(shard, rows: np.ndarray, cuts: np.ndarray, change: str, rng, ranks: np.ndarray) -> Shard:
    visits, events = _read(shard, rows)
    death = np.asarray(shard.death)[rows]
    dies_later = (death == NULL_TIME) | (death > cuts)
    if change == "removed":
        visits, events = _removed(visits, events, cuts)
        death = np.where(dies_later, NULL_TIME, death)
    else:
        visits, events = _replaced(visits, events, cuts, rng, len(ranks))
        death = np.where(dies_later, _later(rng, cuts), death)
    return _lay_out(shard, rows, death, visits, events, ranks)


def _removed(visits: _Visits, events: _Events, cuts: np.ndarray) -> tuple[_Visits, _Events]:
    cut = cuts[visits.owner]
    begun = np.flatnonzero(visits.start <= cut)
    place = np.full(len(visits.owner), -1)
    place[begun] = np.arange(len(begun))
    events = events.take((events.time <= cut[events.visit]) & (place[events.visit] >= 0))
    events = events._replace(visit=place[events.visit])
    visits = visits.take(begun)._replace(end=np.minimum(visits.end, cut)[begun])
    is_class = np.zeros(len(begun), bool)
    is_class[events.visit[events.code == visits.classes[events.visit]]] = True
    return visits._replace(classes=np.where(is_class, visits.classes, NO_CLASS)), events


def _replaced(visits: _Visits, events: _Events, cuts: np.ndarray, rng, num_codes: int) -> tuple[_Visits, _Events]:
    cut = cuts[visits.owner]
    start = np.where(visits.start > cut, _later(rng, cut), visits.start)
    # A visit that was open at the cut ends at another time; one that begins later ends after its new start.
    end = np.where(visits.end > cut, np.maximum(start, _later(rng, cut)), visits.end)
    classes = np.where(visits.start > cut, rng.integers(0, num_codes, len(cut)), visits.classes)
    begun, num_visits = np.flatnonzero(visits.start <= cut), len(cut)
    is_later = (events.time > cut[events.visit]) | (visits.start > cut)[events.visit]
    events = _Events(
        events.visit,
        np.where(is_later, _later(rng, np.maximum(cut, start)[events.visit]), events.time),
        np.where(is_later, rng.integers(0, num_codes, len(is_later)), events.code),
        np.where(is_later, _values(rng, len(is_later)), events.value),
    )
    # A store counts an event's seconds from its visit's start in int32, which end after 68 years.
    begun = begun[(cut - visits.start)[begun] < _LONGEST_WAIT]
    late = rng.choice(begun, min(_LATE_RESULTS * len(cuts), 5 * len(begun))) if len(begun) else begun
    new = np.repeat(num_visits + np.arange(len(cuts)), _NEW_VISIT_EVENTS)
    added = np.concatenate([late, new])
    new_start = _later(rng, cuts)
    owner = np.concatenate([visits.owner, np.arange(len(cuts))])
    after = np.maximum(cuts[owner[added]], np.concatenate([start, new_start])[added])
    events = _Events(
        np.concatenate([events.visit, added]),
        np.concatenate([events.time, _later(rng, after)]),
        np.concatenate([events.code, rng.integers(0, num_codes, len(added))]),
        np.concatenate([events.value, _values(rng, len(added))]),
    )
    visits = _Visits(
        owner,
        np.concatenate([visits.ids, np.full(len(cuts), -1)]),
        np.concatenate([start, new_start]),
        np.concatenate([end, new_start + DAY]),
        np.concatenate([classes, np.full(len(cuts), NO_CLASS)]),
    )
    return visits, events


def _later(rng, times: np.ndarray) -> np.ndarray:
    return times + rng.integers(1, _LATER_DAYS * DAY, len(times))


def _values(rng, count: int) -> np.ndarray:
    return np.where(rng.random(count) < 0.5, np.nan, rng.normal(0, 1e3, count)).astype(np.float32)


def _lay_out(shard, rows: np.ndarray, death, visits: _Visits, events: _Events, ranks: np.ndarray) -> Shard:
    order = np.lexsort((visits.start, visits.owner))  # stable: equal starts stay in their order
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    visits = visits.take(order)
    events = events._replace(visit=place[events.visit])
    events = events.take(np.lexsort((events.code, events.time, ranks[events.code], events.visit)))
    first = np.asarray(shard.static_offsets)
    statics, whose = expand(first[rows], first[rows + 1] - first[rows])
    return Shard(
        subject_ids=np.asarray(shard.subject_ids)[rows],
        birth=np.asarray(shard.birth)[rows],
        death=death,
        visit_offsets=_offsets(visits.owner, len(rows)),
        static_offsets=_offsets(whose, len(rows)),
        static_codes=np.asarray(shard.static_codes)[statics],
        static_values=np.asarray(shard.static_values)[statics],
        visit_ids=visits.ids,
        visit_start=visits.start,
        visit_end=visits.end,
        visit_class=visits.classes.astype(np.int32),
        event_offsets=_offsets(events.visit, len(visits.owner)),
        event_codes=events.code.astype(np.int32),
        event_values=events.value.astype(np.float32),
        event_times=(events.time - visits.start[events.visit]).astype(np.int32),
    )


def _offsets(owner: np.ndarray, num_owners: int) -> np.ndarray:
    return np.append(0, np.cumsum(np.bincount(owner, minlength=num_owners)))
