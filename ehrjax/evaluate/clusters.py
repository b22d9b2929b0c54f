"""Disease subtyping: k-means clusters of patient vectors, their agreement with known labels, and who is in them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp
from jaxtyping import Float, Int, Shaped
from scipy.stats import false_discovery_control, hypergeom
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score, silhouette_score

from ehrjax.evaluate.tables import aligned, digits

MAX_FITTED = 20_000  # patients whom k-means sees; all others join the nearest centre
MAX_SCORED = 2000  # patients: a silhouette needs the distances of all pairs
MAX_CLUSTERS = 10
NUM_STARTS = 5
MIN_PATIENTS = 10  # groups below it are not described, nor codes that fewer patients of a cluster have
MAX_CODES = 10
MAX_ADJUSTED_P = 0.05
MAX_CURVE_POINTS = 200


class Clustering(NamedTuple):
    """Clusters of patients, numbered by falling size; `silhouettes` by number of clusters tried (None: undefined)."""

    assignments: Int[np.ndarray, "P"]
    silhouettes: dict[int, float | None]
    num_fitted: int
    num_scored: int

    def summary(self) -> dict[str, Any]:
        """JSON-ready: sizes, silhouettes and on how many patients they rest."""
        sizes = np.bincount(self.assignments).tolist()
        return {
            "num_clusters": len(sizes),
            "sizes": sizes,
            "silhouette": self.silhouettes.get(len(sizes)),
            "silhouette_by_num_clusters": {str(k): value for k, value in self.silhouettes.items()},
            "num_fitted": self.num_fitted,
            "num_scored": self.num_scored,
        }


def cluster_patients(
    vectors: Float[np.ndarray, "P D"], *, num_clusters: int | None = None, seed: int = 0
) -> Clustering:
    """k-means on standardised vectors: `num_clusters`, or of 2..10 the number with the highest silhouette.

    Of many patients 20,000 drawn by `seed` are clustered and 2,000 of them scored. Fewer different vectors than
    clusters give fewer clusters: a single one where all are alike, none where there is no patient.
    """
    vectors = standardised(check_vectors(vectors))
    fitted = vectors[sample_rows(len(vectors), MAX_FITTED, seed)]
    scored = sample_rows(len(fitted), MAX_SCORED, seed)
    most = len(np.unique(fitted, axis=0))
    tried = range(2, MAX_CLUSTERS + 1) if num_clusters is None else [num_clusters]
    fits: dict[int, KMeans] = {}
    silhouettes: dict[int, float | None] = {}
    for k in sorted({min(k, most) for k in tried} - {0}):
        fits[k] = KMeans(k, n_init=NUM_STARTS, random_state=seed).fit(fitted)
        labels = fits[k].labels_[scored]
        is_defined = 2 <= len(np.unique(labels)) < len(labels)
        silhouettes[k] = float(silhouette_score(fitted[scored], labels)) if is_defined else None
    if not fits:
        return Clustering(np.zeros(0, np.int64), {}, 0, 0)
    best = max(fits, key=lambda k: (-2.0 if silhouettes[k] is None else silhouettes[k], -k))
    raw = fits[best].predict(vectors)
    order = np.argsort(-np.bincount(raw, minlength=best), kind="stable")
    return Clustering(np.argsort(order)[raw], silhouettes, len(fitted), len(scored))


def agreement(assignments: Int[np.ndarray, "P"], labels: Int[np.ndarray, "P"]) -> dict[str, Any]:
    """Adjusted Rand index (Hubert and Arabie, 1985), normalised mutual information, counts by cluster and label.

    Negative labels are unknown and left out. Both figures are 1 for the same partition, ARI is 0 on average by chance
    and NMI above 0; they are None where fewer than two patients are known.
    """
    assignments, labels = np.asarray(assignments), np.asarray(labels)
    if assignments.shape != labels.shape:
        raise ValueError(f"{len(assignments)} assignments and {len(labels)} labels: give one of each a patient.")
    known = labels >= 0
    clusters, cluster_of = np.unique(assignments[known], return_inverse=True)
    classes, class_of = np.unique(labels[known], return_inverse=True)
    counts = np.zeros((len(clusters), len(classes)), np.int64)
    np.add.at(counts, (cluster_of, class_of), 1)
    is_defined = known.sum() >= 2
    return {
        "ari": float(adjusted_rand_score(class_of, cluster_of)) if is_defined else None,
        "nmi": float(normalized_mutual_info_score(class_of, cluster_of)) if is_defined else None,
        "clusters": clusters.tolist(),
        "labels": classes.tolist(),
        "counts": counts.tolist(),
    }


def characterise_clusters(
    assignments: Int[np.ndarray, "P"],
    code_counts: sp.spmatrix | Shaped[np.ndarray, "P G"],
    code_names: Sequence[str],
    *,
    ages: Float[np.ndarray, "P"] | None = None,
    sexes: Shaped[np.ndarray, "P"] | None = None,
    outcomes: Mapping[str, tuple[Float[np.ndarray, "P"], Shaped[np.ndarray, "P"]]] = {},
    survival_curve: Callable[..., tuple[np.ndarray, np.ndarray]] | None = None,
) -> dict[str, Any]:
    """Who is in each cluster: size, age, sex, outcomes, codes that its patients have more often than all others.

    `code_counts` > 0 says that a patient has a code; `ages` are years (NaN: unknown), `sexes` strings; an outcome is
    (times, events): years from the index to the event or to the end of observation, and whether it is the event (times
    that are NaN or not positive are left out). `survival_curve(times, events) -> (times, S)` is Kaplan-Meier's. A
    cluster under 10 patients has its size only. JSON-ready. p-values rank codes rather than test them, since the
    clusters were made from the same records.
    """
    assignments = np.asarray(assignments)
    has_code = sp.csr_matrix(code_counts) > 0
    _check_rows(len(assignments), {"code_counts": has_code, "ages": ages, "sexes": sexes}, outcomes)
    if has_code.shape[1] != len(code_names):
        raise ValueError(f"{has_code.shape[1]} columns of codes and {len(code_names)} names: give a name a column.")
    clusters = np.unique(assignments)
    enriched = enriched_codes(assignments, has_code, code_names)
    rows = []
    for cluster in clusters.tolist():
        members = assignments == cluster
        size = int(members.sum())
        row: dict[str, Any] = {"cluster": cluster, "num_patients": size, "share": size / len(assignments)}
        if size >= MIN_PATIENTS:
            row |= {"age": _age(ages, members), "sex": _shares(sexes, members), "enriched_codes": enriched[cluster]}
            row["outcomes"] = {
                name: _outcome(np.asarray(times, np.float64)[members], np.asarray(events)[members], survival_curve)
                for name, (times, events) in outcomes.items()
            }
        else:
            row["reason"] = f"not described: fewer than {MIN_PATIENTS} patients"
        rows.append(row)
    return {"num_patients": len(assignments), "clusters": rows}


def enriched_codes(
    assignments: Int[np.ndarray, "P"], has_code: sp.spmatrix | Shaped[np.ndarray, "P G"], code_names: Sequence[str]
) -> dict[int, list[dict[str, Any]]]:
    """By cluster, at most ten codes with an adjusted p of at most 0.05, the smallest p first.

    One-sided Fisher's exact test (hypergeometric tail) of more patients with the code than the others have; codes that
    ten of the cluster's patients have; p adjusted over all pairs of cluster and code (Benjamini and Hochberg, 1995).
    The odds ratio has a half added to each count where one is 0 (Haldane, 1956).
    """
    has_code = sp.csr_matrix(has_code) > 0
    clusters, cluster_of = np.unique(assignments, return_inverse=True)
    num_patients, sizes = len(cluster_of), np.bincount(cluster_of, minlength=len(clusters))
    shape = (len(clusters), num_patients)
    member = sp.csr_matrix((np.ones(num_patients), (cluster_of, np.arange(num_patients))), shape)
    inside = (member @ has_code.astype(np.float64)).toarray()
    total = inside.sum(axis=0)
    place, code = np.nonzero((inside >= MIN_PATIENTS) & (sizes >= MIN_PATIENTS)[:, None])
    a, size, held = inside[place, code], sizes[place].astype(np.float64), total[code]
    p = hypergeom.sf(a - 1, num_patients, held, size) if len(a) else np.zeros(0)
    adjusted = false_discovery_control(np.clip(p, 0.0, 1.0)) if len(p) else p
    b, c, d = size - a, held - a, num_patients - size - held + a
    half = 0.5 * (np.minimum.reduce([a, b, c, d]) == 0)
    odds_ratio = (a + half) * (d + half) / ((b + half) * (c + half))
    elsewhere = c / np.maximum(num_patients - size, 1)
    result: dict[int, list[dict[str, Any]]] = {cluster: [] for cluster in clusters.tolist()}
    for i in np.lexsort((-odds_ratio, p)):
        codes = result[clusters[place[i]].item()]
        if adjusted[i] <= MAX_ADJUSTED_P and len(codes) < MAX_CODES:
            codes.append(
                {
                    "code": str(code_names[code[i]]),
                    "num_patients": int(a[i]),
                    "share": float(a[i] / size[i]),
                    "share_elsewhere": float(elsewhere[i]),
                    "odds_ratio": float(odds_ratio[i]),
                    "p_adjusted": float(adjusted[i]),
                }
            )
    return result


def clusters_text(table: Mapping[str, Any]) -> str:
    """What `characterise_clusters` returns as plain text: a row a cluster, then the codes of each."""
    names = sorted({name for row in table["clusters"] for name in row.get("outcomes", {})})
    rows = [["cluster", "patients", "share", "age", *(f"{name} /100 years" for name in names), "sex"]]
    lines = []
    for row in table["clusters"]:
        rates = [_cell((row.get("outcomes") or {}).get(name, {}).get("per_100_years")) for name in names]
        sexes = " ".join(f"{sex} {share:.0%}" for sex, share in (row.get("sex") or {}).items())
        age = _cell((row.get("age") or {}).get("mean"))
        rows.append([str(row["cluster"]), f"{row['num_patients']:,}", f"{row['share']:.1%}", age, *rates, sexes or "-"])
        if row.get("reason"):
            lines.append(f"- cluster {row['cluster']}: {row['reason']}")
        for code in row.get("enriched_codes", []):
            lines.append(
                f"- cluster {row['cluster']}: {code['code']}, {code['share']:.0%} of patients, elsewhere"
                f" {code['share_elsewhere']:.0%}, odds ratio {digits(code['odds_ratio'])}, p {code['p_adjusted']:.1e}"
            )
    return "\n".join([*aligned(rows), *lines])


def check_vectors(vectors: Float[np.ndarray, "P D"]) -> Float[np.ndarray, "P D"]:
    """The same as an array; ValueError where it is no matrix or a patient's vector is not finite."""
    vectors = np.asarray(vectors)
    if vectors.ndim != 2:
        raise ValueError(f"embeddings have shape {vectors.shape}: give a row a patient.")
    is_finite = np.isfinite(vectors).all(axis=1)
    if not is_finite.all():
        raise ValueError(f"the embedding of patient {int(np.argmin(is_finite))} is not finite: mend the model.")
    return vectors


