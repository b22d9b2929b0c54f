"""Tables of code vectors: written, read, and put into a model's embedding by the name of the code.

Ids differ between vocabularies, names do not: vectors learnt on one data set start a model of another one.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float, Int

from ehrjax.evaluate.files import replaced
from ehrjax.types import FIRST_CODE
from ehrjax.wording import counted

_SCHEMA = pa.schema([("code", pa.string()), ("vector", pa.list_(pa.float32()))])


def write_code_vectors(
    path: str | Path, names: Sequence[str], vectors: Float[np.ndarray, "codes E"], *, metadata: Mapping[str, str] = {}
) -> None:
    """Write parquet with columns code (string) and vector (list of float32); `metadata` goes into its schema."""
    vectors = np.asarray(vectors, np.float32)
    _check(names, vectors, "cannot be written")
    offsets = np.arange(len(names) + 1) * vectors.shape[1]
    lists = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(vectors.reshape(-1)))
    table = pa.table([pa.array([str(name) for name in names]), lists], schema=_SCHEMA.with_metadata(dict(metadata)))
    with replaced(path) as partial:
        pq.write_table(table, partial)


def read_code_vectors(path: str | Path) -> tuple[list[str], Float[np.ndarray, "codes E"]]:
    """Names and vectors of a parquet file, or of word2vec's text format (`.txt`, `.vec`: a line of sizes, then codes).

    Raises ValueError naming the file where it is neither, or where a code is there twice or a vector is not finite or
    of another width.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file of code vectors.")
    try:
        names, vectors = (_read_text if path.suffix in (".txt", ".vec") else _read_parquet)(path)
    except (ValueError, KeyError, pa.ArrowException) as error:
        raise ValueError(
            f"{path}: not a table of code vectors ({error}): parquet needs the columns code and vector, all vectors "
            "of one width; text (.txt, .vec) a line 'CODES WIDTH', then a code and its numbers a line."
        ) from error
    _check(names, vectors, f"in {path} cannot be used")
    return names, vectors


def init_embedding(
    table: Float[np.ndarray, "G E"],
    vocab_tokens: Sequence[str],
    names: Sequence[str],
    vectors: Float[np.ndarray, "codes E"],
    *,
    counts: Int[np.ndarray, "G"] | None = None,
) -> tuple[Float[np.ndarray, "G E"], dict[str, Any]]:
    """A copy of `table` whose rows are the vectors of their codes, and how many codes and occurrences that reached.

    A code without a vector takes that of its nearest ancestor along `//`; one without either, and the special tokens,
    keep their rows. All vectors are multiplied by one number that gives them the root mean square of the rows that they
    replace: directions and relative lengths stay, and age, position and visit weigh against codes as they would have.
    `counts` are occurrences in training by token. Raises ValueError where the widths differ.
    """
    vectors = np.asarray(vectors, np.float32)
    _check(names, vectors, "cannot be used")
    table = np.array(table)
    if len(vocab_tokens) != len(table):
        raise ValueError(f"{len(vocab_tokens)} tokens do not name the {len(table)} rows of the embedding table.")
    if vectors.shape[1] != table.shape[1]:
        raise ValueError(
            f"code vectors of width {vectors.shape[1]} do not fit an embedding of width {table.shape[1]}: "
            f"set model.embed_dim={vectors.shape[1]}, or learn vectors of width {table.shape[1]}."
        )
    rows_of = {str(name): row for row, name in enumerate(names)}
    found = [_find(token, rows_of) for token in vocab_tokens[FIRST_CODE:]]
    sources = np.array([-1] * FIRST_CODE + [row for row, _ in found])
    is_exact = np.array([False] * FIRST_CODE + [exact for _, exact in found])
    is_found = sources >= 0
    if is_found.any():
        taken = vectors[sources[is_found]]
        table[is_found] = taken * (_root_mean_square(table[is_found]) / max(_root_mean_square(taken), 1e-30))
    return table, _coverage(is_exact[FIRST_CODE:], is_found[FIRST_CODE:], counts)


