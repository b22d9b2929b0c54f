import gzip
from collections import Counter

import numpy as np
import pytest

from ehrjax.data.events import STATIC_TIME
from ehrjax.data.readers.columns import hash_ids
from ehrjax.data.readers.synthea import read_synthea

PATIENTS = (
    "Id,BIRTHDATE,DEATHDATE,RACE,ETHNICITY,GENDER\n"
    "p1,1950-05-01,2021-02-03,white,nonhispanic,F\n"
    "p2,1980-01-01,,Black,hispanic,male\n"
)
ENCOUNTERS = (
    "Id,START,STOP,PATIENT,ENCOUNTERCLASS,CODE,DESCRIPTION\n"
    "e1,2020-01-01T10:00:00Z,2020-01-01T10:15:00Z,p1,Ambulatory,185345009,Encounter for symptom\n"
    "e2,2020-02-01T10:00:00Z,2020-02-05T10:00:00Z,p2,inpatient,183452005.0,Admission\n"
)
FOLDERS = {
    "akaleem_116": 116,
    "azurede_51": 51,
    "invitae_10": 10,
    "jijones_11": 11,
    "ppmicv_59": 59,
    "swall_109": 109,
    "ukipop_922": 922,
    "unmc_111": 111,
    "victor_105": 105,
    "whiterabbit_157": 157,
}


