"""Test predictions read back from the Parquet files that a run writes."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Bool, Float, Int, Shaped

from ehrjax.metrics.summary import Horizons


class Predictions(NamedTuple):
    """Labels and scores of the test rows of a task, unknown labels masked.

    Multi-class labels are class numbers; those of survival (days, event), and its scores incidences.
    """

    kind: str
    names: tuple[str, ...]  # of the outputs or classes; empty where the task has one output
    subject_ids: Int[np.ndarray, "n"]
    times: Int[np.ndarray, "n"]  # microseconds since 1970-01-01
    labels: Shaped[np.ndarray, "n L"]
    scores: Float[np.ndarray, "n K"]
    mask: Bool[np.ndarray, "n L"]


COLUMNS = {
    "binary": ("boolean_value", "predicted_boolean_probability"),
    "multiclass": ("categorical_value", "predicted_categorical_probabilities"),
    "multilabel": ("boolean_values", "predicted_boolean_probabilities"),
    "regression": ("float_value", "predicted_float_value"),
    "survival": ("days_value", "predicted_incidences"),
}
_SURVIVAL_NAME = re.compile(r"(.+) by (\d+(?:\.\d+)?) days")


def read_predictions(path: str | Path) -> Predictions:
    """What `write_predictions` wrote; ValueError, naming the file, for another table or a kind without columns here."""
    try:
        table = pq.read_table(path)
        metadata = table.schema.metadata or {}
        kind, names = metadata[b"kind"].decode(), tuple(json.loads(metadata[b"names"]))
    except (KeyError, ValueError, pa.ArrowException) as error:
        raise ValueError(f"{path}: not a table of predictions of a run ({error!r}).") from error
    if kind not in COLUMNS:
        raise ValueError(f"{path}: predictions of kind {kind!r} cannot be read back: known are {', '.join(COLUMNS)}.")
    label_column, score_column = (table[name].combine_chunks() for name in COLUMNS[kind])
    labels, mask = _labels(kind, names, label_column, table.num_rows)
    if kind == "survival":
        events = _matrix(table["event_value"].combine_chunks(), table.num_rows)
        labels, mask = np.hstack([labels, np.where(mask, events, 0.0)]), np.hstack([mask, mask])
    return Predictions(
        kind,
        names,
        table["subject_id"].to_numpy(),
        table["prediction_time"].cast(pa.int64()).to_numpy(),
        labels,
        _matrix(score_column, table.num_rows).astype(np.float64),
        mask,
    )


def horizons_of(names: Sequence[str]) -> Horizons:
    """Causes and days that names such as "death by 365 days" stand for, causes first; ValueError for other names.

    >>> horizons_of(["death by 365 days", "death by 730 days"])
    Horizons(causes=('death',), days=(365.0, 730.0))
    """
    found = [_SURVIVAL_NAME.fullmatch(name) for name in names]
    if not all(found):
        raise ValueError(f"names of survival scores are {list(names)}: expected such as 'death by 365 days'.")
    causes, days = (tuple(dict.fromkeys(match[group] for match in found)) for group in (1, 2))
    return Horizons(causes, tuple(map(float, days)))


def _labels(kind: str, names: tuple[str, ...], column: pa.Array, num_rows: int) -> tuple[np.ndarray, np.ndarray]:
    if kind == "multiclass":
        place = {name: number for number, name in enumerate(names or map(str, range(num_rows)))}
        texts = column.to_pylist()
        mask = np.array([text is not None for text in texts], bool)[:, None]
        return np.array([place.get(text, 0) for text in texts], np.int64)[:, None], mask
    values = _matrix(column, num_rows)
    mask = np.isfinite(values)
    return np.where(mask, values, 0.0), mask


def _matrix(column: pa.Array, num_rows: int) -> np.ndarray:
    """A column, or a column of lists of one length, as [n, K] floats; null is NaN."""
    flat = column.flatten() if pa.types.is_fixed_size_list(column.type) else column
    return np.array(flat.cast(pa.float64()).to_numpy(zero_copy_only=False)).reshape(num_rows, -1 if num_rows else 1)
