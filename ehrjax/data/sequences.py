"""Label rows to visit sequences: what a model may know at each index time, as ragged visits of tokens.

A visit is in the sequence once it has begun and one of its events is recorded by the index time t; it then shows the
events with time <= t and no others. Static codes join the first kept visit, at their place in its order. A code that is
recorded twice in a visit gives two tokens: sums and counts mean what they say, and the mean weighs repeats.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from ehrjax.data.events import type_ranks
from ehrjax.data.labels import Labels
from ehrjax.data.timeline import DAY, NEVER, NULL_TIME, YEAR, SortedTimes, Timeline, expand, rank_in_group, running_max
from ehrjax.data.vocab import EncodeTable, Vocabulary
from ehrjax.types import VisitSequences

_CHUNK_EVENTS = 4_000_000  # bounds the index arrays of one gather


class _Ragged(NamedTuple):
    """Visits of some examples: which (`rows` x visits in the shard), and their tokens."""

    codes: np.ndarray  # int32
    codes_each: np.ndarray  # codes of each visit
    visits_each: np.ndarray  # visits of each example
    ages: np.ndarray
    gap_days: np.ndarray


class _Encoder(NamedTuple):
    table: EncodeTable
    ranks: np.ndarray  # int8 [num_codes], type order within a visit
    max_visits: int
    max_codes: int


def build_visit_sequences(
    store, vocab: Vocabulary, labels: Labels, *, max_visits: int = 50, max_codes: int = 512
) -> VisitSequences:
    """One example a label row, in the rows' order, from the events with time <= the row's index time.

    Keeps the last `max_visits` visits, and the first `max_codes` codes of a visit in its order (diagnosis, lab, vital,
    procedure, medication, other). Ages are years at the visit's start (0 where the birth is unknown), gaps days since
    the start of the visit before. Raises ValueError naming the first subject without a visit by its index time.
    """
    encoder = _make_encoder(store, vocab, max_visits, max_codes)
    parts, order = [], []
    for shard, examples in _by_shard(store, labels.subject_ids):
        rows = np.searchsorted(shard.subject_ids, labels.subject_ids[examples])
        line = Timeline.of(shard)
        for piece in _pieces(shard, rows):
            parts.append(_gather(shard, line, encoder, rows[piece], labels.times[examples[piece]]))
            order.append(examples[piece])
    joined = _join(parts, order, len(labels.subject_ids))
    _refuse_empty(joined.visits_each, labels)
    return _to_sequences(joined, labels.subject_ids, labels.times, labels.values, labels.mask)


def drop_without_visits(store, labels: Labels) -> Labels:
    """The label rows whose subject has a visit in the store by the index time; `flow["no_record"]` counts the rest.

    For label files made elsewhere; the cohort engine makes no such rows.
    """
    keep = np.zeros(len(labels.subject_ids), bool)
    for shard, examples in _by_shard(store, labels.subject_ids):
        line = Timeline.of(shard)
        heard = line.known != NEVER
        rows = np.searchsorted(shard.subject_ids, labels.subject_ids[examples])
        known = SortedTimes(line.visit_rows[heard], line.known[heard])
        keep[examples] = known.count_until(rows, labels.times[examples]) > 0
    dropped = int((~keep).sum())
    return labels.take(keep)._replace(flow=labels.flow | {"no_record": dropped, "kept": int(keep.sum())})


def build_visit_level_sequences(
    store, vocab: Vocabulary, labels: Labels, *, max_visits: int = 50, max_codes: int = 512
) -> VisitSequences:
    """One example a patient with its label rows at the visits: all index times of a patient in one pass.

    For models that do not look ahead. A row stands at visit v where its index time shows visits 1..v whole and nothing
    of a later one, so that the state after v has read exactly what `build_visit_sequences` shows. Other rows (within a
    visit, or while an earlier visit is still open) have no such place and are left out; of rows with the same place the
    latest counts. A record of more than `max_visits` visits becomes several examples that overlap by half, each label
    in one of them. Patients without a placed row are left out; `label_mask` tells how many rows were placed.
    """
    encoder = _make_encoder(store, vocab, max_visits, max_codes)
    parts, ids, times, rows_at = [], [], [], []
    for shard, rows in _by_shard(store, labels.subject_ids):
        line = Timeline.of(shard)
        visits, row_at = _place(shard, line, labels, rows)
        sizes = np.diff(np.asarray(shard.event_offsets))[visits]
        for place, owner, counts in _windows(line.visit_rows[visits], row_at, sizes, max_visits):
            first = np.flatnonzero(rank_in_group(owner) == 0)
            patients = line.visit_rows[visits[place[first]]]
            row = np.where(counts, row_at[place], -1)
            index_times = np.where(row < 0, NULL_TIME, labels.times[row])
            everything = np.full(len(patients), line.last.max())
            parts.append(_read(shard, encoder, patients, visits[place], owner, everything))
            ids.append(np.asarray(shard.subject_ids)[patients])
            times.append(np.maximum.reduceat(index_times, first))
            rows_at.append(row)
    joined = _join(parts, None, sum(len(i) for i in ids))
    empty = np.zeros(0, np.int64)
    row, ids, times = (np.concatenate([*column, empty]) for column in (rows_at, ids, times))
    mask = labels.mask[row] & (row >= 0)[:, None]
    return _to_sequences(joined, ids, times, np.where(mask, labels.values[row], 0).astype(labels.values.dtype), mask)


def build_patient_sequences(
    store, vocab: Vocabulary, subject_ids: np.ndarray, *, max_codes: int = 512
) -> VisitSequences:
    """One example a patient with the whole record, in the order given; for pre-training, so there are no label columns.

    `times` are the starts of the last visits. Patients of the store without any visit that has an event are left out.
    Raises ValueError for subjects that are not in the store.
    """
    subject_ids = np.asarray(subject_ids, np.int64)
    _refuse_absent(store, subject_ids)
    encoder = _make_encoder(store, vocab, NEVER, max_codes)
    parts, order, times = [], [], np.zeros(len(subject_ids), np.int64)
    for shard, examples in _by_shard(store, subject_ids):
        rows = np.searchsorted(shard.subject_ids, subject_ids[examples])
        line = Timeline.of(shard)
        last_start = np.full(len(shard.subject_ids), NULL_TIME)
        heard = line.known != NEVER
        np.maximum.at(last_start, line.visit_rows[heard], np.asarray(shard.visit_start)[heard])
        times[examples] = last_start[rows]
        everything = line.last.max(initial=0)
        for piece in _pieces(shard, rows):
            parts.append(_gather(shard, line, encoder, rows[piece], np.full(len(piece), everything)))
            order.append(examples[piece])
    joined = _join(parts, order, len(subject_ids))
    keep = joined.visits_each > 0
    joined = joined._replace(visits_each=joined.visits_each[keep])
    nothing = np.zeros((int(keep.sum()), 0), np.float32)
    return _to_sequences(joined, subject_ids[keep], times[keep], nothing, nothing.astype(bool))


def _make_encoder(store, vocab: Vocabulary, max_visits: int, max_codes: int) -> _Encoder:
    if max_visits < 1 or max_codes < 1:
        raise ValueError(f"max_visits={max_visits} and max_codes={max_codes} must be at least 1.")
    codes = [str(code) for code in store.codes]
    return _Encoder(vocab.encode_table(codes), type_ranks(codes), max_visits, max_codes)


def _by_shard(store, subject_ids: np.ndarray) -> Iterator[tuple[object, np.ndarray]]:
    """Each shard with the examples (positions) whose subject it holds."""
    for shard in store.shards:
        examples = np.flatnonzero(np.isin(subject_ids, shard.subject_ids))
        if len(examples):
            yield shard, examples


def _pieces(shard, rows: np.ndarray) -> list[np.ndarray]:
    """Positions in `rows` (patients), cut so that no piece has many more than `_CHUNK_EVENTS` events to go through."""
    return _cut(np.diff(np.asarray(shard.event_offsets)[shard.visit_offsets])[rows])


def _cut(sizes: np.ndarray) -> list[np.ndarray]:
    """Positions in pieces of about `_CHUNK_EVENTS` in all."""
    piece = np.cumsum(sizes) // _CHUNK_EVENTS
    return np.split(np.arange(len(sizes)), np.flatnonzero(np.diff(piece)) + 1) if len(sizes) else []


def _place(shard, line: Timeline, labels: Labels, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The shard's visits that have events, and the label row that stands at each (-1 = none)."""
    visits = np.flatnonzero(line.known != NEVER)
    owner, known = line.visit_rows[visits], line.known[visits]
    patients, times = np.searchsorted(shard.subject_ids, labels.subject_ids[rows]), labels.times[rows]
    num_seen = SortedTimes(owner, known).count_until(patients, times)
    at = np.searchsorted(owner, patients) + num_seen - 1
    # Visits 1..n lie whole before the index time, and it shows n: so these are the ones.
    whole_by = running_max(owner, line.last[visits])
    fits = (num_seen > 0) & (whole_by[np.minimum(at, len(visits) - 1)] <= times) if len(visits) else num_seen > 0
    order = np.flatnonzero(fits)[np.argsort(times[fits], kind="stable")]
    row_at = np.full(len(visits), -1)
    row_at[at[order]] = rows[order]
    return visits, row_at


