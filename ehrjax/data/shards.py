"""Shards: the arrays of one partition of patients in CSR form, how a partition of events becomes one, and its files.

A subject belongs to the shard that a fixed hash of its id says, so the layout depends on the data alone.
"""

import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from ehrjax.data.clean import (
    BIRTH,
    DEATH,
    ENCOUNTER_START,
    Events,
    find_faults,
    quarantined_rows,
)
from ehrjax.data.events import STATIC_TIME
from ehrjax.data.visits import Visits, assign_visits, distinct, order_by, seconds_up

NULL_TIME = np.iinfo(np.int64).min  # birth or death unknown
NO_CLASS = -1
ROW_BITS = 40  # a source row is (file << ROW_BITS) | row


class Shard(NamedTuple):
    """Patients -> visits -> events, memory-mapped. Times are seconds since 1970-01-01 (UTC).

    Subject i owns visits `visit_offsets[i]:visit_offsets[i + 1]` and static codes likewise; visit v owns events
    `event_offsets[v]:event_offsets[v + 1]`, ordered by type (diagnosis, lab, ...), then time, then code name.
    """

    subject_ids: np.ndarray  # int64 [S], ascending
    birth: np.ndarray  # int64 [S], NULL_TIME where unknown
    death: np.ndarray  # int64 [S], NULL_TIME where none is recorded
    visit_offsets: np.ndarray  # int64 [S + 1]
    static_offsets: np.ndarray  # int64 [S + 1]
    static_codes: np.ndarray  # int32, row of codes.parquet; ascending within a subject
    static_values: np.ndarray  # float32, NaN where there is none
    visit_ids: np.ndarray  # int64 [V], the source's encounter, or negative where the visit was made from times
    visit_start: np.ndarray  # int64 [V], ascending within a subject
    visit_end: np.ndarray  # int64 [V]
    visit_class: np.ndarray  # int32 [V], code of its first ENCOUNTER//... event, -1 where it has none
    event_offsets: np.ndarray  # int64 [V + 1]
    event_codes: np.ndarray  # int32 [N]
    event_values: np.ndarray  # float32 [N], NaN where there is none
    event_times: np.ndarray  # int32 [N], seconds after visit_start, rounded up; negative if recorded before it


class ShardPlan(NamedTuple):
    """What every partition needs to know of the whole: the codes' roles and types, and how to make visits."""

    role: np.ndarray  # int8 [num_codes]
    type_rank: np.ndarray  # int8 [num_codes]
    num_files: int
    visits: str
    window_hours: float
    death_tolerance_days: float


class ShardSummary(NamedTuple):
    """What the store's manifest and report need of one shard."""

    digest: str
    num_subjects: int
    num_visits: int
    num_events: int  # events of visits
    num_kept: int  # events that survived cleaning: those of visits, static ones, births, deaths, ends of encounters
    first_time: int  # seconds; of visits and deaths, later than `last_time` where there are none
    last_time: int
    code_counts: np.ndarray  # int64 [num_codes], kept events
    kept_rows_per_file: np.ndarray  # int64 [num_files], source rows with a kept event
    quarantined: np.ndarray  # int64, source rows without one
    quarantine_reason: np.ndarray  # int8, position in clean.REASONS
    visits_per_subject: tuple[np.ndarray, np.ndarray]  # distinct values, how often
    codes_per_visit: tuple[np.ndarray, np.ndarray]


