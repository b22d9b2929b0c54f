"""Predictions in example order whatever the batches look like, and the files written from them."""

import json

import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ehrjax.data.batching import VisitBatches
from ehrjax.evaluate.predict import predict, write_predictions
from ehrjax.types import Outputs
from tests.sequences import make_sequences


def last_age(params, batch):
    """A model whose logit is the age at each example's last visit."""
    last = jnp.argmax(jnp.cumsum(batch.visit_mask, axis=1), axis=1)
    return Outputs(logits=params * jnp.take_along_axis(batch.ages, last[:, None], axis=1))


def each_age(params, batch):
    """A visit-level model."""
    return Outputs(logits=params * batch.ages[..., None])


def two_logits(params, batch):
    """Bare logits instead of Outputs."""
    return jnp.stack([batch.ages[:, 0], jnp.zeros(len(batch.ages))], axis=1)


def test_no_batches():
    with pytest.raises(ValueError, match="split is empty"):
        predict(last_age, 1.0, [], kind="binary")


def test_a_missing_and_a_doubled_example_are_refused():
    batches = list(VisitBatches(make_sequences([1, 2, 3, 1]), batch_size=2).eval_batches())
    with pytest.raises(ValueError, match="example 0 is in no batch"):
        predict(last_age, 1.0, batches[1:], kind="binary")
    with pytest.raises(ValueError, match="in two batches"):
        predict(last_age, 1.0, [*batches, batches[0]], kind="binary")


def test_unknown_kind():
    with pytest.raises(ValueError, match="kind='ordinal'"):
        predict(last_age, 1.0, [], kind="ordinal")


@pytest.mark.parametrize("batch_size", [1, 3, 7])
def test_scores_come_in_example_order_without_padding(batch_size):
    sequences = make_sequences([3, 1, 4, 1, 5, 2, 2])
    batches = list(VisitBatches(sequences, batch_size=batch_size, num_buckets=2).eval_batches())
    scores = predict(last_age, 0.01, reversed(batches), kind="binary")
    expected = 1 / (1 + np.exp(-0.01 * sequences.ages[sequences.example_offsets[1:] - 1]))
    np.testing.assert_allclose(scores[:, 0], expected, rtol=1e-5)
    assert scores.dtype == np.float32


def test_visit_level_has_one_row_a_visit():
    sequences = make_sequences([3, 1, 4], level="visit")
    batches = list(VisitBatches(sequences, batch_size=2, level="visit").eval_batches())
    scores = predict(each_age, 1.0, reversed(batches), kind="regression")
    np.testing.assert_allclose(scores[:, 0], sequences.ages)


def test_multiclass_scores_are_probabilities():
    batches = list(VisitBatches(make_sequences([2, 1, 1]), batch_size=2).eval_batches())
    scores = predict(two_logits, None, batches, kind="multiclass")
    assert scores.shape == (3, 2)
    np.testing.assert_allclose(scores.sum(axis=1), 1, rtol=1e-6)


def test_the_same_function_compiles_once_a_shape():
    traces = []

    def counting(params, batch):
        traces.append(1)
        return last_age(params, batch)

    batches = list(VisitBatches(make_sequences([2] * 6), batch_size=2, num_buckets=1, max_codes=9).eval_batches())
    shapes = {batch.codes.shape for batch in batches}
    for params in (1.0, 2.0):
        predict(counting, params, batches, kind="binary")
    assert len(traces) == len(shapes)


def _write(path, kind, labels, scores, **options):
    count = len(labels)
    write_predictions(
        path,
        kind,
        subject_ids=np.arange(count) + 10,
        times=np.full(count, 86_400),
        labels=np.asarray(labels),
        scores=np.asarray(scores, np.float32),
        **options,
    )
    return pq.read_table(path)


def test_binary_file_has_the_columns_of_meds_evaluation(tmp_path):
    mask = [[True], [False], [True]]
    table = _write(
        tmp_path / "p" / "t.parquet", "binary", [[1.0], [0], [0]], [[0.3], [0.2], [0.1]], threshold=0.25, mask=mask
    )
    assert dict(zip(table.schema.names, table.schema.types, strict=True)) == {
        "subject_id": pa.int64(),
        "prediction_time": pa.timestamp("us"),
        "boolean_value": pa.bool_(),
        "predicted_boolean_value": pa.bool_(),
        "predicted_boolean_probability": pa.float64(),
    }
    assert table["boolean_value"].to_pylist() == [True, None, False]
    assert table["predicted_boolean_value"].to_pylist() == [True, False, False]
    assert table["prediction_time"][0].as_py().isoformat() == "1970-01-02T00:00:00"
    assert [file.name for file in (tmp_path / "p").iterdir()] == ["t.parquet"]


def test_other_kinds_keep_labels_scores_and_names(tmp_path):
    table = _write(
        tmp_path / "c.parquet", "multiclass", [[2], [0]], [[0.1, 0.7, 0.2], [0.5, 0.2, 0.3]], names=["a", "b", "c"]
    )
    assert table["categorical_value"].to_pylist() == ["c", "a"]
    assert table["predicted_categorical_value"].to_pylist() == ["b", "a"]
    assert len(table["predicted_categorical_probabilities"][0]) == 3
    labels, mask = [[1.0, np.nan], [0, 1]], [[True, False], [True, True]]
    table = _write(tmp_path / "m.parquet", "multilabel", labels, [[0.9, 0.1], [0.2, 0.8]], names=["x", "y"], mask=mask)
    assert table["boolean_values"].to_pylist() == [[True, None], [False, True]]
    assert table["predicted_boolean_values"].to_pylist() == [[True, False], [False, True]]
    assert json.loads(table.schema.metadata[b"names"]) == ["x", "y"]
    table = _write(tmp_path / "r.parquet", "regression", [[1.5]], [[2.5]])
    assert table["float_value"].to_pylist() == [1.5] and table["predicted_float_value"].to_pylist() == [2.5]


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "t.parquet"
    _write(path, "binary", [[1]], [[0.3]])
    before = path.read_bytes()

    def full_disk(table, where):
        where.write_bytes(b"PAR1 half")
        raise OSError("no space left on device")

    monkeypatch.setattr(pq, "write_table", full_disk)
    with pytest.raises(OSError, match="no space"):
        _write(path, "binary", [[0]], [[0.9]])
    assert path.read_bytes() == before and [file.name for file in tmp_path.iterdir()] == ["t.parquet"]
