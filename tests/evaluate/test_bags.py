"""Bags of codes: empty visits, patient and visit level, dense features by hand."""

import numpy as np
import pytest

from ehrjax.evaluate.bags import DENSE_NAMES, bag_of_codes
from ehrjax.types import VisitSequences
from tests.sequences import VOCAB_SIZE, make_sequences


@pytest.fixture
def two_patients():
    """Patient 0 has visits (5, 6), () and (5); patient 1 has one visit (7, 7)."""
    return VisitSequences(
        codes=np.array([5, 6, 5, 7, 7], np.int32),
        visit_offsets=np.array([0, 2, 2, 3, 5]),
        example_offsets=np.array([0, 3, 4]),
        ages=np.array([40.0, 41.0, 42.5, 70.0], np.float32),
        gap_days=np.array([0.0, 365.0, 500.0, 0.0], np.float32),
        subject_ids=np.array([1, 2]),
        times=np.zeros(2, np.int64),
        labels=np.zeros((2, 1), np.float32),
        label_mask=np.ones((2, 1), bool),
    )


def test_patient_level_counts_and_dense_features(two_patients):
    bag = bag_of_codes(two_patients, 8)
    assert bag.counts.toarray()[:, 5:].tolist() == [[2, 1, 0], [0, 0, 2]]
    assert dict(zip(DENSE_NAMES, bag.dense[0].tolist(), strict=True)) == {
        "age_years": 42.5,
        "num_visits": 3,
        "num_codes": 3,
        "history_days": 865,
        "last_gap_days": 500,
    }
    assert bag.dense[1].tolist() == [70, 1, 2, 0, 0]


def test_visit_level_bags_grow_and_hold_nothing_of_later_visits(two_patients):
    bag = bag_of_codes(two_patients, 8, level="visit")
    assert bag.counts.toarray()[:, 5:].tolist() == [[1, 1, 0], [1, 1, 0], [2, 1, 0], [0, 0, 2]]
    assert bag.dense[:, :2].tolist() == [[40, 1], [41, 2], [42.5, 3], [70, 1]]


def test_last_visit_of_each_patient_is_its_patient_level_bag():
    sequences = make_sequences([3, 1, 5, 2])
    patient, visit = (bag_of_codes(sequences, VOCAB_SIZE, level=level) for level in ("patient", "visit"))
    last = sequences.example_offsets[1:] - 1
    np.testing.assert_array_equal(visit.counts.toarray()[last], patient.counts.toarray())
    np.testing.assert_array_equal(visit.dense[last], patient.dense)


def test_unknown_level_is_refused(two_patients):
    with pytest.raises(ValueError, match="level='code'"):
        bag_of_codes(two_patients, 8, level="code")


@pytest.mark.parametrize("level", ["patient", "visit"])
def test_chosen_rows_are_those_rows_of_all(level):
    sequences = make_sequences([3, 1, 4])
    rows = np.array([2, 0])
    every, some = (bag_of_codes(sequences, VOCAB_SIZE, level=level, rows=r) for r in (None, rows))
    np.testing.assert_array_equal(some.counts.toarray(), every.counts.toarray()[rows])
    np.testing.assert_array_equal(some.dense, every.dense[rows])


@pytest.mark.parametrize("level", ["patient", "visit"])
def test_counts_of_late_are_those_of_visits_within_the_window(level):
    sequences = make_sequences([3, 1, 6, 2], seed=2)
    windows = (0.0, 200.0, 1e9)
    bag = bag_of_codes(sequences, VOCAB_SIZE, level=level, windows=windows)
    row = 0
    for first, end in zip(sequences.example_offsets[:-1], sequences.example_offsets[1:], strict=True):
        for last in range(first, end) if level == "visit" else [end - 1]:
            for window, counts in zip(windows, bag.recent, strict=True):
                expected = np.zeros(VOCAB_SIZE)
                for visit in range(first, last + 1):
                    days_ago = sequences.gap_days[visit + 1 : last + 1].astype(np.float64).sum()
                    if days_ago <= window:
                        codes = sequences.codes[sequences.visit_offsets[visit] : sequences.visit_offsets[visit + 1]]
                        np.add.at(expected, codes, 1)
                np.testing.assert_array_equal(counts[row].toarray()[0], expected)
            row += 1
    assert row == len(bag.dense)
    np.testing.assert_array_equal(bag.recent[-1].toarray(), bag.counts.toarray())


def test_a_visit_exactly_as_long_ago_as_the_window_counts(two_patients):
    bag = bag_of_codes(two_patients, 8, windows=(499.0, 500.0, 865.0))
    assert [counts[0, 5:].toarray()[0].tolist() for counts in bag.recent] == [[1, 0, 0], [1, 0, 0], [2, 1, 0]]
