"""How well the code set of the next visit is predicted, from chunks of rows, with patient-level intervals.

A row is a visit with its score for every code. Chunks are read once and reduced to sums by patient, so that the scores
of all visits need not fit into memory. Recall@k and precision@k are means over rows, as in `ranking`: recall over rows
with a true code among the candidates, precision over rows with any candidate. Special tokens are never candidates, and
equal scores rank the lower column first.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp
from jaxtyping import Bool, Float, Int

from ehrjax.metrics.bootstrap import NUM_RESAMPLES
from ehrjax.metrics.ratios import Metric, evaluate_ratios, patient_metric, ratio, sum_by_patient
from ehrjax.metrics.weighted import divide
from ehrjax.types import FIRST_CODE

TOP_K = (5, 10, 20)  # over all codes
SUBSET_K = 10  # by code type, new onset and recurrence
# Thresholds are searched on a grid of this many leading bits of a float32: relative steps of 2**-11 at any scale.
GRID_BITS = 20


class NextVisitChunk(NamedTuple):
    """Some rows: a visit to be predicted each, never the first of its patient and never one without codes."""

    scores: Float[np.ndarray, "n G"]  # higher = likelier; any scale, the same for all chunks
    targets: Bool[np.ndarray, "n G"]  # the visit holds the code
    history: Bool[np.ndarray, "n G"]  # an earlier visit of the patient holds the code
    patients: Int[np.ndarray, "n"]


def best_f1_threshold(chunks: Iterable[NextVisitChunk]) -> float:
    """The threshold of highest micro-F1, to be chosen on val; 0.5 where there is no row.

    Exact up to a relative step of 2**-11 in the scores. Lies half-way between two neighbouring occupied steps.
    """
    num_steps = 2**GRID_BITS
    predicted, hits = np.zeros(num_steps, np.int64), np.zeros(num_steps, np.int64)
    for chunk in chunks:
        scores, targets = _checked(chunk)
        steps = (_ordered_bits(scores[:, FIRST_CODE:]) >> (32 - GRID_BITS)) + num_steps // 2
        predicted += np.bincount(steps.ravel(), minlength=num_steps)
        hits += np.bincount(steps[targets[:, FIRST_CODE:]], minlength=num_steps)
    if not hits.any():
        return 0.5
    occupied = np.flatnonzero(predicted)[::-1]
    true_positives, num_predicted = np.cumsum(hits[occupied]), np.cumsum(predicted[occupied])
    best = int(np.argmax(2 * true_positives / (num_predicted + hits.sum())))
    edge = _lower_edge(occupied[best])
    if best + 1 == len(occupied):
        return edge
    return float(np.float32((edge + _lower_edge(occupied[best + 1] + 1)) / 2))


def evaluate_next_visit(
    chunks: Iterable[NextVisitChunk],
    *,
    threshold: float,
    types: Sequence[str] | None = None,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """Every metric of next-visit prediction as {"value", "low", "high"}; arguments as in `next_visit_metrics`."""
    metrics, num_patients = next_visit_metrics(chunks, threshold=threshold, types=types)
    reason = "no visit to predict has such a code"
    return evaluate_ratios(metrics, num_patients, reason=reason, num_resamples=num_resamples, seed=seed)


def next_visit_metrics(
    chunks: Iterable[NextVisitChunk], *, threshold: float, types: Sequence[str] | None = None
) -> tuple[dict[str, Metric], int]:
    """The metrics by name, as functions of patient weights, and the number of patients.

    `next_visit_f1` (micro) and `next_visit_macro_f1` (over the codes that occur) decide by `score >= threshold`;
    `next_visit_recall_at_K` and `.._precision_at_K`; the same at 10 with the suffix `_new` (candidates: codes that the
    patient never had), `_recurrent` (those the patient had), and one suffix a type in `types` (the type of every
    token; candidates: codes of that type).
    """
    groups = _groups_of(types)
    patients: list[np.ndarray] = []
    rows: list[dict[str, np.ndarray]] = []
    decisions: list[_Decisions] = []
    for chunk in chunks:
        scores, targets = _checked(chunk)
        if types is not None and len(types) != scores.shape[1]:
            raise ValueError(f"types has {len(types)} entries but the scores {scores.shape[1]} columns: name each.")
        patients.append(np.asarray(chunk.patients))
        rows.append(_rank_statistics(scores, targets, np.asarray(chunk.history, bool), groups))
        decisions.append(_decide(scores, targets, patients[-1], threshold))
    if not rows:
        return {name: ratio(np.zeros(0), np.zeros(0)) for name in metric_names(types)}, 0
    distinct, owner = np.unique(np.concatenate(patients), return_inverse=True)
    metrics = _f1_metrics(decisions, distinct)
    for name in rows[0]:
        values = np.concatenate([row[name] for row in rows])
        known = np.isfinite(values)
        sums = (sum_by_patient(x, owner, len(distinct)) for x in (np.where(known, values, 0.0), known))
        metrics[name] = ratio(*sums)
    return metrics, len(distinct)


def metric_names(types: Sequence[str] | None = None) -> list[str]:
    """What `evaluate_next_visit` returns, in order."""
    ranked = [("", k) for k in TOP_K] + [
        (f"_{suffix}", SUBSET_K) for suffix in ("new", "recurrent", *_groups_of(types))
    ]
    at_k = [f"next_visit_{name}_at_{k}{suffix}" for suffix, k in ranked for name in ("recall", "precision")]
    return ["next_visit_f1", "next_visit_macro_f1", *at_k]


class _Decisions(NamedTuple):
    """How often each (patient, code) pair was predicted, true, and both."""

    pairs: Int[np.ndarray, "m"]  # position of the patient in `patients` times G plus the code
    counts: Int[np.ndarray, "m 3"]
    patients: np.ndarray
    num_codes: int


def _groups_of(types: Sequence[str] | None) -> dict[str, np.ndarray]:
    """Columns of each type."""
    if types is None:
        return {}
    of_codes = np.asarray(types, object)[FIRST_CODE:]
    return {name: np.flatnonzero(of_codes == name) + FIRST_CODE for name in dict.fromkeys(of_codes)}


def _checked(chunk: NextVisitChunk) -> tuple[np.ndarray, np.ndarray]:
    scores, targets = np.asarray(chunk.scores, np.float32), np.asarray(chunk.targets, bool)
    shapes = [scores.shape, targets.shape, np.shape(chunk.history)]
    if scores.ndim != 2 or len(set(shapes)) > 1 or len(chunk.patients) != len(scores):
        raise ValueError(f"scores, targets and history have shapes {shapes}, patients {np.shape(chunk.patients)}.")
    if not np.isfinite(scores).all():
        row, column = np.argwhere(~np.isfinite(scores))[0]
        raise ValueError(f"score {scores[row, column]} in row {row}, column {column} is not finite: mend the model.")
    return scores, targets


def _ordered_bits(scores: np.ndarray) -> np.ndarray:
    """int32 numbers in the order of the float32 scores."""
    bits = (scores + np.float32(0)).view(np.int32)  # -0 becomes 0
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


def _lower_edge(step: int) -> float:
    ordered = np.int32((int(step) - 2 ** (GRID_BITS - 1)) << (32 - GRID_BITS))
    return float((ordered ^ ((ordered >> 31) & np.int32(0x7FFFFFFF))).view(np.float32))


def _rank_statistics(
    scores: np.ndarray, targets: np.ndarray, history: np.ndarray, groups: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Recall and precision at k of each row by metric name, NaN where undefined."""
    keys = _keys(scores)
    statistics = dict(_at_k(keys, targets, TOP_K, ""))
    for suffix, candidates in (("new", ~history), ("recurrent", history)):
        hidden = np.where(candidates, keys, _NO_CANDIDATE)
        statistics |= _at_k(hidden, targets & candidates, (SUBSET_K,), f"_{suffix}")
    for name, columns in groups.items():
        # The columns keep their order, so ties fall as before; the keys name columns of the whole.
        of_type = np.zeros(targets.shape[1], bool)
        of_type[columns] = True
        statistics |= _at_k(keys[:, columns], targets & of_type, (SUBSET_K,), f"_{name}")
    return statistics


