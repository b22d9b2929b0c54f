"""Visits against a plain per-patient reference, and the cases where strategies differ."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ehrjax.data.clean import ENCOUNTER_END, ENCOUNTER_START, EVENT, Events
from ehrjax.data.visits import MADE_VISIT, STRATEGIES, assign_visits, order_by, seconds_up

from .helpers import microseconds

SECOND, DAY = 1_000_000, 86_400_000_000
HOUR = DAY // 24


def make_events(rows):
    """Rows (subject, time, visit_id) or (subject, time, visit_id, role); -1 = no visit id. Returns events and roles."""
    rows = [row if len(row) == 4 else (*row, EVENT) for row in rows]
    subject, time, visit_id, role = (np.array([row[i] for row in rows], np.int64) for i in range(4))
    n = len(rows)
    events = Events(
        subject.astype(np.int32), time, np.zeros(n, np.int32), np.zeros(n, np.float32), visit_id, np.arange(n)
    )
    return events, role.astype(np.int8)


def visits_of(rows, **options):
    return assign_visits(*make_events(rows), **options)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_no_events_make_no_visits(strategy):
    visits = visits_of([], strategy=strategy)
    assert [len(column) for column in visits] == [0] * 5


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_one_event_makes_one_visit(strategy):
    visits = visits_of([(0, 5 * SECOND, -1)], strategy=strategy)
    assert visits.of_event.tolist() == [0]
    assert (visits.start.tolist(), visits.end.tolist(), visits.visit_id.tolist()) == ([5], [5], [5 + MADE_VISIT])


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_end_of_an_encounter_alone_makes_no_visit(strategy):
    visits = visits_of([(0, 5 * SECOND, 3, ENCOUNTER_END)], strategy=strategy)
    assert len(visits.start) == 0
    assert visits.of_event.tolist() == [-1]


def test_unknown_strategy_is_named():
    with pytest.raises(ValueError, match="'weekly' is not a strategy: use one of encounter, same_day"):
        visits_of([], strategy="weekly")


def test_events_before_1970_are_on_their_own_day():
    visits = visits_of([(0, -1, -1), (0, 0, -1), (0, -DAY, -1)], strategy="same_day")
    assert visits.of_event.tolist() == [0, 1, 0]
    assert visits.start.tolist() == [-86_400, 0]


def test_fractions_of_a_second_widen_a_visit():
    visits = visits_of([(0, 1_500_000, 4), (0, 2_500_000, 4)])
    assert (visits.start.tolist(), visits.end.tolist()) == ([1], [3])
    assert seconds_up(np.array([1_500_000, 2_000_000, -1_500_000])).tolist() == [2, 2, -1]


def test_an_encounter_starts_and_ends_as_recorded():
    rows = [
        (0, 10 * HOUR, 7, ENCOUNTER_START),
        (0, 9 * HOUR, 7),  # recorded before the start: belongs to it, does not move it
        (0, 30 * HOUR, 7, ENCOUNTER_END),
        (0, 40 * HOUR, 7),  # a late result: does not move the end
    ]
    visits = visits_of(rows)
    assert visits.of_event.tolist() == [0, 0, -1, 0]
    assert (visits.start.tolist(), visits.end.tolist()) == ([10 * 3600], [30 * 3600])


def test_an_end_before_the_start_is_lifted_to_it():
    visits = visits_of([(0, 10 * HOUR, 7, ENCOUNTER_START), (0, 8 * HOUR, 7, ENCOUNTER_END)])
    assert visits.end.tolist() == visits.start.tolist()


def test_the_same_encounter_id_of_two_patients_is_two_visits():
    visits = visits_of([(0, HOUR, 7), (1, HOUR, 7)])
    assert visits.of_event.tolist() == [0, 1]
    assert visits.visit_id.tolist() == [7, 7]


def test_an_event_decades_from_its_encounter_leaves_it():
    far = 100 * 365 * DAY
    visits = visits_of([(0, 0, 7, ENCOUNTER_START), (0, far, 7)])
    assert visits.start.tolist() == [0, far // SECOND]


def test_hybrid_joins_the_covering_encounter_begun_last():
    rows = [
        (0, 0, 1, ENCOUNTER_START),
        (0, 10 * DAY, 1, ENCOUNTER_END),
        (0, 2 * DAY, 2, ENCOUNTER_START),
        (0, 3 * DAY, 2, ENCOUNTER_END),
        (0, 2 * DAY + HOUR, -1),  # in both: the inner one
        (0, 4 * DAY, -1),  # the inner one is over
        (0, 10 * DAY, -1),  # the end is inclusive
        (0, 12 * DAY, -1),  # in none, no encounter that day
        (1, 2 * DAY, -1),  # another patient
    ]
    visits = visits_of(rows)
    assert visits.visit_id[visits.of_event[[4, 5, 6]]].tolist() == [2, 1, 1]
    assert (visits.visit_id[visits.of_event[[7, 8]]] < 0).all()
    assert visits.subject.tolist() == [0, 0, 0, 1]


def test_hybrid_joins_an_encounter_of_the_day():
    rows = [
        (0, 10 * HOUR, 1, ENCOUNTER_START),
        (0, 11 * HOUR, 1, ENCOUNTER_END),
        (0, 14 * HOUR, 2, ENCOUNTER_START),
        (0, 15 * HOUR, 2, ENCOUNTER_END),
        (0, 0, -1),  # known to the day only
        (0, 12 * HOUR, -1),
        (0, 23 * HOUR, -1),
        (0, 25 * HOUR, -1),  # the next day
    ]
    visits = visits_of(rows)
    assert visits.visit_id[visits.of_event[4:]].tolist() == [1, 1, 2, 25 * 3600 + MADE_VISIT]
    assert visits.end.tolist() == [11 * 3600, 15 * 3600, 25 * 3600]


def test_encounter_strategy_does_not_join():
    rows = [(0, 10 * HOUR, 1, ENCOUNTER_START), (0, 12 * HOUR, 1, ENCOUNTER_END), (0, 11 * HOUR, -1), (0, HOUR, -1)]
    visits = visits_of(rows, strategy="encounter")
    assert visits.of_event.tolist() == [1, -1, 0, 0]


def test_time_window_breaks_at_longer_gaps_only():
    rows = [(0, 0, -1), (0, 24 * HOUR, -1), (0, 48 * HOUR + 1, -1), (1, 48 * HOUR + 2, -1)]
    assert visits_of(rows, strategy="time_window").of_event.tolist() == [0, 0, 1, 2]
    assert visits_of(rows, strategy="time_window", window_hours=25).of_event.tolist() == [0, 0, 0, 1]


def test_order_by_falls_back_where_keys_do_not_fit():
    rng = np.random.default_rng(0)
    keys = [rng.integers(-(2**40), 2**40, 300), rng.integers(0, 3, 300), rng.integers(-(2**60), 2**60, 300)]
    for used in (keys, keys[:2], [keys[1], keys[0]]):
        assert (order_by(*used) == np.lexsort(used[::-1])).all()
    assert order_by(np.array([2**62, -(2**62)])).tolist() == [1, 0]


def test_real_dates():
    rows = [(0, microseconds("2010-03-01T09:00:00"), -1), (0, microseconds("2010-03-01T22:00:00"), -1)]
    assert visits_of(rows).of_event.tolist() == [0, 0]


# A reference that takes one patient at a time, with no tricks.


def reference_visits(rows, strategy, window_hours=24):
    """Visit of each row as a set of row numbers, with (start, end) in seconds."""
    found = []
    for subject in sorted({row[0] for row in rows}):
        own = [(i, row) for i, row in enumerate(rows) if row[0] == subject]
        if strategy == "same_day":
            found += by_key(own, lambda row: row[1] // DAY)
        elif strategy == "time_window":
            found += windows(own, window_hours)
        else:
            found += encounters(own, join=strategy == "hybrid")
    return {frozenset(members): times for members, times in found}


def span(own):
    starts = [row[1] // SECOND for _, row in own if row[3] != ENCOUNTER_END]
    return min(starts), max(-(-row[1] // SECOND) for _, row in own)


def members(own):
    return [i for i, row in own if row[3] != ENCOUNTER_END]


def by_key(own, key):
    groups = {}
    for i, row in own:
        groups.setdefault(key(row), []).append((i, row))
    return [(members(group), span(group)) for group in groups.values() if members(group)]


def windows(own, window_hours):
    groups = []
    for i, row in sorted(own, key=lambda item: item[1][1]):
        if not groups or row[1] - groups[-1][-1][1][1] > window_hours * HOUR:
            groups.append([])
        groups[-1].append((i, row))
    return [(members(group), span(group)) for group in groups if members(group)]


def encounters(own, *, join):
    made = []
    for visit_id in sorted({row[2] for _, row in own if row[2] >= 0}):
        group = [(i, row) for i, row in own if row[2] == visit_id]
        if not members(group):
            continue
        starts = [row[1] for _, row in group if row[3] == ENCOUNTER_START]
        ends = [row[1] for _, row in group if row[3] == ENCOUNTER_END]
        events = [row[1] for _, row in group if row[3] != ENCOUNTER_END]
        start = min(starts or events) // SECOND
        end = max(start, max(-(-t // SECOND) for t in (ends or events)))
        made.append({"key": (start, visit_id), "start": start, "end": end, "members": members(group), "open": not ends})
    made.sort(key=lambda visit: visit["key"])
    loose = [(i, row) for i, row in own if row[2] < 0 and row[3] != ENCOUNTER_END]
    rest, joined = [], []
    for i, row in loose:
        time = -(-row[1] // SECOND)
        covering = [visit for visit in made if visit["start"] <= time <= visit["end"]]
        that_day = [visit for visit in made if visit["start"] // 86_400 == time // 86_400]
        before = [visit for visit in that_day if visit["start"] <= time]
        chosen = (covering or before or that_day[:1])[-1:] if join else []
        joined += [(chosen[0], i, time)] if chosen else []
        rest += [] if chosen else [(i, row)]
    for visit, i, time in joined:
        visit["members"].append(i)
        visit["end"] = max(visit["end"], time) if visit["open"] else visit["end"]
    days = by_key(rest, lambda row: row[1] // DAY)
    return [(visit["members"], (visit["start"], visit["end"])) for visit in made] + days


row_strategy = st.tuples(
    st.integers(0, 2),
    # Few distinct times, at and around the borders of days, some with fractions of a second.
    st.builds(
        lambda day, hour, micro: day * DAY + hour * HOUR + micro,
        st.integers(-2, 3),
        st.sampled_from([0, 1, 12, 23]),
        st.sampled_from([0, 0, 1, 999_999, HOUR - 1]),
    ),
    st.sampled_from([-1, -1, 0, 1, 2]),
    st.sampled_from([EVENT, EVENT, ENCOUNTER_START, ENCOUNTER_END]),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(row_strategy, max_size=25), st.sampled_from(STRATEGIES), st.randoms(use_true_random=False))
def test_as_the_reference_and_in_any_order(rows, strategy, random):
    visits = visits_of(rows, strategy=strategy, window_hours=13)
    found = {}
    for v in range(len(visits.start)):
        found[frozenset(np.flatnonzero(visits.of_event == v).tolist())] = (visits.start[v], visits.end[v])
    assert found == reference_visits(rows, strategy, window_hours=13)

    keys = list(zip(visits.subject, visits.start, visits.visit_id, strict=True))
    assert keys == sorted(set(keys))

    shuffled = random.sample(range(len(rows)), len(rows))
    again = visits_of([rows[i] for i in shuffled], strategy=strategy, window_hours=13)
    assert all((a == b).all() for a, b in zip(visits[:4], again[:4], strict=True))
    assert again.of_event.tolist() == visits.of_event[shuffled].tolist()
