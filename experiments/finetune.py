"""Training on one task, one model or several: from scratch or a pre-trained encoder, all weights or adapters (LoRA)."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from ehrjax.data.labels import Labels
from ehrjax.evaluate.predict import predict
from ehrjax.metrics.summary import known_rows, metrics_for
from ehrjax.objectives.chunks import in_chunks
from ehrjax.train.ensemble import fit_members, member_of
from ehrjax.train.loop import FitResult, fit
from ehrjax.train.lora import (
    init_trainable,
    make_lora_objective,
    merge_trainable,
    num_trainable,
    save_adapters,
    with_base,
)
from ehrjax.train.state import create_state
from ehrjax.train.step import make_train_step, mean_metrics
from ehrjax.types import LossOutput
from experiments import build
from experiments.loaders import Batches, make_loaders
from experiments.prepare import Data, SplitData
from experiments.pretrain import start_from
from experiments.stays import inputs_meta
from experiments.targets import LINKED, Target, apply_linked


def run_meta(data: Data, config: ConfigDict) -> dict[str, str]:
    """What a checkpoint belongs to."""
    return {"config": build.config_hash(config), "vocabulary": data.vocab.content_hash}


def train_task(
    name: str,
    parts: dict[str, SplitData],
    target: Target,
    data: Data,
    config: ConfigDict,
    workdir: Path,
    *,
    encoder: Any = None,
    command: str,
) -> tuple[FitResult, Any, dict[str, Batches]]:
    """Fit the model on train with early stopping on val; resumes from the workdir's checkpoints.

    Of `train.num_seeds` K > 1 members, member k has the initialisation and dropout of a run with `train.seed` + k, and
    the batches of `train.seed`; then the result's `params` have the members on axis 0 (see `member_params`).
    """
    lora_rank, alpha = config.train.lora_rank, config.train.lora_alpha
    loaders, examples_of = make_loaders(parts, config)
    sizes = {"vocab_size": len(data.vocab), "num_outputs": target.num_outputs}
    model = build.make_model(config, **sizes)
    in_rows = build.make_model(config, **sizes, level=loaders["train"].level)
    keys = [jax.random.split(jax.random.key(config.train.seed + member)) for member in range(config.train.num_seeds)]
    starts = _initial_params(in_rows, [key for key, _ in keys], loaders["train"], encoder, data, config)
    starts = [target.at_base_rates(params) for params in starts]
    training = _whole(starts, _make_objective(target, in_rows, config), loaders["train"].batch_at, examples_of)
    if lora_rank:
        training = _adapted(starts, training, config, [jax.random.fold_in(key, 1) for key, _ in keys])
    evaluate = _validation(model, loaders["val"], parts["val"], target)
    trained = _fit(
        training,
        [key for _, key in keys],
        lambda trainable: evaluate(training.to_params(trainable)),
        config,
        batch_at=training.batch_at,
        num_steps=config.train.num_steps,
        eval_every=config.train.eval_every,
        patience=config.train.patience,
        log_every=config.train.log_every,
        workdir=workdir,
        part=name,
        meta=run_meta(data, config) | inputs_meta(parts["train"].sequences),
        resume_command=command,
        examples_of=training.examples_of,
    )
    if lora_rank:
        for member, (adapters, start) in enumerate(zip(member_params(trained, config), starts, strict=True)):
            path = workdir / "adapters" / (f"{name}_{member}.npz" if len(starts) > 1 else f"{name}.npz")
            save_adapters(path, adapters, start, alpha=alpha)
    to_params = training.to_params if len(starts) == 1 else jax.vmap(training.to_params)
    return replace(trained, params=to_params(trained.params)), model, loaders


def member_params(trained: FitResult, config: ConfigDict) -> list[Any]:
    """Parameters of each member; of the one model where `train.num_seeds` is 1."""
    count = config.train.num_seeds
    return [trained.params] if count == 1 else [member_of(trained.params, member) for member in range(count)]


def predict_members(
    model: Any, target: Target, members: list[Any], loaders: dict[str, Batches], val: Labels
) -> dict[str, np.ndarray]:
    """Scores [M, n, S] of the members on val and test."""
    apply_fn = apply_linked(model, target)

    def scores_of(params: Any, split: str) -> np.ndarray:
        return predict(apply_fn, params, loaders[split].eval_batches(), kind=LINKED)

    found = [target.finish({split: scores_of(params, split) for split in ("val", "test")}, val) for params in members]
    return {split: np.stack([scores[split] for scores in found]) for split in ("val", "test")}


class _Training(NamedTuple):
    """What `fit` is given: all parameters, or adapters and the head on a frozen base."""

    trainables: list[Any]  # a member each
    objective: Callable[..., LossOutput]
    batch_at: Callable[[int], Any]
    examples_of: Callable[[Any], np.ndarray]
    to_params: Callable[[Any], Any]  # of the model, from one trainable


def _make_objective(target: Target, model: Any, config: ConfigDict) -> Callable[..., LossOutput]:
    objective = target.make_objective(model)
    is_sum_over_rows = target.survival != "cox"
    return in_chunks(objective) if build.reads_tokens(config) and is_sum_over_rows else objective


def _initial_params(model, keys: list[jax.Array], batches: Batches, encoder: Any, data: Data, config: ConfigDict):
    init, batch = jax.jit(model.init), batches.batch_at(0)
    return [start_from(init(key, batch)["params"], encoder, data, config) for key in keys]


def _whole(starts: list[Any], objective, batch_at, examples_of) -> _Training:
    return _Training(starts, objective, batch_at, examples_of, lambda trainable: trainable)


def _adapted(starts: list[Any], whole: _Training, config: ConfigDict, keys: list[jax.Array]) -> _Training:
    # One base for all: what members do not share is the head, and that is in the trainables.
    alpha, base = config.train.lora_alpha, starts[0]
    trainables = [
        init_trainable(key, start, rank=config.train.lora_rank) for key, start in zip(keys, starts, strict=True)
    ]
    trained, total = num_trainable(trainables[0]), build.count_params(base)
    print(f"LoRA: {trained:,} of {total:,} parameters are trained", flush=True)
    return _Training(
        trainables,
        make_lora_objective(whole.objective, alpha=alpha),
        with_base(whole.batch_at, base),
        lambda on_base: whole.examples_of(on_base.batch),
        lambda adapted: merge_trainable(base, adapted, alpha=alpha),
    )


def _fit(training: _Training, base_keys: list[jax.Array], eval_fn, config: ConfigDict, **settings) -> FitResult:
    """One model by `fit`, several by `fit_members`."""
    tx, plateau = build.make_optimizer(config, num_steps=config.train.num_steps)
    train_step = make_train_step(training.objective, tx)
    settings |= {"eval_fn": eval_fn, "plateau": plateau}
    if len(base_keys) > 1:
        return fit_members(training.trainables, tx, train_step, base_keys=jax.numpy.stack(base_keys), **settings)
    state = create_state(training.trainables[0], tx)
    return fit(state=state, train_step=train_step, base_key=base_keys[0], **settings)


def _validation(model, batches: Batches, part: SplitData, target: Target):
    """`eval_fn(params)`: loss and the kind's first metric (AUROC for a binary task) on val, without intervals."""
    prepared = list(batches.eval_batches())
    labels, mask = part.labels.values, part.labels.mask
    kind, options = target.kind, {"num_outputs": part.labels.num_outputs, "horizons": target.linked_horizons}
    metric_name, metric = next(iter(metrics_for(kind, **options).items()))

    @jax.jit
    def step(params, batch):
        logits = model.apply({"params": params}, batch).logits
        return target.loss(logits, batch.labels, batch.label_mask), target.link(logits)

    def eval_fn(params: Any) -> dict[str, float]:
        results = jax.device_get([step(params, batch) for batch in prepared])
        figures = mean_metrics([{"loss": (loss.loss_sum, loss.weight)} for loss, _ in results], prefix="val/")
        scores = np.zeros((len(labels), results[0][1].shape[-1]), np.float32)
        for (_, rows), batch in zip(results, prepared, strict=True):
            is_real = batch.example_ids >= 0
            scores[batch.example_ids[is_real]] = rows[is_real]
        known = known_rows(kind, labels, scores, mask, part.labels.subject_ids)
        return figures | {f"val/{metric_name}": float(metric(*known[:2]))}

    return eval_fn
