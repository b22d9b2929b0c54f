"""How well hidden codes are filled in: loss and top-k accuracy over masked codes, with patient-level intervals."""

from typing import Any

import numpy as np
from jaxtyping import Float, Int

from ehrjax.metrics.bootstrap import NUM_RESAMPLES
from ehrjax.metrics.ratios import Metric, evaluate_ratios, ratio, sum_by_patient
from ehrjax.types import Array

TOP_K = {"mlm_accuracy": 1, "mlm_top5_accuracy": 5, "mlm_top10_accuracy": 10}


def target_ranks(scores: Float[Array, "n G"], targets: Int[Array, "n"]) -> Int[np.ndarray, "n"]:
    """How many columns come before the target's (0 = top); equal scores rank the lower column first."""
    scores, targets = np.asarray(scores), np.asarray(targets)
    own = np.take_along_axis(scores, targets[:, None], axis=1)
    is_left = np.arange(scores.shape[1]) < targets[:, None]
    return ((scores > own) | ((scores == own) & is_left)).sum(axis=1)


def masked_code_metrics(
    ranks: Int[Array, "n"], log_probabilities: Float[Array, "n"], patients: Int[Array, "n"]
) -> tuple[dict[str, Metric], int]:
    """The metrics of masked codes by name, as functions of patient weights, and the number of patients.

    One entry a masked code: rank of the true code (0 = top), its log probability in nats, and whose it is (any ids).
    """
    ranks, log_probabilities, patients = (np.asarray(x) for x in (ranks, log_probabilities, patients))
    if not len(ranks) == len(log_probabilities) == len(patients):
        lengths = [len(ranks), len(log_probabilities), len(patients)]
        raise ValueError(f"ranks, log_probabilities and patients have lengths {lengths}: give one of each a code.")
    if np.isnan(log_probabilities).any():
        row = np.flatnonzero(np.isnan(log_probabilities))[0]
        raise ValueError(f"the log probability of masked code {row} is NaN: mend the model.")
    distinct, owner = np.unique(patients, return_inverse=True)
    counts = np.bincount(owner, minlength=len(distinct)).astype(np.float64)
    values = {"mlm_loss": -log_probabilities} | {name: ranks < k for name, k in TOP_K.items()}
    return {name: ratio(sum_by_patient(value, owner, len(distinct)), counts) for name, value in values.items()}, len(
        distinct
    )


def evaluate_masked_codes(
    ranks: Int[Array, "n"],
    log_probabilities: Float[Array, "n"],
    patients: Int[Array, "n"],
    *,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """Loss, accuracy, top-5 and top-10 accuracy over masked codes, each as {"value", "low", "high"}.

    Arguments as in `masked_code_metrics`. Every masked code counts the same; 95 % intervals by patient-level bootstrap.
    """
    metrics, num_patients = masked_code_metrics(ranks, log_probabilities, patients)
    return evaluate_ratios(metrics, num_patients, reason="no code is masked", num_resamples=num_resamples, seed=seed)
