"""Baselines: what cannot be fitted says so, what can be finds a planted signal, and val and test stay unseen."""

import numpy as np
import pytest
import scipy.sparse as sp

from ehrjax.evaluate import baselines as ours
from ehrjax.evaluate.bags import Features
from ehrjax.metrics import evaluate

SIZES = {"train": 400, "val": 120, "test": 120}


def _features(seed=0, num_codes=12):
    rng = np.random.default_rng(seed)
    return {
        split: Features(
            sp.csr_matrix(rng.poisson(0.7, (n, num_codes)).astype(np.float32)), rng.random((n, 2)).astype(np.float32)
        )
        for split, n in SIZES.items()
    }


def _signal(features, column=3):
    return {split: np.log1p(part.counts[:, [column]].toarray()) + part.dense[:, :1] for split, part in features.items()}


def _labels(kind, features, num_outputs=3, seed=1):
    rng = np.random.default_rng(seed)
    labels = {}
    for split, part in features.items():
        signals = np.hstack([_signal({split: part}, column)[split] for column in range(num_outputs)])
        noisy = signals + 0.3 * rng.normal(size=signals.shape)
        labels[split] = {
            "binary": (noisy[:, :1] > 1.0).astype(np.float32),
            "multilabel": (noisy > 1.0).astype(np.float32),
            "multiclass": noisy.argmax(axis=1)[:, None],
            "regression": noisy[:, :1].astype(np.float32),
        }[kind]
    return labels


@pytest.fixture(scope="module")
def features():
    return _features()


def test_one_class_in_train_leaves_prevalence_alone(features):
    labels = {split: np.zeros((n, 1)) for split, n in SIZES.items()}
    fitted = ours.fit_baselines("binary", features, labels)
    assert fitted["prevalence"].scores["test"].tolist() == [[0.0]] * SIZES["test"]
    for name in ("visit_count", "logistic", "boosting"):
        assert fitted[name].scores is None and fitted[name].reason == "train holds one class only"


def test_no_known_label_in_train(features):
    labels = {split: np.zeros((n, 1)) for split, n in SIZES.items()}
    masks = {split: np.full((n, 1), split != "train") for split, n in SIZES.items()}
    fitted = ours.fit_baselines("binary", features, labels, masks)
    assert all(b.scores is None and b.reason == "no row of train has a known label" for b in fitted.values())


def test_no_known_label_in_val_still_fits(features):
    labels = _labels("binary", features)
    masks = {split: np.full((n, 1), split != "val") for split, n in SIZES.items()}
    fitted = ours.fit_baselines("binary", features, labels, masks)
    assert all(np.isfinite(b.scores["test"]).all() for b in fitted.values())


def test_label_with_one_class_among_many_gets_its_prevalence(features):
    labels = {split: values.copy() for split, values in _labels("multilabel", features).items()}
    labels["train"][:, 1] = 0
    fitted = ours.fit_baselines("multilabel", features, labels)
    for name in ("logistic", "boosting"):
        assert (fitted[name].scores["test"][:, 1] == 0).all() and fitted[name].scores["test"][:, 0].std() > 0


def test_class_that_train_lacks_has_probability_zero(features):
    labels = {split: values % 2 for split, values in _labels("multiclass", features).items()}
    labels["test"] = labels["test"] + 1
    fitted = ours.fit_baselines("multiclass", features, labels, num_classes=4)
    for baseline in fitted.values():
        assert baseline.scores["test"].shape == (SIZES["test"], 4)
        assert (baseline.scores["test"][:, 2:] == 0).all()
        np.testing.assert_allclose(baseline.scores["test"].sum(axis=1), 1)


def test_unknown_baseline_is_refused(features):
    with pytest.raises(ValueError, match="'forest' is unknown: use prevalence, visit_count, logistic, boosting"):
        ours.fit_baselines("binary", features, _labels("binary", features), names=("forest",))


