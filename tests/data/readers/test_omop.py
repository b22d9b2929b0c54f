"""OMOP reader: codes through CONCEPT as far as it goes, days without a time, folders and zips."""

import gzip
import shutil
import warnings
import zipfile
from collections import Counter

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest

from ehrjax.data.readers.omop import read_omop
from tests.data.readers.helpers import collect, write_table

PERSON = """
    person_id,gender_concept_id,year_of_birth,month_of_birth,day_of_birth,birth_datetime,race_concept_id,race_source_value,ethnicity_concept_id
    1,8507,1998,4,9,1998-04-09 06:30:00,8527,white,38003563
    2,8532,1960,4,,,0,Hawaiian,0
    3,0,1950,,,,77,,38003564
"""
CONCEPT = """
    concept_id,concept_name,domain_id,vocabulary_id,concept_class_id,standard_concept,concept_code,valid_start_date,valid_end_date,invalid_reason
    201826,Type 2 diabetes mellitus,Condition,SNOMED,Clinical Finding,S,44054006,1970-01-01,2099-12-31,
    45533022,Type 2 diabetes,Condition,ICD10CM,code,,E11.9,1970-01-01,2099-12-31,
    3004410,Hemoglobin A1c,Measurement,LOINC,Lab Test,S,4548-4,1970-01-01,2099-12-31,
    3027018,Heart rate,Measurement,LOINC,Lab Test,S,8867-4,1970-01-01,2099-12-31,
    1503297,metformin,Drug,RxNorm,Ingredient,S,6809,1970-01-01,2099-12-31,
    40213154,influenza vaccine,Drug,CVX,CVX,S,140,1970-01-01,2099-12-31,
    9191,Positive,Meas Value,SNOMED,Qualifier Value,S,10828004,1970-01-01,2099-12-31,
    77,Some Other Race,Race,Race,Race,S,9,1970-01-01,2099-12-31,
    88,Dental // Visit,Visit,Visit,Visit,S,DV,1970-01-01,2099-12-31,
"""
VISITS = """
    visit_occurrence_id,person_id,visit_concept_id,visit_start_date,visit_start_datetime,visit_end_date,visit_end_datetime
    10,1,9202,2020-01-01,2020-01-01 09:00:00,2020-01-01,2020-01-01 09:30:00
    11,1,9201,2020-02-01,,2020-02-05,
    12,2,262,2020-02-01,2020-02-01 00:00:00,2020-02-01,2020-02-01 00:00:00
"""
CONDITIONS = """
    condition_occurrence_id,person_id,condition_concept_id,condition_start_date,condition_start_datetime,visit_occurrence_id,condition_source_value,condition_source_concept_id
    1,1,201826,2020-01-01,,10,44054006,0
"""
MEASUREMENTS = """
    measurement_id,person_id,measurement_concept_id,measurement_date,measurement_datetime,value_as_number,value_as_concept_id,visit_occurrence_id,measurement_source_value,value_source_value
    1,1,3004410,2020-01-01,2020-01-01 09:10:00,6.5,0,10,4548-4,6.5
"""
TABLES = {"person": PERSON, "concept": CONCEPT, "visit_occurrence": VISITS}


def write(folder, *, suffix=".csv", upper=False, **tables):
    """The tables in `folder`, whatever is None left out."""
    for name, text in (TABLES | tables).items():
        if text is not None:
            write_table(folder / f"{name.upper() if upper else name}{suffix}", text)
    return folder


def read(tmp_path, **tables):
    """Events of the given tables alone, as (subject, time, code, value, visit), the quarantine, and descriptions."""
    events, lost, names = collect(read_omop(write(tmp_path / "cdm", **tables)))
    files = {f"{name}.csv" for name in tables}
    return [e[1:] for e in events if e[0] in files], [q[1:] for q in lost if q[0] in files], names


