"""Pre-trained BEHRT, the same model from scratch and an LSTM, fine-tuned on shares of the labels.

    python -m experiments.benchmarks.label_efficiency --out=DIR [--task=diabetes_onset] [--num-patients=3000]
    python -m experiments.benchmarks.label_efficiency --out=DIR --source=synthea --path=DIR[,DIR...]
        --task=next_visit_class --rows-per-patient=20

Every fine-tuning has the same steps, evaluations and patience, and the batch size and learning rate of its recipe. The
patients' split is fixed. A seed draws the patients whose labels are used (a smaller share lies within a larger one),
the initialisation and the batches; the three systems of a seed and a share have the same patients. All seeds share one
pre-training. It reads the whole records of all train patients, the outcome's codes among them: only labels are rare,
records are not. Early stopping reads the labels of at most `--max-val-rows` validation rows, however rare those of
train are, for all systems alike. The best weights are those of the lowest validation loss.

Written to --out: runs.jsonl (a line a fine-tuning), scores/, results.json, label_efficiency.png. The same command again
leaves out what runs.jsonl has; more --fractions or --num-seeds add to it.
"""

import argparse
import json
import os
import runpy
import shlex
import shutil
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from ehrjax.data.labels import Labels
from ehrjax.data.sequences import build_visit_level_sequences, build_visit_sequences
from ehrjax.evaluate.files import replaced
from ehrjax.evaluate.predict import predict
from ehrjax.evaluate.report import write_json
from ehrjax.metrics.summary import known_rows, metrics_for
from ehrjax.train.interrupt import Interrupted
from experiments import build
from experiments.benchmarks.label_efficiency_report import METRICS, SYSTEMS, draw, run_name, summarise, table
from experiments.finetune import run_meta, train_task
from experiments.prepare import Data, SplitData, even_share, labelled_subjects, prepare_data, prepare_task
from experiments.pretrain import pretrain
from experiments.targets import make_target

MAY_GROW = ("out", "fractions", "num_seeds")  # options that may differ when a study goes on


class Study(NamedTuple):
    """What all fine-tunings share; `configs` and `parts` by system, the latter with all labels of train."""

    args: argparse.Namespace
    configs: dict[str, ConfigDict]
    data: Data
    encoder: Any
    parts: dict[str, dict[str, SplitData]]


def read_configs(args: argparse.Namespace) -> dict[str, ConfigDict]:
    """The recipe of each system, on the same data and the same budget; no fine-tuning settings of a seed."""
    recipes = {"pretrained": args.config, "scratch": args.config, "lstm": args.lstm_config}
    configs = {}
    for system, recipe in recipes.items():
        path, _, variant = recipe.partition(":")
        config = build.check_config(runpy.run_path(path)["get_config"](variant or ("debug" if args.debug else "")))
        config.data.update(source=args.source, path=args.path, test_path=args.test_path)
        config.data.num_patients = args.num_patients
        config.tasks, config.fallback_tasks = (args.task,), ()
        if args.rows_per_patient:
            config.custom_tasks[args.task] = {"base": args.task, "max_rows_per_patient": args.rows_per_patient}
        config.eval.min_positives = 1
        config.train.update(num_steps=args.steps, eval_every=args.eval_every, patience=args.patience)
        config.train.log_every = args.eval_every
        config.pretrain.num_steps = (args.pretrain_steps or config.pretrain.num_steps) if system == "pretrained" else 0
        configs[system] = config
    return configs


def prepare_study(args: argparse.Namespace, command: str) -> Study:
    """Data, labels and the pre-trained encoder; what is in --out is used again."""
    configs = read_configs(args)
    first = configs["pretrained"]
    data = prepare_data(first, args.out)
    parts = {}
    for system in ("scratch", "lstm"):
        found, reason, _ = prepare_task(args.task, data, configs[system], args.out)
        if found is None:
            raise ValueError(f"--task={args.task} cannot be studied on these data: {reason}")
        kind = found["train"].labels.kind
        if kind not in METRICS:
            raise ValueError(f"--task={args.task} is a {kind} task, which has no AUROC: use one of another kind.")
        rows = even_share(np.arange(len(found["val"].labels.times)), args.max_val_rows)
        labels = found["val"].labels.take(rows)
        found["val"] = _with_sequences(found["val"], labels, data.stores[0], data, configs[system])
        parts[system] = found
    parts["pretrained"] = parts["scratch"]
    pretraining = first.copy_and_resolve_references()
    pretraining.train = ConfigDict()  # a pre-training stays good where only the fine-tunings change
    meta = run_meta(data, pretraining)
    encoder = pretrain(data, first, args.out, meta=meta, command=command).fitted.params["encoder"]
    return Study(args, configs, data, encoder, parts)


