"""Events to visits: four strategies, vectorised over one partition of patients.

- `encounter`: the source's encounter id; events without one form one visit a day.
- `same_day`: one visit a patient and calendar day (UTC).
- `time_window`: a gap of more than `window_hours` starts a new visit.
- `hybrid`: encounter id where present; an event without one joins the same patient's encounter that covers its time
  (of several, the one begun last), else an encounter begun that day, else it forms a visit of that day.

A visit starts with its encounter, or at its earliest event; it ends with its encounter, or at its latest event. Visits
never hold two patients, and their ids and order depend on the events alone, not on the order these are read in.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd

from ehrjax.data.clean import DAY_MICROSECONDS, ENCOUNTER_END, ENCOUNTER_START, Events

STRATEGIES = ("encounter", "same_day", "time_window", "hybrid")
SECOND = 1_000_000
# Visits that the source does not number get the id `start - 2**62`: negative, so never one of the source's.
MADE_VISIT = -(2**62)
_MAX_OFFSET = np.iinfo(np.int32).max  # event times are stored as int32 seconds after the visit's start


class Visits(NamedTuple):
    """Visits of one partition, sorted by (subject, start, id), and the visit of each event."""

    subject: np.ndarray  # int32 [V]
    visit_id: np.ndarray  # int64 [V]
    start: np.ndarray  # int64 [V], seconds
    end: np.ndarray  # int64 [V], seconds
    of_event: np.ndarray  # int32 [n], -1 for ends of encounters, which are no events of a visit


class _Groups(NamedTuple):
    """Unsorted visits: `of_event` is -1 where an event has none yet."""

    subject: np.ndarray
    visit_id: np.ndarray
    start: np.ndarray
    end: np.ndarray
    has_end: np.ndarray  # bool: the source recorded the end
    of_event: np.ndarray


def assign_visits(events: Events, role: np.ndarray, *, strategy: str = "hybrid", window_hours: float = 24.0) -> Visits:
    """Visits of dated events (none may be static, a birth or a death); `role` int8 [n] as from `clean.code_roles`.

    Raises ValueError for an unknown strategy.
    """
    if strategy not in STRATEGIES:
        raise ValueError(f"visits={strategy!r} is not a strategy: use one of {', '.join(STRATEGIES)}.")
    if strategy == "same_day":
        groups = _visits_by_key(events, role, _day_keys(events))
    elif strategy == "time_window":
        groups = _visits_by_key(events, role, _window_keys(events, window_hours))
    else:
        groups = _encounter_visits(events, role, join=strategy == "hybrid")
    order = order_by(groups.subject, groups.start, groups.visit_id)
    rank = np.empty(len(order) + 1, np.int32)
    rank[order] = np.arange(len(order), dtype=np.int32)
    rank[-1] = -1  # where of_event is -1
    return Visits(*(column[order] for column in groups[:4]), rank[groups.of_event])


def order_by(*keys: np.ndarray) -> np.ndarray:
    """Positions that sort by the integer `keys`, the first the most significant; ties in any order.

    The keys are packed into one int64 where their ranges allow it, which sorts many times faster than a lexsort.
    """
    if not len(keys[0]):
        return np.zeros(0, np.int64)
    lows = [int(key.min()) for key in keys]
    bits = [(int(key.max()) - low).bit_length() for key, low in zip(keys, lows, strict=True)]
    if sum(bits) > 63:
        return np.lexsort(keys[::-1])
    packed = np.zeros(len(keys[0]), np.int64)
    for key, low, width in zip(keys, lows, bits, strict=True):
        packed <<= width
        packed |= key.astype(np.int64, copy=False) - low
    return np.argsort(packed)


def distinct(values: np.ndarray) -> np.ndarray:
    """The distinct values, sorted; of int64 several times faster than `np.unique`."""
    ordered = np.sort(values)
    is_first = np.ones(len(ordered), bool)
    is_first[1:] = ordered[1:] != ordered[:-1]
    return ordered[is_first]


def seconds_up(microseconds: np.ndarray) -> np.ndarray:
    """Whole seconds, rounded up: an event is never known earlier than it happened."""
    return -(-microseconds // SECOND)


def _day_keys(events: Events) -> np.ndarray:
    return _pair_keys(events.subject, events.time // DAY_MICROSECONDS)


def _window_keys(events: Events, window_hours: float) -> np.ndarray:
    order = order_by(events.subject, events.time)
    subject, time = events.subject[order], events.time[order]
    is_new = np.ones(len(order), bool)
    is_new[1:] = (subject[1:] != subject[:-1]) | (np.diff(time) > window_hours * 3600 * SECOND)
    keys = np.empty(len(order), np.int64)
    keys[order] = np.cumsum(is_new) - 1
    return keys


def _pair_keys(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """One integer (0, 1, ...) for each distinct pair."""
    codes, values = pd.factorize(second)
    owner = np.zeros(len(values), first.dtype)
    owner[codes] = first
    if (owner.take(codes) == first).all():  # as encounter ids do: each belongs to one subject
        return codes
    return pd.factorize(first.astype(np.int64) * max(len(values), 1) + codes)[0]


def _visits_by_key(events: Events, role: np.ndarray, keys: np.ndarray) -> _Groups:
    """Visits of events with equal keys. Ends of encounters lengthen a visit but do not make one."""
    num_groups = int(keys.max()) + 1 if len(keys) else 0
    is_end = role == ENCOUNTER_END
    start = _smallest(keys, events.time // SECOND, ~is_end, num_groups)
    end = _largest(keys, seconds_up(events.time), np.ones(len(keys), bool), num_groups)
    subject = np.zeros(num_groups, np.int32)
    subject[keys] = events.subject
    of_event = np.where(is_end, -1, keys)
    has_end = np.zeros(num_groups, bool)
    return _drop_empty(_Groups(subject, start + MADE_VISIT, start, end, has_end, of_event))


def _drop_empty(groups: _Groups) -> _Groups:
    """Without groups that have no event of their own (only the end of an encounter)."""
    used = np.zeros(len(groups.subject) + 1, bool)
    used[groups.of_event] = True
    used[-1] = False
    renumbered = np.append(np.cumsum(used[:-1]) - 1, -1)
    return _Groups(*(column[used[:-1]] for column in groups[:5]), renumbered[groups.of_event])


def _encounter_visits(events: Events, role: np.ndarray, *, join: bool) -> _Groups:
    groups = _numbered_visits(events, role)
    loose = np.flatnonzero((groups.of_event < 0) & (role != ENCOUNTER_END))
    if join and len(loose) and len(groups.subject):
        groups.of_event[loose] = _find_encounter(groups, events.subject[loose], events.time[loose])
        joined = loose[groups.of_event[loose] >= 0]
        joined = joined[~groups.has_end[groups.of_event[joined]]]
        np.maximum.at(groups.end, groups.of_event[joined], seconds_up(events.time[joined]))
        loose = loose[groups.of_event[loose] < 0]
    if not len(loose):
        return groups
    rest = events.take(loose)
    days = _visits_by_key(rest, role[loose], _day_keys(rest))
    groups.of_event[loose] = days.of_event + len(groups.subject)
    merged = (np.concatenate(pair) for pair in zip(groups[:5], days[:5], strict=True))
    return _Groups(*merged, groups.of_event)


def _numbered_visits(events: Events, role: np.ndarray) -> _Groups:
    """Visits of the events that name their encounter."""
    has_id = events.visit_id >= 0
    numbered = slice(None) if has_id.all() else np.flatnonzero(has_id)
    subject, time, kind, ids = (c[numbered] for c in (events.subject, events.time, role, events.visit_id))
    keys = _pair_keys(subject, ids)
    num_groups = int(keys.max()) + 1 if len(keys) else 0
    down, up = time // SECOND, seconds_up(time)

    starts = kind == ENCOUNTER_START
    has_start = np.zeros(num_groups, bool)
    has_start[keys[starts]] = True
    start = _smallest(keys, down, starts | ((kind != ENCOUNTER_END) & ~has_start[keys]), num_groups)

    # An event decades away from its encounter does not belong to it: its time would not fit either.
    belongs = (kind != ENCOUNTER_END) & (np.abs(down - start[keys]) < _MAX_OFFSET)
    ends = kind == ENCOUNTER_END
    has_end = np.zeros(num_groups, bool)
    has_end[keys[ends]] = True
    end = np.maximum(_largest(keys, up, ends | (belongs & ~has_end[keys]), num_groups), start)

    group_subject, group_id = np.zeros(num_groups, np.int32), np.zeros(num_groups, np.int64)
    group_subject[keys], group_id[keys] = subject, ids
    of_event = np.full(len(events.time), -1, np.int64)
    of_event[numbered] = np.where(belongs, keys, -1)
    return _drop_empty(_Groups(group_subject, group_id, start, end, has_end, of_event))


def _smallest(keys: np.ndarray, values: np.ndarray, mask: np.ndarray, num_groups: int) -> np.ndarray:
    out = np.full(num_groups, np.iinfo(np.int64).max >> 1)
    np.minimum.at(out, keys[mask], values[mask])
    return out


def _largest(keys: np.ndarray, values: np.ndarray, mask: np.ndarray, num_groups: int) -> np.ndarray:
    out = np.full(num_groups, np.iinfo(np.int64).min >> 1)
    np.maximum.at(out, keys[mask], values[mask])
    return out


def _find_encounter(groups: _Groups, subject: np.ndarray, time: np.ndarray) -> np.ndarray:
    """The encounter (position in `groups`, -1 = none) that an event without one joins."""
    order = order_by(groups.subject, groups.start, groups.visit_id)
    owner, start, end = groups.subject[order], groups.start[order], groups.end[order]
    up = seconds_up(time)
    last = _last_begun(owner, start, subject, up)
    found = _covering(end, last, _first_of_subject(owner, subject), up)

    # Not covered: the encounter of that day begun last before the event, else the first one after it.
    for candidate in (last, last + 1):
        inside = np.clip(candidate, 0, len(order) - 1)
        fits = (candidate == inside) & (owner[inside] == subject) & (start[inside] // 86_400 == up // 86_400)
        found = np.where((found < 0) & fits, inside, found)
    return np.where(found >= 0, order[found], -1)


def _last_begun(owner: np.ndarray, start: np.ndarray, subject: np.ndarray, time: np.ndarray) -> np.ndarray:
    """Position of the last encounter of `subject`, or of any earlier subject, begun by `time`; -1 = none."""
    starts = distinct(start)  # ranks in it, not seconds, so that (subject, time) fits one integer
    base = len(starts) + 1
    encounters = owner.astype(np.int64) * base + np.searchsorted(starts, start, side="right")
    return (
        np.searchsorted(
            encounters, subject.astype(np.int64) * base + np.searchsorted(starts, time, side="right"), side="right"
        )
        - 1
    )


def _first_of_subject(owner: np.ndarray, subject: np.ndarray) -> np.ndarray:
    return np.searchsorted(owner, subject, side="left")


def _covering(end: np.ndarray, last: np.ndarray, first: np.ndarray, time: np.ndarray) -> np.ndarray:
    """Largest position p in [first, last] with end[p] >= time, else -1; by doubling over running maxima of `end`."""
    found = last.copy()
    longest = int(np.max(last - first, initial=-1)) + 1
    maxima = [end]  # maxima[k][p] = max of end[p - 2**k + 1 .. p]
    for k in range(max(longest, 1).bit_length() - 1):
        wider = maxima[k].copy()
        np.maximum(wider[2**k :], maxima[k][: -(2**k)], out=wider[2**k :])
        maxima.append(wider)
    for k in reversed(range(len(maxima))):
        # Skip 2**k encounters at once where none of them reaches the event.
        skip = (found >= first) & (maxima[k][np.maximum(found, 0)] < time)
        found = np.where(skip, found - 2**k, found)
    is_covered = (found >= first) & (end[np.maximum(found, 0)] >= time)
    return np.where(is_covered, found, -1)
