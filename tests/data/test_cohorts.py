"""The rules that decide who is labelled how."""

from dataclasses import replace
from datetime import UTC

import numpy as np
import pyarrow.parquet as pq
import pytest

from ehrjax.data.cohorts import make_labels
from ehrjax.data.readers.meds import read_meds
from ehrjax.data.store import write_store
from ehrjax.data.tasks import TASKS, Task
from tests.data.helpers import make_store, seconds
from tests.data.histories import DAY, check_flow, day, many_patients, rows_of, visit

ONSET = Task(
    "onset", codes=("D*",), exclude_codes=("X",), horizon_days=365, index="every_visit", follow_up="dataset_end"
)


def labels_of(tmp_path, events, task, **options):
    """Index day -> value, and the flow; someone else's visit on day 2000 makes the data set end then."""
    labels = make_labels(make_store(tmp_path, events + visit(1000, 0, 2000, 2000)), task, **options)
    days = (labels.times - seconds(day(0))) / DAY
    return dict(zip(days.tolist(), labels.values[:, 0].tolist(), strict=True)), labels.flow


# Edge cases


def test_store_without_visits_says_so(tmp_path):
    store = make_store(tmp_path, [(1, None, "D1", None, None), (1, day(0), "MEDS_BIRTH", None, None)])
    with pytest.raises(ValueError, match=r"no labelled row in this store \(subjects 1"):
        make_labels(store, ONSET)


def test_store_without_the_codes_says_so(tmp_path):
    with pytest.raises(ValueError, match=r"none of the 3 codes of the store matches .* patterns of this data set"):
        make_labels(make_store(tmp_path, visit(1, 1, 0, 0, ("A", 0))), TASKS["diabetes_onset"])


def test_store_without_stays_names_the_classes_looked_for(tmp_path):
    with pytest.raises(ValueError, match="no visit of class ENCOUNTER//inpatient"):
        make_labels(make_store(tmp_path, visit(1, 1, 0, 0)), TASKS["readmission_30d"])


def test_all_censored_points_to_follow_up(tmp_path):
    with pytest.raises(ValueError, match="follow_up='dataset_end'"):
        make_labels(make_store(tmp_path, visit(1, 1, 0, 0, ("A", 0))), TASKS["mortality_1y"])


def test_patient_without_visits_beside_others_is_counted_not_labelled(tmp_path):
    events = [*visit(1, 1, 0, 0, ("D1", 10)), (2, None, "GENDER//F", None, None)]
    found, flow = labels_of(tmp_path, events, ONSET)
    assert found == {0: 1}
    assert (flow["subjects"], flow["subjects_with_visits"]) == (3, 2)


# Windows and censoring


@pytest.mark.parametrize(
    ("outcome_day", "gap", "expected"),
    [
        (10, 0, 1),  # the last second of the window
        (10 + 1 / DAY, 0, 0),
        (1 / DAY, 0, 1),  # the first second after t
        (5, 5, None),  # the last second of the gap: not to be predicted any more
        (5 + 1 / DAY, 5, 1),
        (15, 5, 1),
        (15 + 1 / DAY, 5, 0),
    ],
)
def test_window_is_open_at_its_start_and_closed_at_its_end(tmp_path, outcome_day, gap, expected):
    events = visit(1, 1, -1, 0, ("A", 0)) + visit(1, 2, 0.5, 100, ("D1", outcome_day))
    task = replace(ONSET, horizon_days=10, gap_days=gap)
    if expected is None:
        with pytest.raises(ValueError, match="outcome_in_gap 1"):
            labels_of(tmp_path, events, task)
    else:
        assert labels_of(tmp_path, events, task)[0] == {0: expected}


def test_outcome_at_t_is_prevalent_and_after_t_is_not(tmp_path):
    found, flow = labels_of(tmp_path, visit(1, 1, 0, 1, ("D1", 1)) + visit(2, 1, 0, 1, ("D1", 1 + 1 / DAY)), ONSET)
    assert found == {1: 1}
    assert flow["not_at_risk"] == 1


def test_negative_needs_follow_up_to_the_windows_end(tmp_path):
    events = visit(1, 1, 0, 0, ("A", 0)) + visit(2, 1, 100, 100, ("A", 100 + 365)) + visit(3, 1, 200, 200, ("D1", 400))
    found, flow = labels_of(tmp_path, events, replace(ONSET, follow_up="last_event"))
    assert found == {100: 0, 200: 1}
    assert (flow["censored"], flow["too_late"]) == (2, 0)  # days 0 and 2000


