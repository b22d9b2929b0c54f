"""Variables: which codes measure them, in which unit, and a user's own mapping."""

import json

import numpy as np
import pytest

from ehrjax.data.readers import physionet2012
from ehrjax.data.variables import ICU_VARIABLES, VITALS, check_values, load_variables, map_codes


def names_of(codes, names=ICU_VARIABLES, path=None):
    """The variable of each code, None where none."""
    variables = load_variables(names, path)
    return [variables[k].name if k >= 0 else None for k in map_codes(variables, codes).variable]


def test_no_codes_and_unknown_codes():
    assert names_of([]) == []
    codes = [
        "",
        "//",
        "HR",
        "LAB//LOINC//8867-40",
        "LAB//LOINC//883-9//8867-4",
        "DIAGNOSIS//ICD9CM//220045",
        "MEDS_BIRTH",
    ]
    assert names_of(codes) == [None] * len(codes)


def test_bad_names():
    with pytest.raises(ValueError, match="did you mean 'heart_rate'"):
        load_variables(["hart_rate"])
    for names in ([], "heart_rate", ["ph", "ph"]):
        with pytest.raises(ValueError, match="list of distinct names"):
            load_variables(names)


def test_every_physionet_series_is_one_of_the_37_variables():
    assert len(ICU_VARIABLES) == 37
    series = [f"VITAL//PHYSIONET2012//{n}" for n in physionet2012.VITALS if n != "Height"]
    series += [f"LAB//PHYSIONET2012//{name}" for name in physionet2012.LABS]
    assert sorted(names_of(series)) == sorted(ICU_VARIABLES)
    assert names_of(["VITAL//PHYSIONET2012//Height"], ["height"]) == ["height"]


@pytest.mark.parametrize(
    ("code", "vital", "icu"),
    [
        ("VITAL//LOINC//8480-6", "systolic_pressure", "cuff_systolic"),
        ("VITAL//MIMIC//220050", "systolic_pressure", "arterial_systolic"),
        ("VITAL//MIMIC//220179", "systolic_pressure", "cuff_systolic"),
        ("VITAL//MIMIC//220051", "diastolic_pressure", "arterial_diastolic"),
        ("VITAL//OMR//Blood Pressure//diastolic", "diastolic_pressure", "cuff_diastolic"),
        ("VITAL//PHYSIONET2012//SysABP", "systolic_pressure", "arterial_systolic"),
        ("LAB//220045//bpm", "heart_rate", "heart_rate"),  # as the MEDS extraction of MIMIC-IV writes it
        ("LAB//MIMIC//50912", None, "creatinine"),
        ("LAB//LOINC//38483-4", None, "creatinine"),
        ("OUTPUT//MIMIC//226559", None, "urine"),
    ],
)
def test_codes_of_every_source(code, vital, icu):
    assert names_of([code], VITALS) == [vital]
    assert names_of([code]) == [icu]


def test_shipped_codes_belong_to_one_variable_each():
    codes = [code for variable in load_variables(ICU_VARIABLES) for code, _ in variable.codes]
    assert len(codes) == len(set(codes))
    with pytest.raises(ValueError, match="would be both systolic_pressure and cuff_systolic"):
        map_codes(load_variables(["systolic_pressure", "cuff_systolic"]), [])


def test_ranges_are_in_order():
    assert all(v.low < v.high and v.unit for v in load_variables([*ICU_VARIABLES, "height"]))


def test_values_are_converted_and_cut_by_variable():
    variables = load_variables(["temperature", "heart_rate", "fio2"])
    index = np.array([0, 0, 0, 0, 0, 1, 1, 1, 2, 2])
    values = [36.6, 98.6, 212, -17.8, np.nan, 98.6, -5, 0, 0.4, 40]
    checked = check_values(variables, index, np.array(values))
    assert np.allclose(checked.values[[0, 1, 5, 8, 9]], [36.6, 37.0, 98.6, 0.4, 0.4])
    assert checked.is_plausible.tolist() == [True, True, False, False, False, True, False, False, True, True]
    assert checked.num_converted.tolist() == [1, 0, 1] and checked.num_cut.tolist() == [3, 2, 0]
    empty = check_values(variables, np.zeros(0, np.int64), np.zeros(0))
    assert len(empty.values) == 0 and empty.num_cut.tolist() == [0, 0, 0]


def test_items_recorded_in_another_unit():
    weight, height = load_variables(["weight", "height"])
    codes = map_codes([weight, height], ["CHART//MIMIC//226531", "CHART//MIMIC//226512", "VITAL//OMR//Height (Inches)"])
    assert codes.variable.tolist() == [0, 0, 1]
    assert np.allclose(codes.factor, [0.45359, 1, 2.54])


def test_a_csv_adds_moves_and_changes(tmp_path):
    file = tmp_path / "own.csv"
    file.write_text(
        "variable,code,factor,unit,low,high\n"
        "heart_rate,VITAL//OWN//puls*,,,30,250\n"
        "heart_rate,LAB//LOINC//8310-5,,,,\n"  # taken from the temperature
        "cvp,VITAL//OWN//cvp,1.36,cmH2O,-10,60\n"
    )
    codes = [
        "VITAL//OWN//pulse",
        "VITAL//LOINC//8867-4",
        "LAB//LOINC//8310-5",
        "VITAL//LOINC//8310-5",
        "VITAL//OWN//cvp",
    ]
    names = ("heart_rate", "temperature", "cvp")
    assert names_of(codes, names, file) == ["heart_rate", "heart_rate", "heart_rate", "temperature", "cvp"]
    heart_rate, _, cvp = variables = load_variables(names, file)
    assert (heart_rate.low, heart_rate.high, heart_rate.unit) == (30, 250, "/min")
    assert (cvp.low, cvp.high, cvp.unit) == (-10, 60, "cmH2O")
    assert map_codes(variables, codes).factor[-1] == np.float32(1.36)
    assert load_variables(["heart_rate"])[0].low == 10  # what is shipped stays as it is


def test_a_json_does_the_same(tmp_path):
    file = tmp_path / "own.json"
    own = {"cvp": {"codes": {"VITAL//OWN//cvp": 1.36}, "low": -10, "high": 60}, "ph": {"codes": ["LAB//OWN//ph"]}}
    file.write_text(json.dumps(own))
    assert names_of(["LAB//OWN//ph", "VITAL//OWN//cvp"], ("ph", "cvp"), file) == ["ph", "cvp"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("own.csv", "", "needs columns variable and code"),
        ("own.csv", "variable,loinc\n", r"found variable, loinc"),
        ("own.csv", "variable,code\nheartrate,A\n", r"row 1: 'heartrate' is new: .*did you mean 'heart_rate'"),
        ("own.csv", "variable,code\n,A\n", "row 1: the variable has no name"),
        ("own.csv", "variable,code,low\nph,A,\nph,B,acid\n", "row 2: low='acid' must be a number"),
        ("own.csv", "variable,code,low\nph,A,9\n", "row 1: low=9 must be below high=8"),
        ("own.csv", "variable,code,factor\nph,A,nan\n", "factor='nan' must be a number"),
        ("own.json", "{", "cannot be read"),
        ("own.json", "[]", "must be an object"),
        ("own.json", '{"ph": {"code": ["A"]}}', "'code' is not known: use codes"),
        ("own.json", '{"ph": {"codes": "A"}}', "must be a list of codes"),
    ],
)
def test_bad_mapping_files_are_named(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        load_variables(path=tmp_path / name)
    assert name in str(error.value)


def test_missing_mapping_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="give a CSV or JSON"):
        load_variables(path=tmp_path / "none.csv")
