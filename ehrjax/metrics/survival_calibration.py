"""Calibration of predicted incidences under censoring: by group, in the large, and over the whole distribution.

Labels are (days, event) [n, 2] and the metrics are of one cause, as in `survival`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.stats import chi2

from ehrjax.metrics.survival_curves import aalen_johansen_interval, life_table
from ehrjax.metrics.survival_labels import check_survival, incidences, known_at
from ehrjax.metrics.weighted import Prepared, divide, weighted
from ehrjax.types import Array

NUM_GROUPS = 10


class GroupCalibration(NamedTuple):
    """One entry a group of rows, in ascending order of predicted incidence."""

    num_rows: Int[Array, "groups"]
    predicted: Float[Array, "groups"]  # mean predicted incidence at the horizon
    observed: Float[Array, "groups"]  # Aalen-Johansen at the horizon; NaN where follow-up ends before
    low: Float[Array, "groups"]  # 95 % interval of `observed`, NaN where that is 0 or 1
    high: Float[Array, "groups"]


class DCalibration(NamedTuple):
    """Rows whose predicted survival at their own event lies in each bin of [0, 1], and the test that bins are even."""

    counts: Float[Array, "bins"]
    statistic: float  # chi-squared with bins - 1 degrees of freedom
    p_value: float  # small: not calibrated


def observed_against_predicted(
    labels: Float[Array, "n 2"],
    predicted: Float[Array, "n"],
    horizon: float,
    *,
    num_groups: int = NUM_GROUPS,
    cause: int = 1,
) -> GroupCalibration:
    """Observed incidence by the horizon in quantile groups of the predicted one; equal predictions share a group.

    With a single cause the observed incidence is one minus Kaplan-Meier. Rows count as independent in the intervals.
    """
    table = check_survival(labels)
    predicted = incidences(predicted, len(table.events), (horizon,))[:, 0]
    columns = []
    for rows in _quantile_groups(predicted, num_groups):
        times, events = table.row_times[rows], table.events[rows]
        group = life_table(times, events)
        observed = group.incidence_at(np.ones((len(rows), 1)), cause, horizon)[0]
        last = np.searchsorted(group.times, horizon, side="right") - 1
        bounds = [np.nan if last < 0 else bound[last] for bound in aalen_johansen_interval(times, events, cause)]
        columns.append((len(rows), predicted[rows].mean(), observed, *(b + 0 * observed for b in bounds)))
    num_rows, *curves = np.reshape(columns, (-1, 5)).T
    return GroupCalibration(num_rows.astype(np.int64), *curves)


@weighted
def calibration_error(
    labels: Array,
    scores: Array,
    horizons: Sequence[float],
    column: int = 0,
    cause: int = 1,
    num_groups: int = NUM_GROUPS,
) -> Prepared:
    """Mean |observed rate - mean prediction| at horizons[column] over quantile groups of the prediction.

    Both are means over rows known at the horizon, weighted for the others (`known_at`): unlike a curve in each group,
    they exist however short a group's follow-up is. The finite-sample value is above 0 even for perfect predictions.
    """
    table = check_survival(labels)
    predicted = incidences(scores, len(table.events), horizons)[:, column]
    outcomes, known = known_at(table, horizons[column], cause)
    gaps, groups = outcomes - predicted, _quantile_groups(predicted, num_groups)

    def value(weights: np.ndarray) -> np.ndarray:
        row_weights, is_defined = known(weights)
        total = sum((np.abs(gaps[rows] @ row_weights[rows]) for rows in groups), np.zeros(weights.shape[1]))
        return np.where(is_defined, divide(total, row_weights.sum(axis=0)), np.nan)

    return value


# As of `calibration.ece`: resampling adds noise to each group, and the error is a sum of absolute values.
calibration_error.shifts_under_resampling = True


@weighted
def observed_to_expected(
    labels: Array, scores: Array, horizons: Sequence[float], column: int = 0, cause: int = 1
) -> Prepared:
    """Observed incidence at horizons[column] over the mean predicted one: above 1 the risk is under-estimated."""
    table = check_survival(labels)
    predicted = incidences(scores, len(table.events), horizons)[:, column]

    def value(weights: np.ndarray) -> np.ndarray:
        observed = table.incidence_at(weights, cause, horizons[column])
        return divide(observed * weights.sum(axis=0), predicted @ weights)

    return value


def d_calibration(
    labels: Float[Array, "n 2"], scores: Float[Array, "n H"], horizons: Sequence[float], *, num_bins: int = 10
) -> DCalibration:
    """Haider et al., 2020, JMLR 21(85): S(t) at a subject's own event time is uniform if predictions are calibrated.

    Scores are the predicted incidence of any event at each horizon, taken as linear in between and 0 at time 0; rows
    are censored at the last horizon. A censored row is spread over the bins below its S(t). Rows count as independent.
    """
    table = check_survival(labels)
    incidence = incidences(scores, len(table.events), horizons)
    times = np.minimum(table.row_times, horizons[-1])
    has_event = (table.events > 0) & (table.row_times <= horizons[-1])
    place = (1.0 - _between(incidence, horizons, times)) * num_bins
    spread = np.clip(place[:, None] - np.arange(num_bins), 0.0, 1.0) / np.maximum(place, np.finfo(float).tiny)[:, None]
    spread[place == 0, 0] = 1.0
    exact = np.minimum(place, num_bins - 1).astype(np.int64)[:, None] == np.arange(num_bins)
    counts = np.where(has_event[:, None], exact, spread).sum(axis=0)
    expected = len(times) / num_bins
    statistic = float(divide(np.sum((counts - expected) ** 2), np.float64(expected)))
    return DCalibration(counts, statistic, float(chi2.sf(statistic, num_bins - 1)))


def _quantile_groups(predicted: np.ndarray, num_groups: int) -> list[np.ndarray]:
    """Rows of each non-empty group of about equal size; equal predictions share a group."""
    ascending = np.sort(predicted)
    middle = sum(np.searchsorted(ascending, predicted, side=side) for side in ("left", "right")) / 2
    group = (middle * num_groups / max(1, len(predicted))).astype(np.int64)
    return [rows for rows in (np.flatnonzero(group == k) for k in range(num_groups)) if len(rows)]


def _between(incidence: np.ndarray, horizons: Sequence[float], times: np.ndarray) -> np.ndarray:
    """Each row's incidence at its own time, at most the last horizon, by linear interpolation."""
    knots = np.append(0.0, horizons)
    values = np.hstack([np.zeros((len(incidence), 1)), incidence])
    left = np.clip(np.searchsorted(knots, times, side="right") - 1, 0, len(knots) - 2)
    share = (times - knots[left]) / (knots[left + 1] - knots[left])
    rows = np.arange(len(times))
    return (1 - share) * values[rows, left] + share * values[rows, left + 1]