def _windows(owner: np.ndarray, row_at: np.ndarray, sizes: np.ndarray, max_visits: int) -> Iterator[tuple]:
    """Runs of at most `max_visits` visits that end with a label: positions, run of each, and whether its label counts.

    Each yield is a part of them with about `_CHUNK_EVENTS` of `sizes` events.
    """
    rank, labelled = rank_in_group(owner), row_at >= 0
    patients, first = np.unique(owner, return_index=True)
    length = np.zeros(len(patients), np.int64)  # up to the last label
    np.maximum.at(length, np.searchsorted(patients, owner[labelled]), rank[labelled] + 1)
    stride = max(max_visits // 2, 1)
    num_runs = np.where(length > 0, 1 + np.maximum(-(-(length - max_visits) // stride), 0), 0)
    whose = np.repeat(np.arange(len(patients)), num_runs)
    number = rank_in_group(whose)
    start = first[whose] + number * stride
    last_label = np.maximum.accumulate(np.where(labelled, np.arange(len(owner)), -1))
    end = last_label[np.minimum(start + max_visits, (first + length)[whose]) - 1] + 1
    fresh = np.where(number == 0, start, start + max_visits - stride)  # what the run before did not count
    used = end > fresh
    start, end, fresh = start[used], end[used], fresh[used]
    num_events = np.append(0, np.cumsum(sizes))
    for piece in _cut(num_events[end] - num_events[start]):
        place, run = expand(start[piece], (end - start)[piece])
        yield place, run, labelled[place] & (place >= fresh[piece][run])


def _gather(shard, line: Timeline, encoder: _Encoder, rows: np.ndarray, times: np.ndarray) -> _Ragged:
    """What is visible of these patients (rows of the shard) at these times."""
    first = np.asarray(shard.visit_offsets)[rows]
    visits, owner = expand(first, np.asarray(shard.visit_offsets)[rows + 1] - first)
    seen = line.known[visits] <= times[owner]
    visits, owner = visits[seen], owner[seen]
    total = np.bincount(owner, minlength=len(rows))
    recent = total[owner] - rank_in_group(owner) <= encoder.max_visits
    return _read(shard, encoder, rows, visits[recent], owner[recent], times)


def _read(shard, encoder: _Encoder, rows: np.ndarray, visits: np.ndarray, owner: np.ndarray, times) -> _Ragged:
    """These visits of examples 0, 1, .. (`owner`), of patients `rows`, as they stand at `times` of the examples."""
    codes, codes_each = _gather_codes(shard, encoder, rows, visits, owner, times)
    starts = np.asarray(shard.visit_start)[visits]
    gaps = np.diff(starts, prepend=starts[:1]) / DAY
    gaps[rank_in_group(owner) == 0] = 0
    birth = np.asarray(shard.birth)[rows][owner]
    ages = np.where(birth == NULL_TIME, 0, np.maximum(starts - np.where(birth == NULL_TIME, starts, birth), 0)) / YEAR
    visits_each = np.bincount(owner, minlength=len(rows))
    return _Ragged(codes, codes_each, visits_each, ages.astype(np.float32), gaps.astype(np.float32))


def _gather_codes(shard, encoder: _Encoder, rows, visits, owner, times) -> tuple[np.ndarray, np.ndarray]:
    """Tokens of the kept visits, in order, and how many each has."""
    offsets = np.asarray(shard.event_offsets)
    events, place = expand(offsets[visits], offsets[visits + 1] - offsets[visits])
    seen = shard.event_times[events] <= (times[owner] - np.asarray(shard.visit_start)[visits])[place]
    events, place = events[seen], place[seen]
    ids, values = shard.event_codes[events], shard.event_values[events]

    firsts = np.flatnonzero(rank_in_group(owner) == 0)
    static_start = np.asarray(shard.static_offsets)[rows[owner[firsts]]]
    statics, whose = expand(static_start, np.asarray(shard.static_offsets)[rows[owner[firsts]] + 1] - static_start)
    if len(statics):
        place = np.concatenate([firsts[whose], place])  # null times sort first within a type
        ids = np.concatenate([shard.static_codes[statics], ids])
        values = np.concatenate([shard.static_values[statics], values])
        order = np.argsort(place * 8 + encoder.ranks[ids], kind="stable")
        place, ids, values = place[order], ids[order], values[order]
    fits = rank_in_group(place) < encoder.max_codes
    return encoder.table.encode(ids[fits], values[fits]), np.bincount(place[fits], minlength=len(visits))


def _join(parts: list[_Ragged], order: list[np.ndarray] | None, num_examples: int) -> _Ragged:
    """All parts one after another; with `order`, the examples at those positions of the result."""
    if not parts:
        empty = np.zeros(0, np.int64)
        return _Ragged(empty.astype(np.int32), empty, np.zeros(num_examples, np.int64), empty, empty)
    whole = _Ragged(*(np.concatenate(column) for column in zip(*parts, strict=True)))
    if order is None:
        return whole
    # Gather visits, then codes, in the examples' order. Examples that no shard has stay without visits.
    position = np.concatenate(order)
    visits_each, first = np.zeros(num_examples, np.int64), np.zeros(num_examples, np.int64)
    visits_each[position] = whole.visits_each
    first[position] = np.cumsum(whole.visits_each) - whole.visits_each
    if np.all(np.diff(position) > 0):
        return whole._replace(visits_each=visits_each)
    visits, _ = expand(first, visits_each)
    codes, _ = expand((np.cumsum(whole.codes_each) - whole.codes_each)[visits], whole.codes_each[visits])
    times = (whole.ages[visits], whole.gap_days[visits])
    return _Ragged(whole.codes[codes], whole.codes_each[visits], visits_each, *times)


def _refuse_empty(visits_each: np.ndarray, labels: Labels) -> None:
    empty = np.flatnonzero(visits_each == 0)
    if len(empty):
        time = np.datetime64(int(labels.times[empty[0]]), "s")
        raise ValueError(
            f"subject {labels.subject_ids[empty[0]]} has no visit by its index time {time} ({len(empty)} of"
            f" {len(visits_each)} label rows): leave these out with drop_without_visits(store, labels)."
        )


def _refuse_absent(store, subject_ids: np.ndarray) -> None:
    absent = subject_ids[~np.isin(subject_ids, store.subject_ids)]
    if len(absent):
        raise ValueError(
            f"subject {absent[0]} is not in the store ({len(absent)} of {len(subject_ids)} such): leave these out, or"
            " name the store that they are from."
        )


def _to_sequences(ragged: _Ragged, subject_ids, times, values, mask) -> VisitSequences:
    return VisitSequences(
        codes=ragged.codes,
        visit_offsets=np.append(0, np.cumsum(ragged.codes_each)),
        example_offsets=np.append(0, np.cumsum(ragged.visits_each)),
        ages=ragged.ages,
        gap_days=ragged.gap_days,
        subject_ids=subject_ids,
        times=times,
        labels=values,
        label_mask=mask,
    )
