"""Task recipes: code patterns, settings from a config, and errors that say what to write instead."""

import math

import pytest

from ehrjax.data.code_lists import (
    ANY_DIABETES,
    CHRONIC_CONDITIONS,
    CHRONIC_KIDNEY_DISEASE,
    DETERIORATION,
    HEART_FAILURE,
    HYPERTENSION,
    TYPE_2_DIABETES,
)
from ehrjax.data.tasks import TASKS, Task, get_task, match_codes, task_from_dict


def test_no_pattern_matches_nothing_and_no_code_gives_an_empty_mask():
    assert match_codes((), ["A", ""]).tolist() == [False, False]
    assert match_codes(("A",), []).tolist() == []


@pytest.mark.parametrize(
    ("code", "is_type_2", "is_diabetes"),
    [
        ("DIAGNOSIS//SNOMED//44054006", True, True),
        ("DIAGNOSIS//SNOMED//127013003", True, True),
        ("DIAGNOSIS//SNOMED//46635009", False, True),  # type 1
        ("DIAGNOSIS//SNOMED//714628002", False, False),  # prediabetes
        ("DIAGNOSIS//SNOMED//15777000", False, False),
        ("DIAGNOSIS//SNOMED//440540061", False, False),
        ("DIAGNOSIS//ICD9//25000", True, True),
        ("DIAGNOSIS//ICD9CM//250.02", True, True),
        ("DIAGNOSIS//ICD//9//25002", True, True),
        ("DIAGNOSIS//ICD9//25001", False, True),  # type 1
        ("PROCEDURE//ICD9//2501", False, False),  # biopsy of the tongue
        ("DIAGNOSIS//ICD10//E119", True, True),
        ("DIAGNOSIS//ICD10CM//E11.9", True, True),
        ("DIAGNOSIS//ICD10//E109", False, True),
        ("DIAGNOSIS//ICD10//I10", False, False),
        ("DE11", True, True),
        ("DE10", False, True),
        ("DEATH", False, False),
    ],
)
def test_diabetes_codes_of_every_vocabulary(code, is_type_2, is_diabetes):
    assert bool(match_codes(TYPE_2_DIABETES, [code])[0]) == is_type_2
    assert bool(match_codes(ANY_DIABETES, [code])[0]) == is_diabetes


@pytest.mark.parametrize(
    ("code", "patterns", "expected"),
    [
        ("DIAGNOSIS//SNOMED//433144002", CHRONIC_KIDNEY_DISEASE, True),
        ("DIAGNOSIS//SNOMED//431855005", CHRONIC_KIDNEY_DISEASE, False),  # stage 1
        ("DIAGNOSIS//SNOMED//127013003", CHRONIC_KIDNEY_DISEASE, False),  # diabetic nephropathy, no stage
        ("DIAGNOSIS//ICD10//N1830", CHRONIC_KIDNEY_DISEASE, True),
        ("DIAGNOSIS//ICD10CM//N18.6", CHRONIC_KIDNEY_DISEASE, True),
        ("DIAGNOSIS//ICD10//N182", CHRONIC_KIDNEY_DISEASE, False),
        ("DIAGNOSIS//ICD//9//5859", CHRONIC_KIDNEY_DISEASE, True),
        ("DIAGNOSIS//ICD9//5851", CHRONIC_KIDNEY_DISEASE, False),
        ("PROCEDURE//ICD9//585", CHRONIC_KIDNEY_DISEASE, False),
        ("DIAGNOSIS//ICD10//I5032", HEART_FAILURE, True),
        ("DIAGNOSIS//SNOMED//59621000", HYPERTENSION, True),
        ("DIAGNOSIS//SNOMED//162864005", CHRONIC_CONDITIONS, True),  # obesity, called a finding
        ("DIAGNOSIS//SNOMED//431855005", CHRONIC_CONDITIONS, True),
        ("DIAGNOSIS//SNOMED//444814009", CHRONIC_CONDITIONS, False),  # viral sinusitis
        ("DIAGNOSIS//SNOMED//224299000", CHRONIC_CONDITIONS, False),  # received higher education
        ("DIAGNOSIS//SNOMED//230690007", CHRONIC_CONDITIONS, False),  # stroke
        ("DIAGNOSIS//ICD10//J449", CHRONIC_CONDITIONS, True),
        ("DIAGNOSIS//ICD10//J189", CHRONIC_CONDITIONS, False),  # pneumonia
        ("ICU_ADMISSION//Medical Intensive Care Unit (MICU)", DETERIORATION, True),
        ("TRANSFER//transfer//Neuro Surgical Intensive Care Unit (Neuro SICU)", DETERIORATION, True),
        ("TRANSFER_TO//admit//Coronary Care Unit (CCU)", DETERIORATION, True),
        ("TRANSFER//transfer//Medicine", DETERIORATION, False),
        ("ICU_DISCHARGE//Medical Intensive Care Unit (MICU)", DETERIORATION, False),
        ("INFUSION//MIMIC//221906", DETERIORATION, True),
        ("INFUSION_START//221906", DETERIORATION, True),
        ("INFUSION_END//221906", DETERIORATION, False),
        ("INFUSION//MIMIC//222042", DETERIORATION, False),  # nicardipine lowers the pressure
        ("MEDICATION//RXNORM//3992", DETERIORATION, False),  # epinephrine by an unknown route
        ("PROCEDURE//MIMIC//225792", DETERIORATION, True),
        ("PROCEDURE//START//225794", DETERIORATION, True),
        ("PROCEDURE//SNOMED//52765003", DETERIORATION, False),  # intubation
        ("PROCEDURE//ICD10PCS//5A1955Z", DETERIORATION, False),  # ventilation, dated by the day
        ("ENCOUNTER_TYPE//SNOMED//305351004", DETERIORATION, True),
    ],
)
def test_code_lists_of_diseases(code, patterns, expected):
    assert bool(match_codes(patterns, [code])[0]) == expected