def standardised(vectors: Float[np.ndarray, "P D"]) -> Float[np.ndarray, "P D"]:
    """Columns of mean 0 and standard deviation 1, float64; constant columns are 0."""
    vectors = np.asarray(vectors, np.float64)
    if not len(vectors):
        return vectors
    spread = vectors.std(axis=0)
    return (vectors - vectors.mean(axis=0)) / np.where(spread > 0, spread, 1.0)


def sample_rows(num_rows: int, limit: int, seed: int) -> Int[np.ndarray, "n"]:
    """All rows, or `limit` of them drawn without replacement, ascending."""
    if num_rows <= limit:
        return np.arange(num_rows)
    return np.sort(np.random.default_rng(seed).choice(num_rows, limit, replace=False))


def _outcome(times: np.ndarray, events: np.ndarray, survival_curve: Callable | None) -> dict[str, Any]:
    """Events a hundred patient-years, the share with the event, and the survival curve where there is who draws it."""
    known = times > 0
    times, events = times[known], np.asarray(events[known], bool)
    years, num_events = float(times.sum()), int(events.sum())
    row: dict[str, Any] = {"num_patients": len(times), "num_events": num_events, "years": years}
    row["per_100_years"] = 100 * num_events / years if years else None
    if survival_curve is not None and len(times):
        curve_times, survival = survival_curve(times, events)
        points = np.linspace(0, len(curve_times) - 1, min(len(curve_times), MAX_CURVE_POINTS)).astype(int)
        row["curve"] = {
            "times": np.asarray(curve_times)[points].tolist(),
            "survival": np.asarray(survival)[points].tolist(),
        }
    return row


def _age(ages: np.ndarray | None, members: np.ndarray) -> dict[str, float] | None:
    known = np.zeros(0) if ages is None else np.asarray(ages, np.float64)[members]
    known = known[np.isfinite(known)]
    return {"mean": float(known.mean()), "sd": float(known.std())} if len(known) else None


def _shares(values: np.ndarray | None, members: np.ndarray) -> dict[str, float] | None:
    if values is None:
        return None
    names, counts = np.unique(np.asarray(values)[members], return_counts=True)
    return dict(zip(map(str, names), (counts / counts.sum()).tolist(), strict=True))


def _check_rows(num_patients: int, columns: Mapping[str, Any], outcomes: Mapping[str, tuple[Any, Any]]) -> None:
    for name, (times, events) in outcomes.items():
        columns = {**columns, f"times of {name}": times, f"events of {name}": events}
    for name, column in columns.items():
        if column is not None and column.shape[0] != num_patients:
            raise ValueError(f"{name} has {column.shape[0]} rows for {num_patients} patients: give one a patient.")


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
