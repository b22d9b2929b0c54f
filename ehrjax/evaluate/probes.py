"""What a linear classifier finds in frozen patient vectors: with all labels of train, and with a few of each class.

Pairs are (train, test). Labels are classes [P] (integers; negative = unknown) or diagnoses [P, K] (bool).
"""

import warnings
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, Shaped
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import adjusted_rand_score, silhouette_score

from ehrjax.evaluate.clusters import MAX_SCORED, check_vectors, sample_rows
from ehrjax.metrics.bootstrap import NUM_RESAMPLES, Interval, bootstrap
from ehrjax.metrics.classification import accuracy, auprc, auroc
from ehrjax.metrics.multioutput import macro_auprc, macro_auroc, multiclass_accuracy, multiclass_macro_auroc
from ehrjax.wording import counted

Vectors = tuple[Float[np.ndarray, "P D"], Float[np.ndarray, "Q D"]]
Labels = tuple[Shaped[np.ndarray, "P ..."], Shaped[np.ndarray, "Q ..."]]

PENALTY_C = 0.1  # inverse ridge penalty on standardised vectors; fixed, so that nothing is tuned on test
SHOTS = (1, 2, 4, 8, 16, 32, 64)
NUM_DRAWS = 10  # of the labelled examples, for each number of shots


