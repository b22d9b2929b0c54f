"""What a model has to beat: prevalence, the number of visits, logistic regression and boosting on bags of codes.

Everything is fitted on train alone and tuned on val alone, on the features of `bags`. Labels are [n, K] (multi-class
[n, 1] class numbers; survival [n, 2], days and event, see `hazards` for how they are fitted).
"""

import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp
from jaxtyping import Bool, Float, Shaped
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, PoissonRegressor, Ridge
from threadpoolctl import threadpool_limits

from ehrjax.evaluate.bags import DENSE_NAMES, Features
from ehrjax.evaluate.hazards import incidence_at, marginal_incidence, nelson_aalen
from ehrjax.metrics.classification import log_loss
from ehrjax.metrics.multioutput import multiclass_log_loss
from ehrjax.metrics.regression import rmse
from ehrjax.types import Array

SPLITS = ("train", "val", "test")
# From strong to weak regularisation: each fit starts from the one before, until val gets worse twice in a row.
LOGISTIC_C = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0)
RIDGE_ALPHA = (100_000.0, 30_000.0, 10_000.0, 3_000.0, 1_000.0, 300.0, 100.0, 30.0, 10.0, 1.0)
# The penalty is chosen on the most frequent outputs only: with 100 labels the full grid would take minutes.
MAX_TUNED_OUTPUTS = 3
MAX_BOOSTED_LABELS, MAX_BOOSTED_CLASSES = 20, 20  # every label is a model, every class a tree a round
MAX_BOOSTED_CODES, MIN_BOOSTED_CODES = 500, 100  # the more trees a round, the fewer codes each may choose from
BOOSTING_ROUNDS, MAX_BOOSTING_ROUNDS = 50, 500  # between two looks at val, and in all
PATIENCE_ROUNDS = 20
# Small trees in small steps: larger ones over-fitted outcomes with few positives.
BOOSTING_OPTIONS = {"learning_rate": 0.05, "max_leaf_nodes": 8, "max_bins": 63}


class Baseline(NamedTuple):
    """Scores in the model's form by split ("val", "test"), or why there are none.

    Probabilities, or values; survival: cumulative incidence by cause at the horizons [n, R, H].
    """

    scores: dict[str, Float[Array, "n K"]] | None
    settings: dict[str, Any] = {}  # noqa: RUF012 - what was chosen on val
    reason: str = ""  # why it was skipped


def fit_baselines(
    kind: str,
    features: Mapping[str, Features],
    labels: Mapping[str, Shaped[Array, "n L"]],
    masks: Mapping[str, Bool[Array, "n L"]] | None = None,
    *,
    num_classes: int | None = None,
    horizons: Sequence[float] = (),
    names: Sequence[str] = ("prevalence", "visit_count", "logistic", "boosting"),
    seed: int = 0,
) -> dict[str, Baseline]:
    """Fit each baseline on "train", tune it on "val", score "val" and "test"; all three mappings have these keys.

    Prevalence is the training mean (class frequencies, mean value, Kaplan-Meier or Aalen-Johansen incidence);
    `visit_count` and `logistic` are ridge regression for regression and proportional hazards for survival, for which
    `num_classes` counts the causes, and follow-up ends at the last of the `horizons` (days). What cannot be fitted (one
    class in train), or boosting with many outputs, has `scores=None` and a reason.
    """
    fits = {"prevalence": _prevalence, "visit_count": _visit_count, "logistic": _logistic, "boosting": _boosting}
    unknown = [name for name in names if name not in fits]
    if unknown:
        raise ValueError(f"baseline {unknown[0]!r} is unknown: use {', '.join(fits)}.")
    known = {split: _known(labels[split], None if masks is None else masks[split]) for split in SPLITS}
    if kind == "survival":
        if not len(horizons):
            raise ValueError("horizons=() is empty: name the days at which the risk is wanted, e.g. (365.0,).")
        return _fit_survival({name: fits[name] for name in names}, features, known, num_classes, horizons, seed)
    if kind == "multiclass" and num_classes is None:
        num_classes = int(max(np.nanmax(known[split], initial=0) for split in SPLITS)) + 1
    outputs = _outputs(kind, known, num_classes)
    if not any(np.isfinite(output.labels["train"]).any() for output in outputs):
        return {name: Baseline(None, reason="no row of train has a known label") for name in names}
    with _few_threads():
        return {name: fits[name](outputs, features, seed) for name in names}


