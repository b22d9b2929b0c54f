"""Cleaning: each reason, the ledger of rows, and a reference that looks at one event at a time."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ehrjax.data.clean import (
    BIRTH,
    DEATH,
    ENCOUNTER_END,
    ENCOUNTER_START,
    EVENT,
    REASONS,
    Events,
    code_roles,
    find_faults,
    quarantined_rows,
)
from ehrjax.data.events import STATIC_TIME

DAY = 86_400_000_000
ROLE = np.array([EVENT, EVENT, ENCOUNTER_START, ENCOUNTER_END, BIRTH, DEATH], np.int8)  # of the codes 0..5


def make_events(rows):
    """Rows (subject, time, code, value, visit_id, source)."""
    kinds = (np.int32, np.int64, np.int32, np.float32, np.int64, np.int64)
    return Events(*(np.array([row[i] for row in rows], kind) for i, kind in enumerate(kinds)))


def faults(rows, num_subjects=2, **options):
    """Reason of each row by name ("" = kept), birth and death."""
    events = make_events(rows)
    reason, birth, death = find_faults(events, ROLE[events.code], num_subjects, **options)
    return [REASONS[i] for i in reason], birth.tolist(), death.tolist()


def simple(time, code=0, subject=0, source=0):
    return (subject, time, code, np.nan, -1, source)


def test_no_events():
    assert faults([]) == ([], [STATIC_TIME] * 2, [STATIC_TIME] * 2)
    rows, reason = quarantined_rows(np.zeros(0, np.int64), np.zeros(0, np.int8))
    assert len(rows) == len(reason) == 0


def test_before_birth_counts_days():
    noon = DAY // 2
    rows = [simple(10 * DAY + noon, code=4), simple(10 * DAY), simple(10 * DAY - 1), simple(0, subject=1)]
    reasons, birth, _ = faults(rows)
    assert reasons == ["", "", "before_birth", ""]
    assert birth == [10 * DAY + noon, STATIC_TIME]


@pytest.mark.parametrize("tolerance", [0, 30, 0.5])
def test_after_death_beyond_the_tolerance(tolerance):
    last = 10 * DAY + round(tolerance * DAY)
    rows = [simple(10 * DAY, code=5), simple(last), simple(last + 1), simple(last + 1, subject=1)]
    reasons, _, death = faults(rows, death_tolerance_days=tolerance)
    assert reasons == ["", "", "after_death", ""]
    assert death == [10 * DAY, STATIC_TIME]


def test_a_death_before_birth_is_no_death():
    rows = [simple(10 * DAY, code=4), simple(5 * DAY, code=5), simple(100 * DAY)]
    reasons, _, death = faults(rows)
    assert reasons == ["", "before_birth", ""]
    assert death[0] == STATIC_TIME


def test_the_earliest_birth_and_death_count():
    rows = [simple(3 * DAY, code=4), simple(2 * DAY, code=4), simple(9 * DAY, code=5), simple(8 * DAY, code=5)]
    reasons, birth, death = faults(rows)
    assert reasons == ["conflicting_birth", "", "conflicting_death", ""]
    assert (birth[0], death[0]) == (2 * DAY, 8 * DAY)


def test_static_births_deaths_and_ends_have_no_time():
    reasons, birth, _ = faults([simple(STATIC_TIME, code=code) for code in range(6)])
    assert reasons == ["", "", "", "missing_time", "missing_time", "missing_time"]
    assert birth[0] == STATIC_TIME


def test_static_events_are_not_before_birth():
    assert faults([simple(0, code=4), simple(STATIC_TIME)])[0] == ["", ""]


def test_of_equal_events_the_first_source_row_stays():
    base = (0, DAY, 0, 1.5, 7, 12)
    different = [(1, *base[1:]), (0, DAY + 1, *base[2:]), (0, DAY, 1, *base[3:]), (0, DAY, 0, 2.5, 7, 1)]
    different.append((0, DAY, 0, 1.5, 8, 2))
    rows = [base, (*base[:5], 11), *different, (*base[:5], 13)]
    assert faults(rows)[0] == ["duplicate_row", "", "", "", "", "", "", "duplicate_row"]


def test_missing_values_are_equal():
    assert faults([simple(0, source=1), simple(0, source=2)])[0] == ["", "duplicate_row"]


def test_events_that_share_a_hash_are_told_apart(monkeypatch):
    monkeypatch.setattr("ehrjax.data.clean._HASH_FACTORS", (0, 0, 0, 0, 0))  # now all share one
    rows = [simple(0, source=1), simple(1, source=2), simple(0, source=3), simple(1, source=4), simple(2, source=5)]
    assert faults(rows)[0] == ["", "", "duplicate_row", "duplicate_row", ""]


def test_a_row_is_quarantined_when_all_its_events_are():
    source = np.array([5, 5, 6, 6, 7, 8, 8])
    reason = np.array([2, 0, 1, 3, 0, 3, 1], np.int8)
    rows, reasons = quarantined_rows(source, reason)
    assert rows.tolist() == [6, 8]
    assert reasons.tolist() == [1, 3]  # that of the row's first event


def test_code_roles():
    codes = [
        "MEDS_BIRTH",
        "MEDS_BIRTHDAY",
        "MEDS_DEATH",
        "ENCOUNTER//x",
        "ENCOUNTER_END//x",
        "ENCOUNTER_TYPE//x",
        "LAB",
    ]
    expected = [BIRTH, EVENT, DEATH, ENCOUNTER_START, ENCOUNTER_END, EVENT, EVENT]
    assert code_roles(codes).tolist() == expected


def reference(rows, tolerance):
    """One event at a time."""
    names = [""] * len(rows)
    birth, death = {}, {}
    for i, (subject, time, code, *_) in enumerate(rows):
        if time == STATIC_TIME and code >= 3:
            names[i] = "missing_time"
        elif code == 4:
            birth[subject] = min(birth.get(subject, time), time)
    for i, (subject, time, *_) in enumerate(rows):
        if time != STATIC_TIME and subject in birth and time < birth[subject] // DAY * DAY:
            names[i] = "before_birth"
    for i, (subject, time, code, *_) in enumerate(rows):
        if code == 5 and not names[i]:
            death[subject] = min(death.get(subject, time), time)
    for i, (subject, time, code, *_) in enumerate(rows):
        if names[i]:
            continue
        if subject in death and time > death[subject] + tolerance * DAY:
            names[i] = "after_death"
        elif code == 4 and time != birth[subject]:
            names[i] = "conflicting_birth"
        elif code == 5 and time != death[subject]:
            names[i] = "conflicting_death"
    seen = set()
    for i in sorted(range(len(rows)), key=lambda i: rows[i][5]):
        key = tuple(str(column) for column in rows[i][:5])
        if not names[i]:
            names[i] = "duplicate_row" if key in seen else ""
            seen.add(key)
    return names


row_strategy = st.tuples(
    st.integers(0, 1),
    st.sampled_from([STATIC_TIME, -DAY, 0, 1, DAY, DAY + 5, 3 * DAY, 3 * DAY + 1, 9 * DAY]),
    st.sampled_from([0, 0, 0, 1, 2, 3, 4, 5]),
    st.sampled_from([float("nan"), 1.0]),
    st.sampled_from([-1, 4]),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(row_strategy, max_size=25), st.randoms(use_true_random=False))
def test_as_the_reference(rows, random):
    sources = random.sample(range(100), len(rows))
    rows = [(*row, source) for row, source in zip(rows, sources, strict=True)]
    assert faults(rows, death_tolerance_days=2)[0] == reference(rows, 2)
