"""Train, validation and test patients: by hash of the id, or as the source gives them. (By time: see `cutoff`.)

A split is an array of "train", "val", "test", one entry a patient. The hash looks at one patient's id and the seed
only, so adding patients moves nobody. Files use MEDS's names (train, tuning, held_out).
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

SPLITS = ("train", "val", "test")
DEFAULT_FRACTIONS = (0.7, 0.15, 0.15)
_TO_MEDS = {"train": "train", "val": "tuning", "test": "held_out"}
_FROM_FILE = {name: name for name in SPLITS} | {meds: name for name, meds in _TO_MEDS.items()} | {"validation": "val"}


def mix64(x: np.ndarray) -> np.ndarray:
    """The splitmix64 finaliser (Steele et al., 2014, OOPSLA): a bijection of uint64 without visible pattern."""
    with np.errstate(over="ignore"):
        x = np.asarray(x).astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def hash_uniform(seed: int, *keys: np.ndarray) -> np.ndarray:
    """Uniform draws in [0, 1) (float64), a pure function of the seed and of each row's integer keys."""
    state = mix64(np.array([seed], np.int64))
    for key in keys:
        state = mix64(np.asarray(key, np.int64).astype(np.uint64) ^ state)
    return (state >> np.uint64(11)).astype(np.float64) * 2.0**-53


def assign_splits(
    subject_ids: np.ndarray,
    *,
    seed: int = 0,
    fractions: tuple[float, float, float] = DEFAULT_FRACTIONS,
    source_splits: Mapping[int, str] | None = None,
) -> np.ndarray:
    """Split of each patient (str [n]): the one in `source_splits` (id -> split) where it has the patient, else by hash.

    Where the source has no "val" at all, it is drawn from its "train" in the proportion of `fractions`.
    Raises ValueError for bad fractions, and for a split with no patient (it says how many there are and what to do).
    """
    subject_ids = np.asarray(subject_ids, np.int64)
    _check_fractions(fractions)
    draws = hash_uniform(seed, subject_ids)
    splits = np.array(SPLITS)[np.searchsorted(np.cumsum(fractions)[:2], draws, side="right")]
    if source_splits:
        given = np.array([source_splits.get(int(i), "") for i in subject_ids])
        if fractions[1] > 0 and not (given == "val").any():
            given[(given == "train") & (draws < fractions[1] / (fractions[0] + fractions[1]))] = "val"
        splits = np.where(given != "", given, splits)
    check_splits(splits, wanted=tuple(name for name, part in zip(SPLITS, fractions, strict=True) if part > 0))
    return splits


def _check_fractions(fractions) -> None:
    if len(fractions) != 3 or min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-6:
        raise ValueError(f"fractions={tuple(fractions)} must be three shares, train, val and test, that sum to 1.")


def check_splits(splits: np.ndarray, *, wanted: tuple[str, ...] = SPLITS) -> None:
    """ValueError where a wanted split has no patient: it says how many patients there are and what to do."""
    if len(splits) < len(wanted):
        way_out = f"at least {len(wanted)} patients are needed: add data, or pool several folders (data.path=A,B)"
    else:
        way_out = "take another data.seed, larger fractions for it, more patients, or correct the source's split file"
    counts = {name: int((splits == name).sum()) for name in SPLITS}
    if empty := [name for name in wanted if not counts[name]]:
        found = ", ".join(f"{n} {name}" for name, n in counts.items())
        total = f"{len(splits)} patient{'s' * (len(splits) != 1)}"
        raise ValueError(f"no patient in split {' and '.join(empty)} ({total}: {found}): {way_out}.")


def assert_disjoint(**groups: np.ndarray) -> None:
    """ValueError naming a patient who is in two of the named groups of ids, e.g. `train=..., test=...`."""
    owner: list[tuple[str, np.ndarray]] = []
    for name, ids in groups.items():
        for other, seen in owner:
            shared = np.intersect1d(ids, seen)
            if len(shared):
                raise ValueError(f"{len(shared)} patients are in both {other} and {name}, the first is {shared[0]}.")
        owner.append((name, np.asarray(ids)))


def save_splits(path: str | Path, subject_ids: np.ndarray, splits: np.ndarray) -> None:
    """Write MEDS's `subject_splits.parquet` (subject_id int64, split string) sorted by patient."""
    order = np.argsort(subject_ids, kind="stable")
    names = pa.array([_TO_MEDS[str(name)] for name in np.asarray(splits)[order]], pa.string())
    pq.write_table(pa.table({"subject_id": np.asarray(subject_ids, np.int64)[order], "split": names}), path)


def load_splits(path: str | Path) -> dict[int, str]:
    """Patient -> "train", "val" or "test" from a MEDS `subject_splits.parquet`.

    Raises ValueError naming the file for a missing column, a split of another name, or a patient in two splits.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file: give a MEDS subject_splits.parquet.")
    table = pq.read_table(path)
    for column in ("subject_id", "split"):
        if column not in table.column_names:
            raise ValueError(f"{path}: no column {column!r} (found {', '.join(table.column_names)}).")
    splits: dict[int, str] = {}
    for row, (subject, name) in enumerate(
        zip(*(table[c].to_pylist() for c in ("subject_id", "split")), strict=True), 1
    ):
        if subject is None or name not in _FROM_FILE:
            raise ValueError(
                f"{path}: row {row}: patient {subject}, split {name!r}: splits are {', '.join(_FROM_FILE)}."
            )
        if splits.setdefault(int(subject), _FROM_FILE[name]) != _FROM_FILE[name]:
            raise ValueError(f"{path}: row {row}: patient {subject} is in two splits: keep one row a patient.")
    return splits