def labelled_parts(study: Study, system: str, fraction: float, seed: int) -> tuple[dict[str, SplitData], ConfigDict]:
    """The parts with the labels of a share of the train patients only, and the config of that fine-tuning."""
    config = study.configs[system].copy_and_resolve_references()
    config.train.update(seed=seed, label_fraction=fraction)
    parts, data = study.parts[system], study.data
    kept = labelled_subjects(data.splits["train"], config)
    labels = parts["train"].labels
    labels = labels.take(np.isin(labels.subject_ids, kept))
    return parts | {"train": _with_sequences(parts["train"], labels, data.stores[0], data, config)}, config


def _with_sequences(part: SplitData, labels: Labels, store, data: Data, config: ConfigDict) -> SplitData:
    make = build_visit_level_sequences if part.level == "visit" else build_visit_sequences
    limits = {"max_visits": config.data.max_visits, "max_codes": config.data.max_codes}
    return SplitData(labels, make(store, data.vocab, labels, **limits), part.level)


def fine_tune(study: Study, system: str, fraction: float, seed: int) -> dict[str, Any]:
    """Train one system on one draw of labels and score the test split; the line of runs.jsonl."""
    started = time.perf_counter()
    parts, config = labelled_parts(study, system, fraction, seed)
    train = parts["train"].sequences
    known = train.labels[train.label_mask]
    row = {"system": system, "fraction": fraction, "seed": seed, "num_labels": len(known)}
    row |= {"num_patients": len(np.unique(train.subject_ids)), "num_positives": int((known > 0).sum())}
    if len(np.unique(known)) < 2:
        return row | {"skipped": f"the {len(known)} labels of this draw are all the same"}
    name, out = run_name(system, fraction, seed), study.args.out
    encoder = study.encoder if system == "pretrained" else None
    target = make_target(None, train, parts["train"].labels, config)
    with (out / "training.log").open("a") as log, redirect_stdout(log), redirect_stderr(log):
        fitted, model, loaders = train_task(
            study.args.task,
            parts,
            target,
            study.data,
            config,
            out / "runs" / name,
            encoder=encoder,
            command="the same again",
        )
    test = parts["test"].labels
    scores = predict(build.apply_fn(model), fitted.params, loaders["test"].eval_batches(), kind=test.kind)
    with replaced(out / "scores" / f"{name}.npy") as partial, partial.open("wb") as file:
        np.save(file, scores)
    labels, scores, _ = known_rows(test.kind, test.values, scores, test.mask, test.subject_ids)
    value = metrics_for(test.kind)[METRICS[test.kind]](labels, scores)
    seconds = round(time.perf_counter() - started, 1)
    return row | {"auroc": value, "steps": fitted.steps, "best_step": fitted.best_step, "seconds": seconds}


def read_runs(path: Path) -> list[dict[str, Any]]:
    """Whole lines of runs.jsonl; one that a kill cut is taken out of the file."""
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    if lines and not lines[-1].endswith("\n"):
        lines.pop()
        with replaced(path) as partial:
            partial.write_text("".join(lines))
    return [json.loads(line) for line in lines]


