"""The stages of a run in order: data, then each task (train, predict, baselines, oracle), then the report."""

import fcntl
import json
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial as bind
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from ehrjax.data.batching import VisitBatches
from ehrjax.data.packing import pack_visits
from ehrjax.evaluate import plots
from ehrjax.evaluate.bags import bag_of_codes
from ehrjax.evaluate.baselines import fit_baselines
from ehrjax.evaluate.predict import LINKS, predict, write_predictions
from ehrjax.evaluate.report import write_json, write_report
from ehrjax.evaluate.tables import results_table
from ehrjax.metrics.summary import best_threshold, evaluate, known_rows, metrics_for
from ehrjax.objectives.supervised import make_supervised_objective, supervised_loss
from ehrjax.train.loop import FitResult, batch_example_ids, fit
from ehrjax.train.state import create_state
from ehrjax.train.step import make_train_step, mean_metrics
from ehrjax.types import VisitSequences
from experiments import build, oracle
from experiments.prepare import Data, SplitData, candidate_tasks, prepare_data, prepare_task

# Of more train rows the baselines get an even share: boosting took two minutes on 100,000 rows, and had not ended after
# five on 350,000.
MAX_BASELINE_ROWS = 100_000
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "pandas", "pyarrow", "scikit-learn")


def run(config: ConfigDict, workdir: Path, *, command: str) -> dict[str, Any]:
    """Run or resume the recipe in `workdir`; returns what results.json holds."""
    config = build.check_config(config)
    tasks = candidate_tasks(config)
    workdir.mkdir(parents=True, exist_ok=True)
    with _only_run(workdir):
        _claim(workdir, config)
        done = workdir / "results.json"
        if done.exists():
            results = json.loads(done.read_text())
            print(f"{workdir}: this run is complete. Delete the folder, or name another --workdir, to run it again.\n")
            print(results_table(results))
            return results
        write_json(workdir / "environment.json", environment(command))
        data = prepare_data(config, workdir)
        plots.data_overview(workdir / "plots" / "data.png", data.stores[0])
        results = {"model": None, "data": data.report, "tasks": {}, "train": None}
        for name in tasks:
            results["tasks"][name] = run_task(name, data, config, workdir, results, command)
        for name in config.fallback_tasks:
            if any(row["kind"] for row in results["tasks"].values()):
                break
            if name not in results["tasks"]:
                print(f"trying {name} instead", flush=True)
                results["tasks"][name] = run_task(name, data, config, workdir, results, command)
        return _finish(results, config, workdir)


def run_task(name: str, data: Data, config: ConfigDict, workdir: Path, results: dict, command: str) -> dict[str, Any]:
    """Train and evaluate one task; fills model and train in `results`. `kind` is null where it was skipped."""
    parts, reason, flow = prepare_task(name, data, config, workdir)
    if parts is None:
        print(f"{name}: not trained. {reason}", flush=True)
        return {"kind": None, "skipped": reason, "flow": flow}
    sizes = _count_rows(parts)
    print(f"{name}: {sizes['train']:,} train, {sizes['val']:,} val, {sizes['test']:,} test rows", flush=True)
    meta = {"config": build.config_hash(config), "vocabulary": data.vocab.content_hash}
    trained, model, loaders = train_task(name, parts, data, config, workdir, meta=meta, command=command)
    results["model"] = {"name": config.model.name, "num_params": build.count_params(trained.params)}
    results["train"] = _add_training(results["train"], trained, parts["train"].sequences, loaders["train"])
    return evaluate_task(name, parts, model, trained, loaders, data, config, workdir) | {"flow": flow}


def train_task(
    name: str, parts: dict[str, SplitData], data: Data, config: ConfigDict, workdir: Path, *, meta: dict, command: str
) -> tuple[FitResult, Any, dict[str, VisitBatches]]:
    """Fit the model on train with early stopping on val; resumes from the workdir's checkpoints."""
    labels = parts["train"].labels
    loaders, examples_of = make_loaders(parts, config)
    sizes = {"vocab_size": len(data.vocab), "num_outputs": labels.num_outputs}
    model = build.make_model(config, **sizes)
    in_rows = build.make_model(config, **sizes, level=loaders["train"].level)
    objective = make_supervised_objective(in_rows, labels.kind)
    tx, plateau = build.make_optimizer(config)
    init_key, base_key = jax.random.split(jax.random.key(config.train.seed))
    params = jax.jit(in_rows.init)(init_key, loaders["train"].batch_at(0))["params"]
    trained = fit(
        state=create_state(params, tx),
        train_step=make_train_step(objective, tx),
        batch_at=loaders["train"].batch_at,
        num_steps=config.train.num_steps,
        base_key=base_key,
        eval_fn=_validation(model, loaders["val"], parts["val"], labels.kind),
        eval_every=config.train.eval_every,
        patience=config.train.patience,
        plateau=plateau,
        log_every=config.train.log_every,
        workdir=workdir,
        part=name,
        meta=meta,
        resume_command=command,
        examples_of=examples_of,
    )
    return trained, model, loaders


