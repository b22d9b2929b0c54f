"""Judging a task's scores: baselines, differences, calibration, use, subgroups; what results.json holds of a task."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from ehrjax.data.labels import Labels
from ehrjax.evaluate import plots
from ehrjax.evaluate.bags import WINDOW_DAYS, bag_of_codes
from ehrjax.evaluate.baselines import Baseline, fit_baselines
from ehrjax.evaluate.comparison import best_baseline, difference_to
from ehrjax.evaluate.predict import write_predictions
from ehrjax.evaluate.seeds import ensemble_scores, seed_figures
from ehrjax.evaluate.stay_bags import stay_features
from ehrjax.evaluate.subgroups import patient_groups, subgroup_table
from ehrjax.evaluate.survival_plots import curves_by_risk, survival_plots
from ehrjax.evaluate.trust_plots import decision, reliability_with_histogram
from ehrjax.metrics.decision import decision_curve
from ehrjax.metrics.recalibration import recalibrate
from ehrjax.metrics.summary import best_event1_threshold, best_threshold, evaluate, metrics_for
from experiments import build, oracle
from experiments.prepare import Data, SplitData, even_share
from experiments.targets import Target

# Of more train rows the baselines get an even share. Boosting on counts with windows was as good on 12,000 rows as on
# 103,000 (AUROC 0.860 both, logistic 0.821 and 0.823; simulated diabetes onset), where it took two minutes.
MAX_BASELINE_ROWS = 30_000
Scores = dict[str, np.ndarray]  # "val" and "test" -> [n S]; of a model's members [M n S]


def evaluate_task(
    name: str,
    parts: dict[str, SplitData],
    target: Target,
    members: Scores,
    data: Data,
    config: ConfigDict,
    workdir: Path,
) -> dict[str, Any]:
    """Test figures of the model, the baselines and the oracle, with intervals; writes predictions and plots.

    Of several members the mean prediction is judged, and beside it how far they lie apart.
    """
    val, test = parts["val"].labels, parts["test"].labels
    kind, folder = test.kind, workdir / "plots"
    scores = {split: ensemble_scores(of_members) for split, of_members in members.items()}
    measured = partial(measure, target, val, test, config)
    threshold = best_threshold(kind, val.values, scores["val"], val.mask)
    write_predictions(
        workdir / "predictions" / f"{name}.parquet",
        kind,
        subject_ids=test.subject_ids,
        times=test.times,
        labels=test.values,
        scores=scores["test"],
        mask=test.mask,
        names=score_names(target, test),
        threshold=threshold,
    )
    fitted = _fit_baselines(parts, target, data, config)
    usable = {baseline: found.scores for baseline, found in fitted.items() if found.scores is not None}
    row = {"kind": kind, **{f"num_{split}": count for split, count in count_rows(parts).items()}}
    row["num_test_patients"] = len(np.unique(test.subject_ids))
    row["prevalence"] = float(test.values[test.mask].mean()) if kind in ("binary", "multilabel") else None
    row |= {"threshold": threshold, "test": measured(scores)}
    row["baselines"] = {
        baseline: measured(found.scores) if baseline in usable else {"skipped": found.reason}
        for baseline, found in fitted.items()
    }
    row["difference"] = _difference(target, val, test, scores, usable, config)
    row["oracle"] = evaluate_oracle(name, test, data, config)
    if len(members["test"]) > 1:
        options = _thresholds(target, val, scores) | {"horizons": target.horizons}
        row["seeds"] = seed_figures(kind, test.values, members["test"], test.mask, test.subject_ids, **options)
    row |= _trust(name, target, val, test, scores, usable, data, config, folder)
    _draw(folder, name, target, test, scores, usable, threshold, row)
    return row


def evaluate_oracle(name: str, test: Labels, data: Data, config: ConfigDict) -> dict[str, Any] | None:
    """The best figures that these test rows allow to who reads what the model reads; None where nobody knows them."""
    if data.simulated is None:
        return None
    forms = (
        oracle.stay_forms(config.model.get("modalities", ("vitals",))) if build.reads_stays(config) else oracle.FORMS
    )
    return oracle.evaluate_oracle(name, data.simulated, test, forms=forms)


def score_names(target: Target, labels: Labels) -> tuple[str, ...]:
    """What the columns of the scores stand for."""
    if target.kind != "survival":
        return labels.names
    return tuple(f"{cause} by {days:g} days" for cause in target.horizons.causes for days in target.horizons.days)


def count_rows(parts: dict[str, SplitData]) -> dict[str, int]:
    """Label rows that a model can use, by split."""
    return {split: int(part.sequences.label_mask.any(axis=1).sum()) for split, part in parts.items()}


def measure(target: Target, val: Labels, test: Labels, config: ConfigDict, scores: Scores) -> dict[str, Any]:
    """Test figures of scores by split with intervals; thresholds are chosen on val."""
    return evaluate(
        target.kind,
        test.values,
        scores["test"],
        test.mask,
        test.subject_ids,
        num_resamples=config.eval.num_resamples,
        seed=config.train.seed,
        horizons=target.horizons,
        **_thresholds(target, val, scores),
    )


def _thresholds(target: Target, val: Labels, scores: Scores) -> dict[str, float]:
    chosen = {"threshold": best_threshold, "event1_threshold": best_event1_threshold}
    return {name: choose(target.kind, val.values, scores["val"], val.mask) for name, choose in chosen.items()}


def _fit_baselines(parts: dict[str, SplitData], target: Target, data: Data, config: ConfigDict) -> dict[str, Baseline]:
    """Baselines on the sequences that the model is shown; survival scores in the model's form [n, R * H]."""
    labels, masks, features = {}, {}, {}
    for split, (_, sequences, level) in parts.items():
        rows = np.arange(len(sequences.labels))
        if split == "train":
            rows = even_share(np.flatnonzero(sequences.label_mask.any(axis=1)), MAX_BASELINE_ROWS)
        labels[split], masks[split] = sequences.labels[rows], sequences.label_mask[rows]
        if build.reads_stays(config):
            features[split] = stay_features(sequences, rows)
        else:
            features[split] = bag_of_codes(sequences, len(data.vocab), level=level, rows=rows, windows=WINDOW_DAYS)
    has_classes = target.kind in ("multiclass", "survival")
    fitted = fit_baselines(
        target.kind,
        features,
        labels,
        masks,
        num_classes=parts["train"].labels.num_outputs if has_classes else None,
        horizons=target.horizons.days if target.horizons else (),
        names=tuple(config.eval.baselines),
    )
    if target.kind != "survival":
        return fitted
    flat = {
        name: found.scores and {k: v.reshape(len(v), -1) for k, v in found.scores.items()}
        for name, found in fitted.items()
    }
    return {name: found._replace(scores=flat[name]) for name, found in fitted.items()}