def run_study(study: Study) -> list[dict[str, Any]]:
    """All fine-tunings that runs.jsonl has not, then all its lines that were asked for."""
    args, path = study.args, study.args.out / "runs.jsonl"
    wanted = [(system, f, seed) for seed in range(args.num_seeds) for f in args.fractions for system in SYSTEMS]
    done = {(row["system"], row["fraction"], row["seed"]): row for row in read_runs(path)}
    for number, key in enumerate(wanted):
        if key in done:
            continue
        done[key] = row = fine_tune(study, *key)
        with path.open("a") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())
        shutil.rmtree(args.out / "runs" / run_name(*key), ignore_errors=True)
        shown = row.get("skipped") or f"AUROC {row['auroc']:.3f} at step {row['best_step']}, {row['seconds']:.0f} s"
        print(f"{number + 1} of {len(wanted)}: {key[0]}, {key[1]:.3g} of labels, seed {key[2]}: {shown}", flush=True)
    return [done[key] for key in wanted]


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Options; --debug makes the study tiny where an option is not given."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/label_efficiency"))
    parser.add_argument("--config", default="configs/behrt_small.py", help="recipe of BEHRT, PATH or PATH:VARIANT")
    parser.add_argument("--lstm-config", default="configs/lstm_small.py")
    parser.add_argument("--task", default="diabetes_onset")
    parser.add_argument("--rows-per-patient", type=int, default=0, help="val and test rows a patient; 0 = the task's")
    parser.add_argument("--source", default="simulate", choices=build.SOURCES)
    parser.add_argument("--path", default="")
    parser.add_argument("--test-path", default="")
    parser.add_argument("--num-patients", type=int, default=3000, help="simulator only")
    parser.add_argument("--fractions", type=lambda text: [float(f) for f in text.split(",")], default=[1.0, 0.1, 0.01])
    parser.add_argument("--num-seeds", type=int, default=5)
    parser.add_argument("--pretrain-steps", type=int, default=0, help="0 = the recipe's")
    parser.add_argument("--steps", type=int, default=300, help="of a fine-tuning, at most")
    parser.add_argument("--eval-every", type=int, default=20)
    parser.add_argument("--patience", type=int, default=4)
    parser.add_argument("--max-val-rows", type=int, default=800)
    parser.add_argument("--debug", action="store_true")
    if "--debug" in (sys.argv[1:] if argv is None else argv):
        parser.set_defaults(num_patients=120, fractions=[1.0, 0.3], num_seeds=1, steps=4, eval_every=2)
    return parser.parse_args(argv)


def claim(args: argparse.Namespace) -> None:
    """Write the options and what the recipes say, or refuse an --out of others."""
    new = json.loads(json.dumps({k: v for k, v in vars(args).items() if k not in MAY_GROW}, default=str))
    new["recipes"] = {system: build.config_hash(config) for system, config in read_configs(args).items()}
    path = args.out / "options.json"
    old = json.loads(path.read_text()) if path.exists() else new
    if differing := [f"{key}: {old.get(key)!r} there, {new[key]!r} now" for key in new if old.get(key) != new[key]]:
        raise ValueError(f"{args.out} holds a study of other options ({'; '.join(differing)}): name another --out.")
    write_json(path, new)


def main(argv: list[str] | None = None) -> None:
    """Run or resume the study, print its table."""
    logging.set_verbosity(logging.WARNING)
    args = parse(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    # Compiling takes longer than most of these trainings, and many have the shapes of another.
    jax.config.update("jax_compilation_cache_dir", str((args.out / "compiled").resolve()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    try:
        claim(args)
        study = prepare_study(
            args, shlex.join(["python", "-m", "experiments.benchmarks.label_efficiency", *sys.argv[1:]])
        )
        runs = run_study(study)
    except Interrupted as stop:
        print(stop, file=sys.stderr)
        sys.exit(stop.exit_code)
    except ValueError as error:
        sys.exit(f"error: {error}")
    test, size = study.parts["scratch"]["test"].labels, study.configs["scratch"].eval.num_resamples
    rows, metric = summarise(runs, test, args.out / "scores", num_resamples=size), METRICS[test.kind]
    about = {"options": vars(args) | {"out": str(args.out)}, "metric": metric, "devices": str(jax.devices())}
    write_json(args.out / "results.json", about | {"rows": rows, "runs": runs})
    draw(args.out / "label_efficiency.png", rows, f"{args.task}, {args.num_seeds} seeds", metric.replace("_", " "))
    print(table(rows))


if __name__ == "__main__":
    main()