_NO_CANDIDATE = np.iinfo(np.int64).min


def _keys(scores: np.ndarray) -> np.ndarray:
    """One integer a score that sorts by score and, among equals, by falling column: no two of a row are the same."""
    columns = np.arange(scores.shape[1])
    keys = (_ordered_bits(scores).astype(np.int64) << 32) | (scores.shape[1] - 1 - columns)
    keys[:, :FIRST_CODE] = _NO_CANDIDATE
    return keys


def _at_k(keys: np.ndarray, targets: np.ndarray, ks: Sequence[int], suffix: str) -> Iterator[tuple[str, np.ndarray]]:
    """Recall and precision among the keys that are candidates; `targets` [n, G] are true candidates only."""
    num_true = targets[:, FIRST_CODE:].sum(axis=1)
    num_candidates = (keys != _NO_CANDIDATE).sum(axis=1)
    width = min(max(ks), keys.shape[1])
    # Partitioning the keys themselves is several times faster than argpartition: each holds its column.
    top = -np.sort(-np.partition(keys, keys.shape[1] - width, axis=1)[:, keys.shape[1] - width :], axis=1)
    columns = targets.shape[1] - 1 - (top & 0xFFFFFFFF)
    found = np.take_along_axis(targets, columns % targets.shape[1], axis=1) & (top != _NO_CANDIDATE)
    hits = np.cumsum(found, axis=1)
    for k in ks:
        hits_k = hits[:, min(k, width) - 1] if width else np.zeros(len(keys))
        yield f"next_visit_recall_at_{k}{suffix}", divide(hits_k.astype(np.float64), num_true)
        yield f"next_visit_precision_at_{k}{suffix}", divide(hits_k.astype(np.float64), np.minimum(num_candidates, k))


