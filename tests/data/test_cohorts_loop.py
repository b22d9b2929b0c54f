"""The cohort engine against a loop over patients."""

import math
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ehrjax.data.cohorts import make_labels
from ehrjax.data.tasks import Task
from ehrjax.data.timeline import NULL_TIME
from tests.data.helpers import make_store
from tests.data.histories import DAY, check_flow, histories, patients_of


@st.composite
def tasks(draw):
    index = draw(st.sampled_from(["every_visit", "admission", "during_stay", "discharge", "fixed_age"]))
    return Task(
        "t",
        outcome=draw(st.sampled_from(["codes", "codes_or_death", "death", "stay"])),
        codes=("D*",),
        exclude_codes=draw(st.sampled_from([(), ("X",)])),
        index=index,
        index_age=5 / 365.25 if index == "fixed_age" else None,
        horizon_days=draw(st.integers(1, 4)),
        gap_days=draw(st.integers(0, 2)),
        washout_days=math.inf if index == "during_stay" else draw(st.sampled_from([math.inf, 0, 2])),
        min_history_days=draw(st.integers(0, 2)),
        min_visits=draw(st.integers(1, 2)),
        follow_up=draw(st.sampled_from(["last_event", "dataset_end"])),
    )


def merged(stays):
    """Sorted (start, end) with those that overlap or touch joined."""
    joined = []
    for start, end in stays:
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((start, end))
    return joined


def reference_labels(store, task):
    """The rules of the module's text, read aloud patient by patient: {(subject, t): value}, and the censored ones."""
    rows, censored = {}, set()
    for subject, birth, death, visits, static in patients_of(store):
        dead = None if death == NULL_TIME else death
        stays = sorted((start, end) for start, end, kind, _ in visits if kind == "ENCOUNTER//inpatient")
        if task.index == "during_stay":
            stays = merged(stays)
        times = {
            "every_visit": [end for _, end, _, _ in visits],
            "admission": [start for start, _ in stays],
            "discharge": [end for _, end in stays],
            "during_stay": [t for start, end in stays for t in range(start + 12 * 3600, end, 6 * 3600)],
            "fixed_age": [birth + 5 * DAY] if birth != NULL_TIME else [],
        }[task.index]
        events = [event for v in visits for event in v[3]]
        outcomes = {
            "codes": [at for code, at in events if code[0] == "D"],
            "death": [dead] if dead is not None else [],
            "codes_or_death": [at for code, at in events if code[0] == "D"] + ([dead] if dead is not None else []),
            "stay": [start for start, _ in stays],
        }[task.outcome]
        for t in set(times):
            known = [max(start, min(at for _, at in es)) for start, _, _, es in visits if es]
            known = [at for at in known if at <= t]
            if len(known) < task.min_visits or t - min(known) < task.min_history_days * DAY:
                continue
            if dead is not None and dead <= t:
                continue
            if task.index == "discharge" and any(start <= t < end for start, end in stays):
                continue
            if any(at <= t and code in task.exclude_codes for code, at in events) or set(static) & set(
                task.exclude_codes
            ):
                continue
            outcome_codes = [at for code, at in events if code[0] == "D" and at <= t]
            washout = task.washout_days * DAY
            if task.index == "during_stay":
                stay_start, stay_end = next((start, end) for start, end in stays if start <= t < end)
                washout = t - stay_start + DAY
            if outcome_codes and t - max(outcome_codes) < washout:
                continue
            begin = t + task.gap_days * DAY
            end = begin + task.horizon_days * DAY
            data_end = store.manifest["last_time"]
            if task.follow_up == "dataset_end" and end > data_end:
                continue
            if any(t < at <= begin for at in outcomes) or (dead is not None and t < dead <= begin):
                continue
            last = max([at for _, at in events] + [v[1] for v in visits] + ([dead] if dead is not None else []))
            followed = data_end if task.follow_up == "dataset_end" else last
            if task.index == "during_stay" and stay_end <= end:
                followed = max(followed, end)
            if any(begin < at <= end for at in outcomes):
                rows[subject, t] = 1.0
            elif followed >= end or (dead is not None and begin < dead <= end):
                rows[subject, t] = 0.0
            else:
                censored.add((subject, t))
    return rows, censored


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(events=histories(), task=tasks())
def test_engine_equals_a_loop_over_patients(events, task):
    with tempfile.TemporaryDirectory() as folder:
        store = make_store(Path(folder), events, num_shards=2)
        expected, censored = reference_labels(store, task)
        if not expected:
            with pytest.raises(ValueError, match="no labelled row"):
                make_labels(store, task)
            return
        labels = make_labels(store, task)
        keys = zip(labels.subject_ids.tolist(), labels.times.tolist(), strict=True)
        assert dict(zip(keys, labels.values[:, 0].tolist(), strict=True)) == expected
        assert list(zip(labels.subject_ids, labels.times, strict=True)) == sorted(expected)
        assert labels.flow["censored"] == len(censored)
        check_flow(labels.flow)