def test_characters_of_regular_expressions_are_plain_in_patterns():
    assert match_codes(("A.(1)", "B//*"), ["A.(1)", "AX(1)", "B//", "B//x\ny", "CB//x"]).tolist() == [1, 0, 1, 1, 0]


def test_shipped_tasks_are_the_ones_promised():
    kinds = {name: task.kind for name, task in TASKS.items()}
    assert kinds == {
        "diabetes_onset": "binary",
        "readmission_30d": "binary",
        "mortality_1y": "binary",
        "next_visit_codes": "multilabel",
        "length_of_stay": "regression",
        "next_visit_class": "multiclass",
        "time_to_diabetes": "survival",
        "time_to_ckd_hf": "survival",
        "time_to_readmission": "survival",
        "time_to_death": "survival",
        "conditions_1y": "multilabel",
        "new_diagnoses_1y": "multilabel",
        "in_hospital_death_48h": "binary",
        "deterioration_24h": "binary",
    }
    causes = {name: task.causes for name, task in TASKS.items() if task.causes}
    assert causes == {
        "time_to_diabetes": ("diabetes", "death"),
        "time_to_ckd_hf": ("ckd_hf", "death"),
        "time_to_readmission": ("readmission", "death"),
        "time_to_death": ("death",),
    }


def test_task_from_plain_settings():
    fields = {"codes": ["*SNOMED*//38341003"], "horizon_days": 730, "index": "every_visit", "max_rows_per_patient": 2}
    task = task_from_dict("hypertension", fields)
    assert (task.codes, task.horizon_days, task.max_rows_per_patient) == (("*SNOMED*//38341003",), 730, 2)
    assert math.isinf(task.washout_days)


def test_two_tasks_by_code_lists_at_one_random_date():
    shared = {"index": "random_date", "washout_days": 0.0}
    glucose = task_from_dict("glucose", {"codes": ["LAB/GL"], "horizon_days": 365, **shared})
    complication = task_from_dict("complication", {"codes": ["MIN02", "MME01"], "horizon_days": 730, **shared})
    assert (glucose.kind, glucose.row_limit, complication.codes) == ("binary", None, ("MIN02", "MME01"))


@pytest.mark.parametrize("conditions", [{"a": ["A*"], "b": ["B", "C"]}, [["a", ["A*"]], ["b", ("B", "C")]]])
def test_conditions_from_plain_settings(conditions):
    task = task_from_dict("mine", {"outcome": "new_codes", "conditions": conditions})
    assert task.conditions == (("a", ("A*",)), ("b", ("B", "C")))
    assert len({task, task_from_dict("mine", {"outcome": "new_codes", "conditions": conditions})}) == 1


