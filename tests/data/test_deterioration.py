"""Index times while a hospital stay goes on, and deterioration: simulated stays, odd stays, real ones."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from ehrjax.data import simulate_stays
from ehrjax.data.build import build_store
from ehrjax.data.cohorts import make_labels
from ehrjax.data.labels import read_meds_labels
from ehrjax.data.readers.mimic4 import read_mimic4
from ehrjax.data.readers.omop import read_omop
from ehrjax.data.store import write_store
from ehrjax.data.tasks import TASKS
from tests.data.helpers import make_store, seconds
from tests.data.histories import check_flow, day, visit
from tests.data.readers.helpers import write_table

TASK = TASKS["deterioration_24h"]
ICU = "ICU_ADMISSION//Medical Intensive Care Unit (MICU)"
PRESSOR, VENTILATOR = "INFUSION//MIMIC//221906", "PROCEDURE//MIMIC//225792"


def stay(subject, number, start, end, *codes):
    """An inpatient stay from hour `start` to hour `end`; `codes` are (name, hour)."""
    return visit(subject, number, start / 24, end / 24, *((code, at / 24) for code, at in codes), kind="inpatient")


def death(subject, hour):
    return (subject, day(hour / 24), "MEDS_DEATH", None, None)


def labels_of(tmp_path, events, task=TASK):
    """{(subject, index hour): value} of subjects below 100, and the flow; somebody else's records name the codes."""
    others = [e for s, code in ((100, ICU), (101, PRESSOR), (102, VENTILATOR)) for e in visit(s, 1, 0, 0, (code, 0))]
    labels = make_labels(make_store(tmp_path, events + others), task)
    check_flow(labels.flow)
    hours = ((labels.times - seconds(day(0))) / 3600).tolist()
    return dict(
        zip(zip(labels.subject_ids.tolist(), hours, strict=True), labels.values[:, 0], strict=True)
    ), labels.flow


def hours_of(found, subject=1):
    return [hour for owner, hour in found if owner == subject]


# Nothing to predict


def test_store_without_any_of_the_codes_says_so(tmp_path):
    with pytest.raises(ValueError, match=r"'deterioration_24h': none of the 2 codes of the store matches"):
        make_labels(make_store(tmp_path, stay(1, 1, 0, 90)), TASK)


@pytest.mark.parametrize("events", [visit(1, 1, 0, 5), stay(1, 1, 0, 12), stay(1, 1, 0, 0)])
def test_store_without_long_stays_says_what_is_looked_for(tmp_path, events):
    with pytest.raises(ValueError, match=r"no visit of class ENCOUNTER//inpatient.* more than index_from_hours=12"):
        labels_of(tmp_path, events)


def test_stays_that_all_begin_in_intensive_care_give_no_row(tmp_path):
    with pytest.raises(ValueError, match=r"index_times 7, not_at_risk 7"):
        labels_of(tmp_path, stay(1, 1, 0, 50, (ICU, 0)))


# Index times


@pytest.mark.parametrize(
    ("end", "settings", "expected"),
    [
        (30, {}, [12, 18, 24]),  # the end itself is none
        (30 + 1 / 3600, {}, [12, 18, 24, 30]),
        (12 + 1 / 3600, {}, [12]),
        (30, {"index_from_hours": 0.0, "index_every_hours": 10.0}, [0, 10, 20]),
        (50, {"index_from_hours": 0.5, "index_every_hours": 12.0, "index_until_hours": 24.5}, [0.5, 12.5, 24.5]),
        (50, {"index_from_hours": 6.0, "index_until_hours": 6.0}, [6]),
    ],
)
def test_index_times_lie_within_the_stay(tmp_path, end, settings, expected):
    found, _ = labels_of(tmp_path, stay(1, 1, 0, end, ("A", 0)), replace(TASK, **settings))
    assert hours_of(found) == expected
    assert not any(found.values())


def test_a_long_stay_gives_no_more_rows_than_its_first_thirteen_days(tmp_path):
    found, _ = labels_of(tmp_path, stay(1, 1, 0, 2000, ("A", 0), (VENTILATOR, 1500)))
    assert (len(found), max(hours_of(found))) == (51, 312)


def test_stays_that_overlap_or_touch_are_one(tmp_path):
    events = stay(1, 1, 0, 20) + stay(1, 2, 20, 40) + stay(1, 3, 15, 25) + stay(1, 4, 41, 55)
    events += stay(2, 1, 0, 40, (VENTILATOR, 13)) + stay(2, 2, 40, 80)
    found, _ = labels_of(tmp_path, events)
    assert hours_of(found) == [12, 18, 24, 30, 36, 53]
    assert hours_of(found, 2) == [12]  # ventilated since, whatever the new encounter


