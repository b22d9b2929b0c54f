"""Training on one task: from scratch or from a pre-trained encoder, all weights or adapters (LoRA) and the head."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from ehrjax.evaluate.predict import LINKS
from ehrjax.metrics.summary import known_rows, metrics_for
from ehrjax.objectives.supervised import make_supervised_objective, supervised_loss
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


def run_meta(data: Data, config: ConfigDict) -> dict[str, str]:
    """What a checkpoint belongs to."""
    return {"config": build.config_hash(config), "vocabulary": data.vocab.content_hash}


def train_task(
    name: str,
    parts: dict[str, SplitData],
    data: Data,
    config: ConfigDict,
    workdir: Path,
    *,
    encoder: Any = None,
    command: str,
) -> tuple[FitResult, Any, dict[str, Batches]]:
    """Fit the model on train with early stopping on val; resumes from the workdir's checkpoints."""
    labels = parts["train"].labels
    loaders, examples_of = make_loaders(parts, config)
    sizes = {"vocab_size": len(data.vocab), "num_outputs": labels.num_outputs}
    model = build.make_model(config, **sizes)
    in_rows = build.make_model(config, **sizes, level=loaders["train"].level)
    init_key, base_key = jax.random.split(jax.random.key(config.train.seed))
    params = jax.jit(in_rows.init)(init_key, loaders["train"].batch_at(0))["params"]
    params = start_from(params, encoder, data, config)
    training = _whole(params, make_supervised_objective(in_rows, labels.kind), loaders["train"].batch_at, examples_of)
    if config.train.lora_rank:
        training = _adapted(params, training, config, jax.random.fold_in(init_key, 1))
    tx, plateau = build.make_optimizer(config, num_steps=config.train.num_steps)
    evaluate = _validation(model, loaders["val"], parts["val"], labels.kind)
    trained = fit(
        state=create_state(training.trainable, tx),
        train_step=make_train_step(training.objective, tx),
        batch_at=training.batch_at,
        num_steps=config.train.num_steps,
        base_key=base_key,
        eval_fn=lambda trainable: evaluate(training.to_params(trainable)),
        eval_every=config.train.eval_every,
        patience=config.train.patience,
        plateau=plateau,
        log_every=config.train.log_every,
        workdir=workdir,
        part=name,
        meta=run_meta(data, config),
        resume_command=command,
        examples_of=training.examples_of,
    )
    if config.train.lora_rank:
        path = workdir / "adapters" / f"{name}.npz"
        save_adapters(path, trained.params, params, alpha=config.train.lora_alpha)
    return replace(trained, params=training.to_params(trained.params)), model, loaders


class _Training(NamedTuple):
    """What `fit` is given: all parameters, or adapters and the head on a frozen base."""

    trainable: Any
    objective: Callable[..., LossOutput]
    batch_at: Callable[[int], Any]
    examples_of: Callable[[Any], np.ndarray]
    to_params: Callable[[Any], Any]  # of the model, from the trainable


def _whole(params: Any, objective, batch_at, examples_of) -> _Training:
    return _Training(params, objective, batch_at, examples_of, lambda trainable: trainable)


def _adapted(params: Any, whole: _Training, config: ConfigDict, key: jax.Array) -> _Training:
    alpha = config.train.lora_alpha
    trainable = init_trainable(key, params, rank=config.train.lora_rank)
    print(f"LoRA: {num_trainable(trainable):,} of {build.count_params(params):,} parameters are trained", flush=True)
    return _Training(
        trainable,
        make_lora_objective(whole.objective, alpha=alpha),
        with_base(whole.batch_at, params),
        lambda on_base: whole.examples_of(on_base.batch),
        lambda adapted: merge_trainable(params, adapted, alpha=alpha),
    )


def _validation(model, batches: Batches, part: SplitData, kind: str):
    """`eval_fn(params)`: loss and the kind's first metric (AUROC for a binary task) on val, without intervals."""
    prepared = list(batches.eval_batches())
    labels, mask = part.labels.values, part.labels.mask
    metric_name, metric = next(iter(metrics_for(kind, num_outputs=part.labels.num_outputs).items()))

    @jax.jit
    def step(params, batch):
        logits = model.apply({"params": params}, batch).logits
        return supervised_loss(logits, batch.labels, batch.label_mask, kind=kind), LINKS[kind](logits)

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
