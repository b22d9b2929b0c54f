"""Do patients with the same diagnosis lie together? Clusters and neighbours among patient vectors."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import scipy.sparse as sp
from jaxtyping import Bool, Float, Int, Shaped
from sklearn.metrics import davies_bouldin_score, pairwise_distances, silhouette_score

from ehrjax.types import VisitSequences

MAX_CLUSTERED = 2000  # patients: distances of all pairs are needed
NEIGHBOURS = 10
MAX_DIAGNOSES = 20
SHARE_RANGE = (0.05, 0.5)  # of train patients: rarer ones have too few neighbours to find, others say little
BLOCK_VALUES = 2**22  # similarities in memory at once


def diagnosis_tokens(train: VisitSequences, types: Sequence[str]) -> Int[np.ndarray, "K"]:
    """Which diagnoses to judge by: the 20 most widespread of those that 5 to 50 % of train's patients have.

    `types` has the type of every token. Ordered by falling share, then by token; none where train has no such code.
    """
    share = patients_with(train, np.arange(len(types))).mean(axis=0) if len(train.subject_ids) else np.zeros(len(types))
    low, high = SHARE_RANGE
    chosen = np.flatnonzero((np.asarray(types, str) == "diagnosis") & (share >= low) & (share <= high))
    return chosen[np.argsort(-share[chosen], kind="stable")][:MAX_DIAGNOSES]


def patients_with(records: VisitSequences, tokens: Int[np.ndarray, "K"]) -> Bool[np.ndarray, "P K"]:
    """Whether each patient's record holds each token."""
    codes = np.asarray(records.codes)
    offsets = np.asarray(records.visit_offsets)[np.asarray(records.example_offsets)]
    shape = (len(offsets) - 1, int(max(codes.max(initial=0), np.max(tokens, initial=0))) + 1)
    counts = sp.csr_matrix((np.ones(len(codes), np.float32), codes, offsets), shape)
    return counts[:, tokens].toarray() > 0


def evaluate_embeddings(
    embeddings: Float[np.ndarray, "P D"], labels: Shaped[np.ndarray, "..."], *, seed: int = 0
) -> dict[str, Any]:
    """Silhouette, Davies-Bouldin index, and precision of the ten nearest neighbours beside what chance would give.

    `labels` are diagnoses [P, K] (bool, several a patient) or clusters [P] (integers). Diagnoses are judged one by one,
    with against without, and averaged. Clusters are measured on standardised vectors of at most 2,000 patients drawn by
    `seed`, neighbours by cosine among all. An undefined figure is None, and "reason" says why.
    """
    embeddings, labels = np.asarray(embeddings, np.float64), np.asarray(labels)
    if embeddings.ndim != 2 or labels.shape[:1] != embeddings.shape[:1] or labels.ndim not in (1, 2):
        raise ValueError(f"embeddings have shape {embeddings.shape} and labels {labels.shape}: give a row a patient.")
    if not np.isfinite(embeddings).all():
        row = np.argwhere(~np.isfinite(embeddings))[0][0]
        raise ValueError(f"the embedding of patient {row} is not finite: mend the model.")
    groups = labels.astype(bool) if labels.ndim == 2 else labels[:, None] == np.unique(labels)
    silhouette, davies_bouldin = _cluster_scores(embeddings, labels, seed)
    precision, chance = _neighbour_precision(embeddings, groups, NEIGHBOURS)
    table = {
        "silhouette": silhouette,
        "davies_bouldin": davies_bouldin,
        f"knn_precision_at_{NEIGHBOURS}": precision,
        f"knn_precision_at_{NEIGHBOURS}_chance": chance,
    }
    if None in table.values():
        table["reason"] = (
            f"{len(embeddings)} patients and {groups.shape[1]} groups: clusters need two groups of different patients,"
            f" neighbours more than {NEIGHBOURS} patients and a group of two"
        )
    return table


def _cluster_scores(embeddings: np.ndarray, labels: np.ndarray, seed: int) -> tuple[float | None, float | None]:
    rows = np.arange(len(embeddings))
    if len(rows) > MAX_CLUSTERED:
        rows = np.sort(np.random.default_rng(seed).choice(rows, MAX_CLUSTERED, replace=False))
    if len(rows) < 3:
        return None, None
    spread = embeddings.std(axis=0)
    vectors = ((embeddings - embeddings.mean(axis=0)) / np.where(spread > 0, spread, 1.0))[rows]
    partitions = labels[rows, None] if labels.ndim == 1 else labels[rows]
    distances = pairwise_distances(vectors)
    return (
        _mean_over(partitions, lambda groups: silhouette_score(distances, groups, metric="precomputed")),
        _mean_over(partitions, lambda groups: davies_bouldin_score(vectors, groups)),
    )


def _mean_over(partitions: np.ndarray, score: Callable[[np.ndarray], float]) -> float | None:
    """Mean of the scores of the partitions that have one: at least two groups, and not each patient alone."""
    values = [score(groups) for groups in partitions.T if 2 <= len(np.unique(groups)) < len(groups)]
    return float(np.mean(values)) if values else None


def _neighbour_precision(embeddings: np.ndarray, groups: np.ndarray, k: int) -> tuple[float | None, float | None]:
    """Mean over groups of the mean share, over members, of the k nearest other patients who are members too."""
    num_patients, sizes = len(embeddings), groups.sum(axis=0)
    groups, sizes = groups[:, sizes >= 2], sizes[sizes >= 2]
    if num_patients <= k or not len(sizes):
        return None, None
    lengths = np.linalg.norm(embeddings, axis=1, keepdims=True)
    directions = (embeddings / np.where(lengths > 0, lengths, 1.0)).astype(np.float32)
    totals, size = np.zeros(len(sizes)), max(BLOCK_VALUES // num_patients, 1)
    for first in range(0, num_patients, size):
        rows = np.arange(first, min(first + size, num_patients))
        similarity = directions[rows] @ directions.T
        similarity[np.arange(len(rows)), rows] = -np.inf  # nobody is his own neighbour
        nearest = np.argpartition(-similarity, k - 1, axis=1)[:, :k]
        totals += (groups[nearest].mean(axis=1) * groups[rows]).sum(axis=0)
    chance = (sizes - 1) / (num_patients - 1)
    return float((totals / sizes).mean()), float(chance.mean())
