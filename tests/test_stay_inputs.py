"""What a stay may lack and what its files may have wrong, from the files to the windows that a model is given."""

import json
from dataclasses import fields

import numpy as np
import pandas as pd
import pytest

from configs import multimodal
from ehrjax.data import simulate_stays
from ehrjax.data.variables import VITALS
from experiments import build, prepare

TASK = simulate_stays.TASK
NO_VITALS_NO_NOTES, NO_VITALS, LATE_NOTE, FAHRENHEIT, IMPOSSIBLE = range(5)  # places in `Tables.subjects`
HEART_RATE, TEMPERATURE = "VITAL//LOINC//8867-4", "VITAL//LOINC//8310-5"
LATE = "Found in shock and unresponsive, on norepinephrine."


class Tables:
    """Simulated stays as their MEDS events and notes, and five patients with one stay of days, vitals and notes."""

    def __init__(self, folder):
        folder = simulate_stays.write(folder, num_patients=60, seed=3)
        self.labels = folder / "labels" / TASK
        self.events = pd.read_parquet(folder / "data" / "0.parquet")
        self.notes = pd.read_csv(folder / "notes.csv")
        stays = pd.read_parquet(folder / "stays.parquet")
        is_single = ~stays["subject_id"].duplicated(keep=False) & stays["has_vitals"] & stays["has_notes"]
        chosen = stays[is_single & (stays["end"] - stays["admission"] > pd.Timedelta(days=2))].head(5)
        self.subjects = chosen["subject_id"].tolist()
        self.stay = chosen.iloc[LATE_NOTE]

    def of(self, place, code=""):
        """Which events are measurements of that patient (of that code)."""
        is_measured = self.events["code"].str.startswith("VITAL//") & self.events["code"].str.endswith(code)
        return self.events.index[is_measured & (self.events["subject_id"] == self.subjects[place])]

    def with_note(self, time):
        """The notes and one more, of the stay of the patient LATE_NOTE."""
        note = {"subject_id": self.stay["subject_id"], "time": time, "visit_id": self.stay["visit_id"], "text": LATE}
        return pd.concat([self.notes, pd.DataFrame([note])])


class Prepared:
    """Windows of all splits by subject, and what was counted."""

    def __init__(self, folder, events, notes, **tasks):
        (folder / "meds" / "data").mkdir(parents=True)
        events.to_parquet(folder / "meds" / "data" / "0.parquet", index=False)
        notes.to_csv(folder / "notes.csv", index=False)
        config = multimodal.get_config("debug")
        config.data.update(source="meds", path=str(folder / "meds"))
        config.stays.notes = str(folder / "notes.csv")
        config.custom_tasks.update(tasks)
        config.eval.min_positives = 1
        config = build.check_config(config)
        data = prepare.prepare_data(config, folder)
        name = next(iter(tasks), TASK)
        self.parts, reason, self.flow = prepare.prepare_task(name, data, config, folder)
        assert not reason
        self.windows = [part.sequences for part in self.parts.values()]
        counts = json.loads((folder / "stays" / name / "measurements.json").read_text())
        notes = json.loads((folder / "stays" / name / "notes.json").read_text())
        self.notes = {key: sum(part[key] for part in notes.values()) for key in ("notes", "read", "after_discharge")}
        self.counts = {name: sum(pd.Series(part[name]) for part in counts.values()) for name in counts["train"]}

    def rows(self, subject, field):
        """An array of this patient's windows."""
        found = [getattr(windows, field)[windows.subject_ids == subject] for windows in self.windows]
        return np.concatenate(found)


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    return Tables(tmp_path_factory.mktemp("simulated") / "tables")


@pytest.fixture(scope="module")
def plain(tables, tmp_path_factory):
    return Prepared(tmp_path_factory.mktemp("plain"), tables.events, tables.notes)


@pytest.fixture(scope="module")
def odd(tables, tmp_path_factory):
    """Everything wrong at once, each with another patient."""
    events = tables.events.copy()
    in_degrees = tables.of(FAHRENHEIT, TEMPERATURE)
    events.loc[in_degrees, "numeric_value"] = events.loc[in_degrees, "numeric_value"] * 9 / 5 + 32
    events.loc[tables.of(IMPOSSIBLE, HEART_RATE)[:3], "numeric_value"] = [-5.0, 0.0, 5000.0]
    events = events.drop(index=[*tables.of(NO_VITALS_NO_NOTES), *tables.of(NO_VITALS)])
    notes = tables.notes[tables.notes["subject_id"] != tables.subjects[NO_VITALS_NO_NOTES]]
    return Prepared(tmp_path_factory.mktemp("odd"), events, notes)


