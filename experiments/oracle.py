"""How good the best possible model would be on the simulated test rows: the oracle's own figures."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from ehrjax.data.labels import Labels
from ehrjax.metrics.classification import auprc, auroc, brier


def evaluate_oracle(task: str, simulated: Path, labels: Labels) -> dict[str, Any] | None:
    """Metrics of the true probabilities on these label rows; None for a task that the oracle does not cover.

    `auroc`, `auprc` and `brier` belong to the oracle that knows what the record holds; the names that start with
    `latent_` to the one that knows the patient's hidden state as well. Raises ValueError where a row is not found.
    """
    if labels.kind != "binary":
        return None
    table = pq.read_table(simulated / "oracle.parquet", filters=[("task", "=", task)])
    if not len(table):
        return None
    known = labels.mask[:, 0]
    rows = _find(table, labels.subject_ids[known], labels.times[known], task)
    values = labels.values[known, 0]
    figures = {}
    for prefix, column in (("", "probability_recorded"), ("latent_", "probability_latent")):
        scores = table[column].to_numpy()[rows]
        for name, metric in (("auroc", auroc), ("auprc", auprc), ("brier", brier)):
            figures[prefix + name] = float(metric(values, scores))
    return figures


def _find(table, subject_ids: np.ndarray, times: np.ndarray, task: str) -> np.ndarray:
    """Row of the table for each subject and time."""
    seconds = table["prediction_time"].cast("int64").to_numpy() // 1_000_000
    rows = pd.MultiIndex.from_arrays([table["subject_id"].to_numpy(), seconds])
    found = rows.get_indexer(pd.MultiIndex.from_arrays([subject_ids, times]))
    missing = np.flatnonzero(found < 0)
    if len(missing):
        raise ValueError(
            f"oracle.parquet has no {task} row for subject {subject_ids[missing[0]]} at {times[missing[0]]} s "
            f"({len(missing)} such rows): simulated tables and labels do not belong together."
        )
    return found