def _fit_survival(
    fits: Mapping[str, Callable],
    features: Mapping[str, Features],
    known: Mapping[str, np.ndarray],
    num_causes: int | None,
    horizons: Sequence[float],
    seed: int,
) -> dict[str, Baseline]:
    """Hazards relative to the Nelson-Aalen estimate, by cause, and the incidence that follows from them."""
    known = {split: _until(known[split], max(horizons)) for split in SPLITS}
    days, events = known["train"][np.isfinite(known["train"][:, 0])].T
    if not len(days):
        return {name: Baseline(None, reason="no row of train has a known label") for name in fits}
    if num_causes is None:
        num_causes = max(int(max(np.nanmax(known[split][:, 1], initial=0) for split in SPLITS)), 1)
    hazards = [nelson_aalen(days, events == cause + 1) for cause in range(num_causes)]
    outputs = [_hazard_output(known, cause + 1, hazard.at) for cause, hazard in enumerate(hazards)]
    marginal = marginal_incidence(days, events, num_causes, horizons)

    def incidence(name: str) -> Baseline:
        if name == "prevalence":
            return Baseline({split: np.tile(marginal, (len(known[split]), 1, 1)) for split in ("val", "test")})
        fitted = fits[name](outputs, features, seed)
        if fitted.scores is None:
            return fitted
        risks = {split: incidence_at(hazards, relative, horizons) for split, relative in fitted.scores.items()}
        return fitted._replace(scores=risks)

    with _few_threads():
        return {name: incidence(name) for name in fits}


def _until(labels: np.ndarray, horizon: float) -> np.ndarray:
    """Days and event with follow-up ended at the horizon; both NaN where either is unknown."""
    labels = np.where(np.isfinite(labels).all(axis=1, keepdims=True), labels, np.nan)
    is_later = labels[:, 0] > horizon
    return np.where(is_later[:, None], [horizon, 0.0], labels)


def _hazard_output(known: Mapping[str, np.ndarray], cause: int, hazard_at: Callable) -> "Output":
    """Events of a cause over expected events, weighted by the latter; a row without exposure has weight 0."""
    labels, exposures = {}, {}
    for split, rows in known.items():
        exposures[split] = np.where(np.isfinite(rows[:, 0]), hazard_at(np.nan_to_num(rows[:, 0])), 0.0)
        is_event = np.where(np.isfinite(rows[:, 1]), rows[:, 1] == cause, np.nan)
        labels[split] = np.divide(is_event, exposures[split], out=0.0 * is_event, where=exposures[split] > 0)
    return Output("hazard", labels, None, exposures)


