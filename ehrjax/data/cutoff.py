"""A cut-off date: a store as it stood then, so that a study can train on what was known by it and test on what follows.

A cut-off is the last second that counts as known: a cut-off at a date is the second before that day begins.
"""

from collections.abc import Sequence
from datetime import date
from functools import lru_cache

import numpy as np

from ehrjax.data.shards import NO_CLASS, NULL_TIME, Shard
from ehrjax.data.store import Store
from ehrjax.data.timeline import DAY, NEVER, Timeline

_CUT_SHARDS = 8  # kept in memory


class StoreUntil(Store):
    """The store `whole` as it stood at `cutoff` (seconds); for all that reads a store.

    An event is there if its visit had begun and it was recorded by then; a visit if one of its events is there, a
    patient if one visit is. Static codes come with the patient: of who was first seen later, nothing is there. A visit
    that was still open ends one second after the cut-off, a later death is unknown. `codes` (names) and the counts of
    `report` and `manifest` are those of the whole store. Raises ValueError where nothing lies before the cut-off.
    """

    def __init__(self, whole: Store, cutoff: int):
        manifest = whole.manifest | {"last_time": min(whole.manifest["last_time"], cutoff)}
        super().__init__(whole.path, manifest)
        self.whole, self.cutoff = whole, cutoff
        self.shards = _CutShards(whole.shards, cutoff)
        if not len(self.subject_ids):
            raise ValueError(f"{whole.path}: no patient has a visit before the cut-off {cutoff_day(cutoff)}: move it.")


class _CutShards(Sequence):
    def __init__(self, shards: Sequence[Shard], cutoff: int):
        self._shards = shards
        self._cut = lru_cache(_CUT_SHARDS)(lambda index: cut_shard(shards[index], cutoff))

    def __len__(self) -> int:
        return len(self._shards)

    def __getitem__(self, index: int) -> Shard:
        if not -len(self) <= index < len(self):
            raise IndexError(f"shard {index} of {len(self)}")
        return self._cut(index % len(self))


def whole_of(store: Store) -> Store:
    """The store with everything that it was built from."""
    return store.whole if isinstance(store, StoreUntil) else store


def cut_shard(shard: Shard, cutoff: int) -> Shard:
    """The shard as it stood at `cutoff`; see `StoreUntil`."""
    start, sizes = np.asarray(shard.visit_start), np.diff(shard.event_offsets)
    visit_of_event = np.repeat(np.arange(len(start)), sizes)
    # An event may be stamped earlier than its visit begins; it is known with the visit.
    has_event = (start <= cutoff)[visit_of_event]
    has_event &= np.asarray(shard.event_times) <= (cutoff - start)[visit_of_event]
    events_each = np.bincount(visit_of_event[has_event], minlength=len(start))
    has_visit = events_each > 0
    owner = np.repeat(np.arange(len(shard.subject_ids)), np.diff(shard.visit_offsets))
    visits_each = np.bincount(owner[has_visit], minlength=len(shard.subject_ids))
    has_patient = visits_each > 0
    statics_each = np.diff(shard.static_offsets)
    has_static = np.repeat(has_patient, statics_each)
    codes = np.asarray(shard.event_codes)[has_event]
    death = np.asarray(shard.death)[has_patient]
    return Shard(
        subject_ids=np.asarray(shard.subject_ids)[has_patient],
        birth=np.asarray(shard.birth)[has_patient],
        death=np.where(death > cutoff, NULL_TIME, death),
        visit_offsets=_offsets(visits_each[has_patient]),
        static_offsets=_offsets(statics_each[has_patient]),
        static_codes=np.asarray(shard.static_codes)[has_static],
        static_values=np.asarray(shard.static_values)[has_static],
        visit_ids=np.asarray(shard.visit_ids)[has_visit],
        visit_start=start[has_visit],
        visit_end=np.minimum(np.asarray(shard.visit_end)[has_visit], cutoff + 1),
        visit_class=_classes(shard, visit_of_event[has_event], codes)[has_visit],
        event_offsets=_offsets(events_each[has_visit]),
        event_codes=codes,
        event_values=np.asarray(shard.event_values)[has_event],
        event_times=np.asarray(shard.event_times)[has_event],
    )


def _classes(shard: Shard, visits: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """The class of each visit that one of these events tells; a class recorded later was not known."""
    classes = np.asarray(shard.visit_class)
    told = np.zeros(len(classes), bool)
    told[visits[codes == classes[visits]]] = True
    return np.where(told, classes, NO_CLASS).astype(classes.dtype)


def _offsets(sizes: np.ndarray) -> np.ndarray:
    return np.append(0, np.cumsum(sizes))


def begun_after(store: Store, subject_ids: np.ndarray, cutoff: int) -> np.ndarray:
    """Whether each visit of these patients (distinct, ascending) that has events begins after the cut-off.

    Bool [num_visits], patients in order and visits by their start: as `build_patient_sequences` has them.
    """
    ids, starts = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for shard in store.shards:
        line = Timeline.of(shard)
        of_visit = np.asarray(shard.subject_ids)[line.visit_rows]
        chosen = (line.known != NEVER) & np.isin(of_visit, subject_ids)
        ids.append(of_visit[chosen])
        starts.append(np.asarray(shard.visit_start)[chosen])
    order = np.argsort(np.concatenate(ids), kind="stable")
    return np.concatenate(starts)[order] > cutoff


def parse_cutoff(text: str) -> date | float:
    """A date (YYYY-MM-DD), or a share between 0 and 1; ValueError for anything else.

    >>> parse_cutoff("2015-01-31"), parse_cutoff("0.8")
    (datetime.date(2015, 1, 31), 0.8)
    """
    try:
        return date.fromisoformat(text)
    except ValueError:
        try:
            share = float(text)
        except ValueError:
            share = 0.0
    if not 0 < share < 1:
        raise ValueError(
            f"cut-off {text!r} must be a date such as 2015-01-31, or the share of visits that end before it, such as"
            " 0.8 (between 0 and 1)."
        )
    return share


def find_cutoff(store: Store, text: str) -> int:
    """The cut-off (seconds) that `text` (see `parse_cutoff`) means for a store.

    A share means the day on which the visits' ends, the index times of most tasks, reach that quantile. Raises
    ValueError for a date that leaves nothing of the store before or after it.
    """
    wanted = parse_cutoff(text)
    if not store.manifest["num_visits"]:
        raise ValueError(f"{store.path}: no patient has a visit, so a cut-off has nothing before it.")
    if isinstance(wanted, float):
        ends = np.concatenate([np.asarray(shard.visit_end) for shard in store.shards])
        day = int(np.quantile(ends, wanted)) // DAY
    else:
        day = (wanted - date(1970, 1, 1)).days
    cutoff = day * DAY - 1
    first, last = store.manifest["first_time"], store.manifest["last_time"]
    if not first <= cutoff < last:
        span = " to ".join(str(np.datetime64(time, "s").astype("datetime64[D]")) for time in (first, last))
        raise ValueError(f"cut-off {cutoff_day(cutoff)} must lie within the data, which span {span}.")
    return cutoff


def cutoff_day(cutoff: int) -> str:
    """The first day that was not known, YYYY-MM-DD.

    >>> cutoff_day(86_400 - 1)
    '1970-01-02'
    """
    return str(np.datetime64(cutoff + 1, "s").astype("datetime64[D]"))