def test_boosting_of_many_outputs_is_skipped_with_the_limit(features):
    many = {split: np.tile(values, (1, 7)) for split, values in _labels("multilabel", features).items()}
    skipped = ours.fit_baselines("multilabel", features, many, names=("boosting",))["boosting"]
    assert skipped.scores is None and "21 labels, limit 20" in skipped.reason
    labels = _labels("multiclass", features)
    skipped = ours.fit_baselines("multiclass", features, labels, names=("boosting",), num_classes=21)["boosting"]
    assert "21 classes, limit 20" in skipped.reason


@pytest.mark.parametrize(
    ("kind", "metric", "chance", "at_least"),
    [
        ("binary", "auroc", 0.5, 0.9),
        ("multiclass", "macro_auroc", 0.5, 0.8),
        ("multilabel", "macro_auroc", 0.5, 0.9),
        ("regression", "r2", 0.0, 0.6),
    ],
)
def test_planted_signal_is_found(kind, metric, chance, at_least, features):
    labels = _labels(kind, features)
    fitted = ours.fit_baselines(kind, features, labels, seed=0)
    values = {
        name: evaluate(kind, labels["test"], b.scores["test"], None, np.arange(SIZES["test"]), num_resamples=0)
        for name, b in fitted.items()
    }
    assert values["prevalence"][metric]["value"] == pytest.approx(chance, abs=0.05)
    assert values["logistic"][metric]["value"] > at_least
    assert values["boosting"][metric]["value"] > at_least - 0.05
    assert fitted["logistic"].settings and fitted["boosting"].settings["rounds"][0] >= 1


def test_test_labels_are_never_looked_at_and_masked_labels_never_used(features):
    labels = _labels("binary", features)
    masks = {split: np.random.default_rng(0).random((n, 1)) < 0.8 for split, n in SIZES.items()}
    first = ours.fit_baselines("binary", features, labels, masks)
    changed = {split: np.where(masks[split], values, 1 - values) for split, values in labels.items()}
    changed["test"] = np.full_like(changed["test"], np.nan)
    second = ours.fit_baselines("binary", features, changed, masks)
    for name, baseline in first.items():
        np.testing.assert_array_equal(baseline.scores["test"], second[name].scores["test"])


def test_boosting_stops_early_at_the_round_that_val_likes_best(features):
    rng = np.random.default_rng(0)
    noise = {split: (rng.random((n, 1)) < 0.5).astype(float) for split, n in SIZES.items()}
    rounds = ours.fit_baselines("binary", features, noise, names=("boosting",))["boosting"].settings["rounds"][0]
    assert rounds < 30  # pure noise: more rounds only fit train


def test_visit_count_ranks_by_the_number_of_visits_and_by_nothing_else(features):
    labels = {split: (part.dense[:, 1:] > 0.6).astype(float) for split, part in features.items()}
    fitted = ours.fit_baselines("binary", features, labels, names=("visit_count",))["visit_count"]
    num_visits = features["test"].dense[:, 1]  # the place of the number of visits among the dense features
    scores = fitted.scores["test"][:, 0]
    assert (np.diff(scores[np.argsort(num_visits)]) >= 0).all() and np.ptp(scores) > 0.3


def test_a_signal_in_recent_counts_alone_is_found(features):
    rng = np.random.default_rng(3)
    windows = {
        split: sp.csr_matrix(rng.poisson(0.5, part.counts.shape).astype(np.float32)) for split, part in features.items()
    }
    with_windows = {split: part._replace(recent=(windows[split],)) for split, part in features.items()}
    labels = {split: (windows[split][:, [4]].toarray() > 0).astype(float) for split in features}
    subjects = np.arange(SIZES["test"])
    for name in ("logistic", "boosting"):
        values = []
        for shown in (features, with_windows):
            scores = ours.fit_baselines("binary", shown, labels, names=(name,))[name].scores["test"]
            values.append(evaluate("binary", labels["test"], scores, None, subjects, num_resamples=0)["auroc"]["value"])
        assert values[0] < 0.65 and values[1] > 0.95
