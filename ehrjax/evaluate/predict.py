"""A model's scores for every example in order, and the parquet file that MEDS-evaluation reads."""

import json
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Bool, Float, Int, Shaped

from ehrjax.evaluate.files import replaced
from ehrjax.types import Array, TokenBatch, VisitBatch

LINKS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "binary": jax.nn.sigmoid,
    "multilabel": jax.nn.sigmoid,
    "multiclass": jax.nn.softmax,
    "regression": lambda logits: logits,
    "survival": lambda incidence: incidence,  # of each cause at each horizon: the task's own link has been applied
}


def predict(
    apply_fn: Callable[[Any, Any], Any], params: Any, batches: Iterable[VisitBatch | TokenBatch], *, kind: str
) -> Float[np.ndarray, "E K"]:
    """Probabilities (regression: values) of all examples, ordered by example id; padding rows are dropped.

    `apply_fn(params, batch)` returns Outputs or logits: [B, K], or [B, S, K] where rows hold several sequences, or
    visit-level [B, V, K] of a VisitBatch; a visit-level result has one row a visit, examples in order and visits within
    them. Pass the same `apply_fn` object each time: its compiled form is kept. Raises ValueError where the batches
    leave out an example or bring one twice.
    """
    if kind not in LINKS:
        raise ValueError(f"kind={kind!r} is unknown: use one of {', '.join(LINKS)}.")
    step = _compiled(apply_fn, kind)
    # Results are fetched after the loop, so that the device never waits for the host.
    on_device = [(step(params, batch), batch) for batch in batches]
    ids, scores = [], []
    for batch_scores, batch in on_device:
        batch_ids, batch_scores = np.asarray(batch.example_ids), np.asarray(batch_scores, np.float32)
        real = batch_ids >= 0
        if batch_scores.ndim == 3 and batch_ids.ndim == 1:
            real = np.asarray(batch.visit_mask) & real[:, None]
            batch_ids = np.broadcast_to(batch_ids[:, None], real.shape)
        ids.append(batch_ids[real])
        scores.append(batch_scores[real])
    if not ids:
        raise ValueError("there are no batches to predict on: the split is empty.")
    return _in_order(ids, scores)


@lru_cache(maxsize=16)
def _compiled(apply_fn: Callable[[Any, Any], Any], kind: str) -> Callable[[Any, Any], jax.Array]:
    @jax.jit
    def step(params: Any, batch: VisitBatch | TokenBatch) -> jax.Array:
        output = apply_fn(params, batch)
        return LINKS[kind](getattr(output, "logits", output))

    return step


def _in_order(ids: Sequence[np.ndarray], scores: Sequence[np.ndarray]) -> np.ndarray:
    all_ids = np.concatenate(ids)
    present = np.unique(all_ids)
    missing = np.flatnonzero(present != np.arange(len(present)))
    if len(missing):
        raise ValueError(f"example {missing[0]} is in no batch: predict on all batches of one split.")
    # Each batch lists an example's rows in one run, so more runs than examples means that one came twice.
    num_runs = sum(int((np.diff(batch_ids) != 0).sum()) + (len(batch_ids) > 0) for batch_ids in ids)
    if num_runs != len(present):
        raise ValueError(f"{num_runs} predictions for {len(present)} examples: an example is in two batches.")
    return np.concatenate(scores)[np.argsort(all_ids, kind="stable")]


def write_predictions(
    path: str | Path,
    kind: str,
    *,
    subject_ids: Int[Array, "n"],
    times: Int[Array, "n"],
    labels: Shaped[Array, "n L"],
    scores: Float[Array, "n K"],
    mask: Bool[Array, "n L"] | None = None,
    names: Sequence[str] = (),
    threshold: float = 0.5,
) -> None:
    """Write one row a prediction: subject_id, prediction_time, the label (null where masked) and the prediction.

    Binary: the columns of MEDS-evaluation, with `score >= threshold` as the decision. Multi-class and regression follow
    the same naming with the MEDS label columns. Multi-label: lists in the order of `names`, which the schema's metadata
    holds (for multi-class the class names). Survival: days, event number, and a list of incidences in the order of
    `names`. `times` are seconds since 1970-01-01.
    """
    labels, scores = (_columns(x) for x in (labels, scores))
    known = np.ones(labels.shape, bool) if mask is None else np.asarray(mask, bool).reshape(labels.shape)
    columns = {
        "subject_id": pa.array(np.asarray(subject_ids), pa.int64()),
        "prediction_time": pa.array(np.asarray(times, np.int64) * 1_000_000, pa.timestamp("us")),
        **_COLUMNS[kind](labels, scores, known, names=names, threshold=threshold),
    }
    table = pa.table(columns)
    table = table.replace_schema_metadata({"kind": kind, "names": json.dumps(list(names))})
    with replaced(path) as partial:
        pq.write_table(table, partial)


def _binary_columns(labels, scores, known, *, names, threshold) -> dict[str, pa.Array]:
    return {
        "boolean_value": pa.array(labels[:, 0] > 0.5, mask=~known[:, 0]),
        "predicted_boolean_value": pa.array(scores[:, 0] >= threshold),
        "predicted_boolean_probability": pa.array(scores[:, 0].astype(np.float64)),
    }


def _multiclass_columns(labels, scores, known, *, names, threshold) -> dict[str, pa.Array]:
    names = np.array(list(names) or [str(k) for k in range(scores.shape[1])], object)
    classes = np.where(known[:, 0], labels[:, 0], 0).astype(np.int64)
    predicted = scores.argmax(axis=1)
    return {
        "categorical_value": pa.array(names[classes], pa.string(), mask=~known[:, 0]),
        "predicted_categorical_value": pa.array(names[predicted], pa.string()),
        "predicted_categorical_probabilities": _lists(scores.astype(np.float64)),
    }


def _multilabel_columns(labels, scores, known, *, names, threshold) -> dict[str, pa.Array]:
    num_outputs = labels.shape[1]
    flat = pa.array(labels.ravel() > 0.5, mask=~known.ravel())
    return {
        "boolean_values": pa.FixedSizeListArray.from_arrays(flat, num_outputs),
        "predicted_boolean_values": _lists(scores >= threshold),
        "predicted_boolean_probabilities": _lists(scores.astype(np.float64)),
    }


def _regression_columns(labels, scores, known, *, names, threshold) -> dict[str, pa.Array]:
    return {
        "float_value": pa.array(labels[:, 0].astype(np.float32), mask=~known[:, 0]),
        "predicted_float_value": pa.array(scores[:, 0].astype(np.float64)),
    }


def _survival_columns(labels, scores, known, *, names, threshold) -> dict[str, pa.Array]:
    lost = ~known.all(axis=1)
    return {
        "days_value": pa.array(labels[:, 0].astype(np.float32), mask=lost),
        "event_value": pa.array(np.where(lost, 0, labels[:, 1]).astype(np.int64), mask=lost),
        "predicted_incidences": _lists(scores.astype(np.float64)),
    }


def _lists(values: np.ndarray) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])


def _columns(values: Array) -> np.ndarray:
    """[n] as [n, 1]; a matrix as it is, so that no rows keep their number of columns."""
    values = np.asarray(values)
    return values[:, None] if values.ndim == 1 else values


_COLUMNS: dict[str, Callable[..., dict[str, pa.Array]]] = {
    "binary": _binary_columns,
    "multiclass": _multiclass_columns,
    "multilabel": _multilabel_columns,
    "regression": _regression_columns,
    "survival": _survival_columns,
}
