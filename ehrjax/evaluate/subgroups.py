"""Figures by age band, sex and race, with small groups and small numbers of events suppressed.

A count under 10 is shown as "<10". Where the counts of the other groups and the total would give it away, the smallest
other group is withheld with it (complementary suppression: Hundepool et al., 2012, Statistical Disclosure Control).
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from ehrjax.evaluate.comparison import interval_row
from ehrjax.metrics.bootstrap import NUM_RESAMPLES, bootstrap
from ehrjax.metrics.summary import known_rows, metrics_for
from ehrjax.types import Array

MIN_COUNT = 10
SMALL, WITHHELD = f"<{MIN_COUNT}", "withheld"
AGE_EDGES = (18, 40, 65, 80)
AGE_BANDS = ("under 18", "18 to 39", "40 to 64", "65 to 79", "80 and over")
UNKNOWN = "unknown"
SECONDS_A_YEAR = 365.25 * 86_400
STATIC_PREFIXES = {"sex": ("GENDER//", "SEX//"), "race": ("RACE//",)}
SHOWN = {
    "binary": ("auroc", "auprc", "brier", "calibration_intercept"),
    "multilabel": ("macro_auroc", "macro_auprc", "brier"),
    "multiclass": ("accuracy", "macro_auroc", "log_loss"),
    "regression": ("mae", "rmse", "spearman"),
    "survival": ("c_index", "integrated_brier"),
}
KINDS_WITH_EVENTS = ("binary", "multilabel", "survival")


def patient_groups(
    stores: Sequence[Any], subject_ids: Int[Array, "n"], times: Int[Array, "n"]
) -> dict[str, Shaped[Array, "n"]]:
    """{"age", "sex", "race"}: the group of each row (str [n]) at its index time (seconds); "unknown" where unrecorded.

    Sex and race are static codes of the event stores (`ehrjax.data.store.Store`). Of several codes of a patient the
    first counts.
    """
    subject_ids, times = np.asarray(subject_ids), np.asarray(times)
    groups = {"age": _full(len(times)), **{name: _full(len(times)) for name in STATIC_PREFIXES}}
    for store in stores:
        values = {name: _values_of_codes(store.codes, prefixes) for name, prefixes in STATIC_PREFIXES.items()}
        for shard in store.shards:
            found, rows = _locate(np.asarray(shard.subject_ids), subject_ids)
            groups["age"][found] = _age_bands(np.asarray(shard.birth)[rows], times[found])
            for name, value_of_code in values.items():
                groups[name][found] = _first_values(shard, value_of_code)[rows]
    return {name: group.astype(np.str_) for name, group in groups.items()}


def _full(length: int) -> np.ndarray:
    return np.full(length, UNKNOWN, object)


def _locate(known: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which of `wanted` are in `known` (ascending), and where."""
    if not len(known):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    place = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
    found = np.flatnonzero(known[place] == wanted)
    return found, place[found]


def _age_bands(birth: np.ndarray, times: np.ndarray) -> np.ndarray:
    is_known = birth != np.iinfo(np.int64).min
    years = (times - np.where(is_known, birth, 0)) / SECONDS_A_YEAR
    bands = np.array(AGE_BANDS, object)[np.searchsorted(AGE_EDGES, years, side="right")]
    return np.where(is_known, bands, UNKNOWN)


def _values_of_codes(codes: Array, prefixes: tuple[str, ...]) -> np.ndarray:
    """What a code says after its prefix; "" for codes of another kind."""
    texts = [next((code.split("//", 1)[1] for p in prefixes if code.startswith(p)), "") for code in map(str, codes)]
    return np.array(texts, object)


def _first_values(shard: Any, value_of_code: np.ndarray) -> np.ndarray:
    """The value of each subject's first static code of the kind."""
    offsets, values = np.asarray(shard.static_offsets), value_of_code[np.asarray(shard.static_codes)]
    owner = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    is_of_kind = values != ""
    subjects, first = np.unique(owner[is_of_kind], return_index=True)
    out = _full(len(offsets) - 1)
    out[subjects] = values[is_of_kind][first]
    return out


