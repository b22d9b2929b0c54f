"""Metrics that divide one sum over patients by another, with patient-level intervals.

Everything a resample needs is one pair of numbers a patient, so the cost does not depend on how many visits or codes
the patients have. The resamples are those of `bootstrap`: tables over the same patients, seed and number of resamples
rest on the same draws, so that differences between systems are paired.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from ehrjax.metrics.bootstrap import NUM_RESAMPLES, bootstrap
from ehrjax.metrics.weighted import divide, weighted

Metric = Callable[..., Any]


def ratio(numerators: Float[np.ndarray, "P"], denominators: Float[np.ndarray, "P"]) -> Metric:
    """The metric sum(numerators) / sum(denominators), undefined where the latter is 0."""
    return patient_metric(lambda weights: divide(numerators @ weights, denominators @ weights))


def patient_metric(value: Callable[[np.ndarray], np.ndarray], *, shifts: bool = False) -> Metric:
    """A function of patient weights [P, R] as a metric; `shifts` as `shifts_under_resampling` in `weighted`."""

    @weighted
    def metric(labels, scores):
        return value

    metric.shifts_under_resampling = shifts
    return metric


def difference(metric: Metric, other: Metric) -> Metric:
    """The first metric minus the second, on the same patients."""
    left, right = (x.prepare(None, None) for x in (metric, other))
    return patient_metric(lambda weights: left(weights) - right(weights))


def sum_by_patient(
    values: Float[np.ndarray, "n"], patients: Int[np.ndarray, "n"], num_patients: int
) -> Float[np.ndarray, "P"]:
    """Sums of the values that belong to each patient."""
    return np.bincount(patients, weights=values, minlength=num_patients)


def evaluate_ratios(
    metrics: Mapping[str, Metric],
    num_patients: int,
    *,
    reason: str = "no row counts here",
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """Each metric as {"value", "low", "high"} with its 95 % interval; an undefined one has value None and a "reason".

    "resamples_undefined" counts resamples that were dropped because the metric does not exist there.
    """
    patients = np.arange(num_patients)
    intervals = bootstrap(metrics, patients, patients, patients, num_resamples=num_resamples, seed=seed)
    table: dict[str, dict[str, Any]] = {}
    for name, interval in intervals.items():
        row = {key: _or_none(getattr(interval, key)) for key in ("value", "low", "high")}
        if row["value"] is None:
            row["reason"] = reason
        elif interval.num_undefined:
            row["resamples_undefined"] = interval.num_undefined
        table[name] = row
    return table


def _or_none(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