def write(folder, **tables: str | bytes):
    folder.mkdir(exist_ok=True)
    for name, text in ({"patients": PATIENTS} | tables).items():
        (folder / f"{name}.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder


def rows_of(folder, table: str) -> list[tuple]:
    """(row, code, value, iso time or None, visit) of one table's events, in order of row and code."""
    found = []
    for batch in read_synthea(folder):
        if batch.file.split("/")[-1].startswith(table):
            times = [None if t == STATIC_TIME else str(np.datetime64(int(t), "s")) for t in batch.time // 10**6]
            times = [None if t == STATIC_TIME else time for t, time in zip(batch.time, times, strict=True)]
            codes = [batch.codes[i] for i in batch.code]
            values = [None if np.isnan(v) else float(v) for v in batch.numeric_value]
            found += zip(batch.row.tolist(), codes, values, times, batch.visit_id.tolist(), strict=True)
    return sorted(found, key=lambda event: event[:2])


def codes_of(folder, table: str) -> list[str]:
    return [event[1] for event in rows_of(folder, table)]


def ledger_of(folder, table: str) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for batch in read_synthea(folder):
        if batch.file.split("/")[-1].startswith(table):
            for reason, rows in batch.quarantined.items():
                found.setdefault(reason, []).extend(rows.tolist())
    return found


def test_patients_alone_and_without_any_row(tmp_path):
    folder = write(tmp_path / "set", patients="Id,BIRTHDATE\n")
    assert list(read_synthea(folder)) == []
    folder = write(tmp_path / "set", conditions="START,PATIENT,ENCOUNTER,CODE\n")
    (batch,) = read_synthea(folder)
    assert (batch.file, batch.rows_read) == ("set/patients.csv", 2)


def test_patients_become_birth_death_and_static_codes(tmp_path):
    folder = write(tmp_path / "set")
    assert rows_of(folder, "patients") == [
        (1, "ETHNICITY//nonhispanic", None, None, -1),
        (1, "GENDER//F", None, None, -1),
        (1, "MEDS_BIRTH", None, "1950-05-01T00:00:00", -1),
        (1, "MEDS_DEATH", None, "2021-02-03T00:00:00", -1),
        (1, "RACE//white", None, None, -1),
        (2, "ETHNICITY//hispanic", None, None, -1),
        (2, "GENDER//M", None, None, -1),
        (2, "MEDS_BIRTH", None, "1980-01-01T00:00:00", -1),
        (2, "RACE//black", None, None, -1),
    ]


def test_encounters_start_end_and_have_a_class(tmp_path):
    folder = write(tmp_path / "set", encounters=ENCOUNTERS)
    e1, e2 = hash_ids(["e1", "e2"]).tolist()
    assert rows_of(folder, "encounters") == [
        (1, "ENCOUNTER//ambulatory", None, "2020-01-01T10:00:00", e1),
        (1, "ENCOUNTER_END//ambulatory", None, "2020-01-01T10:15:00", e1),
        (1, "ENCOUNTER_TYPE//SNOMED//185345009", None, "2020-01-01T10:00:00", e1),
        (2, "ENCOUNTER//inpatient", None, "2020-02-01T10:00:00", e2),
        (2, "ENCOUNTER_END//inpatient", None, "2020-02-05T10:00:00", e2),
        (2, "ENCOUNTER_TYPE//SNOMED//183452005", None, "2020-02-01T10:00:00", e2),
    ]


def test_encounters_of_2017_get_their_class_from_their_code(tmp_path):
    encounters = "ID,DATE,PATIENT,CODE,DESCRIPTION\ne1,2008-04-15,p1,50849002,Emergency\ne2,2008-04-16,p1,1,What\n"
    folder = write(tmp_path / "set", encounters=encounters)
    assert codes_of(folder, "encounters") == [
        "ENCOUNTER//emergency",
        "ENCOUNTER_TYPE//SNOMED//50849002",
        "ENCOUNTER//unknown",
        "ENCOUNTER_TYPE//SNOMED//1",
    ]


@pytest.mark.parametrize(
    ("day", "encounter", "expected"),
    [
        ("2020-01-01", "e1", "2020-01-01T10:00:00"),  # the encounter starts that day
        ("2020-01-02", "e1", "2020-01-01T10:15:00"),  # a local date ahead of UTC; the encounter was over by midnight
        ("2020-01-03", "e1", "2020-01-03T00:00:00"),
        ("2020-01-31", "e2", "2020-02-01T10:00:00"),  # a local date behind UTC
        ("2020-02-03", "e2", "2020-02-03T00:00:00"),  # during a long stay
        ("2019-05-01", "e1", "2019-05-01T00:00:00"),
        ("2020-01-01", "", "2020-01-01T00:00:00"),
        ("2020-01-01", "nowhere", "2020-01-01T00:00:00"),
        ("2020-01-01T09:00:00Z", "e1", "2020-01-01T09:00:00"),
    ],
)
def test_a_date_is_placed_within_its_encounter(tmp_path, day, encounter, expected):
    conditions = f"START,STOP,PATIENT,ENCOUNTER,CODE,DESCRIPTION\n{day},,p1,{encounter},44054006,Diabetes\n"
    folder = write(tmp_path / "set", encounters=ENCOUNTERS, conditions=conditions)
    visit = hash_ids([encounter]).tolist()[0] if encounter else -1
    assert rows_of(folder, "conditions") == [(1, "DIAGNOSIS//SNOMED//44054006", None, expected, visit)]


def test_a_date_without_encounters_file_is_its_midnight(tmp_path):
    folder = write(tmp_path / "set", careplans="Id,START,PATIENT,ENCOUNTER,CODE\nc,2020-01-01,p1,e1,53950000\n")
    assert rows_of(folder, "careplans")[0][:4] == (1, "CAREPLAN//SNOMED//53950000", None, "2020-01-01T00:00:00")


@pytest.mark.parametrize(
    ("table", "row", "code"),
    [
        ("medications", "START,PATIENT,CODE\n2020-01-01T01:00:00Z,p1, 860975.0", "MEDICATION//RXNORM//860975"),
        ("procedures", "DATE,PATIENT,CODE\n2020-01-01T01:00:00Z,p1,430193006", "PROCEDURE//SNOMED//430193006"),
        ("procedures", "START,PATIENT,CODE\n2020-01-01T01:00:00Z,p1,430193006", "PROCEDURE//SNOMED//430193006"),
        ("immunizations", "DATE,PATIENT,CODE\n2020-01-01T01:00:00Z,p1,08", "IMMUNIZATION//CVX//08"),
        ("allergies", "START,PATIENT,CODE,SYSTEM\n2020-01-01,p1,84489001,SNOMED-CT", "ALLERGY//SNOMED//84489001"),
        ("allergies", "START,PATIENT,CODE,SYSTEM\n2020-01-01,p1,7984,RxNorm", "ALLERGY//RXNORM//7984"),
        ("devices", "Start,Patient,Code\n2020-01-01T01:00:00Z,p1,72506001", "DEVICE//SNOMED//72506001"),
    ],
)
def test_codes_of_each_table(tmp_path, table, row, code):
    assert codes_of(write(tmp_path / "set", **{table: row + "\n"}), table) == [code]


def test_observations(tmp_path):
    rows = [
        ("8302-2", "", "170.5", "VITAL//LOINC//8302-2", 170.5),
        ("4548-4", "laboratory", "1e-5", "LAB//LOINC//4548-4", 1e-5),
        ("9999-1", "vital-signs", "3", "VITAL//LOINC//9999-1", 3.0),
        ("72166-2", "survey", "Never smoker", "LAB//LOINC//72166-2//Never smoker", None),
        ("4548-4", "laboratory", "<5 // low", "LAB//LOINC//4548-4//<5 / low", None),
        ("4548-4", "laboratory", "2020-01-01", "LAB//LOINC//4548-4//2020-01-01", None),
        ("4548-4", "laboratory", "x" * 41, "LAB//LOINC//4548-4", None),
        ("4548-4", "laboratory", "", "LAB//LOINC//4548-4", None),
        ("QALY", "", "1.0", "LAB//SYNTHEA//QALY", 1.0),
        ("22298006", "", "", "LAB//SNOMED//22298006", None),
    ]
    text = "DATE,PATIENT,ENCOUNTER,CATEGORY,CODE,DESCRIPTION,VALUE,UNITS,TYPE\n"
    text += "".join(
        f"2020-01-01T10:00:00Z,p1,e1,{category},{code},name,{value},,\n" for code, category, value, *_ in rows
    )
    found = rows_of(write(tmp_path / "set", observations=text), "observations")
    assert [event[1] for event in found] == [row[3] for row in rows]
    assert [event[2] for event in found] == pytest.approx([row[4] for row in rows])


def test_observations_of_2017_have_neither_category_nor_encounter(tmp_path):
    folder = write(tmp_path / "set", observations="DATE,PATIENT,CODE,VALUE\n2008-04-15,p1,8480-6,120\n")
    assert rows_of(folder, "observations") == [(1, "VITAL//LOINC//8480-6", 120.0, "2008-04-15T00:00:00", -1)]


def test_descriptions_name_each_code_once(tmp_path):
    text = "START,PATIENT,CODE,DESCRIPTION\n2020-01-01,p1,1,\n2020-01-01,p1,1,One\n2020-01-01,p1,1,Other\n"
    batches = list(read_synthea(write(tmp_path / "set", conditions=text, careplans=text)))
    assert [b.descriptions for b in batches[1:]] == [{"DIAGNOSIS//SNOMED//1": "One"}, {"CAREPLAN//SNOMED//1": "One"}]


def test_missing_folder_file_and_empty_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing_here does not exist; give the folder"):
        read_synthea(tmp_path / "nothing_here")
    (tmp_path / "file").touch()
    with pytest.raises(FileNotFoundError, match="file is a file; give the folder"):
        read_synthea(tmp_path / "file")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"empty: no patients\.csv .* found nothing"):
        read_synthea(tmp_path / "empty")
    (tmp_path / "empty" / "encounters.csv").touch()
    with pytest.raises(FileNotFoundError, match=r"found encounters\.csv"):
        read_synthea(tmp_path / "empty")


def test_csv_subfolder_and_label(tmp_path):
    write(tmp_path / "csv")
    assert next(read_synthea(tmp_path, label="mine")).file == "mine/csv/patients.csv"


def test_missing_column(tmp_path):
    folder = write(tmp_path / "set", conditions="START,STOP,ENCOUNTER,CODE\n2020-01-01,,e1,1\n")
    with pytest.raises(ValueError, match=r"set/conditions\.csv: no column PATIENT; found START, STOP, ENCOUNTER, CODE"):
        list(read_synthea(folder))


def test_empty_file(tmp_path):
    with pytest.raises(ValueError, match=r"set/encounters\.csv: is empty"):
        list(read_synthea(write(tmp_path / "set", encounters="")))


@pytest.mark.parametrize("size", [1, 20, 40])
def test_csv_cut_in_a_row(tmp_path, size):
    row = "2020-01-01T10:00:00Z,p1,e1,laboratory,4548-4,name,5,%,numeric\n"
    text = "DATE,PATIENT,ENCOUNTER,CATEGORY,CODE,DESCRIPTION,VALUE,UNITS,TYPE\n" + row + row[:size]
    folder = write(tmp_path / "set", observations=text)
    assert codes_of(folder, "observations") == ["LAB//LOINC//4548-4"]
    assert ledger_of(folder, "observations") == {"malformed_row": [2]}


def test_truncated_gzip(tmp_path):
    folder = write(tmp_path / "set")
    rows = "".join(f"2020-01-01,p1,,{i * 7919 % 10007}\n" for i in range(3000))
    raw = gzip.compress(f"START,PATIENT,ENCOUNTER,CODE\n{rows}".encode())
    (folder / "conditions.csv.gz").write_bytes(raw)
    assert len(codes_of(folder, "conditions")) == 3000
    (folder / "conditions.csv.gz").write_bytes(raw[: len(raw) // 2])
    with pytest.raises(ValueError, match=r"set/conditions\.csv\.gz: cannot be read to its end"):
        list(read_synthea(folder))


def test_wrong_encoding(tmp_path):
    folder = write(tmp_path / "set", patients=PATIENTS.encode("utf-16"))
    assert len(rows_of(folder, "patients")) == 9


def test_non_utf8_bytes_cost_a_row_only_in_needed_columns(tmp_path):
    text = "START,PATIENT,CODE,DESCRIPTION\n2020-01-01,p1,1,Ménière\n2020-01-01,p1,é,two\n2020-01-01,pé,3,x\n"
    folder = write(tmp_path / "set", conditions=text.encode("latin-1"))
    assert codes_of(folder, "conditions") == ["DIAGNOSIS//SNOMED//1"]
    assert ledger_of(folder, "conditions") == {"not_utf8": [2, 3]}


def test_dates_in_another_format(tmp_path):
    text = "START,PATIENT,CODE\n31/12/2019,p1,1\n30/12/2019,p1,1\n"
    with pytest.raises(ValueError, match=r"set/conditions\.csv: no value of column START .*31/12/2019"):
        list(read_synthea(write(tmp_path / "set", conditions=text)))
    folder = write(tmp_path / "set", conditions=text + "2019-12-29,p1,1\n")
    assert ledger_of(folder, "conditions") == {"unparseable_time": [1, 2]}


def test_duplicate_patients_keep_the_first(tmp_path):
    folder = write(tmp_path / "set", patients=PATIENTS + "p1,1999-01-01,,asian,x,M\np3,x,,,,\np3,1999-01-01,,,,\n")
    assert ledger_of(folder, "patients") == {"unparseable_time": [4], "duplicate_patient": [3]}
    births = {row: time for row, code, _, time, _ in rows_of(folder, "patients") if code == "MEDS_BIRTH"}
    assert births == {1: "1950-05-01T00:00:00", 2: "1980-01-01T00:00:00", 5: "1999-01-01T00:00:00"}


def test_encounter_that_ends_before_it_starts(tmp_path):
    rows = "e3,2020-01-02T10:00:00Z,2020-01-01T10:00:00Z,p1,ambulatory,1,x\n"
    rows += "e4,2020-01-02T10:00:00Z,2020-01-02,p1,ambulatory,1,x\n"  # the day it starts, not its midnight
    folder = write(tmp_path / "set", encounters=ENCOUNTERS + rows)
    assert ledger_of(folder, "encounters") == {"ends_before_start": [3]}
    assert rows_of(folder, "encounters")[-2][1:4] == ("ENCOUNTER_END//ambulatory", None, "2020-01-02T10:00:00")


def test_unknown_and_missing_patients_codes_and_times(tmp_path):
    text = "START,PATIENT,CODE\n2020-01-01,nobody,1\n2020-01-01,,1\n2020-01-01,p1,\n,p1,1\n2020-01-01,p1,1\n"
    expected = {"unknown_patient": [1], "no_patient": [2], "missing_code": [3], "missing_time": [4]}
    assert ledger_of(write(tmp_path / "set", conditions=text), "conditions") == expected


@pytest.mark.parametrize("name", FOLDERS)
def test_real_folder(shared_data, name):
    """Every row is behind an event or quarantined, none is both, and the patients are all there."""
    with_events, rows_read, kept, quarantined, patients = set(), Counter(), Counter(), Counter(), set()
    for batch in read_synthea(shared_data / "synthea" / name):
        rejected = [row for rows in batch.quarantined.values() for row in rows.tolist()]
        behind_events = set(batch.row.tolist())
        assert not behind_events & set(rejected)
        rows_read[batch.file] += batch.rows_read
        kept[batch.file] += len(behind_events)
        quarantined[batch.file] += len(rejected)
        is_patients = "/patients" in batch.file
        patients |= set(batch.subject_id.tolist()) if is_patients else set()
        with_events |= set(batch.subject_id[batch.visit_id >= 0].tolist())
        assert np.isin(batch.subject_id, list(patients)).all()
    assert len(patients) == FOLDERS[name]
    assert rows_read == kept + quarantined and quarantined.total() == 0
    for file, count in rows_read.items():
        with gzip.open(shared_data / "synthea" / file, "rt", encoding="utf-8") as lines:
            assert count == sum(1 for line in lines if line.strip()) - 1
    if name == "whiterabbit_157":
        assert len(with_events) == 135


def test_real_times_of_conditions_meet_their_encounters(shared_data):
    """Dates given in local time, in UTC or in a zone ahead: nearly all fall inside the encounter that made them."""
    for name in ("victor_105", "azurede_51", "swall_109"):
        start, end, inside, total = {}, {}, 0, 0
        for batch in read_synthea(shared_data / "synthea" / name):
            names = np.array(batch.codes)[batch.code]
            for prefix, times in (("ENCOUNTER//", start), ("ENCOUNTER_END//", end)):
                of_kind = np.char.startswith(names, prefix)
                times.update(zip(batch.visit_id[of_kind].tolist(), batch.time[of_kind].tolist(), strict=True))
            if "/conditions" in batch.file:
                visits = batch.visit_id.tolist()
                total += len(visits)
                inside += sum(start[v] <= t <= end[v] for v, t in zip(visits, batch.time.tolist(), strict=True))
        assert inside > 0.97 * total
