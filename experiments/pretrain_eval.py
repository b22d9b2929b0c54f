"""The `pretrain` part of results.json: the pre-trained model beside its baselines, val and test."""

from collections.abc import Iterator
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ehrjax.data.events import code_type
from ehrjax.data.masking import EVAL_MASK_RATE
from ehrjax.evaluate.masked_baselines import fit_masked_baselines
from ehrjax.evaluate.next_visit_baselines import (
    BASELINES,
    NextVisits,
    chunks_from_scores,
    code_frequency,
    next_visit_targets,
)
from ehrjax.metrics.masked_codes import evaluate_masked_codes
from ehrjax.metrics.next_visit import best_f1_threshold, evaluate_next_visit
from ehrjax.models.pretraining import Pretraining
from ehrjax.objectives.next_visit import next_visit_scores
from ehrjax.types import FIRST_CODE, TokenBatch, VisitSequences
from experiments.prepare import Data
from experiments.pretrain import Pretrained, Records

SPLITS = ("val", "test")


def evaluate_pretraining(trained: Pretrained, data: Data, config: ConfigDict) -> dict[str, Any]:
    """Val and test figures of the model, test figures of the baselines, all on the same codes and visits."""
    results: dict[str, Any] = {"val": {}, "test": {}, "baselines": {}}
    if "mlm" in trained.model.heads:
        _merge(results, _evaluate_masked(trained, data, config))
    if "next_visit" in trained.model.heads:
        _merge(results, _evaluate_next_visits(trained, data, config))
    return results


def _merge(results: dict[str, Any], more: dict[str, Any]) -> None:
    for split in SPLITS:
        results[split] |= more[split]
    for name, row in more["baselines"].items():
        results["baselines"].setdefault(name, {}).update(row)


def _evaluate_masked(trained: Pretrained, data: Data, config: ConfigDict) -> dict[str, Any]:
    options = {"num_resamples": config.eval.num_resamples, "seed": config.train.seed}
    owners = {split: _owners(trained.records[split]) for split in SPLITS}
    results: dict[str, Any] = {"baselines": {}}
    for split in SPLITS:
        ranks, log_probabilities = score_masked(trained, split)
        results[split] = evaluate_masked_codes(ranks, log_probabilities, owners[split], **options)
    sequences = {split: record.sequences for split, record in trained.records.items()}
    fitted = fit_masked_baselines(
        sequences["train"],
        sequences["val"],
        _types(data),
        mask_rate=EVAL_MASK_RATE,
        seed=config.train.seed,
        max_steps=config.eval.masked_steps,
    )
    for name, score in fitted.items():
        scored = score(sequences["test"], trained.records["test"].hidden)
        results["baselines"][name] = evaluate_masked_codes(*scored, owners["test"], **options)
    return results


def _types(data: Data) -> list[str]:
    return [code_type(token) for token in data.vocab.tokens]


def _owners(record: Records) -> np.ndarray:
    """The patient of each hidden code."""
    sequences = record.sequences
    num_codes = np.diff(sequences.visit_offsets[sequences.example_offsets])
    return np.repeat(np.arange(len(num_codes)), num_codes)[record.hidden]


