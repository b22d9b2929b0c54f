"""The audit works the labels of visits and stays out again, and finds one that says something else."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from ehrjax.data.cohorts import make_labels
from ehrjax.data.tasks import Task, get_task
from ehrjax.evaluate.audit.outcomes import check_labels
from ehrjax.evaluate.audit.workdir import Rows, TaskRecord
from tests.data.helpers import make_store

FLU = "DIAGNOSIS//FLU"


def _visit(number, start, end, kind, *codes):
    events = [(7, start, f"ENCOUNTER//{kind}", None, number), (7, end, f"ENCOUNTER_END//{kind}", None, number)]
    return [events[0], *((7, time, code, None, number) for time, code in codes), events[1]]


HISTORY = _visit(1, "2004-03-01T08:00:00", "2004-03-01T09:00:00", "wellness")
STAY = _visit(2, "2005-03-11T00:00:00", "2005-03-13T00:00:00", "inpatient", ("2005-03-11T20:00:00", "DIAGNOSIS//COUGH"))
CHECK_UP = _visit(
    3, "2006-03-11T00:00:00", "2006-03-11T01:00:00", "wellness", ("2006-03-11T00:30:00", "DIAGNOSIS//COUGH")
)
DEATH = [(7, "2006-06-01T00:00:00", "MEDS_DEATH", None, None)]
WORSE = [(7, "2005-03-12T12:00:00", FLU, None, 2)]
WARD = Task("ward", outcome="codes_or_death", codes=(FLU,), index="during_stay", horizon_days=1)


def _labels(store, task, num_stores=1):
    """The run and the record of one task's labels, as the audit reads them; of two stores the last is of test."""
    made = make_labels(store, task, train_subjects=np.array([7]))
    values = made.values.astype(float)
    if made.kind == "multiclass":
        values = np.asarray(made.names, object)[made.values[:, :1].astype(int)]
    outputs = made.names if made.kind == "multilabel" else (task.name,)
    columns = np.split(values, len(outputs), axis=1)
    labels = {name: Rows(made.subject_ids, made.times, column) for name, column in zip(outputs, columns, strict=True)}
    tested = Rows(made.subject_ids, made.times, values)
    run = SimpleNamespace(stores=(store,) * num_stores)
    return run, TaskRecord(task.name, made.kind, task, labels, tested, made.names)


@pytest.mark.parametrize("num_stores", [1, 2])
@pytest.mark.parametrize(
    ("task", "wrong", "fault"),
    [
        (WARD, lambda values: 1 - values, "in the window"),
        (get_task("length_of_stay"), lambda values: values + 0.1, "lasts another time"),
        (get_task("next_visit_codes"), lambda values: 1 - values, "codes are others"),
        (get_task("next_visit_class"), lambda values: np.full_like(values, "hospice"), "of another class"),
    ],
)
def test_labels_of_visits_and_stays_are_worked_out_again(tmp_path, task, wrong, fault, num_stores):
    run, record = _labels(make_store(tmp_path, HISTORY + STAY + WORSE + CHECK_UP + DEATH), task, num_stores)
    assert check_labels(run, record).passed
    for output, rows in record.labels.items():
        changed = record.labels | {output: rows._replace(values=wrong(rows.values))}
        wrong_record = replace(record, labels=changed)
        if num_stores == 2:
            wrong_record = replace(record, tested=record.tested._replace(values=wrong(record.tested.values)))
        finding = check_labels(run, wrong_record)
        assert finding.passed is False
        assert fault in finding.detail


def test_stays_may_be_admission_events(tmp_path):
    times = {"ADMISSION": "2005-03-11T00:00:00", "DISCHARGE//home": "2005-03-13T00:00:00"}
    store = make_store(tmp_path, [(7, time, code, None, None) for code, time in times.items()])
    run, record = _labels(store, get_task("length_of_stay"))
    assert check_labels(run, record).passed


def test_an_index_time_after_the_outcome_of_its_stay_is_found(tmp_path):
    """The outcome of an earlier stay does not count; one in this stay does."""
    earlier = [(7, "2004-03-01T08:30:00", FLU, None, 1)]
    run, record = _labels(make_store(tmp_path, HISTORY + earlier + STAY + WORSE), WARD)
    assert check_labels(run, record).passed
    late = {
        name: rows._replace(times=rows.times + 2 * 86_400, values=rows.values * 0)
        for name, rows in record.labels.items()
    }
    assert "there already in the stay" in check_labels(run, replace(record, labels=late)).detail