class Output(NamedTuple):
    """One thing to predict: a label of a multi-label task, all classes of a multi-class task, a quantity, a hazard."""

    kind: str  # binary, multiclass, regression, hazard
    labels: dict[str, Float[Array, "n"]]  # by split; NaN where unknown
    num_classes: int | None
    weights: dict[str, Float[Array, "n"]] | None = None  # exposures of hazards

    def rows(self, split: str) -> np.ndarray:
        """Rows with a known label."""
        return np.flatnonzero(np.isfinite(self.labels[split]))

    def is_constant(self) -> bool:
        """Whether train holds a single class (no event), so that nothing can be fitted."""
        if self.kind == "hazard":
            return not (self.labels["train"] > 0).any()
        return self.kind != "regression" and len(np.unique(self.labels["train"][self.rows("train")])) < 2

    def prevalence(self) -> np.ndarray:
        """What to predict knowing nothing but train's labels: [1], or [K] for classes; 0.5 without a known label."""
        train = self.labels["train"][self.rows("train")]
        if self.kind == "hazard":
            return np.ones(1)
        if self.kind == "multiclass":
            return np.bincount(train.astype(np.int64), minlength=self.num_classes) / len(train)
        return np.array([train.mean() if len(train) else 0.5])

    def scores(self, estimated: np.ndarray, classes: np.ndarray | None) -> np.ndarray:
        """An estimator's output as [n, 1] or [n, K]; a class that train lacks has probability 0."""
        if self.kind in ("regression", "hazard"):
            return estimated.reshape(-1, 1)
        if self.kind == "binary":
            return estimated[:, 1:]
        full = np.zeros((len(estimated), self.num_classes))
        full[:, classes.astype(np.int64)] = estimated
        return full

    def val_loss(self, scores: np.ndarray) -> float:
        """Log loss, root mean squared error, or Poisson loss, on val; 0 where val has no known label."""
        rows = self.rows("val")
        if self.kind == "hazard":
            weights, relative = self.weights["val"][rows], scores[rows, 0]
            return (
                float(np.mean(weights * (relative - self.labels["val"][rows] * np.log(relative)))) if len(rows) else 0.0
            )
        loss = {"binary": log_loss, "multiclass": multiclass_log_loss, "regression": rmse}[self.kind]
        return loss(self.labels["val"][rows], scores[rows]) if len(rows) else 0.0


def _known(labels: Array, mask: Array | None) -> np.ndarray:
    labels = np.asarray(labels, np.float64)
    labels = labels[:, None] if labels.ndim == 1 else labels
    return labels if mask is None else np.where(np.asarray(mask, bool).reshape(labels.shape), labels, np.nan)


def _outputs(kind: str, known: Mapping[str, np.ndarray], num_classes: int | None) -> list[Output]:
    kind = "binary" if kind == "multilabel" else kind
    columns = range(known["train"].shape[1])
    return [Output(kind, {split: known[split][:, k] for split in SPLITS}, num_classes) for k in columns]


def _prevalence(outputs: Sequence[Output], features: Mapping[str, Features], seed: int) -> Baseline:
    row = np.concatenate([output.prevalence() for output in outputs])
    return Baseline({split: np.tile(row, (len(outputs[0].labels[split]), 1)) for split in ("val", "test")})


def _visit_count(outputs: Sequence[Output], features: Mapping[str, Features], seed: int) -> Baseline:
    """Regression on the log of the number of visits so far: what a model gains by counting alone."""
    column = DENSE_NAMES.index("num_visits")
    counts = {split: np.log1p(features[split].dense[:, [column]]) for split in SPLITS}
    centre, width = counts["train"].mean(), counts["train"].std() or 1.0
    return _linear(outputs, {split: sp.csr_matrix((counts[split] - centre) / width) for split in SPLITS})


def _logistic(outputs: Sequence[Output], features: Mapping[str, Features], seed: int) -> Baseline:
    return _linear(outputs, _linear_inputs(features))


def _linear(outputs: Sequence[Output], inputs: Mapping[str, sp.csr_matrix]) -> Baseline:
    """Logistic, ridge or Poisson regression, the penalty chosen on val."""
    fitted = [output for output in outputs if not output.is_constant()]
    if not fitted:
        return Baseline(None, reason=_why_constant(outputs))
    frequent = sorted(fitted, key=lambda output: -np.count_nonzero(output.labels["train"] > 0))
    best = _best_penalty(frequent[:MAX_TUNED_OUTPUTS], inputs)

    def score(output: Output) -> dict[str, np.ndarray]:
        fit = next(_path(output, inputs, (best,)))
        return {split: _linear_scores(output, fit, inputs[split]) for split in ("val", "test")}

    return Baseline(_side_by_side(outputs, score), {"alpha" if outputs[0].kind == "regression" else "C": best})