def _decide(scores: np.ndarray, targets: np.ndarray, patients: np.ndarray, threshold: float) -> _Decisions:
    """Counts of predicted, true and both by patient and code; pairs without either are left out."""
    distinct, owner = np.unique(patients, return_inverse=True)
    predicted = scores >= np.float32(threshold)
    rows, codes = np.nonzero((predicted | targets)[:, FIRST_CODE:])
    codes += FIRST_CODE
    pairs, place = np.unique(owner[rows] * scores.shape[1] + codes, return_inverse=True)
    is_predicted, is_true = predicted[rows, codes], targets[rows, codes]
    kinds = (is_predicted, is_true, is_predicted & is_true)
    counts = np.stack([np.bincount(place[kind], minlength=len(pairs)) for kind in kinds], axis=1)
    return _Decisions(pairs, counts, distinct, scores.shape[1])


def _f1_metrics(decisions: Sequence[_Decisions], distinct: np.ndarray) -> dict[str, Metric]:
    num_codes = decisions[0].num_codes
    owners = [np.searchsorted(distinct, part.patients)[part.pairs // num_codes] for part in decisions]
    codes = np.concatenate([part.pairs % num_codes for part in decisions])
    counts = np.concatenate([part.counts for part in decisions]).astype(np.float64)
    where, shape = (codes, np.concatenate(owners)), (num_codes, len(distinct))
    predicted, true, both = (sp.csr_matrix((column, where), shape) for column in counts.T)
    either = predicted + true

    def macro(weights: np.ndarray) -> np.ndarray:
        occurs = (true @ weights) > 0
        values = divide(2 * (both @ weights), np.where(occurs, either @ weights, 0.0))
        return divide(np.where(occurs, values, 0.0).sum(axis=0), occurs.sum(axis=0))

    micro = ratio(2 * _column_sums(both), _column_sums(either))
    # A resample lacks some of the rare codes, which are the hard ones: its mean lies above the value.
    return {"next_visit_f1": micro, "next_visit_macro_f1": patient_metric(macro, shifts=True)}


def _column_sums(matrix: sp.csr_matrix) -> np.ndarray:
    return np.asarray(matrix.sum(axis=0)).ravel()