def test_death_that_censors_is_no_cause():
    task = task_from_dict("time_to_x", {"base": "time_to_diabetes", "competing_death": False})
    assert task.causes == ("x",)


def test_task_from_a_shipped_one():
    task = task_from_dict("readmission_7d", {"base": "readmission_30d", "horizon_days": 7})
    assert (task.name, task.outcome, task.index, task.horizon_days) == ("readmission_7d", "stay", "discharge", 7)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"codes": ["A"], "horizon_day": 3}, "field 'horizon_day' is not known: did you mean 'horizon_days'"),
        ({"codes": ["A"], "zzz": 3}, "field 'zzz' is not known: use one of codes, "),
        ({"codes": ["A"], "index": "randomvisit"}, "did you mean 'random_visit'"),
        ({"codes": ["A"], "follow_up": "never"}, "follow_up='never'"),
        ({"codes": "A"}, "codes='A' must be a list of code patterns"),
        ({"codes": ["A"], "horizon_days": "30"}, "horizon_days='30' must be float"),
        ({"codes": ["A"], "min_visits": 1.5}, r"min_visits=1\.5 must be int"),
        ({"codes": ["A"], "horizon_days": 0}, "horizon_days=0 must be at least"),
        ({"codes": ["A"], "horizon_days": math.inf}, "horizon_days=inf must be .* finite"),
        ({"codes": ["A"], "max_rows_per_patient": 0}, "max_rows_per_patient=0 must be at least 1"),
        ({}, "has no codes"),
        ({"outcome": "codes_or_death"}, "has no codes"),
        (
            {"codes": ["A"], "index": "during_stay", "washout_days": 2},
            "leave out washout_days=2, or name",
        ),
        ({"codes": ["A"], "index_every_hours": 0}, "index_every_hours=0 must be at least"),
        ({"codes": ["A"], "index_from_hours": -1.0}, r"index_from_hours=-1\.0 must be at least 0"),
        ({"codes": ["A"], "index_from_hours": 400}, "index_until_hours=312.0 must be at least 400"),
        ({"codes": ["A"], "index_until_hours": math.inf}, "index_until_hours=inf must be .* finite"),
        ({"codes": ["A"], "index": "fixed_age"}, "belong together"),
        ({"outcome": "stay_days"}, "predicted at admission"),
        ({"base": "mortality_1yr"}, "did you mean 'mortality_1y'"),
        ({"outcome": "time_to_codes"}, "has no codes"),
        ({"outcome": "time_to_death", "gap_days": 1}, "gap_days=1 must be 0"),
        ({"outcome": "time_to_death", "competing_death": 1}, "competing_death=1 must be bool"),
        ({"outcome": "new_codes"}, "has no codes"),
        ({"outcome": "new_codes", "codes": ["A"], "conditions": {"a": ["A"]}}, "in place of codes"),
        ({"codes": ["A"], "conditions": {"a": ["A"]}}, "conditions belong to outcome='new_codes'"),
        ({"outcome": "new_codes", "conditions": {"a": []}}, "some codes each"),
        ({"outcome": "new_codes", "conditions": [["a", ["A"]], ["a", ["B"]]]}, "distinct names"),
        ({"outcome": "new_codes", "conditions": {"a": "A"}}, "must be a list of code patterns"),
        ({"outcome": "new_codes", "codes": ["A"], "washout_days": 30}, "washout_days=30 says less"),
    ],
)
def test_wrong_settings_are_explained(fields, message):
    with pytest.raises(ValueError, match=message):
        task_from_dict("mine", fields)


def test_unknown_task_names_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'diabetes_onset'"):
        get_task("diabetes_onst")
    with pytest.raises(ValueError, match="use one of conditions_1y, deterioration_24h, diabetes_onset"):
        get_task("xyz")


def test_a_task_can_be_compared_and_hashed():
    assert len({Task("a", codes=("A",)), Task("a", codes=("A",)), Task("b", codes=("A",))}) == 2
