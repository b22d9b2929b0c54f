"""What no leak can give: chance on shuffled labels; and what needs no model: the number of visits."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import scipy.sparse as sp
from scipy.stats import t as student_t
from sklearn.linear_model import LogisticRegression

from ehrjax.data.stay_batching import StayWindows
from ehrjax.evaluate.audit.index_time import TaskModel, blank_labels
from ehrjax.evaluate.audit.workdir import Finding, Rows, Run, TaskRecord
from ehrjax.evaluate.bags import DENSE_NAMES, bag_of_codes
from ehrjax.evaluate.stay_bags import stay_features
from ehrjax.metrics.classification import auroc
from ehrjax.metrics.survival import concordance
from ehrjax.types import FIRST_CODE

NUM_SHUFFLES = 20
CONFIDENCE = 0.999  # a run has several tasks, and none should fail by bad luck
MIN_CASES = 10  # of either class, in train (one row a patient) and in test
MAX_TRAIN_ROWS, MAX_TEST_ROWS, MAX_OUTPUTS = 3_000, 5_000, 3
CLOSE = 0.02  # of the main metric


def check_shuffled(run: Run, record: TaskRecord, model: TaskModel, *, seed: int = 0) -> Finding:
    """Logistic regression on counts, fitted to labels dealt to other train patients, ranks test rows by chance.

    One shuffle alone would not do: whatever direction it finds by accident may rank test rows well or badly (age does),
    so that its own interval often misses 0.5. Over shuffles the mean is 0.5, exactly where there are as many cases as
    others (swapping them turns the ranking round), so train is balanced. The 99.9 % interval of the mean must hold 0.5.
    """
    if record.kind not in ("binary", "multilabel", "survival"):
        return Finding(None, f"a {record.kind} task has no AUROC")
    rng = np.random.default_rng(seed)
    texts, has_failed = [], False
    for output, train, test in _outputs(run, record, rng):
        is_case, tested = train.values[:, -1] == 1, test.values[:, -1] == 1
        counts = [int(cases.sum()) for cases in (is_case, ~is_case, tested, ~tested)]
        if len(texts) == MAX_OUTPUTS or min(counts) < MIN_CASES:
            continue
        balanced = train.take(np.concatenate([np.flatnonzero(g)[: min(counts[:2])] for g in (is_case, ~is_case)]))
        inputs = _inputs(model, run.stores[0], balanced, run), _inputs(model, run.stores[-1], test, run)
        dealt = np.arange(len(balanced.times)) < min(counts[:2])
        values = [_chance(*inputs, rng.permutation(dealt), test, record.kind) for _ in range(NUM_SHUFFLES)]
        centre, half = _interval(values)
        has_failed |= abs(centre - 0.5) > half
        texts.append(f"{output} {centre:.3f} [{centre - half:.3f}, {centre + half:.3f}]")
    if not texts:
        return Finding(None, f"too small to tell: fewer than {MIN_CASES} of either class in train or test")
    name = "C-index" if record.kind == "survival" else "AUROC"
    detail = f"mean {name} of {NUM_SHUFFLES} fits to shuffled labels: {', '.join(texts)}"
    return Finding(not has_failed, detail)


def check_visit_count(name: str, result: Mapping[str, Any] | None) -> Finding:
    """Where the number of visits alone comes close to the model, the model may have learned nothing but that."""
    counted = ((result or {}).get("baselines") or {}).get("visit_count") or {}
    metric = next(iter((result or {}).get("test") or {}), None)
    if metric not in counted or counted[metric]["value"] is None or result["test"][metric]["value"] is None:
        return Finding(None, "no visit-count baseline in the results (eval.baselines)")
    model, visits = result["test"][metric]["value"], counted[metric]["value"]
    figures = f"{metric} {model:.3f} against {visits:.3f} of the visit count"
    if abs(model - visits) < CLOSE:
        return Finding(None, f"warning: {figures}: the number of visits alone comes close to the model of {name}")
    return Finding(True, figures)


def _outputs(run: Run, record: TaskRecord, rng):
    """Per output: train rows, one a patient, and test rows, with values (event, or days and event)."""
    for output, rows in _joined(record.labels_of(run.splits["train"]), record.kind).items():
        order = rng.permutation(len(rows.times))
        _, first = np.unique(rows.subject_ids[order], return_index=True)
        train = rows.take(order[rng.permutation(first)[:MAX_TRAIN_ROWS]])
        columns = slice(0, 2) if record.kind == "survival" else [_column(record, output)]
        tested = record.tested._replace(values=record.tested.values[:, columns])
        known = rng.permutation(np.flatnonzero(np.isfinite(tested.values).all(axis=1)))
        yield output, train, tested.take(np.sort(known[:MAX_TEST_ROWS]))


def _joined(labels: dict[str, Rows], kind: str) -> dict[str, Rows]:
    if kind != "survival":
        return labels
    if not {"days", "event"} <= set(labels):
        return {}
    values = np.concatenate([labels["days"].values, labels["event"].values], axis=1)
    return {"first cause": labels["days"]._replace(values=values)}


def _column(record: TaskRecord, output: str) -> int:
    return record.outputs.index(output) if output in record.outputs else 0


def _interval(values: list[float]) -> tuple[float, float]:
    """Mean of independent values, and half of the width of its interval (Student's t)."""
    quantile = student_t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)
    return float(np.mean(values)), float(quantile * np.std(values, ddof=1) / np.sqrt(len(values)))


def _inputs(model: TaskModel, store, rows: Rows, run: Run):
    inputs = model.make_sequences(store, blank_labels(rows))
    if isinstance(inputs, StayWindows):
        bag = stay_features(inputs)
        return sp.hstack([bag.counts.log1p(), bag.dense[:, len(DENSE_NAMES) :]]).tocsr()  # which are scaled
    return bag_of_codes(inputs, len(run.vocab)).counts[:, FIRST_CODE:].tocsr().log1p()


def _chance(train, test, shuffled: np.ndarray, rows: Rows, kind: str) -> float:
    fitted = LogisticRegression(C=0.01, max_iter=200, solver="liblinear").fit(train, shuffled)
    scores = fitted.decision_function(test)
    return float(concordance(rows.values, scores) if kind == "survival" else auroc(rows.values[:, 0], scores))
