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
from ehrjax.data.next_visit import fit_outputs, next_visit_values, output_columns
from ehrjax.data.tasks import Task, get_task
from ehrjax.data.timeline import DAY, NEVER, NULL_TIME, YEAR, SortedTimes, Timeline, expand, rank_in_group
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
    visits: np.ndarray  # position in the shard


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
    store,
    vocab: Vocabulary,
    task: Task | str,
    *,
    train_subjects: np.ndarray | None = None,
    outputs: tuple[str, ...] | None = None,
    max_visits: int = 50,
    max_codes: int = 512,
) -> tuple[VisitSequences, tuple[str, ...]]:
    """One example a patient with labels at every visit (next_codes, next_class), and the names of the outputs.

    At visit v everything of visits 1..v is known, so the index time there is the latest event or end of these, and the
    target is the first visit that begins after it (overlapping visits are no target). A visit without one (the last)
    is masked; a patient without any is left out. For models that do not look ahead: not for bidirectional ones.
    `train_subjects` and `outputs` are as in `make_labels`.
    """
    task = get_task(task) if isinstance(task, str) else task
    names = outputs or fit_outputs(store, task, train_subjects)
    column = output_columns(store, task, names)
    encoder = _make_encoder(store, vocab, max_visits, max_codes)
    parts, ids, times, values, masks = [], [], [], [], []
    for shard in store.shards:
        line = Timeline.of(shard)
        target = _next_visits(shard, line)
        has_target = np.zeros(len(shard.subject_ids), bool)
        has_target[line.visit_rows[(target >= 0) & (line.known != NEVER)]] = True
        rows = np.flatnonzero(has_target)
        for piece in _pieces(shard, rows):
            part = _gather(shard, line, encoder, rows[piece], np.full(len(piece), line.last.max()))
            value, _, valid = next_visit_values(shard, column, names, task, target[part.visits])
            parts.append(part)
            ids.append(np.asarray(shard.subject_ids)[rows[piece]])
            times.append(np.maximum.reduceat(line.last[part.visits], np.cumsum(part.visits_each) - part.visits_each))
            values.append(value)
            masks.append(np.repeat(valid[:, None], value.shape[1], axis=1))
    if not parts:
        raise ValueError(f"task {task.name!r}: no patient has a visit that follows another: it needs longer records.")
    joined = _join(parts, None, sum(len(i) for i in ids))
    columns = (np.concatenate(column) for column in (ids, times, values, masks))
    return _to_sequences(joined, *columns), names


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
    num_events = np.diff(np.asarray(shard.event_offsets)[shard.visit_offsets])[rows]
    piece = np.cumsum(num_events) // _CHUNK_EVENTS
    return np.split(np.arange(len(rows)), np.flatnonzero(np.diff(piece)) + 1) if len(rows) else []


def _gather(shard, line: Timeline, encoder: _Encoder, rows: np.ndarray, times: np.ndarray) -> _Ragged:
    """What is visible of these patients (rows of the shard) at these times."""
    first = np.asarray(shard.visit_offsets)[rows]
    visits, owner = expand(first, np.asarray(shard.visit_offsets)[rows + 1] - first)
    seen = line.known[visits] <= times[owner]
    visits, owner = visits[seen], owner[seen]
    total = np.bincount(owner, minlength=len(rows))
    recent = total[owner] - rank_in_group(owner) <= encoder.max_visits
    visits, owner = visits[recent], owner[recent]
    codes, codes_each = _gather_codes(shard, encoder, rows, visits, owner, times)
    starts = np.asarray(shard.visit_start)[visits]
    gaps = np.diff(starts, prepend=starts[:1]) / DAY
    gaps[rank_in_group(owner) == 0] = 0
    birth = np.asarray(shard.birth)[rows][owner]
    ages = np.where(birth == NULL_TIME, 0, np.maximum(starts - np.where(birth == NULL_TIME, starts, birth), 0)) / YEAR
    visits_each = np.bincount(owner, minlength=len(rows))
    return _Ragged(codes, codes_each, visits_each, ages.astype(np.float32), gaps.astype(np.float32), visits)


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


def _next_visits(shard, line: Timeline) -> np.ndarray:
    """For each visit, the first of the patient's that begins after all that is known by its end; -1 = none."""
    start = np.asarray(shard.visit_start)
    # A running maximum within each patient: lifting every patient above the one before makes it a single one.
    low = int(line.last.min(initial=0))
    span = int(line.last.max(initial=0)) - low + 1
    known_by = np.maximum.accumulate(line.last - low + line.visit_rows * span) + low - line.visit_rows * span
    return SortedTimes(line.visit_rows, start).index_after(line.visit_rows, known_by)


def _join(parts: list[_Ragged], order: list[np.ndarray] | None, num_examples: int) -> _Ragged:
    """All parts one after another; with `order`, the examples at those positions of the result."""
    if not parts:
        empty = np.zeros(0, np.int64)
        return _Ragged(empty.astype(np.int32), empty, np.zeros(num_examples, np.int64), empty, empty, empty)
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
    a_visit = (whole.ages[visits], whole.gap_days[visits], whole.visits[visits])
    return _Ragged(whole.codes[codes], whole.codes_each[visits], visits_each, *a_visit)


def _refuse_empty(visits_each: np.ndarray, labels: Labels) -> None:
    empty = np.flatnonzero(visits_each == 0)
    if len(empty):
        time = np.datetime64(int(labels.times[empty[0]]), "s")
        raise ValueError(
            f"subject {labels.subject_ids[empty[0]]} has no visit by its index time {time} ({len(empty)} of"
            f" {len(visits_each)} label rows): leave these out with drop_without_visits(store, labels)."
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
