"""Which patients are explained, and of several members how."""

import numpy as np

from experiments.explain_task import CHOICES, choose_patients, mean_tables


def test_the_extremes_are_chosen_among_known_rows():
    labels, scores = np.array([1, 0, 1, 0, 1.0]), np.array([0.9, 0.8, 0.1, 0.2, 0.99])
    mask = np.array([True, True, True, True, False])
    rows, choices = choose_patients(labels, scores, mask)
    assert rows.tolist() == [0, 1, 2] and choices == list(CHOICES)


def test_one_positive_is_shown_once_and_none_gives_fewer():
    rows, choices = choose_patients(np.array([0, 1.0]), np.array([0.2, 0.4]), np.array([True, True]))
    assert rows.tolist() == [1, 0] and choices == list(CHOICES[:2])
    assert len(choose_patients(np.zeros(2), np.zeros(2), np.zeros(2, bool))[0]) == 0


def test_tables_of_members_are_one_of_means():
    def tables(logit, risk, attribution):
        codes = [{"code": "A", "description": "Any", "attribution": attribution}]
        visits = [{"number": 1, "age": None, "days_before_last": 0.0, "risk_after": risk, "codes": codes}]
        table = {"example": 3, "logit": logit, "risk": risk, "visits": visits}
        return [table, {"example": 5, "logit": 0.0, "visits": []}]

    one, other = tables(1.0, 0.75, 0.25), tables(-2.0, 0.25, 0.75)
    assert mean_tables([one]) == one
    assert mean_tables([one, other]) == tables(-0.5, 0.5, 0.5)