def test_stay_without_a_recorded_end_lasts_until_death_or_the_next_stay(tmp_path):
    events = [(1, day(h / 24), "ADMISSION", None, None) for h in (0, 31, 900)]
    events += [(1, day(h / 24), code, None, None) for h, code in ((50, "DISCHARGE"), (915, "A"), (921, "A"))]
    events += [(2, day(0), "ADMISSION", None, None), (2, day(20 / 24), "A", None, None), death(2, 30)]
    found, flow = labels_of(tmp_path, events)
    assert hours_of(found) == [12, 18, 24, 30, 43, 49]  # of the last stay the record ends before any window
    assert [hour for (owner, hour), value in found.items() if value] == [12, 18, 24]
    assert hours_of(found, 2) == [12, 18, 24]
    assert (flow["dead"], flow["censored"]) == (48, 51)


# At risk: none since the stay began


@pytest.mark.parametrize("code", [ICU, PRESSOR, VENTILATOR])
def test_a_stay_that_has_deteriorated_gives_no_more_index_times(tmp_path, code):
    found, flow = labels_of(tmp_path, stay(1, 1, 0, 60, (code, 24)) + stay(2, 1, 0, 60, (code, 24 + 1 / 3600)))
    assert hours_of(found) == [12, 18]  # at hour 24 it has happened
    assert hours_of(found, 2) == [12, 18, 24]
    assert all(found.values())
    assert flow["not_at_risk"] == 6 + 5


def test_an_earlier_stay_that_deteriorated_does_not_exclude_a_later_one(tmp_path):
    events = stay(1, 1, 0, 20, (PRESSOR, 13)) + stay(1, 2, 240, 260)
    assert hours_of(labels_of(tmp_path, events)[0]) == [12, 252, 258]
    never = replace(TASK, exclude_codes=(PRESSOR,))
    assert hours_of(labels_of(tmp_path / "never", events, never)[0]) == [12]


def test_intensive_care_stamped_before_its_admission_is_part_of_the_stay(tmp_path):
    found, flow = labels_of(tmp_path, stay(1, 1, 0, 40, (ICU, -0.7)) + stay(2, 1, 0, 14))
    assert found == {(2, 12): 0}
    assert flow["not_at_risk"] == 5


# Outcome and observation


def test_discharge_alive_within_the_window_is_a_negative(tmp_path):
    """Nothing is known of the patient after the stay; without its end the rows would be lost."""
    found, flow = labels_of(tmp_path, stay(1, 1, 0, 20, ("A", 3)))
    assert found == {(1, 12): 0, (1, 18): 0}
    assert flow["censored"] == 0


@pytest.mark.parametrize(
    ("hour", "expected"),
    [
        (36, {12: 1, 18: 1, 24: 1, 30: 1}),  # the last second of the first window; of the stay
        (36 + 1 / 3600, {12: 0, 18: 1, 24: 1, 30: 1}),
        (48, {12: 0, 18: 0, 24: 1, 30: 1}),  # after discharge
        (24, {12: 1, 18: 1}),  # recorded to go on after death
        (600, {12: 0, 18: 0, 24: 0, 30: 0}),
    ],
)
def test_death_counts_wherever_it_comes_within_the_window(tmp_path, hour, expected):
    found, _ = labels_of(tmp_path, [*stay(1, 1, 0, 36), death(1, hour)])
    assert {at: value for (_, at), value in found.items()} == expected


def test_rows_without_room_for_the_window_are_left_out_at_the_data_sets_end(tmp_path):
    found, flow = labels_of(tmp_path, stay(1, 1, 0, 44, (PRESSOR, 40)), replace(TASK, follow_up="dataset_end"))
    assert found == {(1, 12): 0, (1, 18): 1}
    assert flow["too_late"] == 3  # whatever happened


# Stores


def test_labels_of_a_store_of_simulated_stays_are_the_simulators_own(tmp_path):
    folder = simulate_stays.write(tmp_path / "stays", num_patients=250, seed=3)
    store = build_store("meds", folder, tmp_path / "store")
    labels, own = make_labels(store, TASK), read_meds_labels(folder / "labels" / simulate_stays.TASK)
    assert (TASK.name, labels.kind) == (simulate_stays.TASK, own.kind)
    for column in ("subject_ids", "times", "values", "mask"):
        np.testing.assert_array_equal(getattr(labels, column), getattr(own, column))
    assert (labels.flow["censored"], labels.flow["subjects_with_visits"]) == (0, 250)
    stays = pq.read_table(folder / "stays.parquet").to_pandas()
    assert len(set(stays["ending"])) == 5 and 0 < labels.values.sum() < len(labels.times)
    assert ((stays["end"] - stays["admission"]) > pd.Timedelta(hours=318)).any()  # which yield no later row