def _best_penalty(outputs: Sequence[Output], inputs: Mapping[str, sp.csr_matrix]) -> float:
    """The penalty of least loss on val, summed over the outputs."""
    grid = RIDGE_ALPHA if outputs[0].kind == "regression" else LOGISTIC_C
    paths = [_path(output, inputs, grid) for output in outputs]
    losses: list[float] = []
    for fits in zip(*paths, strict=True):
        pairs = zip(outputs, fits, strict=True)
        losses.append(sum(output.val_loss(_linear_scores(output, fit, inputs["val"])) for output, fit in pairs))
        if len(losses) - 1 - int(np.argmin(losses)) >= 2:  # weak penalties take the longest to fit
            break
    return grid[int(np.argmin(losses))]


def _path(output: Output, inputs: Mapping[str, sp.csr_matrix], grid: Sequence[float]) -> Iterator[Any]:
    """The same estimator, fitted for one penalty after the other."""
    rows = output.rows("train")
    train, labels = inputs["train"][rows], output.labels["train"][rows]
    weights = None if output.weights is None else output.weights["train"][rows]
    estimator = _linear_estimator(output.kind)
    for strength in grid:
        estimator.set_params(**_penalty(output.kind, strength, weights))
        with warnings.catch_warnings():
            # 300 steps that do not reach the tolerance are still a baseline: val decides how good.
            warnings.simplefilter("ignore", ConvergenceWarning)
            estimator.fit(train, labels, sample_weight=weights)
        yield estimator


def _linear_estimator(kind: str) -> Any:
    if kind == "regression":
        return Ridge(solver="sparse_cg")
    return (PoissonRegressor if kind == "hazard" else LogisticRegression)(max_iter=300, warm_start=True)


def _penalty(kind: str, strength: float, weights: np.ndarray | None) -> dict[str, float]:
    if kind == "hazard":
        return {"alpha": 1 / (strength * weights.sum())}  # of a loss that is divided by the sum of weights
    return {"alpha" if kind == "regression" else "C": strength}


def _linear_scores(output: Output, estimator: Any, inputs: sp.csr_matrix) -> np.ndarray:
    if output.kind in ("regression", "hazard"):
        return output.scores(estimator.predict(inputs), None)
    return output.scores(estimator.predict_proba(inputs), estimator.classes_)


def _why_constant(outputs: Sequence[Output]) -> str:
    return "train holds no event" if outputs[0].kind == "hazard" else "train holds one class only"


def _linear_inputs(features: Mapping[str, Features]) -> dict[str, sp.csr_matrix]:
    """Whether each code occurs, its log counts (ever and of late), the dense features standardised, with squares."""
    logs = {split: [part.log1p() for part in (features[split].counts, *features[split].recent)] for split in SPLITS}
    scales = [_scale(part) for part in logs["train"]]
    train = features["train"].dense
    centre, width = train.mean(axis=0), np.where(train.std(axis=0) > 0, train.std(axis=0), 1.0)

    def inputs(split: str) -> sp.csr_matrix:
        dense = np.clip((features[split].dense - centre) / width, -5, 5)
        scaled = [part @ scale for part, scale in zip(logs[split], scales, strict=True)]
        return sp.hstack([logs[split][0].sign(), *scaled, sp.csr_matrix(np.hstack([dense, dense**2]))]).tocsr()

    return {split: inputs(split) for split in SPLITS}


def _scale(logs: sp.csr_matrix) -> sp.dia_matrix:
    mean_square, mean = logs.power(2).mean(axis=0), logs.mean(axis=0)
    spread = np.sqrt(np.maximum(np.asarray(mean_square - np.square(mean)).ravel(), 0.0))
    # Scaled down only: dividing rare codes by their small spread made them over-fit.
    return sp.diags(1.0 / np.maximum(spread, 1.0))