def score_masked(trained: Pretrained, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Rank of the true code (0 = top) and its log probability at each hidden code of a split, in the records' order."""
    record = trained.records[split]
    windows = record.windows
    ranks = np.full(len(record.hidden), -1, np.int64)
    log_probabilities = np.full(len(record.hidden), np.nan)
    step = jax.jit(lambda params, batch: _rank(trained.model, params, batch))
    for batch in trained.loaders[split].eval_batches():
        rank, log_probability = jax.device_get(step(trained.fitted.params, batch))
        numbers = np.take_along_axis(code_numbers(batch, windows.sequences), batch.masked.positions, axis=1)
        counts = batch.masked.mask
        codes = windows.code_index[numbers[counts]]
        ranks[codes], log_probabilities[codes] = rank[counts], log_probability[counts]
    return ranks[record.hidden], log_probabilities[record.hidden]


def _rank(model: Pretraining, params: Any, batch: TokenBatch) -> tuple[jax.Array, jax.Array]:
    """Codes above the true one (ties: those of lower id), and its log probability among the codes."""
    logits = model.apply({"params": params}, batch, method="masked_logits")
    logits = jnp.where(jnp.arange(logits.shape[-1])[None, None] < FIRST_CODE, -1e30, logits)
    targets = jnp.take_along_axis(jnp.asarray(batch.tokens), batch.masked.positions, axis=1)
    targets = model.predicted_as(targets)[..., None]
    own = jnp.take_along_axis(logits, targets, axis=-1)
    is_lower = jnp.arange(logits.shape[-1])[None, None] < targets
    rank = ((logits > own) | ((logits == own) & is_lower)).sum(axis=-1)
    return rank, own[..., 0] - jax.nn.logsumexp(logits, axis=-1)


def code_numbers(batch: TokenBatch, sequences: VisitSequences) -> np.ndarray:
    """Which of the sequences' codes stands at each token [B T]; on special tokens and padding any number."""
    example = np.take_along_axis(batch.example_ids, np.maximum(batch.segment_ids - 1, 0), axis=1)
    first = sequences.visit_offsets[sequences.example_offsets[np.maximum(example, 0)]]
    # Before a code stand [CLS], the codes before it and one [SEP] a visit before its own.
    return np.clip(first + batch.positions - batch.visit_ids, 0, len(sequences.codes) - 1)


def visit_numbers(batch: TokenBatch, sequences: VisitSequences) -> np.ndarray:
    """Which of the sequences' visits each visit slot [B V] is; -1 for padding."""
    segments = batch.visit_segments
    example = np.take_along_axis(batch.example_ids, np.maximum(segments - 1, 0), axis=1)
    columns = np.arange(segments.shape[1])
    starts = np.where(np.diff(segments, axis=1, prepend=0) != 0, columns, 0)
    rank = columns - np.maximum.accumulate(starts, axis=1)
    return np.where(segments > 0, sequences.example_offsets[np.maximum(example, 0)] + rank, -1)


def _evaluate_next_visits(trained: Pretrained, data: Data, config: ConfigDict) -> dict[str, Any]:
    size = len(data.vocab)
    options = {"types": _types(data), "num_resamples": config.eval.num_resamples, "seed": config.train.seed}
    frequency = code_frequency(trained.records["train"].sequences, size)
    targets = {split: _targets(trained.records[split], size) for split in SPLITS}

    def of_model(split: str):
        return chunks_from_scores(targets[split], score_next_visits(trained, split, targets[split], frequency))

    threshold = best_f1_threshold(of_model("val"))
    results: dict[str, Any] = {
        split: evaluate_next_visit(of_model(split), threshold=threshold, **options) for split in SPLITS
    }
    results["baselines"] = {}
    for name, make in BASELINES.items():
        threshold = best_f1_threshold(make(targets["val"], frequency))
        chunks = make(targets["test"], frequency)
        results["baselines"][name] = evaluate_next_visit(chunks, threshold=threshold, **options)
    return results


def _targets(record: Records, vocab_size: int) -> NextVisits:
    """The visits to be predicted: those that the record asks for."""
    targets = next_visit_targets(record.sequences, vocab_size)
    if record.is_asked is None:
        return targets
    asked = record.is_asked[targets.visits]
    return targets._replace(visits=targets.visits[asked], patients=targets.patients[asked])


@cache
def _next_visit_step(model: Pretraining):
    """The same object for the same model, so that val, scored twice, compiles once."""
    return jax.jit(next_visit_scores(model))


def score_next_visits(
    trained: Pretrained, split: str, targets: NextVisits, frequency: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs of visits (numbers in the split's records) and their scores [n, G], each visit once.

    A visit that fills a window alone has no past there: its scores are the base rates.
    """
    windows = trained.records[split].windows
    step = _next_visit_step(trained.model)
    is_scored = np.zeros(len(trained.records[split].sequences.ages), bool)
    for batch in trained.loaders[split].eval_batches():
        rows, columns = np.nonzero(batch.next_visits.visits)
        visits = windows.visit_index[visit_numbers(batch, windows.sequences)[rows, columns]]
        scores = np.asarray(step(trained.fitted.params, batch))[rows, columns - 1]
        is_scored[visits] = True
        yield visits, scores
    alone = targets.visits[~is_scored[targets.visits]]
    for start in range(0, len(alone), 1024):
        yield alone[start : start + 1024], np.tile(np.float32(frequency), (len(alone[start : start + 1024]), 1))
