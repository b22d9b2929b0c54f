"""Task recipes: code patterns, settings from a config, and errors that say what to write instead."""

import math

import pytest

from ehrjax.data.tasks import ANY_DIABETES, TASKS, TYPE_2_DIABETES, Task, get_task, match_codes, task_from_dict


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
    }


def test_task_from_plain_settings():
    fields = {"codes": ["*SNOMED*//38341003"], "horizon_days": 730, "index": "every_visit", "max_rows_per_patient": 2}
    task = task_from_dict("hypertension", fields)
    assert (task.codes, task.horizon_days, task.max_rows_per_patient) == (("*SNOMED*//38341003",), 730, 2)
    assert math.isinf(task.washout_days)


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
        ({"codes": ["A"], "index": "fixed_age"}, "belong together"),
        ({"outcome": "stay_days"}, "predicted at admission"),
        ({"base": "mortality_1yr"}, "did you mean 'mortality_1y'"),
    ],
)
def test_wrong_settings_are_explained(fields, message):
    with pytest.raises(ValueError, match=message):
        task_from_dict("mine", fields)


def test_unknown_task_names_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'diabetes_onset'"):
        get_task("diabetes_onst")
    with pytest.raises(ValueError, match="use one of diabetes_onset, length_of_stay"):
        get_task("xyz")


def test_a_task_can_be_compared_and_hashed():
    assert len({Task("a", codes=("A",)), Task("a", codes=("A",)), Task("b", codes=("A",))}) == 2
