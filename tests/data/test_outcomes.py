"""Outcomes after the index time: time to an event, several conditions at once, and one random date a patient."""

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ehrjax.data.cohorts import make_labels
from ehrjax.data.readers.meds import read_meds
from ehrjax.data.splits import assign_splits
from ehrjax.data.store import write_store
from ehrjax.data.tasks import TASKS, Task, task_from_dict
from ehrjax.data.timeline import NULL_TIME
from tests.data.helpers import make_store, seconds
from tests.data.histories import DAY, check_flow, day, histories, many_patients, patients_of, rows_of, visit

SURVIVAL = Task("time_to_d", outcome="time_to_codes", codes=("D*",), horizon_days=100, index="every_visit")
CONDITIONS = Task(
    "news",
    outcome="new_codes",
    conditions=(("d", ("D*",)), ("x", ("X",))),
    horizon_days=100,
    index="every_visit",
    follow_up="dataset_end",
)


def labels_of(tmp_path, events, task, **options):
    """Index day -> values, and the labels; the data end on day 2000 with somebody else, and hold the outcome's code."""
    others = [*visit(1000, 0, 2000, 2000, ("A", 2000)), (1001, None, "D1", None, None)]
    labels = make_labels(make_store(tmp_path, events + others), task, **options)
    days = ((labels.times - seconds(day(0))) / DAY).tolist()
    check_flow(labels.flow)
    return dict(zip(days, labels.values.tolist(), strict=True)), labels


def death(subject, at):
    return (subject, day(at), "MEDS_DEATH", None, None)


# Time to an event


@pytest.mark.parametrize(
    ("later", "expected"),
    [
        ([visit(1, 2, 30, 30, ("D1", 30))], [30, 1]),
        ([visit(1, 2, 100, 100, ("D1", 100))], [100, 1]),  # the window's last second
        ([visit(1, 2, 101, 101, ("D1", 101))], [100, 0]),
        ([visit(1, 2, 60, 60, ("A", 60))], [60, 0]),  # lost after the last contact
        ([[death(1, 40)]], [40, 2]),
        ([visit(1, 2, 40, 40, ("D1", 40)), [death(1, 40)]], [40, 1]),  # at one instant the outcome comes first
        ([[death(1, 40)], visit(1, 2, 50, 50, ("D1", 50))], [40, 2]),  # recorded after death
        ([[death(1, 101)]], [100, 0]),
    ],
)
def test_the_first_of_outcome_death_and_the_last_contact(tmp_path, later, expected):
    events = visit(1, 1, 0, 0, ("A", 0)) + [event for part in later for event in part]
    found, labels = labels_of(tmp_path, events, SURVIVAL)
    assert found[0] == expected
    assert (labels.kind, labels.names, labels.values.dtype) == ("survival", ("d", "death"), np.float32)
    assert labels.end_times[0] == seconds(day(100))  # whatever happened


def test_death_censors_where_it_is_no_cause(tmp_path):
    events = [*visit(1, 1, 0, 0, ("A", 0)), death(1, 40), *visit(2, 1, 1, 1, ("A", 1)), *visit(2, 2, 9, 9, ("D1", 9))]
    for follow_up in ("last_event", "dataset_end"):
        found, labels = labels_of(tmp_path, events, replace(SURVIVAL, competing_death=False, follow_up=follow_up))
        assert (found[0], found[1]) == ([40, 0], [8, 1])
        assert labels.names == ("d",)


def test_the_data_set_ends_follow_up_without_asking_for_a_whole_window(tmp_path):
    events = visit(1, 1, 1950, 1950, ("A", 1950)) + visit(2, 1, 1990, 1990, ("D1", 1995))
    found, labels = labels_of(tmp_path, events, replace(SURVIVAL, follow_up="dataset_end"))
    assert found == {1950: [50, 0], 1990: [5, 1]}
    assert (labels.flow["too_late"], labels.flow["no_follow_up"]) == (0, 1)  # the visit of day 2000


def test_rows_without_follow_up_are_left_out_and_counted(tmp_path):
    found, labels = labels_of(tmp_path, visit(1, 1, 0, 0, ("A", 0)) + visit(1, 2, 7, 7, ("A", 7)), SURVIVAL)
    assert found == {0: [7, 0]}
    assert labels.flow["no_follow_up"] == 2
    assert (labels.flow["events_d"], labels.flow["events_death"]) == (0, 0)


