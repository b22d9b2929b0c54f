"""Patient vectors on disk, and what they hold: geometry, neighbours, and all figures of `probes` and `clusters`.

Labellings come in two forms: diagnoses [P, K] (bool, several a patient) and classes [P] (integers; negative = unknown).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import scipy.sparse as sp
from jaxtyping import Bool, Float, Int, Shaped
from sklearn.metrics import davies_bouldin_score, pairwise_distances, silhouette_score

from ehrjax.evaluate.clusters import Clustering, agreement, check_vectors, cluster_patients, sample_rows, standardised
from ehrjax.evaluate.files import replaced
from ehrjax.evaluate.probes import NUM_DRAWS, few_shot_curve, linear_probe
from ehrjax.metrics.bootstrap import NUM_RESAMPLES
from ehrjax.types import VisitSequences
from ehrjax.wording import counted

MAX_CLUSTERED = 2000  # patients: distances of all pairs are needed
MAX_QUERIES = 10_000  # patients whose neighbours are looked for, among all
NEIGHBOURS = 10
MAX_DIAGNOSES = 20
SHARE_RANGE = (0.05, 0.5)  # of train patients: rarer ones have too few neighbours to find, others say little
BLOCK_VALUES = 2**22  # similarities in memory at once


class PatientEmbeddings(NamedTuple):
    """One vector a patient, of the record up to a time."""

    subject_ids: Int[np.ndarray, "P"]
    times: Int[np.ndarray, "P"]  # seconds since 1970-01-01
    vectors: Float[np.ndarray, "P D"]


def write_embeddings(path: str | Path, embeddings: PatientEmbeddings, *, metadata: Mapping[str, str] = {}) -> None:
    """Write Parquet with columns subject_id (int64), time (timestamp), embedding (fixed-size list of float32).

    `metadata` goes into the schema. Raises ValueError for vectors that are not finite or not one a patient.
    """
    vectors = np.ascontiguousarray(check_vectors(embeddings.vectors), np.float32)
    if not vectors.shape[1] or not len(vectors) == len(embeddings.subject_ids) == len(embeddings.times):
        raise ValueError(
            f"{len(embeddings.subject_ids)} subjects, {len(embeddings.times)} times and vectors of shape"
            f" {vectors.shape} do not fit: give one of each a patient, and at least one number a vector."
        )
    columns = {
        "subject_id": pa.array(np.asarray(embeddings.subject_ids, np.int64)),
        "time": pa.array(np.asarray(embeddings.times, np.int64) * 1_000_000, pa.timestamp("us")),
        "embedding": pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1]),
    }
    with replaced(path) as partial:
        pq.write_table(pa.table(columns).replace_schema_metadata(dict(metadata)), partial)


def read_embeddings(path: str | Path) -> PatientEmbeddings:
    """What `write_embeddings` wrote. Raises ValueError, naming the file, where it holds something else."""
    try:
        table = pq.read_table(path, columns=["subject_id", "time", "embedding"])
        width = table.schema.field("embedding").type.list_size
        lists = table["embedding"].combine_chunks()
        vectors = lists.flatten().to_numpy(zero_copy_only=False).reshape(-1, width)
        times = table["time"].cast(pa.int64()).to_numpy() // 1_000_000
        return PatientEmbeddings(table["subject_id"].to_numpy(), times, vectors)
    except (AttributeError, KeyError, ValueError, pa.ArrowException) as error:
        raise ValueError(
            f"{path}: not a table of patient embeddings ({error}): it needs the columns subject_id, time and embedding"
            " (a fixed-size list of numbers)."
        ) from error


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


def next_new_diagnosis(
    records: VisitSequences, num_seen_visits: Int[np.ndarray, "P"], tokens: Int[np.ndarray, "K"]
) -> Int[np.ndarray, "P"]:
    """Where a trajectory goes: which of `tokens` (its place, 0 .. K - 1) is the first new one after the visits seen.

    New means in none of the first `num_seen_visits`. Of several in a visit the first in `tokens`; -1 where none comes.
    """
    places = np.full(int(max(np.max(records.codes, initial=0), np.max(tokens, initial=0))) + 1, -1)
    places[tokens] = np.arange(len(tokens))
    visits_each = np.diff(records.example_offsets)
    ranks = np.arange(len(records.visit_offsets) - 1) - np.repeat(records.example_offsets[:-1], visits_each)
    codes_each = np.diff(records.visit_offsets)
    patient = np.repeat(np.repeat(np.arange(len(visits_each)), visits_each), codes_each)
    place = places[records.codes]
    never = np.iinfo(np.int64).max
    first = np.full((len(visits_each), len(tokens) + 1), never)  # the last column: no token at all
    np.minimum.at(first, (patient, place), np.repeat(ranks, codes_each))
    first[:, -1] = never
    first[first < np.asarray(num_seen_visits)[:, None]] = never
    return np.where(first.min(axis=1) < never, first.argmin(axis=1), -1)


def evaluate_embeddings(
    embeddings: Float[np.ndarray, "P D"], labels: Shaped[np.ndarray, "..."], *, seed: int = 0
) -> dict[str, Any]:
    """Silhouette, Davies-Bouldin index, and precision of the ten nearest neighbours beside what chance would give.

    `labels` are diagnoses [P, K] (bool, several a patient) or clusters [P] (integers). Diagnoses are judged one by one,
    with against without, and averaged. Clusters are measured on standardised vectors of at most 2,000 patients drawn by
    `seed` (`num_clustered`), neighbours of at most 10,000 (`num_queries`) by cosine among all. An undefined figure is
    None, and "reason" says why.
    """
    embeddings, labels = np.asarray(embeddings, np.float64), np.asarray(labels)
    if embeddings.ndim != 2 or labels.shape[:1] != embeddings.shape[:1] or labels.ndim not in (1, 2):
        raise ValueError(f"embeddings have shape {embeddings.shape} and labels {labels.shape}: give a row a patient.")
    check_vectors(embeddings)
    groups = labels.astype(bool) if labels.ndim == 2 else labels[:, None] == np.unique(labels)
    rows, queries = (sample_rows(len(embeddings), limit, seed) for limit in (MAX_CLUSTERED, MAX_QUERIES))
    silhouette, davies_bouldin = _cluster_scores(standardised(embeddings)[rows], labels[rows])
    precision, chance = _neighbour_precision(embeddings, groups, queries, NEIGHBOURS)
    table = {
        "silhouette": silhouette,
        "davies_bouldin": davies_bouldin,
        f"knn_precision_at_{NEIGHBOURS}": precision,
        f"knn_precision_at_{NEIGHBOURS}_chance": chance,
        "num_clustered": len(rows),
        "num_queries": len(queries),
    }
    if None in table.values():
        table["reason"] = (
            f"{counted(len(embeddings), 'patient')} and {counted(groups.shape[1], 'group')}: clusters need two groups"
            f" of different patients, neighbours more than {NEIGHBOURS} patients and a group of two"
        )
    return table


def _cluster_scores(vectors: np.ndarray, labels: np.ndarray) -> tuple[float | None, float | None]:
    if len(vectors) < 3:
        return None, None
    partitions = labels[:, None] if labels.ndim == 1 else labels
    distances = pairwise_distances(vectors)
    return (
        _mean_over(partitions, lambda groups: silhouette_score(distances, groups, metric="precomputed")),
        _mean_over(partitions, lambda groups: davies_bouldin_score(vectors, groups)),
    )


def _mean_over(partitions: np.ndarray, score: Callable[[np.ndarray], float]) -> float | None:
    """Mean of the scores of the partitions that have one: at least two groups, and not each patient alone."""
    values = [score(groups) for groups in partitions.T if 2 <= len(np.unique(groups)) < len(groups)]
    return float(np.mean(values)) if values else None


def _nearest(embeddings: np.ndarray, queries: np.ndarray, k: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Blocks of queries (rows) and their k nearest other patients by cosine [rows, k], in no order."""
    lengths = np.linalg.norm(embeddings, axis=1, keepdims=True)
    directions = (embeddings / np.where(lengths > 0, lengths, 1.0)).astype(np.float32)
    size = max(BLOCK_VALUES // len(embeddings), 1)
    for first in range(0, len(queries), size):
        rows = queries[first : first + size]
        similarity = directions[rows] @ directions.T
        similarity[np.arange(len(rows)), rows] = -np.inf  # nobody is his own neighbour
        yield rows, np.argpartition(-similarity, k - 1, axis=1)[:, :k]


def _neighbour_precision(
    embeddings: np.ndarray, groups: np.ndarray, queries: np.ndarray, k: int
) -> tuple[float | None, float | None]:
    """Mean over groups of the mean share, over members, of the k nearest other patients who are members too."""
    groups = groups[:, (groups.sum(axis=0) >= 2) & groups[queries].any(axis=0)]
    if len(embeddings) <= k or not groups.shape[1]:
        return None, None
    totals = np.zeros(groups.shape[1])
    for rows, nearest in _nearest(embeddings, queries, k):
        totals += (groups[nearest].mean(axis=1) * groups[rows]).sum(axis=0)
    chance = (groups.sum(axis=0) - 1) / (len(embeddings) - 1)
    return float((totals / groups[queries].sum(axis=0)).mean()), float(chance.mean())


def neighbour_overlap(
    embeddings: Float[np.ndarray, "P D"], diagnoses: Bool[np.ndarray, "P K"], *, seed: int = 0
) -> dict[str, Any]:
    """How alike the diagnoses of a patient and of the ten nearest others are, beside ten others drawn at random.

    `overlap` is the mean Jaccard index |A and B| / |A or B| of the two sets, `same_set` the share of neighbours with
    the very same set. Patients without any of the diagnoses ask nothing but may be found. At most 10,000 ask.
    """
    embeddings, diagnoses = check_vectors(embeddings), np.asarray(diagnoses, bool)
    asking = np.flatnonzero(diagnoses.any(axis=1))
    queries = asking[sample_rows(len(asking), MAX_QUERIES, seed)]
    if len(embeddings) <= NEIGHBOURS or not len(queries):
        reason = f"{counted(len(embeddings), 'patient')}, {len(asking):,} of them with a diagnosis"
        return {"num_queries": 0, "reason": reason}
    random = np.random.default_rng(seed)
    sums = np.zeros(4)
    for rows, nearest in _nearest(np.asarray(embeddings, np.float64), queries, NEIGHBOURS):
        others = (rows[:, None] + random.integers(1, len(embeddings), nearest.shape)) % len(embeddings)
        sums += [*_overlaps(diagnoses, rows, nearest), *_overlaps(diagnoses, rows, others)]
    names = ("overlap", "same_set", "overlap_chance", "same_set_chance")
    return dict(zip(names, (sums / len(queries)).tolist(), strict=True)) | {"num_queries": len(queries)}


def _overlaps(diagnoses: np.ndarray, rows: np.ndarray, others: np.ndarray) -> tuple[float, float]:
    """Jaccard index, and whether the sets are the same: mean over others, sum over rows."""
    own, theirs = diagnoses[rows][:, None], diagnoses[others]
    both, either = (own & theirs).sum(axis=2), (own | theirs).sum(axis=2)
    return (both / either).mean(axis=1).sum(), (both == either).mean(axis=1).sum()


def embedding_metrics(
    train: PatientEmbeddings,
    test: PatientEmbeddings,
    labellings: Mapping[str, tuple[Shaped[np.ndarray, "P ..."], Shaped[np.ndarray, "Q ..."]]],
    clusters: Clustering,
    *,
    num_resamples: int = NUM_RESAMPLES,
    num_draws: int = NUM_DRAWS,
    seed: int = 0,
) -> dict[str, Any]:
    """Every figure of the test patients' vectors, JSON-ready: `clustering`, and `by` name of a labelling (train, test).

    `clusters` are those of the test patients (`cluster_patients`).

    By labelling: `geometry` (`evaluate_embeddings`), `probe`, `few_shot`; for diagnoses `retrieval`
    (`neighbour_overlap`); for classes `agreement` with k-means, k chosen by silhouette and k given as the number of
    classes. A trajectory is a class, say the `next_new_diagnosis`.
    """
    vectors = (train.vectors, test.vectors)
    by = {}
    for name, labels in labellings.items():
        table = _judge_by_classes if np.ndim(labels[1]) == 1 else _judge_by_diagnoses
        by[name] = table(test.vectors, clusters.assignments, np.asarray(labels[1]), seed)
        by[name]["probe"] = linear_probe(vectors, labels, test.subject_ids, num_resamples=num_resamples, seed=seed)
        by[name]["few_shot"] = few_shot_curve(vectors, labels, num_draws=num_draws, seed=seed)
    return {"num_train": len(vectors[0]), "num_test": len(vectors[1]), "clustering": clusters.summary(), "by": by}


def _judge_by_diagnoses(vectors: np.ndarray, clusters: np.ndarray, labels: np.ndarray, seed: int) -> dict[str, Any]:
    geometry = evaluate_embeddings(vectors, labels, seed=seed)
    return {"geometry": geometry, "retrieval": neighbour_overlap(vectors, labels, seed=seed)}


def _judge_by_classes(vectors: np.ndarray, clusters: np.ndarray, labels: np.ndarray, seed: int) -> dict[str, Any]:
    known = labels >= 0
    num_classes = max(len(np.unique(labels[known])), 1)
    given = cluster_patients(vectors, num_clusters=num_classes, seed=seed)
    return {
        "geometry": evaluate_embeddings(vectors[known], labels[known], seed=seed),
        "agreement": {
            "k_chosen": agreement(clusters, labels),
            "k_given": agreement(given.assignments, labels),
        },
    }
