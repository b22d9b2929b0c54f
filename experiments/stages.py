"""The stages of a run in order: data, pre-training, each task (train, predict, baselines, oracle), the report."""

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

from ehrjax.evaluate import plots
from ehrjax.evaluate.bags import bag_of_codes
from ehrjax.evaluate.baselines import fit_baselines
from ehrjax.evaluate.code_vectors import write_code_vectors
from ehrjax.evaluate.predict import predict, write_predictions
from ehrjax.evaluate.report import write_json, write_report
from ehrjax.evaluate.tables import pretrain_text, results_table
from ehrjax.metrics.summary import best_threshold, evaluate
from ehrjax.train.loop import FitResult
from ehrjax.types import FIRST_CODE, VisitSequences
from experiments import build, oracle
from experiments.finetune import run_meta, train_task
from experiments.loaders import Batches
from experiments.prepare import Data, SplitData, candidate_tasks, even_share, prepare_data, prepare_task
from experiments.pretrain import active_objectives, pretrain
from experiments.pretrain_eval import evaluate_pretraining

# Of more train rows the baselines get an even share: boosting took two minutes on 100,000 rows, and had not ended after
# five on 350,000.
MAX_BASELINE_ROWS = 100_000
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "pandas", "pyarrow", "scikit-learn")


def run(config: ConfigDict, workdir: Path, *, command: str) -> dict[str, Any]:
    """Run or resume the recipe in `workdir`; returns what results.json holds."""
    config = build.check_config(config)
    tasks, is_pretrained = candidate_tasks(config), bool(active_objectives(config))
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
        results = {"model": None, "data": data.report, "pretrain": None, "embeddings": None, "tasks": {}, "train": None}
        encoder = run_pretraining(data, config, workdir, results, command) if is_pretrained else None
        for name in tasks:
            results["tasks"][name] = run_task(name, data, config, workdir, results, command, encoder)
        for name in config.fallback_tasks:
            if any(row["kind"] for row in results["tasks"].values()):
                break
            if name not in results["tasks"]:
                print(f"trying {name} instead", flush=True)
                results["tasks"][name] = run_task(name, data, config, workdir, results, command, encoder)
        return _finish(results, config, workdir)


def run_pretraining(data: Data, config: ConfigDict, workdir: Path, results: dict, command: str) -> Any:
    """Pre-train and evaluate; fills `results` and returns the encoder's parameters."""
    trained = pretrain(data, config, workdir, meta=run_meta(data, config), command=command)
    encoder = trained.fitted.params["encoder"]
    results["model"] = {"name": config.model.name, "num_params": build.count_params(trained.fitted.params)}
    results["train"] = _add_training(None, trained.fitted, trained.records["train"].sequences, trained.loaders["train"])
    write_code_vectors(
        workdir / "code_vectors.parquet",
        data.vocab.tokens[FIRST_CODE:],
        np.asarray(encoder["embedding"]["embedding"])[FIRST_CODE:],
    )
    evaluated = workdir / "pretrain.json"  # so that a resumed run does not evaluate again
    if not evaluated.exists():
        print("pretrain: evaluating the model and its baselines", flush=True)
        write_json(evaluated, evaluate_pretraining(trained, data, config))
    results |= json.loads(evaluated.read_text(encoding="utf-8"))
    print(pretrain_text(results), flush=True)
    if results["pretrain"]["test"]:
        plots.forest(workdir / "plots" / "pretrain.png", results["pretrain"], title="pre-training")
    return encoder


def run_task(
    name: str, data: Data, config: ConfigDict, workdir: Path, results: dict, command: str, encoder: Any = None
) -> dict[str, Any]:
    """Train and evaluate one task; fills model and train in `results`. `kind` is null where it was skipped.

    `encoder` holds pre-trained parameters to start from.
    """
    parts, reason, flow = prepare_task(name, data, config, workdir)
    if parts is None:
        print(f"{name}: not trained. {reason}", flush=True)
        return {"kind": None, "skipped": reason, "flow": flow}
    sizes = _count_rows(parts)
    print(f"{name}: {sizes['train']:,} train, {sizes['val']:,} val, {sizes['test']:,} test rows", flush=True)
    trained, model, loaders = train_task(name, parts, data, config, workdir, encoder=encoder, command=command)
    results["model"] = {"name": config.model.name, "num_params": build.count_params(trained.params)}
    results["train"] = _add_training(results["train"], trained, parts["train"].sequences, loaders["train"])
    return evaluate_task(name, parts, model, trained, loaders, data, config, workdir) | {"flow": flow}


def evaluate_task(
    name: str,
    parts: dict[str, SplitData],
    model: Any,
    trained: FitResult,
    loaders: dict[str, Batches],
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
            rows = even_share(np.flatnonzero(sequences.label_mask.any(axis=1)), MAX_BASELINE_ROWS)
        labels[split], masks[split] = sequences.labels[rows], sequences.label_mask[rows]
        features[split] = bag_of_codes(sequences, len(data.vocab), level=level, rows=rows)
    train = parts["train"].labels
    num_classes = train.num_outputs if train.kind == "multiclass" else None
    names = tuple(config.eval.baselines)
    return fit_baselines(train.kind, features, labels, masks, num_classes=num_classes, names=names)


def _count_rows(parts: dict[str, SplitData]) -> dict[str, int]:
    return {split: int(part.sequences.label_mask.any(axis=1).sum()) for split, part in parts.items()}


def _add_training(
    total: dict | None, trained: FitResult, sequences: VisitSequences, batches: Batches
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