def test_missing_places_and_tables(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder or zip"):
        next(read_omop(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match=r"no person table .* found nothing"):
        next(read_omop(tmp_path))
    (tmp_path / "cdm.zip").write_bytes(b"PK but not really")
    with pytest.raises(ValueError, match=r"cdm\.zip: not a readable zip"):
        next(read_omop(tmp_path / "cdm.zip"))


def test_no_person_and_missing_column(tmp_path):
    header = "person_id,gender_concept_id,year_of_birth"
    with pytest.raises(ValueError, match="cdm: no person in the person table"):
        list(read_omop(write(tmp_path / "cdm", person=header)))
    with pytest.raises(ValueError, match=r"cdm/measurement\.csv: no column measurement_date"):
        list(read_omop(write(tmp_path / "cdm", measurement="person_id,measurement_concept_id\n1,3004410")))


def test_cut_file_in_a_zip_is_named(tmp_path):
    rows = "\n".join(f"{1 + i % 3},8507,{1900 + i * 7919 % 100}" for i in range(20_000))
    whole = gzip.compress(f"person_id,gender_concept_id,year_of_birth\n{rows}".encode())
    with zipfile.ZipFile(tmp_path / "cdm.zip", "w") as out:
        out.writestr("person.csv.gz", whole[: len(whole) // 2])
        out.writestr("concept.csv", "concept_id,concept_name,vocabulary_id,concept_code\n")
    with pytest.raises(ValueError, match=r"cdm/person\.csv\.gz"):
        list(read_omop(tmp_path / "cdm.zip"))


def test_persons(tmp_path):
    events, lost, _ = read(tmp_path, person=PERSON + "1,8507,1998,,,,,,\n,8507,1998,,,,,,\n")
    assert [e[:3] for e in events] == [
        (1, "1998-04-09T06:30:00", "MEDS_BIRTH"),
        (2, "1960-04-15T00:00:00", "MEDS_BIRTH"),
        (3, "1950-07-01T00:00:00", "MEDS_BIRTH"),
        (1, None, "GENDER//M"),
        (2, None, "GENDER//F"),
        (1, None, "RACE//white"),
        (2, None, "RACE//hawaiian"),
        (3, None, "RACE//some other race"),
        (1, None, "ETHNICITY//hispanic"),
        (3, None, "ETHNICITY//nonhispanic"),
    ]
    assert sorted(lost) == [("duplicate_patient", 4), ("no_patient", 5)]


def test_visits_and_their_classes(tmp_path):
    more = """
        13,1,88,2020-03-01,,,
        14,1,0,2020-03-02,,2020-03-01,
        15,1,424242,2020-03-02,,2020-03-02,
        16,9,9202,2020-03-02,,2020-03-02,
        17,1,0,2020-03-03,,,
    """
    events, lost, _ = read(tmp_path, visit_occurrence=VISITS + more)
    assert [e[1:3] + e[4:] for e in events if not e[2].startswith("ENCOUNTER_END")] == [
        ("2020-01-01T09:00:00", "ENCOUNTER//outpatient", 10),
        ("2020-02-01T00:00:00", "ENCOUNTER//inpatient", 11),
        ("2020-02-01T00:00:00", "ENCOUNTER//inpatient", 12),
        ("2020-03-01T00:00:00", "ENCOUNTER//dental / visit", 13),
        ("2020-03-02T00:00:00", "ENCOUNTER//omop_424242", 15),
        ("2020-03-03T00:00:00", "ENCOUNTER//unknown", 17),
    ]
    assert [(e[1], e[4]) for e in events if e[2].startswith("ENCOUNTER_END")] == [
        ("2020-01-01T09:30:00", 10),
        ("2020-02-05T23:59:59", 11),
        ("2020-02-01T23:59:59", 12),
        ("2020-03-02T23:59:59", 15),
    ]
    assert sorted(lost) == [("ends_before_start", 5), ("unknown_patient", 7)]


def icu_events(events):
    return [(e[0], e[1], e[2], e[4]) for e in events if e[2].startswith("ICU_")]


def test_intensive_care_among_visits(tmp_path):
    header = f"{VISITS.strip().splitlines()[0]},visit_source_concept_id"
    rows = f"""{header}
        20,1,9201,2020-02-01,2020-02-01 08:00:00,2020-02-09,2020-02-09 12:00:00,32037000
        21,1,32037,2020-02-03,2020-02-03 15:20:00,2020-02-05,2020-02-05 09:00:00,0
        22,2,581379.0,2020-02-03,,2020-02-04,,
        23,3,0,2020-02-03,2020-02-03 01:00:00,,,581382
        24,3,32037,2020-02-03,,2020-02-02,,
        25,3,32037,2020-02-06,,2020-02-06,2020-02-06 10:00:00,
    """
    events, lost, _ = read(tmp_path, visit_occurrence=rows)
    assert [e[2] for e in events if e[2].startswith("ENCOUNTER//")] == ["ENCOUNTER//inpatient"] * 5
    assert icu_events(events) == [
        (1, "2020-02-03T15:20:00", "ICU_ADMISSION", 21),
        (2, "2020-02-03T23:59:59", "ICU_ADMISSION", 22),
        (3, "2020-02-03T01:00:00", "ICU_ADMISSION", 23),
        (3, "2020-02-06T10:00:00", "ICU_ADMISSION", 25),
        (1, "2020-02-05T09:00:00", "ICU_DISCHARGE", 21),
        (2, "2020-02-04T23:59:59", "ICU_DISCHARGE", 22),
        (3, "2020-02-06T10:00:00", "ICU_DISCHARGE", 25),
    ]
    assert lost == [("ends_before_start", 5)]


def test_intensive_care_among_details_of_visits(tmp_path):
    rows = """
        visit_detail_id,person_id,visit_detail_concept_id,visit_detail_start_date,visit_detail_start_datetime,visit_detail_end_date,visit_detail_end_datetime,visit_occurrence_id
        1,1,9201,2020-02-01,,2020-02-05,,11
        2,1,32037,2020-02-02,2020-02-02 03:00:00,2020-02-03,2020-02-03 04:30:00,11
        3,2,581379,2020-02-01,,,,
        4,9,32037,2020-02-02,,,,12
        5,1,32037,,,,,11
        6,1,32037,2020-02-03,,2020-02-02,,11
        7,1,0,soon,,,,11
        8,2,581382,2020-02-01,2020-02-01 07:00:00,,,12
    """
    events, lost, _ = read(tmp_path, visit_detail=rows)
    assert len(events) == 4 and icu_events(events) == [
        (1, "2020-02-02T03:00:00", "ICU_ADMISSION", 11),
        (2, "2020-02-01T23:59:59", "ICU_ADMISSION", -1),
        (2, "2020-02-01T07:00:00", "ICU_ADMISSION", 12),
        (1, "2020-02-03T04:30:00", "ICU_DISCHARGE", 11),
    ]
    assert sorted(lost) == [
        ("ends_before_start", 6),
        ("missing_time", 5),
        ("not_intensive_care", 1),
        ("not_intensive_care", 7),
        ("unknown_patient", 4),
    ]


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_details_of_visits_without_any_row(tmp_path, suffix):
    folder, header = write(tmp_path / "cdm"), "person_id,visit_detail_concept_id,visit_detail_start_date\n"
    write_table(folder / "visit_detail.csv", header)
    if suffix == ".parquet":
        table = pa.csv.read_csv(folder / "visit_detail.csv")
        pa.parquet.write_table(table, folder / "visit_detail.parquet")
        (folder / "visit_detail.csv").unlink()
    assert not [e for e in collect(read_omop(folder))[0] if e[0].startswith("visit_detail")]


def test_days_without_a_time(tmp_path):
    rows = """
        condition_occurrence_id,person_id,condition_concept_id,condition_start_date,condition_start_datetime,visit_occurrence_id
        1,1,201826,2020-01-01,,10
        2,1,201826,2020-02-03,2020-02-03 00:00:00,11
        3,1,201826,2020-02-03,2020-02-03 00:00:01,11
        4,1,201826,2020-06-03,,
        5,1,201826,2020-01-02,,10
        6,1,201826,03.06.2020,,
        7,1,201826,,,
    """
    events, lost, _ = read(tmp_path, condition_occurrence=rows)
    assert [e[1] for e in events] == [
        "2020-01-01T09:30:00",  # with the visit of that day
        "2020-02-03T23:59:59",
        "2020-02-03T00:00:01",
        "2020-06-03T23:59:59",
        "2020-01-02T23:59:59",  # the visit was over
    ]
    assert sorted(lost) == [("missing_time", 7), ("unparseable_time", 6)]


def test_codes_by_what_is_known(tmp_path):
    rows = """
        condition_occurrence_id,person_id,condition_concept_id,condition_start_date,condition_source_value,condition_source_concept_id
        1,1,201826,2020-01-01,E11.9,45533022
        2,1,0,2020-01-01,E11.9,45533022
        3,1,999,2020-01-01,E11.9,45533022.0
        4,1,999,2020-01-01,E11.9,0
        5,1,0,2020-01-01,E11.9,
        6,1,0,2020-01-01,,0
    """
    events, lost, names = read(tmp_path, condition_occurrence=rows)
    assert [e[2] for e in events] == [
        "DIAGNOSIS//SNOMED//44054006",
        "DIAGNOSIS//ICD10CM//E119",
        "DIAGNOSIS//ICD10CM//E119",
        "DIAGNOSIS//OMOP//999",
        "DIAGNOSIS//SOURCE//E11.9",
    ]
    assert lost == [("missing_code", 6)]
    assert names == {
        "DIAGNOSIS//SNOMED//44054006": "Type 2 diabetes mellitus",
        "DIAGNOSIS//ICD10CM//E119": "Type 2 diabetes",
    }


def test_values_and_answers(tmp_path):
    rows = """
        measurement_id,person_id,measurement_concept_id,measurement_date,value_as_number,value_as_concept_id,measurement_source_value,value_source_value
        1,1,3004410,2020-01-01,6.5,9191,x,7
        2,1,3004410,2020-01-01,,9191,x,
        3,1,3004410,2020-01-01,,0,x,Negative
        4,1,3004410,2020-01-01,,12345,x,
        5,1,3004410,2020-01-01,,,x,5.5
        6,1,3027018,2020-01-01,80,,x,80
        7,1,0,2020-01-01,1e-5,,Blood  sugar // fasting,
    """
    events, lost, names = read(tmp_path, measurement=rows)
    assert not lost
    assert [e[2:4] for e in events] == [
        ("LAB//LOINC//4548-4", 6.5),
        ("LAB//LOINC//4548-4//10828004", None),
        ("LAB//LOINC//4548-4//Negative", None),
        ("LAB//LOINC//4548-4//12345", None),
        ("LAB//LOINC//4548-4", 5.5),
        ("VITAL//LOINC//8867-4", 80.0),
        ("LAB//SOURCE//Blood sugar / fasting", 0.0),
    ]
    assert names["LAB//LOINC//4548-4//10828004"] == "Hemoglobin A1c: Positive"


def test_other_tables(tmp_path):
    drugs = """
        drug_exposure_id,person_id,drug_concept_id,drug_exposure_start_date
        1,1,1503297,2020-01-01
        2,1,40213154,2020-01-01
        3,99,1503297,2020-01-01
    """
    observations = """
        observation_id,person_id,observation_concept_id,observation_date,value_as_number,value_as_string
        1,1,3004410,2020-01-01,,Never smoker
        2,1,201826,2020-01-01,,
    """
    devices = "person_id,device_concept_id,device_exposure_start_date\n1,201826,2020-01-01\n"
    acts = "person_id,procedure_concept_id,procedure_date\n1,201826,2020-01-01\n"
    deaths = "person_id,death_date,death_datetime\n1,2021-01-01,\n2,2021-01-01,2021-01-01 05:00:00\n3,,\n"
    events, lost, _ = read(
        tmp_path,
        drug_exposure=drugs,
        observation=observations,
        device_exposure=devices,
        procedure_occurrence=acts,
        death=deaths,
    )
    assert [e[2] for e in events] == [
        "MEDICATION//RXNORM//6809",
        "IMMUNIZATION//CVX//140",
        "PROCEDURE//SNOMED//44054006",
        "DEVICE//SNOMED//44054006",
        "LAB//LOINC//4548-4//Never smoker",
        "OBSERVATION//SNOMED//44054006",
        "MEDS_DEATH",
        "MEDS_DEATH",
    ]
    assert [e[1] for e in events[-2:]] == ["2021-01-01T23:59:59", "2021-01-01T05:00:00"]
    assert lost == [("unknown_patient", 3), ("missing_time", 3)]


def test_without_concepts_codes_are_concept_ids(tmp_path):
    folder = write(tmp_path / "cdm", concept=None, condition_occurrence=CONDITIONS)
    with pytest.warns(UserWarning, match="cdm: no concept table"):
        events, _, names = collect(read_omop(folder))
    assert [e[3] for e in events if e[3].startswith("DIAGNOSIS")] == ["DIAGNOSIS//OMOP//201826"]
    assert not names


@pytest.mark.parametrize(
    "form", ["upper", "tabs", "gz", "parquet", "parts", "zip", "zip of gz", "zip of parquet", "nested"]
)
def test_forms_of_the_same_data(tmp_path, form):
    tables = {"condition_occurrence": CONDITIONS, "measurement": MEASUREMENTS}
    expected = collect(read_omop(write(tmp_path / "plain", **tables)))
    expected = [e[1:] for e in expected[0]], expected[1], expected[2]
    path = tmp_path / form / "cdm"
    suffix = ".csv.gz" if "gz" in form else ".csv"
    write(path, suffix=suffix, upper="gz" not in form and form != "parts", **tables)
    if form == "tabs":
        for file in path.iterdir():
            file.write_text(file.read_text().replace(",", "\t"))
    if "parquet" in form or form == "parts":
        for file in list(path.iterdir()):
            table = pa.csv.read_csv(file)
            target = path / file.stem / "part-0.parquet" if form == "parts" else file.with_suffix(".parquet")
            target.parent.mkdir(exist_ok=True)
            pa.parquet.write_table(table, target)
            file.unlink()
    if "zip" in form or form == "nested":
        with zipfile.ZipFile(tmp_path / form / "cdm.zip", "w", zipfile.ZIP_DEFLATED) as out:
            for file in path.iterdir():
                out.write(file, f"export/{file.name}" if form == "nested" else file.name)
            out.writestr("__MACOSX/._PERSON.csv", b"\x00junk")
            out.writestr("__MACOSX/PERSON.csv", b"\x00junk")
        shutil.rmtree(path)
        path = tmp_path / form / "cdm.zip"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = collect(read_omop(path))
    assert [e[1:] for e in found[0]] == expected[0]
    assert found[2] == expected[2]
    if form == "nested":  # the folder that holds the zip will do
        assert collect(read_omop(path.parent))[0] == found[0]


def test_large_concept_ids_and_many_vocabularies(tmp_path):
    rows = "\n".join(f"{2_000_000_000 + i},Name {i},V{i % 300},C{i}" for i in range(1000, 0, -1))
    concept = f"concept_id,concept_name,vocabulary_id,concept_code\n{rows}"
    drugs = "\n".join(f"1,{2_000_000_000 + i},2020-01-01" for i in (1, 999, 299, 300))
    table = f"person_id,drug_concept_id,drug_exposure_start_date\n{drugs}"
    events, _, names = read(tmp_path, concept=concept, drug_exposure=table)
    assert [e[2] for e in events] == [
        "MEDICATION//V1//C1",
        "MEDICATION//V99//C999",
        "MEDICATION//V299//C299",
        "MEDICATION//V0//C300",
    ]
    assert names["MEDICATION//V99//C999"] == "Name 999"


def test_synthea_zip(shared_data):
    events, lost, names = collect(read_omop(shared_data / "omop" / "Synthea27Nj_5.4.zip"))
    assert Counter(reason for _, reason, _ in lost) == {"not_intensive_care": 1791}  # its visit_detail repeats visits
    assert len({e[1] for e in events}) == Counter(e[3] for e in events)["MEDS_BIRTH"] == 28
    classes = Counter(e[3].split("//")[1] for e in events if e[3].startswith("ENCOUNTER//"))
    assert classes == {"outpatient": 1722, "emergency": 56, "inpatient": 13}
    kinds = Counter("//".join(e[3].split("//")[:2]) for e in events)
    assert not any(e[3].startswith("ICU_") for e in events)  # none of its visits is of these concepts
    assert kinds["DIAGNOSIS//SNOMED"] == 470 and kinds["MEDICATION//RXNORM"] == 883
    assert kinds["VITAL//LOINC"] + kinds["LAB//LOINC"] == 9155 + 7649
    assert not any("//OMOP//" in e[3] or "//SOURCE//" in e[3] for e in events)
    assert names["VITAL//LOINC//8867-4"] == "Heart rate"
