"""Patients' visits written by days, histories drawn at random, and what every cohort's flow must add up to."""

import numpy as np
from hypothesis import strategies as st

DAY = 86_400


def day(number: float) -> str:
    return str(np.datetime64("2020-01-01T00:00:00") + np.timedelta64(round(number * DAY), "s"))


def visit(subject, number, start, end, *codes, kind="ambulatory"):
    """An encounter from day `start` to day `end`; `codes` are (name, day)."""
    events = [(subject, day(start), f"ENCOUNTER//{kind}", None, number)]
    events.append((subject, day(end), f"ENCOUNTER_END//{kind}", None, number))
    return events + [(subject, day(at), code, None, number) for code, at in codes]


def many_patients(num_visits=8):
    """40 patients with a visit every ten days; data until day 2000."""
    regular = [e for s in range(40) for v in range(num_visits) for e in visit(s, v, 10 * v, 10 * v)]
    return regular + visit(99, 0, 2000, 2000, ("D1", 2000))


@st.composite
def histories(draw):
    events = []
    for subject in range(1, draw(st.integers(1, 3)) + 1):
        for number in range(draw(st.integers(0, 4))):
            start, length = draw(st.integers(0, 8)), draw(st.integers(0, 3))
            offsets = st.tuples(st.sampled_from(["D1", "D2", "X", "A"]), st.integers(-1, 4))
            codes = [(code, start + at) for code, at in draw(st.lists(offsets, max_size=3))]
            kind = draw(st.sampled_from(["inpatient", "ambulatory"]))
            events += visit(subject, number, start, start + length, *codes, kind=kind)
        if draw(st.booleans()):
            events.append((subject, day(draw(st.integers(0, 12))), "MEDS_DEATH", None, None))
        if draw(st.booleans()):
            events.append((subject, day(draw(st.integers(-3, 0))), "MEDS_BIRTH", None, None))
        if draw(st.integers(0, 5)) == 0:
            events.append((subject, None, draw(st.sampled_from(["X", "A"])), None, None))
    return [*visit(9, 0, 0, 0, ("D1", 0)), *events]  # the outcome's code is always in the store


def patients_of(store):
    """Each patient as plain Python values."""
    for shard in store.shards:
        for i, subject in enumerate(shard.subject_ids.tolist()):
            visits = []
            for v in range(shard.visit_offsets[i], shard.visit_offsets[i + 1]):
                span = slice(shard.event_offsets[v], shard.event_offsets[v + 1])
                start = int(shard.visit_start[v])
                codes = [str(store.codes[c]) for c in shard.event_codes[span]]
                times = [start + int(offset) for offset in shard.event_times[span]]
                kind = str(store.codes[shard.visit_class[v]])
                visits.append((start, int(shard.visit_end[v]), kind, list(zip(codes, times, strict=True))))
            static = [
                str(store.codes[c]) for c in shard.static_codes[shard.static_offsets[i] : shard.static_offsets[i + 1]]
            ]
            yield subject, int(shard.birth[i]), int(shard.death[i]), visits, static


def rows_of(labels):
    return list(zip(labels.subject_ids.tolist(), labels.times.tolist(), strict=True))


def check_flow(flow):
    """Every candidate is in exactly one place of the flow."""
    lost = ("no_record", "dead", "short_history", "few_visits", "in_stay", "not_at_risk", "too_late")
    assert flow["index_times"] == flow["eligible"] + sum(flow[reason] for reason in lost)
    after = ("not_drawn", "outcome_in_gap", "censored", "no_follow_up", "no_next_visit", "unknown_class", "no_end")
    assert flow["eligible"] == flow["kept"] + sum(flow[reason] for reason in after)
