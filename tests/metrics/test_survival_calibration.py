"""Calibration of survival predictions: odd cases, and true predictions against distorted ones."""

import numpy as np
import pytest

from ehrjax.metrics.survival_calibration import (
    calibration_error,
    d_calibration,
    observed_against_predicted,
    observed_to_expected,
)
from ehrjax.metrics.survival_curves import kaplan_meier

GRID = tuple(np.linspace(0.05, 2.0, 40))


def _exponential(seed=0, num_rows=6000, *, shape=1.0):
    """Labels of exponential times, half of them censored; the true incidence on GRID, with hazards off by `shape`."""
    rng = np.random.default_rng(seed)
    hazards = rng.gamma(2.0, 0.5, num_rows)
    times, ends = rng.exponential(1 / hazards), rng.exponential(1.0, num_rows)
    labels = np.column_stack([np.minimum(times, ends), times <= ends])
    return labels, 1 - np.exp(-shape * hazards[:, None] * np.array(GRID))


def test_no_rows():
    empty = np.zeros((0, 2))
    groups = observed_against_predicted(empty, [], 1.0)
    assert [len(column) for column in groups] == [0] * 5
    assert np.isnan(observed_to_expected(empty, np.zeros(0), horizons=(1.0,)))
    assert np.isnan(calibration_error(empty, np.zeros(0), horizons=(1.0,)))
    result = d_calibration(empty, np.zeros((0, 1)), (1.0,))
    assert np.isnan(result.statistic) and np.isnan(result.p_value) and result.counts.sum() == 0


def test_one_row_and_all_censored():
    groups = observed_against_predicted([[5, 1]], [0.4], 6.0)
    assert groups.num_rows.tolist() == [1] and groups.observed.tolist() == [1.0] and np.isnan(groups.low[0])
    groups = observed_against_predicted([[5, 0], [7, 0]], [0.4, 0.4], 6.0)
    assert groups.num_rows.tolist() == [2] and groups.observed.tolist() == [0.0]
    assert observed_to_expected([[5, 0], [7, 0]], [0.4, 0.4], horizons=(6.0,)) == 0.0
    assert calibration_error([[5, 0], [7, 0]], [0.4, 0.4], horizons=(6.0,)) == pytest.approx(0.4)


def test_a_horizon_past_follow_up_is_undefined():
    labels = [[5, 0], [4, 1]]
    assert np.isnan(observed_against_predicted(labels, [0.1, 0.1], 6.0).observed).all()
    assert np.isnan(observed_to_expected(labels, [0.1, 0.1], horizons=(6.0,)))
    assert np.isnan(calibration_error(labels, [0.1, 0.1], horizons=(6.0,)))
    assert np.isnan(calibration_error([[5, 0], [4, 0]], [0.1, 0.1], horizons=(6.0,)))


def test_nothing_predicted_has_no_ratio():
    assert np.isnan(observed_to_expected([[5, 1], [7, 0]], [0.0, 0.0], horizons=(6.0,)))


def test_equal_predictions_share_a_group_and_groups_are_even():
    labels, incidence = _exponential(num_rows=100)
    assert observed_against_predicted(labels, incidence[:, 9], 0.5).num_rows.tolist() == [10] * 10
    halves = np.repeat([0.2, 0.8], 50)
    groups = observed_against_predicted(labels, halves, 0.5)
    assert groups.num_rows.tolist() == [50, 50] and groups.predicted.tolist() == pytest.approx([0.2, 0.8])
    for rows, observed in zip((labels[:50], labels[50:]), groups.observed, strict=True):
        assert observed == pytest.approx(1 - kaplan_meier(rows[:, 0], rows[:, 1]).at(0.5))


def test_true_predictions_are_calibrated_and_distorted_ones_are_not():
    labels, true = _exponential()
    _, doubled = _exponential(shape=2.0)
    groups = observed_against_predicted(labels, true[:, 19], GRID[19])
    assert np.mean((groups.low <= groups.predicted) & (groups.predicted <= groups.high)) >= 0.8
    assert observed_to_expected(labels, true, horizons=GRID, column=19) == pytest.approx(1.0, abs=0.05)
    assert observed_to_expected(labels, doubled, horizons=GRID, column=19) < 0.8
    assert calibration_error(labels, true, horizons=GRID, column=19) < 0.03
    assert calibration_error(labels, doubled, horizons=GRID, column=19) > 0.1


def test_d_calibration_by_hand():
    incidence, horizons = np.array([[0.5], [0.5], [0.5], [1.0]]), (10.0,)
    labels = [
        [5, 1],
        [10, 0],
        [20, 1],
        [10, 1],
    ]  # S = 0.75 (event), 0.5 and 0.5 (censored, the latter by the horizon), 0
    result = d_calibration(labels, incidence, horizons, num_bins=4)
    assert result.counts.tolist() == pytest.approx([1 + 2 * 0.5, 2 * 0.5, 0, 1])
    assert result.statistic == pytest.approx(1 + 0 + 1 + 0)
    certain = d_calibration([[10, 0]], [[1.0]], horizons, num_bins=4)  # censored where no survival was predicted
    assert certain.counts.tolist() == [1, 0, 0, 0]


def test_d_calibration_spreads_a_censored_row_over_the_bins_below():
    result = d_calibration([[10, 0]], [[0.3]], (10.0,), num_bins=5)  # S = 0.7: bins of 0.2, the fourth half covered
    assert result.counts.tolist() == pytest.approx([2 / 7, 2 / 7, 2 / 7, 1 / 7, 0])


def test_d_calibration_rejects_what_is_wrong_and_keeps_what_is_true():
    p_values = [d_calibration(*_exponential(seed, 1000), GRID).p_value for seed in range(20)]
    assert np.mean(np.array(p_values) < 0.05) <= 0.15
    assert d_calibration(*_exponential(0, 1000, shape=2.0), GRID).p_value < 1e-6
    counts = d_calibration(*_exponential(0, 1000), GRID).counts
    assert counts.sum() == pytest.approx(1000)