def _boosting(outputs: Sequence[Output], features: Mapping[str, Features], seed: int) -> Baseline:
    """Histogram gradient boosting on the counts of train's most widespread codes, stopped early on val."""
    if len(outputs) > MAX_BOOSTED_LABELS:
        return Baseline(None, reason=f"one boosted model a label: {len(outputs)} labels, limit {MAX_BOOSTED_LABELS}")
    if (outputs[0].num_classes or 0) > MAX_BOOSTED_CLASSES:
        return Baseline(None, reason=f"{outputs[0].num_classes} classes, limit {MAX_BOOSTED_CLASSES}")
    if all(output.is_constant() for output in outputs):
        return Baseline(None, reason=_why_constant(outputs))
    trees_a_round = outputs[0].num_classes or len(outputs)
    num_codes = max(MAX_BOOSTED_CODES // trees_a_round, MIN_BOOSTED_CODES)
    inputs = _boosted_inputs(features, num_codes)
    rounds = []

    def score(output: Output) -> dict[str, np.ndarray]:
        estimator, best = _boost(output, inputs, seed)
        rounds.append(best)
        return {split: _staged_scores(output, estimator, inputs[split])[best - 1] for split in ("val", "test")}

    return Baseline(_side_by_side(outputs, score), {"rounds": rounds})


def _boosted_inputs(features: Mapping[str, Features], num_codes: int) -> dict[str, np.ndarray]:
    """Counts of train's most widespread codes, of late for a quarter as many a window, and the dense features."""
    limits = (num_codes, *(num_codes // 4 for _ in features["train"].recent))
    train = (features["train"].counts, *features["train"].recent)
    chosen = [_widespread(part, limit) for part, limit in zip(train, limits, strict=True)]

    def inputs(part: Features) -> np.ndarray:
        counts = [c[:, columns].toarray() for c, columns in zip((part.counts, *part.recent), chosen, strict=True)]
        return np.hstack([*counts, part.dense])

    return {split: inputs(features[split]) for split in SPLITS}


def _widespread(counts: sp.csr_matrix, limit: int) -> np.ndarray:
    return np.argsort(-counts.getnnz(axis=0), kind="stable")[:limit]


def _boost(output: Output, inputs: Mapping[str, np.ndarray], seed: int) -> tuple[Any, int]:
    """The estimator and its best number of rounds on val (all of them where val has no known label)."""
    rows = output.rows("train")
    weights = None if output.weights is None else output.weights["train"][rows]
    estimator = _boosting_estimator(output.kind, seed)
    for num_rounds in range(BOOSTING_ROUNDS, MAX_BOOSTING_ROUNDS + 1, BOOSTING_ROUNDS):
        estimator.set_params(max_iter=num_rounds)
        estimator.fit(inputs["train"][rows], output.labels["train"][rows], sample_weight=weights)
        losses = [output.val_loss(scores) for scores in _staged_scores(output, estimator, inputs["val"])]
        best = int(np.argmin(losses)) + 1
        if num_rounds - best >= PATIENCE_ROUNDS:
            break
    return estimator, best if len(output.rows("val")) else num_rounds


def _boosting_estimator(kind: str, seed: int) -> Any:
    options = {"early_stopping": False, "warm_start": True, "random_state": seed, **BOOSTING_OPTIONS}
    if kind in ("regression", "hazard"):
        return HistGradientBoostingRegressor(loss="poisson" if kind == "hazard" else "squared_error", **options)
    return HistGradientBoostingClassifier(**options)


def _staged_scores(output: Output, estimator: Any, inputs: np.ndarray) -> list[np.ndarray]:
    """Scores after each round."""
    if output.kind in ("regression", "hazard"):
        return [output.scores(values, None) for values in estimator.staged_predict(inputs)]
    return [output.scores(values, estimator.classes_) for values in estimator.staged_predict_proba(inputs)]


@contextmanager
def _few_threads() -> Iterator[None]:
    """Half the cores: threads that spin for a core someone else uses made these fits ten times slower."""
    with threadpool_limits(max(1, (os.cpu_count() or 2) // 2)):
        yield


def _side_by_side(outputs: Sequence[Output], score: Callable[[Output], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Scores of all outputs as columns; an output with one class in train gets its prevalence."""
    columns = []
    for output in outputs:
        if output.is_constant():
            row = output.prevalence()
            columns.append({split: np.tile(row, (len(output.labels[split]), 1)) for split in ("val", "test")})
        else:
            columns.append(score(output))
    return {split: np.hstack([column[split] for column in columns]) for split in ("val", "test")}