def test_nobody_with_follow_up_says_so(tmp_path):
    with pytest.raises(ValueError, match="no_follow_up 2"):
        labels_of(tmp_path, visit(1, 1, 0, 0, ("D1", 0)) + visit(2, 1, 0, 0, ("A", 0)), SURVIVAL)


def test_prevalent_cases_are_not_at_risk(tmp_path):
    events = visit(1, 1, 0, 0, ("D1", 0)) + visit(1, 2, 9, 9, ("D1", 9)) + visit(2, 1, 3, 3, ("A", 3))
    found, labels = labels_of(tmp_path, events + visit(2, 2, 5, 5, ("D1", 5)), SURVIVAL)
    assert found == {3: [2, 1]}
    assert labels.flow["not_at_risk"] == 3


def test_time_to_readmission_and_to_death(tmp_path):
    events = visit(1, 1, 0, 2, kind="inpatient") + visit(1, 2, 12, 13, kind="inpatient") + [death(1, 50)]
    events += visit(2, 1, 0, 4, kind="inpatient") + visit(2, 2, 300, 300, ("A", 300))
    found, labels = labels_of(tmp_path, events, TASKS["time_to_readmission"])
    assert found == {2: [10, 1], 13: [37, 2], 4: [90, 0]}
    assert labels.names == ("readmission", "death")
    found, labels = labels_of(tmp_path, events, replace(TASKS["time_to_death"], max_rows_per_patient=None))
    assert found == {2: [48, 1], 13: [37, 1], 4: [296, 0]}
    assert labels.names == ("death",)


def test_draw_of_survival_rows_does_not_look_ahead(tmp_path):
    task = replace(SURVIVAL, max_rows_per_patient=2, follow_up="dataset_end")
    whole = make_labels(make_store(tmp_path / "a", many_patients()), task)
    ended = [
        *many_patients(),
        *(death(s, 75) for s in range(0, 40, 2)),
        *((s, day(74), "D1", None, None) for s in (1, 5)),
    ]
    cut = make_labels(make_store(tmp_path / "b", ended), task)
    assert rows_of(cut) == rows_of(whole)
    assert cut.values[:, 1].sum() > 0 == whole.values[whole.subject_ids < 40, 1].sum()


# Several conditions at once


def test_each_condition_counts_once_and_is_masked_where_it_is_there_by_t(tmp_path):
    events = visit(1, 1, 0, 0, ("A", 0)) + visit(1, 2, 10, 10, ("D1", 10)) + visit(1, 3, 20, 20, ("D2", 20))
    events += visit(1, 4, 30, 30, ("X", 30))
    found, labels = labels_of(tmp_path, events, CONDITIONS)
    assert found == {0: [1, 1], 10: [0, 1], 20: [0, 1]}  # D2 on day 20 is nothing new
    assert labels.mask.tolist() == [[True, True], [False, True], [False, True]]
    assert (labels.kind, labels.names) == ("multilabel", ("d", "x"))
    assert labels.flow["not_at_risk"] == 1  # day 30: has both


def test_follow_up_settles_each_condition_for_itself(tmp_path):
    events = visit(1, 1, 0, 0, ("A", 0)) + visit(1, 2, 10, 10, ("D1", 10)) + visit(2, 1, 1, 1, ("A", 1)) + [death(2, 9)]
    found, labels = labels_of(
        tmp_path, [*events, (3, None, "X", None, None)], replace(CONDITIONS, follow_up="last_event")
    )
    assert found == {0: [1, 0], 1: [0, 0]}
    assert labels.mask.tolist() == [[True, False], [True, True]]
    assert labels.flow["censored"] == 2  # days 10 and 2000


def test_static_condition_and_one_in_the_gap_are_masked(tmp_path):
    events = [*visit(1, 1, 0, 0, ("A", 0)), (1, None, "X", None, None), *visit(1, 2, 50, 50, ("D1", 50))]
    events += visit(2, 1, 1, 1, ("A", 1)) + visit(2, 2, 4, 4, ("D1", 4)) + visit(2, 3, 6, 6, ("X", 6))
    found, labels = labels_of(tmp_path, events, replace(CONDITIONS, gap_days=5))
    assert found == {0: [1, 0]}
    assert labels.mask.tolist() == [[True, False]]
    assert labels.flow["outcome_in_gap"] == 2  # days 1 (both) and 4 (X; D is there)


