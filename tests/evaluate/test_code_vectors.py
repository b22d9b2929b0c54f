"""Code vectors: files that come back as they were, rows by the name of the code, coverage counted by hand."""

import doctest
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ehrjax.evaluate import code_vectors
from ehrjax.evaluate.code_vectors import describe_coverage, init_embedding, read_code_vectors, write_code_vectors

TOKENS = ("[PAD]", "[UNK]", "[MASK]", "[CLS]", "[SEP]", "DX//A//1", "LAB//L//7//Q2", "RX//9", "DX//A//2")
NAMES = ["DX//A//2", "LAB//L//7", "DX//A//1", "DX", "[CLS]", "other"]
VECTORS = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
TABLE = np.random.default_rng(1).normal(0, 0.02, size=(9, 3)).astype(np.float32)


def test_a_table_of_no_codes_changes_nothing_and_comes_back(tmp_path):
    write_code_vectors(tmp_path / "none.parquet", [], np.zeros((0, 3)))
    names, vectors = read_code_vectors(tmp_path / "none.parquet")
    assert names == [] and len(vectors) == 0
    table, coverage = init_embedding(TABLE, TOKENS, [], np.zeros((0, 3)), counts=np.zeros(9))
    np.testing.assert_array_equal(table, TABLE)
    assert coverage["num_missing"] == 4 and coverage["occurrences_missing"] == 0.0


def test_parquet_comes_back_as_it_was_written_with_its_metadata(tmp_path):
    path = tmp_path / "deep" / "vectors.parquet"
    write_code_vectors(path, NAMES, VECTORS, metadata={"model": "med2vec"})
    names, vectors = read_code_vectors(path)
    assert names == NAMES and vectors.dtype == np.float32
    np.testing.assert_array_equal(vectors, VECTORS)
    schema = pq.read_schema(path)
    assert schema.field("vector").type == pa.list_(pa.float32()) and schema.metadata[b"model"] == b"med2vec"
    assert [file.name for file in path.parent.iterdir()] == ["vectors.parquet"]


def test_word2vec_text_is_read_even_where_a_code_holds_spaces(tmp_path):
    (tmp_path / "vectors.txt").write_text("2 3\nDX//A b 1 -2 0.5\nRX//9 0 1e-3 4\n")
    names, vectors = read_code_vectors(tmp_path / "vectors.txt")
    assert names == ["DX//A b", "RX//9"]
    np.testing.assert_allclose(vectors, [[1, -2, 0.5], [0, 1e-3, 4]])


def test_files_that_are_no_tables_of_vectors_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone\.parquet"):
        read_code_vectors(tmp_path / "gone.parquet")
    (tmp_path / "short.txt").write_text("2 3\nDX 1 2 3\n")
    (tmp_path / "noise.parquet").write_bytes(b"noise")
    pq.write_table(pa.table({"code": ["a"], "value": [1.0]}), tmp_path / "columns.parquet")
    pq.write_table(pa.table({"code": ["a", "b"], "vector": [[1.0], [1.0, 2.0]]}), tmp_path / "ragged.parquet")
    for name in ("short.txt", "noise.parquet", "columns.parquet", "ragged.parquet"):
        with pytest.raises(ValueError, match=rf"{name}: not a table of code vectors"):
            read_code_vectors(tmp_path / name)


def test_doubled_codes_and_vectors_that_are_not_finite_are_named(tmp_path):
    with pytest.raises(ValueError, match="'a' is there twice"):
        write_code_vectors(tmp_path / "x.parquet", ["a", "b", "a"], np.ones((3, 2)))
    with pytest.raises(ValueError, match="vector of 'b' is not finite"):
        init_embedding(TABLE, TOKENS, ["a", "b"], np.array([[1, 2, 3], [1, np.nan, 3]]))
    with pytest.raises(ValueError, match="2 names and vectors of shape"):
        write_code_vectors(tmp_path / "x.parquet", ["a", "b"], np.ones((3, 2)))
    assert not list(tmp_path.iterdir())


def test_rows_follow_the_name_then_the_nearest_parent_and_else_stay():
    table, coverage = init_embedding(TABLE, TOKENS, NAMES, VECTORS, counts=np.array([9, 9, 9, 9, 9, 4, 3, 2, 1]))
    kept = [0, 1, 2, 3, 4, 7]  # special tokens, one of which has a vector, and the code that nothing is known of
    np.testing.assert_array_equal(table[kept], TABLE[kept])
    scale = np.sqrt((TABLE[[5, 6, 8]] ** 2).mean() / (VECTORS[[2, 1, 0]] ** 2).mean())
    np.testing.assert_allclose(table[[5, 6, 8]], scale * VECTORS[[2, 1, 0]], rtol=1e-5)
    assert coverage["num_codes"] == 4
    assert [coverage[f"num_{kind}"] for kind in ("exact", "parent", "missing")] == [2, 1, 1]
    assert [coverage[kind] for kind in ("exact", "parent", "missing")] == [0.5, 0.25, 0.25]
    shares = [coverage[f"occurrences_{kind}"] for kind in ("exact", "parent", "missing")]
    np.testing.assert_allclose(shares, [0.5, 0.3, 0.2])
    assert json.loads(json.dumps(coverage)) == coverage


def test_a_nearer_parent_wins_over_a_farther_one():
    tokens = (*TOKENS[:5], "DX//A//3")
    table, _ = init_embedding(TABLE[:6], tokens, ["DX", "DX//A"], np.array([[1.0, 0, 0], [0, 1.0, 0]]))
    assert table[5, 1] > 0 and table[5, 0] == 0


def test_the_given_table_is_not_written_to():
    before = TABLE.copy()
    init_embedding(TABLE, TOKENS, NAMES, VECTORS)
    np.testing.assert_array_equal(TABLE, before)


def test_vectors_that_are_all_zero_leave_finite_rows():
    table, _ = init_embedding(TABLE, TOKENS, NAMES, np.zeros_like(VECTORS))
    assert np.isfinite(table).all() and (table[5] == 0).all()


def test_another_width_or_another_number_of_tokens_is_refused():
    with pytest.raises(ValueError, match=r"width 4 do not fit an embedding of width 3: set model.embed_dim=4"):
        init_embedding(TABLE, TOKENS, ["a"], np.ones((1, 4)))
    with pytest.raises(ValueError, match="8 tokens do not name the 9 rows"):
        init_embedding(TABLE, TOKENS[:-1], NAMES, VECTORS)


def test_coverage_in_one_line():
    assert doctest.testmod(code_vectors).failed == 0
    _, coverage = init_embedding(TABLE, TOKENS, NAMES, VECTORS)
    expected = "code vectors: 2 of 4 codes by name (50.0 %), 1 by a parent (25.0 %), 1 starts at random (25.0 %)"
    assert describe_coverage(coverage) == expected
