"""The model against the best baseline: differences on the same patients, with a paired bootstrap.

The baseline is chosen on validation rows. Choosing the best on test would favour it by its luck there, and choosing by
each metric in turn would compare the model with a system that nobody could have deployed.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from ehrjax.metrics.bootstrap import NUM_RESAMPLES, Interval, paired_difference
from ehrjax.metrics.summary import known_rows, metrics_for
from ehrjax.types import Array

# What ranks the baselines on validation: metric, and whether more is better; the next one where it is undefined.
CHOSEN_BY = {
    "binary": (("auroc", True), ("log_loss", False)),
    "multilabel": (("macro_auroc", True), ("brier", False)),
    "multiclass": (("macro_auroc", True), ("log_loss", False)),
    "regression": (("rmse", False),),
    "survival": (("c_index", True),),
}
# Metrics at a threshold differ by how each system's threshold was chosen, and a slope is best at 1, not high or low.
AT_A_THRESHOLD = ("accuracy", "f1", "event1", "precision", "recall", "specificity", "macro_f1", "micro_f1")
BEST_AT_ONE_VALUE = ("calibration_slope", "calibration_intercept", "observed_to_expected")


def best_baseline(
    kind: str,
    labels: Shaped[Array, "n K"],
    scores: Mapping[str, Float[Array, "n K"]],
    mask: Bool[Array, "n K"] | None = None,
    *,
    metrics: Mapping[str, Any] | None = None,
) -> str | None:
    """Name of the best of `scores` on validation rows, the first of equals; None where no metric is defined.

    `metrics` are the kind's own where not given (see `metrics_for`).
    """
    for name, more_is_better in CHOSEN_BY[kind]:
        values = {}
        for system, system_scores in scores.items():
            shown = known_rows(kind, labels, system_scores, mask, np.arange(len(labels)))[:2]
            metric = (metrics or metrics_for(kind, num_outputs=_num_outputs(shown[1])))[name]
            values[system] = float(metric(*shown)) if len(shown[0]) else np.nan
        defined = {system: value for system, value in values.items() if np.isfinite(value)}
        if defined:
            return max(defined, key=lambda system: defined[system] if more_is_better else -defined[system])
    return None


def difference_to(
    kind: str,
    labels: Shaped[Array, "n K"],
    scores: Float[Array, "n K"],
    baseline: str,
    baseline_scores: Float[Array, "n K"],
    subject_ids: Int[Array, "n"],
    mask: Bool[Array, "n K"] | None = None,
    *,
    metrics: Mapping[str, Any] | None = None,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """Model minus baseline on test rows: {metric: {"value", "low", "high", "baseline"}}, a figure None where undefined.

    Only metrics without a decision threshold. Both systems are drawn on the same resamples of patients.
    """
    known, ours, subjects = known_rows(kind, labels, scores, mask, subject_ids)
    _, theirs, _ = known_rows(kind, labels, baseline_scores, mask, subject_ids)
    every = metrics or metrics_for(kind, num_outputs=_num_outputs(ours))
    compared = {name: metric for name, metric in every.items() if not _is_left_out(name, kind)}
    found = paired_difference(compared, known, ours, theirs, subjects, num_resamples=num_resamples, seed=seed)
    return {name: {**interval_row(interval), "baseline": baseline} for name, interval in found.items()}


def interval_row(interval: Interval) -> dict[str, float | None]:
    """{"value", "low", "high"} as results.json holds them: None where undefined."""
    return {key: float(x) if np.isfinite(x := getattr(interval, key)) else None for key in ("value", "low", "high")}


def _is_left_out(name: str, kind: str) -> bool:
    return name.startswith(BEST_AT_ONE_VALUE) or (name in AT_A_THRESHOLD and kind in ("binary", "multilabel"))


def _num_outputs(scores: np.ndarray) -> int | None:
    return scores.shape[1] if scores.ndim == 2 else None
