"""Linear probes and few-shot curves: nothing to learn, one class, unknown labels, and vectors that tell or do not."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score, silhouette_score

from ehrjax.evaluate.probes import few_shot_curve, linear_probe


def _split(num_classes=2, num_train=200, num_test=120, shift=2.0, seed=0):
    rng = np.random.default_rng(seed)
    labels = tuple(rng.integers(0, num_classes, n) for n in (num_train, num_test))
    noise = tuple(rng.normal(size=(len(each), 6)) for each in labels)
    vectors = tuple(x + shift * np.eye(6)[each] for x, each in zip(noise, labels, strict=True))
    return vectors, labels


def _probe(vectors, labels, **options):
    return linear_probe(vectors, labels, np.arange(len(vectors[1])), num_resamples=50, **options)


@pytest.mark.parametrize("as_diagnoses", [False, True])
@pytest.mark.parametrize("train", [[], [1], [1, 1, -1], [0, 1]])
def test_where_nothing_can_be_learnt_or_judged_there_is_a_reason(train, as_diagnoses):
    labels = np.array(train, int), np.array([1, 1, 1])
    if as_diagnoses:
        labels = tuple((each > 0)[:, None] for each in labels)
        labels[0][:] = True
    vectors = np.zeros((len(train), 2)), np.zeros((3, 2))
    assert "two classes" in _probe(vectors, labels)["reason"]
    assert few_shot_curve(vectors, labels)["shots"] == []


def test_two_classes():
    vectors, labels = _split()
    table = _probe(vectors, labels)
    assert 0.8 < table["auroc"]["low"] < table["auroc"]["value"] < table["auroc"]["high"] <= 1
    assert table["accuracy"]["value"] > 0.75 > table["majority_accuracy"]
    assert (table["num_train"], table["num_test"], table["num_unlearnt"]) == (200, 120, 0)
    assert _probe(vectors, labels) == table
    nothing = _probe((vectors[0] * 0, vectors[1] * 0), labels)
    assert nothing["auroc"]["value"] == 0.5


def test_probabilities_separate_classes_that_a_column_of_many_tells_apart():
    vectors, labels = _split(num_classes=3, shift=4.0)
    noise = np.random.default_rng(1)
    vectors = tuple(np.hstack([x, noise.normal(size=(len(x), 60))]) for x in vectors)
    table = _probe(vectors, labels)
    assert table["silhouette"] > 0.4 > silhouette_score(vectors[1], labels[1])
    assert table["ari"] > 0.7
    shuffled = _probe(vectors, (noise.permutation(labels[0]), labels[1]))
    assert shuffled["silhouette"] < 0.1 and abs(shuffled["ari"]) < 0.1
    alone = np.array([0, 1]), np.array([0, 1])
    assert _probe((np.eye(2), np.eye(2)), alone)["silhouette"] is None


def test_scale_and_offset_of_a_column_do_not_matter():
    vectors, labels = _split()
    moved = tuple(x * [1, 1000, 1, 1e-3, 1, 1] + 5 for x in vectors)
    ours, plain = _probe(moved, labels), _probe(vectors, labels)
    for name in ("auroc", "accuracy"):
        assert ours[name]["value"] == pytest.approx(plain[name]["value"], abs=1e-3)


def test_unknown_classes_and_those_that_train_lacks_are_left_out():
    vectors, (train, test) = _split(num_classes=3)
    table = _probe(vectors, (train, test))
    assert table["macro_auroc"]["value"] > 0.8
    train, test = np.where(train == 2, -1, train), test.copy()
    test[:5] = -1
    table = _probe(vectors, (train, test))
    assert table["num_train"] == (train >= 0).sum() and table["num_unlearnt"] == (test == 2).sum()
    assert table["num_test"] == np.isin(test, [0, 1]).sum() and "auroc" in table


def test_diagnoses_are_averaged_over_those_that_vary():
    vectors, labels = _split(num_classes=3)
    sets = tuple(np.stack([each == 0, each == 1, each > 5], axis=1) for each in labels)
    table = _probe(vectors, sets)
    each = [_probe(vectors, tuple((labels == k).astype(int) for labels in labels)) for k in (0, 1)]
    assert table["num_outputs"] == 2 and "accuracy" not in table
    assert table["macro_auroc"]["value"] == pytest.approx(np.mean([row["auroc"]["value"] for row in each]))


@pytest.mark.parametrize("num_classes", [2, 3])
def test_more_examples_help_where_there_is_something_to_learn(num_classes):
    vectors, labels = _split(num_classes)
    curve = few_shot_curve(vectors, labels)
    assert curve["shots"] == [shot for shot in (1, 2, 4, 8, 16, 32, 64) if shot <= np.bincount(labels[0]).min()]
    assert curve["mean"][-1] > curve["mean"][0] + 0.05 and curve["sd"][-1] < curve["sd"][0]
    assert curve["all_labels"] > curve["mean"][0]
    assert curve["all_labels"] == pytest.approx(
        _probe(vectors, labels)["auroc" if num_classes == 2 else "macro_auroc"]["value"]
    )
    assert few_shot_curve(vectors, labels) == curve != few_shot_curve(vectors, labels, seed=1)
    shuffled = few_shot_curve(vectors, (np.random.default_rng(0).permutation(labels[0]), labels[1]))
    assert abs(shuffled["mean"][0] - 0.5) < 0.15


def test_one_shot_of_two_patients_is_the_line_between_them():
    vectors = np.array([[0.0], [1.0]]), np.array([[0.2], [0.4], [0.8]])
    curve = few_shot_curve(vectors, (np.array([0, 1]), np.array([0, 1, 0])))
    expected = roc_auc_score([0, 1, 0], [0.2, 0.4, 0.8])
    assert curve["shots"] == [1] and curve["mean"] == [expected] and curve["sd"] == [0.0]
    assert curve["all_labels"] == expected


def test_a_vector_that_is_not_finite_is_refused():
    vectors, labels = _split()
    vectors[1][3] = np.nan
    with pytest.raises(ValueError, match="patient 3 is not finite"):
        _probe(vectors, labels)