def make_loaders(parts: dict[str, SplitData], config: ConfigDict) -> tuple[dict[str, VisitBatches], Any]:
    """Batches of each split, and which examples a training batch holds.

    Train comes in packed rows, about `batch_size` patients at a time, with labels at visits. A bidirectional model can
    have none there and gets one patient a row.
    """
    limits = {"max_codes": config.data.max_codes, "seed": config.train.seed}
    size, num_buckets = config.train.batch_size, config.train.num_buckets
    loaders = {
        split: VisitBatches(part.sequences, batch_size=size, num_buckets=num_buckets, **limits)
        for split, part in parts.items()
        if split != "train" or config.model.bidirectional
    }
    if config.model.bidirectional:
        return loaders, batch_example_ids
    packed = pack_visits(parts["train"].sequences, level=parts["train"].level)
    rows = max(1, round(size * (len(packed.offsets) - 1) / len(packed.members)))
    loaders["train"] = VisitBatches(packed.sequences, batch_size=rows, num_buckets=1, level="visit", **limits)
    return loaders, lambda batch: packed.examples_of(batch.example_ids)


def _validation(model, batches: VisitBatches, part: SplitData, kind: str):
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
            scores[batch.example_ids[batch.example_mask]] = rows[batch.example_mask]
        known = known_rows(kind, labels, scores, mask, part.labels.subject_ids)
        return figures | {f"val/{metric_name}": float(metric(*known[:2]))}

    return eval_fn


def evaluate_task(
    name: str,
    parts: dict[str, SplitData],
    model: Any,
    trained: FitResult,
    loaders: dict[str, VisitBatches],
    data: Data,
    config: ConfigDict,
    workdir: Path,
) -> dict[str, Any]:
    """Test figures of the model, the baselines and the oracle, with intervals; writes predictions and plots."""
    labels, val = parts["test"].labels, parts["val"].labels
    kind = labels.kind
    apply_fn = build.apply_fn(model)
    scores = {k: predict(apply_fn, trained.params, loaders[k].eval_batches(), kind=kind) for k in ("val", "test")}
    measure = bind(_measure, kind, val, labels, config)
    threshold = best_threshold(kind, val.values, scores["val"], val.mask)
    write_predictions(
        workdir / "predictions" / f"{name}.parquet",
        kind,
        subject_ids=labels.subject_ids,
        times=labels.times,
        labels=labels.values,
        scores=scores["test"],
        mask=labels.mask,
        names=labels.names,
        threshold=threshold,
    )
    baselines, baseline_scores = {}, {}
    fitted = _fit_baselines(parts, data, config)
    for baseline, fit_ in fitted.items():
        if fit_.scores is None:
            baselines[baseline] = {"skipped": fit_.reason}
        else:
            baselines[baseline] = measure(fit_.scores)
            baseline_scores[baseline] = fit_.scores["test"]
    ceiling = oracle.evaluate_oracle(name, data.simulated, labels) if data.simulated else None
    plots.task_plots(
        workdir / "plots",
        name,
        kind,
        labels.values,
        scores["test"],
        labels.mask,
        baseline_scores,
        names=labels.names,
        threshold=threshold,
    )
    sizes = {f"num_{split}": count for split, count in _count_rows(parts).items()}
    sizes["num_test_patients"] = len(np.unique(labels.subject_ids))
    prevalence = float(labels.values[labels.mask].mean()) if kind in ("binary", "multilabel") else None
    row = {"kind": kind, **sizes, "prevalence": prevalence, "threshold": threshold}
    row |= {"test": measure(scores), "baselines": baselines, "oracle": ceiling}
    plots.forest(workdir / "plots" / f"{name}_forest.png", row, title=name)
    return row