def test_fitted_conditions_are_the_train_patients_most_frequent(tmp_path):
    """Patients are counted, not records; the others' codes say nothing."""
    events = (
        visit(1, 1, 0, 0, ("D1", 0), ("D2", 0)) + visit(2, 1, 0, 0, ("D2", 0), ("A", 0)) + visit(2, 2, 5, 5, ("A", 5))
    )
    events += (
        visit(1, 2, 3, 3, ("D1", 3)) + visit(1, 3, 4, 4, ("D1", 4)) + visit(3, 1, 0, 0, ("D3", 0)) + visit(4, 1, 0, 0)
    )
    task = replace(CONDITIONS, conditions=(), codes=("D*",), num_codes=2)
    store = make_store(tmp_path, events + visit(1000, 0, 2000, 2000, ("A", 2000)), num_shards=2)
    labels = make_labels(store, task, train_subjects=np.array([1, 2]))
    assert labels.names == ("D2", "D1")
    again = make_labels(store, task, outputs=("D3", "gone"))
    assert again.names == ("D3", "gone")
    with pytest.raises(ValueError, match="pass train_subjects"):
        make_labels(store, task)
    with pytest.raises(ValueError, match="the train patients have no code of the task"):
        make_labels(store, task, train_subjects=np.array([4]))
    with pytest.raises(ValueError, match=r"none of the .* codes of the store matches its 1 patterns"):
        make_labels(store, replace(task, codes=("Z*",)), train_subjects=np.array([1]))


# One random date a patient


DATE = Task("soon", codes=("D*",), washout_days=0, horizon_days=100, index="random_date", follow_up="dataset_end")


def test_date_is_one_a_patient_uniform_and_only_where_there_is_a_record(tmp_path):
    events = [e for s in range(400) for e in visit(s, 1, 0, 0, ("A", 0)) + visit(s, 2, 1000, 1000, ("D1", 1000))]
    labels = labels_of(tmp_path, events + visit(999, 1, 1990, 1990, ("A", 1990)), DATE)[1]
    days = (labels.times - seconds(day(0))) / DAY
    assert labels.flow["index_times"] == 402
    assert labels.flow["no_record"] == 2  # who comes on days 1990 and 2000 only
    assert len(np.unique(labels.subject_ids)) == len(labels.times) == 400
    assert 0 <= days.min() < 30 and 1870 < days.max() <= 1900
    assert abs(days.mean() - 950) < 4.5 * 1900 / np.sqrt(12 * 400)
    assert labels.values[:, 0].tolist() == ((days < 1000) & (days >= 900)).astype(float).tolist()


def test_date_is_not_bounded_by_death_or_the_last_event(tmp_path):
    """Who dies keeps the same date, and has no row where it lies after the death."""
    alive = [e for s in range(60) for e in visit(s, 1, 0, 0, ("D1", 0)) + visit(s, 2, 1999, 1999, ("A", 1999))]
    dead = [e for s in range(60) for e in [*visit(s, 1, 0, 0, ("D1", 0)), death(s, 700)]]
    whole, cut = (labels_of(tmp_path / name, events, DATE)[1] for name, events in (("a", alive), ("b", dead)))
    assert len(whole.times) == 60
    before = whole.times < seconds(day(700))
    assert 10 < before.sum() < 50
    assert rows_of(cut) == rows_of(whole.take(before))
    assert cut.flow["dead"] == 60 - before.sum()


def test_date_says_nothing_of_the_split(tmp_path):
    ids = np.arange(1000)
    store = make_store(
        tmp_path, [e for s in ids for e in visit(int(s), 1, 0, 0, ("D1", 0))] + visit(5000, 1, 2000, 2000)
    )
    labels = make_labels(store, DATE, seed=3)
    is_train = assign_splits(labels.subject_ids, seed=3) == "train"
    difference = labels.times[is_train].mean() - labels.times[~is_train].mean()
    assert abs(difference) < 4.5 * 1900 * DAY / np.sqrt(12) * np.sqrt(1 / 700 + 1 / 300)