def test_window_beyond_the_data_is_no_index_time_whatever_the_outcome(tmp_path):
    """Keeping only the rows that turned out positive there would raise the prevalence."""
    events = visit(1, 1, 0, 0, ("A", 0)) + visit(2, 1, 1635, 1635, ("D1", 1700)) + visit(3, 1, 1636, 1636, ("D1", 1700))
    events += [*visit(4, 1, 1640, 1640), (4, day(1700), "MEDS_DEATH", None, None)]
    found, flow = labels_of(tmp_path, events, ONSET)
    assert found == {0: 0, 1635: 1}
    assert (flow["censored"], flow["too_late"]) == (0, 3)  # days 1636, 1640, 2000


def test_death_in_the_window_closes_it(tmp_path):
    events = [*visit(1, 1, 0, 0, ("A", 0)), (1, day(50), "MEDS_DEATH", None, None), *visit(2, 1, 1, 1, ("D1", 2))]
    found, _ = labels_of(tmp_path, events, replace(ONSET, follow_up="last_event"))
    assert found == {0: 0, 1: 1}


def test_washout_frees_after_its_time(tmp_path):
    events = visit(1, 1, 0, 0, ("D1", 0)) + visit(1, 2, 9, 9) + visit(1, 3, 10, 10) + visit(1, 4, 11, 11, ("D1", 11))
    found, flow = labels_of(tmp_path, events, replace(ONSET, washout_days=10, horizon_days=5))
    assert found == {10: 1}
    assert flow["not_at_risk"] == 3  # day 0, day 9 (9 < 10 days ago), day 11


def test_static_excluding_code_is_prevalent_at_all_times(tmp_path):
    events = [*visit(1, 1, 0, 0, ("D1", 3)), (1, None, "X", None, None), *visit(2, 1, 0, 0, ("D1", 3))]
    _, flow = labels_of(tmp_path, events, ONSET)
    assert (flow["not_at_risk"], flow["kept"], flow["positives"]) == (1, 1, 1)


# Tasks


def test_mortality_never_predicts_from_after_death(tmp_path):
    events = visit(1, 1, 0, 0, ("A", 0)) + visit(1, 2, 4, 5, ("A", 4)) + visit(1, 3, 6, 6, ("A", 6))
    events += [(1, day(5), "MEDS_DEATH", None, None)]
    found, flow = labels_of(tmp_path, events, replace(TASKS["mortality_1y"], index="every_visit"))
    assert found == {0: 1}
    assert flow["dead"] == 2


def test_readmission_counts_new_stays_only(tmp_path):
    events = visit(1, 1, 0, 2, kind="inpatient") + visit(1, 2, 2, 3, kind="inpatient")  # transfer at day 2
    events += visit(1, 3, 10, 12) + visit(1, 4, 33, 40, kind="inpatient") + visit(1, 5, 100, 100)
    found, flow = labels_of(tmp_path, events, TASKS["readmission_30d"])
    assert found == {3: 1, 40: 0}
    assert flow["in_stay"] == 1


def test_readmission_of_the_dead_is_not_asked(tmp_path):
    events = [*visit(1, 1, 0, 2, kind="inpatient"), (1, day(2), "MEDS_DEATH", None, None)]
    events += visit(2, 1, 0, 3, kind="inpatient") + visit(2, 2, 5, 6, kind="inpatient") + visit(2, 3, 60, 60)
    found, flow = labels_of(tmp_path, events, TASKS["readmission_30d"])
    assert found == {3: 1, 6: 0}
    assert flow["dead"] == 1


def test_stays_come_from_admission_events_where_there_are_no_encounters(tmp_path):
    times = {"ADMISSION": (0, 20, 60), "DISCHARGE//home": (2, 70), "A": (200,)}
    events = [(1, day(at), code, None, None) for code, days in times.items() for at in days]
    store = make_store(tmp_path, events)
    stays = make_labels(store, TASKS["length_of_stay"])
    assert stays.flow["no_end"] == 1  # the admission of day 20 has no discharge before the next admission
    np.testing.assert_allclose(stays.values[:, 0], np.log1p([2, 10]), rtol=1e-6)
    readmission = make_labels(store, TASKS["readmission_30d"])
    assert readmission.values[:, 0].tolist() == [1, 0]


def test_length_of_stay_is_predicted_at_admission(tmp_path):
    labels = make_labels(make_store(tmp_path, visit(1, 1, 3, 4.5, kind="inpatient")), "length_of_stay")
    assert labels.times.tolist() == [seconds(day(3))]
    assert labels.end_times.tolist() == [seconds(day(4.5))]
    np.testing.assert_allclose(labels.values, [[np.log(2.5)]], rtol=1e-6)
    assert (labels.kind, labels.names) == ("regression", ("log1p_days",))