def _measure(kind: str, val, test, config: ConfigDict, scores: dict[str, np.ndarray]) -> dict[str, Any]:
    threshold = best_threshold(kind, val.values, scores["val"], val.mask)
    return evaluate(
        kind,
        test.values,
        scores["test"],
        test.mask,
        test.subject_ids,
        num_resamples=config.eval.num_resamples,
        seed=config.train.seed,
        threshold=threshold,
    )


def _fit_baselines(parts: dict[str, SplitData], data: Data, config: ConfigDict):
    labels, masks, features = {}, {}, {}
    for split, (_, sequences, level) in parts.items():
        rows = np.arange(len(sequences.labels))
        if split == "train":
            rows = _even_share(np.flatnonzero(sequences.label_mask.any(axis=1)), MAX_BASELINE_ROWS)
        labels[split], masks[split] = sequences.labels[rows], sequences.label_mask[rows]
        features[split] = bag_of_codes(sequences, len(data.vocab), level=level, rows=rows)
    train = parts["train"].labels
    num_classes = train.num_outputs if train.kind == "multiclass" else None
    names = tuple(config.eval.baselines)
    return fit_baselines(train.kind, features, labels, masks, num_classes=num_classes, names=names)


def _even_share(rows: np.ndarray, limit: int) -> np.ndarray:
    """At most `limit` of the rows, evenly spaced, so that each patient keeps the same share."""
    return rows[np.linspace(0, len(rows) - 1, min(limit, len(rows))).round().astype(np.int64)]


def _count_rows(parts: dict[str, SplitData]) -> dict[str, int]:
    return {split: int(part.sequences.label_mask.any(axis=1).sum()) for split, part in parts.items()}


def _add_training(
    total: dict | None, trained: FitResult, sequences: VisitSequences, batches: VisitBatches
) -> dict[str, Any]:
    """The `train` part of results.json: steps, seconds and compilations add up over the tasks, rates are the last's."""
    total = total or {"steps": 0, "seconds": 0.0, "num_compilations": 0}
    tokens = trained.examples_per_second * len(sequences.codes) / len(sequences.subject_ids)
    return {
        "steps": total["steps"] + trained.steps,
        "seconds": round(total["seconds"] + trained.seconds, 3),
        "tokens_per_second": round(tokens, 1),
        "examples_per_second": round(trained.examples_per_second, 1),
        "padding_fraction": round(batches.padding_fraction, 4),
        "num_compilations": total["num_compilations"] + trained.num_compilations,
    }


def _finish(results: dict, config: ConfigDict, workdir: Path) -> dict[str, Any]:
    plots.training_curves(workdir / "plots" / "training.png", workdir / "metrics.jsonl")
    write_report(workdir, results, build.config_dict(config))
    write_json(workdir / "results.json", results)
    print(results_table(results))
    print(f"\nwritten to {workdir}: results.json, report.html, predictions/, plots/, checkpoints/")
    return results


def environment(command: str) -> dict[str, Any]:
    """What the run runs on: versions, devices, platform."""
    return {
        "command": command,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: metadata.version(name) for name in PACKAGES},
        "devices": [f"{device.platform}:{device.device_kind}" for device in jax.devices()],
    }


def _claim(workdir: Path, config: ConfigDict) -> None:
    """Write config.json, or refuse a workdir that holds a run of another config, naming what differs."""
    path, new = workdir / "config.json", dict(build.flatten(config))
    new = json.loads(
        json.dumps(new, default=lambda value: value.to_dict() if isinstance(value, ConfigDict) else str(value))
    )
    if path.exists():
        old = json.loads(path.read_text())
        differing = sorted(key for key in {*old, *new} if old.get(key) != new.get(key))
        if differing:
            pairs = "; ".join(f"{key}: {old.get(key)!r} there, {new.get(key)!r} now" for key in differing[:5])
            raise ValueError(
                f"{workdir} holds a run of another config ({pairs}). Name another --workdir, or delete it."
            )
    else:
        write_json(path, new)


@contextmanager
def _only_run(workdir: Path) -> Iterator[None]:
    """Hold the workdir's lock; the system drops it when the process ends, however it ends."""
    with (workdir / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"another process is running in {workdir}: wait for it, or name another --workdir."
            ) from None
        yield
