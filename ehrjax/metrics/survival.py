"""Discrimination and accuracy of predicted time-to-event risks under right censoring and competing causes.

Every metric is `metric(labels, scores, weights=None, **options) -> float` (see `weighted`): labels are (days from the
index time, event) [n, 2], where event 0 is censoring and 1.. a cause; a higher score means sooner. Undefined values are
NaN. A metric is about one cause, by default cause 1. Whoever has an event of another cause first stays in the risk set
for good, for this patient will never have the event (Wolbers et al., 2009, Epidemiology 20:555); so it is with a
cumulative incidence, too.

Ties. At equal times events come before censorings: a patient censored at t is known to be free of the event at t, and
is compared with those who have it at t (as in lifelines and scikit-survival). Two events of the cause at one time are
no comparable pair. Equal scores count one half. The inverse probability of censoring weight of time t is
1 / P(censoring at t or later), by Kaplan-Meier from the very rows and weights that are scored. scikit-survival takes
1 / P(later than t), which differs where an event or a horizon falls on the day of a censoring only: most of all at the
horizon at which all follow-up is cut, where it has no value.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ehrjax.metrics.areas import places, roc_area
from ehrjax.metrics.pairs import pairs
from ehrjax.metrics.survival_calibration import calibration_error, observed_to_expected
from ehrjax.metrics.survival_curves import LifeTable, ratio_or_zero
from ehrjax.metrics.survival_labels import (
    check_horizons,
    check_survival,
    horizon_risks,
    incidences,
    known_at,
    risk_scores,
)
from ehrjax.metrics.weighted import Prepared, bind, divide, weighted
from ehrjax.types import Array

Metric = Callable[..., Any]


def survival_metrics(horizons: Sequence[float], cause: int = 1) -> dict[str, Metric]:
    """Metrics by name for scores [n, H]: the predicted cumulative incidence of the cause at each horizon (days).

    Concordance ranks by the incidence at the last horizon. `integrated_brier` and `mean_auc` need two horizons.
    """
    horizons = tuple(check_horizons(horizons).tolist())
    metrics: dict[str, Metric] = {
        "c_index": bind(concordance, cause=cause),
        "c_index_ipcw": bind(concordance_ipcw, tau=horizons[-1], cause=cause),
    }
    if len(horizons) > 1:
        metrics["mean_auc"] = bind(mean_auc, horizons=horizons, cause=cause)
        metrics["integrated_brier"] = bind(integrated_brier, horizons=horizons, cause=cause)
    at_horizon = {
        "auc": auc_ipcw,
        "brier": brier_ipcw,
        "observed_to_expected": observed_to_expected,
        "calibration_error": calibration_error,
    }
    for name, metric in at_horizon.items():
        for column, horizon in enumerate(horizons):
            metrics[f"{name}_{horizon:g}d"] = bind(metric, horizons=horizons, column=column, cause=cause)
    return metrics


@weighted
def concordance(labels: Array, scores: Array, cause: int = 1) -> Prepared:
    """Harrell's C (1982): of the pairs in which one is known to have the event first, the share that scores it higher.

    Scores are risks [n], or [n, H] of which the last column counts. NaN without a comparable pair.
    """
    table = check_survival(labels)
    risks = risk_scores(scores, len(table.events))
    is_case, at, after, num_times = _event_order(table, cause, np.inf)
    controls = np.select([is_case, table.events == 0], [at, after], num_times)
    found = pairs(np.where(is_case, at, -1), controls, risks)
    return lambda weights: divide(*found.count(weights, weights))


@weighted
def concordance_ipcw(labels: Array, scores: Array, tau: float | None = None, cause: int = 1) -> Prepared:
    """Uno's C (2011, Statistics in Medicine 30:1105): pairs weighted so that censoring does not decide which count.

    Events before `tau` days make pairs (None: all). A pair whose other member had a competing event first weighs the
    inverse of both members' chances of being uncensored (Wolbers et al., 2014, Biostatistics 15:526).
    """
    table = check_survival(labels)
    risks = risk_scores(scores, len(table.events))
    is_case, at, after, num_times = _event_order(table, cause, np.inf if tau is None else tau)
    is_competing = (table.events > 0) & (table.events != cause)
    at_risk = pairs(np.where(is_case, at, -1), np.where(table.events == 0, after, at), risks)
    # Positions count down here: of a competing event at u, the cases at t >= u.
    had_competing = pairs(np.where(is_case, num_times - 1 - at, -1), np.where(is_competing, num_times - at, 0), risks)

    def value(weights: np.ndarray) -> np.ndarray:
        inverse = ratio_or_zero(1.0, table.uncensored_before(weights)).take(table.place, axis=0)
        won, total = at_risk.count(weights * inverse**2, weights)
        if had_competing.levels:
            more = had_competing.count(weights * inverse, weights * inverse)
            won, total = won + more[0], total + more[1]
        return divide(won, total)

    return value


@weighted
def auc_ipcw(labels: Array, scores: Array, horizons: Sequence[float], column: int = 0, cause: int = 1) -> Prepared:
    """Cumulative/dynamic AUC at horizons[column]: P(an event by then scores above no event by then).

    Cases and those with a competing event by then weigh the inverse of their chance of being uncensored (Uno et al.,
    2007, JASA 102:527; Blanche et al., 2013, Statistics in Medicine 32:5381, definition 2).
    """
    table = check_survival(labels)
    risks = horizon_risks(scores, len(table.events), horizons)[:, column]
    outcomes, known = known_at(table, horizons[column], cause)
    found = places(outcomes, risks, np.arange(len(risks)), len(risks))

    def value(weights: np.ndarray) -> np.ndarray:
        row_weights, is_defined = known(weights)
        return np.where(is_defined, roc_area(found, row_weights), np.nan)

    return value


@weighted
def mean_auc(labels: Array, scores: Array, horizons: Sequence[float], cause: int = 1) -> Prepared:
    """`auc_ipcw` averaged over horizons, each of which weighs the incidence since the one before.

    Lambert and Chevret, 2016, Statistical Methods in Medical Research 25:2088.
    """
    table = check_survival(labels)
    at_horizon = [auc_ipcw.prepare(labels, scores, horizons, column, cause) for column in range(len(horizons))]

    def value(weights: np.ndarray) -> np.ndarray:
        areas = np.stack([area(weights) for area in at_horizon])
        incidence = np.stack([table.incidence_at(weights, cause, horizon) for horizon in horizons])
        mass = np.diff(incidence, axis=0, prepend=0.0)
        return divide(np.where(mass == 0, 0.0, areas * mass).sum(axis=0), incidence[-1])

    return value


@weighted
def brier_ipcw(labels: Array, scores: Array, horizons: Sequence[float], column: int = 0, cause: int = 1) -> Prepared:
    """Mean squared difference between predicted incidence and outcome at horizons[column], weighted for censoring.

    Graf et al., 1999, Statistics in Medicine 18:2529; with competing causes Schoop et al., 2011, Biometrical Journal
    53:88. NaN where follow-up ends before the horizon.
    """
    table = check_survival(labels)
    predicted = incidences(scores, len(table.events), horizons)[:, column]
    outcomes, known = known_at(table, horizons[column], cause)
    squares = (outcomes - predicted) ** 2

    def value(weights: np.ndarray) -> np.ndarray:
        row_weights, is_defined = known(weights)
        return np.where(is_defined, divide(squares @ row_weights, weights.sum(axis=0)), np.nan)

    return value


@weighted
def integrated_brier(labels: Array, scores: Array, horizons: Sequence[float], cause: int = 1) -> Prepared:
    """`brier_ipcw` averaged over the days from the first to the last horizon, by the trapezoidal rule."""
    days = check_horizons(horizons)
    if len(days) < 2:
        raise ValueError(f"horizons={tuple(horizons)} span no time: integrated_brier needs two or more.")
    at_horizon = [brier_ipcw.prepare(labels, scores, horizons, column, cause) for column in range(len(days))]

    def value(weights: np.ndarray) -> np.ndarray:
        return np.trapezoid(np.stack([brier(weights) for brier in at_horizon]), days, axis=0) / (days[-1] - days[0])

    return value


def _event_order(table: LifeTable, cause: int, tau: float):
    """Which rows are cases; how many of the P case times lie before, and not after, each row's time; and P."""
    is_case = (table.events == cause) & (table.row_times < tau)
    case_times = np.unique(table.row_times[is_case])
    at, after = (np.searchsorted(case_times, table.row_times, side=side) for side in ("left", "right"))
    return is_case, at, after, len(case_times)