def describe_coverage(coverage: Mapping[str, Any]) -> str:
    """One line that says how many codes got a vector.

    >>> describe_coverage({"num_codes": 8, "num_exact": 4, "num_parent": 2, "num_missing": 2,
    ...                    "exact": 0.5, "parent": 0.25, "missing": 0.25, "occurrences_missing": 0.1})
    'code vectors: 4 of 8 codes by name (50.0 %), 2 by a parent (25.0 %), 2 start at random (10.0 % of occurrences)'
    """
    occurrences = coverage.get("occurrences_missing")
    share = f"{coverage['missing']:.1%}" if occurrences is None else f"{occurrences:.1%} of occurrences"
    parts = (
        f"{coverage['num_exact']:,} of {counted(coverage['num_codes'], 'code')} by name ({coverage['exact']:.1%})",
        f"{coverage['num_parent']:,} by a parent ({coverage['parent']:.1%})",
        f"{counted(coverage['num_missing'], 'starts', 'start')} at random ({share})",
    )
    return f"code vectors: {', '.join(parts)}".replace("%", " %")


def _coverage(is_exact, is_found, counts) -> dict[str, Any]:
    """Numbers and shares of codes, and shares of occurrences where they are known."""
    kinds = {"exact": is_exact, "parent": is_found & ~is_exact, "missing": ~is_found}
    num_codes = len(is_found)
    coverage: dict[str, Any] = {"num_codes": num_codes}
    coverage |= {f"num_{kind}": int(chosen.sum()) for kind, chosen in kinds.items()}
    coverage |= {kind: float(chosen.sum() / max(num_codes, 1)) for kind, chosen in kinds.items()}
    if counts is not None:
        counts = np.asarray(counts, np.float64)[FIRST_CODE:]
        total = max(counts.sum(), 1.0)
        coverage |= {f"occurrences_{kind}": float(counts[chosen].sum() / total) for kind, chosen in kinds.items()}
    return coverage


def _find(token: str, rows_of: Mapping[str, int]) -> tuple[int, bool]:
    """Row of the token or of its nearest ancestor (-1 where there is neither), and whether it is its own."""
    name = token
    while name not in rows_of and "//" in name:
        name = name.rsplit("//", 1)[0]
    return rows_of.get(name, -1), name == token and name in rows_of


def _root_mean_square(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))


def _check(names: Sequence[str], vectors: np.ndarray, outcome: str) -> None:
    if vectors.ndim != 2 or len(vectors) != len(names):
        raise ValueError(f"code vectors {outcome}: {len(names)} names and vectors of shape {vectors.shape} do not fit.")
    if len(set(names)) != len(names):
        seen: set[str] = set()
        twice = next(name for name in names if name in seen or seen.add(name))
        raise ValueError(f"code vectors {outcome}: code {twice!r} is there twice.")
    is_finite = np.isfinite(vectors).all(axis=1)
    if not is_finite.all():
        raise ValueError(f"code vectors {outcome}: the vector of {names[int(np.argmin(is_finite))]!r} is not finite.")


def _read_parquet(path: Path) -> tuple[list[str], np.ndarray]:
    table = pq.read_table(path, columns=["code", "vector"])
    names, lists = table["code"].to_pylist(), table["vector"].combine_chunks()
    flat = np.asarray(lists.flatten().to_numpy(zero_copy_only=False), np.float32)
    widths = np.unique(lists.value_lengths().to_numpy(zero_copy_only=False))
    if None in names or len(widths) > 1:
        raise ValueError(f"vectors of widths {widths.tolist()}, {names.count(None)} codes without a name")
    return names, flat.reshape(len(names), -1) if len(names) else np.zeros((0, 0), np.float32)


def _read_text(path: Path) -> tuple[list[str], np.ndarray]:
    with path.open(encoding="utf-8") as file:
        num_codes, width = map(int, file.readline().split())
        # From the right, because a code may hold spaces.
        lines = [line.rstrip().rsplit(" ", width) for line in file if line.strip()]
    if len(lines) != num_codes or any(len(line) != width + 1 for line in lines):
        raise ValueError(f"{len(lines)} lines, where the first one tells of {num_codes} codes of width {width}")
    vectors = np.array([line[1:] for line in lines], np.float32).reshape(num_codes, width)
    return [line[0] for line in lines], vectors