PERSONS = "person_id,gender_concept_id,year_of_birth\n1,0,1950\n2,0,1950\n3,0,1950\n4,0,1950"
COLUMNS = "{0}_occurrence_id,person_id,{0}_concept_id,{0}_start_date,{0}_start_datetime,{0}_end_date,{0}_end_datetime"
HOSPITAL = """
10,1,9201,2020-02-01,2020-02-01 08:00:00,2020-02-03,2020-02-03 08:00:00
20,2,9201,2020-02-01,2020-02-01 08:00:00,2020-02-03,2020-02-03 08:00:00
30,3,32037,2020-02-01,2020-02-01 08:00:00,2020-02-03,
40,4,32037,2020-02-01,,2020-02-03,
"""
UNIT = "1,32037,2020-02-02,2020-02-02 15:00:00,2020-02-02,2020-02-02 20:00:00"


@pytest.mark.parametrize("table", ["visit_occurrence", "visit_detail"])
def test_intensive_care_of_an_omop_cdm_is_found_and_ends_the_rows(tmp_path, table):
    visits, details = COLUMNS.format("visit") + HOSPITAL, COLUMNS.format("visit_detail").replace("_detail_occ", "_occ")
    if table == "visit_occurrence":
        visits += f"11,{UNIT}"
    else:
        write_table(tmp_path / "cdm" / "visit_detail.csv", f"{details}\n10,{UNIT}")
    write_table(tmp_path / "cdm" / "visit_occurrence.csv", visits)
    write_table(tmp_path / "cdm" / "person.csv", PERSONS)
    write_table(tmp_path / "cdm" / "concept.csv", "concept_id,concept_name,vocabulary_id,concept_code")
    labels = make_labels(write_store(read_omop(tmp_path / "cdm"), tmp_path / "store"), TASK)
    hours = (labels.times - seconds("2020-02-01 08:00")) // 3600
    found = list(zip(labels.subject_ids.tolist(), hours.tolist(), labels.values[:, 0].tolist(), strict=True))
    day_only = [(4, 4, 1), (4, 10, 1)]  # begins at midnight, in intensive care by the day's end at the latest
    assert found == [*((1, h, 1) for h in (12, 18, 24, 30)), *((2, h, 0) for h in (12, 18, 24, 30, 36, 42)), *day_only]
    assert labels.flow["not_at_risk"] > 0, "patient 3 begins in intensive care"


TABLES = (
    "hosp/patients",
    "hosp/admissions",
    "hosp/transfers",
    "icu/icustays",
    "icu/inputevents",
    "icu/procedureevents",
)


def test_real_stays_equal_a_loop_over_the_files(tmp_path, shared_data):
    source = shared_data / "mimic4_demo"
    if not source.is_dir():
        pytest.skip("mimic4_demo is not among the real data sets")
    folder = tmp_path / "mimic4"  # the other tables have no bearing on it
    for table in TABLES:
        link = folder / f"{table}.csv.gz"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(source / f"{table}.csv.gz")
    expected = _real_labels(folder)
    labels = make_labels(write_store(read_mimic4(folder), tmp_path / "store", num_shards=2), TASK)
    rows = zip(labels.subject_ids.tolist(), labels.times.tolist(), strict=True)
    assert dict(zip(rows, labels.values[:, 0].tolist(), strict=True)) == expected
    assert (len(expected), sum(expected.values())) == (2650, 121)


def _real_labels(folder):
    """{(subject, second): value} from the tables, hour by hour of each stay."""

    def read(name, *times):
        table = pd.read_csv(folder / f"{name}.csv.gz", low_memory=False)
        return table.assign(**{time: pd.to_datetime(table[time]) for time in times})

    def chosen(name, time, column=None, pattern=""):
        table = read(name, time)
        kept = table if column is None else table[table[column].astype(str).str.contains(pattern)]
        return kept[["subject_id", time]].set_axis(["subject_id", "time"], axis=1)

    admissions = read("hosp/admissions", "admittime", "dischtime", "deathtime")
    starts = [
        chosen("icu/icustays", "intime"),
        chosen("hosp/transfers", "intime", "careunit", "Intensive Care|Coronary Care|SICU"),
        chosen("icu/inputevents", "starttime", "itemid", "221906|221289|221749|222315|221662"),
        chosen("icu/procedureevents", "starttime", "itemid", "225792|225794"),
        admissions[["subject_id", "deathtime"]].dropna().set_axis(["subject_id", "time"], axis=1),
    ]
    outcomes = pd.concat(starts).groupby("subject_id")["time"].apply(list).to_dict()
    inpatient = admissions[~admissions["admission_type"].str.contains("EU OBS|AMBULATORY OBS|DIRECT OBS")]
    hour, rows = pd.Timedelta(hours=1), {}
    for subject, start, end, died in inpatient[["subject_id", "admittime", "dischtime", "deathtime"]].itertuples(False):
        end = end if pd.isna(died) else max(end, died)
        happened = outcomes.get(subject, [])
        for t in (start + number * hour for number in range(12, 313, 6)):
            if t < end and not any(start - 24 * hour < at <= t for at in happened):
                rows[subject, t.value // 10**9] = float(any(t < at <= t + 24 * hour for at in happened))
    return rows