def shard_of(subject_ids: np.ndarray, num_shards: int) -> np.ndarray:
    """Shard (int64 [n]) of each subject: splitmix64 of the id, modulo the number of shards."""
    x = np.asarray(subject_ids).astype(np.int64).view(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((x ^ (x >> np.uint64(31))) % np.uint64(num_shards)).astype(np.int64)


def make_shard(subject_id: np.ndarray, events: Events, plan: ShardPlan) -> tuple[Shard, ShardSummary]:
    """Clean the events of one partition, assign visits, sort, and lay them out.

    `subject_id` int64 [n]; `events.subject` is not read. Events may come in any order.
    """
    subject, all_ids = _rank(subject_id)
    events = events._replace(subject=subject)
    role = plan.role.take(events.code)
    reason, birth, death = find_faults(events, role, len(all_ids), death_tolerance_days=plan.death_tolerance_days)
    quarantined, quarantine_reason = quarantined_rows(events.source, reason)
    kept = reason == 0
    kept_rows = distinct(events.source[kept])
    kept_rows_per_file = np.bincount(kept_rows >> ROW_BITS, minlength=plan.num_files)
    counts = np.bincount(events.code[kept], minlength=len(plan.role))

    # A subject all of whose events were dropped is in the quarantine, not in the store.
    present = np.zeros(len(all_ids), bool)
    present[subject[kept]] = True
    if not present.all():
        events = events._replace(subject=(np.cumsum(present, dtype=np.int32) - np.int32(1)).take(subject))
    is_static = events.time == STATIC_TIME
    static = events.take(kept & is_static & (role <= ENCOUNTER_START))
    is_dated = np.flatnonzero(kept & ~is_static & (role != BIRTH) & (role != DEATH))
    dated = events.take(is_dated)
    visits = assign_visits(dated, role.take(is_dated), strategy=plan.visits, window_hours=plan.window_hours)
    birth, death = _to_seconds(birth[present]), _to_seconds(death[present])
    shard = _lay_out(all_ids[present], birth, death, static, dated, visits, plan)
    return shard, _summarise(shard, counts, kept_rows_per_file, quarantined, quarantine_reason)


def save_shard(shard: Shard, folder: Path) -> None:
    """One `.npy` a column."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, column in shard._asdict().items():
        np.save(folder / f"{name}.npy", column)


def load_shard(folder: Path) -> Shard:
    """Memory-map the columns, read-only."""
    return Shard(*(np.load(folder / f"{name}.npy", mmap_mode="r") for name in Shard._fields))


def shard_digest(shard: Shard) -> str:
    """SHA-256 of the columns' names, types, lengths and bytes."""
    digest = hashlib.sha256()
    for name, column in shard._asdict().items():
        digest.update(f"{name} {column.dtype.str} {len(column)};".encode())
        digest.update(np.ascontiguousarray(column).data)
    return digest.hexdigest()


def _rank(subject_id: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Position (int32) of each id among the sorted distinct ids, and those ids."""
    codes, ids = pd.factorize(subject_id)
    order = np.argsort(ids)
    rank = np.empty(len(ids), np.int32)
    rank[order] = np.arange(len(ids), dtype=np.int32)
    return rank.take(codes), ids[order].astype(np.int64)


def _to_seconds(microseconds: np.ndarray) -> np.ndarray:
    return np.where(microseconds == STATIC_TIME, NULL_TIME, seconds_up(microseconds))


def _lay_out(
    ids: np.ndarray,
    birth: np.ndarray,
    death: np.ndarray,
    static: Events,
    dated: Events,
    visits: Visits,
    plan: ShardPlan,
) -> Shard:
    static = static.take(order_by(static.subject, static.code))
    static_values = static.value.take(_order_of_ties(static.value, static.subject, static.code))
    index = np.flatnonzero(visits.of_event >= 0)
    visit, code = visits.of_event.take(index), dated.code.take(index)
    offset = _offsets_in_visit(seconds_up(dated.time.take(index)), visits.start.take(visit), plan)
    order = order_by(visit, plan.type_rank.take(code), offset, code)
    visit, offset, code, value = (column.take(order) for column in (visit, offset, code, dated.value.take(index)))
    value = value.take(_order_of_ties(value, visit, offset, code))
    return Shard(
        subject_ids=ids,
        birth=birth,
        death=death,
        visit_offsets=_offsets(visits.subject, len(ids)),
        static_offsets=_offsets(static.subject, len(ids)),
        static_codes=static.code,
        static_values=static_values,
        visit_ids=visits.visit_id,
        visit_start=visits.start,
        visit_end=visits.end,
        visit_class=_visit_classes(visit, code, plan.role, len(visits.start)),
        event_offsets=_offsets(visit, len(visits.start)),
        event_codes=code,
        event_values=value,
        event_times=offset,
    )


def _offsets_in_visit(time: np.ndarray, start: np.ndarray, plan: ShardPlan) -> np.ndarray:
    offset = time - start
    if len(offset) and max(int(offset.max()), -int(offset.min())) > np.iinfo(np.int32).max:
        raise ValueError(
            f"a visit of more than 68 years: window_hours={plan.window_hours} is too long for these events."
        )
    return offset.astype(np.int32)


def _order_of_ties(value: np.ndarray, *keys: np.ndarray) -> np.ndarray:
    """Positions that put events equal in all `keys`, which are sorted, in an order fixed by their values' bits."""
    order = np.arange(len(value))
    same = np.ones(max(len(value) - 1, 0), bool)
    for key in keys:
        same &= key[1:] == key[:-1]
    if same.any():
        in_tie = np.flatnonzero(np.append(same, False) | np.insert(same, 0, False))
        group = np.cumsum(~np.insert(same, 0, False)[in_tie])
        order[in_tie] = in_tie[np.lexsort((value.view(np.int32)[in_tie], group))]
    return order


def _offsets(owner: np.ndarray, num_owners: int) -> np.ndarray:
    offsets = np.zeros(num_owners + 1, np.int64)
    np.cumsum(np.bincount(owner, minlength=num_owners), out=offsets[1:])
    return offsets


def _visit_classes(visit: np.ndarray, code: np.ndarray, role: np.ndarray, num_visits: int) -> np.ndarray:
    """Code of each visit's first encounter event; these share a type, so their order in a visit is that of time."""
    classes = np.full(num_visits, NO_CLASS, np.int32)
    starts = np.flatnonzero(role.take(code) == ENCOUNTER_START)[::-1]
    classes[visit[starts]] = code[starts]  # of several the last one written stays: the first in time
    return classes


def _summarise(
    shard: Shard,
    code_counts: np.ndarray,
    kept_rows_per_file: np.ndarray,
    quarantined: np.ndarray,
    quarantine_reason: np.ndarray,
) -> ShardSummary:
    start_of_event = np.repeat(shard.visit_start, np.diff(shard.event_offsets))
    times = [shard.visit_start, shard.visit_end, start_of_event + shard.event_times]
    times.append(shard.death[shard.death != NULL_TIME])
    return ShardSummary(
        digest=shard_digest(shard),
        num_subjects=len(shard.subject_ids),
        num_visits=len(shard.visit_start),
        num_events=len(shard.event_codes),
        num_kept=int(code_counts.sum()),
        first_time=min(int(t.min(initial=np.iinfo(np.int64).max)) for t in times),
        last_time=max(int(t.max(initial=NULL_TIME)) for t in times),
        code_counts=code_counts,
        kept_rows_per_file=kept_rows_per_file,
        quarantined=quarantined,
        quarantine_reason=quarantine_reason,
        visits_per_subject=np.unique(np.diff(shard.visit_offsets), return_counts=True),
        codes_per_visit=np.unique(np.diff(shard.event_offsets), return_counts=True),
    )