def test_fixed_age_is_a_birthday(tmp_path):
    events = [(1, day(0), "MEDS_BIRTH", None, None), *visit(1, 1, 300, 300), *visit(1, 2, 800, 800, ("D1", 800))]
    events += visit(2, 1, 0, 0)  # birth unknown: no index time
    found, flow = labels_of(tmp_path, events, replace(ONSET, index="fixed_age", index_age=2.0))
    assert found == {730.5: 1}
    assert flow["index_times"] == 1


def test_next_visit_codes_are_the_train_patients_most_frequent(tmp_path):
    def dx(code):
        return f"DIAGNOSIS//S//{code}"

    events = visit(1, 1, 0, 0, (dx(1), 0)) + visit(1, 2, 5, 5, (dx(2), 5), (dx(1), 5)) + visit(1, 3, 9, 9)
    events += visit(2, 1, 0, 0, (dx(3), 0)) + visit(2, 2, 2, 2, (dx(3), 2), (dx(1), 2))
    task = replace(TASKS["next_visit_codes"], num_codes=2)
    labels = make_labels(make_store(tmp_path, events), task, train_subjects=np.array([1]))
    assert labels.names == (dx(1), dx(2))
    assert labels.subject_ids.tolist() == [1, 1, 2]
    assert labels.values.tolist() == [[1, 1], [0, 0], [1, 0]]
    assert labels.flow["no_next_visit"] == 2


def test_next_visit_begins_after_the_index_time(tmp_path):
    """A visit that is already under way when the index visit ends is no target: part of it is known."""
    events = visit(1, 1, 0, 10, kind="a") + visit(1, 2, 8, 12, kind="b") + visit(1, 3, 11, 11, kind="c")
    labels = make_labels(make_store(tmp_path, events), "next_visit_class", train_subjects=np.array([1]))
    assert dict(zip((labels.times - seconds(day(0))).tolist(), labels.values[:, 0].tolist(), strict=True)) == {
        10 * DAY: labels.names.index("c")
    }


def test_classes_that_train_lacks_are_left_out(tmp_path):
    events = visit(1, 1, 0, 0, kind="a") + visit(1, 2, 1, 1, kind="a")
    events += visit(2, 1, 0, 0, kind="a") + visit(2, 2, 1, 1, kind="z")
    labels = make_labels(make_store(tmp_path, events), "next_visit_class", train_subjects=np.array([1]))
    assert (labels.names, labels.values.tolist(), labels.flow["unknown_class"]) == (("a",), [[0]], 1)
    assert labels.values.dtype == np.int32


def test_a_second_store_takes_the_outputs_of_the_first(tmp_path):
    first = visit(1, 1, 0, 0, kind="a") + visit(1, 2, 1, 1, kind="b") + visit(1, 3, 2, 2, kind="b")
    second = visit(2, 1, 0, 0, kind="z") + visit(2, 2, 1, 1, kind="a") + visit(2, 3, 2, 2, kind="z")
    names = make_labels(make_store(tmp_path / "a", first), "next_visit_class", train_subjects=np.array([1])).names
    labels = make_labels(make_store(tmp_path / "b", second), "next_visit_class", outputs=names)
    assert (names, labels.names, labels.values.tolist()) == (("b", "a"), ("b", "a"), [[1]])
    assert labels.flow["unknown_class"] == 1


def test_fitted_outputs_need_train_patients(tmp_path):
    store = make_store(tmp_path, visit(1, 1, 0, 0))
    with pytest.raises(ValueError, match="pass train_subjects"):
        make_labels(store, "next_visit_codes")
    with pytest.raises(ValueError, match="no diagnosis code"):
        make_labels(store, "next_visit_codes", train_subjects=np.array([1]))


# Drawing


def test_tiny_cohort_with_nothing_drawn_says_what_to_do(tmp_path):
    store = make_store(tmp_path, many_patients(num_visits=16)[: 2 * 16] + visit(99, 0, 2000, 2000, ("D1", 2000)))
    messages = []
    for seed in range(30):
        try:
            make_labels(store, replace(ONSET, index="random_visit"), seed=seed)
        except ValueError as error:
            messages.append(str(error))
    assert 0 < len(messages) < 30
    assert all("take another seed, or index='every_visit'" in message for message in messages)


def test_random_visit_draws_at_most_one_a_patient_by_seed(tmp_path):
    store = make_store(tmp_path, many_patients())
    task = replace(ONSET, index="random_visit")
    one, same, other = (make_labels(store, task, seed=seed) for seed in (0, 0, 1))
    assert len(np.unique(one.subject_ids)) == len(one.subject_ids) > 25
    assert one.times.tolist() == same.times.tolist() != other.times.tolist()
    assert len(np.unique(one.times)) > 4
    assert one.flow["subjects_drawn"] == one.flow["kept"] == len(one.times)


