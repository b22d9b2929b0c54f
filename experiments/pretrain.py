"""Pre-training: windows of whole records -> weighted objectives -> the encoder's weights, judged by `pretrain_eval`."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from ehrjax.data.cutoff import begun_after
from ehrjax.data.masking import EVAL_MASK_RATE, draw_eval_mask
from ehrjax.data.sequences import build_patient_sequences
from ehrjax.data.token_batching import TokenBatches
from ehrjax.data.windows import Windows, cut_windows
from ehrjax.evaluate.code_vectors import describe_coverage, init_embedding, read_code_vectors
from ehrjax.evaluate.next_visit_baselines import code_frequency
from ehrjax.models.pretraining import HEADS, Pretraining
from ehrjax.objectives.chunks import in_chunks
from ehrjax.objectives.combine import combine
from ehrjax.objectives.contrastive import make_contrastive_objective
from ehrjax.objectives.mlm import make_mlm_objective
from ehrjax.objectives.next_visit import (
    make_next_visit_objective,
    make_pooled_next_visit_objective,
    prior_bias,
    with_prior_bias,
)
from ehrjax.objectives.skip_gram import make_skip_gram_objective
from ehrjax.train.loop import FitResult, fit
from ehrjax.train.state import create_state
from ehrjax.train.step import make_eval_step, make_train_step, mean_metrics
from ehrjax.types import FIRST_CODE, VisitSequences
from experiments import build
from experiments.prepare import Data, even_share

PART = "pretrain"
# Losses on val come from an even share of its rows: reading all would take as long as some hundred steps.
MAX_VAL_TOKENS = 60_000


class Records(NamedTuple):
    """The whole records of a split's patients, the codes hidden when models are judged, and windows of them.

    In `sequences` codes stand as they are predicted: without their value bins, unless `pretrain.predict_values`.
    `is_asked` marks the visits whose codes are asked for: of test patients with a cut-off, those that begin after it.
    """

    sequences: VisitSequences
    hidden: np.ndarray  # bool [num_codes]
    windows: Windows
    is_asked: np.ndarray | None = None  # bool [num_visits]; None: all


class Pretrained(NamedTuple):
    """What pre-training leaves: the module with its heads, its weights, its batches, and the records by split."""

    model: Pretraining
    fitted: FitResult
    loaders: dict[str, TokenBatches]
    records: dict[str, Records]


def active_objectives(config: ConfigDict) -> dict[str, float]:
    """Objectives of the recipe with a weight above 0; none where `pretrain.num_steps` is 0."""
    weights = {name: float(weight) for name, weight in config.pretrain.objectives.items() if weight}
    if config.pretrain.num_steps and not weights:
        raise ValueError(
            f"pretrain.objectives has no weight above 0: set one of {', '.join(config.pretrain.objectives)}."
        )
    return weights if config.pretrain.num_steps else {}


def pretrain(data: Data, config: ConfigDict, workdir: Path, *, meta: dict, command: str) -> Pretrained:
    """Fit the encoder to the train patients' records; resumes from the workdir's checkpoints."""
    weights = active_objectives(config)
    records = {split: _read_records(split, data, config) for split in data.splits}
    loaders = {split: _make_loader(split, record, data, config) for split, record in records.items()}
    encoder = build.make_model(config, vocab_size=len(data.vocab), num_outputs=0)
    if "skip_gram" in weights:
        encoder = encoder.clone(with_context=True)
    heads = tuple(name for name in weights if name in HEADS)
    code_tokens = None if config.pretrain.predict_values else tuple(data.vocab.code_tokens.tolist())
    model = Pretraining(encoder=encoder, vocab_size=len(data.vocab), code_tokens=code_tokens, heads=heads)
    counts = np.bincount(records["train"].windows.sequences.codes, minlength=len(data.vocab))
    counts[:FIRST_CODE] = 0
    objective = combine({name: (_make_objective(name, model, counts), weight) for name, weight in weights.items()})
    init_key, base_key = jax.random.split(jax.random.key(config.pretrain.seed))
    params = jax.jit(model.init)(init_key, loaders["train"].batch_at(0))["params"]
    params = _start_from_data(params, records["train"].sequences, data, config)
    tx, plateau = build.make_optimizer(
        config, num_steps=config.pretrain.num_steps, learning_rate=config.pretrain.learning_rate
    )
    examples = records["train"].windows.example_index
    fitted = fit(
        state=create_state(params, tx),
        train_step=make_train_step(objective, tx),
        batch_at=loaders["train"].batch_at,
        num_steps=config.pretrain.num_steps,
        base_key=base_key,
        eval_fn=_validation(objective, loaders["val"], weights, config.data.max_tokens),
        eval_every=config.pretrain.eval_every,
        patience=config.pretrain.patience,
        plateau=plateau,
        log_every=config.pretrain.log_every,
        workdir=workdir,
        part=PART,
        meta=meta,
        resume_command=command,
        examples_of=lambda batch: np.unique(examples[loaders["train"].examples_of(batch)]),
    )
    return Pretrained(model, fitted, loaders, records)


def _read_records(split: str, data: Data, config: ConfigDict) -> Records:
    store = data.stores[-1] if split == "test" else data.stores[0]
    # A visit that fills a row loses its last codes there: nothing may be asked of codes that no model is shown.
    max_codes = min(config.data.max_codes, config.data.max_tokens - 2)
    sequences = build_patient_sequences(store, data.vocab, data.splits[split], max_codes=max_codes)
    hidden = draw_eval_mask(sequences, mask_rate=EVAL_MASK_RATE, seed=config.data.seed)
    is_asked = None
    if split == "test" and data.cutoff is not None:
        is_asked = begun_after(store, sequences.subject_ids, data.cutoff)
        hidden &= np.repeat(is_asked, np.diff(sequences.visit_offsets))
    windows = cut_windows(sequences, max_tokens=config.data.max_tokens)
    if not config.pretrain.predict_values:
        sequences = sequences._replace(codes=data.vocab.code_tokens[sequences.codes])
    return Records(sequences, hidden, windows, is_asked)


def _make_loader(split: str, record: Records, data: Data, config: ConfigDict) -> TokenBatches:
    """Train draws its masked codes afresh each step; val and test hide the same ones each time."""
    windows = record.windows
    masks = (
        {"mask_rate": config.pretrain.mask_rate}
        if split == "train"
        else {"eval_mask": windows.fresh_codes(record.hidden)}
    )
    return TokenBatches(
        windows.sequences,
        row_tokens=config.data.max_tokens,
        batch_size=config.pretrain.batch_size,
        seed=config.pretrain.seed,
        is_fresh=windows.is_fresh,
        vocab_size=len(data.vocab),
        code_tokens=None if config.pretrain.predict_values else data.vocab.code_tokens,
        **masks,
    )


def _make_objective(name: str, model: Pretraining, counts: np.ndarray):
    if name == "skip_gram":
        skip_gram = make_skip_gram_objective(model.encoder, code_counts=counts)
        return lambda params, batch, key, train: skip_gram(params["encoder"], batch, key, train)
    if name == "contrastive":  # sets all rows of the batch against each other
        return make_contrastive_objective(model)
    makers = {
        "mlm": make_mlm_objective,
        "next_visit": make_next_visit_objective,
        "pooled_next_visit": make_pooled_next_visit_objective,
    }
    return in_chunks(makers[name](model))


def _start_from_data(params: Any, records: VisitSequences, data: Data, config: ConfigDict) -> Any:
    """Base rates as the bias of the next-visit head, and the embedding from `pretrain.code_vectors` where given."""
    if "next_visit_head" in params:
        num_visits = len(records.ages)
        held = np.rint(code_frequency(records, len(data.vocab)) * num_visits)
        params = with_prior_bias(params, prior_bias(held, num_visits))
    return {**params, "encoder": start_from(params["encoder"], None, data, config)}


def start_from(params: Any, encoder: Any, data: Data, config: ConfigDict) -> Any:
    """Fresh parameters of a model, its encoder replaced by a pre-trained one.

    Without one, the code embedding starts from `pretrain.code_vectors` where given, by code name.
    """
    if encoder is not None:
        return {**params, **{name: value for name, value in encoder.items() if name in params}}
    if not config.pretrain.code_vectors:
        return params
    names, vectors = read_code_vectors(config.pretrain.code_vectors)
    table = np.asarray(params["embedding"]["embedding"])
    table, coverage = init_embedding(table, data.vocab.tokens, names, vectors)
    print(f"code embedding from {config.pretrain.code_vectors}: {describe_coverage(coverage)}", flush=True)
    return {**params, "embedding": {"embedding": jax.numpy.asarray(table)}}


def _validation(objective, loader: TokenBatches, weights: dict[str, float], row_tokens: int):
    """`eval_fn(params)`: the weighted loss and the objectives' own figures on an even share of the rows."""
    most = max(1, MAX_VAL_TOKENS // (loader.batch_size * row_tokens))
    picked = set(even_share(np.arange(loader.num_batches_per_epoch), most).tolist())
    batches = [batch for number, batch in enumerate(loader.eval_batches()) if number in picked]
    step = jax.jit(make_eval_step(objective))

    def eval_fn(params: Any) -> dict[str, float]:
        figures = mean_metrics(jax.device_get([step(params, batch) for batch in batches]), prefix="val/")
        # The sum of the means over the split, where "loss" is the mean over batches of their sums.
        total = sum(weight * figures[f"val/{name}_loss"] for name, weight in weights.items())
        return figures | {"val/loss": total}

    return eval_fn
