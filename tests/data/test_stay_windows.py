"""Windows of stays: nothing later than the index time, nothing of an earlier stay, and what is asked for wrongly."""

from dataclasses import asdict

import numpy as np
import pytest

from ehrjax.data.cutoff import StoreUntil
from ehrjax.data.labels import Labels
from ehrjax.data.notes import make_notes
from ehrjax.data.perturb import CHANGES, change_after
from ehrjax.data.shards import NULL_TIME
from ehrjax.data.stay_windows import (
    NOTE_HALF_LIFE_HOURS,
    NoteVectors,
    collect,
    count_notes,
    fit_scaler,
    make_windows,
    stay_starts,
    window_settings,
)
from ehrjax.data.variables import ICU_VARIABLES, VITALS
from tests.data.helpers import make_store, microseconds, seconds

HR, TEMP, IN = "VITAL//LOINC//8867-4", "VITAL//LOINC//8310-5", "ENCOUNTER//inpatient"
EVENTS = [
    (1, "1950-01-01", "MEDS_BIRTH", None, None),
    (1, "2020-01-01 00:00", IN, None, 10),
    (1, "2020-01-01 01:00", HR, 80.0, 10),
    (1, "2020-01-01 03:00", "ENCOUNTER_END//inpatient", None, 10),
    (1, "2020-01-01 05:00", IN, None, 11),
    (1, "2020-01-01 06:30", HR, 100.0, 11),
    (1, "2020-01-01 09:30", HR, 300.0, 11),
    (2, "2020-01-02 00:00", IN, None, 20),
    (2, "2020-01-02 12:00", TEMP, 37.0, 20),
    (3, "2020-01-03 00:00", "ENCOUNTER//ambulatory", None, 30),
    (3, "2020-01-03 02:00", HR, 60.0, 30),
]
ROWS = [(1, "2020-01-01 08:00"), (2, "2020-01-02 06:00"), (3, "2020-01-03 04:00")]
SETTINGS = window_settings(("heart_rate", "temperature"), window_hours=6.0, bin_hours=1.0)


def make_rows(rows):
    ids, times = np.array([r[0] for r in rows], np.int64), np.array([seconds(r[1]) for r in rows], np.int64)
    values = np.arange(len(rows), dtype=np.float32)[:, None]
    return Labels("y", "binary", ("y",), ids, times, values, np.ones(values.shape, bool), times, {})


def windows_of(store, rows=ROWS, notes=None):
    found = collect(store, make_rows(rows), SETTINGS)
    return make_windows(found, SETTINGS, fit_scaler(found, SETTINGS), notes)


def test_sets_of_variables_and_single_ones():
    assert [v.name for v in window_settings(("vitals",), window_hours=1, bin_hours=1).variables] == list(VITALS)
    both = window_settings(("icu", "height"), window_hours=48, bin_hours=2)
    assert [v.name for v in both.variables] == [*ICU_VARIABLES, "height"] and both.num_bins == 24
    assert window_settings(("height",), window_hours=0.5, bin_hours=1).num_bins == 1
    assert window_settings(("height",), window_hours=5, bin_hours=2).num_bins == 3


@pytest.mark.parametrize(
    ("names", "hours", "bins", "message"),
    [
        (("heart_rat",), 1, 1, "did you mean 'heart_rate'"),
        ("vitals", 1, 1, r"variables='vitals' must be a tuple"),
        (("vitals", "heart_rate"), 1, 1, "distinct"),
        (("vitals",), 0, 1, "window_hours=0 must be above 0"),
        (("vitals",), 1, float("nan"), "bin_hours=nan must be above 0"),
    ],
)
def test_wrong_settings_are_named(names, hours, bins, message):
    with pytest.raises(ValueError, match=message):
        window_settings(names, window_hours=hours, bin_hours=bins)


def test_a_store_that_measures_nothing_is_refused_with_the_way_out(tmp_path):
    store = make_store(tmp_path, [(1, "2020-01-01", "DIAGNOSIS//FLU", None, None)])
    with pytest.raises(ValueError, match=r"none of the store's 1 codes measures heart_rate .* mapping file"):
        collect(store, make_rows([(1, "2020-01-01")]), SETTINGS)


def test_a_stay_starts_with_the_latest_admission_to_a_hospital(tmp_path):
    starts = stay_starts(make_store(tmp_path, EVENTS), *make_rows([*ROWS, (1, "2020-01-01 02:00")])[3:5])
    expected = [seconds("2020-01-01 05:00"), seconds("2020-01-02 00:00"), NULL_TIME, seconds("2020-01-01 00:00")]
    assert starts.tolist() == expected


