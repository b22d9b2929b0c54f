"""Models that differ by their seed alone: figures of the members, and how far one patient's risk moves.

A metric can agree between members that disagree about patients, so both are told. Scores of members are [M, n, ...];
the prediction of the ensemble is their mean (of probabilities or incidences, not of logits).
"""

from collections.abc import Callable, Mapping
from itertools import combinations
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped
from scipy.stats import rankdata

from ehrjax.metrics.summary import Horizons, known_rows, metrics_for
from ehrjax.types import Array


def ensemble_scores(members: Float[Array, "M n *K"]) -> Float[np.ndarray, "n *K"]:
    """The members' mean prediction."""
    return np.mean(np.asarray(members), axis=0)


def seed_figures(
    kind: str,
    labels: Shaped[Array, "n K"],
    members: Float[Array, "M n K"],
    mask: Bool[Array, "n K"] | None,
    subject_ids: Int[Array, "n"],
    *,
    threshold: float = 0.5,
    event1_threshold: float | None = None,
    horizons: Horizons | None = None,
) -> dict[str, Any]:
    """`{"num_seeds", "members": {METRIC: {"mean", "std", "min", "max"}}, "risk_spread": {...}}`, None where undefined.

    Rows without a known label do not count (multi-label: entries). Thresholds are the ensemble's and decide for every
    member; `horizons` as for `evaluate`. The ensemble's own figures are those of `evaluate` on `ensemble_scores`.
    Raises ValueError for fewer than two members.
    """
    members = np.asarray(members)
    if members.ndim < 2 or len(members) < 2:
        raise ValueError(f"members have shape {members.shape}: a spread needs two members or more, [M, n, ...].")
    shown = [known_rows(kind, labels, scores, mask, subject_ids)[:2] for scores in members]
    known, scores = shown[0][0], np.stack([each for _, each in shown])
    num_outputs = scores.shape[2] if scores.ndim == 3 else None
    options = {"threshold": threshold, "event1_threshold": event1_threshold, "horizons": horizons}
    metrics = metrics_for(kind, num_outputs=num_outputs, **options)
    risks, decisions = _risks_and_decisions(kind, known, scores, threshold)
    return {
        "num_seeds": len(members),
        "members": metric_spread(metrics, known, scores),
        "risk_spread": risk_spread(risks, decisions),
    }


def metric_spread(
    metrics: Mapping[str, Callable[..., Any]], labels: Array, members: Float[Array, "M n *K"]
) -> dict[str, dict[str, Any]]:
    """Mean, standard deviation (of a sample), least and greatest value over members of each metric(labels, scores).

    Members for whom a metric is undefined are left out and counted in "members_undefined".
    """
    table = {}
    for name, metric in metrics.items():
        values = np.array([float(metric(labels, scores)) if len(scores) else np.nan for scores in members])
        defined = values[np.isfinite(values)]
        row = {key: float(figure(defined)) if len(defined) else None for key, figure in _FIGURES.items()}
        row["std"] = float(defined.std(ddof=1)) if len(defined) > 1 else None
        missing = len(values) - len(defined)
        table[name] = row | ({"members_undefined": missing} if missing else {})
    return table


_FIGURES = {"mean": np.mean, "std": np.std, "min": np.min, "max": np.max}


def risk_spread(
    risks: Float[Array, "M n C"], decisions: Shaped[Array, "M n C"] | None = None
) -> dict[str, float | None]:
    """How much the same prediction differs between members; [M, n] or [M, n, C], NaN in any of them left out.

    "median_std", "p95_std", "median_range" and "p95_range" are taken over predictions, of the members' standard
    deviation (of a sample) and of their greatest minus least risk; "flip_share" is the share of predictions about
    whose decision members disagree (without `decisions` None). "rank_correlation_mean" and "_min" are Spearman's over
    pairs of members, each output ranked by itself; an output with the same risk for every row has none.
    """
    risks = _with_outputs(np.asarray(risks, np.float64))
    is_known = np.isfinite(risks).all(axis=0)
    known = risks[:, is_known]
    table: dict[str, float | None] = {}
    for name, values in (("std", known.std(axis=0, ddof=1)), ("range", np.ptp(known, axis=0))):
        for label, quantile in (("median", 0.5), ("p95", 0.95)):
            table[f"{label}_{name}"] = float(np.quantile(values, quantile)) if values.size else None
    table["flip_share"] = None
    if decisions is not None and known.size:
        decided = _with_outputs(decisions)[:, is_known]
        table["flip_share"] = float((decided != decided[:1]).any(axis=0).mean())
    columns = [risks[:, rows, output] for output, rows in enumerate(is_known.T)]
    pairs = np.concatenate([np.zeros(0), *(_rank_correlations(column) for column in columns)])
    pairs = pairs[np.isfinite(pairs)]
    table["rank_correlation_mean"] = float(pairs.mean()) if len(pairs) else None
    table["rank_correlation_min"] = float(pairs.min()) if len(pairs) else None
    return table


def _with_outputs(values: Array) -> np.ndarray:
    values = np.asarray(values)
    return values[..., None] if values.ndim == 2 else values


def _rank_correlations(scores: Float[np.ndarray, "M n"]) -> np.ndarray:
    """Spearman's correlation of each pair of members; NaN where one of them gives all rows the same score."""
    ranks = rankdata(scores, axis=1) if scores.size else np.zeros((len(scores), 1))
    ranks -= ranks.mean(axis=1, keepdims=True)
    norms = np.sqrt((ranks**2).sum(axis=1))
    found = [
        ranks[a] @ ranks[b] / (norms[a] * norms[b]) if norms[a] and norms[b] else np.nan
        for a, b in combinations(range(len(scores)), 2)
    ]
    return np.array(found)


def _risks_and_decisions(kind: str, labels: np.ndarray, members: np.ndarray, threshold: float):
    """What moves between members: the predicted risks (multi-class: of the class that the ensemble predicts)."""
    if kind == "binary":
        return members, members >= threshold
    if kind == "multilabel":
        return np.where(np.isfinite(labels)[None], members, np.nan), members >= threshold
    if kind == "multiclass":
        likeliest = ensemble_scores(members).argmax(axis=-1) if members.size else np.zeros(members.shape[1], int)
        return np.take_along_axis(members, likeliest[None, :, None], axis=2)[..., 0], members.argmax(axis=2)
    return members, None