def test_data_shorter_than_the_window_have_no_random_date(tmp_path):
    with pytest.raises(ValueError, match="spans 2000 days, too few for a random date that leaves 3000 days"):
        labels_of(tmp_path, visit(1, 1, 0, 0, ("D1", 0)), replace(DATE, horizon_days=3000))


# Against a loop over patients


def _reference(store, task):
    """The rules read aloud patient by patient: {(subject, t): (values, mask)} of rows that are kept."""
    rows, end_of_data = {}, store.manifest["last_time"]
    for subject, _, death_time, visits, static in patients_of(store):
        dead = float("inf") if death_time == NULL_TIME else death_time
        events = [event for v in visits for event in v[3]]
        last = max(
            [at for _, at in events] + [v[1] for v in visits] + ([] if death_time == NULL_TIME else [dead]), default=0
        )
        followed = end_of_data if task.follow_up == "dataset_end" else last
        for t in {v[1] for v in visits}:
            known = [max(v[0], min(at for _, at in v[3])) for v in visits if v[3]]
            if not any(at <= t for at in known) or dead <= t:
                continue
            until = t + round(task.horizon_days * DAY)
            times = {c: [at for code, at in events if code[0] == c] for c in "DX"}
            for code in static:
                times.setdefault(code[0], []).append(-float("inf"))
            row = (_reference_time if task.kind == "survival" else _reference_news)(
                task, t, until, times, dead, followed
            )
            if row and not (task.outcome == "new_codes" and task.follow_up == "dataset_end" and until > end_of_data):
                rows[subject, t] = row
    return rows


def _reference_time(task, t, until, times, dead, followed):
    if any(at <= t for at in times["D"]) or min(dead, followed) <= t:
        return None
    happenings = [(at, 0, 1) for at in times["D"]] + [(followed, 2, 0), (until, 2, 0)]
    happenings += [(dead, 1, 2 if task.competing_death else 0)]
    at, _, event = min(happenings)
    return [(at - t) / DAY, event], [True, True]


def _reference_news(task, t, until, times, dead, followed):
    first = [min(times[c], default=float("inf")) for c in "DX"]
    new = [at > t for at in first]
    values = [float(t < at <= until) for at in first]
    mask = [n and (v == 1 or followed >= until or dead <= until) for n, v in zip(new, values, strict=True)]
    return (values, mask) if any(mask) else None


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    events=histories(),
    base=st.sampled_from([SURVIVAL, CONDITIONS]),
    horizon=st.integers(1, 6),
    follow_up=st.sampled_from(["last_event", "dataset_end"]),
    competing=st.booleans(),
)
def test_engine_equals_a_loop_over_patients(events, base, horizon, follow_up, competing):
    task = replace(base, horizon_days=horizon, follow_up=follow_up, competing_death=competing)
    with tempfile.TemporaryDirectory() as folder:
        store = make_store(Path(folder), events, num_shards=2)
        expected = _reference(store, task)
        if not expected:
            with pytest.raises(ValueError, match="no labelled row"):
                make_labels(store, task)
            return
        labels = make_labels(store, task)
        assert rows_of(labels) == sorted(expected)
        for row, (values, mask) in zip(
            zip(labels.values, labels.mask, strict=True), map(expected.get, sorted(expected)), strict=True
        ):
            np.testing.assert_allclose(row[0], values, rtol=1e-6)
            assert row[1].tolist() == mask
        check_flow(labels.flow)


# Real records


@pytest.mark.parametrize(
    ("name", "codes", "horizon", "num_rows", "prevalence"),
    [("glucose", ("LAB/GL",), 365, 4253, 0.067), ("complication", ("MIN02", "MME01"), 730, 4195, 0.076)],
)
def test_code_list_tasks_at_a_random_date_of_correlated_10k(
    tmp_path, shared_data, name, codes, horizon, num_rows, prevalence
):
    fields = {"codes": codes, "horizon_days": horizon, "index": "random_date", "washout_days": 0.0}
    task = task_from_dict(name, fields | {"follow_up": "dataset_end"})
    store = write_store(read_meds(shared_data / "meds" / "correlated_10k"), tmp_path / "store")
    labels = make_labels(store, task)
    assert (len(labels.times), round(float(labels.values.mean()), 3)) == (num_rows, prevalence)
