"""MIMIC-IV reader: what each table becomes, when it is known, and what is refused."""

import gzip
from collections import Counter

import pytest

from ehrjax.data.readers.mimic4 import read_mimic4
from tests.data.readers.helpers import collect, write_table

PATIENTS = """
    subject_id,gender,anchor_age,anchor_year,anchor_year_group,dod
    1,F,52,2180,2011 - 2013,2181-03-09
    2,m,91,2150,2011 - 2013,
    3,M,30,2150,2011 - 2013,2151-05-05
"""
ADMISSIONS = """
    subject_id,hadm_id,admittime,dischtime,deathtime,admission_type,admission_location,discharge_location,insurance,\
marital_status,race,edregtime,edouttime
    1,20,2180-05-06 22:23:00,2180-05-07 17:15:00,,URGENT,CLINIC,HOME,Other,,UNKNOWN,2180-05-06 19:17:00,2180-05-06 23:30
    1,21,2180-08-05 23:44:00,2180-08-07 17:50:00,,EU OBSERVATION,,,Medicaid,WIDOWED,WHITE - RUSSIAN,,
    1,22,2180-09-01 08:00:00,,,ELECTIVE,,,,,BLACK/AFRICAN AMERICAN,,
    3,30,2151-05-01 08:00:00,2151-05-04 10:00:00,2151-05-04 09:30:00,EW EMER.,,DIED,,,HISPANIC/LATINO - CUBAN,,
"""


def write(tmp_path, **tables):
    """A data set of patients, admissions and the given tables (hosp__labevents="...")."""
    tables = {"hosp__patients": PATIENTS, "hosp__admissions": ADMISSIONS} | tables
    for name, text in tables.items():
        write_table(tmp_path / "mimic" / f"{name.replace('__', '/')}.csv.gz", text)
    return tmp_path / "mimic"


def read(tmp_path, **tables):
    """Events of the given tables alone, as (subject, time, code, value, visit), and the quarantine."""
    events, lost, names = collect(read_mimic4(write(tmp_path, **tables)))
    files = {f"{name.replace('__', '/')}.csv.gz" for name in tables}
    return [e[1:] for e in events if e[0] in files], [q for q in lost if q[0] in files], names


