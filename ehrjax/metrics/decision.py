"""Decision curves: what acting on a risk is worth at each threshold (Vickers and Elkin, 2006, Med Decis Making 26:565).

A threshold t says that one true positive is worth (1 - t) / t false positives. Net benefit counts true positives a
patient, less false positives at that exchange rate; a model is of use where it lies above treating all and none.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Shaped

from ehrjax.metrics.weighted import check_probabilities
from ehrjax.types import Array

THRESHOLDS = np.arange(1, 100) / 100


class DecisionCurve(NamedTuple):
    """Net benefit by system, "treat all" and "treat none" among them."""

    thresholds: Float[Array, "T"]
    net_benefit: dict[str, Float[Array, "T"]]


def net_benefit(
    labels: Shaped[Array, "n"], scores: Float[Array, "n"], thresholds: Float[Array, "T"] = THRESHOLDS
) -> Float[Array, "T"]:
    """TP / n - FP / n * t / (1 - t), where a probability >= t is acted on; NaN without a row.

    Thresholds lie strictly between 0 and 1, in any order. Labels 0/1, scores probabilities.
    """
    labels, scores = check_probabilities(labels, scores)
    thresholds = np.asarray(thresholds, np.float64)
    if not np.all((thresholds > 0) & (thresholds < 1)):
        raise ValueError(f"thresholds={thresholds} must lie between 0 and 1, both excluded.")
    if not len(labels):
        return np.full(thresholds.shape, np.nan)
    order = np.argsort(scores, kind="stable")
    num_below = np.searchsorted(scores[order], thresholds, side="left")
    positives_below = np.r_[0.0, np.cumsum(labels[order])][num_below]
    true_positives = labels.sum() - positives_below
    false_positives = len(labels) - num_below - true_positives
    return (true_positives - false_positives * thresholds / (1 - thresholds)) / len(labels)


def decision_curve(
    labels: Shaped[Array, "n"], scores: Mapping[str, Float[Array, "n"]], thresholds: Float[Array, "T"] = THRESHOLDS
) -> DecisionCurve:
    """Net benefit of each system on the same rows, of treating all of them, and of treating none."""
    constant = {"treat all": np.ones(len(labels)), "treat none": np.zeros(len(labels))}
    curves = {name: net_benefit(labels, values, thresholds) for name, values in {**scores, **constant}.items()}
    return DecisionCurve(np.asarray(thresholds, np.float64), curves)