def linear_probe(
    vectors: Vectors,
    labels: Labels,
    test_subject_ids: Int[np.ndarray, "Q"],
    *,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> dict[str, Any]:
    """Ridge-penalised logistic regression on frozen vectors, fitted on train, judged on test.

    Rows {"value", "low", "high"} with 95 % intervals over test patients: two classes auroc, auprc, accuracy; more
    classes macro_auroc, accuracy; diagnoses macro_auroc, macro_auprc over the `num_outputs` that some patients of both
    splits have and some have not. Of classes, further: `majority_accuracy`, what train's most frequent class reaches;
    `silhouette` by true class of the test patients' class probabilities as vectors (2,000 of them at most) and `ari` of
    the most probable class, both to be held against the same figures of the true probabilities. Test patients of a
    class that train lacks count as `num_unlearnt` and are not judged. "reason" where nothing can be fitted.
    """
    problems, vectors = _problems(labels), _standardised(vectors)
    if not problems:
        return {"reason": _too_few_classes(labels)}
    scores = [_fit_and_score(problem, vectors) for problem in problems]
    first = problems[0]
    num_judged = len(first.test_rows)
    table: dict[str, Any] = {"num_train": len(first.train_rows), "num_test": num_judged, "num_outputs": len(problems)}
    if np.ndim(labels[0]) == 2:
        metrics = {"macro_auroc": macro_auroc, "macro_auprc": macro_auprc}
        judged = np.stack([problem.test for problem in problems], 1), np.stack([each[:, 1] for each in scores], 1)
    elif first.num_classes == 2:
        metrics = {"auroc": auroc, "auprc": auprc, "accuracy": accuracy}
        judged = first.test, scores[0][:, 1]
    else:
        metrics = {"macro_auroc": multiclass_macro_auroc, "accuracy": multiclass_accuracy}
        judged = first.test, scores[0]
    if np.ndim(labels[0]) == 1:
        table["num_unlearnt"] = int((np.asarray(labels[1]) >= 0).sum()) - num_judged
        table["majority_accuracy"] = float((first.test == np.bincount(first.train).argmax()).mean())
        table |= _separation(scores[0], first.test, seed)
    owners = np.asarray(test_subject_ids)[first.test_rows]
    intervals = bootstrap(metrics, *judged, owners, num_resamples=num_resamples, seed=seed)
    return table | {name: _row(interval) for name, interval in intervals.items()}


def few_shot_curve(vectors: Vectors, labels: Labels, *, num_draws: int = NUM_DRAWS, seed: int = 0) -> dict[str, Any]:
    """The probe's AUROC on test when only a few train patients of each class have a label.

    `mean` and `sd` over the draws (two or more) for each number of `shots` (1, 2, 4, .., 64 a class, as far as the
    smallest class of train goes); the smaller sets of a draw lie within its larger ones. Several classes: one against
    the rest, averaged; diagnoses: each with against without, averaged. `all_labels` is the value with every label of
    train. Vectors are standardised with the mean and spread of all train patients, which takes no labels.
    """
    problems, vectors = _problems(labels), _standardised(vectors)
    if not problems:
        return {"shots": [], "reason": _too_few_classes(labels)}
    smallest = min(np.bincount(problem.train).min() for problem in problems)
    shots = [shot for shot in SHOTS if shot <= smallest]
    values = np.array([_draw_curve(problems, vectors, shots, (seed, draw)) for draw in range(num_draws)])
    return {
        "shots": shots,
        "mean": values.mean(axis=0).tolist(),
        "sd": values.std(axis=0, ddof=1).tolist(),
        "all_labels": float(np.mean([_auroc(problem, vectors) for problem in problems])),
        "num_draws": num_draws,
    }


def _separation(probabilities: Float[np.ndarray, "m K"], classes: Int[np.ndarray, "m"], seed: int) -> dict[str, Any]:
    rows = sample_rows(len(classes), MAX_SCORED, seed)
    is_defined = 2 <= len(np.unique(classes[rows])) < len(rows)
    return {
        "silhouette": float(silhouette_score(probabilities[rows], classes[rows])) if is_defined else None,
        "ari": float(adjusted_rand_score(classes, probabilities.argmax(axis=1))),
    }


class _Problem(NamedTuple):
    """One classification: rows of known class, and their classes as 0 .. num_classes - 1."""

    train_rows: Int[np.ndarray, "n"]
    train: Int[np.ndarray, "n"]
    test_rows: Int[np.ndarray, "m"]
    test: Int[np.ndarray, "m"]
    num_classes: int


def _problems(labels: Labels) -> list[_Problem]:
    """One for classes, one a column for diagnoses; those without two classes in train and in test are left out."""
    train, test = (np.asarray(split, np.int64) for split in labels)
    columns = [(train, test)] if train.ndim == 1 else zip(train.T, test.T, strict=True)
    problems = []
    for pair in columns:
        classes = np.unique(pair[0][pair[0] >= 0])
        rows = [np.flatnonzero(np.isin(column, classes)) for column in pair]
        coded = [np.searchsorted(classes, column[known]) for column, known in zip(pair, rows, strict=True)]
        if len(classes) > 1 and len(np.unique(coded[1])) > 1:
            problems.append(_Problem(rows[0], coded[0], rows[1], coded[1], len(classes)))
    return problems


def _standardised(vectors: Vectors) -> Vectors:
    """Both splits by train's mean and spread."""
    train, test = (check_vectors(split).astype(np.float64) for split in vectors)
    if not len(train):
        return train, test
    spread = train.std(axis=0)
    spread = np.where(spread > 0, spread, 1.0)
    return (train - train.mean(axis=0)) / spread, (test - train.mean(axis=0)) / spread


def _draw_curve(
    problems: list[_Problem], vectors: Vectors, shots: list[int], seed: tuple[int, int]
) -> Float[np.ndarray, "shots"]:
    rng = np.random.default_rng(seed)
    totals = np.zeros(len(shots))
    for problem in problems:
        shuffled = rng.permutation(len(problem.train))
        members = [shuffled[problem.train[shuffled] == label] for label in range(problem.num_classes)]
        for column, shot in enumerate(shots):
            few = np.concatenate([rows[:shot] for rows in members])
            totals[column] += _auroc(
                problem._replace(train_rows=problem.train_rows[few], train=problem.train[few]), vectors
            )
    return totals / len(problems)


def _fit_and_score(problem: _Problem, vectors: Vectors) -> Float[np.ndarray, "m K"]:
    """Class probabilities of the test rows."""
    model = LogisticRegression(C=PENALTY_C, max_iter=300)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # nearly converged is good enough to rank
        model.fit(vectors[0][problem.train_rows], problem.train)
    return model.predict_proba(vectors[1][problem.test_rows])


def _auroc(problem: _Problem, vectors: Vectors) -> float:
    scores = _fit_and_score(problem, vectors)
    if problem.num_classes == 2:
        return auroc(problem.test, scores[:, 1])
    return multiclass_macro_auroc(problem.test, scores)


def _too_few_classes(labels: Labels) -> str:
    train, test = (counted(len(part), "patient") for part in labels)
    return f"two classes are needed in train ({train}) and in test ({test})"


def _row(interval: Interval) -> dict[str, float | None]:
    values = {key: getattr(interval, key) for key in ("value", "low", "high")}
    return {key: float(value) if np.isfinite(value) else None for key, value in values.items()}
