"""How good the best possible model would be on the simulated test rows: the oracle's own figures."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from ehrjax.data.labels import Labels
from ehrjax.data.oracle import ORACLE_TASKS
from ehrjax.data.simulate_stays import TASK as STAY_TASK
from ehrjax.metrics.summary import Horizons, known_rows, metrics_for

FORMS = {"": "probability_recorded", "latent_": "probability_latent"}
METRICS = {
    "binary": ("auroc", "auprc", "brier"),
    "multilabel": ("macro_auroc", "macro_auprc", "brier"),
    "survival": ("c_index", "c_index_ipcw", "auc", "brier"),
}


def stay_forms(modalities: Sequence[str]) -> dict[str, str]:
    """The forms of a simulated stay's oracle for a model that reads these modalities: what it reads, and all."""
    form = modalities[0] if len(set(modalities)) == 1 else "both"
    return {"": f"probability_{form}", "latent_": "probability_latent"}


def evaluate_oracle(
    task: str, simulated: Path, labels: Labels, *, forms: Mapping[str, str] = FORMS
) -> dict[str, Any] | None:
    """Metrics of the true probabilities on these label rows; None for a task that the oracle does not cover.

    `auroc`, `auprc` and `brier` (their means over outputs; for survival concordance and the figures at the horizon)
    belong to the oracle that knows what the record holds; the names that start with `latent_` to the one that knows
    the patient's hidden state as well. `forms` names the oracle's column by such a prefix. Raises ValueError where a
    row is not found.
    """
    scores = oracle_scores(task, simulated, labels, forms=forms)
    if scores is None:
        return None
    metrics, figures = _metrics(task, labels), {}
    for prefix, score in scores.items():
        values, score, _ = known_rows(labels.kind, labels.values, score, labels.mask, labels.subject_ids)
        figures |= {prefix + name: float(metric(values, score)) for name, metric in metrics.items()}
    return figures


def oracle_scores(
    task: str, simulated: Path, labels: Labels, *, forms: Mapping[str, str] = FORMS
) -> dict[str, np.ndarray] | None:
    """True probabilities of label rows, float32 [E, K], by prefix of `forms`; 0 where a label is masked.

    Survival: [E, 1], of an event of the first cause within the horizon. None for a task that the oracle lacks.
    """
    outputs = [f"{task}--{name}" for name in labels.names] if labels.kind == "multilabel" else [task]
    if labels.kind not in METRICS or not set(outputs) <= {*ORACLE_TASKS, STAY_TASK}:
        return None
    scores = {prefix: np.zeros((len(labels.times), len(outputs)), np.float32) for prefix in forms}
    for k, output in enumerate(outputs):
        # That of stays is of one task and has no column that names it.
        rows_of_task = None if output == STAY_TASK else [("task", "=", output)]
        table = pq.read_table(simulated / "oracle.parquet", filters=rows_of_task)
        known = np.flatnonzero(labels.mask[:, k])
        rows = _find(table, labels.subject_ids[known], labels.times[known], output)
        for prefix, column in forms.items():
            scores[prefix][known, k] = table[column].to_numpy()[rows]
    return scores


def _metrics(task: str, labels: Labels) -> dict[str, Callable[..., float]]:
    horizons = None
    if labels.kind == "survival":
        horizons = Horizons(labels.names[:1], (float(ORACLE_TASKS[task].horizon_days),))
    every = metrics_for(labels.kind, num_outputs=len(labels.names), horizons=horizons)
    chosen = METRICS[labels.kind]
    return {
        name: metric for name, metric in every.items() if name in chosen or name.rsplit("_", 1)[0] in ("auc", "brier")
    }


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