def test_missing_folder_and_tables(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder"):
        next(read_mimic4(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match=r"no hosp/patients\.csv"):
        next(read_mimic4(tmp_path))
    write_table(tmp_path / "hosp" / "patients.csv", PATIENTS)
    with pytest.raises(FileNotFoundError, match=r"no hosp/admissions\.csv"):
        next(read_mimic4(tmp_path))


def test_no_patient_and_missing_columns(tmp_path):
    with pytest.raises(ValueError, match=r"hosp/patients\.csv\.gz: no patient"):
        list(read_mimic4(write(tmp_path, hosp__patients="subject_id,gender,anchor_age,anchor_year,dod")))
    with pytest.raises(ValueError, match=r"hosp/patients\.csv\.gz: no column anchor_year"):
        list(read_mimic4(write(tmp_path, hosp__patients="subject_id,gender,anchor_age,dod\n1,F,2,")))
    with pytest.raises(ValueError, match=r"hosp/labevents\.csv\.gz: no column itemid"):
        list(read_mimic4(write(tmp_path, hosp__labevents="subject_id,hadm_id,charttime\n1,20,2180-05-07 01:00:00")))


def test_damaged_archive_is_named(tmp_path):
    folder = write(tmp_path)
    rows = "\n".join(f"{1 + i % 3},,{i},2180-05-07 01:00:00,{i * 7919 % 1000}" for i in range(20_000))
    whole = gzip.compress(f"subject_id,hadm_id,itemid,charttime,valuenum\n{rows}".encode())
    (folder / "hosp" / "labevents.csv.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"mimic/hosp/labevents\.csv\.gz"):
        list(read_mimic4(folder))


def test_only_patients_and_admissions_are_needed(tmp_path):
    events, lost, _ = collect(read_mimic4(write(tmp_path)))
    assert not lost
    assert [e[1:4] for e in events if e[0] == "hosp/patients.csv.gz"] == [
        (1, "2128-01-01T00:00:00", "MEDS_BIRTH"),
        (2, "2059-01-01T00:00:00", "MEDS_BIRTH"),
        (3, "2120-01-01T00:00:00", "MEDS_BIRTH"),
        (1, None, "GENDER//F"),
        (2, None, "GENDER//M"),
        (3, None, "GENDER//M"),
        (1, "2181-03-09T23:59:59", "MEDS_DEATH"),
        (3, "2151-05-04T09:30:00", "MEDS_DEATH"),
    ]
    first = {e[3]: e[2] for e in events if e[5] == 20}
    assert first == {
        "ENCOUNTER//inpatient": "2180-05-06T22:23:00",
        "ADMISSION_TYPE//URGENT": "2180-05-06T22:23:00",
        "ADMISSION_LOCATION//CLINIC": "2180-05-06T22:23:00",
        "INSURANCE//Other": "2180-05-06T22:23:00",
        "ED_REGISTRATION": "2180-05-06T19:17:00",
        "ED_OUT": "2180-05-06T23:30:00",
        "ENCOUNTER_END//inpatient": "2180-05-07T17:15:00",
        "DISCHARGE//HOME": "2180-05-07T17:15:00",
    }
    assert {e[3] for e in events if e[5] == 21} >= {"ENCOUNTER//observation", "ENCOUNTER_END//observation"}
    assert {e[3] for e in events if e[5] == 22} == {"ENCOUNTER//inpatient", "ADMISSION_TYPE//ELECTIVE"}
    assert [(e[1], e[3]) for e in events if e[2] is None and e[0] != "hosp/patients.csv.gz"] == [
        (1, "RACE//white"),  # the first admission that states it
        (3, "ETHNICITY//hispanic"),
    ]


def test_rows_that_cannot_be_used(tmp_path):
    patients = PATIENTS + "1,F,52,2180,,\n,F,52,2180,,\n"
    admissions = """
        subject_id,hadm_id,admittime,dischtime,admission_type
        1,20,2180-05-06 22:23:00,2180-05-05 17:15:00,URGENT
        9,21,2180-05-06 22:23:00,2180-05-07 17:15:00,URGENT
        ,22,2180-05-06 22:23:00,2180-05-07 17:15:00,URGENT
        1,23,06/05/2180,2180-05-07 17:15:00,URGENT
        1,24,,2180-05-07 17:15:00,URGENT
        1,,2180-05-06 22:23:00,2180-05-07 17:15:00,URGENT
        1,25,2180-05-06 22:23:00,2180-05-07 17:15:00
        1,26,2180-05-06 22:23:00,2180-05-07 17:15:00,URGENT
    """
    events, lost, _ = collect(read_mimic4(write(tmp_path, hosp__patients=patients, hosp__admissions=admissions)))
    assert sorted(lost) == [
        ("hosp/admissions.csv.gz", "ends_before_start", 1),
        ("hosp/admissions.csv.gz", "malformed_row", 7),
        ("hosp/admissions.csv.gz", "missing_time", 5),
        ("hosp/admissions.csv.gz", "no_encounter", 6),
        ("hosp/admissions.csv.gz", "no_patient", 3),
        ("hosp/admissions.csv.gz", "unknown_patient", 2),
        ("hosp/admissions.csv.gz", "unparseable_time", 4),
        ("hosp/patients.csv.gz", "duplicate_patient", 4),
        ("hosp/patients.csv.gz", "no_patient", 5),
    ]
    assert {e[5] for e in events if e[0] == "hosp/admissions.csv.gz"} == {26}


def test_a_stay_that_ends_in_death_does_not_end_before_it(tmp_path):
    admissions = """
        subject_id,hadm_id,admittime,dischtime,deathtime,admission_type,discharge_location
        1,20,2181-03-01 08:00:00,2181-03-04 10:00:00,2181-03-04 12:00:00,URGENT,DIED
        2,21,2150-03-01 08:00:00,2150-03-04 10:00:00,,URGENT,DIED
        3,22,2150-03-01 08:00:00,2150-03-04 10:00:00,2150-03-04 09:00:00,URGENT,
    """
    events, _, _ = collect(read_mimic4(write(tmp_path, hosp__admissions=admissions)))
    times = {code: [e[2][5:] for e in events if e[3] == code] for code in ("MEDS_DEATH", "ENCOUNTER_END//inpatient")}
    assert times == {
        "MEDS_DEATH": ["03-04T12:00:00", "03-04T10:00:00", "03-04T09:00:00"],
        "ENCOUNTER_END//inpatient": ["03-04T12:00:00", "03-04T10:00:00", "03-04T10:00:00"],
    }
    assert [e[2][5:] for e in events if e[3] == "DISCHARGE//DIED"] == ["03-04T12:00:00", "03-04T10:00:00"]


def test_diagnoses_are_known_at_discharge(tmp_path):
    rows = """
        subject_id,hadm_id,seq_num,icd_code,icd_version
        1,20,1,V70 7 ,9
        1,20,2,E119,10
        1,22,1,E119,10
        1,77,1,E119,10
        1,20,3,,10
    """
    names = "icd_code,icd_version,long_title\nE119,10,Type 2 diabetes\nE11,10,never used\n"
    events, lost, described = read(tmp_path, hosp__diagnoses_icd=rows, hosp__d_icd_diagnoses=names)
    assert events == [
        (1, "2180-05-07T17:15:00", "DIAGNOSIS//ICD9CM//V707", None, 20),
        (1, "2180-05-07T17:15:00", "DIAGNOSIS//ICD10CM//E119", None, 20),
    ]
    assert sorted(q[1:] for q in lost) == [("missing_code", 5), ("missing_time", 3), ("unknown_encounter", 4)]
    assert described == {"DIAGNOSIS//ICD10CM//E119": "Type 2 diabetes"}


def test_procedures_are_known_by_the_end_of_their_day_or_stay(tmp_path):
    rows = """
        subject_id,hadm_id,seq_num,chartdate,icd_code,icd_version
        1,20,1,2180-05-06,3961,9
        1,20,2,2180-05-07,02HV33Z,10
        1,20,3,2180-05-08,3961,9
        1,,4,2180-05-06,3961,9
        1,20,5,,3961,9
    """
    events, lost, _ = read(tmp_path, hosp__procedures_icd=rows)
    assert [e[1:3] for e in events] == [
        ("2180-05-06T23:59:59", "PROCEDURE//ICD9PROC//3961"),
        ("2180-05-07T17:15:00", "PROCEDURE//ICD10PCS//02HV33Z"),
        ("2180-05-08T23:59:59", "PROCEDURE//ICD9PROC//3961"),
        ("2180-05-06T23:59:59", "PROCEDURE//ICD9PROC//3961"),
    ]
    assert [q[1:] for q in lost] == [("missing_time", 5)]


def test_labs_are_known_when_stored_and_keep_short_answers(tmp_path):
    rows = """
        labevent_id,subject_id,hadm_id,itemid,charttime,storetime,value,valuenum
        1,1,20,50912,2180-05-06 23:00:00,2180-05-07 00:10:00,1.2,1.2
        2,1,20,50912,2180-05-06 23:00:00,,1.3,
        3,1,,51463,2180-05-06 23:00:00,2180-05-06 22:00:00,NEG,
        4,2,,51463,,2180-05-06 22:00:00,___,
        5,2,,51463,2180-05-06 23:00:00,,THIS SPECIMEN WAS DISCARDED AFTER FORTY HOURS,
        6,2,,51463,,,NEG,
    """
    labels = "itemid,label,fluid,category\n50912,Creatinine,Blood,Chemistry\n"
    events, lost, described = read(tmp_path, hosp__labevents=rows, hosp__d_labitems=labels)
    assert events == [
        (1, "2180-05-07T00:10:00", "LAB//MIMIC//50912", 1.2, 20),
        (1, "2180-05-06T23:00:00", "LAB//MIMIC//50912", 1.3, 20),
        (1, "2180-05-06T23:00:00", "LAB//MIMIC//51463//NEG", None, -1),
        (2, "2180-05-06T22:00:00", "LAB//MIMIC//51463", None, -1),
        (2, "2180-05-06T23:00:00", "LAB//MIMIC//51463", None, -1),
    ]
    assert [q[1:] for q in lost] == [("missing_time", 6)]
    assert described == {"LAB//MIMIC//50912": "Creatinine"}


def test_medications(tmp_path):
    orders = "subject_id,hadm_id,starttime,drug,ndc\n1,20,2180-05-07 00:00:00,Fentanyl  Citrate,0\n1,20,,Aspirin,1\n"
    given = """
        subject_id,hadm_id,charttime,medication,event_txt
        1,20,2180-05-07 05:56:00,Aspirin,Not Given
        1,20,2180-05-07 05:57:00,Aspirin,
        1,20,2180-05-07 05:58:00,,Administered
    """
    events, lost, _ = read(tmp_path, hosp__prescriptions=orders, hosp__emar=given)
    assert [e[2] for e in events] == [
        "MEDICATION//MIMIC//Fentanyl Citrate",
        "MEDICATION//EMAR//Aspirin//Not Given",
        "MEDICATION//EMAR//Aspirin",
    ]
    assert [q[1:] for q in lost] == [("missing_time", 2), ("missing_code", 3)]


def test_icu_tables(tmp_path):
    stays = """
        subject_id,hadm_id,stay_id,first_careunit,last_careunit,intime,outtime
        1,20,5,MICU,SICU,2180-05-06 23:00:00,2180-05-07 10:00:00
        1,20,6,MICU,SICU,2180-05-06 23:00:00,2180-05-06 10:00:00
    """
    given = """
        subject_id,hadm_id,starttime,endtime,itemid,amount,rate
        1,20,2180-05-07 01:00:00,2180-05-07 02:00:00,225,100,50
        1,20,2180-05-07 01:00:00,2180-05-07 01:01:00,225,30,
    """
    charted = """
        subject_id,hadm_id,stay_id,charttime,storetime,itemid,value,valuenum
        1,20,5,2180-05-07 01:00:00,2180-05-07 01:20:00,220045,80,80
        1,20,5,2180-05-07 01:00:00,2180-05-07 01:20:00,220048,SR,
        1,20,5,2180-05-07 01:00:00,2180-05-07 01:20:00,999,x,
    """
    items = """
        itemid,label,linksto,category
        220045,Heart Rate,chartevents,Routine Vital Signs
        220048,Rhythm,chartevents,Labs
        225,Cefepime,inputevents,Antibiotics
    """
    outputs = "subject_id,hadm_id,charttime,storetime,itemid,value\n1,20,2180-05-07 01:00:00,,226559,60\n"
    acts = "subject_id,hadm_id,starttime,endtime,itemid,value\n1,20,2180-05-07 01:00:00,,225792,3410\n"
    events, lost, described = read(
        tmp_path,
        icu__icustays=stays,
        icu__inputevents=given,
        icu__chartevents=charted,
        icu__d_items=items,
        icu__outputevents=outputs,
        icu__procedureevents=acts,
    )
    assert [(e[1][11:], e[2], e[3]) for e in events] == [
        ("23:00:00", "ICU_ADMISSION//MICU", None),
        ("10:00:00", "ICU_DISCHARGE//SICU", None),
        ("01:00:00", "INFUSION//MIMIC//225", 50.0),
        ("01:00:00", "INFUSION//MIMIC//225", 30.0),
        ("01:00:00", "OUTPUT//MIMIC//226559", 60.0),
        ("01:00:00", "PROCEDURE//MIMIC//225792", None),
        ("01:20:00", "VITAL//MIMIC//220045", 80.0),
        ("01:20:00", "LAB//MIMIC//220048//SR", None),
        ("01:20:00", "CHART//MIMIC//999//x", None),
    ]
    assert [q[1:] for q in lost] == [("ends_before_start", 2)]
    assert described["VITAL//MIMIC//220045"] == "Heart Rate" and described["INFUSION//MIMIC//225"] == "Cefepime"


def test_other_hospital_tables(tmp_path):
    transfers = """
        subject_id,hadm_id,transfer_id,eventtype,careunit,intime,outtime
        1,20,300,admit,Medicine,2180-05-06 22:23:00,2180-05-07 17:15:00
        1,20,301,discharge,,2180-05-07 17:15:00,
        2,,302,ED,Emergency Department,2150-01-01 10:00:00,2150-01-01 12:00:00
    """
    measures = """
        subject_id,chartdate,seq_num,result_name,result_value
        2,2150-01-02,1,Blood Pressure,120/80
        2,2150-01-02,1,Weight (Lbs),127.5
        2,2150-01-02,1,Weight (Lbs),unknown
    """
    cultures = """
        subject_id,hadm_id,chartdate,charttime,storetime,test_name,org_name,ab_name,interpretation
        1,20,2180-05-06,,,URINE CULTURE,E. COLI,AMPICILLIN,R
        1,20,2180-05-06,2180-05-06 23:00:00,2180-05-09 08:00:00,URINE CULTURE,,,
    """
    drg = "subject_id,hadm_id,drg_type,drg_code,description\n1,20,HCFA,864,FEVER\n"
    tables = {"hosp__transfers": transfers, "hosp__omr": measures, "hosp__microbiologyevents": cultures}
    events, lost, described = read(tmp_path, **tables, hosp__drgcodes=drg)
    assert not lost
    assert sorted((e[1:] for e in events if e[0] == 2), key=str) == [
        ("2150-01-01T10:00:00", "ENCOUNTER//emergency", None, 302),
        ("2150-01-01T10:00:00", "TRANSFER//ED//Emergency Department", None, 302),
        ("2150-01-01T12:00:00", "ENCOUNTER_END//emergency", None, 302),
        ("2150-01-02T23:59:59", "VITAL//OMR//Blood Pressure//diastolic", 80.0, -1),
        ("2150-01-02T23:59:59", "VITAL//OMR//Blood Pressure//systolic", 120.0, -1),
        ("2150-01-02T23:59:59", "VITAL//OMR//Weight (Lbs)", 127.5, -1),
        ("2150-01-02T23:59:59", "VITAL//OMR//Weight (Lbs)", None, -1),
    ]
    assert [e[1:3] for e in events if e[0] == 1] == [
        ("2180-05-06T22:23:00", "TRANSFER//admit//Medicine"),
        ("2180-05-07T17:15:00", "TRANSFER//discharge"),
        ("2180-05-07T17:15:00", "DRG//HCFA//864"),
        ("2180-05-06T23:59:59", "LAB//MICRO//URINE CULTURE//E. COLI//AMPICILLIN//R"),
        ("2180-05-09T08:00:00", "LAB//MICRO//URINE CULTURE"),
    ]
    assert described == {"DRG//HCFA//864": "FEVER"}


def test_demo(shared_data):
    events, lost, names = collect(read_mimic4(shared_data / "mimic4_demo"))
    births = [e for e in events if e[3] == "MEDS_BIRTH"]
    stays = Counter(e[3] for e in events if e[3].startswith("ENCOUNTER//"))
    assert len(births) == len({e[1] for e in events}) == 100
    assert stays == {"ENCOUNTER//inpatient": 233, "ENCOUNTER//observation": 42, "ENCOUNTER//emergency": 54}
    assert Counter((file, reason) for file, reason, _ in lost) == {("hosp/emar.csv.gz", "missing_code"): 1576}
    assert sum(e[3].startswith("DIAGNOSIS//ICD") for e in events) == 4506
    assert sum(e[3].startswith("LAB//MIMIC//") for e in events) == 107_727
    assert names["DIAGNOSIS//ICD9CM//4139"] == "Other and unspecified angina pectoris"