def test_a_stay_without_any_measurement_keeps_its_rows(tables, plain, odd):
    subject = tables.subjects[NO_VITALS_NO_NOTES]
    assert len(odd.rows(subject, "times")) == len(plain.rows(subject, "times")) > 0
    assert plain.rows(subject, "has_vitals").all() and plain.rows(subject, "has_notes").any()
    for field in ("has_vitals", "has_notes", "values", "observed", "notes"):
        assert not odd.rows(subject, field).any(), field
    assert np.isfinite(odd.rows(subject, "statics")).all()


def test_a_stay_with_notes_alone_keeps_them(tables, plain, odd):
    subject = tables.subjects[NO_VITALS]
    assert not odd.rows(subject, "has_vitals").any() and not odd.rows(subject, "values").any()
    assert np.array_equal(odd.rows(subject, "has_notes"), plain.rows(subject, "has_notes"))
    assert odd.rows(subject, "has_notes").any() and odd.rows(subject, "notes").any()


def test_a_note_after_discharge_is_read_by_no_window(tables, plain, tmp_path):
    leave = tables.events[tables.events["code"].str.startswith("ENCOUNTER_END")].set_index("subject_id")["time"]
    late = tables.with_note(leave[tables.stay["subject_id"]] + pd.Timedelta(hours=30))
    during = tables.with_note(tables.stay["admission"] + pd.Timedelta(hours=1))
    unread, read = (Prepared(tmp_path / name, tables.events, notes) for name, notes in (("a", late), ("b", during)))
    assert plain.notes["after_discharge"] == 0 < plain.notes["notes"] - plain.notes["read"]
    assert unread.notes == plain.notes | {"notes": plain.notes["notes"] + 1, "after_discharge": 1}
    assert read.notes == plain.notes | {key: plain.notes[key] + 1 for key in ("notes", "read")}
    for same, other, expected in zip(unread.windows, read.windows, plain.windows, strict=True):
        assert np.array_equal(same.notes, expected.notes) and np.array_equal(same.has_notes, expected.has_notes)
        rows = expected.subject_ids == tables.subjects[LATE_NOTE]
        assert not rows.any() or (other.notes[rows] != expected.notes[rows]).any(), "the note would change its stay"


def test_temperatures_in_fahrenheit_are_converted_and_counted(tables, plain, odd):
    subject, num_measured = tables.subjects[FAHRENHEIT], len(tables.of(FAHRENHEIT, TEMPERATURE))
    assert plain.counts["temperature"]["converted"] == 0 < num_measured
    assert 0 < odd.counts["temperature"]["converted"] <= num_measured, "those by the last index time"
    column = VITALS.index("temperature")
    for field in ("observed", "hours_since"):
        assert np.array_equal(odd.rows(subject, field)[..., column], plain.rows(subject, field)[..., column]), field
    pair = (each.rows(subject, "values")[..., column] for each in (odd, plain))
    np.testing.assert_allclose(*pair, atol=0.2)  # standard deviations, of train rows that lack two patients


def test_impossible_values_are_cut_and_counted(tables, plain, odd):
    subject = tables.subjects[IMPOSSIBLE]
    assert plain.counts["heart_rate"]["cut"] == 0 and odd.counts["heart_rate"]["cut"] == 3
    assert odd.rows(subject, "observed").sum() < plain.rows(subject, "observed").sum()
    assert np.abs(odd.rows(subject, "values")).max() <= 10


def test_an_outcome_of_an_unknown_stay_is_dropped_with_a_warning(tables, tmp_path):
    labels = pd.read_parquet(tables.labels)
    labels = pd.concat([labels, labels.iloc[:1].assign(subject_id=888_888)])
    (tmp_path / "own").mkdir()
    labels.to_parquet(tmp_path / "own" / "0.parquet", index=False)
    own = {"labels": str(tmp_path / "own")}
    with pytest.warns(UserWarning, match=r"labels 1 have a subject that is not in the store"):
        found = Prepared(tmp_path / "run", tables.events, tables.notes, own=own)
    assert found.flow["unknown_subject"] == 1 and found.flow["kept"] == len(labels) - 1


def test_all_windows_are_finite(odd):
    for windows in odd.windows:
        for field in fields(windows):
            assert np.isfinite(getattr(windows, field.name)).all(), field.name
