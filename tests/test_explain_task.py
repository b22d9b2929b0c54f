"""Which patients are explained."""

import numpy as np

from experiments.explain_task import CHOICES, choose_patients


def test_the_extremes_are_chosen_among_known_rows():
    labels, scores = np.array([1, 0, 1, 0, 1.0]), np.array([0.9, 0.8, 0.1, 0.2, 0.99])
    mask = np.array([True, True, True, True, False])
    rows, choices = choose_patients(labels, scores, mask)
    assert rows.tolist() == [0, 1, 2] and choices == list(CHOICES)


def test_one_positive_is_shown_once_and_none_gives_fewer():
    rows, choices = choose_patients(np.array([0, 1.0]), np.array([0.2, 0.4]), np.array([True, True]))
    assert rows.tolist() == [1, 0] and choices == list(CHOICES[:2])
    assert len(choose_patients(np.zeros(2), np.zeros(2), np.zeros(2, bool))[0]) == 0