@pytest.mark.parametrize("task", [replace(ONSET, index="random_visit"), replace(ONSET, max_rows_per_patient=2)])
def test_draw_does_not_look_ahead(tmp_path, task):
    """Up to an outcome or death on day 65, the same visits are drawn as without it."""
    events = many_patients(num_visits=8)
    ended = [e for e in events if e[0] == 99 or e[1] < day(65)]
    ended += [(s, day(65), ("D1", "MEDS_DEATH")[s % 2], None, None) for s in range(40)]
    whole, cut = (rows_of(make_labels(make_store(tmp_path / n, e), task)) for n, e in (("a", events), ("b", ended)))
    early = {row for row in whole if row[1] < seconds(day(65))}
    assert len(early) > 20
    assert {row for row in cut if row[1] < seconds(day(65))} == early


def test_shards_do_not_change_the_labels(tmp_path):
    task = replace(ONSET, index="random_visit")
    one = make_labels(make_store(tmp_path / "a", many_patients()), task)
    many = make_labels(make_store(tmp_path / "b", many_patients(), num_shards=5), task)
    for a, b in zip(one, many, strict=True):
        np.testing.assert_equal(a, b)


def test_at_most_n_rows_a_patient_and_never_by_outcome(tmp_path):
    events = many_patients()
    with_outcome = events + [(s, day(75), "D1", None, None) for s in range(0, 40, 2)]
    task = replace(ONSET, max_rows_per_patient=3)
    plain = make_labels(make_store(tmp_path / "a", events), task)
    changed = make_labels(make_store(tmp_path / "b", with_outcome), task)
    assert np.bincount(plain.subject_ids)[:40].max() == 3
    assert len(plain.subject_ids) > 90
    assert changed.subject_ids.tolist() == plain.subject_ids.tolist()
    assert changed.times.tolist() == plain.times.tolist()
    assert changed.values.sum() == (plain.subject_ids % 2 == 0).sum()


# Real records


def test_stays_of_real_admissions_equal_a_loop_over_the_files(tmp_path, shared_data):
    folder = shared_data / "meds" / "aces_100"
    expected = {}
    for file in sorted(folder.rglob("*.parquet")):
        opened = None
        for row in pq.read_table(file).to_pylist():
            if row["code"].startswith("ADMISSION//"):
                opened = row["subject_id"], int(row["time"].replace(tzinfo=UTC).timestamp())
            elif row["code"].startswith("DISCHARGE//") and opened and opened[0] == row["subject_id"]:
                days = (row["time"].replace(tzinfo=UTC).timestamp() - opened[1]) / DAY
                expected[opened] = np.log1p(days)
                opened = None
    labels = make_labels(write_store(read_meds(folder), tmp_path / "store", num_shards=3), "length_of_stay")
    found = dict(zip(rows_of(labels), labels.values[:, 0].tolist(), strict=True))
    assert found.keys() == expected.keys()
    np.testing.assert_allclose([found[k] for k in expected], list(expected.values()), atol=1e-5)
    check_flow(labels.flow)


# Flow


@pytest.mark.parametrize("name", sorted(TASKS))
def test_flow_of_every_shipped_task_adds_up(tmp_path, name):
    events = [e for s in range(20) for e in visit(s, 1, s, s + 2, ("DIAGNOSIS//SNOMED//1", s), kind="inpatient")]
    events += [e for s in range(15) for e in visit(s, 2, s + 40, s + 400, kind="inpatient")]
    events += [(s, day(s + 60), "DIAGNOSIS//SNOMED//44054006", None, None) for s in range(0, 20, 3)]
    events += [(s, day(s + 200), "DIAGNOSIS//SNOMED//433144002", None, None) for s in range(1, 20, 4)]
    events += [(s, day(s + 300), "MEDS_DEATH", None, None) for s in range(0, 20, 5)]
    events += [(s, day(s + 42), "ICU_ADMISSION", None, None) for s in range(0, 15, 4)]
    outcome = ("OUTCOME//PHYSIONET2012//IN_HOSPITAL_DEATH", 2 + 1 / 24)
    events += visit(30, 1, 0, 2, outcome, kind="icu_first_48h")
    labels = make_labels(make_store(tmp_path, events), name, train_subjects=np.arange(12))
    check_flow(labels.flow)
    assert labels.flow["kept"] == len(labels.times) > 0
    assert (labels.end_times >= labels.times).all()