def test_windows_hold_this_stay_up_to_the_index_time(tmp_path):
    windows = windows_of(make_store(tmp_path, EVENTS))
    assert windows.time_mask.sum(axis=1).tolist() == [3, 6, 6], "the second stay of patient 1 is three hours old"
    assert np.argwhere(windows.observed).tolist() == [[0, 1, 0], [2, 4, 0]]
    assert windows.has_vitals.tolist() == [True, False, True]
    assert not windows.values[1].any() and windows.notes.shape == (3, 0) and not windows.has_notes.any()
    assert windows.labels[:, 0].tolist() == [0, 1, 2]


@pytest.mark.parametrize("change", CHANGES)
def test_nothing_later_than_the_index_time_is_in_a_window(tmp_path, change):
    store, labels = make_store(tmp_path, EVENTS), make_rows(ROWS)
    found = collect(store, labels, SETTINGS)
    scaler = fit_scaler(found, SETTINGS)
    changed = change_after(store, labels.subject_ids, labels.times, change=change)
    windows, again = (make_windows(collect(s, labels, SETTINGS), SETTINGS, scaler) for s in (store, changed))
    for name, array in asdict(windows).items():
        assert array.tobytes() == getattr(again, name).tobytes(), name


def test_a_window_without_the_index_time_would_be_caught(tmp_path):
    """The same comparison with windows that end an hour and a half too late."""
    store, labels = make_store(tmp_path, EVENTS), make_rows(ROWS)
    late = labels._replace(times=labels.times + 5400)
    scaler = fit_scaler(collect(store, labels, SETTINGS), SETTINGS)
    changed = change_after(store, labels.subject_ids, labels.times, change="removed")
    windows, again = (make_windows(collect(s, late, SETTINGS), SETTINGS, scaler) for s in (store, changed))
    assert windows.values.tobytes() != again.values.tobytes()


def test_the_scaler_is_that_of_the_rows_it_is_fitted_on(tmp_path):
    store = make_store(tmp_path, EVENTS)
    alone = fit_scaler(collect(store, make_rows(ROWS[:1]), SETTINGS), SETTINGS)
    assert alone.scaler.mean == (100.0, 0.0), (
        "300 comes after the index time, 80 is of another stay, 60 of another patient"
    )
    assert fit_scaler(collect(store, make_rows(ROWS), SETTINGS), SETTINGS).scaler.mean == (80.0, 0.0)


def test_notes_are_of_this_stay_and_not_later(tmp_path):
    times = ["2020-01-01 01:00", "2020-01-01 05:30", "2020-01-01 07:00", "2020-01-01 08:01", "2020-01-03 01:00"]
    texts = ["an earlier stay", "first", "second", "later", "an outpatient"]
    notes = make_notes(np.array([1, 1, 1, 1, 3]), np.array([microseconds(t) for t in times]), texts)
    windows = windows_of(make_store(tmp_path, EVENTS), notes=NoteVectors(notes, np.eye(5, dtype=np.float32)))
    late = 1 / (1 + 0.5 ** (1.5 / NOTE_HALF_LIFE_HOURS))
    expected = [[0, 1 - late, late, 0, 0], [0] * 5, [0, 0, 0, 0, 1]]
    np.testing.assert_allclose(windows.notes, expected, rtol=1e-6)
    assert windows.has_notes.tolist() == [True, False, True]


def counts_of(tmp_path, events, times, subject=1):
    notes = make_notes(np.full(len(times), subject), np.array([microseconds(t) for t in times]), ["text"] * len(times))
    store = make_store(tmp_path, events)
    return count_notes(store, collect(store, make_rows(ROWS), SETTINGS), notes)


def test_notes_after_discharge_are_told_from_those_too_late_for_an_index_time(tmp_path):
    times = {
        "before any stay": "2019-12-31 23:00",
        "in a stay without an index time": "2020-01-01 01:00",
        "as it ends": "2020-01-01 03:00",
        "after it": "2020-01-01 03:01",
        "read": "2020-01-01 07:00",
        "after the index time": "2020-01-01 08:01",
        "years later": "2023-01-01 08:00",
    }
    expected = {"notes": 7, "read": 1, "after_discharge": 2}
    assert counts_of(tmp_path, EVENTS, list(times.values())) == expected
    nested = [*EVENTS, (1, "2019-12-31 20:00", IN, None, 9), (1, "2020-01-01 04:00", f"ENCOUNTER_END{IN[9:]}", None, 9)]
    assert counts_of(tmp_path / "in another stay", nested, [times["after it"]])["after_discharge"] == 0
    assert counts_of(tmp_path / "nobody's", EVENTS, ["2023-01-01 08:00"], subject=77) == dict.fromkeys(expected, 0)