def _difference(
    target: Target, val: Labels, test: Labels, scores: Scores, usable: dict[str, Scores], config: ConfigDict
) -> dict[str, Any] | None:
    """The model less the baseline that was best on validation, patient by patient; None without one."""
    metrics = metrics_for(target.kind, num_outputs=scores["test"].shape[1], horizons=target.horizons)
    on_val = {name: found["val"] for name, found in usable.items()}
    best = best_baseline(target.kind, val.values, on_val, val.mask, metrics=metrics) if usable else None
    if best is None:
        return None
    found = difference_to(
        target.kind,
        test.values,
        scores["test"],
        best,
        usable[best]["test"],
        test.subject_ids,
        test.mask,
        metrics=metrics,
        num_resamples=config.eval.num_resamples,
        seed=config.train.seed,
    )
    rows = {metric: {key: row[key] for key in ("value", "low", "high")} for metric, row in found.items()}
    return {"baseline": best, **rows}


def _trust(name, target, val, test, scores, usable, data, config, folder) -> dict[str, Any]:
    """Recalibration, decision curve, incidence by risk, subgroups; the plots of the former two."""
    row: dict[str, Any] = {}
    if target.kind in ("binary", "multilabel"):
        sides = ((labels.values, scores[split], labels.mask) for split, labels in (("val", val), ("test", test)))
        found = recalibrate(target.kind, *sides, names=test.names)
        row["recalibration"] = found.figures
    if target.kind == "binary":
        known, truth = test.mask[:, 0], test.values[test.mask[:, 0], 0]
        after = {"model": scores["test"]} | found.scores
        drawn = {system: values[known, 0] for system, values in after.items()}
        reliability_with_histogram(folder / f"{name}_recalibration.png", truth, drawn)
        systems = {"model": scores["test"]} | {system: values["test"] for system, values in usable.items()}
        curve = decision_curve(truth, {system: values[known, 0] for system, values in systems.items()})
        row["decision_curve"] = {
            "thresholds": curve.thresholds.tolist(),
            "net_benefit": {system: values.tolist() for system, values in curve.net_benefit.items()},
        }
        decision(folder / f"{name}_decision.png", curve)
    if target.kind == "survival":
        known = test.mask.all(axis=1)
        row["survival"] = curves_by_risk(test.values[known], scores["test"][known], target.horizons)
    groups = patient_groups(data.stores[-1:], test.subject_ids, test.times)
    row["subgroups"] = subgroup_table(
        target.kind,
        test.values,
        scores["test"],
        test.mask,
        test.subject_ids,
        groups,
        metrics=metrics_for("survival", horizons=target.horizons) if target.horizons else None,
        num_resamples=config.eval.num_resamples,
        seed=config.train.seed,
    )
    return row


def _draw(folder, name, target, test, scores, usable, threshold, row) -> None:
    if target.kind == "survival":
        known = test.mask.all(axis=1)
        survival_plots(folder, name, test.values[known], scores["test"][known], target.horizons, row["survival"])
    else:
        plots.task_plots(
            folder,
            name,
            target.kind,
            test.values,
            scores["test"],
            test.mask,
            {system: values["test"] for system, values in usable.items()},
            names=test.names,
            threshold=threshold,
        )
    plots.forest(folder / f"{name}_forest.png", row, title=name)
