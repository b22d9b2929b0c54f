"""Recalibration of binary probabilities, fitted on validation rows and applied to test rows.

Platt scaling (Platt, 1999) is a logistic regression of the label on the logit of the score; isotonic regression
(Zadrozny and Elkan, 2002, KDD) is the best non-decreasing step towards the observed rates. Neither sees a test label.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Shaped
from scipy.optimize import isotonic_regression

from ehrjax.metrics.calibration import calibration_intercept, calibration_slope, ece, logistic_recalibration
from ehrjax.metrics.classification import brier
from ehrjax.metrics.weighted import check_probabilities, rank
from ehrjax.types import Array
from ehrjax.wording import counted

FIGURES = {
    "calibration_slope": calibration_slope,
    "calibration_intercept": calibration_intercept,
    "ece": ece,
    "brier": brier,
}
# Logits of scores that are 0 or 1 are held at this probability: at the machine epsilon one such row decided the fit.
PROBABILITY_FLOOR = 1e-6


class CannotRecalibrateError(ValueError):
    """The validation rows do not decide a recalibration; the message says why."""


class Platt(NamedTuple):
    """P(y = 1) = sigmoid(intercept + slope logit(score))."""

    intercept: float
    slope: float

    def __call__(self, scores: Float[Array, "n"]) -> Float[Array, "n"]:
        """Recalibrated probabilities."""
        probabilities = _off_the_ends(scores, PROBABILITY_FLOOR)
        logits = self.intercept + self.slope * (np.log(probabilities) - np.log1p(-probabilities))
        return 0.5 * (1.0 + np.tanh(0.5 * logits))


class Isotonic(NamedTuple):
    """Probabilities at the distinct validation scores, in ascending order; linear between, constant beyond."""

    scores: Float[Array, "knots"]
    probabilities: Float[Array, "knots"]

    def __call__(self, scores: Float[Array, "n"]) -> Float[Array, "n"]:
        """Recalibrated probabilities."""
        return np.interp(np.asarray(scores, np.float64), self.scores, self.probabilities)


def fit_platt(labels: Float[Array, "n"], scores: Float[Array, "n"]) -> Platt:
    """Platt scaling of probabilities against labels 0/1; `CannotRecalibrateError` where there is no rising fit."""
    labels, scores = _fittable(labels, scores)
    fit = Platt(*logistic_recalibration(labels, _off_the_ends(scores, PROBABILITY_FLOOR)))
    if not np.isfinite(fit).all():
        raise CannotRecalibrateError("the validation scores separate the classes: no logistic fit exists")
    if fit.slope <= 0:
        raise CannotRecalibrateError("the validation scores rank the classes no better than backwards")
    return fit


def fit_isotonic(labels: Float[Array, "n"], scores: Float[Array, "n"]) -> Isotonic:
    """Isotonic regression of labels 0/1 on probabilities; `CannotRecalibrateError` where one class is missing.

    Probabilities stay within [1 / (n + 2), 1 - 1 / (n + 2)], Laplace's rule of succession: n rows cannot show that
    something never happens.
    """
    labels, scores = _fittable(labels, scores)
    ranking = rank(-scores)  # ascending
    ones = np.ones((len(labels), 1))
    counts, positives = (ranking.group(values)[:, 0] for values in (ones, labels[:, None]))
    fitted = isotonic_regression(positives / counts, weights=counts).x
    return Isotonic(np.unique(scores), _off_the_ends(fitted, 1 / (len(labels) + 2)))


METHODS = {"platt": fit_platt, "isotonic": fit_isotonic}


class Recalibration(NamedTuple):
    """Recalibrated test scores by method ("platt", "isotonic"), and the figures on test before and after.

    `figures` is {"before": {...}, METHOD: {...}} with the calibration slope and intercept, ECE and Brier score, None
    where undefined; a method that could not be fitted has only a "reason". Multi-label: {OUTPUT: such a table}, and an
    output that could not be fitted keeps its own scores.
    """

    scores: dict[str, Float[Array, "n K"]]
    figures: dict[str, Any]


def recalibrate(
    kind: str,
    val: tuple[Shaped[Array, "m K"], Float[Array, "m K"], Bool[Array, "m K"]],
    test: tuple[Shaped[Array, "n K"], Float[Array, "n K"], Bool[Array, "n K"]],
    *,
    names: Sequence[str] = (),
) -> Recalibration:
    """Fit each method on `val` and apply it to `test`, both (labels, scores, mask), output by output.

    `kind` is binary or multilabel; of other kinds the figures are a "reason". `names` are those of the outputs.
    """
    if kind not in ("binary", "multilabel"):
        return Recalibration({}, {"reason": f"defined for binary and multilabel tasks, this one is {kind}"})
    val, test = (tuple(_columns(np.asarray(part)) for part in split) for split in (val, test))
    num_outputs = test[1].shape[1]
    names = list(names) or [str(k) for k in range(num_outputs)]
    scores: dict[str, np.ndarray] = {}
    tables: dict[str, dict[str, Any]] = {}
    for k in range(num_outputs):
        fits, reasons = _fits(*(part[val[2][:, k].astype(bool), k] for part in val[:2]))
        for method, fit in fits.items():
            scores.setdefault(method, test[1].astype(np.float64))[:, k] = fit(test[1][:, k])
        known = test[2][:, k].astype(bool)
        after = {method: scores[method][known, k] for method in fits}
        tables[names[k]] = _table(test[0][known, k], {"before": test[1][known, k]} | after, fits) | reasons
    return Recalibration(scores, tables if kind == "multilabel" else tables[names[0]])


def _fits(labels: np.ndarray, scores: np.ndarray) -> tuple[dict[str, Any], dict[str, dict[str, str]]]:
    """What could be fitted by method, and why not."""
    fits, reasons = {}, {}
    for method, fit in METHODS.items():
        try:
            fits[method] = fit(labels, scores)
        except CannotRecalibrateError as error:
            reasons[method] = {"reason": str(error)}
    return fits, reasons


def _table(labels: np.ndarray, scores: Mapping[str, np.ndarray], fits: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    table = {
        system: {name: _or_none(metric(labels, values)) for name, metric in FIGURES.items()}
        for system, values in scores.items()
    }
    if "platt" in fits:
        table["platt"] |= {f"fitted_{name}": float(value) for name, value in fits["platt"]._asdict().items()}
    return table


def _fittable(labels: Array, scores: Array) -> tuple[np.ndarray, np.ndarray]:
    labels, scores = check_probabilities(labels, scores)
    if not len(labels):
        raise CannotRecalibrateError("no validation row has a known label")
    if len(np.unique(labels)) < 2:
        among = counted(len(labels), "validation label")
        raise CannotRecalibrateError(f"only {labels[0]:g} among {among}: both classes are needed")
    if np.ptp(scores) == 0:
        raise CannotRecalibrateError("the validation scores are the same for every row")
    return labels, scores


def _columns(values: np.ndarray) -> np.ndarray:
    return values[:, None] if values.ndim == 1 else values


def _off_the_ends(values: Array, least: float) -> np.ndarray:
    return np.clip(np.asarray(values, np.float64), least, 1 - least)


def _or_none(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