def subgroup_table(
    kind: str,
    labels: Shaped[Array, "n K"],
    scores: Float[Array, "n K"],
    mask: Bool[Array, "n K"] | None,
    subject_ids: Int[Array, "n"],
    groups: Mapping[str, Shaped[Array, "n"]],
    *,
    metrics: Mapping[str, Any] | None = None,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> dict[str, dict[str, dict[str, Any]]]:
    """{attribute: {group: {"num_patients", "num_positive", METRIC: {"value", "low", "high"}}}}, groups in order.

    Counts are of patients with a known label and of those among them with a positive (survival: an event). A count is
    an int, "<10", or "withheld". Groups of fewer than 10 patients, or of fewer than 10 patients with or without an
    event, have no metrics, but a "reason". Intervals are from a bootstrap over patients; `metrics` as in `metrics_for`.
    """
    known = np.ones(np.shape(labels), bool) if mask is None else np.asarray(mask, bool)
    rows = np.flatnonzero(_columns(known).any(axis=1))
    parts = _Rows(*(np.asarray(x)[rows] for x in (labels, scores, known, subject_ids)))
    options = {"metrics": metrics, "num_resamples": num_resamples, "seed": seed}
    return {name: _table(kind, parts, np.asarray(of_row)[rows], **options) for name, of_row in groups.items()}


class _Rows(NamedTuple):
    labels: np.ndarray
    scores: np.ndarray
    mask: np.ndarray
    subject_ids: np.ndarray

    def take(self, rows: np.ndarray) -> "_Rows":
        return _Rows(*(x[rows] for x in self))


def _table(kind: str, parts: _Rows, of_row: np.ndarray, *, metrics, num_resamples: int, seed: int) -> dict[str, Any]:
    """Counts and figures of the groups of one attribute."""
    names = _in_order(of_row)
    members = {name: parts.take(np.flatnonzero(of_row == name)) for name in names}
    patients = np.array([len(np.unique(group.subject_ids)) for group in members.values()], np.int64)
    has_events = kind in KINDS_WITH_EVENTS
    positives = np.array([_num_positive(kind, group) for group in members.values()], np.int64) if has_events else None
    table = _counts(names, patients, positives)
    for k, (name, group) in enumerate(members.items()):
        if reason := _too_few(patients[k], positives[k] if has_events else None):
            table[name]["reason"] = reason
            continue
        shown = known_rows(kind, group.labels, group.scores, group.mask, group.subject_ids)
        chosen = _shown_metrics(kind, shown[1], metrics)
        intervals = bootstrap(chosen, *shown, num_resamples=num_resamples, seed=seed)
        table[name] |= {metric: interval_row(interval) for metric, interval in intervals.items()}
    return table


def _num_positive(kind: str, group: _Rows) -> int:
    """Patients with an event."""
    labels, known = _columns(group.labels), _columns(group.mask)
    is_positive = labels[:, 1] > 0 if kind == "survival" else ((labels > 0) & known).any(axis=1)
    return len(np.unique(group.subject_ids[is_positive]))


def _columns(values: np.ndarray) -> np.ndarray:
    return values[:, None] if values.ndim == 1 else values


def _in_order(of_row: np.ndarray) -> list[str]:
    """Age bands by age, other groups by name, "unknown" last."""
    names = np.unique(of_row).tolist()
    place = {name: k for k, name in enumerate(AGE_BANDS)}
    return sorted(names, key=lambda name: (name == UNKNOWN, place.get(name, 0), name))


def _counts(names: Sequence[str], patients: np.ndarray, positives: np.ndarray | None) -> dict[str, dict[str, Any]]:
    columns = {"num_patients": _suppressed(patients, patients < MIN_COUNT)}
    if positives is not None:
        # Few patients without an event are as telling as few with one, and a hidden group's events stay hidden too.
        is_small = (positives < MIN_COUNT) | (patients - positives < MIN_COUNT)
        hidden = np.array([isinstance(count, str) for count in columns["num_patients"]], bool)
        columns["num_positive"] = _suppressed(positives, is_small | hidden)
    return {name: {key: column[k] for key, column in columns.items()} for k, name in enumerate(names)}


def _suppressed(counts: np.ndarray, is_hidden: np.ndarray) -> list[int | str]:
    """Counts with the hidden ones replaced, and as many more as it takes for the total not to give one away.

    What is hidden must be at least two groups that sum to 10: two of one patient each would follow from a sum of two.
    """
    is_hidden = is_hidden.copy()
    for k in np.argsort(counts, kind="stable"):
        if not is_hidden.any() or (is_hidden.sum() >= 2 and counts[is_hidden].sum() >= MIN_COUNT):
            break
        is_hidden[k] = True
    return [
        int(count) if not hidden else SMALL if count < MIN_COUNT else WITHHELD
        for count, hidden in zip(counts, is_hidden, strict=True)
    ]


def _too_few(num_patients: int, num_positive: int | None) -> str:
    if num_patients < MIN_COUNT:
        return f"fewer than {MIN_COUNT} patients"
    if num_positive is not None and num_positive < MIN_COUNT:
        return f"fewer than {MIN_COUNT} patients with an event"
    if num_positive is not None and num_patients - num_positive < MIN_COUNT:
        return f"fewer than {MIN_COUNT} patients without an event"
    return ""


def _shown_metrics(kind: str, scores: np.ndarray, metrics: Mapping[str, Any] | None) -> dict[str, Any]:
    every = metrics or metrics_for(kind, num_outputs=scores.shape[1] if scores.ndim == 2 else None)
    return {name: metric for name, metric in every.items() if name in SHOWN[kind]}
