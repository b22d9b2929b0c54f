"""The stages of a run in order: data, pre-training, each task (train, predict, baselines, oracle), the report."""

import fcntl
import json
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from ehrjax.data.cutoff import whole_of
from ehrjax.data.stay_batching import StayWindows
from ehrjax.evaluate import plots
from ehrjax.evaluate.audit.checks import audit_run
from ehrjax.evaluate.code_vectors import write_code_vectors
from ehrjax.evaluate.report import write_json, write_report
from ehrjax.evaluate.seeds import ensemble_scores
from ehrjax.evaluate.tables import pretrain_text, results_table
from ehrjax.train.loop import FitResult
from ehrjax.types import FIRST_CODE, VisitSequences
from ehrjax.wording import counted
from experiments import build
from experiments.ablation import ablate
from experiments.embed import evaluate_patients
from experiments.explain_task import explain_task
from experiments.finetune import member_params, predict_members, run_meta, train_task
from experiments.loaders import Batches
from experiments.prepare import Data, candidate_tasks, find_task, prepare_data, prepare_task
from experiments.pretrain import active_objectives, pretrain
from experiments.pretrain_eval import evaluate_pretraining
from experiments.targets import make_target
from experiments.task_eval import count_rows, evaluate_task

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
        read = dict.fromkeys(map(whole_of, data.stores))  # also what a temporal split holds back from training
        plots.data_overview(workdir / "plots" / "data.png", *read)
        results = {
            "model": None,
            "data": data.report,
            "pretrain": None,
            "embeddings": None,
            "tasks": {},
            "train": None,
            "audit": None,
        }
        encoder = run_pretraining(data, config, workdir, results, command) if is_pretrained else None
        models: dict[str, Any] = {}
        for name in tasks:
            results["tasks"][name] = run_task(name, data, config, workdir, results, models, command, encoder)
        for name in config.fallback_tasks:
            if any(row["kind"] for row in results["tasks"].values()):
                break
            if name not in results["tasks"]:
                print(f"trying {name} instead", flush=True)
                results["tasks"][name] = run_task(name, data, config, workdir, results, models, command, encoder)
        print("audit: looking for leaks", flush=True)
        results["audit"] = audit_run(workdir, results=results, params=models)
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
        print("pretrain: evaluating the model, its baselines and the patients' embeddings", flush=True)
        found = {"pretrain": evaluate_pretraining(trained, data, config)}
        write_json(evaluated, found | {"embeddings": evaluate_patients(trained, data, config, workdir)})
    results |= json.loads(evaluated.read_text(encoding="utf-8"))
    print(pretrain_text(results), flush=True)
    if results["pretrain"]["test"]:
        plots.forest(workdir / "plots" / "pretrain.png", results["pretrain"], title="pre-training")
    return encoder


def run_task(
    name: str,
    data: Data,
    config: ConfigDict,
    workdir: Path,
    results: dict,
    models: dict[str, Any],
    command: str,
    encoder: Any = None,
) -> dict[str, Any]:
    """Train and evaluate one task; fills model and train in `results`. `kind` is null where it was skipped.

    `models` gets the task's parameters (of the first member). `encoder` holds pre-trained parameters to start from.
    """
    parts, reason, flow = prepare_task(name, data, config, workdir)
    if parts is None:
        print(f"{name}: not trained. {reason}", flush=True)
        return {"kind": None, "skipped": reason, "flow": flow}
    sizes = count_rows(parts)
    test = counted(sizes["test"], "test row")
    print(f"{name}: {sizes['train']:,} train, {sizes['val']:,} val, {test}", flush=True)
    target = make_target(find_task(name, config), parts["train"].sequences, parts["train"].labels, config)
    trained, model, loaders = train_task(name, parts, target, data, config, workdir, encoder=encoder, command=command)
    members = member_params(trained, config)
    models[name] = members[0]
    results["model"] = {"name": config.model.name, "num_params": build.count_params(members[0])}
    results["train"] = _add_training(results["train"], trained, parts["train"].sequences, loaders["train"])
    evaluated = workdir / "tasks" / f"{name}.json"  # so that a resumed run does not evaluate again
    if not evaluated.exists():
        print(f"{name}: evaluating the model and its baselines", flush=True)
        scores = predict_members(model, target, members, loaders, parts["val"].labels)
        row = evaluate_task(name, parts, target, scores, data, config, workdir)
        row["modalities"] = ablate(name, parts, target, scores, data, config, workdir, command=command)
        test = ensemble_scores(scores["test"])
        row["explanations"] = explain_task(name, parts["test"], test, model, members, data, config, workdir)
        write_json(evaluated, row | {"flow": flow})
    return json.loads(evaluated.read_text(encoding="utf-8"))


def _add_training(
    total: dict | None, trained: FitResult, sequences: VisitSequences | StayWindows, batches: Batches
) -> dict[str, Any]:
    """The `train` part of results.json: steps, seconds and compilations add up over the tasks, rates are the last's.

    Tokens are codes, of stays time points.
    """
    total = total or {"steps": 0, "seconds": 0.0, "num_compilations": 0}
    num_tokens = sequences.time_mask.sum() if isinstance(sequences, StayWindows) else len(sequences.codes)
    tokens = trained.examples_per_second * num_tokens / len(sequences.subject_ids)
    return {
        "steps": total["steps"] + trained.steps,
        "seconds": round(total["seconds"] + trained.seconds, 3),
        "tokens_per_second": round(float(tokens), 1),
        "examples_per_second": round(trained.examples_per_second, 1),
        "padding_fraction": round(batches.padding_fraction, 4),
        "num_compilations": total["num_compilations"] + trained.num_compilations,
    }


def _finish(results: dict, config: ConfigDict, workdir: Path) -> dict[str, Any]:
    plots.training_curves(workdir / "plots" / "training.png", workdir / "metrics.jsonl")
    write_report(workdir, results, build.config_dict(config))
    write_json(workdir / "results.json", results)
    print(results_table(results))
    print(f"\nwritten to {workdir}: results.json, report.html, report.md, predictions/, plots/, checkpoints/")
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
