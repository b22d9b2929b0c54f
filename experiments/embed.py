"""The `embeddings` part of a run: patients' vectors from the pre-trained encoder, judged, clustered, drawn."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pyarrow.parquet as pq
from ml_collections import ConfigDict

from ehrjax.data.code_lists import (
    ANY_DIABETES,
    CHRONIC_KIDNEY_DISEASE,
    COPD,
    HEART_FAILURE,
    HYPERTENSION,
)
from ehrjax.data.events import code_type
from ehrjax.data.tasks import match_codes
from ehrjax.data.timeline import NULL_TIME, YEAR
from ehrjax.evaluate.bags import bag_of_codes
from ehrjax.evaluate.clusters import characterise_clusters, cluster_patients
from ehrjax.evaluate.embedding_plots import cluster_survival_plot, embedding_map, few_shot_plot
from ehrjax.evaluate.embeddings import (
    PatientEmbeddings,
    diagnosis_tokens,
    embedding_metrics,
    patients_with,
    write_embeddings,
)
from ehrjax.evaluate.projections import project
from ehrjax.evaluate.report import write_json
from ehrjax.evaluate.subgroups import patient_groups
from ehrjax.metrics.survival_curves import kaplan_meier
from ehrjax.types import VisitSequences
from experiments.prepare import Data
from experiments.pretrain import Pretrained

# Colours of the map, in the order of precedence where a patient has several.
DISEASES = {
    "heart failure": HEART_FAILURE,
    "kidney disease": CHRONIC_KIDNEY_DISEASE,
    "COPD": COPD,
    "diabetes": ANY_DIABETES,
    "hypertension": HYPERTENSION,
}
NUM_TOP_CODES = 5  # of a patient, shown under the mouse in the report's map


class Annotations(NamedTuple):
    """What is known of each patient of a split beside the vector."""

    ages: np.ndarray  # years at the last visit, NaN where unknown
    sexes: np.ndarray
    diseases: np.ndarray  # of DISEASES, or "none of these"
    years: np.ndarray  # from the first visit to death or to the last visit
    died: np.ndarray


def evaluate_patients(trained: Pretrained, data: Data, config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """Figures of the test patients' vectors by diagnosis and, of simulated ones, by true subtype; their clusters.

    Writes embeddings/SPLIT.parquet, embedding_map.json and plots. Vectors read whole records, so the clusters'
    outcomes describe them and predict nothing.
    """
    embeddings = {split: patient_embeddings(trained, split) for split in ("train", "test")}
    for split, found in embeddings.items():
        write_embeddings(workdir / "embeddings" / f"{split}.parquet", found)
    tokens = diagnosis_tokens(trained.records["train"].sequences, [code_type(token) for token in data.vocab.tokens])
    labellings: dict[str, Any] = {
        "diagnoses": [patients_with(trained.records[split].sequences, tokens) for split in embeddings]
    }
    if data.simulated:
        labellings["subtype"] = [subtypes(data.simulated, found.subject_ids) for found in embeddings.values()]
    test = embeddings["test"].vectors
    options = {"num_resamples": config.eval.num_resamples, "num_draws": config.eval.few_shot_draws}
    options["seed"] = config.train.seed
    clusters = cluster_patients(test, seed=config.train.seed)
    found = embedding_metrics(*embeddings.values(), {k: tuple(v) for k, v in labellings.items()}, clusters, **options)
    results = found["by"]["diagnoses"]["geometry"] | found
    annotations = annotate(data, embeddings["test"], trained.records["test"].sequences)
    results["clusters"] = _clusters(clusters.assignments, annotations, data, trained)
    _draw(workdir, results, embeddings["test"], clusters.assignments, annotations, trained, data, config)
    return results


def patient_embeddings(trained: Pretrained, split: str) -> PatientEmbeddings:
    """One vector a patient: the mean over the windows of the record of `Pretraining.sequence_vectors`."""
    records, windows = trained.records[split].sequences, trained.records[split].windows

    @jax.jit
    def step(params, batch):
        return trained.model.apply({"params": params}, batch, method="sequence_vectors")

    totals = None
    counts = np.bincount(windows.example_index, minlength=len(records.subject_ids))
    for batch in trained.loaders[split].eval_batches():
        pooled = np.asarray(step(trained.fitted.params, batch), np.float64)
        if totals is None:
            totals = np.zeros((len(counts), pooled.shape[-1]))
        is_real = batch.example_ids >= 0
        pooled = pooled if pooled.ndim == 3 else pooled[:, None]
        np.add.at(totals, windows.example_index[batch.example_ids[is_real]], pooled[is_real])
    vectors = (totals / counts[:, None]).astype(np.float32)
    return PatientEmbeddings(records.subject_ids, records.times, vectors)


def subtypes(simulated: Path, subject_ids: np.ndarray) -> np.ndarray:
    """Number of the true subtype of each simulated patient."""
    table = pq.read_table(simulated / "latent.parquet")
    ids = table["subject_id"].to_numpy()
    order = np.argsort(ids)
    numbers = np.unique(table["subtype"].to_pylist(), return_inverse=True)[1]
    return numbers[order[np.searchsorted(ids[order], subject_ids)]]


def annotate(data: Data, embeddings: PatientEmbeddings, records: VisitSequences) -> Annotations:
    """Age, sex, disease and survival of the patients, from the store of the test split."""
    first, last = records.example_offsets[:-1], records.example_offsets[1:] - 1
    days = np.cumsum(records.gap_days, dtype=np.float64)
    observed = (days[last] - days[first]) / 365.25
    death = _deaths(data.stores[-1], embeddings.subject_ids)
    died = death != NULL_TIME
    after_last = np.where(died, np.maximum(death - embeddings.times, 0), 0) / YEAR
    diseases = np.full(len(last), "none of these", object)
    for name, patterns in reversed(DISEASES.items()):
        has = patients_with(records, np.flatnonzero(match_codes(patterns, data.vocab.tokens)))
        diseases[has.any(axis=1)] = name
    sexes = patient_groups(data.stores[-1:], embeddings.subject_ids, embeddings.times)["sex"]
    return Annotations(records.ages[last].astype(float), sexes, diseases.astype(str), observed + after_last, died)


def _deaths(store: Any, subject_ids: np.ndarray) -> np.ndarray:
    ids = np.concatenate([np.asarray(shard.subject_ids) for shard in store.shards])
    death = np.concatenate([np.asarray(shard.death) for shard in store.shards])
    order = np.argsort(ids)
    return death[order[np.searchsorted(ids[order], subject_ids)]]


def _clusters(assignments: np.ndarray, annotations: Annotations, data: Data, trained: Pretrained) -> dict[str, Any]:
    return characterise_clusters(
        assignments,
        bag_of_codes(trained.records["test"].sequences, len(data.vocab)).counts,
        data.vocab.tokens,
        ages=annotations.ages,
        sexes=annotations.sexes,
        outcomes={"death": (annotations.years, annotations.died)},
        survival_curve=kaplan_meier,
    )


def _draw(workdir, results, embeddings, assignments, annotations, trained, data, config) -> None:
    """The figures, and the map that the report lets a reader move over."""
    folder = workdir / "plots"
    outcomes = np.where(annotations.died, "died", "alive when last seen")
    for method in config.eval.maps:
        found = project(embeddings.vectors, method, seed=config.train.seed)
        if found.points is None:
            print(f"embeddings: no {method} map. {found.reason}", flush=True)
            continue
        colourings = {
            "disease": annotations.diseases[found.rows],
            "age": annotations.ages[found.rows],
            "outcome": outcomes[found.rows],
            "cluster": assignments[found.rows].astype(str),
        }
        embedding_map(folder / f"embeddings_{method}.png", found.points, colourings, title=f"Patients, {method}")
        if method == "pca" or method == "tsne":  # the last of these that there is
            codes = _top_codes(trained.records["test"].sequences, found.rows, data.vocab.tokens)
            points = {"x": found.points[:, 0].tolist(), "y": found.points[:, 1].tolist(), "method": method}
            named = {name: np.asarray(values).tolist() for name, values in colourings.items()}
            write_json(workdir / "embedding_map.json", points | named | {"top_codes": codes})
    few_shot_plot(
        folder / "few_shot.png",
        {name: row["few_shot"] for name, row in results["by"].items() if row.get("few_shot", {}).get("shots")},
    )
    cluster_survival_plot(folder / "cluster_survival.png", results["clusters"], "death")


def _top_codes(records: VisitSequences, rows: np.ndarray, tokens: tuple[str, ...]) -> list[list[str]]:
    """Diagnoses of each patient, those that fewest patients share first: what sets the patient apart."""
    is_diagnosis = np.array([code_type(token) == "diagnosis" for token in tokens])
    counts = bag_of_codes(records, len(tokens)).counts
    spread = np.asarray((counts > 0).sum(axis=0)).ravel()
    shown = []
    for row in rows:
        codes = counts.indices[counts.indptr[row] : counts.indptr[row + 1]]
        codes = codes[is_diagnosis[codes]]
        shown.append([tokens[code] for code in codes[np.argsort(spread[codes], kind="stable")][:NUM_TOP_CODES]])
    return shown
