"""Predictions of each kind come back as they were written; other files are refused."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ehrjax.evaluate.predict import write_predictions
from ehrjax.evaluate.saved_predictions import horizons_of, read_predictions

SCORES = np.array([[0.25, 0.75], [0.5, 0.5], [1.0, 0.0]])
MASK = np.array([[True, True], [False, False], [True, False]])
LABELS = {
    "binary": np.array([[1.0], [0.0], [0.0]]),
    "regression": np.array([[2.5], [0.0], [-1.0]]),
    "multiclass": np.array([[1], [0], [0]]),
    "multilabel": np.array([[1.0, 0.0], [0.0, 0.0], [1.0, 0.0]]),
    "survival": np.array([[30.0, 1.0], [0.0, 0.0], [90.0, 0.0]]),
}
NAMES = {"multiclass": ("a", "b"), "multilabel": ("x", "y"), "survival": ("death by 365 days", "death by 730 days")}


def _write(path, kind, num_rows=3):
    labels = LABELS[kind][:num_rows]
    scores = (SCORES if kind in NAMES else SCORES[:, :1])[:num_rows]
    mask = (MASK[:, : labels.shape[1]] if kind != "survival" else MASK[:, :1].repeat(2, axis=1))[:num_rows]
    ids = np.arange(len(labels))
    write_predictions(
        path,
        kind,
        subject_ids=ids,
        times=ids * 60,
        labels=labels,
        scores=scores,
        mask=mask,
        names=NAMES.get(kind, ()),
    )
    return labels, scores, mask


@pytest.mark.parametrize("kind", LABELS)
def test_what_was_written_is_read(tmp_path, kind):
    labels, scores, mask = _write(tmp_path / "p.parquet", kind)
    found = read_predictions(tmp_path / "p.parquet")
    assert (found.kind, found.names) == (kind, NAMES.get(kind, ()))
    np.testing.assert_array_equal(found.times, [0, 60_000_000, 120_000_000])
    np.testing.assert_array_equal(found.mask, mask)
    np.testing.assert_array_equal(np.where(mask, found.labels, 0), np.where(mask, labels, 0))
    np.testing.assert_allclose(found.scores, scores)


@pytest.mark.parametrize("kind", LABELS)
def test_no_row_at_all(tmp_path, kind):
    _write(tmp_path / "some.parquet", kind)
    _write(tmp_path / "none.parquet", kind, num_rows=0)
    assert pq.read_schema(tmp_path / "none.parquet").equals(pq.read_schema(tmp_path / "some.parquet"))
    found = read_predictions(tmp_path / "none.parquet")
    assert len(found.labels) == len(found.scores) == len(found.mask) == 0


def test_other_tables_are_refused_by_name(tmp_path):
    path = tmp_path / "other.parquet"
    table = pa.table({"subject_id": [1]})
    for metadata in (None, {"kind": "binary"}, {"kind": "ranking", "names": "[]"}):
        pq.write_table(table.replace_schema_metadata(metadata), path)
        with pytest.raises(ValueError, match=r"other\.parquet"):
            read_predictions(path)


def test_horizons_of_several_causes():
    names = [f"{cause} by {days} days" for cause in ("stroke by clot", "death") for days in ("30", "182.5")]
    assert horizons_of(names) == (("stroke by clot", "death"), (30.0, 182.5))