def test_notes_after_a_discharge_event_where_there_are_no_encounters(tmp_path):
    codes = (("2020-01-01 00:00", "ADMISSION"), ("2020-01-01 03:00", "DISCHARGE"), ("2020-01-01 05:00", "ADMISSION"))
    events = [(1, time, code, None, None) for time, code in codes] + [(2, "2020-01-01", HR, 80.0, None)]
    events += [(3, "2020-01-01", HR, 80.0, None)]
    found = counts_of(
        tmp_path, events, ["2020-01-01 02:00", "2020-01-01 04:00", "2020-01-01 09:00", "2020-05-01 00:00"]
    )
    assert found == {"notes": 4, "read": 0, "after_discharge": 1}, "of the second stay no end is known"
    assert counts_of(tmp_path / "no stay", events, ["2020-01-01 02:00"], subject=3)["after_discharge"] == 0


def test_a_cut_off_is_no_discharge(tmp_path):
    store, times = make_store(tmp_path, EVENTS), ["2020-01-01 02:00", "2020-01-01 04:00"]
    notes = make_notes(np.array([1, 1]), np.array([microseconds(t) for t in times]), ["during the stay", "after it"])
    found = collect(store, make_rows(ROWS), SETTINGS)
    assert count_notes(StoreUntil(store, seconds("2020-01-01 01:30")), found, notes)["after_discharge"] == 1


def test_note_vectors_are_scaled_as_the_rows_say_that_were_fitted_on(tmp_path):
    texts, times = ["one", "two", "three"], ["2020-01-01 05:30", "2020-01-02 01:00", "2020-01-03 01:00"]
    notes = make_notes(np.array([1, 2, 3]), np.array([microseconds(t) for t in times]), texts)
    vectors = NoteVectors(notes, np.array([[1, 4], [3, 4], [99, 5]], np.float32))
    found = collect(make_store(tmp_path, EVENTS), make_rows(ROWS), SETTINGS)
    train = collect(make_store(tmp_path / "again", EVENTS), make_rows(ROWS[:2]), SETTINGS)
    scaler = fit_scaler(train, SETTINGS, vectors)
    windows = make_windows(found, SETTINGS, scaler, vectors)
    assert windows.notes.tolist() == [[-1, 0], [1, 0], [10, 0]]
    for name, part in scaler.files.items():
        part.save(tmp_path / name)
    assert scaler.load(tmp_path, SETTINGS, reads_notes=True) == scaler != scaler.load(tmp_path, SETTINGS)
    assert scaler != fit_scaler(found, SETTINGS, vectors)


RANKED = window_settings(("heart_rate", "temperature"), window_hours=6.0, bin_hours=1.0, summaries=True)


def test_summaries_are_scaled_and_values_are_ranks(tmp_path):
    found = collect(make_store(tmp_path, EVENTS), make_rows(ROWS), RANKED)
    scaler = fit_scaler(found, RANKED)
    windows = make_windows(found, RANKED, scaler)
    assert windows.summaries.shape[1] == scaler.summaries.is_used.sum() > 0
    assert windows.statics.shape[1] == len(scaler.scaler.static_names)
    assert np.isfinite(windows.summaries).all() and windows.summaries.any()
    assert windows.values[2, 4, 0] < 0 < windows.values[0, 1, 0], "60 is the lower of two heart rates, 100 the higher"


def test_a_scaler_with_ranks_is_read_as_it_was_written(tmp_path):
    store = make_store(tmp_path, EVENTS)
    scaler = fit_scaler(collect(store, make_rows(ROWS), RANKED), RANKED)
    for name, part in scaler.files.items():
        part.save(tmp_path / name)
    assert scaler.load(tmp_path, RANKED) == scaler != scaler.load(tmp_path, SETTINGS)
    assert scaler != fit_scaler(collect(store, make_rows(ROWS[1:]), RANKED), RANKED)


@pytest.mark.parametrize("change", CHANGES)
def test_nothing_later_is_in_the_summaries(tmp_path, change):
    store, labels = make_store(tmp_path, EVENTS), make_rows(ROWS)
    scaler = fit_scaler(collect(store, labels, RANKED), RANKED)
    changed = change_after(store, labels.subject_ids, labels.times, change=change)
    windows, again = (make_windows(collect(s, labels, RANKED), RANKED, scaler) for s in (store, changed))
    assert (
        windows.summaries.tobytes() == again.summaries.tobytes() and windows.values.tobytes() == again.values.tobytes()
    )
